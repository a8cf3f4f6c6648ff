"""A fork that moves: what the first relay sends last, and what the second begins with."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from audiofork.link.messages import Direction, FrameCame, HandedOver, LegPart, SetMute, TakenOver
from audiofork.relay.shape import join_of, left, right
from tests.relay.pipeline_stage import BOTH_LEGS, FORK_ID, IN, OUT, PAIRS
from tests.relay.session_stage import Begin, SessionStage

STEREO, BOTH = Direction.STEREO, Direction.BOTH
WORDS = random.Random(7)


def side(size: int = 320) -> list[bytes]:
    """Return frames of which no two are alike, and that can be added without saturation."""
    return [
        struct.pack(f"<{size // 2}h", *(WORDS.randint(-9000, 9000) for _ in range(size // 2)))
        for _ in range(60)
    ]


def flow(stage: SessionStage, sides: dict[LegPart, list[bytes]], start: int, stop: int) -> None:
    """Let the legs bring frames of their sides by turns."""
    for number in range(start, stop):
        for part, frames in sides.items():
            if number < len(frames):
                stage.audio(frames[number], part)


async def pair_of(begin: Begin, direction: Direction, **wishes: Any) -> tuple[SessionStage, ...]:
    """Return the first relay's session, which flows and notes its frames, and the second's."""
    first, second = begin(direction, **wishes), begin(direction, **wishes, holds=True)
    for stage in (first, second):
        stage.attach()
        stage.sink.open()
    first.session.note_frames()
    return first, second


def move(first: SessionStage, second: SessionStage, latest: int = 0) -> bool:
    """Let the second go on after the first; return whether it knows the place.

    Args:
        first, second: These.
        latest: How many frames have come since the first stopped, as the controller takes it.
    """
    first.session.hand_over()
    (handed,) = [one for one in first.reports if isinstance(one, HandedOver)]
    second.session.take_over((handed.tail, handed.other_tail), latest)
    (taken,) = [one for one in second.reports if isinstance(one, TakenOver)]
    return taken.is_exact


@pytest.mark.parametrize(
    ("direction", "legs"),
    [
        (Direction.IN, (IN,)),
        (STEREO, (PAIRS,)),
        (BOTH, (PAIRS,)),
        (STEREO, BOTH_LEGS),
        (BOTH, BOTH_LEGS),
    ],
)
@pytest.mark.parametrize("ahead", [-2, 0, 2])
async def test_no_frame_is_lost_or_sent_twice(
    begin: Begin, direction: Direction, legs: tuple[LegPart, ...], ahead: int
) -> None:
    sides = {part: side(640 if part is PAIRS else 320) for part in legs}
    alone = begin(direction, legs=legs)
    alone.attach()
    alone.sink.open()
    flow(alone, sides, 0, 60)
    first, second = await pair_of(begin, direction, legs=legs)
    flow(first, sides, 0, 30)
    flow(second, sides, 10, 30 + ahead)
    assert second.sink.frames == []
    assert move(first, second)
    flow(second, sides, 30 + ahead, 60)
    assert first.sink.frames + second.sink.frames == alone.sink.frames


@pytest.mark.parametrize("late", BOTH_LEGS)
@pytest.mark.parametrize("kept", [20, 22])
async def test_two_legs_that_are_paired_otherwise_at_the_second_go_on_as_at_the_first(
    begin: Begin, late: LegPart, kept: int
) -> None:
    sides = {IN: side(), OUT: side()}
    alone = begin(STEREO, legs=BOTH_LEGS)
    alone.attach()
    alone.sink.open()
    flow(alone, sides, 0, 60)
    first, second = await pair_of(begin, STEREO, legs=BOTH_LEGS)
    flow(first, sides, 0, 30)
    other = {part: frames[11:] if part is late else frames[10:] for part, frames in sides.items()}
    flow(second, other, 0, kept)
    assert move(first, second)
    flow(second, other, kept, 60)
    assert first.sink.frames + second.sink.frames == alone.sink.frames


@pytest.mark.parametrize("late", BOTH_LEGS)
@pytest.mark.parametrize("kept", [19, 20, 22])
@pytest.mark.parametrize("direction", [STEREO, BOTH, Direction.OUT])
async def test_leg_of_pairs_that_asterisk_pairs_otherwise_for_the_second_loses_no_side(
    begin: Begin, direction: Direction, late: LegPart, kept: int
) -> None:
    ins, outs = side(), side()
    mixed = {PAIRS: [join_of(STEREO)(*pair) for pair in zip(ins, outs, strict=True)]}
    first, second = await pair_of(begin, direction, legs=(PAIRS,))
    flow(first, mixed, 0, 30)
    ins, outs = (ins[9:-1], outs[10:]) if late is OUT else (ins[10:], outs[9:-1])
    other = {PAIRS: [join_of(STEREO)(*pair) for pair in zip(ins, outs, strict=True)]}
    flow(second, other, 0, kept)
    assert move(first, second)
    flow(second, other, kept, 50)
    got = b"".join(first.sink.frames + second.sink.frames)
    size = len(first.sink.frames[0])
    if direction is BOTH:  # the frame at the joint is that of one side alone
        assert len(got) // size == 60
        return
    halves = [right(got), left(got)] if direction is STEREO else [got]
    for half, every in zip(halves, (outs, ins), strict=False):
        heard = [half[at : at + 320] for at in range(0, len(half), 320)]
        heard = [one for one in heard if one != bytes(320)]
        assert len(set(heard)) == len(heard)
        assert set(every) <= set(heard)


async def test_frame_that_waits_for_its_pair_is_left_to_the_second(begin: Begin) -> None:
    sides = {IN: side(), OUT: side()}
    first, second = await pair_of(begin, STEREO, legs=BOTH_LEGS)
    for stage in (first, second):
        flow(stage, sides, 0, 30)
        stage.audio(sides[IN][30], IN)
    assert move(first, second)
    assert (len(first.sink.frames), len(second.sink.frames)) == (30, 0)
    second.audio(sides[OUT][30], OUT)
    assert len(second.sink.frames) == 1


async def test_mute_that_comes_while_both_have_the_fork_does_not_hide_the_place(
    begin: Begin,
) -> None:
    sides = {IN: side()}
    first, second = await pair_of(begin, Direction.IN)
    flow(first, sides, 0, 30)
    flow(second, sides, 10, 20)
    second.session.set_mute(SetMute(FORK_ID, mute_in=True))
    flow(second, sides, 20, 31)
    assert move(first, second)
    assert second.sink.frames == [bytes(320)]


async def test_frames_that_come_while_the_gate_is_shut_are_of_neither(begin: Begin) -> None:
    sides = {IN: side(), OUT: side()}
    first, second = await pair_of(begin, STEREO, legs=BOTH_LEGS)
    for stage in (first, second):
        flow(stage, sides, 0, 10)
        stage.session.set_gate(False)
        flow(stage, sides, 10, 20)
        stage.session.set_gate(True)
        flow(stage, sides, 20, 30)
    assert move(first, second)
    assert (len(first.sink.frames), second.sink.frames) == (20, [])


async def test_silence_in_place_of_a_leg_that_was_away_does_not_hide_the_place(
    begin: Begin,
) -> None:
    sides = {IN: side(), OUT: side()}
    first, second = await pair_of(begin, STEREO, legs=BOTH_LEGS)
    for stage in (first, second):
        flow(stage, sides, 0, 10)
        stage.close_leg(OUT)
        flow(stage, {IN: sides[IN]}, 10, 13)
        stage.attach(OUT)
        flow(stage, {IN: sides[IN][3:], OUT: sides[OUT]}, 10, 20)
    assert move(first, second)
    assert (len(first.sink.frames), second.sink.frames) == (23, [])


async def test_second_that_finds_no_place_goes_on_with_what_has_come_since(begin: Begin) -> None:
    first, second = await pair_of(begin, STEREO, legs=BOTH_LEGS)
    flow(first, {IN: side(), OUT: side()}, 0, 30)
    sides = {IN: side(), OUT: side()}
    flow(second, sides, 0, 20)
    assert not move(first, second, latest=3)
    flow(second, sides, 20, 25)
    joined = [join_of(STEREO)(*pair) for pair in zip(sides[IN], sides[OUT], strict=True)]
    assert second.sink.frames == joined[17:25]


@pytest.mark.parametrize("odd", [IN, OUT])
async def test_side_of_which_the_place_is_not_found_goes_on_beside_the_other(
    begin: Begin, odd: LegPart
) -> None:
    ins, outs = side(), side()
    first, second = await pair_of(begin, STEREO, legs=(PAIRS,))
    flow(first, {PAIRS: [join_of(STEREO)(*pair) for pair in zip(ins, outs, strict=True)]}, 0, 30)
    other = side()
    ins, outs = (other, outs) if odd is IN else (ins, other)
    pairs = [join_of(STEREO)(*pair) for pair in zip(ins, outs, strict=True)]
    flow(second, {PAIRS: pairs[10:]}, 0, 24)
    assert not move(first, second, latest=0)
    flow(second, {PAIRS: pairs[10:]}, 24, 50)
    assert first.sink.frames[-1] != second.sink.frames[0]
    assert second.sink.frames == pairs[30:]


@pytest.mark.parametrize("legs", [(PAIRS,), BOTH_LEGS])
async def test_what_came_while_a_side_was_muted_stays_silent_when_it_is_not_any_more(
    begin: Begin, legs: tuple[LegPart, ...]
) -> None:
    ins, outs = side(), side()
    pairs = [join_of(STEREO)(*pair) for pair in zip(ins, outs, strict=True)]
    sides = {PAIRS: pairs} if legs == (PAIRS,) else {IN: ins, OUT: outs}
    first, second = await pair_of(begin, STEREO, legs=legs)
    for stage in (first, second):
        stage.session.set_mute(SetMute(FORK_ID, mute_in=True))
    flow(first, sides, 0, 20)
    flow(second, sides, 10, 30)
    second.session.set_mute(SetMute(FORK_ID, mute_in=False))
    flow(second, sides, 30, 32)
    assert move(first, second)
    flow(second, sides, 32, 40)
    assert [left(frame) for frame in second.sink.frames] == [bytes(320)] * 10 + ins[30:40]
    assert [right(frame) for frame in second.sink.frames] == outs[20:40]


async def test_pause_of_the_new_connection_costs_nothing_that_comes_after_it(begin: Begin) -> None:
    ins = side()
    first, second = await pair_of(begin, Direction.IN, legs=(IN,))
    flow(first, {IN: ins}, 0, 20)
    flow(second, {IN: ins}, 10, 20)
    second.session._pipeline.set_pause(True)  # as by its server
    flow(first, {IN: ins}, 20, 35)
    flow(second, {IN: ins}, 20, 35)
    move(first, second)
    second.session._pipeline.set_pause(False)
    flow(second, {IN: ins}, 35, 60)
    assert second.sink.frames == ins[35:]


async def test_all_frames_are_sent_that_have_come_where_none_can_have_come_to_both(
    begin: Begin,
) -> None:
    second = begin(Direction.IN, legs=(IN,), holds=True)
    second.attach()
    second.sink.open()
    frames = side()
    flow(second, {IN: frames}, 0, 20)
    second.session.take_over(((1, 2, 3), ()), 2, is_whole=True)
    flow(second, {IN: frames}, 20, 60)
    assert second.sink.frames == frames
    assert second.reports[-1] == TakenOver(FORK_ID, is_exact=True)


async def test_next_frame_is_told_once(begin: Begin) -> None:
    first, _ = await pair_of(begin, Direction.IN, legs=(IN,))
    first.session.tell_frame()
    assert FrameCame(FORK_ID) not in first.reports
    flow(first, {IN: side()}, 0, 3)
    assert first.reports.count(FrameCame(FORK_ID)) == 1
