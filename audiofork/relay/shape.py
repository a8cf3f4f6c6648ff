"""From the frames of a leg to the frames that the server gets.

A leg delivers either mono frames (320 bytes) or pairs (640 bytes: in and out interleaved). All
samples are int16 little-endian at 8000 Hz; audioop works in the machine's byte order, which is
little-endian on everything that Debian's Asterisk runs on.
"""

from __future__ import annotations

import audioop
from collections.abc import Callable

from audiofork.model import Direction
from audiofork.relay.audiosocket import FRAME_BYTES

PAIR_BYTES = 2 * FRAME_BYTES
_SAMPLE_BYTES = 2

Shape = Callable[[bytes], bytes]


def right(pairs: bytes) -> bytes:
    """Return the out half of a frame of pairs: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, _SAMPLE_BYTES, 0, 1)


def mix(pairs: bytes) -> bytes:
    """Return the saturated sum of in and out: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, _SAMPLE_BYTES, 1, 1)


def unchanged(frame: bytes) -> bytes:
    """Return the frame itself."""
    return frame


def shape_for(direction: Direction, frame_bytes: int) -> Shape | None:
    """Return what turns a leg's frames into those of a direction.

    Args:
        direction: What the server is to get.
        frame_bytes: Size of the leg's first frame.

    Returns:
        The function, or None if this leg cannot serve the direction: an Asterisk whose ChanSpy
        has no option D sends a mix in place of pairs.
    """
    return _SHAPES.get((direction, frame_bytes))


_SHAPES: dict[tuple[Direction, int], Shape] = {
    (Direction.IN, FRAME_BYTES): unchanged,
    (Direction.OUT, PAIR_BYTES): right,
    (Direction.BOTH, PAIR_BYTES): mix,
    (Direction.BOTH, FRAME_BYTES): unchanged,
    (Direction.STEREO, PAIR_BYTES): unchanged,
}
