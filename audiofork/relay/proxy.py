"""Reaches a server through a proxy: HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, 1929).

The proxy gets the server's name and resolves it. `python-socks` speaks SOCKS5, too, but it opens
the connection itself: with look-ups in the event loop's few threads, and addresses one after the
other. What it has without that is private.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Generator
from fnmatch import fnmatchcase
from typing import TypeVar

from websockets.exceptions import WebSocketException
from websockets.headers import build_authorization_basic, build_host
from websockets.http11 import Response
from websockets.streams import StreamReader

from audiofork.addresses import IPAddress, address_of_host, is_public, network_of
from audiofork.config import Proxy, WebSocketConfig
from audiofork.errors import SinkError, SinkRefused, SinkUnreachable
from audiofork.relay.retry import bad_status
from audiofork.relay.tls import RECORD_PAYLOAD_BYTES, Records, shake_hands
from audiofork.text import reason_of
from audiofork.uri import readable_host

# How much a proxy may say before the server's part begins; as much as a server's own answer.
MAX_ANSWER_BYTES = 16_384

_Answer = TypeVar("_Answer")
_Parser = Callable[[StreamReader], Generator[None, None, _Answer]]


def proxy_for(host: str, config: WebSocketConfig) -> Proxy:
    """Return the proxy that a host is connected to through; that may be none.

    Args:
        host: A name or an IP address, without brackets.
        config: What is configured, for all or for one fork.
    """
    if not config.proxy or _is_among(host, config.no_proxy):
        return Proxy()
    return config.proxy.with_login(config.proxy_login)


def _is_among(host: str, hosts: tuple[str, ...]) -> bool:
    """Return whether a host is one of these names with *, addresses and networks."""
    host = host.lower().rstrip(".")
    address = address_of_host(host)
    return any(_fits(host, address, one) for one in hosts)


def _fits(host: str, address: IPAddress | None, one: str) -> bool:
    try:
        network = network_of(one)
    except ValueError:  # a name, or a text with *
        return fnmatchcase(readable_host(host), readable_host(one))
    return address is not None and address in network


def check_public(host: str) -> None:
    """Raise SinkRefused for a host that is seen to be private; other names only the proxy knows."""
    address = address_of_host(host)
    is_local = host.lower().rstrip(".").rpartition(".")[2] == "localhost"
    if is_local or (address is not None and not is_public(address)):
        raise SinkRefused(
            f"{host} is a private address, which [security] allow_private forbids, through a "
            "proxy, too"
        )


async def open_tunnel(
    proxy: Proxy, connected: socket.socket, host: str, port: int, tls: ssl.SSLContext | None
) -> Records | None:
    """Make a proxy connect to a server.

    Args:
        proxy: The proxy.
        connected: A connected, non-blocking socket to it, which the caller closes.
        host: The server's name or address, without brackets.
        port: Its port.
        tls: How an https proxy is verified.

    Returns:
        The TLS with the proxy, through which the server is reached; None if there is none.

    Raises:
        SinkError: The proxy does not connect to the server.
        OSError: It broke the connection off; or its TLS failed, see `open_tls`.
    """
    talk = _Talk(connected)
    if proxy.scheme == "https":
        assert tls is not None
        talk.records = Records(tls, proxy.host)
        await shake_hands(talk.records, connected)
    if proxy.scheme == "socks5":
        await _connect_by_socks5(talk, proxy, host, port)
    else:
        await _connect_by_http(talk, proxy, host, port)
    if talk.reader.buffer:  # the server speaks only after us, whether by TLS or not
        raise SinkUnreachable("the proxy sent more than its answer: is it one?")
    return talk.records


class _Talk:
    """Asks a proxy questions, over a socket or over TLS; a question follows an answer.

    Attributes:
        records: The TLS with the proxy, once there is one.
        reader: What came, and belongs to no answer yet.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._came_bytes = 0
        self.records: Records | None = None
        self.reader = StreamReader()

    async def ask(self, question: bytes, parse: _Parser[_Answer]) -> _Answer:
        """Send a question; return the answer that a parser finds in what comes.

        Raises:
            SinkUnreachable: The proxy says too much before an answer.
            EOFError: It closes before that.
            Exception: What the parser raises.
        """
        wire = self.records.seal(question) if self.records is not None else question
        await self._loop.sock_sendall(self._socket, wire)
        answer = parse(self.reader)
        while True:
            try:
                next(answer)
            except StopIteration as found:
                return found.value  # type: ignore[no-any-return]
            self._take(await self._receive())

    def _take(self, data: bytes) -> None:
        self._came_bytes += len(data)
        if self._came_bytes > MAX_ANSWER_BYTES:
            raise SinkUnreachable(
                f"the proxy sent {MAX_ANSWER_BYTES} bytes and no answer: is it one?"
            )
        if data:
            self.reader.feed_data(data)
        else:
            self.reader.feed_eof()

    async def _receive(self) -> bytes:
        """Return what comes next; empty at the end."""
        if self.records is None:
            return await self._loop.sock_recv(self._socket, RECORD_PAYLOAD_BYTES)
        while (data := self.records.open()) is None:
            self.records.feed(await self._loop.sock_recv(self._socket, RECORD_PAYLOAD_BYTES))
        return data


