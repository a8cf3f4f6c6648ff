"""Where a fork goes on that moves from one relay to another: after the last frame of the first.

Both have legs of the same channel for a moment, and both get the same frames; but nobody tells
which frame of one is which of the other. So the first tells how its latest frames looked, and the
second finds them among those that it has kept. In audio that repeats itself, such as silence, there
are several such places; then the latest frames of both are taken for the same.

All this is of the frames as a leg brings them, and of each side by itself: two relays, and two legs
of Asterisk, may pair in and out differently.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from audiofork.link.messages import Direction, ForkSpec, LegPart
from audiofork.relay.shape import join_of, left, right

# What the first tells, and what the second keeps at most: 2 and 10 s.
MAX_TAIL = 100
MAX_KEPT = 500
# Fewer frames alike may be chance.
MIN_ALIKE = 5
# So many frames of a leg that has just begun may be others than those of the earlier leg.
MAX_ODD = 3
# Where others differ, too, as many different ones have to be alike after these: Asterisk may have
# put silence into one side of one of the legs.
MIN_DIFFERENT = 10


_interleaved = join_of(Direction.STEREO)


class SidesOf:
    """Takes the frames of a fork's legs apart into the sides that the server gets.

    Attributes:
        all: These sides, in an order that is always the same.
    """

    def __init__(self, spec: ForkSpec) -> None:
        self._has_pairs = LegPart.PAIRS in spec.legs
        self.all: tuple[LegPart, ...] = spec.legs
        if self._has_pairs:
            one = {Direction.IN: (LegPart.IN,), Direction.OUT: (LegPart.OUT,)}
            self.all = one.get(spec.direction, (LegPart.IN, LegPart.OUT))

    def apart(self, part: LegPart, frame: bytes) -> dict[LegPart, bytes]:
        """Return the sides of a frame that a leg has brought."""
        if part is not LegPart.PAIRS:
            return {part: frame}
        return {side: (left if side is LegPart.IN else right)(frame) for side in self.all}

    def together(self, sides: Mapping[LegPart, bytes]) -> dict[LegPart, bytes]:
        """Return the frames of legs that have these sides; of a pair one may be missing."""
        if not self._has_pairs or not sides:
            return dict(sides)
        silence = bytes(len(next(iter(sides.values()))))
        pair = (sides.get(side, silence) for side in (LegPart.IN, LegPart.OUT))
        return {LegPart.PAIRS: _interleaved(*pair)}


def look_of(frame: bytes) -> int:
    """Return a number that frames with the same audio share, and hardly any others."""
    return zlib.crc32(frame)


class Tail:
    """How the latest frames of a leg looked that a relay has sent."""

    def __init__(self) -> None:
        self._looks: deque[int] = deque(maxlen=MAX_TAIL)

    def add(self, frame: bytes) -> None:
        """Note a frame."""
        self._looks.append(look_of(frame))

    @property
    def looks(self) -> tuple[int, ...]:
        """Those of the latest frames, the latest last."""
        return tuple(self._looks)


class Kept(NamedTuple):
    """A frame of one side, as it came.

    Attributes:
        audio: The frame.
        is_muted: Whether its side was muted then.
    """

    audio: bytes
    is_muted: bool

    @property
    def passed(self) -> bytes:
        """What may pass of it, also when its side is not muted any more."""
        return bytes(len(self.audio)) if self.is_muted else self.audio


class KeptFrames:
    """The frames of a leg that a relay has got, and may not send yet.

    Attributes:
        lost: Frames that were dropped because too many came.
    """

    def __init__(self) -> None:
        self._frames: deque[Kept] = deque(maxlen=MAX_KEPT)
        self.lost = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, audio: bytes, *, is_muted: bool = False) -> None:
        """Keep a frame."""
        self.lost += len(self._frames) == MAX_KEPT
        self._frames.append(Kept(audio, is_muted))

    def place_after(self, tail: Sequence[int]) -> int | None:
        """Return how many frames come after a tail.

        Args:
            tail: How the frames looked that another relay has sent last.

        Returns:
            The number; below 0: so many are still to come that the other has sent. None: they are
            not found.
        """
        cut = _cut(tail, [look_of(frame.audio) for frame in self._frames])
        return None if cut is None else len(self._frames) - cut

    def latest(self, count: int) -> list[Kept]:
        """Return the latest frames, so many of them if there are."""
        frames = list(self._frames)
        return frames[max(0, len(frames) - count) :]


def _cut(tail: Sequence[int], looks: Sequence[int]) -> int | None:
    """Return how many of the kept frames the other has sent, with those to come; None: unknown."""
    at: dict[int, list[int]] = {}
    for position, look in enumerate(looks):
        at.setdefault(look, []).append(position)
    shifts: set[int] = set()
    for number, look in enumerate(tail):
        if look in at:
            shifts.update(position - number for position in at[look])
    best: tuple[tuple[bool, int, int], int] | None = None
    for shift in shifts:
        first, last = max(0, -shift), min(len(tail), len(looks) - shift)
        differ = [at for at in range(first, last) if tail[at] != looks[at + shift]]
        alike = tail[differ[-1] + 1 if differ else first : last]
        if len(alike) < min(MIN_ALIKE, len(tail)):
            continue
        is_doubtful = bool(differ) and differ[-1] + shift >= MAX_ODD
        if is_doubtful and len(set(alike)) < MIN_DIFFERENT:
            continue
        cut = len(tail) + shift
        rank = is_doubtful, abs(cut - len(looks)), -len(alike)
        if best is None or rank < best[0]:
            best = rank, cut
    return best[1] if best is not None else None
