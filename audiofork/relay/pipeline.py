"""Turns the frames of a fork's legs into the frames that its server gets.

A frame passes a check of its size, the pairing (if in and out have a leg each), the gate and the
shape; then the taker gets it. That is one synchronous call. Frames wait here only for their pair.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from audiofork.audiosocket import PTIME_MS, frame_bytes
from audiofork.link.messages import Direction, ForkSpec, LegPart
from audiofork.relay.pairing import Pairing
from audiofork.relay.shape import Shape, Sides, join_of, shape_of, unchanged
from audiofork.relay.silence_filler import SilenceFiller

TakeFrame = Callable[[bytes], None]
TakePart = Callable[[LegPart, bytes], None]


class LegHandle(Protocol):
    """What a fork may do to its leg.

    Attributes:
        on_usual: Called with a frame that is as long as the one before: the fast path.
    """

    on_usual: TakeFrame

    @property
    def spoken_rate(self) -> int:
        """The sample rate in Hz that Asterisk assumes for frames sent to it.

        0: the leg has brought no audio yet that would show it.
        """

    def hang_up(self, *, call_goes_on: bool = False) -> None: ...

    def speak(self, frame: bytes) -> bool: ...

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> None: ...

    def read_rest(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Taker:
    """The receiver of a pipeline's frames.

    Attributes:
        take: Called with each frame for the server, `message_frame_bytes` long.
        count_taken: Returns the number of frames that `take` has got so far.
        on_unexpected_size: Called with the size of each frame that is dropped for its size.
    """

    take: TakeFrame
    count_taken: Callable[[], int]
    on_unexpected_size: Callable[[int], None]


def message_frame_bytes(spec: ForkSpec) -> int:
    """Return the bytes that 20 ms of audio takes in a message to the server."""
    return frame_bytes(spec.sample_rate) * (2 if spec.direction is Direction.STEREO else 1)


def leg_frame_bytes(part: LegPart, sample_rate: int) -> int:
    """Return the size in bytes of each frame that a leg brings."""
    return frame_bytes(sample_rate) * (2 if part is LegPart.PAIRS else 1)


def pipeline_of(spec: ForkSpec, taker: Taker) -> Pipeline:
    """Return the pipeline for a fork's legs."""
    return OneLegPipeline(spec, taker) if len(spec.legs) == 1 else TwoLegPipeline(spec, taker)


def _sides_of(part: LegPart, direction: Direction) -> tuple[LegPart, ...]:
    """Return what a fork's only leg brings of a direction: in, out, both apart, or the mix."""
    if part is not LegPart.PAIRS:
        return (part,)
    if direction is Direction.STEREO:
        return (LegPart.IN, LegPart.OUT)
    return (LegPart.IN if direction is Direction.IN else LegPart.OUT,)


