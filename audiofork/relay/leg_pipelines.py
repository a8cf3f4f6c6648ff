"""The pipelines of forks with one leg, and of those with two."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import monotonic

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Direction, ForkSpec, LegPart
from audiofork.relay.pairing import Pairing
from audiofork.relay.pipeline import (
    LegHandle,
    Pipeline,
    TakeBatch,
    TakeFrame,
    TakePart,
    Taker,
    message_frame_bytes,
)
from audiofork.relay.shape import Shape, join_of, shape_of, unchanged
from audiofork.relay.silence_filler import SilenceFiller

# Of a leg that need not wake the process, since the other does.
SPARE_FRAMES = 3

_OTHER = {LegPart.IN: LegPart.OUT, LegPart.OUT: LegPart.IN}


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
                fill, lambda: self.frames_in, monotonic, steady=is_steady
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
            # First: the call may have to turn the fast path off again.
            self._set_fast_path(take, self._way_of_batches())
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

    def _way_of_batches(self) -> TakeBatch | None:
        if self._keep is not None or self._note is not None or self._hear is not None:
            return None
        if self._shape is unchanged or self._take_batch is None:
            return self._take_batch
        return self._take_batch_shaped

    def _take_batch_shaped(self, frames: list[bytes]) -> None:
        assert self._take_batch is not None
        self._take_batch(list(map(self._shape, frames)))

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

    def _set_fast_path(self, take: TakeFrame, take_batch: TakeBatch | None = None) -> None:
        """Set the leg's fast-path handlers for frames of the expected size.

        They are used until a frame has another size, the gate or the shape changes, or `hand_to` is
        called. After that `_on_frame` checks each frame again.
        """
        for leg in self.legs.values():
            leg.on_usual, leg.on_batch = take, take_batch

    def attach(self, part: LegPart, leg: LegHandle) -> None:
        """See `Pipeline.attach`; from now on silence replaces missing frames, if configured."""
        super().attach(part, leg)
        self._start_or_stop_filling()

    def detach(self, part: LegPart) -> None:
        """See `Pipeline.detach`."""
        super().detach(part)
        self._start_or_stop_filling()

    def hand_to(self, take: TakeFrame, take_batch: TakeBatch | None = None) -> None:
        """See `Pipeline.hand_to`."""
        super().hand_to(take, take_batch)
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

    def batch_reads(self, batch_ms: int) -> bool:
        """See `Pipeline.batch_reads`.

        No effect if silence is filled in: frames that wait unread would be replaced by silence.
        """
        if batch_ms > PTIME_MS and self._silence_filler is None:
            for leg in self.legs.values():
                leg.batch_reads(self.frame_bytes, batch_ms)
        return True

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
        is_plain = self._hear is None and self._note is None
        self._pairing.emit_batch = self._on_pairs if is_plain and self._take_batch else None

    def hand_to(self, take: TakeFrame, take_batch: TakeBatch | None = None) -> None:
        """See `Pipeline.hand_to`."""
        super().hand_to(take, take_batch)
        self._choose_way()

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

    def _put_batch(self, part: LegPart, frames: list[bytes]) -> None:
        if self._keep is None and len(frames[0]) == self.frame_bytes:  # they are all alike
            self._pairing.put_batch(part, frames)
        else:
            for frame in frames:
                self._inputs[part](frame)

    def _on_pairs(self, sides_in: list[bytes], sides_out: list[bytes]) -> None:
        """Relay what came at once of both legs."""
        assert self._take_batch is not None
        if self._gate_open:
            # All at once: samples are joined one by one, whatever the frames are.
            joined = self._join(b"".join(sides_in), b"".join(sides_out))
            size = len(joined) // len(sides_in)
            self._take_batch([joined[at : at + size] for at in range(0, len(joined), size)])
        else:
            self.gated += len(sides_in)

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
        """See `Pipeline.attach`; the first frames of a leg are paired by when they come."""
        for other in self.legs.values():
            other.read_singly()
        self._pairing.expect_batches(1)
        super().attach(part, leg)
        leg.on_batch = functools.partial(self._put_batch, part)
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

    def batch_reads(self, batch_ms: int) -> bool:
        """See `Pipeline.batch_reads`; no effect before both legs have brought frames."""
        if batch_ms <= PTIME_MS:
            return True
        if not self._pairing.are_both_there:
            return False
        legs = self.legs.values()
        if all(leg.batch_reads(self.frame_bytes, batch_ms) for leg in legs):
            self._pairing.expect_batches(batch_ms // PTIME_MS)
        return True

    def end_batch(self, part: LegPart) -> None:
        """See `Pipeline.end_batch`; legs are compared by what both have brought at that time."""
        if (other := self.legs.get(_OTHER[part])) is not None:
            other.read_rest()
        self._pairing.watch()

    def await_message(self, part: LegPart, missing: int) -> int:
        """See `Pipeline.await_message`; only the leg whose frames come last wakes the process."""
        waiting = self._pairing.waiting
        spare = max(1, missing - waiting + SPARE_FRAMES)
        is_last = not waiting or self._pairing.ahead is not part
        if (other := self.legs.get(_OTHER[part])) is not None:
            other.await_frames(spare if is_last else missing)
        return missing if is_last else spare

    def _flush(self) -> None:
        self._pairing.flush()
