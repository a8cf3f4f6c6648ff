"""One running fork in the relay: connects its legs to its sink."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest

from audiofork.audiosocket import FRAME_BYTES, PTIME_MS
from audiofork.errors import SinkClosed, SinkError
from audiofork.link.messages import (
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    FrameCame,
    HandedOver,
    LegAttached,
    LegLost,
    LegPart,
    PressKey,
    SendReport,
    SetMute,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
    TakenOver,
)
from audiofork.log import CounterLine, ForkLog
from audiofork.relay.flag import Flag
from audiofork.relay.formats.base import Dtmf, Mute
from audiofork.relay.joint import KeptFrames, SidesOf, Tail
from audiofork.relay.leg_pipelines import pipeline_of
from audiofork.relay.levels import ForkMeter
from audiofork.relay.pacer import Pacer
from audiofork.relay.pipeline import LegHandle, TakeFrame, Taker
from audiofork.relay.server_commands import ServerCommands
from audiofork.relay.shortfall import Shortfall
from audiofork.relay.sink import Sink
from audiofork.relay.speaker import Hearer, Speaker
from audiofork.text import A_BUG

log = logging.getLogger(__name__)

NO_PAIRS = (
    "this Asterisk's ChanSpy cannot keep in and out apart; it takes 18.22, 20.7, 21.2, 22 or later"
)
_CLOSE_CODES = {
    EndReason.HANGUP: 1000,
    EndReason.STOPPED: 1000,
    EndReason.SHUTDOWN: 1001,
    EndReason.MOVED: 1001,
}
_FAULT_CLOSE_CODE = 1011


class Inlet:
    """Passes the calls of the leg of one part to its session; the listener knows only this class.

    Attributes:
        on_audio: Called with a frame of any size.
        on_batch_read: See `Session.on_batch_read`.
    """

    def __init__(self, session: Session, part: LegPart, on_audio: Callable[[bytes], None]) -> None:
        self._session = session
        self._part = part
        self.on_audio = on_audio
        self.on_batch_read = functools.partial(session.on_batch_read, part)

    def attach(self, leg: LegHandle) -> None:
        """Add the leg that presented a UUID of this part: the first, or one that replaces it."""
        self._session.attach(self._part, leg)

    def on_leg_closed(self, *, contested: bool = False) -> None:
        """Handle a leg that was closed, but not by the session.

        Args:
            contested: Whether the listener closed it, because it may not be Asterisk's leg: see
                `LegLost`.
        """
        self._session.on_leg_closed(self._part, contested=contested)


class Session:
    """Relays the frames of a fork's legs through a pipeline to one sink, and reports its events.

    Owned by the worker. The legs call `inlets`. `end` may be called at any time and repeatedly:
    the first reason is kept.

    Attributes:
        spec: What the control plane has ordered.
        done: Set when legs and sink are closed, just before ForkEnded is reported.
        inlets: The inlet for the leg of each part.
    """

    _running: asyncio.Task[None] | None = None
    _closing: asyncio.Task[None] | None = None
    _kept: dict[LegPart, KeptFrames] | None = None
    _tells_frame = False

    def __init__(self, spec: ForkSpec, sink: Sink, report: SendReport, pacer: Pacer) -> None:
        self.spec = spec
        self.done = Flag()
        self._sink = sink
        sink.on_open = self._on_sink_open
        sink.on_retry = self._on_sink_retry
        self._report = report
        self._sides = SidesOf(spec)
        self._tails: dict[LegPart, Tail] = {}
        taker = Taker(self._send_first, self._frames_offered, self._on_unexpected_size)
        self._pipeline = pipeline_of(spec, taker)
        if spec.holds:
            self._hold()
        self.inlets = {part: Inlet(self, part, self._pipeline.input_of(part)) for part in spec.legs}
        self._speaker = Speaker(spec, pacer, sink.send_event)
        pause = self._pipeline.set_pause
        self._commands = ServerCommands(spec, self._speaker, report, pause)
        sink.on_text = self._commands.on_text
        sink.on_audio = self._commands.on_audio
        sink.on_command = self._commands.on_command
        self._unexpected_sizes = CounterLine(
            log, f"fork {spec.fork_id[:8]}: frames of an unexpected size"
        )
        self._shortfall = self._new_shortfall() if spec.steady else None
        self._streaming = False
        self._end: tuple[EndReason, str] | None = None

    def start(self) -> None:
        """Start to connect to the server."""
        self._running = asyncio.create_task(self._run())

    # --- The legs' side ---

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """Add a leg: the first of its part, or one that replaces it."""
        if self._end is not None:
            self._hang_up(part, leg)
            return
        # No leg batches its reads then: `_send_first` decides again when they may.
        self._pipeline.hand_to(self._send_first)
        self._pipeline.attach(part, leg)
        if part in self._speaker.parts and self._kept is None:
            self._speaker.attach(part, leg)
        if part is self._speaker.tone_part and self._streaming:  # it came late, or replaces another
            self._speaker.beeper.begin()
        self._compare_with_clock()
        self._report(LegAttached(self.spec.fork_id, part))

    def _new_shortfall(self) -> Shortfall:
        batch_frames = self._sink.frame_ms // PTIME_MS
        return Shortfall(lambda: self._pipeline.frames_brought, time.monotonic, batch_frames)

    def _compare_with_clock(self) -> None:
        """Count missing frames while audio should flow; stop counting otherwise."""
        if self._shortfall is None:
            return
        if self._streaming and self._pipeline.legs and self._end is None:
            self._shortfall.start()
        else:
            self._shortfall.stop()

    def _send_first(self, frame: bytes) -> None:
        """Send a frame; when audio flows and no frame waits, let the pipeline call the sink itself.

        Only then may legs batch their reads: a batch must begin where a message begins. After a
        new leg has connected, this method is used again.
        """
        self._sink.send(frame)
        self._check_streaming()
        if not self._streaming or self._sink.backlog:
            return
        if self._pipeline.batch_reads(self._sink.frame_ms):
            self._pipeline.hand_to(self._sink.send, self._sink.send_batch)

    def _frames_offered(self) -> int:
        sink = self._sink
        return sink.frames_sent + sink.backlog.dropped + len(sink.backlog)

    def _on_unexpected_size(self, size: int) -> None:
        """Log a frame that was dropped because of its size; end the fork if no frame was right.

        The leg then has another format than the fork expects.
        """
        if self._pipeline.is_proven or self._streaming:
            expected = self._pipeline.frame_bytes
            self._unexpected_sizes.count(f"{size} bytes in place of {expected}")
        else:
            self.end(EndReason.LEG_FAILED, self._why_unexpected(size))

    def _why_unexpected(self, size: int) -> str:
        if LegPart.PAIRS in self.spec.legs and size == FRAME_BYTES:
            return NO_PAIRS
        expected, rate = self._pipeline.frame_bytes, self.spec.sample_rate
        return f"the leg sends frames of {size} bytes, not {expected} ({rate} Hz)"

    def on_batch_read(self, part: LegPart, is_late: bool) -> int:
        """Handle the end of a batched read of several frames.

        Args:
            part: That of the leg.
            is_late: Whether the frames have waited so long that they must be sent now.

        Returns:
            The number of frames that this leg is to read next.
        """
        self._pipeline.end_batch(part)
        if is_late:
            self._sink.send_part()
        return self._pipeline.await_message(part, self._sink.missing)

    def on_leg_closed(self, part: LegPart, *, contested: bool = False) -> None:
        """See `Inlet.on_leg_closed`."""
        self._detach(part)
        if self._end is None:
            brought = self._pipeline.frames_brought
            self._report(LegLost(self.spec.fork_id, part, brought, contested))
        elif part is self._speaker.tone_part:  # the other legs stayed for the last beep, now lost
            self._hang_up_legs()

    def drop_leg(self, part: LegPart) -> None:
        """Hang up the leg of a part, if there is one, without a LegLost report."""
        if (leg := self._pipeline.legs.get(part)) is not None:
            self._detach(part)
            self._hang_up(part, leg)

    def _detach(self, part: LegPart) -> None:
        self._pipeline.detach(part)
        self._compare_with_clock()
        if part in self._speaker.parts:
            self._speaker.detach(part)

    def _hang_up(self, part: LegPart, leg: LegHandle) -> None:
        leg.hang_up(call_goes_on=self._speaker.is_steady and part in self._speaker.parts)

    # --- Commands ---

    def set_mute(self, command: SetMute) -> None:
        """Mute or unmute the sides, from the next frame on; tell the server, as with a key."""
        self._pipeline.set_mute(command.mute_in, command.mute_out)
        if self._end is None and self.spec.format.has_mute:
            self._sink.send_event(Mute(*self._pipeline.muted))

    def press(self, command: PressKey) -> None:
        """Tell the server of a key that the party has pressed, if its format has a way to."""
        if self._end is None:
            self._pipeline.read_rest()  # what was said before the key comes before it
            self._sink.send_event(Dtmf(command.digit, command.duration_ms))

    def set_gate(self, is_open: bool) -> None:
        """Open or shut the gate; after the end it stays shut."""
        self._pipeline.set_gate(is_open and self._end is None)

    # --- Moving to another relay ---

    def note_frames(self) -> None:
        """Note how the frames look, from the next one on: the fork is about to move."""
        self._tails = tails = {side: Tail() for side in self._sides.all}

        def note(part: LegPart, frame: bytes) -> None:
            for side, audio in self._sides.apart(part, frame).items():
                tails[side].add(audio)
            if self._tells_frame:
                self._tells_frame = False
                self._report(FrameCame(self.spec.fork_id))

        self._pipeline.note(note)

    def tell_frame(self) -> None:
        """Report the next frame that a leg brings, which is noted."""
        self._tells_frame = True

    def hand_over(self) -> None:
        """Let another relay go on from here; send what waits, and end."""
        if self._end is not None:
            return
        self._pipeline.stop()  # a frame that waits for its pair is the other's
        tails = [tail.looks for tail in self._tails.values()] or [()]
        self._report(HandedOver(self.spec.fork_id, *tails))
        self.end(EndReason.MOVED)

    def _hold(self) -> None:
        """Keep what comes, until another relay stops."""
        self._kept = kept = {side: KeptFrames() for side in self._sides.all}

        def keep(part: LegPart, frame: bytes) -> None:
            mute_in, mute_out = self._pipeline.muted
            for side, audio in self._sides.apart(part, frame).items():
                kept[side].add(audio, is_muted=mute_in if side is LegPart.IN else mute_out)

        self._pipeline.keep(keep)

    def take_over(
        self, tails: Sequence[Sequence[int]], latest: int, *, is_whole: bool = False
    ) -> None:
        """Go on after the last frames of another relay.

        Args:
            tails: How these looked, for each side; there may be more.
            latest: About how many frames of each side have come since, should they not be found.
            is_whole: Whether all that have come are to be sent.
        """
        if self._kept is None or self._end is not None:
            return
        self._pipeline.read_rest()
        kept, self._kept = self._kept, None
        for part in self._pipeline.legs.keys() & self._speaker.parts:
            self._speaker.attach(part, self._pipeline.legs[part])
        pairs = zip(kept.items(), tails, strict=False)
        found = {
            side: len(frames) if is_whole else frames.place_after(tail)
            for (side, frames), tail in pairs
        }
        # The sides come by one leg, or by legs of one age.
        usual = next((place for place in found.values() if place is not None), latest)
        places = {side: usual if place is None else place for side, place in found.items()}
        to_come = {side: -place for side, place in places.items() if place < 0}
        if self._pipeline.is_paused:  # nothing was kept since, and what has yet to come is not sent
            to_come = {}
        leave_out = functools.partial(self._leave_out, to_come)
        self._pipeline.keep(leave_out if to_come else None)
        rows = [frames.latest(max(0, places[side])) for side, frames in kept.items()]
        for row in zip_longest(*rows):  # 20 ms of each side
            frames = zip(kept, row, strict=True)
            self._go_on_with({side: one.passed for side, one in frames if one is not None})
        self._report(TakenOver(self.spec.fork_id, None not in found.values()))

    def _go_on_with(self, sides: dict[LegPart, bytes]) -> None:
        for part, frame in self._sides.together(sides).items():
            self._pipeline.put(part, frame)

    def _leave_out(self, to_come: dict[LegPart, int], part: LegPart, frame: bytes) -> None:
        """Leave out what the other relay has sent of a frame.

        Args:
            to_come: How much of that has yet to come of each side.
            part: That of the leg.
            frame: The frame.
        """
        sides = self._sides.apart(part, frame)
        for side in to_come.keys() & sides.keys():
            del sides[side]
            to_come[side] -= 1
            if not to_come[side]:
                del to_come[side]
        if not to_come:
            self._pipeline.keep(None)
        self._go_on_with(sides)

    def stats(self) -> ForkStats:
        """Return the statistics so far."""
        counts = self._speaker.counts
        rtt_ms, unacked_bytes = self._sink.on_the_way()
        return ForkStats(
            frames_in=self._pipeline.frames_in,
            frames_sent=self._sink.frames_sent,
            frames_dropped=self._sink.backlog.dropped + self._pipeline.unexpected,
            frames_missing=self._shortfall.frames if self._shortfall is not None else 0,
            reconnects=self._sink.reconnects,
            messages_ignored=self._commands.texts_ignored,
            frames_played=counts.played,
            frames_cleared=counts.cleared,
            frames_unplayed=counts.unplayed,
            underruns=counts.underruns,
            commands_refused=self._commands.refused,
            messages_unused=self._sink.messages_unused,
            rtt_ms=rtt_ms,
            unacked_bytes=unacked_bytes,
        )

    # --- Those who watch ---

    def new_meter(self) -> ForkMeter:
        """Return a new meter of the levels."""
        frame_ms = self._sink.frame_ms
        return ForkMeter(self.spec, self._pipeline.legs, self.inlets, self._speaker, frame_ms)

    @property
    def heard_sides(self) -> tuple[LegPart, ...]:
        """Which sides `overhear` gives."""
        return self._pipeline.heard_sides

    def overhear(self, hear: TakeFrame | None, hearer: Hearer | None = None) -> None:
        """Give what the server gets to `hear`, too, and what it says to `hearer`; None: no more."""
        self._pipeline.overhear(hear)
        self._speaker.overhear(hearer)

    # --- The sink's side ---

    async def _run(self) -> None:
        try:
            await self._sink.run()
        except SinkError as exc:
            self.end(self._reason_of(exc), str(exc))
        except Exception:  # noqa: BLE001 (logged, and ends the fork)
            ForkLog(log, self.spec.fork_id, self.spec.channel).exception("the sink failed")
            self.end(EndReason.FAULT, A_BUG)
        assert self._closing is not None, "run() returns after close() or raises"
        await self._closing
        self._report_end()

    def _reason_of(self, error: SinkError) -> EndReason:
        # A server that gets a steady voice is the call's other party: its close is a hangup.
        if self._speaker.is_steady and isinstance(error, SinkClosed):
            return EndReason.SINK_CLOSED
        return EndReason.SINK_GONE if error.retryable else EndReason.SINK_REFUSED

    def _on_sink_open(self) -> None:
        if self._sink.reconnects:
            self._report(SinkResumed(self.spec.fork_id, self._sink.dropped_in_gap))
        else:
            self._report(SinkOpened(self.spec.fork_id, self._sink.subprotocol))
        self._check_streaming()

    def _on_sink_retry(self, attempt: int, why: str, wait_s: float) -> None:
        self._commands.on_server_lost()
        self._report(SinkRetrying(self.spec.fork_id, attempt, why, wait_s))

    def _check_streaming(self) -> None:
        if self._streaming or not self._sink.frames_sent:
            return
        self._streaming = True
        self._compare_with_clock()
        self._report(Streaming(self.spec.fork_id))
        # The first frame may be sent when the leg is already lost or the fork ends: no beep then.
        if self._speaker.can_beep and self._end is None:
            self._speaker.beeper.begin()

    # --- The end ---

    def end(self, reason: EndReason, detail: str = "") -> None:
        """End the fork: hang up the legs (after the end beep, if any), then close the sink.

        The sink first delivers the frames that wait. The first reason is kept, but a later
        SHUTDOWN shortens the time for that.
        """
        if reason is EndReason.SHUTDOWN:
            self._sink.hurry()
        if self._end is not None:
            return
        self._end = (reason, detail)
        self._pipeline.finish()
        self._compare_with_clock()
        self._commands.end()
        self._speaker.end()
        if reason is EndReason.STOPPED and self.spec.beeps.at_end and self._speaker.can_beep:
            self._speaker.beep(then=self._hang_up_legs)
        else:
            self._hang_up_legs()
        code = _CLOSE_CODES.get(reason, _FAULT_CLOSE_CODE)
        self._closing = asyncio.create_task(self._sink.close(code, reason.value))

    def _hang_up_legs(self) -> None:
        for part in list(self._pipeline.legs):
            self.drop_leg(part)

    def _report_end(self) -> None:
        assert self._end is not None
        reason, detail = self._end
        self._check_streaming()  # the first frames may have been sent during the close
        self.done.set()
        self._report(ForkEnded(self.spec.fork_id, reason, detail, self.stats()))