class Pipeline(ABC):
    """Turns the frames of a fork's legs into those that a taker gets.

    Owned by a session, which attaches and detaches the legs. On the fast path, frames go from a leg
    directly to the taker. So the pipeline cannot count them and asks the taker for their number.

    Attributes:
        legs: The legs that are connected.
        frame_bytes: Expected size in bytes of the frames that each leg brings.
        unexpected: Frames that were dropped because of their size.
        filled: Frames of silence that were filled in.
        gated: Frames that came while the gate was shut.
        is_proven: Whether a frame of the expected size has come from the only leg. With two legs
            it stays False: a frame of one proves nothing about the other.
        heard_sides: Which sides `overhear` gives.
    """

    heard_sides: tuple[LegPart, ...]
    # Of forks that move to another relay.
    _note: TakePart | None = None
    _keep: TakePart | None = None

    def __init__(self, spec: ForkSpec, taker: Taker) -> None:
        self.legs: dict[LegPart, LegHandle] = {}
        self.frame_bytes = leg_frame_bytes(spec.legs[0], spec.sample_rate)
        self.unexpected = 0
        self.filled = 0
        self.gated = 0
        self.is_proven = False
        self._taker = taker
        self._take = taker.take
        self._gate_open = spec.gate_open  # and not paused
        self._gate = spec.gate_open
        self._is_paused = False
        self._sides = Sides(spec.gain_in, spec.gain_out)
        self._hear: TakeFrame | None = None

    @property
    def frames_in(self) -> int:
        """Frames that the taker got, or that were dropped because of their size."""
        return self._taker.count_taken() + self.unexpected

    @property
    def frames_brought(self) -> int:
        """Frames that the legs have brought, used or not; a pair counts as one."""
        return self.frames_in - self.filled + self.gated

    @property
    def muted(self) -> tuple[bool, bool]:
        """Whether in and whether out is muted."""
        return self._sides.mute_in, self._sides.mute_out

    @abstractmethod
    def overhear(self, hear: TakeFrame | None) -> None:
        """Also give to `hear` what the taker gets, after it; None: no longer.

        It gets the same frames, but with in and out side by side wherever they came apart. While
        nobody hears them, frames take the same way as if nobody ever had.
        """

    def note(self, note: TakePart) -> None:
        """Also give to `note` the frames of each leg that become frames for the taker, as it
        brings them, from the next one on.
        """
        self.read_rest()
        self._note = note

    def keep(self, keep: TakePart | None) -> None:
        """Give the frames that may pass to `keep` alone, as the legs bring them; None: no longer.

        What it keeps may go on by `put`.
        """
        self.read_rest()
        self._keep = keep

    @abstractmethod
    def put(self, part: LegPart, frame: bytes) -> None:
        """Let a frame of the expected size pass that was kept."""

    @abstractmethod
    def input_of(self, part: LegPart) -> TakeFrame:
        """Return the function to call with each frame of a part; it accepts any size."""

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """Add a leg: the first of its part, or one that replaces it."""
        self.legs[part] = leg
        leg.on_usual = self.input_of(part)

    def detach(self, part: LegPart) -> None:
        """Forget a leg: it is gone, or about to go."""
        self.legs.pop(part, None)

    def hand_to(self, take: TakeFrame) -> None:
        """Hand the frames to `take` from the next one on."""
        self._take = take

    def set_mute(self, mute_in: bool | None, mute_out: bool | None) -> None:
        """Mute or unmute the sides; None leaves a side as it is."""
        self.read_rest()
        mute_in = self._sides.mute_in if mute_in is None else mute_in
        mute_out = self._sides.mute_out if mute_out is None else mute_out
        self._sides = replace(self._sides, mute_in=mute_in, mute_out=mute_out)

    def set_gate(self, is_open: bool) -> None:
        """Open or shut the gate; no audio passes a shut gate."""
        self._gate = is_open
        self._set_open(is_open and not self._is_paused)

    def set_pause(self, is_paused: bool) -> None:
        """Let no audio pass while it is paused, whatever the gate is."""
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            self._set_open(self._gate and not is_paused)

    def _set_open(self, is_open: bool) -> None:
        self.read_rest()
        self._gate_open = is_open

    @abstractmethod
    def batch_reads(self, batch_ms: int) -> None:
        """Let legs read `batch_ms` of audio at once, if the pipeline needs no frame earlier."""

    def stop(self) -> None:
        """Hand on all unread frames, but none that wait for their pair; then shut the gate."""
        self.read_rest()
        self.set_gate(False)

    def finish(self) -> None:
        """Hand on all unread and waiting frames; then shut the gate."""
        self.read_rest()
        self._flush()
        self.set_gate(False)

    def read_rest(self) -> None:
        """Read and hand on what waits in the kernel.

        With batched reads that is up to one message of audio. A command must not change how audio
        from before the command is treated.
        """
        for leg in list(self.legs.values()):
            leg.read_rest()

    @abstractmethod
    def _flush(self) -> None:
        """Hand on the frames that wait for their pair."""

    def _drop(self, size: int) -> None:
        """Drop a frame of an unexpected size."""
        if self._gate_open:
            self.unexpected += 1
            self._taker.on_unexpected_size(size)
        else:
            self.gated += 1