# --- HTTP ----------------------------------------------------------------------------------------

_HINTS = {
    401: "it is a web server, not a proxy",
    403: "it does not let us connect to this server or port",
    404: "it is a web server, not a proxy",
    405: "it is a web server, not a proxy",
    407: "it wants a login, or another one: proxy_login",
    502: "it does not reach the server",
    503: "it takes no more now, or does not reach the server",
    504: "it waits for the server in vain",
}


async def _connect_by_http(talk: _Talk, proxy: Proxy, host: str, port: int) -> None:
    target = build_host(host, port, secure=False, always_include_port=True)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.login:
        user, _, password = proxy.login.partition(":")
        lines.append(f"Proxy-Authorization: {build_authorization_basic(user, password)}")
    question = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    try:
        response = await talk.ask(question, _http_answer)
    except (ValueError, EOFError, WebSocketException) as exc:
        if isinstance(exc, EOFError) and talk.reader.eof:  # else: a line that ends otherwise
            raise
        raise SinkUnreachable("the proxy speaks no HTTP: is it of another kind?") from exc
    status = response.status_code
    if not 200 <= status <= 299:
        raise bad_status(response, "the proxy", _hint(response))


def _hint(response: Response) -> str:
    """Return what to do about an answer that is not the one that was wanted."""
    status = response.status_code
    if status == 407 and (kinds := _logins(response)) and "basic" not in kinds:
        return f"it wants a login, but not a Basic one, as audiofork has: {', '.join(kinds)}"
    return "it is a web server, not a proxy" if 300 <= status <= 399 else _HINTS.get(status, "")


def _logins(response: Response) -> list[str]:
    """Return the kinds of logins that a proxy takes; several may stand in one header."""
    values = response.headers.get_all("Proxy-Authenticate")
    words = (part.split()[:1] for value in values for part in value.split(","))
    return [one.lower() for found in words for one in found if re.fullmatch("[A-Za-z-]+", one)]


def _http_answer(reader: StreamReader) -> Generator[None, None, Response]:
    return Response.parse(reader.read_line, reader.read_exact, reader.read_to_eof, proxy=True)


# --- SOCKS5 --------------------------------------------------------------------------------------

_VERSION, _LOGIN_VERSION, _GRANTED = 5, 1, 0
_NO_LOGIN, _LOGIN = 0, 2  # methods (RFC 1928, 3)
_IPV4, _NAME, _IPV6 = 1, 3, 4  # kinds of addresses (RFC 1928, 5)
MAX_NAME_BYTES = 255
_REFUSALS = {  # replies (RFC 1928, 6), and whether another attempt may succeed
    1: ("it has failed", True),
    2: ("it does not let us connect to this server or port", False),
    3: ("it has no route to the server's network", True),
    4: ("it does not reach the server, or does not find its name", True),
    5: ("the server refused its connection: no program listens there", True),
    6: ("it does not reach the server: the TTL expired", True),
    7: ("it cannot connect for others", False),
    8: ("it does not know this kind of address", False),
}


