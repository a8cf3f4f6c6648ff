"""Which samples of a leg go to the server."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.link.messages import Direction, LegPart
from audiofork.relay.shape import (
    UNTOUCHED,
    Sides,
    join_of,
    mix,
    right,
    shape_of,
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
    """Return what becomes of a frame of pairs."""
    return shape_of(LegPart.PAIRS, direction, sides)(frame)


def test_in_takes_the_left_samples() -> None:
    assert shaped(Direction.IN, PAIRS) == slin(*IN)


def test_out_takes_the_right_samples() -> None:
    assert shaped(Direction.OUT, PAIRS) == slin(*OUT)


def test_both_adds_in_and_out() -> None:
    assert shaped(Direction.BOTH, PAIRS) == slin(*(i + o for i, o in zip(IN, OUT, strict=True)))


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


@pytest.mark.slow
@given(samples)
def test_both_with_one_side_silent_is_the_other_side(talk: list[int]) -> None:
    silence = [0] * SAMPLES
    assert mix(pairs(talk, silence)) == mix(pairs(silence, talk)) == slin(*talk)


@pytest.mark.slow
@given(samples, samples)
def test_right_and_mix_keep_every_sample(ins: list[int], outs: list[int]) -> None:
    total = [max(LOWEST, min(LOUDEST, i + o)) for i, o in zip(ins, outs, strict=True)]
    assert right(pairs(ins, outs)) == slin(*outs)
    assert mix(pairs(ins, outs)) == slin(*total)
    assert unchanged(pairs(ins, outs)) == pairs(ins, outs)


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
        return max(LOWEST, min(LOUDEST, sample * (1 << gain)))
    quotient = abs(sample) // (1 << -gain)
    return quotient if sample > 0 else -quotient


@pytest.mark.parametrize("gain", GAINS)
def test_gain_of_every_sample_is_that_of_asterisk(gain: int) -> None:
    shape = shape_of(LegPart.IN, Direction.IN, Sides(gain_in=gain))
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
@pytest.mark.parametrize("direction", Direction)
def test_sides_of_pairs_are_treated_each_by_itself(
    direction: Direction, gains: tuple[int, int]
) -> None:
    frame = pairs(TALK_IN, TALK_OUT)
    for mutes in MUTES:
        sides = Sides(*gains, *mutes)
        assert shaped(direction, frame, sides) == expected(direction, sides), mutes


# --- Legs of one part, and of the mix ------------------------------------------------------------

RATES = [8000, 16_000, 44_100, 48_000]


def frame_of(talk: list[int], rate: int) -> list[int]:
    """Return 20 ms of samples at a rate."""
    count = rate // 50
    return (talk * (count // len(talk) + 1))[:count]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("gain_in", "gain_out"), [(0, 0), (2, -2), (-3, 4)])
@pytest.mark.parametrize("part", [LegPart.IN, LegPart.OUT])
def test_part_takes_what_is_wished_for_it_at_any_rate(
    part: LegPart, gain_in: int, gain_out: int, rate: int
) -> None:
    talk = frame_of(TALK_IN, rate)
    direction = Direction.IN if part is LegPart.IN else Direction.OUT
    for mutes in MUTES:
        gain, mute = (gain_in, mutes[0]) if part is LegPart.IN else (gain_out, mutes[1])
        treated = [adjusted(sample, gain, mute) for sample in talk]
        shape = shape_of(part, direction, Sides(gain_in, gain_out, *mutes))
        assert shape(slin(*talk)) == slin(*treated), mutes


@pytest.mark.parametrize(
    ("part", "direction"),
    [
        (LegPart.IN, Direction.IN),
        (LegPart.OUT, Direction.OUT),
        (LegPart.MIX, Direction.BOTH),
        (LegPart.PAIRS, Direction.STEREO),
    ],
)
def test_frames_of_which_nothing_is_wished_are_passed_on_as_they_are(
    part: LegPart, direction: Direction
) -> None:
    assert shape_of(part, direction) is unchanged


@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.parametrize("gain", [-2, 0, 2])
def test_mix_takes_what_is_wished_for_both_sides(gain: int, mute: bool) -> None:
    sides = Sides(gain, gain, mute, mute)
    treated = [adjusted(sample, gain, mute) for sample in TALK_IN]
    assert shape_of(LegPart.MIX, Direction.BOTH, sides)(slin(*TALK_IN)) == slin(*treated)


@pytest.mark.parametrize("gain", [-2, 0, 2])
@pytest.mark.parametrize("mutes", [(True, False), (False, True)])
def test_mix_of_which_one_side_is_muted_is_silent_whole(
    mutes: tuple[bool, bool], gain: int
) -> None:
    shape = shape_of(LegPart.MIX, Direction.BOTH, Sides(gain, gain, *mutes))
    assert shape(slin(*TALK_IN)) == bytes(2 * SAMPLES)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gains", [(0, 0), (1, 0), (0, -1), (-4, 4)])
def test_two_parts_are_treated_each_by_itself_and_joined_at_any_rate(
    gains: tuple[int, int], rate: int
) -> None:
    talk_in, talk_out = frame_of(TALK_IN, rate), frame_of(TALK_OUT, rate)
    for mutes in MUTES:
        ins = [adjusted(sample, gains[0], mutes[0]) for sample in talk_in]
        outs = [adjusted(sample, gains[1], mutes[1]) for sample in talk_out]
        mix = [max(LOWEST, min(LOUDEST, i + o)) for i, o in zip(ins, outs, strict=True)]
        frames = {Direction.STEREO: pairs(ins, outs), Direction.BOTH: slin(*mix)}
        for direction, frame in frames.items():
            join = join_of(direction, Sides(*gains, *mutes))
            assert join(slin(*talk_in), slin(*talk_out)) == frame, (mutes, direction)


def test_joined_parts_are_what_the_same_audio_in_pairs_would_be() -> None:
    for direction in (Direction.BOTH, Direction.STEREO):
        assert join_of(direction)(slin(*IN), slin(*OUT)) == shaped(direction, PAIRS)
