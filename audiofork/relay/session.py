"""One running fork: its leg on one side, its sink on the other."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from audiofork.errors import SinkError
from audiofork.log import CounterLine, ForkLog
from audiofork.model import (
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    SendReport,
    SinkOpened,
    Streaming,
)
from audiofork.relay.shape import Shape, shape_for, unchanged
from audiofork.relay.sink import Sink

log = logging.getLogger(__name__)

NO_PAIRS = (
    "this Asterisk's ChanSpy cannot keep in and out apart; it takes 18.22, 20.7, 21.2, 22 or later"
)
_CLOSE_CODES = {EndReason.HANGUP: 1000, EndReason.STOPPED: 1000, EndReason.SHUTDOWN: 1001}
_FAULT_CLOSE_CODE = 1011


class LegHandle(Protocol):
    """What a session may do to its leg."""

    def hang_up(self) -> None: ...


class Session:
    """Relays the frames of one leg to one sink.

    Owned by the worker. `attach`, `on_audio` and `on_leg_closed` are called by the leg, `end` by
    anybody and as often as they like: the first reason stands. `done` is set when leg and sink
    are closed and ForkEnded is reported.
    """

    def __init__(self, spec: ForkSpec, sink: Sink, report: SendReport) -> None:
        self.spec = spec
        self.done = asyncio.Event()
        self._sink = sink
        sink.on_open = self._on_sink_open
        self._report = report
        self._log = ForkLog(log, spec.fork_id, spec.channel)
        self._odd_frames = CounterLine(
            log, f"fork {spec.fork_id[:8]}: frames of an unexpected size"
        )
        self._leg: LegHandle | None = None
        self._shape: Shape = unchanged
        self._frame_bytes = 0
        self._frames_in = 0
        self._unfit = 0  # frames of a size that cannot be relayed
        self._streaming = False
        self._end: tuple[EndReason, str] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect to the server."""
        self._running = asyncio.create_task(self._run())

    # --- The leg's side ---

    def attach(self, leg: LegHandle) -> None:
        """Take the leg that connected with this fork's UUID."""
        if self._end is not None:
            leg.hang_up()
            return
        self._leg = leg
        self._report(LegAttached(self.spec.fork_id))

    def on_audio(self, frame: bytes) -> None:
        """Relay one frame; the hot path: called 50 times a second for each fork."""
        self._frames_in += 1
        if len(frame) != self._frame_bytes and not self._accepts_size(frame):
            self._unfit += 1
            return
        self._sink.send(self._shape(frame))
        if not self._streaming:
            self._check_streaming()

    def _accepts_size(self, frame: bytes) -> bool:
        """Choose the shape by the first frame; drop and count what differs from it later."""
        if self._frame_bytes:
            self._odd_frames.count(f"{len(frame)} bytes in place of {self._frame_bytes}")
            return False
        shape = shape_for(self.spec.direction, len(frame))
        if shape is None:
            unfit = f"the leg sends frames of {len(frame)} bytes"
            self.end(EndReason.LEG_FAILED, NO_PAIRS if self.spec.direction.needs_pairs else unfit)
            return False
        self._shape = shape
        self._frame_bytes = len(frame)
        return True

    def on_leg_closed(self) -> None:
        """Hear that the leg is closed, and not by us."""
        self._leg = None
        if self._end is None:
            self._report(LegLost(self.spec.fork_id, self._frames_in))

    # --- The sink's side ---

    async def _run(self) -> None:
        try:
            await self._sink.run()
        except SinkError as exc:
            reason = EndReason.SINK_GONE if exc.retryable else EndReason.SINK_REFUSED
            self.end(reason, str(exc))
        except Exception as exc:
            self._log.exception("the sink failed")
            self.end(EndReason.FAULT, repr(exc))
        assert self._closing is not None, "run() returns after close() or raises"
        await self._closing
        self._report_end()

    def _on_sink_open(self) -> None:
        self._report(SinkOpened(self.spec.fork_id))
        self._check_streaming()

    def _check_streaming(self) -> None:
        if not self._streaming and self._sink.frames_sent:
            self._streaming = True
            self._report(Streaming(self.spec.fork_id))

    # --- The end ---

    def end(self, reason: EndReason, detail: str = "") -> None:
        """End the fork: the leg at once, the sink when it has what is left."""
        if self._end is not None:
            return
        self._end = (reason, detail)
        if self._leg is not None:
            self._leg.hang_up()
            self._leg = None
        code = _CLOSE_CODES.get(reason, _FAULT_CLOSE_CODE)
        self._closing = asyncio.create_task(self._sink.close(code, reason.value))

    def _report_end(self) -> None:
        assert self._end is not None
        reason, detail = self._end
        dropped = self._sink.backlog.dropped + self._unfit
        stats = ForkStats(self._frames_in, self._sink.frames_sent, dropped)
        self.done.set()
        self._report(ForkEnded(self.spec.fork_id, reason, detail, stats))
