"""The link to Asterisk's REST interface (ARI): requests with limits, and channels that come to us.

The only module that knows aiohttp, which costs 10 MB of memory: import it where ARI is used. The
exceptions of aiohttp hold the headers of the request, and so the password: none leaves this module.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import json
import logging
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import quote, urlencode

import aiohttp
import yarl

from audiofork.asterisk.reconnecting import KeptLink
from audiofork.config import AriConfig
from audiofork.errors import AriError, AriLoginRefused, AriRefused, AriUnavailable
from audiofork.text import printable, why
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 1.0
# For what somebody has to put right. Each refused login is a line in Asterisk's security log, which
# may feed a ban of our address.
REFUSED_RETRY_S = 60.0
MAX_CONNECTIONS = 32  # Asterisk has a thread for each, and room for 100 (session_limit)
KEEP_ALIVE_S = 5.0  # well below Asterisk's 15 (session_keep_alive): it shall not close them first
MAX_EVENT_BYTES = MAX_ANSWER_BYTES = 262_144  # an event or a channel is 1 or 2 KiB
MAX_MESSAGE_LENGTH = 200
# What another daemon takes from us is told by ApplicationReplaced, and by nothing else.
EVENT_FILTER = {"allowed": [{"type": "StasisStart"}, {"type": "ApplicationReplaced"}]}


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")


class Ari(KeptLink):
    """Requests to ARI, and the event link, which is kept up for as long as `run()` runs.

    Owned by the daemon; `close()` ends it. Requests may be made at once, from any task. They need
    neither `run()` nor a link that is up, and try to connect if there is no connection: look at
    `ready` where a wait is too dear. `starting()` alone needs the link.
    """

    def __init__(self, config: AriConfig) -> None:
        super().__init__("not connected to ARI yet", log)
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._up = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the link is up: events come, and only those that are wanted."""
        return self._up.is_set()

    async def settled(self, timeout_s: float) -> None:
        """Wait until the link is up, or an attempt has failed since `run()` began."""
        await _wait(self._settled, timeout_s)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the link is up.

        Raises:
            AriUnavailable: It is not within that time.
        """
        await _wait(self._up, timeout_s)
        if not self.ready:
            raise AriUnavailable(self.status)

    def _is_up(self) -> bool:
        return self.ready

    def take_password(self, password: str) -> None:
        """Use another password from the next request on; an event link that is up goes on."""
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
        """Close all connections; `run()` has to be over. May be called twice."""
        if self._session is not None:
            await self._session.close()

    # --- Requests ---

    async def get(self, path: str, /, **query: str) -> Any:
        """Ask for something, and return the decoded answer; None if it is empty.

        Args:
            path: Below the configured URL, with a slash before it; see `segment`.
            query: Behind the question mark; quoted here.

        Raises:
            ValueError: The path is not quoted.
            AriUnavailable: No connection, or no answer within REQUEST_TIMEOUT_S.
            AriLoginRefused: Asterisk does not know our user, or does not let it write.
            AriRefused: Asterisk answered with another error, or with what is no ARI.
        """
        return await self._request("GET", path, query)

    async def post(self, path: str, /, **query: str) -> Any:
        """Make something, or have something done; as `get`.

        After AriUnavailable it may be done or not: nothing is sent twice.
        """
        return await self._request("POST", path, query)

    async def put(self, path: str, body: Any, /) -> Any:
        """Set something, told in JSON; as `get`."""
        return await self._request("PUT", path, {}, body)

    async def delete(self, path: str, /) -> Any:
        """Remove something, or hang it up; as `get`."""
        return await self._request("DELETE", path, {})

    async def check_rights(self) -> None:
        """Raise unless our user may write; changes nothing.

        Raises: as `get`.
        """
        try:
            await self.delete("/channels/audiofork-check")
        except AriRefused as exc:
            # Who may not write is told so before Asterisk looks for the channel.
            if exc.message != "Channel not found":
                raise

    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> Any:
        url = self._url(path, query)
        with self._own_errors():
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),
                self._opened().request(
                    method, url, json=body, headers=_login(self._config)
                ) as response,
            ):
                content = await _content(response)
        if 200 <= response.status < 300:
            return _decoded(response.status, content)
        raise self._refusal(response.status, _message(response.reason, content))

    def _url(self, path: str, query: Mapping[str, str]) -> yarl.URL:
        text = self._config.url + path
        if query:
            text += "?" + urlencode(query, safe="", quote_via=quote)
        if not re.fullmatch(r"[!-~]+", text):  # a line of its own in HTTP, say
            raise ValueError(f"not quoted: {path!r}")
        return yarl.URL(text, encoded=True)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _new_session(self._config)
        if self._session.closed:
            raise AriUnavailable("the link to ARI is closed")
        return self._session

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn aiohttp's exceptions into ours, without the cause: it holds the password."""
        try:
            yield
        except aiohttp.WSServerHandshakeError as exc:
            raise self._refusal(exc.status, _of_handshake(exc.status)) from None
        except TimeoutError:
            raise AriUnavailable(f"no answer within {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise AriUnavailable(printable(_reason(exc), " ")[:MAX_MESSAGE_LENGTH]) from None

    def _refusal(self, status: int, message: str) -> AriError:
        # 403 is also the answer to a user that may only read.
        if status in (401, 403):
            return AriLoginRefused(self._config.username, message)
        return AriRefused(status, message)

    # --- Channels that come to us ---

    @contextlib.contextmanager
    def starting(self, channel_id: str) -> Iterator[asyncio.Future[None]]:
        """Watch for a channel that is about to enter our application.

        Yields:
            A future that is done when it has entered, and fails with AriUnavailable when the link
            is lost before. It sets no limit of time. One for each id at a time.

        Raises:
            AriUnavailable: The link is down.
        """
        if not self.ready:
            raise AriUnavailable(self.status)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting[channel_id] = started
        try:
            yield started
        finally:
            del self._starting[channel_id]
            started.cancel()  # else asyncio complains of a failure that nobody has looked at

    def _on_event(self, data: Any) -> None:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
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
                log.warning("ARI sent what is no event")

    # --- The link's life ---

    async def run(self) -> None:
        """Connect, hear events, and begin anew when the link is lost; until cancelled."""
        while True:
            try:
                await self._connect_once()
            except (AriLoginRefused, _Replaced) as exc:
                self._say(logging.ERROR, f"{exc}; next try in {REFUSED_RETRY_S:g} s")
                await self._pause(REFUSED_RETRY_S)
            except AriError as exc:
                self._say(logging.WARNING, f"no link to ARI at {self._config.url}: {exc}")
                await self._pause_longer()

    def _say(self, level: int, status: str) -> None:
        super()._say(level, status)
        self._settled.set()

    async def _connect_once(self) -> NoReturn:
        """Serve one connection; ends with the exception that says why it is over."""
        self._begin_attempt()
        events = await self._open_events()
        try:
            # Asterisk knows the application since the link is open, and forgets it in time. This
            # tells, too, whether our user may write.
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
        raise AriUnavailable("Asterisk closed the link")

    def _lose(self) -> None:
        """Wake those who wait for channels: none will come."""
        self._up.clear()
        for started in self._starting.values():
            if not started.done():
                started.set_exception(AriUnavailable("the link to ARI was lost"))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


class _Replaced(AriError):
    """Another program uses our application's name: Asterisk sends our channels there now."""

    def __init__(self, app: str) -> None:
        super().__init__(
            f"another program took the ARI application {app}; each daemon beside one Asterisk "
            "needs an [ari] app of its own"
        )


def _login(config: AriConfig) -> dict[str, str]:
    """Return the header that says who we are."""
    # Not aiohttp's BasicAuth, which is about to go, nor encode_basic_auth, which is too new.
    login = base64.b64encode(f"{config.username}:{config.password}".encode()).decode()
    return {"Authorization": f"Basic {login}"}


def _new_session(config: AriConfig) -> aiohttp.ClientSession:
    tls: ssl.SSLContext | bool = True
    if config.url.startswith("https:"):  # the system's authorities take memory
        try:
            tls = client_context(config.ca_file)
        except OSError as exc:  # its text does not name the file
            raise AriUnavailable(f"[ari] ca_file: {exc}") from exc
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
    """End a request that is sent elsewhere; `ws_connect` has no option for that."""
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
        return json.loads(content) if content else None
    except (ValueError, RecursionError):
        raise AriRefused(status, "an answer that is no JSON; check [ari] url") from None


def _message(reason: str | None, content: bytes) -> str:
    """Return the text of an error, in one line: ARI's own, or that of HTTP."""
    try:
        message = str(json.loads(content)["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        message = reason or "no reason given"
    return printable(message, " ")[:MAX_MESSAGE_LENGTH]


def _reason(exc: Exception) -> str:
    """Return why a request failed; of a connect that did, aiohttp names the address instead."""
    # Errors of TLS are connect errors, too, and tell the reason themselves.
    if isinstance(exc, aiohttp.ClientConnectorError) and not isinstance(
        exc, aiohttp.ClientSSLError
    ):
        number = exc.os_error.errno
        return os.strerror(number) if number and number > 0 else why(exc)
    return why(exc)


def _of_handshake(status: int) -> str:
    """Return the text of a refused event link: aiohttp does not keep Asterisk's own."""
    if status < 400:
        return "no event link; check [ari] url"
    hint = "; check [ari] url, and [general] enabled in ari.conf" if status == 404 else ""
    return http.client.responses.get(status, "no reason given") + hint
