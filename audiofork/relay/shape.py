"""Functions that turn the frames of a fork's legs into the frames that the server gets.

A leg delivers mono frames at any rate, or pairs (in and out interleaved) at 8000 Hz. All samples
are int16 little-endian. audioop uses the machine's byte order, which is little-endian on all
machines that Debian's Asterisk runs on.
"""

from __future__ import annotations

import audioop
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from audiofork.audiosocket import SAMPLE_BYTES
from audiofork.link.messages import Direction, LegPart

Shape = Callable[[bytes], bytes]
Join = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Sides:
    """Volume and mute of in and out; a step of gain (-4 to 4) doubles or halves the volume."""

    gain_in: int = 0
    gain_out: int = 0
    mute_in: bool = False
    mute_out: bool = False


UNTOUCHED = Sides()
_to_mono: Final = audioop.tomono


def left(pairs: bytes) -> bytes:
    """Return the in half of a frame of pairs: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, SAMPLE_BYTES, 1, 0)


def right(pairs: bytes) -> bytes:
    """Return the out half of a frame of pairs: 640 bytes in, 320 out."""
    return audioop.tomono(pairs, SAMPLE_BYTES, 0, 1)


def mix(pairs: bytes) -> bytes:
    """Return the saturated sum of in and out: 640 bytes in, 320 out."""
    return _to_mono(pairs, SAMPLE_BYTES, 1.0, 1.0)


def unchanged(frame: bytes) -> bytes:
    """Return the frame itself."""
    return frame


def silence(frame: bytes) -> bytes:
    """Return silence of the same length."""
    return bytes(len(frame))


def louder(factor: int) -> Shape:
    """Return a shape that multiplies samples, saturating."""
    return lambda frame: audioop.mul(frame, SAMPLE_BYTES, factor)


def quieter(divisor: int) -> Shape:
    """Return a shape that divides samples, rounding towards zero as Asterisk does.

    audioop rounds down, so negative samples are negated, divided and negated again. Adding a
    constant saturates, and so separates them from the positive samples:
    min(x + 32767, 32767) - 32767 = min(x, 0).
    """

    def divide(frame: bytes) -> bytes:
        full, empty = _constants(len(frame))
        negative = audioop.bias(audioop.add(frame, full, SAMPLE_BYTES), SAMPLE_BYTES, -32767)
        positive = audioop.bias(audioop.add(frame, empty, SAMPLE_BYTES), SAMPLE_BYTES, 32768)
        quotient = audioop.mul(negative, SAMPLE_BYTES, -1 / divisor)
        return audioop.add(
            audioop.mul(positive, SAMPLE_BYTES, 1 / divisor),
            audioop.mul(quotient, SAMPLE_BYTES, -1),
            SAMPLE_BYTES,
        )

    return divide


@functools.cache
def _constants(frame_bytes: int) -> tuple[bytes, bytes]:
    """Return a frame of samples of 32767, and one of samples of -32768."""
    samples = frame_bytes // SAMPLE_BYTES
    return b"\xff\x7f" * samples, b"\x00\x80" * samples


def _side(gain: int, mute: bool) -> Shape:
    """Return the shape for the mono frames of one side."""
    if mute:
        return silence
    if gain > 0:
        return louder(2**gain)
    if gain < 0:
        return quieter(2**-gain)
    return unchanged


def _add(side_in: bytes, side_out: bytes) -> bytes:
    return audioop.add(side_in, side_out, SAMPLE_BYTES)


def _interleave(side_in: bytes, side_out: bytes) -> bytes:
    return audioop.add(
        audioop.tostereo(side_in, SAMPLE_BYTES, 1, 0),
        audioop.tostereo(side_out, SAMPLE_BYTES, 0, 1),
        SAMPLE_BYTES,
    )


def join_of(direction: Direction, sides: Sides = UNTOUCHED) -> Join:
    """Return the function that joins a frame of in and an equally long one of out to one frame.

    Args:
        direction: both or stereo.
        sides: Volume and mute.
    """
    join = _interleave if direction is Direction.STEREO else _add
    if sides == UNTOUCHED:
        return join
    do_in = _side(sides.gain_in, sides.mute_in)
    do_out = _side(sides.gain_out, sides.mute_out)
    return lambda side_in, side_out: join(do_in(side_in), do_out(side_out))


def shape_of(part: LegPart, direction: Direction, sides: Sides = UNTOUCHED) -> Shape:
    """Return the shape that turns the frames of a fork's only leg into those for the server.

    Args:
        part: What the leg brings.
        direction: What the server gets; it matters only for pairs.
        sides: Volume and mute. For a mix they must be the same for both sides. If only one side
            of a mix is muted, all is silent: a muted party must never be heard.
    """
    if part is LegPart.PAIRS:
        return _of_pairs(direction, sides)
    if part is LegPart.OUT:
        return _side(sides.gain_out, sides.mute_out)
    mute = sides.mute_in or (part is LegPart.MIX and sides.mute_out)
    return _side(sides.gain_in, mute)


def _of_pairs(direction: Direction, sides: Sides) -> Shape:
    if direction is Direction.IN:
        treat_in = _side(sides.gain_in, sides.mute_in)
        return lambda pairs: treat_in(left(pairs))
    if direction is Direction.OUT:
        treat_out = _side(sides.gain_out, sides.mute_out)
        return right if treat_out is unchanged else lambda pairs: treat_out(right(pairs))
    if sides == UNTOUCHED:
        return mix if direction is Direction.BOTH else unchanged
    join = join_of(direction, sides)
    return lambda pairs: join(left(pairs), right(pairs))
