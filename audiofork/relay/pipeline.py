"""Turns the frames of a fork's legs into the frames that its server gets.

A frame passes a check of its size, the pairing (if in and out have a leg each), the gate and the
shape; then the taker gets it. That is one synchronous call. Frames wait here only for their pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from audiofork.audiosocket import frame_bytes
from audiofork.link.messages import Direction, ForkSpec, LegPart
from audiofork.relay.shape import Sides

TakeFrame = Callable[[bytes], None]
TakeBatch = Callable[[list[bytes]], None]
TakePart = Callable[[LegPart, bytes], None]


class LegHandle(Protocol):
    """What a fork may do to its leg.

    Attributes:
        on_usual: Called with a frame that is as long as the one before: the fast path.
        on_batch: Called with several such frames, read at once; None: `on_usual` gets each.
    """

    on_usual: TakeFrame
    on_batch: TakeBatch | None

    @property
    def spoken_rate(self) -> int:
        """The sample rate in Hz that Asterisk assumes for frames sent to it.

        0: the leg has brought no audio yet that would show it.
        """

    def hang_up(self, *, call_goes_on: bool = False) -> None: ...

    def speak(self, frame: bytes) -> bool: ...

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> bool: ...

    def await_frames(self, count: int) -> None: ...

    def read_singly(self) -> None: ...

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
    _take_batch: TakeBatch | None = None

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

    @property
    def is_paused(self) -> bool:
        """Whether no audio passes, whatever the gate is."""
        return self._is_paused

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
        leg.on_usual, leg.on_batch = self.input_of(part), None

    def detach(self, part: LegPart) -> None:
        """Forget a leg: it is gone, or about to go."""
        self.legs.pop(part, None)

    def hand_to(self, take: TakeFrame, take_batch: TakeBatch | None = None) -> None:
        """Hand the frames to `take` from the next one on.

        Args:
            take: Gets each frame.
            take_batch: Gets those that come at once; None: `take` gets each.
        """
        self._take = take
        self._take_batch = take_batch

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
    def batch_reads(self, batch_ms: int) -> bool:
        """Let legs read `batch_ms` of audio at once, if the pipeline needs no frame earlier.

        Returns:
            Whether that is settled; else it is to be tried again with a later frame.
        """

    def end_batch(self, part: LegPart) -> None:  # noqa: B027 (two legs do more)
        """Hand on what belongs to the frames that a leg has just brought as a batch."""

    def await_message(self, part: LegPart, missing: int) -> int:  # noqa: ARG002 (likewise)
        """Let the other legs wait for the next message; return how many frames this leg lacks.

        Args:
            part: That of the leg that has brought a batch.
            missing: Frames that the message lacks.
        """
        return missing

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
