"""The connection to Asterisk's REST interface (ARI): requests, and the events of our application.

The only module that imports aiohttp, which costs 10 MB of memory: import it only if ARI is used.
The exceptions of aiohttp contain the headers of the request, and so the password: none of them may
leave this module.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from time import perf_counter
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import quote, urlencode

import aiohttp
import yarl

from audiofork.asterisk.reconnecting import ReconnectingClient
from audiofork.config import AriConfig
from audiofork.errors import AriError, AriLoginRefused, AriRefused, AriUnavailable
from audiofork.reading_json import parsed_json
from audiofork.text import printable, why
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 1.0
# Retry interval for failures that an administrator must repair. Each refused login is a line in
# Asterisk's security log, and tools may ban our address for it.
REFUSED_RETRY_S = 60.0
MAX_CONNECTIONS = 32  # Asterisk has a thread for each, and room for 100 (session_limit)
KEEP_ALIVE_S = 5.0  # below Asterisk's 15 (session_keep_alive), so that Asterisk never closes first
MAX_EVENT_BYTES = MAX_ANSWER_BYTES = 262_144  # an event or a channel is 1 or 2 KiB
NOT_HTTP = "the program there does not speak HTTP; check the port in [ari] url"
MAX_MESSAGE_LENGTH = 200
# Only ApplicationReplaced reports that another daemon has taken over our application.
EVENT_FILTER = {"allowed": [{"type": "StasisStart"}, {"type": "ApplicationReplaced"}]}


def segment(text: str) -> str:
    """Return a text quoted as one segment of a path."""
    return quote(text, safe="")


class Ari(ReconnectingClient):
    """Sends requests to ARI; `run()` keeps the event connection open.

    Owned by the daemon; `close()` ends it. Any task may send requests, also several at once. They
    need neither `run()` nor the event connection, and connect if there is no connection. Check
    `ready` first if the caller cannot wait. Only `starting()` needs the event connection.
    """

    def __init__(self, config: AriConfig) -> None:
        super().__init__("not connected to ARI yet", log)
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._up = asyncio.Event()
        self._settled = asyncio.Event()
        self._rtt_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether the event connection is open and the event filter is set."""
        return self._up.is_set()

    async def settled(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` until the first attempt of `run()` has succeeded or failed."""
        await _wait(self._settled, timeout_s)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the event connection is ready.

        Raises:
            AriUnavailable: It is not ready within `timeout_s` seconds.
        """
        await _wait(self._up, timeout_s)
        if not self.ready:
            raise AriUnavailable(self.status)

    @property
    def is_up(self) -> bool:
        return self.ready

    @property
    def rtt_s(self) -> float:
        """How long Asterisk took to answer the latest request, in seconds; 0: while it is away."""
        return self._rtt_s if self.ready else 0.0

    def take_password(self, password: str) -> None:
        """Use another password from the next request on; an open event connection stays open."""
        self._config = dataclasses.replace(self._config, password=password)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; `run()` must have ended. May be called twice."""
        if self._session is not None:
            await self._session.close()

    # --- Requests ---

    async def get(self, path: str, /, **query: str) -> Any:
        """Send a GET request and return the decoded answer; None if it is empty.

        Args:
            path: The path below the configured URL, with a leading slash; see `segment`.
            query: The query; this method quotes it.

        Raises:
            ValueError: The path is not quoted.
            AriUnavailable: No connection, or no answer within REQUEST_TIMEOUT_S.
            AriLoginRefused: Asterisk does not know our user, or the user may not write.
            AriRefused: Asterisk answered with another error, or the answer is not from ARI.
        """
        return await self._request("GET", path, query)

    async def post(self, path: str, /, **query: str) -> Any:
        """Send a POST request; as `get`.

        After AriUnavailable, Asterisk may have executed it or not: no request is repeated.
        """
        return await self._request("POST", path, query)

    async def put(self, path: str, body: Any, /) -> Any:
        """Send a PUT request with a JSON body; as `get`."""
        return await self._request("PUT", path, {}, body)

    async def delete(self, path: str, /) -> Any:
        """Send a DELETE request, for example to hang up a channel; as `get`."""
        return await self._request("DELETE", path, {})

    async def check_rights(self) -> None:
        """Raise unless our user may write; changes nothing.

        Raises: as `get`.
        """
        try:
            await self.delete("/channels/audiofork-check")
        except AriRefused as exc:
            # Asterisk checks the right to write before it looks for the channel.
            if exc.message != "Channel not found":
                raise

    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> Any:
        url = self._url(path, query)
        sent = perf_counter()
        with self._own_errors():
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),
                self._opened().request(
                    method, url, json=body, headers=_login(self._config)
                ) as response,
            ):
                content = await _content(response)
        self._rtt_s = perf_counter() - sent
        if 200 <= response.status < 300:
            return _decoded(response.status, content)
        raise self._refusal(response.status, _message(response.reason, content))

    def _url(self, path: str, query: Mapping[str, str]) -> yarl.URL:
        text = self._config.url + path
        if query:
            text += "?" + urlencode(query, safe="", quote_via=quote)
        if not re.fullmatch(r"[!-~]+", text):  # a line end would inject a header, for example
            raise ValueError(f"not quoted: {path!r}")
        return yarl.URL(text, encoded=True)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _new_session(self._config)
        if self._session.closed:
            raise AriUnavailable("the connection to ARI is closed")
        return self._session

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn aiohttp's exceptions into ours, without the cause: it contains the password."""
        try:
            yield
        except aiohttp.WSServerHandshakeError as exc:
            raise self._refusal(exc.status, _of_handshake(exc.status)) from None
        except TimeoutError:
            raise AriUnavailable(f"no answer within {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise AriUnavailable(printable(_reason(exc), " ")[:MAX_MESSAGE_LENGTH]) from None

    def _refusal(self, status: int, message: str) -> AriError:
        # 403 is also the answer if the user may only read.
        if status in (401, 403):
            return AriLoginRefused(self._config.username, message)
        return AriRefused(status, message)

    # --- Channels that enter our application ---

    @contextlib.contextmanager
    def starting(self, channel_id: str) -> Iterator[asyncio.Future[None]]:
        """Watch for a channel that will enter our application.

        Args:
            channel_id: Its id; only one watch for each id at a time.

        Yields:
            A future that is done when it has entered. It fails with AriUnavailable if the event
            connection is lost before. It has no time limit.

        Raises:
            AriUnavailable: The event connection is not ready.
        """
        if not self.ready:
            raise AriUnavailable(self.status)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting[channel_id] = started
        try:
            yield started
        finally:
            del self._starting[channel_id]
            started.cancel()  # else asyncio logs a failure that was never retrieved

    def _on_event(self, data: Any) -> None:
        try:
            event = parsed_json(data)
        except ValueError:
            event = None
        match event:
            case {"type": "StasisStart", "channel": {"id": str(channel_id)}}:
                started = self._starting.get(channel_id)
                if started is not None and not started.done():
                    started.set_result(None)
            case {"type": "ApplicationReplaced"}:
                raise _Replaced(self._config.app)
            case {"type": str()}:
                pass  # from before the filter was set
            case _:
                log.warning("ARI sent a message that is not an event")

    # --- The event connection ---

    async def run(self) -> None:
        """Connect and read events; reconnect when the connection is lost; until cancelled."""
        while True:
            try:
                await self._connect_once()
            except (AriLoginRefused, _NoPassword, _Replaced) as exc:
                self._say(logging.ERROR, f"{exc}; next try in {REFUSED_RETRY_S:g} s")
                await self._pause(REFUSED_RETRY_S)
            except AriError as exc:
                self._say(logging.WARNING, f"no connection to ARI at {self._config.url}: {exc}")
                await self._pause_longer()

    def _say(self, level: int, status: str) -> None:
        super()._say(level, status)
        self._settled.set()

    async def _connect_once(self) -> NoReturn:
        """Open and serve one connection; raise the exception that says why it ended."""
        self._begin_attempt()
        if not self._config.password:
            raise _NoPassword
        events = await self._open_events()
        try:
            # Set after each connect: Asterisk knows the application from then on, and forgets it
            # some time after a loss. This also checks whether our user may write.
            await self.put(f"/applications/{segment(self._config.app)}/eventFilter", EVENT_FILTER)
            self._up.set()
            self._on_success()
            self._say(logging.INFO, f"connected to ARI at {self._config.url}")
            await self._read(events)
        finally:
            self._lose()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await events.close()

    async def _open_events(self) -> aiohttp.ClientWebSocketResponse:
        url = self._url("/events", {"app": self._config.app})
        with self._own_errors():
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self._opened().ws_connect(
                    url,
                    headers=_login(self._config),
                    heartbeat=self._config.ping_interval,
                    max_msg_size=MAX_EVENT_BYTES,
                )

    async def _read(self, events: aiohttp.ClientWebSocketResponse) -> NoReturn:
        async for message in events:
            if message.type is aiohttp.WSMsgType.ERROR:
                raise AriUnavailable(printable(why(message.data), " "))
            self._on_event(message.data)
        raise AriUnavailable("Asterisk closed the connection")

    def _lose(self) -> None:
        """Raise AriUnavailable in all coroutines that wait for channels: none will come."""
        self._up.clear()
        for started in self._starting.values():
            if not started.done():
                started.set_exception(AriUnavailable("the connection to ARI was lost"))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


class _Replaced(AriError):
    """Another program uses the name of our application, and gets our channels now."""

    def __init__(self, app: str) -> None:
        super().__init__(
            f"another program took the ARI application {app}: a controller that leads by now, or a "
            "daemon beside the same Asterisk, which needs an [ari] app of its own"
        )


class _NoPassword(AriError):
    """The configuration has no password for ARI."""

    def __init__(self) -> None:
        super().__init__(
            "no password for ARI: set [ari] password_file (`audiofork setup` does all of it), "
            "then systemctl restart audiofork"
        )


def _login(config: AriConfig) -> dict[str, str]:
    """Return the header that authenticates us."""
    # aiohttp's BasicAuth will be removed, and encode_basic_auth is too new.
    login = base64.b64encode(f"{config.username}:{config.password}".encode()).decode()
    return {"Authorization": f"Basic {login}"}


def _new_session(config: AriConfig) -> aiohttp.ClientSession:
    tls: ssl.SSLContext | bool = True
    if config.url.startswith("https:"):  # only then: the system's authorities take memory
        try:
            tls = client_context(config.ca_file)
        except OSError as exc:
            raise AriUnavailable(f"[ari] ca_file: {why(exc)}") from exc
    no_redirects = aiohttp.TraceConfig()
    no_redirects.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S, ssl=tls
        ),
        trace_configs=[no_redirects],
    )


async def _refuse_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    redirect: aiohttp.TraceRequestRedirectParams,
) -> None:
    """End a request that is redirected; `ws_connect` has no option for that."""
    redirect.response.close()
    raise AriRefused(redirect.response.status, "a redirect; check [ari] url")


async def _content(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise AriRefused(response.status, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _decoded(status: int, content: bytes) -> Any:
    try:
        return parsed_json(content) if content else None
    except ValueError:
        raise AriRefused(status, "an answer that is not JSON; check [ari] url") from None


def _message(reason: str | None, content: bytes) -> str:
    """Return the text of an error in one line: from ARI, or else from HTTP."""
    try:
        message = str(parsed_json(content)["message"])
    except (ValueError, LookupError, TypeError):
        message = reason or "no reason given"
    return printable(message, " ")[:MAX_MESSAGE_LENGTH]


def _reason(exc: Exception) -> str:
    """Return why a request failed; for a failed connect, aiohttp itself names only the address.

    Its texts about a peer that does not speak HTTP quote that peer, and name its own exceptions.
    """
    cause: BaseException = exc
    if isinstance(exc, aiohttp.ClientResponseError):
        return NOT_HTTP
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the other side closed the connection without an answer"
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return why(exc.certificate_error, "[ari] ca_file")
    if isinstance(exc, aiohttp.ClientConnectionResetError) and not exc.errno:
        # The peer spoke first, which no HTTP server does, or left.
        return f"the connection ended before the request was sent; perhaps {NOT_HTTP}"
    if isinstance(exc, aiohttp.ClientOSError) and not exc.errno:
        # It says [Errno None], and the URL.
        return "the connection broke off while the request was sent"
    if isinstance(exc, aiohttp.ClientConnectorError):
        cause = exc.os_error
    return why(cause, "[ari] ca_file")


def _of_handshake(status: int) -> str:
    """Return the text for a refused event connection: aiohttp does not keep Asterisk's own."""
    if status < 400:
        return "no event connection; check [ari] url"
    hint = "; check [ari] url, and [general] enabled in ari.conf" if status == 404 else ""
    return http.client.responses.get(status, "no reason given") + hint
