"""The WebSocket end of a fork: connects, connects again, and closes when all is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

from websockets.exceptions import ConnectionClosed

from audiofork.audiosocket import FRAME_BYTES
from audiofork.config import WebSocketConfig
from audiofork.errors import SinkError
from audiofork.relay import retry
from audiofork.relay.backlog import Backlog
from audiofork.relay.client_tls import TlsContext
from audiofork.relay.connection import Connection, Connector
from audiofork.relay.formats.base import Audio, Command, Event, Message, MessageFormat, Text
from audiofork.relay.formats.raw import RawFormat
from audiofork.relay.outlet import Outlet
from audiofork.relay.sink_states import SINK_LIFE, SinkEvent, SinkState

CLOSE_TIMEOUT_S = 2.0
# A fork that has ended goes on trying to deliver what waits, for so long at most.
LINGER_S = 30.0
# A server that is back gets what waited when it has answered a ping, or after this time: one
# that accepts and closes at once would swallow it.
PROOF_TIMEOUT_S = 1.0


class SinkCallbacks:
    """What a sink tells; its owner sets what it wants to hear.

    Attributes:
        on_open: Called when the server has accepted a connection and is given what waited.
        on_retry: Called with the number of the next attempt and why the last one failed.
        on_text: Called with each text of the server; so are `on_audio` and `on_command`.
    """

    def __init__(self) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str], None] = lambda *_: None
        self.on_text: Callable[[str], None] = lambda _: None
        self.on_audio: Callable[[Audio], None] = lambda _: None
        self.on_command: Callable[[Command], None] = lambda _: None


class Sink(SinkCallbacks):
    """The WebSocket end of one fork.

    Owned by a session, which runs `run()` in a task, calls `send()` for each frame and `close()`
    once. Frames offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.
    A frame that was sent over a connection that broke counts as sent only if the server's TCP has
    acknowledged it; else it waits again.

    Args:
        frame_bytes: Size of every frame.
        format: What goes over the WebSocket; raw by default.

    Attributes:
        send: Sends a frame now, or keeps it in the backlog; never waits.
        frame_ms: Audio in a full message.
        state: Where it stands with the server.
        dropped_in_gap: Frames that were lost when a lost server came back last, since it took none.
    """

    def __init__(
        self,
        url: str,
        config: WebSocketConfig,
        tls: TlsContext,
        *,
        frame_bytes: int = FRAME_BYTES,
        allow_private: bool = True,
        format: MessageFormat | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._connector = Connector(url, tls, config, allow_private=allow_private)
        self._format = format or RawFormat()
        self._outlet = Outlet(
            self._format,
            frame_bytes=frame_bytes,
            frame_ms=config.frame_ms,
            backlog_s=config.backlog,
            latency_budget_s=config.latency_budget,
        )
        self.send = self._outlet.send
        self.state = SinkState.CONNECTING
        self._connection: Connection | None = None
        self._listening: asyncio.Timeout | None = None  # runs out when the connection closes
        self._openings = 0
        self._open_s: float | None = None  # how long the latest connection was open
        self.dropped_in_gap = 0
        self._news = asyncio.Event()  # for close(): another state, or nothing waits any more
        self._outlet.on_idle = self._news.set
        self._hurry = asyncio.Event()  # no time to wait between attempts
        self._patience: asyncio.Timeout | None = None

    @property
    def frame_ms(self) -> int:
        return self._config.frame_ms

    @property
    def frames_sent(self) -> int:
        return self._outlet.frames_sent

    @property
    def backlog(self) -> Backlog:
        """The frames that wait, and how many were dropped."""
        return self._outlet.backlog

    @property
    def missing(self) -> int:
        """How many frames the last message of what waits still lacks; of nothing, all."""
        return self._outlet.missing

    @property
    def reconnects(self) -> int:
        """How often a lost server came back."""
        return max(self._openings - 1, 0)

    def send_part(self) -> None:
        """Send what waits for the rest of its message, without that."""
        self._outlet.send_part()

    def send_event(self, event: Event) -> None:
        """Send an event after the frames that came before it; never waits."""
        self._outlet.send_event(event)

    # --- The connection's life ---

    async def run(self) -> None:
        """Connect, listen to the server, connect again when it is lost.

        Returns when `close()` ended it.

        Raises:
            SinkError: It did not come about or was lost, and there is no sense in another attempt.
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
        """Wait until the next attempt is due; raise the error if there is to be none."""
        now = asyncio.get_running_loop().time()
        wait_s = retries.next_wait_s(error, self._open_s, now)
        if wait_s is None or self._hurry.is_set():
            await self._end_of_connection()
            raise error
        self.on_retry(retries.attempt, str(error))
        await self._end_of_connection()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()

    async def _end_of_connection(self) -> None:
        """Wait for the end of a connection that is closing: what it held comes back then."""
        if self._connection is not None:
            await self._connection.wait_closed()

    async def _serve(self) -> None:
        """Live through one connection; return when `close()` ended it, or raise SinkError."""
        self._open_s = None
        connection = await self._connect()
        if connection is None:
            return
        opened = asyncio.get_running_loop().time()
        await self._listen(connection)
        self._open_s = asyncio.get_running_loop().time() - opened
        if self._outlet.is_ending:
            await self._end_of_connection()  # what it gives back decides whether all is done
        if not self._is_done():
            raise retry.closure(connection.protocol.close_rcvd, connection.protocol.close_sent)

    async def _listen(self, connection: Connection) -> None:
        """Give a connection the frames and take its messages until it is lost, or as good as."""
        try:
            async with asyncio.timeout(None) as self._listening:
                if not connection.is_open:  # closing before it was ours
                    self._on_closing(connection)
                if self.state is SinkState.PROVING:
                    await self._prove(connection)
                else:
                    self._open(connection)
                while True:
                    self._take(await connection.recv())
        except ConnectionClosed:
            self._on_lost(connection)  # where it was lost before it was ours
        except TimeoutError:
            self._leave_open()

    def _on_closing(self, connection: Connection) -> None:
        """Take a connection for lost from its close frame on; what it holds comes back later.

        But in the end nothing follows, and what has arrived by then decides whether all is done.
        """
        if connection is not self._connection or self._outlet.is_ending:
            return
        assert self._listening is not None
        if not self._listening.expired():
            self._listening.reschedule(asyncio.get_running_loop().time())

    async def _connect(self) -> Connection | None:
        """Return a connection that is accepted, or None when `close()` needs none any more."""
        try:
            connection = await self._connector.open(
                self._outlet, self._on_closing, self._on_lost, close_timeout_s=CLOSE_TIMEOUT_S
            )
        except Exception as exc:
            if self._is_done() and isinstance(exc, TimeoutError):
                return None
            self._move(SinkEvent.FAILED)
            raise retry.connect_failure(exc) from exc
        self._connection = connection
        self._outlet.attach(connection.transport)
        self._move(SinkEvent.RETURNED if self._openings else SinkEvent.ACCEPTED)
        return connection

    async def _prove(self, connection: Connection) -> None:
        """Open when the server shows that it reads, or in a while: some answer no ping.

        Its messages are taken meanwhile, lest they pile up.
        """
        proved = functools.partial(self._on_proved, connection)
        pong = asyncio.ensure_future(await connection.ping())
        pong.add_done_callback(proved)
        asyncio.get_running_loop().call_later(PROOF_TIMEOUT_S, proved)

    def _on_proved(self, connection: Connection, _pong: object = None) -> None:
        if connection is self._connection and self.state is SinkState.PROVING:
            self._move(SinkEvent.PROVED)
            self._open(connection)

    def _open(self, connection: Connection) -> None:
        """Give the connection what waited, and then all that comes."""
        self._openings += 1
        self.dropped_in_gap = self.backlog.dropped - self._outlet.dropped_before
        if connection.is_open:
            self._outlet.open(is_full=connection.paused)
        self.on_open()

    def _take(self, message: Message) -> None:
        """Pass on what a message of the server means."""
        match self._format.meaning(message):
            case Text(text):
                self.on_text(text)
            case Audio() as audio:
                self.on_audio(audio)
            case Command() as command:
                self.on_command(command)

    def _on_lost(self, connection: Connection) -> None:
        """Take back what a connection still held, before anybody else hears of the loss."""
        if connection is self._connection:
            self._connection = None
            self._outlet.detach()
            self._leave_open()
            self._news.set()

    def _leave_open(self) -> None:
        if self.state in (SinkState.PROVING, SinkState.OPEN):  # else it has been left already
            self._move(SinkEvent.LOST)

    # --- The end ---

    async def close(self, code: int, reason: str) -> None:
        """Give the server what still waits, then close.

        While the server is away the attempts go on, for LINGER_S at most; with nothing to give
        it, they end at once. What then still waits is dropped and counted.
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
        """Let `close()`, under way or to come, take no longer than CLOSE_TIMEOUT_S."""
        self._hurry.set()
        if self._patience is not None and not self._patience.expired():
            limit = asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S
            self._patience.reschedule(min(limit, self._patience.when() or limit))

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Close the connection if it has got all; else wait for news of it."""
        connection = self._connection
        waits = self.backlog and self._outlet.is_open
        if self.state is SinkState.OPEN and connection is not None and not waits:
            self._outlet.send_closing(reason)
            await connection.close(code, reason)
        else:
            self._news.clear()
            await self._news.wait()

    async def _give_up(self) -> None:
        self._hurry.set()
        if self._connection is None:
            self._connector.give_up()
        else:
            self._connection.transport.abort()
            await self._connection.wait_closed()  # it gives back what it held
