"""The connection to NATS: messages, and buckets of keys and values that NATS keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import BucketNotFoundError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from audiofork.cluster import buckets, login
from audiofork.cluster.complaints import Complaints
from audiofork.cluster.login import INBOXES
from audiofork.cluster.nats_client import NatsClient
from audiofork.config import ClusterConfig
from audiofork.errors import BrokerUnavailable, ConfigError, NobodyAnswers, NoMessage
from audiofork.log import CounterLine, Refusals
from audiofork.text import printable, why

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2
CLOSE_TIMEOUT_S = 2.0
RECONNECT_WAIT_S = 0.2
# A server that does not answer is left after two of these: a network may drop packets in silence.
PING_INTERVAL_S = 1
# From here on messages are dropped, which their receivers notice by their numbers.
MAX_WAITING = 100_000
# What NATS' client raises where its servers do not answer, or refuse.
FAULTS: tuple[type[Exception], ...] = (nats.errors.Error, JetStreamError, OSError, TimeoutError)
UNAVAILABLE: tuple[type[Exception], ...] = (BrokerUnavailable, *FAULTS)

# The header that says for whom a request is, and the status of one that nobody takes.
WHO = "Audiofork-Who"
_NO_RESPONDERS = "503"

Handle = Callable[[str, bytes], None]
_Result = TypeVar("_Result")


class Question(NamedTuple):
    """A request that may have several answers.

    Attributes:
        payload: What is asked.
        reply: The inbox that the answers are sent to.
        who: For whom it is asked, as whoever asks says; empty: it says nothing.
    """

    payload: bytes
    reply: str
    who: str


class Broker:
    """One connection to one of the NATS servers, which is opened again for as long as it takes.

    Owned by the program. Handlers are called from the event loop, for one message at a time and in
    order; what one raises is logged, once a second at most.

    Args:
        config: The servers, and how to log in.
        what: Names this client to NATS.
        inbox: Below which subject answers to this client go. No other user should be allowed to
            read there.
    """

    def __init__(self, config: ClusterConfig, what: str, inbox: str = f"{INBOXES}client") -> None:
        self._config = config
        self._what = what
        self._inboxes = inbox
        self._complaints = Complaints(config)
        self._strange = CounterLine(log, "messages over NATS without effect")
        self._bugs = Refusals(log, "messages over NATS could not be handled")
        self._client = NatsClient(self._on_damaged)
        self._has_begun = False
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
        options, servers = login.options_of(self._config, self._inboxes), self._config.servers
        self._has_begun = True
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
        if not self._client.is_guarded:
            await self._client.close()
            raise ConfigError("this version of nats-py is not known here: use another one")
        self._stream = self._client.jetstream(timeout=1)
        self._sending = asyncio.create_task(self._send())
        self._complaints.forget()
        log.info("connected to the NATS server %s", self.server)

    async def move(self) -> None:
        """Connect to the next server: this one may be cut off from the others."""
        if self.is_up and len(self._client.servers) > 1:
            log.warning("nobody is heard at the NATS server %s: trying the next", self.server)
            await self._client.move()

    def _on_damaged(self, exc: Exception) -> None:
        self._strange.count(f"its headers cannot be read: {type(exc).__name__}")

    async def _on_error(self, exc: Exception) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # the client has swallowed it, and would try for ever
        self._complaints.say(exc)

    async def _on_lost(self) -> None:
        if not self._client.is_closed:
            log.warning("the connection to the NATS server is lost")
        self._outbox.clear()  # of sessions that are over
        for handle in list(self._on_change):
            handle(False)

    async def _on_back(self) -> None:
        self._complaints.forget()
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
            if not self._outbox:
                self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                await self._send_one(*self._outbox.popleft())

    async def _send_one(self, subject: str, payload: bytes, reply: str) -> None:
        try:
            await self._client.publish(subject, payload, reply)
        except nats.errors.MaxPayloadError:
            log.error(
                "a message of %d bytes to %s is not sent: the NATS server takes %d; raise its "
                "max_payload, or lower [cluster] capacity",
                *(len(payload), subject, self._client.max_payload),
            )
        except FAULTS as exc:
            log.debug("a message to %s is not sent: %s", subject, why(exc))

    async def subscribe(self, subject: str, handle: Handle) -> Subscription:
        """Have a function called with the subject and the payload of each message.

        Raises:
            BrokerUnavailable: The connection is lost.
        """

        async def pass_on(message: Msg) -> None:
            # JetStream delivers what a client keeps in a bucket to any subject that it names: then
            # the message has headers, or a subject of its own, as ours never have.
            is_ours = _is_of(message.subject, subject)
            if not is_ours or (message.headers and not subject.startswith(INBOXES)):
                self._strange.count(f"on {subject}, it is none of ours")
                return
            try:
                handle(message.subject, message.data)
            except NoMessage as exc:
                self._strange.count(f"on {printable(message.subject, '?')}: {exc}")
            except Exception:
                if self._bugs.count():
                    log.exception("a message on %s could not be handled", subject)

        return await self._do(self._client.subscribe(subject, cb=pass_on))

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
            if not message.reply and not message.data:
                return  # `audiofork check` tries whether it may ask
            # Elsewhere our answers might be taken for orders, or for entries of a bucket.
            if not message.reply.startswith(INBOXES):
                self._strange.count(f"on {subject}, its answer would go to no inbox")
                return
            who = (message.headers or {}).get(WHO, "")
            try:
                handle(Question(message.data, message.reply, who))
            except Exception:
                if self._bugs.count():
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
        for _ in range(2):  # the client sends the first ping before what waits
            await self._do(self._client.flush(timeout=1))

    # --- Buckets ---

    async def bucket(self, name: str, *, was_there: bool = False) -> KeyValue:
        """Return a bucket, which is made if there is none.

        Args:
            name: Of the bucket.
            was_there: Whether it was used before: then it is told that it had to be made.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        assert self._stream is not None, "connected first"
        try:
            bucket = await self._do(self._stream.key_value(name))
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, BucketNotFoundError):
                raise
        else:
            await self._have_replicas(name, bucket)
            return bucket
        await self._do(self._stream.add_stream(buckets.config_of(name, self._config.replicas)))
        if was_there:
            log.error(
                "bucket %s was gone, and is made anew: NATS has lost what it kept, or somebody has "
                "removed it; see to the store_dir of the NATS servers",
                name,
            )
        return await self._do(self._stream.key_value(name))

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

    async def make_bucket(self, name: str) -> bool:
        """Make a bucket; of one that is there, change the number of replicas.

        Returns:
            Whether there was none.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        assert self._stream is not None, "connected first"
        return await self._do(buckets.make(self._stream, name, self._config.replicas))

    async def keys(self, bucket: str) -> list[str]:
        """Return the keys of a bucket.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        return await self._do(buckets.keys(self._client, bucket))

    async def values(self, bucket: KeyValue, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of keys of a bucket; those that are gone meanwhile are missing.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        return await self._do(buckets.values(bucket, keys))

    async def remove(self, bucket: str, key: str) -> None:
        """Remove a key of a bucket, and leave no mark of it.

        Raises:
            BrokerUnavailable: The servers do not answer, or refuse.
        """
        assert self._stream is not None, "connected first"
        await self._do(buckets.remove(self._stream, bucket, key))

    async def _do(self, what: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return await what
        except FAULTS as exc:
            raise BrokerUnavailable(f"NATS: {why(exc) or type(exc).__name__}") from exc

    async def close(self) -> None:
        """Send what waits, and close the connection."""
        if self._sending is not None:
            with contextlib.suppress(BrokerUnavailable):
                await self.flush()
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None
        if self._has_begun:
            with contextlib.suppress(*FAULTS):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._client.close()


def _is_of(subject: str, pattern: str) -> bool:
    """Return whether a message with this subject belongs to a subscription, which may have a *."""
    tokens, of_pattern = subject.split("."), pattern.split(".")
    return len(tokens) == len(of_pattern) and all(
        expected in ("*", token) for token, expected in zip(tokens, of_pattern, strict=True)
    )
