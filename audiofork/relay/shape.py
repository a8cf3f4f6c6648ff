"""From the frames of a leg to the frames that the server gets.

A leg delivers either mono frames (320 bytes) or pairs (640 bytes: in and out interleaved). All
samples are int16 little-endian at 8000 Hz; audioop works in the machine's byte order, which is
little-endian on everything that Debian's Asterisk runs on.
"""

from __future__ import annotations

import audioop
from collections.abc import Callable
from dataclasses import dataclass

from audiofork.model import Direction
from audiofork.relay.audiosocket import FRAME_BYTES

PAIR_BYTES = 2 * FRAME_BYTES
SILENCE = bytes(FRAME_BYTES)
_SAMPLE_BYTES = 2

Shape = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Sides:
    """What is done to in and out: steps of volume (-4 to 4, each a factor of two), or silence."""

    gain_in: int = 0
    gain_out: int = 0
    mute_in: bool = False
    mute_out: bool = False


UNTOUCHED = Sides()


def left(pairs: bytes) -> bytes:
    """Return the in half of a frame of pairs: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, _SAMPLE_BYTES, 1, 0)


def right(pairs: bytes) -> bytes:
    """Return the out half of a frame of pairs: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, _SAMPLE_BYTES, 0, 1)


def mix(pairs: bytes) -> bytes:
    """Return the saturated sum of in and out: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, _SAMPLE_BYTES, 1, 1)


def unchanged(frame: bytes) -> bytes:
    """Return the frame itself."""
    return frame


def silence(frame: bytes) -> bytes:
    """Return as much silence."""
    return bytes(len(frame))


def louder(factor: int) -> Shape:
    """Return what multiplies samples, saturating."""
    return lambda frame: audioop.mul(frame, _SAMPLE_BYTES, factor)


def quieter(divisor: int) -> Shape:
    """Return what divides samples, towards zero as Asterisk does.

    audioop rounds down, so the negative samples are divided as positive ones. Adding a constant
    saturates, which parts the two: min(x + 32767, 32767) - 32767 = min(x, 0).
    """
    full, empty = b"\xff\x7f" * (FRAME_BYTES // 2), b"\x00\x80" * (FRAME_BYTES // 2)

    def divide(frame: bytes) -> bytes:
        negative = audioop.bias(audioop.add(frame, full, _SAMPLE_BYTES), _SAMPLE_BYTES, -32767)
        positive = audioop.bias(audioop.add(frame, empty, _SAMPLE_BYTES), _SAMPLE_BYTES, 32768)
        quotient = audioop.mul(negative, _SAMPLE_BYTES, -1 / divisor)
        return audioop.add(
            audioop.mul(positive, _SAMPLE_BYTES, 1 / divisor),
            audioop.mul(quotient, _SAMPLE_BYTES, -1),
            _SAMPLE_BYTES,
        )

    return divide


def _side(gain: int, mute: bool) -> Shape:
    """Return what is done to the 320 bytes of one side."""
    if mute:
        return silence
    if gain > 0:
        return louder(2**gain)
    if gain < 0:
        return quieter(2**-gain)
    return unchanged


def _joined(join: Callable[[bytes, bytes], bytes], sides: Sides) -> Shape:
    """Return what takes pairs apart, treats each side, and joins them again."""
    do_in = _side(sides.gain_in, sides.mute_in)
    do_out = _side(sides.gain_out, sides.mute_out)
    return lambda pairs: join(do_in(left(pairs)), do_out(right(pairs)))


def _add(side_in: bytes, side_out: bytes) -> bytes:
    return audioop.add(side_in, side_out, _SAMPLE_BYTES)


def _interleave(side_in: bytes, side_out: bytes) -> bytes:
    return audioop.add(
        audioop.tostereo(side_in, _SAMPLE_BYTES, 1, 0),
        audioop.tostereo(side_out, _SAMPLE_BYTES, 0, 1),
        _SAMPLE_BYTES,
    )


def shape_for(direction: Direction, frame_bytes: int, sides: Sides = UNTOUCHED) -> Shape | None:
    """Return what turns a leg's frames into those of a direction.

    Args:
        direction: What the server is to get.
        frame_bytes: Size of the leg's first frame.
        sides: Volume and mute.

    Returns:
        The function, or None if this leg cannot serve the direction: an Asterisk whose ChanSpy
        has no option D sends a mix in place of pairs.
    """
    if frame_bytes == FRAME_BYTES:
        return _of_mono(direction, sides)
    if frame_bytes == PAIR_BYTES:
        return _of_pairs(direction, sides)
    return None


def _of_mono(direction: Direction, sides: Sides) -> Shape | None:
    alike = sides.gain_in == sides.gain_out and sides.mute_in == sides.mute_out
    if direction is Direction.IN or (direction is Direction.BOTH and alike):
        return _side(sides.gain_in, sides.mute_in)
    return None


def _of_pairs(direction: Direction, sides: Sides) -> Shape | None:
    if direction is Direction.OUT:
        treat = _side(sides.gain_out, sides.mute_out)
        return right if treat is unchanged else lambda pairs: treat(right(pairs))
    if direction is Direction.BOTH:
        return mix if sides == UNTOUCHED else _joined(_add, sides)
    if direction is Direction.STEREO:
        return unchanged if sides == UNTOUCHED else _joined(_interleave, sides)
    return None