class OneLegPipeline(Pipeline):
    """The pipeline of a fork with one leg, which brings all that the server gets."""

    def __init__(self, spec: ForkSpec, taker: Taker) -> None:
        super().__init__(spec, taker)
        self._part = spec.legs[0]
        self._shape_of = functools.partial(shape_of, spec.legs[0], spec.direction)
        self._shape = self._shape_of(self._sides)
        heard = Direction.STEREO if spec.direction is Direction.BOTH else spec.direction
        self.heard_sides = _sides_of(spec.legs[0], heard)
        self._heard_shape_of = functools.partial(shape_of, spec.legs[0], heard)
        self._heard_shape: Shape = unchanged  # that of the sides, while they are heard
        self._silence_filler: SilenceFiller | None = None
        if spec.keep_time:
            fill = functools.partial(self._fill, bytes(message_frame_bytes(spec)))
            is_steady = spec.voice is not None and spec.voice.steady
            self._silence_filler = SilenceFiller(
                fill, lambda: self.frames_in, time.monotonic, steady=is_steady
            )

    def overhear(self, hear: TakeFrame | None) -> None:
        """See `Pipeline.overhear`."""
        self._hear = hear
        self._heard_shape = self._heard_shape_of(self._sides)
        self._set_fast_path(self._on_frame)

    def note(self, note: TakePart) -> None:
        """See `Pipeline.note`."""
        super().note(note)
        self._set_fast_path(self._on_frame)

    def keep(self, keep: TakePart | None) -> None:
        """See `Pipeline.keep`; no silence is filled in among frames that are kept."""
        super().keep(keep)
        self._set_fast_path(self._on_frame)
        self._start_or_stop_filling()

    def put(self, part: LegPart, frame: bytes) -> None:  # noqa: ARG002 (of the base)
        """See `Pipeline.put`."""
        self._take_overheard(frame)

    def input_of(self, part: LegPart) -> TakeFrame:  # noqa: ARG002 (of the base)
        """See `Pipeline.input_of`."""
        return self._on_frame

    def _on_frame(self, frame: bytes) -> None:
        """Relay one frame; let the next frames use the fast path if they may."""
        if len(frame) != self.frame_bytes:
            self._set_fast_path(self._on_frame)
            self._drop(len(frame))
        elif not self._gate_open:
            self.gated += 1
        else:
            self.is_proven = True
            take = self._way_to_taker()
            self._set_fast_path(take)  # first: the call may have to turn the fast path off again
            take(frame)

    def _way_to_taker(self) -> TakeFrame:
        """Return the shortest way of a frame of the expected size."""
        if self._keep is not None:
            return functools.partial(self._keep, self._part)
        if self._note is not None:
            return self._take_noted
        if self._hear is not None:
            return self._take_overheard
        return self._take if self._shape is unchanged else self._take_shaped

    def _take_shaped(self, frame: bytes) -> None:
        self._take(self._shape(frame))

    def _take_noted(self, frame: bytes) -> None:
        assert self._note is not None
        self._note(self._part, frame)
        self._take_overheard(frame)

    def _take_overheard(self, frame: bytes) -> None:
        self._take(self._shape(frame))
        if self._hear is not None:
            self._hear(self._heard_shape(frame))

    def _set_fast_path(self, take: TakeFrame) -> None:
        """Set the leg's fast-path handler for frames of the expected size.

        It is used until a frame has another size, the gate or the shape changes, or `hand_to` is
        called. After that `_on_frame` checks each frame again.
        """
        for leg in self.legs.values():
            leg.on_usual = take

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """See `Pipeline.attach`; from now on silence replaces missing frames, if configured."""
        super().attach(part, leg)
        self._start_or_stop_filling()

    def detach(self, part: LegPart) -> None:
        """See `Pipeline.detach`."""
        super().detach(part)
        self._start_or_stop_filling()

    def hand_to(self, take: TakeFrame) -> None:
        """See `Pipeline.hand_to`."""
        super().hand_to(take)
        self._set_fast_path(self._on_frame)

    def set_mute(self, mute_in: bool | None, mute_out: bool | None) -> None:
        """See `Pipeline.set_mute`."""
        super().set_mute(mute_in, mute_out)
        self._shape = self._shape_of(self._sides)
        self._heard_shape = self._heard_shape_of(self._sides)
        self._set_fast_path(self._on_frame)

    def _set_open(self, is_open: bool) -> None:
        """No silence is filled in while nothing passes."""
        super()._set_open(is_open)
        self._set_fast_path(self._on_frame)
        self._start_or_stop_filling()

    def _start_or_stop_filling(self) -> None:
        if self._silence_filler is None:
            return
        if self._gate_open and self.legs and self._keep is None:
            self._silence_filler.start()
        else:
            self._silence_filler.stop()

    def _fill(self, silence: bytes) -> None:
        """Hand on a frame of silence; `frames_in` counts it like any other."""
        self.filled += 1
        self._take(silence)
        if self._hear is not None:
            self._hear(self._heard_shape(bytes(self.frame_bytes)))

    def batch_reads(self, batch_ms: int) -> None:
        """See `Pipeline.batch_reads`.

        No effect if silence is filled in: frames that wait unread would be replaced by silence.
        """
        if batch_ms > PTIME_MS and self._silence_filler is None:
            for leg in self.legs.values():
                leg.batch_reads(self.frame_bytes, batch_ms)

    def _flush(self) -> None:
        pass  # each frame is handed on at once


