"""The HTTP server: listens, looks at each request, and passes it to the handler of its route."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from audiofork.addresses import listen_tcp
from audiofork.config import Address, HttpConfig
from audiofork.doors.http.access import COOKIE, Access, Identity, require, require_origin
from audiofork.doors.http.connections import Connection, Server
from audiofork.doors.http.problems import Problem, a_bug, problem_of
from audiofork.doors.http.routes import JSON, Call, Route, RouteTable
from audiofork.doors.http.schema import BadValue, parse_body, parse_query
from audiofork.doors.http.sending import harden
from audiofork.doors.http.tokens import read_tokens
from audiofork.errors import AudioForkError, CannotListen, ConfigError
from audiofork.log import Refusals
from audiofork.text import why
from audiofork.tls_contexts import server_context
from audiofork.unix_sockets import bind, peer_of, remove

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
BODY_S = 10.0


@dataclass(frozen=True)
class _Nothing:
    """The query of a route that has none."""


class HttpServer:
    """Serves some routes. Its owner calls `start` once and then `close`.

    Args:
        config: Where to listen, and who may ask.
        routes: Returns the routes, which may ask who may ask.

    Attributes:
        access: Who may ask.
        routes: The routes.
        address: Where it listens by TCP, once started.

    Raises:
        ConfigError: A file that the configuration names cannot be used.
    """

    def __init__(self, config: HttpConfig, routes: Callable[[Access], Iterable[Route]]) -> None:
        self._config = config
        self._tls = _tls_of(config)
        self.access = Access(
            read_tokens(config.tokens_file),
            config.hosts,
            listens_at=config.listen.host if config.listen else "",
            is_tls=self._tls is not None,
        )
        self.routes = RouteTable(routes(self.access))
        self._server: Server | None = None
        self._inode = 0
        self._bugs = Refusals(log, "HTTP requests that could not be handled")
        self.address: Address | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            CannotListen: The address cannot be used.
            ConfigError: The path of the socket cannot be used.
        """
        self._server = Server(self.handle)
        try:
            await self._listen_everywhere(self._server)
        except BaseException:
            await self.close()
            raise

    async def _listen_everywhere(self, server: Server) -> None:
        listen = self._config.listen
        if listen is not None:
            try:
                sockets = await asyncio.to_thread(listen_tcp, listen.host, listen.port)
            except OSError as exc:
                raise CannotListen("[http] listen", listen, exc) from exc
            for one in sockets:
                server.serve(one, self._tls)
            host, port = sockets[0].getsockname()[:2]
            self.address = Address(host, port)
            log.info("HTTP interface on %s://%s", "https" if self._tls else "http", self.address)
        if self._config.socket:
            server.serve(self._bound_socket())
            log.info("HTTP interface on the Unix socket %s", self._config.socket)

    def _bound_socket(self) -> socket.socket:
        path = Path(self._config.socket)
        bound = bind(path, "[http] socket")
        self._inode = path.stat().st_ino
        bound.listen(128)
        return bound

    def reading_tokens(self, config: HttpConfig) -> Callable[[], None]:
        """Read the tokens of a configuration; return what makes them count.

        From then on, who has no token any more is dropped.

        Raises:
            ConfigError: Their file cannot be used.
        """
        return functools.partial(self.access.take_tokens, read_tokens(config.tokens_file))

    async def close(self) -> None:
        """Stop listening and drop all clients; may be called again."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._inode:
            remove(Path(self._config.socket), self._inode)
        self.end_streams()
        await asyncio.sleep(0)
        await server.close()

    def end_streams(self) -> None:
        """End the answers that would go on until their clients leave."""

    # --- A request ---

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; each error becomes a problem."""
        path = request.raw_path.partition("?")[0]
        try:
            response = await self._answer(request, path)
        except (Problem, BadValue, AudioForkError, TimeoutError) as exc:
            response = _problem(problem_of(exc), request, path)
        except ConnectionError:  # the client has left
            raise
        except Exception:
            if self._bugs.count():
                log.exception("an HTTP request could not be handled")
            response = _problem(a_bug(), request, path)
        if not response.prepared:
            harden(response)
            if not request.content.is_eof() and isinstance(request.protocol, Connection):
                response.force_close()
                request.protocol.read_no_more()
        return response

    async def _answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        host = self.access.check_host(request.headers.getall("Host", []), _own_address(request))
        origins = request.headers.getall("Origin", [])
        self.access.check_origin(origins, host, is_tls=request.secure)
        route, part = self.routes.find(request.method, path)
        identity = None
        if route.role is not None:  # else a token that is not known is none of its business
            identity = require(self._identify(request), route.role)
            require_origin(identity, request.method, origins, always=route.is_websocket)
        query = _query_of(request, route)
        body = await _body_of(request, route)
        return await route.handler(Call(request, identity, query, body, part))

    def _identify(self, request: web.BaseRequest) -> Identity | None:
        return self.access.identify(
            request.headers.getall("Authorization", []),
            request.cookies.get(COOKIE, ""),
            request.remote or "",
            by_socket=_user_of(request),
        )


def _problem(problem: Problem, request: web.BaseRequest, path: str) -> web.StreamResponse:
    """Return the answer to a request that has failed.

    Raises:
        ConnectionError: A part of another answer was sent already.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("a part of the answer was sent already")
    return problem.response(path)


def _own_address(request: web.BaseRequest) -> str:
    """Return the address that a request came to; empty at the Unix socket."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport is not None else None
    if not isinstance(name, tuple):
        return ""
    address = str(name[0]).partition("%")[0]
    return address.removeprefix("::ffff:") if "." in address else address


def _user_of(request: web.BaseRequest) -> str:
    """Return the user at the Unix socket, for the log; empty: it was asked by TCP."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport is not None else None
    if peer is None or peer.family != socket.AF_UNIX:
        return ""
    return f"uid {peer_of(peer).uid}"


def _query_of(request: web.BaseRequest, route: Route) -> Any:
    return parse_query(route.query or _Nothing, list(request.query.items()))


async def _body_of(request: web.BaseRequest, route: Route) -> Any:
    if route.body is None:
        return None
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if content_type != JSON or encoding != "identity":
        raise Problem(415, f"expected Content-Type: {JSON}, not compressed")
    try:
        async with asyncio.timeout(BODY_S):
            return parse_body(route.body, await _read(request))
    except TimeoutError:
        raise Problem(408, "the body did not come in time", headers=_CLOSE) from None


async def _read(request: web.BaseRequest) -> bytes:
    too_big = Problem(413, f"expected {MAX_BODY_BYTES} bytes at most", headers=_CLOSE)
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_big
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise too_big
    return bytes(body)


_CLOSE = {"Connection": "close"}


def _tls_of(config: HttpConfig) -> ssl.SSLContext | None:
    if not config.cert_file:
        return None
    try:
        return server_context(config.cert_file, config.key_file)
    except OSError as exc:
        raise ConfigError(f"[http] cert_file, key_file: {why(exc)}") from exc
