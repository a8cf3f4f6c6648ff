"""The connection to NATS: messages, and buckets of keys and values that NATS keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from audiofork.config import ClusterConfig
from audiofork.errors import BrokerUnavailable, ConfigError
from audiofork.files import read_file
from audiofork.text import why
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 0.2
# A server that does not answer is left after two of these: a network may drop packets in silence.
PING_INTERVAL_S = 1
# From here on messages are dropped, which their receivers notice by their numbers.
MAX_WAITING = 100_000
# What NATS' client raises where its servers do not answer, or refuse.
FAULTS: tuple[type[Exception], ...] = (nats.errors.Error, JetStreamError, OSError, TimeoutError)

Handle = Callable[[str, bytes], None]
Answer = Callable[[bytes], Awaitable[bytes]]
_Result = TypeVar("_Result")


class Broker:
    """One connection to one of the NATS servers, which is opened again for as long as it takes.

    Owned by the program. Handlers are called from the event loop, for one message at a time and in
    order; what one raises is logged.

    Args:
        config: The servers, and how to log in.
        what: Names this client to NATS.
    """

    def __init__(self, config: ClusterConfig, what: str) -> None:
        self._config = config
        self._what = what
        self._client = Client()
        self._stream: JetStreamContext | None = None
        self._outbox: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._on_change: list[Callable[[bool], None]] = []

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, as far as known."""
        return bool(self._client.is_connected)

    @property
    def server(self) -> str:
        """The server that it is connected to; empty: to none."""
        url = self._client.connected_url
        return url.netloc.rpartition("@")[2] if url is not None else ""

    def on_change(self, handle: Callable[[bool], None]) -> Callable[[], None]:
        """Have a function called when the connection is lost (False) or stands again (True).

        Returns:
            What ends that.
        """
        self._on_change.append(handle)
        return lambda: self._on_change.remove(handle)

    async def connect(self) -> None:
        """Connect; returns when a server has answered, however long that takes.

        Raises:
            ConfigError: A file that [cluster] names cannot be used.
        """
        options = self._login()
        while True:
            try:
                await self._client.connect(
                    list(self._config.servers),
                    name=self._what,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_lost,
                    reconnected_cb=self._on_back,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # or less
                    max_reconnect_attempts=-1,
                    ping_interval=PING_INTERVAL_S,
                    **options,
                )
                break
            except FAULTS as exc:
                log.error("no NATS server can be reached: %s; trying again", why(exc))
            await asyncio.sleep(1)
        self._stream = self._client.jetstream(timeout=1)
        self._sending = asyncio.create_task(self._send())
        log.info("connected to the NATS server %s", self.server)

    def _login(self) -> dict[str, Any]:
        config = self._config
        options: dict[str, Any] = {}
        try:
            if any(one.startswith("tls:") for one in config.servers):
                options["tls"] = client_context(config.ca_file)
            for file in filter(None, (config.credentials_file, config.nkey_file)):
                read_file(file)
        except OSError as exc:
            raise ConfigError(f"[cluster]: {why(exc)}") from exc
        if config.credentials_file:
            options["user_credentials"] = config.credentials_file
        if config.nkey_file:
            options["nkeys_seed"] = config.nkey_file
        return options

    async def _on_error(self, exc: Exception) -> None:
        log.debug("NATS: %s", why(exc))

    async def _on_lost(self) -> None:
        if not self._client.is_closed:
            log.warning("the connection to the NATS server is lost")
        self._outbox.clear()  # of sessions that are over
        for handle in list(self._on_change):
            handle(False)

    async def _on_back(self) -> None:
        log.warning("connected to the NATS server %s again", self.server)
        for handle in list(self._on_change):
            handle(True)

    # --- Messages ---

    def publish(self, subject: str, payload: bytes) -> None:
        """Send a message, in order; never waits. It is dropped while there is no connection."""
        if self.is_up:
            self._outbox.append((subject, payload))
            self._idle.clear()
            self._wake.set()

    async def _send(self) -> None:
        while True:
            self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                subject, payload = self._outbox.popleft()
                with contextlib.suppress(*FAULTS):
                    await self._client.publish(subject, payload)

    async def subscribe(self, subject: str, handle: Handle) -> Subscription:
        """Have a function called with the subject and the payload of each message.

        Raises:
            BrokerUnavailable: The connection is lost.
        """

        async def pass_on(message: Msg) -> None:
            try:
                handle(message.subject, message.data)
            except Exception:
                log.exception("a message of %s could not be handled", subject.partition(".")[0])

        return await self._do(self._client.subscribe(subject, cb=pass_on))

    async def answer(self, subject: str, answer: Answer) -> None:
        """Answer each request for a subject; several are answered at once."""
        tasks: set[asyncio.Task[None]] = set()

        async def reply(message: Msg) -> None:
            try:
                await message.respond(await answer(message.data))
            except FAULTS as exc:
                log.warning("a request over NATS could not be answered: %s", why(exc))

        async def pass_on(message: Msg) -> None:
            task = asyncio.create_task(reply(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        await self._client.subscribe(subject, cb=pass_on)

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Return the answer to a request.

        Raises:
            BrokerUnavailable: There is none in time, or nobody answers such requests.
        """
        message = await self._do(self._client.request(subject, payload, timeout=timeout_s))
        return bytes(message.data)

    async def flush(self) -> None:
        """Return when the server has what was sent and subscribed so far.

        Raises:
            BrokerUnavailable: It does not answer.
        """
        await self._idle.wait()
        await self._do(self._client.flush(timeout=1))

    # --- Buckets ---

    async def bucket(self, name: str) -> KeyValue:
        """Return a bucket, which is made if there is none.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        assert self._stream is not None, "connected first"
        with contextlib.suppress(BrokerUnavailable):
            return await self._do(self._stream.key_value(name))
        config = KeyValueConfig(
            bucket=name, history=1, storage=StorageType.FILE, replicas=self._config.replicas
        )
        return await self._do(self._stream.create_key_value(config))

    async def _do(self, what: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return await what
        except FAULTS as exc:
            raise BrokerUnavailable(f"NATS: {why(exc) or type(exc).__name__}") from exc

    async def close(self) -> None:
        """Send what waits, and close the connection."""
        if self._sending is None or self._client.is_closed:
            return
        with contextlib.suppress(BrokerUnavailable):
            await self.flush()
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        with contextlib.suppress(*FAULTS):
            await self._client.close()
