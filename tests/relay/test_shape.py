"""Which samples of a leg go to the server."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.model import Direction
from audiofork.relay.shape import mix, right, shape_for, unchanged

SAMPLES = 160  # of one channel in 20 ms
LOUDEST, LOWEST = 32767, -32768


def slin(*samples: int) -> bytes:
    """Return samples as they are on the wire: int16, little-endian."""
    return struct.pack(f"<{len(samples)}h", *samples)


def pairs(ins: list[int], outs: list[int]) -> bytes:
    """Return the frame of a leg that keeps in and out apart."""
    return slin(*(sample for pair in zip(ins, outs, strict=True) for sample in pair))


IN = [100 * n for n in range(SAMPLES)]
OUT = [-7 * n - 1 for n in range(SAMPLES)]
PAIRS = pairs(IN, OUT)


def shaped(direction: Direction, frame: bytes) -> bytes:
    shape = shape_for(direction, len(frame))
    assert shape is not None
    return shape(frame)


def test_in_passes_mono_on() -> None:
    assert shaped(Direction.IN, slin(*IN)) == slin(*IN)


def test_out_takes_the_right_samples() -> None:
    assert shaped(Direction.OUT, PAIRS) == slin(*OUT)


def test_both_adds_in_and_out() -> None:
    assert shaped(Direction.BOTH, PAIRS) == slin(*(i + o for i, o in zip(IN, OUT, strict=True)))


def test_both_of_a_leg_that_mixes_passes_mono_on() -> None:
    assert shaped(Direction.BOTH, slin(*IN)) == slin(*IN)


def test_stereo_passes_pairs_on() -> None:
    assert shaped(Direction.STEREO, PAIRS) == PAIRS


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        (LOUDEST, 1, LOUDEST),
        (LOUDEST, LOUDEST, LOUDEST),
        (20_000, 20_000, LOUDEST),
        (LOWEST, -1, LOWEST),
        (LOWEST, LOWEST, LOWEST),
        (LOUDEST, LOWEST, -1),
        (LOUDEST, 0, LOUDEST),
        (LOWEST, 0, LOWEST),
        (16_384, 16_383, LOUDEST),
        (-16_384, -16_384, LOWEST),
    ],
)
def test_both_saturates(first: int, second: int, total: int) -> None:
    for ins, outs in (first, second), (second, first):
        frame = pairs([ins] * SAMPLES, [outs] * SAMPLES)
        assert shaped(Direction.BOTH, frame) == slin(*[total] * SAMPLES)


samples = st.lists(st.integers(LOWEST, LOUDEST), min_size=SAMPLES, max_size=SAMPLES)


@given(samples)
def test_both_with_one_side_silent_is_the_other_side(talk: list[int]) -> None:
    silence = [0] * SAMPLES
    assert mix(pairs(talk, silence)) == mix(pairs(silence, talk)) == slin(*talk)


@given(samples, samples)
def test_right_and_mix_keep_every_sample(ins: list[int], outs: list[int]) -> None:
    total = [max(LOWEST, min(LOUDEST, i + o)) for i, o in zip(ins, outs, strict=True)]
    assert right(pairs(ins, outs)) == slin(*outs)
    assert mix(pairs(ins, outs)) == slin(*total)
    assert unchanged(pairs(ins, outs)) == pairs(ins, outs)


@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [
        (Direction.IN, 640),
        (Direction.OUT, 320),
        (Direction.STEREO, 320),
        *((direction, size) for direction in Direction for size in (0, 2, 160, 318, 322, 960)),
    ],
)
def test_frames_that_cannot_serve_have_no_shape(direction: Direction, frame_bytes: int) -> None:
    assert shape_for(direction, frame_bytes) is None
