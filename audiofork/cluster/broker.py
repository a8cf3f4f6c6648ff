"""The connection to NATS: messages, and buckets of keys and values that NATS keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from audiofork.config import ClusterConfig
from audiofork.errors import BrokerUnavailable, ConfigError, NobodyAnswers
from audiofork.files import read_file
from audiofork.text import why
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 0.2
CLOSE_TIMEOUT_S = 0.2
# A server that does not answer is left after two of these: a network may drop packets in silence.
PING_INTERVAL_S = 1
# From here on messages are dropped, which their receivers notice by their numbers.
MAX_WAITING = 100_000
# What NATS' client raises where its servers do not answer, or refuse.
FAULTS: tuple[type[Exception], ...] = (nats.errors.Error, JetStreamError, OSError, TimeoutError)
# The header that says for whom a request is, and the status of one that nobody takes.
WHO = "Audiofork-Who"
_NO_RESPONDERS = "503"
# So many different faults are logged until the connection stands.
MAX_TOLD = 50
# In an error after which the connection goes on.
_NOT_ALLOWED = "permissions violation"

Handle = Callable[[str, bytes], None]
Answer = Callable[[bytes], Awaitable[bytes]]
_Result = TypeVar("_Result")


class _Transport(TcpTransport):
    """A connection that is over when we leave it.

    TLS would first wait for the other side, for 30 s where that is silent, and for ever where the
    handshake has failed; until then the library would not go on to the next server.
    """

    def __bool__(self) -> bool:
        return True  # else the library takes its own

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        except TimeoutError:
            for writer in (self._io_writer, self._bare_io_writer):
                if writer is not None:
                    writer.transport.abort()


class NatsClient(Client):
    """The library's client, which never gives up, and goes over TLS where the URL says so."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = _Transport()  # type: ignore[no-untyped-call]

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 (of the library)
        # The library would go on in the clear, and somebody between could have it so.
        server = self._current_server
        assert server is not None, "this is what it has said first"
        if initial_connection and server.uri.scheme == "tls" and not info.get("tls_required"):
            raise nats.errors.Error("it does not demand TLS")
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        # After an error that ends the connection the library would not connect again.
        if _NOT_ALLOWED in err_msg:
            await super()._process_err(err_msg)
            return
        fault = nats.errors.Error(err_msg.strip("'"))
        await self._error_cb(fault)
        await self._process_op_err(fault)


def login_of(config: ClusterConfig) -> dict[str, Any]:
    """Return the options of a client by which it logs in.

    Raises:
        ConfigError: A file that [cluster] names cannot be used.
    """
    options: dict[str, Any] = {}
    try:
        if any(one.startswith("tls:") for one in config.servers):
            options["tls"] = client_context(config.ca_file)
    except OSError as exc:
        raise ConfigError(f"[cluster] ca_file: {why(exc)}") from exc
    for option, name, check in (
        ("credentials_file", "user_credentials", _check_credentials),
        ("nkey_file", "nkeys_seed", _check_seed),
    ):
        if path := os.path.expandvars(getattr(config, option)):
            try:
                check(read_file(path))
            except OSError as exc:
                raise ConfigError(f"[cluster] {option}: {why(exc)}") from exc
            except ValueError as exc:
                raise ConfigError(f"[cluster] {option}: {path}: {exc}") from None
            options[name] = path
    return options


def _check_credentials(content: bytes) -> None:
    if b"BEGIN NATS USER JWT" not in content or b"BEGIN USER NKEY SEED" not in content:
        raise ValueError("no credentials of NATS")


def _check_seed(content: bytes) -> None:
    import nkeys  # a client without such a key does without

    try:
        nkeys.from_seed(bytearray(content.strip())).wipe()
    except (nkeys.NkeysError, ValueError):
        raise ValueError("no seed of an NKey") from None


