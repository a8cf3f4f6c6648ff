"""A pipeline between legs and a taker that are the test's own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from audiofork.link.messages import Direction, ForkSpec, LegPart
from audiofork.relay.leg_pipelines import pipeline_of
from audiofork.relay.pipeline import Taker, message_frame_bytes

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"
IN, OUT, MIX, PAIRS = LegPart.IN, LegPart.OUT, LegPart.MIX, LegPart.PAIRS
BOTH_LEGS = (IN, OUT)
# What the only leg of a fork brings, unless a test says something else.
USUAL_PART = {
    Direction.IN: IN,
    Direction.OUT: PAIRS,
    Direction.BOTH: MIX,
    Direction.STEREO: PAIRS,
}


def mono_of(sample: int, rate: int = 8000) -> bytes:
    """Return a frame that repeats one sample."""
    return struct.pack("<h", sample) * (rate // 50)


def pairs_of(sample_in: int, sample_out: int) -> bytes:
    """Return a frame that repeats one pair of samples, at 8000 Hz."""
    return struct.pack("<2h", sample_in, sample_out) * 160


def spec_of(direction: Direction, **wishes: Any) -> ForkSpec:
    """Return the order of a fork, by the leg that is usual for the direction."""
    wishes = {"legs": (USUAL_PART[direction],), **wishes}
    return ForkSpec(FORK_ID, "PJSIP/100-0000002a", "ws://server/", direction, **wishes)


class FakeLeg:
    """Counts how often it is hung up; accepts frames to speak at the rate that the test sets.

    Attributes:
        batched: What it was told of batched reads: size of a frame, and milliseconds.
        is_batching: Whether it reads so now.
        can_batch: Whether so much is not too much for the kernel.
        on_rest: Called, once, when it is to read what it has not read yet.
        on_every_rest: Called each time.
        awaited: How many frames it is to read next at once.
        is_full: Whether Asterisk does not read, so that nothing can be spoken.
        lets_go: Whether it was hung up so that the call goes on.
    """

    def __init__(self, spoken_rate: int) -> None:
        self.spoken_rate = spoken_rate
        self.on_usual: Callable[[bytes], None] = self._no_handler
        self.on_batch: Callable[[list[bytes]], None] | None = None
        self.hang_ups = 0
        self.lets_go = False
        self.is_full = False
        self.spoken: list[bytes] = []
        self.batched: list[tuple[int, int]] = []
        self.is_batching = False
        self.can_batch = True
        self.on_rest: Callable[[], None] = lambda: None
        self.on_every_rest: Callable[[], None] = lambda: None
        self.awaited = 0

    def _no_handler(self, frame: bytes) -> None:
        raise AssertionError("no handler was set")

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> bool:
        self.batched.append((frame_bytes, batch_ms))
        self.is_batching = self.can_batch
        return self.can_batch

    def read_singly(self) -> None:
        self.read_rest()
        self.is_batching = False

    def read_rest(self) -> None:
        on_rest, self.on_rest = self.on_rest, lambda: None
        on_rest()
        self.on_every_rest()

    def await_frames(self, count: int) -> None:
        self.awaited = count

    def hang_up(self, *, call_goes_on: bool = False) -> None:
        self.hang_ups += 1
        self.lets_go = call_goes_on

    def speak(self, frame: bytes) -> bool:
        if self.is_full:
            return False
        self.spoken.append(frame)
        return True


class PipelineStage:
    """A pipeline with legs that the test plays.

    Attributes:
        frames: What the pipeline has handed on.
        unexpected_sizes: Those of the frames that it has dropped.
    """

    def __init__(self, direction: Direction = Direction.IN, **wishes: Any) -> None:
        spec = spec_of(direction, **wishes)
        self.frames: list[bytes] = []
        self.unexpected_sizes: list[int] = []
        taker = Taker(self.frames.append, lambda: len(self.frames), self.unexpected_sizes.append)
        self.pipeline = pipeline_of(spec, taker)
        self.legs = {part: FakeLeg(spec.sample_rate) for part in spec.legs}
        self.leg = self.legs[spec.legs[0]]
        self._frame_bytes = message_frame_bytes(spec)
        self._usual: dict[LegPart, int] = {}  # size of the latest frame of each part

    @property
    def only_part(self) -> LegPart:
        """The part of a fork that has just one."""
        (part,) = self.legs
        return part

    def attach(self, *parts: LegPart) -> None:
        """Connect the legs of these parts; of all parts if none is named."""
        for part in parts or self.legs:
            self._usual.pop(part, None)
            self.pipeline.attach(part, self.legs[part])

    def detach(self, part: LegPart | None = None) -> None:
        self.pipeline.detach(part or self.only_part)

    def bring(self, frame: bytes, part: LegPart | None = None) -> None:
        """Deliver a frame whose length differs from the one before."""
        self.pipeline.input_of(part or self.only_part)(frame)

    def bring_usual(self, frame: bytes, part: LegPart | None = None) -> None:
        """Deliver a frame with the same length as the one before."""
        self.legs[part or self.only_part].on_usual(frame)

    def bring_batch(self, *frames: bytes, part: LegPart | None = None) -> None:
        """Deliver frames that are read at once, as long as the one before."""
        leg = self.legs[part or self.only_part]
        if leg.on_batch is not None:
            leg.on_batch(list(frames))
        else:
            for frame in frames:
                leg.on_usual(frame)

    def audio(self, frame: bytes, part: LegPart | None = None) -> None:
        """Deliver a frame as the listener does; check the size of the result."""
        part = part or self.only_part
        way = self.bring_usual if len(frame) == self._usual.get(part) else self.bring
        self._usual[part] = len(frame)
        way(frame, part)
        assert {len(taken) for taken in self.frames} <= {self._frame_bytes}
        assert self.pipeline.unexpected == len(self.unexpected_sizes)