async def _connect_by_socks5(talk: _Talk, proxy: Proxy, host: str, port: int) -> None:
    methods = bytes([_NO_LOGIN, _LOGIN] if proxy.login else [_NO_LOGIN])
    greeting = bytes([_VERSION, len(methods)]) + methods
    version, method = await talk.ask(greeting, lambda reader: reader.read_exact(2))
    _check_version(version, _VERSION)
    if method == _LOGIN and proxy.login:
        await _log_in(talk, proxy.login)
    elif method != _NO_LOGIN:
        other = "another kind of" if proxy.login else "a"
        raise SinkRefused(f"the proxy wants {other} login: proxy_login")
    reply = await talk.ask(_socks5_request(host, port), _socks5_reply)
    if reply != _GRANTED:
        text, is_passing = _REFUSALS.get(
            reply, (f"it refused with the unknown reply {reply}", True)
        )
        raise (SinkUnreachable if is_passing else SinkRefused)(text)


async def _log_in(talk: _Talk, login: str) -> None:
    user, _, password = (part.encode() for part in login.partition(":"))
    question = bytes([_LOGIN_VERSION, len(user)]) + user + bytes([len(password)]) + password
    version, status = await talk.ask(question, lambda reader: reader.read_exact(2))
    _check_version(version, _LOGIN_VERSION)
    if status != _GRANTED:
        raise SinkRefused("the proxy does not accept our login: proxy_login")


def _check_version(version: int, expected: int) -> None:
    if version != expected:
        raise SinkUnreachable("the proxy speaks no SOCKS5: is it of another kind?")


def _socks5_request(host: str, port: int) -> bytes:
    address = address_of_host(host)
    if address is not None:
        target = bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed
    else:
        name = host.encode("ascii")
        if len(name) > MAX_NAME_BYTES:
            raise SinkRefused(f"a proxy by SOCKS5 takes names of {MAX_NAME_BYTES} bytes at most")
        target = bytes([_NAME, len(name)]) + name
    return bytes([_VERSION, 1, 0]) + target + port.to_bytes(2, "big")


def _socks5_reply(reader: StreamReader) -> Generator[None, None, int]:
    """Read a reply to its end, with the address that the proxy connects from; return its code."""
    version, reply = yield from reader.read_exact(2)
    _check_version(version, _VERSION)
    if reply != _GRANTED:  # nothing that follows matters
        return reply
    _, kind = yield from reader.read_exact(2)
    sizes = {_IPV4: 4, _IPV6: 16}
    if kind == _NAME:
        (sizes[_NAME],) = yield from reader.read_exact(1)
    if kind not in sizes:
        raise SinkUnreachable("the proxy speaks no SOCKS5: is it of another kind?")
    yield from reader.read_exact(sizes[kind] + 2)
    return reply


# --- What is said of a failure -------------------------------------------------------------------


def failure(exc: Exception, where: str) -> SinkError:
    """Return the SinkError for an exception of a connect to a proxy; raise others again.

    Args:
        exc: The exception.
        where: What was tried, with the proxy; begins the text.
    """
    if isinstance(exc, SinkError):
        told = type(exc)(f"{where}: {exc}")
        told.retry_after_s = exc.retry_after_s
        return told
    if isinstance(exc, ssl.SSLCertVerificationError):
        why = reason_of(exc, "[websocket] ca_list_file")
        return SinkRefused(f"{where}: the proxy's certificate is not accepted: {why}")
    if isinstance(exc, EOFError):
        return SinkUnreachable(f"{where}: the proxy closed without an answer")
    if isinstance(exc, UnicodeError):
        return SinkRefused(f"{where}: the proxy has no host name: {reason_of(exc)}")
    if isinstance(exc, OSError):
        return SinkUnreachable(f"{where}: the proxy: {reason_of(exc)}")
    raise exc
