"""One running fork: its legs on one side, its sink on the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from audiofork.audiosocket import FRAME_BYTES, PTIME_MS, frame_bytes
from audiofork.errors import SinkError
from audiofork.link.messages import (
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    SendReport,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.log import CounterLine, ForkLog
from audiofork.relay.beep import Beeper
from audiofork.relay.pairing import Pairing
from audiofork.relay.shape import Shape, Sides, join_of, shape_of, unchanged
from audiofork.relay.silence_filler import SilenceFiller
from audiofork.relay.sink import Sink

log = logging.getLogger(__name__)

NO_PAIRS = (
    "this Asterisk's ChanSpy cannot keep in and out apart; it takes 18.22, 20.7, 21.2, 22 or later"
)
MAX_MESSAGES_A_SECOND = 20
_CLOSE_CODES = {EndReason.HANGUP: 1000, EndReason.STOPPED: 1000, EndReason.SHUTDOWN: 1001}
_FAULT_CLOSE_CODE = 1011


class LegHandle(Protocol):
    """What a session may do to its leg.

    Attributes:
        on_usual: Takes a frame that is as long as the one before.
    """

    on_usual: Callable[[bytes], None]

    @property
    def spoken_rate(self) -> int:
        """The sample rate in Hz that Asterisk takes what the leg speaks for."""

    def hang_up(self) -> None: ...

    def speak(self, frame: bytes) -> None: ...

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> None: ...

    def read_rest(self) -> None: ...


def message_frame_bytes(spec: ForkSpec) -> int:
    """Return how much of a message 20 ms take."""
    return frame_bytes(spec.sample_rate) * (2 if spec.direction is Direction.STEREO else 1)


def leg_frame_bytes(part: LegPart, sample_rate: int) -> int:
    """Return the size of each frame that a leg brings."""
    return frame_bytes(sample_rate) * (2 if part is LegPart.PAIRS else 1)


class Inlet:
    """Where the leg of one part brings its frames; what the listener knows of a session.

    Attributes:
        on_audio: Takes a frame of any size.
    """

    def __init__(self, session: Session, part: LegPart, on_audio: Callable[[bytes], None]) -> None:
        self._session = session
        self._part = part
        self.on_audio = on_audio

    def attach(self, leg: LegHandle) -> None:
        """Take the leg that connected with the part's UUID, the first or another."""
        self._session.attach(self._part, leg)

    def on_batch_read(self, *, is_late: bool) -> int:
        """Hear that several frames were read at once.

        Args:
            is_late: They have waited already, and must not wait any more.

        Returns:
            How many frames the next message still lacks.
        """
        return self._session.on_batch_read(is_late=is_late)

    def on_leg_closed(self) -> None:
        """Hear that the leg is closed, and not by us."""
        self._session.on_leg_closed(self._part)


