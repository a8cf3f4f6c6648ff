"""One running fork: its leg on one side, its sink on the other."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Protocol

from audiofork.errors import SinkError
from audiofork.log import CounterLine, ForkLog
from audiofork.model import (
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    SendReport,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.relay.beep import Beeper
from audiofork.relay.shape import PAIR_BYTES, SILENCE, Shape, Sides, shape_for, unchanged
from audiofork.relay.sink import Sink
from audiofork.relay.timekeeper import Timekeeper

log = logging.getLogger(__name__)

NO_PAIRS = (
    "this Asterisk's ChanSpy cannot keep in and out apart; it takes 18.22, 20.7, 21.2, 22 or later"
)
MAX_MESSAGES_A_SECOND = 20
_CLOSE_CODES = {EndReason.HANGUP: 1000, EndReason.STOPPED: 1000, EndReason.SHUTDOWN: 1001}
_FAULT_CLOSE_CODE = 1011


class LegHandle(Protocol):
    """What a session may do to its leg."""

    def hang_up(self) -> None: ...

    def speak(self, frame: bytes) -> None: ...


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
        sink.on_retry = self._on_sink_retry
        sink.on_text = self._on_text
        self._report = report
        self._log = ForkLog(log, spec.fork_id, spec.channel)
        self._odd_frames = CounterLine(
            log, f"fork {spec.fork_id[:8]}: frames of an unexpected size"
        )
        self._leg: LegHandle | None = None
        self._beeper = Beeper(self._speak) if spec.beeps.any else None
        self._timekeeper = (
            Timekeeper(self._send_silence, time.monotonic) if spec.keep_time else None
        )
        stereo = spec.direction is Direction.STEREO
        self._silence = bytes(PAIR_BYTES) if stereo else SILENCE
        self._sides = Sides(spec.gain_in, spec.gain_out)
        self._shape: Shape = unchanged
        self._frame_bytes = 0
        self._gate_open = spec.gate_open
        self._frames_in = 0
        self._unfit = 0  # frames of a size that cannot be relayed
        self._filled = 0  # frames of silence that no leg has brought
        self._gated = 0  # frames that came while the gate was shut
        self._streaming = False
        self._messages: list[float] = []  # when the latest came
        self._messages_ignored = 0
        self._end: tuple[EndReason, str] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect to the server."""
        self._running = asyncio.create_task(self._run())

    # --- The leg's side ---

    def attach(self, leg: LegHandle) -> None:
        """Take the leg that connected with this fork's UUID, the first or another."""
        if self._end is not None:
            leg.hang_up()
            return
        self._leg = leg
        if self._timekeeper is not None and self._gate_open:
            self._timekeeper.start()
        if self._streaming:  # in place of a lost leg
            self._repeat_beeps()
        self._report(LegAttached(self.spec.fork_id))

    def on_audio(self, frame: bytes) -> None:
        """Relay one frame; the hot path: called 50 times a second for each fork."""
        if not self._gate_open:
            self._gated += 1
            return
        self._frames_in += 1
        if len(frame) != self._frame_bytes and not self._accepts_size(frame):
            self._unfit += 1
            return
        self._sink.send(self._shape(frame))
        if self._timekeeper is not None:
            self._timekeeper.on_frame()
        if not self._streaming:
            self._check_streaming()

    def _accepts_size(self, frame: bytes) -> bool:
        """Choose the shape by the first frame; drop and count what differs from it later."""
        if self._frame_bytes:
            self._odd_frames.count(f"{len(frame)} bytes in place of {self._frame_bytes}")
            return False
        shape = shape_for(self.spec.direction, len(frame), self._sides)
        if shape is None:
            apart = self.spec.direction.needs_pairs or len(frame) == len(SILENCE)
            unfit = f"the leg sends frames of {len(frame)} bytes"
            self.end(EndReason.LEG_FAILED, NO_PAIRS if apart else unfit)
            return False
        self._shape = shape
        self._frame_bytes = len(frame)
        return True

    def _send_silence(self) -> None:
        """Send a frame of silence that no leg has brought; it counts as one that came."""
        self._frames_in += 1
        self._filled += 1
        self._sink.send(self._silence)
        self._check_streaming()

    def on_leg_closed(self) -> None:
        """Hear that the leg is closed, and not by us."""
        self._let_go_of_leg()
        if self._end is None:
            brought = self._frames_in - self._filled + self._gated
            self._report(LegLost(self.spec.fork_id, brought))

    def _speak(self, frame: bytes) -> None:
        if self._leg is not None:
            self._leg.speak(frame)

    def _let_go_of_leg(self) -> None:
        self._leg = None
        if self._beeper is not None:
            self._beeper.stop()
        if self._timekeeper is not None:
            self._timekeeper.stop()

    # --- Commands ---

    def set_mute(self, command: SetMute) -> None:
        """Put silence in place of a side, or the side itself again, from the next frame on."""
        mute_in = self._sides.mute_in if command.mute_in is None else command.mute_in
        mute_out = self._sides.mute_out if command.mute_out is None else command.mute_out
        sides = replace(self._sides, mute_in=mute_in, mute_out=mute_out)
        if self._frame_bytes:
            shape = shape_for(self.spec.direction, self._frame_bytes, sides)
            if shape is None:
                self._log.warning("cannot mute one side of a mix: %s", NO_PAIRS)
                return
            self._shape = shape
        self._sides = sides

    def set_gate(self, is_open: bool) -> None:
        """Let audio through, or not."""
        self._gate_open = is_open and self._end is None
        if self._timekeeper is None:
            return
        if self._gate_open and self._leg is not None:
            self._timekeeper.start()
        else:
            self._timekeeper.stop()

    def stats(self) -> ForkStats:
        """Return the statistics so far."""
        return ForkStats(
            frames_in=self._frames_in,
            frames_sent=self._sink.frames_sent,
            frames_dropped=self._sink.backlog.dropped + self._unfit,
            reconnects=self._sink.reconnects,
            messages_ignored=self._messages_ignored,
        )

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
        if self._sink.reconnects:
            self._report(SinkResumed(self.spec.fork_id, self._sink.dropped_in_gap))
        else:
            self._report(SinkOpened(self.spec.fork_id))
        self._check_streaming()

    def _on_sink_retry(self, attempt: int, why: str) -> None:
        self._report(SinkRetrying(self.spec.fork_id, attempt, why))

    def _on_text(self, text: str) -> None:
        """Pass a text message on, unless the server sends too many."""
        now = time.monotonic()
        self._messages = [at for at in self._messages if now - at < 1]
        if len(self._messages) >= MAX_MESSAGES_A_SECOND:
            self._messages_ignored += 1
            return
        self._messages.append(now)
        self._report(SinkMessage(self.spec.fork_id, text))

    def _check_streaming(self) -> None:
        if self._streaming or not self._sink.frames_sent:
            return
        self._streaming = True
        self._report(Streaming(self.spec.fork_id))
        # What waited may reach the server when the leg is gone, or about to go.
        if self._beeper is not None and self._leg is not None and self._end is None:
            if self.spec.beeps.at_start:
                self._beeper.beep()
            self._repeat_beeps()

    def _repeat_beeps(self) -> None:
        if self._beeper is not None and self.spec.beeps.interval_s:
            self._beeper.repeat(self.spec.beeps.interval_s)

    # --- The end ---

    def end(self, reason: EndReason, detail: str = "") -> None:
        """End the fork: the leg at once, the sink when it has what is left.

        The first reason stands; a shutdown that follows it leaves less time.
        """
        if reason is EndReason.SHUTDOWN:
            self._sink.hurry()
        if self._end is not None:
            return
        self._end = (reason, detail)
        self.set_gate(False)
        self._hang_up_leg(beep=reason is EndReason.STOPPED and self.spec.beeps.at_end)
        code = _CLOSE_CODES.get(reason, _FAULT_CLOSE_CODE)
        self._closing = asyncio.create_task(self._sink.close(code, reason.value))

    def _hang_up_leg(self, *, beep: bool) -> None:
        leg, beeper = self._leg, self._beeper
        if leg is None:
            return
        if beep and beeper is not None:
            beeper.stop()
            beeper.beep(then=lambda: self._hang_up_leg(beep=False))
            return
        self._let_go_of_leg()
        leg.hang_up()

    def _report_end(self) -> None:
        assert self._end is not None
        reason, detail = self._end
        self.done.set()
        self._report(ForkEnded(self.spec.fork_id, reason, detail, self.stats()))
