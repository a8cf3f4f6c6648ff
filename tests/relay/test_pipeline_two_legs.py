"""What a pipeline makes of the frames of two legs, with a list as the taker."""

from __future__ import annotations

import pytest

from audiofork.link.messages import Direction, LegPart
from tests.relay.peers import FakeLoop
from tests.relay.pipeline_stage import BOTH_LEGS, IN, OUT, PipelineStage, mono_of, pairs_of

JOINED = {Direction.BOTH: mono_of(12), Direction.STEREO: pairs_of(5, 7)}
in_joined = pytest.mark.parametrize("direction", JOINED)


def two_legs(direction: Direction = Direction.BOTH, **wishes: int) -> PipelineStage:
    """Return a stage whose two legs are there."""
    stage = PipelineStage(direction, legs=BOTH_LEGS, **wishes)
    stage.attach()
    return stage


def bring(stage: PipelineStage, sample_in: int = 5, sample_out: int = 7) -> bytes:
    """Bring a frame of each leg; return what comes of it."""
    stage.audio(mono_of(sample_in), IN)
    stage.audio(mono_of(sample_out), OUT)
    return stage.frames[-1]


# --- Pairs ---------------------------------------------------------------------------------------


@in_joined
def test_two_legs_are_joined_whichever_comes_first(direction: Direction) -> None:
    stage = two_legs(direction)
    stage.audio(mono_of(5), IN)
    assert stage.frames == []
    stage.audio(mono_of(7), OUT)
    assert stage.frames == [JOINED[direction]]
    stage.audio(mono_of(7), OUT)
    stage.audio(mono_of(5), IN)
    assert stage.frames == [JOINED[direction]] * 2
    assert (stage.pipeline.frames_in, stage.pipeline.frames_brought) == (2, 2)


@pytest.mark.parametrize(
    ("direction", "lost", "frame"),
    [
        (Direction.BOTH, IN, mono_of(7)),
        (Direction.BOTH, OUT, mono_of(5)),
        (Direction.STEREO, IN, pairs_of(0, 7)),
        (Direction.STEREO, OUT, pairs_of(5, 0)),
    ],
)
def test_leg_that_is_lost_leaves_silence_until_another_comes(
    direction: Direction, lost: LegPart, frame: bytes
) -> None:
    stage = two_legs(direction)
    other, sample = (OUT, 7) if lost is IN else (IN, 5)
    bring(stage)
    stage.audio(mono_of(sample), other)
    stage.detach(lost)
    assert stage.frames == [JOINED[direction], frame]  # what had waited for it too
    stage.audio(mono_of(sample), other)
    assert stage.frames == [JOINED[direction], frame, frame]
    stage.attach(lost)
    assert bring(stage) == JOINED[direction]
    assert stage.pipeline.frames_brought == 4


def test_both_legs_lost_leave_nothing_waiting() -> None:
    stage = two_legs()
    bring(stage)
    stage.audio(mono_of(5), IN)
    stage.detach(IN)
    assert stage.pipeline.frames_brought == 1
    stage.detach(OUT)
    assert stage.pipeline.frames_brought == 2
    assert stage.frames == [mono_of(12), mono_of(5)]
    assert stage.pipeline.legs == {}


@in_joined
def test_finish_hands_on_what_waits_for_the_other_leg_and_shuts_the_gate(
    direction: Direction,
) -> None:
    stage = two_legs(direction)
    bring(stage)
    stage.audio(mono_of(5), IN)
    stage.pipeline.finish()
    assert stage.frames[1:] == [mono_of(5) if direction is Direction.BOTH else pairs_of(5, 0)]
    for part in BOTH_LEGS:  # what was on its way
        stage.audio(mono_of(9), part)
    assert stage.pipeline.frames_in == 2


def test_finish_hands_on_what_was_not_read_yet_before_it_ends_to_wait() -> None:
    stage = two_legs()
    stage.audio(mono_of(5), IN)
    stage.legs[OUT].on_rest = lambda: stage.bring(mono_of(7), OUT)
    stage.pipeline.finish()
    assert stage.frames == [mono_of(12)]


def test_pairs_follow_another_taker() -> None:
    stage = two_legs()
    bring(stage)
    stage.audio(mono_of(5), IN)
    others: list[bytes] = []
    stage.pipeline.hand_to(others.append)
    stage.bring_usual(mono_of(7), OUT)
    assert (stage.frames, others) == ([mono_of(12)], [mono_of(12)])