class Question(NamedTuple):
    """A request that may have several answers.

    Attributes:
        payload: What is asked.
        reply: What the answers are sent to; empty: nobody waits for any.
        who: For whom it is asked, as whoever asks says; empty: it says nothing.
    """

    payload: bytes
    reply: str
    who: str


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
        self._client = NatsClient()
        self._told: set[str] = set()
        self._stream: JetStreamContext | None = None
        self._outbox: deque[tuple[str, bytes, str]] = deque(maxlen=MAX_WAITING)
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
        options, servers = login_of(self._config), self._config.servers
        while True:
            try:
                await self._client.connect(
                    random.sample(servers, len(servers)),
                    dont_randomize=True,  # after one that is lost, the next
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
                await self._on_error(exc)
            await asyncio.sleep(1)
        self._stream = self._client.jetstream(timeout=1)
        self._sending = asyncio.create_task(self._send())
        self._told.clear()
        log.info("connected to the NATS server %s", self.server)

    async def _on_error(self, exc: Exception) -> None:
        """Log a fault, once until the connection stands again: it is tried for ever."""
        text = why(exc)
        if text in self._told or len(self._told) >= MAX_TOLD:
            log.debug("NATS: %s", text)
            return
        self._told.add(text)
        if self.is_up:
            log.error("NATS: %s", text)
        else:
            log.error("no NATS server can be reached yet: %s; trying again", text)

    async def _on_lost(self) -> None:
        if not self._client.is_closed:
            log.warning("the connection to the NATS server is lost")
        self._outbox.clear()  # of sessions that are over
        for handle in list(self._on_change):
            handle(False)

    async def _on_back(self) -> None:
        self._told.clear()
        log.warning("connected to the NATS server %s again", self.server)
        for handle in list(self._on_change):
            handle(True)

    # --- Messages ---

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send a message, in order; never waits. It is dropped while there is no connection.

        Args:
            subject: What it is sent to.
            payload: The message.
            reply: Where an answer goes: that of NATS, too, if nobody is there who gets the message.
        """
        if self.is_up:
            self._outbox.append((subject, payload, reply))
            self._idle.clear()
            self._wake.set()

    async def _send(self) -> None:
        while True:
            self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                subject, payload, reply = self._outbox.popleft()
                with contextlib.suppress(*FAULTS):
                    await self._client.publish(subject, payload, reply)

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

    # --- Requests with several answers ---

    def inbox(self) -> str:
        """Return a subject that nobody else knows."""
        return str(self._client.new_inbox())

    async def subscribe_questions(
        self, subject: str, handle: Callable[[Question], None]
    ) -> Subscription:
        """Have a function called with each request.

        Raises:
            BrokerUnavailable: The connection is lost.
        """

        async def pass_on(message: Msg) -> None:
            who = (message.headers or {}).get(WHO, "")
            try:
                handle(Question(message.data, message.reply, who))
            except Exception:
                log.exception("a request over NATS could not be handled")

        return await self._do(self._client.subscribe(subject, cb=pass_on))

    async def request_many(
        self, subject: str, payload: bytes, silent_s: float, who: str
    ) -> AsyncGenerator[bytes, None]:
        """Yield the messages that answer a request, up to an empty one. Close it to hear no more.

        Args:
            subject: What is asked.
            payload: The request.
            silent_s: How long no message may come.
            who: For whom it is asked.

        Raises:
            NobodyAnswers: Nobody takes such requests.
            BrokerUnavailable: No message came for `silent_s`, or there is no connection.
        """
        if not self.is_up:
            raise BrokerUnavailable("there is no connection to a NATS server")
        inbox = self.inbox()
        answers = await self._do(self._client.subscribe(inbox))
        try:
            asked = self._client.publish(subject, payload, reply=inbox, headers={WHO: who})
            await self._do(asked)
            while True:
                try:
                    message = await answers.next_msg(silent_s)
                except TimeoutError:
                    text = f"nothing was heard for {silent_s:g} s"
                    raise BrokerUnavailable(text) from None
                except FAULTS as exc:
                    raise BrokerUnavailable(f"NATS: {why(exc)}") from exc
                if (message.headers or {}).get("Status") == _NO_RESPONDERS:
                    raise NobodyAnswers("nobody answers")
                if not message.data:
                    return
                yield bytes(message.data)
        finally:
            with contextlib.suppress(*FAULTS):
                await answers.unsubscribe()

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
        try:
            bucket = await self._do(self._stream.key_value(name))
        except BrokerUnavailable:  # there is none, or what is wrong shows again
            config = KeyValueConfig(
                bucket=name, history=1, storage=StorageType.FILE, replicas=self._config.replicas
            )
            return await self._do(self._stream.create_key_value(config))
        await self._have_replicas(name, bucket)
        return bucket

    async def _have_replicas(self, name: str, bucket: KeyValue) -> None:
        """Have more servers keep a bucket that was made while there were fewer of them.

        Raises:
            BrokerUnavailable: The servers do not answer.
        """
        wanted, info = self._config.replicas, (await self._do(bucket.status())).stream_info
        if (info.config.num_replicas or 1) >= wanted:
            return
        assert self._stream is not None, "connected first"
        info.config.num_replicas = wanted
        try:
            if info.cluster is None:  # it may be accepted all the same
                raise BrokerUnavailable("the server is alone")
            await self._do(self._stream.update_stream(info.config))
        except BrokerUnavailable as exc:
            log.error("bucket %s is kept by fewer than %d servers: %s", name, wanted, exc)
        else:
            log.warning("bucket %s is kept by %d servers from now on", name, wanted)

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