class TwoLegPipeline(Pipeline):
    """The pipeline of a fork with a leg for in and one for out, paired by their clocks."""

    def __init__(self, spec: ForkSpec, taker: Taker) -> None:
        super().__init__(spec, taker)
        self._join_of = functools.partial(join_of, spec.direction)
        self._join = self._join_of(self._sides)
        self._heard_join = join_of(Direction.STEREO, self._sides)
        self.heard_sides = (LegPart.IN, LegPart.OUT)
        self._silence = bytes(self.frame_bytes)
        self._pairing = Pairing(self._on_pair, self._silence)
        self._put: TakePart = self._pairing.put
        self._inputs = {part: self._new_input(part) for part in spec.legs}

    def overhear(self, hear: TakeFrame | None) -> None:
        """See `Pipeline.overhear`."""
        self._hear = hear
        self._choose_way()

    def note(self, note: TakePart) -> None:
        """See `Pipeline.note`."""
        super().note(note)
        self._choose_way()

    def _choose_way(self) -> None:
        """Let pairs take the shortest way."""
        emit = self._on_pair if self._hear is None else self._on_pair_overheard
        if self._note is not None:
            emit = functools.partial(self._on_pair_noted, emit)
        self._pairing.emit = emit

    def keep(self, keep: TakePart | None) -> None:
        """See `Pipeline.keep`."""
        super().keep(keep)
        self._put = self._pairing.put if keep is None else self._put_aside

    def put(self, part: LegPart, frame: bytes) -> None:
        """See `Pipeline.put`."""
        self._pairing.put(part, frame)

    def _put_aside(self, part: LegPart, frame: bytes) -> None:
        assert self._keep is not None
        self._pairing.wait_for(part)
        if self._gate_open:
            self._keep(part, frame)

    def _new_input(self, part: LegPart) -> TakeFrame:
        def put(frame: bytes) -> None:
            if len(frame) == self.frame_bytes:
                self._put(part, frame)
            else:
                self._drop(len(frame))

        return put

    def input_of(self, part: LegPart) -> TakeFrame:
        """See `Pipeline.input_of`."""
        return self._inputs[part]

    def _on_pair(self, side_in: bytes, side_out: bytes) -> None:
        """Relay 20 ms of both legs."""
        if self._gate_open:
            self._take(self._join(side_in, side_out))
        else:
            self.gated += 1

    def _on_pair_noted(
        self, emit: Callable[[bytes, bytes], None], side_in: bytes, side_out: bytes
    ) -> None:
        assert self._note is not None
        for part, side in ((LegPart.IN, side_in), (LegPart.OUT, side_out)):
            if self._gate_open and side is not self._silence:  # which is filled in
                self._note(part, side)
        emit(side_in, side_out)

    def _on_pair_overheard(self, side_in: bytes, side_out: bytes) -> None:
        self._on_pair(side_in, side_out)
        if self._gate_open and self._hear is not None:
            self._hear(self._heard_join(side_in, side_out))

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """See `Pipeline.attach`."""
        super().attach(part, leg)
        self._pairing.attach(part)

    def detach(self, part: LegPart) -> None:
        """See `Pipeline.detach`; frames that waited for this leg are handed on with silence."""
        super().detach(part)
        self._pairing.detach(part)

    def set_mute(self, mute_in: bool | None, mute_out: bool | None) -> None:
        """See `Pipeline.set_mute`."""
        super().set_mute(mute_in, mute_out)
        self._join = self._join_of(self._sides)
        self._heard_join = join_of(Direction.STEREO, self._sides)

    def batch_reads(self, batch_ms: int) -> None:
        """See `Pipeline.batch_reads`; no effect: pairing needs the time when each frame comes."""

    def _flush(self) -> None:
        self._pairing.flush()