class Session:
    """Relays the frames of a fork's legs to one sink.

    Owned by the worker. `inlets` are called by the legs, `end` by anybody and as often as they
    like: the first reason stands. `done` is set when legs and sink are closed and ForkEnded is
    reported.

    Attributes:
        inlets: Where legs bring their frames, by what they bring.
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
        self._legs: dict[LegPart, LegHandle] = {}
        self._beeper = Beeper(self._speak, self._spoken_rate) if spec.beeps.any else None
        self._start_unheard = spec.beeps.at_start
        self._silence_filler: SilenceFiller | None = None
        if spec.keep_time and len(spec.legs) == 1:  # two are paired by their clocks
            self._silence_filler = SilenceFiller(
                self._send_silence, lambda: self._frames_in, time.monotonic
            )
        self._sides = Sides(spec.gain_in, spec.gain_out)
        self._frame_bytes = leg_frame_bytes(spec.legs[0], spec.sample_rate)  # of each leg
        self._silence = bytes(message_frame_bytes(spec))
        self._shape: Shape = unchanged
        self._pairing: Pairing | None = None
        if len(spec.legs) == 1:
            self._shape = shape_of(spec.legs[0], spec.direction, self._sides)
            self.inlets = {spec.legs[0]: Inlet(self, spec.legs[0], self._on_audio)}
        else:
            self._join = join_of(spec.direction, self._sides)
            self._pairing = Pairing(self._on_pair, bytes(self._frame_bytes))
            self.inlets = {part: self._inlet_of_part(part, self._pairing) for part in spec.legs}
        self._gate_open = spec.gate_open
        self._unfit = 0  # frames of a size that cannot be relayed
        self._fit = False  # whether the only leg has brought a frame of the right size
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

    # --- The legs' side ---

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """Take a leg, the first of its part or another."""
        if self._end is not None:
            leg.hang_up()
            return
        self._legs[part] = leg
        self._lead_usual()
        if self._pairing is not None:
            self._pairing.attach(part)
        if self._silence_filler is not None and self._gate_open:
            self._silence_filler.start()
        if self._streaming and part is self._speaking_part:  # late, or in place of a lost leg
            self._begin_beeps()
        self._report(LegAttached(self.spec.fork_id, part))

    def _lead_usual(self, way: Callable[[bytes], None] | None = None) -> None:
        """Let frames that are as long as the one before take a way, by default that of all others.

        The hot path: each leg itself has the shortest way that serves at the moment.
        """
        for part, leg in self._legs.items():
            leg.on_usual = way or self.inlets[part].on_audio

    def _on_audio(self, frame: bytes) -> None:
        """Relay one frame of the only leg, whatever it is like."""
        if not self._gate_open:
            self._gated += 1
            return
        if len(frame) != self._frame_bytes:
            self._on_unfit(len(frame))
            self._lead_usual()
            return
        self._fit = True
        self._sink.send(self._shape(frame))
        if self._streaming:
            self._shorten_way()
        else:
            self._check_streaming()

    def _shorten_way(self) -> None:
        """Let the next frames take the shortest way: the gate is open, their size is known.

        Where several go into one message they are read so many at once, from the end of a message
        on. (Not where time is kept: silence would take the place of what waits.)
        """
        batch_ms = self._sink.frame_ms
        if batch_ms > PTIME_MS and self._silence_filler is None:
            if self._sink.backlog:
                return
            for leg in self._legs.values():
                leg.batch_reads(self._frame_bytes, batch_ms)
        is_plain = self._shape is unchanged
        self._lead_usual(self._sink.send if is_plain else self._send_shaped)

    def _send_shaped(self, frame: bytes) -> None:
        self._sink.send(self._shape(frame))

    def _on_unfit(self, size: int) -> None:
        """Drop and count a frame of the wrong size; if it is the first one, the leg is wrong."""
        self._unfit += 1
        if self._fit or self._streaming:
            self._odd_frames.count(f"{size} bytes in place of {self._frame_bytes}")
        else:
            self.end(EndReason.LEG_FAILED, self._why_unfit(size))

    def on_batch_read(self, *, is_late: bool) -> int:
        """See `Inlet.on_batch_read`."""
        if is_late:
            self._sink.send_part()
        return self._sink.missing

    def _why_unfit(self, size: int) -> str:
        if LegPart.PAIRS in self.spec.legs and size == FRAME_BYTES:
            return NO_PAIRS
        rate = self.spec.sample_rate
        return f"the leg sends frames of {size} bytes, not {self._frame_bytes} ({rate} Hz)"

    def _send_silence(self) -> None:
        """Send a frame of silence that no leg has brought; it counts as one that came."""
        self._filled += 1
        self._sink.send(self._silence)
        self._check_streaming()

    def _inlet_of_part(self, part: LegPart, pairing: Pairing) -> Inlet:
        """Return where the leg of one of two parts brings its frames."""

        def put(frame: bytes) -> None:
            if len(frame) == self._frame_bytes:
                pairing.put(part, frame)
            elif not self._gate_open:
                self._gated += 1
            else:
                self._on_unfit(len(frame))

        return Inlet(self, part, put)

    def _on_pair(self, side_in: bytes, side_out: bytes) -> None:
        """Relay 20 ms of both legs."""
        if not self._gate_open:
            self._gated += 1
            return
        self._sink.send(self._join(side_in, side_out))
        if not self._streaming:
            self._check_streaming()

    def on_leg_closed(self, part: LegPart) -> None:
        """Hear that a leg is closed, and not by us."""
        self._let_go_of(part)
        if self._end is None:
            brought = self._frames_in - self._filled + self._gated
            self._report(LegLost(self.spec.fork_id, part, brought))
        elif part is self._speaking_part:  # the others have waited for the last beep
            self._hang_up_legs(beep=False)

    @property
    def _speaking_part(self) -> LegPart:
        """The part whose leg the party hears beeps over."""
        return self.spec.legs[0]

    def _speak(self, frame: bytes) -> None:
        leg = self._legs.get(self._speaking_part)
        if leg is not None:
            leg.speak(frame)

    def _spoken_rate(self) -> int:
        leg = self._legs.get(self._speaking_part)
        return leg.spoken_rate if leg is not None else self.spec.sample_rate

    def _let_go_of(self, part: LegPart) -> None:
        self._legs.pop(part, None)
        if self._pairing is not None:
            self._pairing.detach(part)
        if self._beeper is not None and part is self._speaking_part:
            self._beeper.stop()
        if self._silence_filler is not None:
            self._silence_filler.stop()

    # --- Commands ---

    def set_mute(self, command: SetMute) -> None:
        """Put silence in place of a side, or the side itself again, from the next frame on."""
        mute_in = self._sides.mute_in if command.mute_in is None else command.mute_in
        mute_out = self._sides.mute_out if command.mute_out is None else command.mute_out
        sides = replace(self._sides, mute_in=mute_in, mute_out=mute_out)
        if self._pairing is not None:
            self._join = join_of(self.spec.direction, sides)
        else:
            self._shape = shape_of(self.spec.legs[0], self.spec.direction, sides)
            self._lead_usual()
        self._sides = sides

    def set_gate(self, is_open: bool) -> None:
        """Let audio through, or not."""
        self._gate_open = is_open and self._end is None
        self._lead_usual()
        if self._silence_filler is None:
            return
        if self._gate_open and self._legs:
            self._silence_filler.start()
        else:
            self._silence_filler.stop()

    @property
    def _frames_in(self) -> int:
        sink = self._sink
        return sink.frames_sent + sink.backlog.dropped + len(sink.backlog) + self._unfit

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
        if self._speaking_part in self._legs and self._end is None:
            self._begin_beeps()

    def _begin_beeps(self) -> None:
        """Let the party hear that audio flows, once; and from now on each so often."""
        if self._beeper is None:
            return
        if self._start_unheard:
            self._start_unheard = False
            self._beeper.beep()
        if self.spec.beeps.interval_s:
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
        for leg in list(self._legs.values()):
            leg.read_rest()
        if self._pairing is not None:
            self._pairing.flush()
        self.set_gate(False)
        self._hang_up_legs(beep=reason is EndReason.STOPPED and self.spec.beeps.at_end)
        code = _CLOSE_CODES.get(reason, _FAULT_CLOSE_CODE)
        self._closing = asyncio.create_task(self._sink.close(code, reason.value))

    def _hang_up_legs(self, *, beep: bool) -> None:
        beeper = self._beeper
        if beep and beeper is not None and self._speaking_part in self._legs:
            beeper.stop()
            beeper.beep(then=lambda: self._hang_up_legs(beep=False))
            return
        for part, leg in list(self._legs.items()):
            self._let_go_of(part)
            leg.hang_up()

    def _report_end(self) -> None:
        assert self._end is not None
        reason, detail = self._end
        self.done.set()
        self._report(ForkEnded(self.spec.fork_id, reason, detail, self.stats()))
