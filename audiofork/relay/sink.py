"""The WebSocket end of a fork: connects, reconnects, and closes when all is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable

from websockets.exceptions import ConnectionClosed

from audiofork.audiosocket import FRAME_BYTES
from audiofork.config import WebSocketConfig
from audiofork.errors import SinkError, SinkRefused
from audiofork.link.messages import PLAIN_HANDSHAKE, Handshake
from audiofork.relay import retry
from audiofork.relay.backlog import Backlog
from audiofork.relay.client_tls import TlsContext
from audiofork.relay.connection import Connection, Connector
from audiofork.relay.flag import Flag
from audiofork.relay.formats.base import (
    Audio,
    Command,
    Event,
    Message,
    MessageFormat,
    Reply,
    Several,
    Text,
)
from audiofork.relay.formats.raw import RawFormat
from audiofork.relay.latencies import Latencies
from audiofork.relay.outlet import Outlet
from audiofork.relay.server_limits import MAX_MESSAGE_BYTES
from audiofork.relay.sink_states import SINK_LIFE, SinkEvent, SinkState

CLOSE_TIMEOUT_S = 2.0
# How long a fork that has ended still tries to deliver the frames that wait.
LINGER_S = 30.0
# After a reconnect, the frames that waited are sent when the server has answered a ping, or after
# this time. A server that accepts and closes at once would lose them.
PROOF_TIMEOUT_S = 1.0


class SinkCallbacks:
    """The callbacks of a sink; its owner sets those that it needs.

    Attributes:
        on_open: Called when a connection is open and the frames that waited are being sent.
        on_retry: Called with the number of the next attempt, why the last one failed, and in how
            many seconds the next one is due.
        on_text: Called with each text message of the server.
        on_audio: Called with each piece of audio of the server.
        on_command: Called with each command of the server.
        messages_unused: How many messages of the server meant nothing in the format.
    """

    def __init__(self) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str, float], None] = lambda *_: None
        self.on_text: Callable[[str], None] = lambda _: None
        self.on_audio: Callable[[Audio], None] = lambda _: None
        self.on_command: Callable[[Command], None] = lambda _: None
        self.messages_unused = 0


class Sink(SinkCallbacks):
    """The WebSocket end of one fork.

    Owned by a session, which runs `run()` in a task, calls `send()` for each frame and `close()`
    once. Frames offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.
    When a connection breaks, a frame counts as sent only if the server's TCP has acknowledged it;
    else it goes back to the backlog.

    Args:
        url: The server's URL; ws or wss.
        config: Time limits and sizes.
        tls: The TLS context for a wss server.
        frame_bytes: Size of every frame in bytes.
        allow_private: Whether the server may have a private address.
        handshake: What is added to the request of the handshake.
        format: The format of the messages; raw by default.
        proxy_tls: The TLS context for an https proxy.
        max_bytes: Longest message of the server; a longer one closes the connection.
        latencies: Counts how long frames take to the server; None: of no interest.

    Attributes:
        send: Sends a frame now, or keeps it in the backlog; never waits.
        frame_ms: Audio in a full message, in milliseconds.
        frames_sent: Frames that were sent.
        state: The state of the connection to the server.
        dropped_in_gap: Frames dropped during the latest gap, from the loss to the reconnect.
    """

    def __init__(
        self,
        url: str,
        config: WebSocketConfig,
        tls: TlsContext,
        *,
        frame_bytes: int = FRAME_BYTES,
        allow_private: bool = True,
        handshake: Handshake = PLAIN_HANDSHAKE,
        format: MessageFormat | None = None,
        proxy_tls: ssl.SSLContext | None = None,
        max_bytes: int = MAX_MESSAGE_BYTES,
        latencies: Latencies | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._connector = Connector(
            url,
            tls,
            config,
            allow_private=allow_private,
            handshake=handshake,
            proxy_tls=proxy_tls,
            max_bytes=max_bytes,
        )
        self._format = format or RawFormat()
        self._outlet = Outlet(
            self._format,
            frame_bytes=frame_bytes,
            frame_ms=config.frame_ms,
            backlog_s=config.backlog,
            latency_budget_s=config.latency_budget,
            latencies=latencies,
        )
        self.send = self._outlet.send
        self.state = SinkState.CONNECTING
        self._connection: Connection | None = None
        self._listening: asyncio.Timeout | None = None  # expires when the connection closes
        self._openings = 0
        self._open_s: float | None = None  # how long the latest connection was open
        self.dropped_in_gap = 0
        self._news = Flag()  # wakes close(): the state changed, or no frame waits
        self._outlet.on_idle = self._news.set
        self._hurry = Flag()  # set: no more attempts after the current one
        self._patience: asyncio.Timeout | None = None  # the time limit of close()

    @property
    def frame_ms(self) -> int:
        return self._config.frame_ms

    @property
    def frames_sent(self) -> int:
        return self._outlet.frames_sent

    @property
    def backlog(self) -> Backlog:
        """The queue of frames that wait; it also counts those dropped."""
        return self._outlet.backlog

    @property
    def send_batch(self) -> Callable[[list[bytes]], None]:
        """Sends frames that came at once, or keeps them in the backlog; never waits."""
        return self._outlet.send_batch

    @property
    def missing(self) -> int:
        """Frames that the last waiting message still lacks; a whole message if none waits."""
        return self._outlet.missing

    @property
    def subprotocol(self) -> str:
        """The subprotocol that the server has chosen; empty: none, or there is no connection."""
        return (self._connection is not None and self._connection.subprotocol) or ""

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it was lost."""
        return max(self._openings - 1, 0)

    def on_the_way(self) -> tuple[float, int]:
        """Return the round trip to the server in milliseconds, and the bytes not acknowledged."""
        return self._outlet.on_the_way()

    def send_part(self) -> None:
        """Send the frames of an incomplete message now, without the frames that it lacks."""
        self._outlet.send_part()

    def send_event(self, event: Event) -> None:
        """Send an event after the frames that came before it; never waits."""
        self._outlet.send_event(event)

    # --- The connection's life ---

    async def run(self) -> None:
        """Connect, receive messages, and reconnect when the connection is lost.

        Returns when `close()` ended it.

        Raises:
            SinkError: The connect failed or the connection was lost, and no attempt is left.
        """
        config = self._config
        retries = retry.Retries(config.reconnect_attempts, config.reconnect_interval)
        try:
            while not self._is_done():
                if self.state is SinkState.AWAY:
                    self._move(SinkEvent.DUE)
                try:
                    await self._serve()
                except SinkError as exc:
                    await self._before_next(retries, exc)
        finally:
            self._move(SinkEvent.END)

    def _move(self, event: SinkEvent) -> None:
        self.state = SINK_LIFE.next_state(self.state, event)
        self._news.set()

    def _is_done(self) -> bool:
        return self._outlet.is_ending and not self.backlog

    async def _before_next(self, retries: retry.Retries, error: SinkError) -> None:
        """Wait until the next attempt is due; raise the error if there is none."""
        now = asyncio.get_running_loop().time()
        wait_s = retries.next_wait_s(error, self._open_s, now)
        if wait_s is None or self._hurry.is_set():
            await self._end_of_connection()
            raise error
        self.on_retry(retries.attempt, str(error), wait_s)
        await self._end_of_connection()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()

    async def _end_of_connection(self) -> None:
        """Wait for the end of a closing connection: its unacknowledged frames come back then."""
        if self._connection is not None:
            await self._connection.wait_closed()

    async def _serve(self) -> None:
        """Open and serve one connection; return when `close()` ended it.

        Raises:
            SinkError: The connect failed, or the connection was lost.
        """
        self._open_s = None
        connection = await self._connect()
        if connection is None:
            return
        opened = asyncio.get_running_loop().time()
        await self._listen(connection)
        has_served = self._format.is_answered or not self._format.must_answer
        self._open_s = asyncio.get_running_loop().time() - opened if has_served else 0.0
        if self._outlet.is_ending:
            await self._end_of_connection()  # frames that come back must still be delivered
        if self._format.refusal:
            raise SinkRefused(f"the server refuses the opening: {self._format.refusal}")
        if not self._is_done():
            said = "" if has_served else self._format.said
            protocol = connection.protocol
            raise retry.closure(protocol.close_rcvd, protocol.close_sent, said)

    async def _listen(self, connection: Connection) -> None:
        """Send frames and receive messages until the connection is lost or begins to close."""
        try:
            async with asyncio.timeout(None) as self._listening:
                if not connection.is_open:  # it began to close before `_connection` was set
                    self._on_closing(connection)
                if self._format.must_answer:
                    self._ask(connection)
                elif self.state is SinkState.PROVING:
                    await self._prove(connection)
                else:
                    self._greet_and_open(connection)
                await self._receive(connection)
        except ConnectionClosed:
            self._on_lost(connection)  # no effect, unless it was lost before `_connection` was set
        except TimeoutError:
            self._leave_open()
        finally:
            self._listening = None

    async def _receive(self, connection: Connection) -> None:
        """Take messages as soon as they are read, once none waits in the library's queue.

        That is then left empty: its task would cost more than a frame of audio.
        """
        faults: list[Exception] = []

        def take(message: Message) -> None:
            try:
                self._take(message)
            except Exception as exc:  # noqa: BLE001 (raised below)
                faults.append(exc)
                self._stop_listening()

        try:
            while True:
                connection.hand_messages_to(take)
                self._take(await connection.recv())
        finally:
            connection.hand_messages_to(None)
            if faults:
                raise faults[0]

    def _on_closing(self, connection: Connection) -> None:
        """Treat a closing connection as lost; its unacknowledged frames come back later.

        Not while the fork ends: then no new frames come, and only the real end of the connection
        shows whether all frames have arrived.
        """
        if connection is self._connection and not self._outlet.is_ending:
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listening is not None and not self._listening.expired():
            self._listening.reschedule(asyncio.get_running_loop().time())

    async def _connect(self) -> Connection | None:
        """Return an accepted connection, or None if `close()` needs no connection any more."""
        try:
            connection = await self._connector.open(
                self._outlet, self._on_closing, self._on_lost, close_timeout_s=CLOSE_TIMEOUT_S
            )
        except Exception as exc:
            if self._is_done() and isinstance(exc, TimeoutError):
                return None
            self._move(SinkEvent.FAILED)
            raise retry.connect_failure(exc, self._connector.tried) from exc
        self._connection = connection
        self._outlet.attach(connection.transport)
        has_to_answer = self._openings or self._format.must_answer
        self._move(SinkEvent.RETURNED if has_to_answer else SinkEvent.ACCEPTED)
        return connection

    def _ask(self, connection: Connection) -> None:
        """Send the opening; give the server up unless it answers within `connect_timeout`."""
        if connection.is_open:
            self._outlet.greet()
        limit_s = self._config.connect_timeout
        asyncio.get_running_loop().call_later(limit_s, self._on_no_answer, connection)

    def _on_no_answer(self, connection: Connection) -> None:
        if connection is self._connection and self.state is SinkState.PROVING:
            limit_s = self._config.connect_timeout
            connection.give_up(f"no answer to the opening within {limit_s:g} s")

    def _on_taken(self) -> None:
        """See whether the message that was taken is one that was waited for."""
        connection = self._connection
        if connection is not None and self.state is SinkState.PROVING:
            self._see_answer(connection)
        if self._format.has_finished:
            self._news.set()

    def _see_answer(self, connection: Connection) -> None:
        if self._format.is_answered:
            self._move(SinkEvent.PROVED)
            self._open(connection)
        elif self._format.refusal:
            connection.give_up(self._format.refusal)

    async def _prove(self, connection: Connection) -> None:
        """Send a ping; open the connection on the pong, or after PROOF_TIMEOUT_S.

        Some servers answer no ping. The caller receives messages meanwhile, so they do not pile up.
        """
        proved = functools.partial(self._on_proved, connection)
        pong = asyncio.ensure_future(await connection.ping())
        pong.add_done_callback(proved)
        asyncio.get_running_loop().call_later(PROOF_TIMEOUT_S, proved)

    def _on_proved(self, connection: Connection, _pong: object = None) -> None:
        if connection is self._connection and self.state is SinkState.PROVING:
            self._move(SinkEvent.PROVED)
            self._greet_and_open(connection)

    def _greet_and_open(self, connection: Connection) -> None:
        if connection.is_open:
            self._outlet.greet()
        self._open(connection)

    def _open(self, connection: Connection) -> None:
        """Send the frames that waited, and then all that come."""
        self._openings += 1
        self.dropped_in_gap = self.backlog.dropped - self._outlet.dropped_before
        if connection.is_open:
            self._outlet.open(is_full=connection.paused)
        self.on_open()

    def _take(self, message: Message) -> None:
        """Do what a message of the server means, or count it."""
        meaning = self._format.meaning(message)
        if type(meaning) is Audio and self.state is SinkState.OPEN:  # as nearly all are
            self.on_audio(meaning)
            return
        for one in meaning.meanings if isinstance(meaning, Several) else (meaning,):
            self._act_on(one)
        self._on_taken()

    def _act_on(self, meaning: Audio | Command | Text | Reply | None) -> None:
        match meaning:
            case Reply(messages):
                self._outlet.reply(messages)
            case Text(text):
                self.on_text(text)
            case Audio() as audio:
                self.on_audio(audio)
            case Command() as command:
                self.on_command(command)
            case None:
                self.messages_unused += 1

    def _on_lost(self, connection: Connection) -> None:
        """Take back the unacknowledged frames, before any other code learns of the loss."""
        if connection is self._connection:
            self._connection = None
            self._outlet.detach()
            self._leave_open()
            self._news.set()

    def _leave_open(self) -> None:
        if self.state in (SinkState.PROVING, SinkState.OPEN):  # else LOST was handled already
            self._move(SinkEvent.LOST)

    # --- The end ---

    async def close(self, code: int, reason: str) -> None:
        """Deliver the frames that wait, then close.

        While there is no connection, the attempts go on for LINGER_S at most; if no frame waits,
        they end at once. Frames that still wait after that are dropped and counted.

        Args:
            code: The code of the close frame.
            reason: The reason of the close frame.
        """
        limit_s = CLOSE_TIMEOUT_S if self._hurry.is_set() else LINGER_S
        nothing_waits = not self.backlog
        self._outlet.finish()
        if nothing_waits:
            self._hurry.set()
            self._connector.give_up()
        try:
            async with asyncio.timeout(limit_s) as self._patience:
                while self.state is not SinkState.ENDED:
                    await self._say_goodbye(code, reason)
        except TimeoutError:
            await self._give_up()
        self._outlet.shut()
        self.backlog.drop_all()

    def hurry(self) -> None:
        """Shorten the time limit of `close()`, running or later, to CLOSE_TIMEOUT_S."""
        self._hurry.set()
        if self._patience is not None and not self._patience.expired():
            limit = asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S
            self._patience.reschedule(min(limit, self._patience.when() or limit))
            self._news.set()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Close the connection if no frame waits; else wait for a change."""
        connection = self._connection
        waits = self.backlog and self._outlet.is_open
        if self.state is SinkState.OPEN and connection is not None and not waits:
            self._outlet.send_closing(reason)
            await self._hear_out(connection)
            await connection.close(code, reason)
        else:
            self._news.clear()
            await self._news.wait()

    async def _hear_out(self, connection: Connection) -> None:
        """Wait until the server has sent all, `closing_wait_s` at most; `run` takes it."""
        now = asyncio.get_running_loop().time
        limit = now() + self._format.closing_wait_s
        assert self._patience is not None
        while self._connection is connection and not self._format.has_finished:
            # Of the time that is left for it all, the close itself may take some.
            latest = (self._patience.when() or limit) - CLOSE_TIMEOUT_S / 2
            if (wait_s := min(limit, latest) - now()) <= 0:
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    async def _give_up(self) -> None:
        self._hurry.set()
        if self._connection is None:
            self._connector.give_up()
        else:
            self._connection.transport.abort()
            await self._connection.wait_closed()  # its unacknowledged frames come back, to count
