"""Which samples of a leg go to the server."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.model import Direction, LegPart
from audiofork.relay.shape import (
    UNTOUCHED,
    Sides,
    join_of,
    mix,
    right,
    shape_of_part,
    shape_of_whole,
    unchanged,
)

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


def shaped(direction: Direction, frame: bytes, sides: Sides = UNTOUCHED) -> bytes:
    shape = shape_of_whole(direction, len(frame), sides)
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
    assert shape_of_whole(direction, frame_bytes) is None


# --- Volume and mute -----------------------------------------------------------------------------

GAINS = [-4, -3, -2, -1, 0, 1, 2, 3, 4]
# Where rounding and saturating show.
EDGES = [LOWEST, LOWEST + 1, -16_385, -16_384, -4097, -17, -16, -15, -3, -2, -1]
TALK_IN = [*EDGES, 0, *(-1 - sample for sample in EDGES), *range(-137_00, 0, 100)]
TALK_OUT = [*range(0, 137_00, 100), *reversed(EDGES), 0, *(-1 - sample for sample in EDGES)]


def adjusted(sample: int, gain: int, mute: bool = False) -> int:
    """Return what ast_frame_adjust_volume() makes of a sample: its `/` cuts, as C's does."""
    if mute:
        return 0
    if gain > 0:
        return max(LOWEST, min(LOUDEST, sample * 2**gain))
    quotient = abs(sample) // 2**-gain
    return quotient if sample > 0 else -quotient


@pytest.mark.parametrize("gain", GAINS)
def test_gain_of_every_sample_is_that_of_asterisk(gain: int) -> None:
    shape = shape_of_whole(Direction.IN, 2 * SAMPLES, Sides(gain_in=gain))
    assert shape is not None
    values = range(LOWEST, LOUDEST + 1)
    for start in range(0, len(values), SAMPLES):
        talk = [*values[start : start + SAMPLES], *[0] * SAMPLES][:SAMPLES]
        assert shape(slin(*talk)) == slin(*(adjusted(sample, gain) for sample in talk))


def expected(direction: Direction, sides: Sides) -> bytes:
    """Return what a direction makes of TALK_IN and TALK_OUT."""
    ins = [adjusted(sample, sides.gain_in, sides.mute_in) for sample in TALK_IN]
    outs = [adjusted(sample, sides.gain_out, sides.mute_out) for sample in TALK_OUT]
    if direction is Direction.STEREO:
        return pairs(ins, outs)
    if direction is Direction.BOTH:
        return slin(*(max(LOWEST, min(LOUDEST, i + o)) for i, o in zip(ins, outs, strict=True)))
    return slin(*(ins if direction is Direction.IN else outs))


MUTES = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize("gains", [(0, 0), (1, 0), (0, -1), (-4, 4), (3, 3), (2, -3)])
@pytest.mark.parametrize("mutes", MUTES)
@pytest.mark.parametrize("direction", [Direction.OUT, Direction.BOTH, Direction.STEREO])
def test_sides_of_pairs_are_treated_each_by_itself(
    direction: Direction, mutes: tuple[bool, bool], gains: tuple[int, int]
) -> None:
    sides = Sides(*gains, *mutes)
    frame = pairs(TALK_IN, TALK_OUT)
    assert shaped(direction, frame, sides) == expected(direction, sides)


@pytest.mark.parametrize("gain_out", [0, 3])
@pytest.mark.parametrize("gain_in", [-2, 0, 2])
@pytest.mark.parametrize("mutes", MUTES)
def test_in_is_treated_as_in_whatever_is_wished_for_out(
    mutes: tuple[bool, bool], gain_in: int, gain_out: int
) -> None:
    sides = Sides(gain_in, gain_out, *mutes)
    assert shaped(Direction.IN, slin(*TALK_IN), sides) == expected(Direction.IN, sides)


@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.parametrize("gain", [-2, 0, 2])
def test_mix_of_a_leg_takes_what_is_wished_for_both_sides(gain: int, mute: bool) -> None:
    sides = Sides(gain, gain, mute, mute)
    assert shaped(Direction.BOTH, slin(*TALK_IN), sides) == expected(Direction.IN, sides)


@pytest.mark.parametrize(
    "sides",
    [Sides(gain_in=1), Sides(gain_out=-1), Sides(1, 2), Sides(mute_in=True), Sides(mute_out=True)],
)
def test_mix_of_a_leg_cannot_serve_wishes_for_one_side(sides: Sides) -> None:
    assert shape_of_whole(Direction.BOTH, 320, sides) is None


@pytest.mark.parametrize("sides", [Sides(gain_in=2), Sides(mute_in=True), Sides(1, 1, True, True)])
@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [(Direction.IN, 640), (Direction.OUT, 320), (Direction.STEREO, 320), (Direction.BOTH, 322)],
)
def test_wishes_do_not_make_a_frame_fit(
    direction: Direction, frame_bytes: int, sides: Sides
) -> None:
    assert shape_of_whole(direction, frame_bytes, sides) is None


# --- Legs of one part ----------------------------------------------------------------------------

RATES = [8000, 16_000, 44_100, 48_000]


def frame_of(talk: list[int], rate: int) -> list[int]:
    """Return 20 ms of samples at a rate."""
    count = rate // 50
    return (talk * (count // len(talk) + 1))[:count]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("gain_in", "gain_out"), [(0, 0), (2, -2), (-3, 4)])
@pytest.mark.parametrize("mutes", MUTES)
@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
def test_part_takes_what_is_wished_for_it_at_any_rate(
    part: LegPart, mutes: tuple[bool, bool], gain_in: int, gain_out: int, rate: int
) -> None:
    sides = Sides(gain_in, gain_out, *mutes)
    talk = frame_of(TALK_IN, rate)
    if part is LegPart.IN:
        treated = [adjusted(sample, gain_in, mutes[0]) for sample in talk]
    else:
        treated = [adjusted(sample, gain_out, mutes[1]) for sample in talk]
    assert shape_of_part(part, sides)(slin(*talk)) == slin(*treated)


@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
def test_part_of_which_nothing_is_wished_is_passed_on_as_it_is(part: LegPart) -> None:
    assert shape_of_part(part) is unchanged


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gains", [(0, 0), (1, 0), (0, -1), (-4, 4)])
@pytest.mark.parametrize("mutes", MUTES)
@pytest.mark.parametrize("direction", [Direction.BOTH, Direction.STEREO])
def test_two_parts_are_treated_each_by_itself_and_joined_at_any_rate(
    direction: Direction, mutes: tuple[bool, bool], gains: tuple[int, int], rate: int
) -> None:
    talk_in, talk_out = frame_of(TALK_IN, rate), frame_of(TALK_OUT, rate)
    ins = [adjusted(sample, gains[0], mutes[0]) for sample in talk_in]
    outs = [adjusted(sample, gains[1], mutes[1]) for sample in talk_out]
    if direction is Direction.STEREO:
        frame = pairs(ins, outs)
    else:
        frame = slin(*(max(LOWEST, min(LOUDEST, i + o)) for i, o in zip(ins, outs, strict=True)))
    join = join_of(direction, Sides(*gains, *mutes))
    assert join(slin(*talk_in), slin(*talk_out)) == frame


def test_joined_parts_are_what_the_same_audio_in_pairs_would_be() -> None:
    for direction in (Direction.BOTH, Direction.STEREO):
        assert join_of(direction)(slin(*IN), slin(*OUT)) == shaped(direction, PAIRS)