def test_two_wide_legs_are_joined_and_silence_is_as_wide() -> None:
    both = PipelineStage(Direction.BOTH, legs=BOTH_LEGS, sample_rate=16_000)
    stereo = PipelineStage(Direction.STEREO, legs=BOTH_LEGS, sample_rate=16_000)
    for stage in (both, stereo):
        stage.attach(IN)
        stage.audio(mono_of(5, 16_000), IN)
        stage.attach(OUT)
        stage.audio(mono_of(5, 16_000), IN)
        stage.audio(mono_of(7, 16_000), OUT)
    assert both.frames == [mono_of(5, 16_000), mono_of(12, 16_000)]
    assert stereo.frames == [pairs_of(5, 0) * 2, pairs_of(5, 7) * 2]


@pytest.mark.parametrize("direction", [Direction.BOTH, Direction.STEREO])
def test_reads_of_two_legs_are_not_batched_and_time_is_kept_by_themselves(
    direction: Direction, clock: FakeLoop
) -> None:
    stage = PipelineStage(direction, legs=BOTH_LEGS, keep_time=True)
    stage.attach()
    stage.pipeline.batch_reads(100)
    assert [leg.batched for leg in stage.legs.values()] == [[], []]
    stage.pipeline.set_gate(True)
    clock.advance(1)
    assert (stage.frames, clock.armed) == ([], 0)


# --- Volume, mute and gate -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "mute_in", "mute_out", "frame"),
    [
        (Direction.BOTH, True, None, mono_of(14)),
        (Direction.BOTH, None, True, mono_of(10)),
        (Direction.BOTH, True, True, mono_of(0)),
        (Direction.STEREO, True, None, pairs_of(0, 14)),
        (Direction.STEREO, None, True, pairs_of(10, 0)),
        (Direction.STEREO, True, True, pairs_of(0, 0)),
    ],
)
def test_two_legs_have_a_gain_each_and_are_muted_each(
    direction: Direction, mute_in: bool | None, mute_out: bool | None, frame: bytes
) -> None:
    stage = two_legs(direction, gain_in=1, gain_out=1)
    untouched = bring(stage)
    assert untouched == (mono_of(24) if direction is Direction.BOTH else pairs_of(10, 14))
    stage.pipeline.set_mute(mute_in, mute_out)
    assert bring(stage) == frame
    stage.pipeline.set_mute(False, False)
    assert bring(stage) == untouched


def test_gain_of_one_leg_leaves_the_other_as_it_is() -> None:
    stage = two_legs(Direction.STEREO, gain_in=-1, gain_out=2)
    assert bring(stage, -301, 100) == pairs_of(-150, 400)


@in_joined
def test_two_legs_while_the_gate_is_shut_are_neither_handed_on_nor_counted(
    direction: Direction,
) -> None:
    stage = two_legs(direction, gate_open=False)
    for is_open in (None, True, None, False, None, True):
        if is_open is not None:
            stage.pipeline.set_gate(is_open)
        stage.audio(mono_of(5), IN)
        stage.audio(mono_of(7), OUT)
    assert stage.frames == [JOINED[direction]] * 3
    assert (stage.pipeline.frames_in, stage.pipeline.frames_brought) == (3, 6)


# --- Frames of an unexpected size ----------------------------------------------------------------


@pytest.mark.parametrize("part", BOTH_LEGS)
def test_frame_of_an_unexpected_size_is_dropped_and_the_leg_stays_in_step(part: LegPart) -> None:
    stage = two_legs()
    bring(stage)
    for _ in range(2):
        stage.audio(bytes(640), part)
    bring(stage)
    assert stage.frames == [mono_of(12)] * 2
    assert stage.unexpected_sizes == [640, 640]
    assert stage.pipeline.frames_in == 4


def test_good_frames_of_one_leg_prove_nothing_of_the_other() -> None:
    stage = two_legs()
    stage.audio(mono_of(5), IN)
    stage.audio(bytes(640), OUT)
    assert not stage.pipeline.is_proven


def test_frame_of_an_unexpected_size_while_the_gate_is_shut_is_gated_as_any_other() -> None:
    stage = two_legs(gate_open=False)
    stage.audio(bytes(640), OUT)
    stage.pipeline.set_gate(True)
    assert (stage.unexpected_sizes, stage.pipeline.gated, stage.pipeline.frames_in) == ([], 1, 0)
    assert bring(stage) == mono_of(12)
