"""What a pipeline makes of the frames of a fork's only leg, with a list as the taker."""

from __future__ import annotations

from typing import Any

import pytest

from audiofork.link.messages import Direction, LegPart
from tests.relay.peers import FakeLoop, numbered
from tests.relay.pipeline_stage import IN, MIX, OUT, PAIRS, PipelineStage, mono_of, pairs_of


def talking(direction: Direction = Direction.IN, **wishes: Any) -> PipelineStage:
    """Return a stage whose leg has brought a frame, which is forgotten."""
    stage = PipelineStage(direction, **wishes)
    stage.attach()
    stage.audio(bytes(stage.pipeline.frame_bytes))
    stage.frames.clear()
    return stage


# --- Shape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "legs", "frame"),
    [
        (Direction.IN, (IN,), mono_of(3)),
        (Direction.OUT, (OUT,), mono_of(3)),
        (Direction.BOTH, (MIX,), mono_of(3)),
        (Direction.IN, (PAIRS,), mono_of(5)),
        (Direction.OUT, (PAIRS,), mono_of(7)),
        (Direction.BOTH, (PAIRS,), mono_of(12)),
        (Direction.STEREO, (PAIRS,), pairs_of(5, 7)),
    ],
)
def test_each_direction_is_had_of_each_part(
    direction: Direction, legs: tuple[LegPart, ...], frame: bytes
) -> None:
    stage = PipelineStage(direction, legs=legs)
    stage.attach()
    talk = pairs_of(5, 7) if legs == (PAIRS,) else mono_of(3)
    for _ in range(3):
        stage.audio(talk)
    assert stage.frames == [frame] * 3


def test_out_is_the_right_half_of_pairs_to_the_byte() -> None:
    stage = PipelineStage(Direction.OUT)
    stage.attach()
    stage.audio(b"\x01\x02\x03\x04" * 160)
    assert stage.frames == [b"\x03\x04" * 160]


def test_gains_of_the_fork_are_applied() -> None:
    stage = talking(Direction.STEREO, gain_in=2, gain_out=-1)
    stage.audio(pairs_of(100, -301))
    assert stage.frames == [pairs_of(400, -150)]


def test_gain_of_both_sides_is_that_of_the_mix() -> None:
    stage = talking(Direction.BOTH, gain_in=1, gain_out=1)
    stage.audio(mono_of(5))
    assert stage.frames == [mono_of(10)]


@pytest.mark.parametrize(
    ("direction", "mute_in", "mute_out", "frame"),
    [
        (Direction.OUT, None, True, mono_of(0)),
        (Direction.OUT, True, None, mono_of(7)),
        (Direction.BOTH, True, None, mono_of(7)),
        (Direction.BOTH, None, True, mono_of(5)),
        (Direction.BOTH, True, True, mono_of(0)),
        (Direction.STEREO, True, None, pairs_of(0, 7)),
        (Direction.STEREO, None, True, pairs_of(5, 0)),
    ],
)
def test_mute_of_pairs_works_from_the_next_frame_on_and_keeps_time(
    direction: Direction, mute_in: bool | None, mute_out: bool | None, frame: bytes
) -> None:
    stage = talking(direction, legs=(PAIRS,))
    talk = pairs_of(5, 7)
    stage.audio(talk)
    stage.pipeline.set_mute(mute_in, mute_out)
    stage.audio(talk)
    stage.pipeline.set_mute(False, False)
    stage.audio(talk)
    assert stage.frames[1] == frame
    assert stage.frames[0] == stage.frames[2] != bytes(len(frame))
    assert len(stage.frames) == 3


def test_mute_of_one_side_leaves_the_other_as_it_is() -> None:
    stage = talking(Direction.STEREO, gain_out=1)
    for mute in (True, None), (None, True), (False, None), (None, False):
        stage.pipeline.set_mute(*mute)
        stage.audio(pairs_of(5, 7))
    assert stage.frames == [pairs_of(0, 14), pairs_of(0, 0), pairs_of(5, 0), pairs_of(5, 14)]


def test_mute_before_the_first_frame_holds() -> None:
    stage = PipelineStage(Direction.BOTH, legs=(PAIRS,))
    stage.pipeline.set_mute(True, None)
    stage.attach()
    stage.audio(pairs_of(5, 7))
    assert stage.frames == [mono_of(7)]


@pytest.mark.parametrize("mute", [(True, None), (None, True), (True, True)])
def test_mix_falls_silent_whole_even_if_one_side_alone_is_muted(
    mute: tuple[bool | None, bool | None],
) -> None:
    """The registry refuses that; here a muted party is not heard all the same."""
    stage = talking(Direction.BOTH)
    for _ in range(2):
        stage.audio(mono_of(5))
    stage.pipeline.set_mute(*mute)
    for _ in range(2):
        stage.audio(mono_of(5))
    stage.pipeline.set_mute(False, False)
    stage.audio(mono_of(5))
    assert stage.frames == [mono_of(n) for n in (5, 5, 0, 0, 5)]


def test_mix_whose_sides_are_both_muted_is_heard_when_both_are_not() -> None:
    stage = talking(Direction.BOTH)
    for mute in (True, None), (None, True), (False, None), (None, False):
        stage.pipeline.set_mute(*mute)
        stage.audio(mono_of(5))
    assert stage.frames == [mono_of(n) for n in (0, 0, 0, 5)]


@pytest.mark.parametrize(
    ("direction", "part", "gains"),
    [(Direction.OUT, OUT, (-1, 1)), (Direction.IN, IN, (1, -1))],
)
def test_leg_of_one_side_has_the_gain_and_the_mute_of_its_side(
    direction: Direction, part: LegPart, gains: tuple[int, int]
) -> None:
    stage = PipelineStage(direction, legs=(part,), gain_in=gains[0], gain_out=gains[1])
    stage.attach()
    stage.audio(mono_of(7))
    stage.pipeline.set_mute(part is IN, part is OUT)
    stage.audio(mono_of(7))
    stage.pipeline.set_mute(part is OUT, part is IN)
    stage.audio(mono_of(7))
    assert stage.frames == [mono_of(14), mono_of(0), mono_of(14)]


@pytest.mark.parametrize("rate", [12_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize(("direction", "part"), [(Direction.IN, IN), (Direction.OUT, OUT)])
def test_side_at_another_rate_is_handed_on_in_frames_of_that_rate(
    direction: Direction, part: LegPart, rate: int
) -> None:
    stage = PipelineStage(direction, legs=(part,), sample_rate=rate)
    stage.attach()
    stage.audio(mono_of(5, rate))
    stage.pipeline.set_mute(True, True)
    stage.audio(mono_of(5, rate))
    assert stage.frames == [mono_of(5, rate), bytes(rate // 25)]


# --- Gate ----------------------------------------------------------------------------------------


def test_frames_while_the_gate_is_shut_are_neither_handed_on_nor_counted() -> None:
    stage = PipelineStage(gate_open=False)
    stage.attach()
    frames = numbered(8)
    for is_open, frame in zip(
        [None, True, None, False, None, None, True, None], frames, strict=True
    ):
        if is_open is not None:
            stage.pipeline.set_gate(is_open)
        stage.audio(frame)
    assert stage.frames == [frames[n] for n in (1, 2, 6, 7)]
    assert (stage.pipeline.frames_in, stage.pipeline.frames_brought) == (4, 8)


def test_usual_frames_while_the_gate_is_shut_are_neither_handed_on_nor_counted() -> None:
    stage = talking()
    stage.audio(mono_of(1))
    stage.pipeline.set_gate(False)
    for n in (2, 3):
        stage.audio(mono_of(n))
    stage.pipeline.set_gate(True)
    for n in (4, 5):
        stage.audio(mono_of(n))
    assert stage.frames == [mono_of(n) for n in (1, 4, 5)]
    assert (stage.pipeline.gated, stage.pipeline.unexpected) == (2, 0)


def test_what_was_said_before_a_mute_or_its_end_is_treated_as_it_was_then() -> None:
    """Where reads are batched up to a second of it has not been read yet."""
    stage = talking()
    stage.leg.on_rest = lambda: stage.bring(mono_of(2))
    stage.pipeline.set_mute(True, True)
    assert stage.frames == [mono_of(2)]
    stage.leg.on_rest = lambda: stage.bring(mono_of(2))
    stage.pipeline.set_mute(False, False)
    assert stage.frames == [mono_of(2), mono_of(0)]


def test_what_was_said_before_the_gate_moves_is_treated_as_it_was_then() -> None:
    stage = talking()
    stage.leg.on_rest = lambda: stage.bring(mono_of(2))
    stage.pipeline.set_gate(False)
    assert (stage.frames, stage.pipeline.gated) == ([mono_of(2)], 0)
    stage.leg.on_rest = lambda: stage.bring(mono_of(2))
    stage.pipeline.set_gate(True)
    assert (stage.frames, stage.pipeline.gated) == ([mono_of(2)], 1)


def test_finish_takes_what_was_not_read_yet_and_shuts_the_gate() -> None:
    stage = talking()
    stage.audio(mono_of(1))
    stage.leg.on_rest = lambda: stage.bring(mono_of(2))
    stage.pipeline.finish()
    stage.audio(mono_of(3))
    assert stage.frames == [mono_of(1), mono_of(2)]


# --- Frames of an unexpected size ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "rate", "size"),
    [
        *((Direction.IN, 8000, size) for size in (2, 160, 318, 322, 640)),
        *((Direction.STEREO, 8000, size) for size in (320, 638, 642, 1280)),
        *((Direction.IN, 16_000, size) for size in (320, 638, 642, 1280)),
    ],
)
def test_first_frame_of_an_unexpected_size_proves_nothing(
    direction: Direction, rate: int, size: int
) -> None:
    stage = PipelineStage(direction, sample_rate=rate)
    stage.attach()
    stage.audio(bytes(size))
    assert (stage.frames, stage.unexpected_sizes) == ([], [size])
    assert not stage.pipeline.is_proven
    assert (stage.pipeline.frames_in, stage.pipeline.unexpected) == (1, 1)


def test_frames_of_an_unexpected_size_are_each_dropped_and_the_others_go_on() -> None:
    stage = talking()
    for n in (1, 2):
        stage.audio(mono_of(n))
    for size in (160, 160, 160, 640):
        stage.audio(bytes(size))
    for n in (3, 4):
        stage.audio(mono_of(n))
    assert stage.frames == [mono_of(n) for n in (1, 2, 3, 4)]
    assert stage.unexpected_sizes == [160, 160, 160, 640]
    assert stage.pipeline.is_proven
    assert stage.pipeline.frames_in == 8


def test_frames_of_an_unexpected_size_of_another_leg_are_dropped_too() -> None:
    stage = talking()
    for _ in range(2):
        stage.audio(mono_of(1))
    stage.detach()
    stage.attach()
    for _ in range(3):
        stage.audio(bytes(640))
    stage.audio(mono_of(2))
    assert stage.frames == [mono_of(1), mono_of(1), mono_of(2)]
    assert stage.unexpected_sizes == [640] * 3


def test_frame_of_an_unexpected_size_while_the_gate_is_shut_is_gated_as_any_other() -> None:
    stage = PipelineStage(gate_open=False)
    stage.attach()
    for _ in range(2):
        stage.audio(bytes(640))
    stage.pipeline.set_gate(True)
    assert (stage.unexpected_sizes, stage.pipeline.gated, stage.pipeline.frames_in) == ([], 2, 0)
    stage.audio(mono_of(5))
    assert stage.frames == [mono_of(5)]


# --- Frames that are read at once ----------------------------------------------------------------


def batched(direction: Direction = Direction.IN, **wishes: Any) -> tuple[PipelineStage, Batches]:
    """Return a stage whose taker takes batches, after a frame; and those that it has taken."""
    stage = PipelineStage(direction, **wishes)
    stage.attach()
    batches: Batches = []
    stage.pipeline.hand_to(stage.frames.append, batches.append)
    stage.audio(pairs_of(1, 1) if stage.only_part is PAIRS else mono_of(1))
    stage.frames.clear()
    return stage, batches


Batches = list[list[bytes]]


def test_frames_that_are_read_at_once_are_taken_at_once() -> None:
    stage, batches = batched()
    assert stage.leg.on_batch == batches.append
    stage.bring_batch(mono_of(1), mono_of(2))
    assert (batches, stage.frames) == ([[mono_of(1), mono_of(2)]], [])


def test_frames_that_are_read_at_once_have_the_shape_of_others() -> None:
    stage, batches = batched(gain_in=1)
    stage.bring_batch(mono_of(1), mono_of(2))
    assert batches == [[mono_of(2), mono_of(4)]]


def test_taker_that_takes_no_batches_gets_frame_by_frame() -> None:
    stage = PipelineStage()
    stage.attach()
    stage.audio(mono_of(1))
    assert stage.leg.on_batch is None
    stage.bring_batch(mono_of(2), mono_of(3))
    assert stage.frames == [mono_of(1), mono_of(2), mono_of(3)]


def test_first_batch_after_a_change_is_treated_as_it_says_and_the_next_is_taken_at_once() -> None:
    stage, batches = batched()
    for mute, frame in ((True, mono_of(0)), (False, mono_of(5))):
        stage.pipeline.set_mute(mute, None)
        stage.bring_batch(mono_of(5), mono_of(5))
        assert (stage.frames, batches) == ([frame, frame], [])
        stage.bring_batch(mono_of(5), mono_of(5))
        assert batches == [[frame, frame]]
        stage.frames.clear()
        batches.clear()
    stage.pipeline.set_gate(False)
    stage.bring_batch(mono_of(5), mono_of(5))
    assert (stage.frames, batches, stage.pipeline.gated) == ([], [], 2)


def test_each_frame_of_a_batch_is_heard_and_noted() -> None:
    stage, batches = batched()
    heard: list[bytes] = []
    noted: list[bytes] = []
    stage.pipeline.overhear(heard.append)
    for n in (1, 3):
        stage.bring_batch(mono_of(n), mono_of(n + 1))
    stage.pipeline.note(lambda _, frame: noted.append(frame))
    for n in (5, 7):
        stage.bring_batch(mono_of(n), mono_of(n + 1))
    assert heard == stage.frames == [mono_of(n) for n in range(1, 9)]
    assert noted == heard[4:]
    assert batches == []


def test_batch_of_frames_that_are_kept_goes_to_who_keeps_them() -> None:
    stage, batches = batched()
    kept: list[bytes] = []
    stage.pipeline.keep(lambda _, frame: kept.append(frame))
    for _ in range(2):
        stage.bring_batch(mono_of(1), mono_of(2))
    assert kept == [mono_of(1), mono_of(2)] * 2
    assert (stage.frames, batches) == ([], [])


# --- The fast path -------------------------------------------------------------------------------


def test_unchanged_frames_go_straight_to_the_taker_after_the_first() -> None:
    stage = PipelineStage()
    stage.attach()
    assert stage.leg.on_usual == stage.pipeline.input_of(IN)
    stage.audio(mono_of(1))
    assert stage.leg.on_usual == stage.frames.append
    stage.audio(mono_of(2))
    assert stage.frames == [mono_of(1), mono_of(2)]


@pytest.mark.parametrize(
    ("direction", "wishes"),
    [(Direction.IN, {"gain_in": 1}), (Direction.BOTH, {"gain_in": 1, "gain_out": 1})],
)
def test_frames_that_are_shaped_have_a_fast_path_too(
    direction: Direction, wishes: dict[str, Any]
) -> None:
    stage = PipelineStage(direction, **wishes)
    stage.attach()
    stage.audio(mono_of(1))
    slow = (stage.pipeline.input_of(stage.only_part), stage.frames.append)
    assert stage.leg.on_usual not in slow
    stage.audio(mono_of(5))
    assert stage.frames == [mono_of(2), mono_of(10)]


def test_fast_path_follows_a_mute_and_its_end() -> None:
    stage = talking()
    for n, mute in enumerate((None, None, True, None, False, None)):
        if mute is not None:
            stage.pipeline.set_mute(mute, None)
        stage.audio(mono_of(n + 1))
    assert stage.frames == [mono_of(n) for n in (1, 2, 0, 0, 5, 6)]
    assert stage.leg.on_usual == stage.frames.append


@pytest.mark.parametrize("gain", [0, 1])
def test_fast_path_follows_another_taker(gain: int) -> None:
    stage = talking(gain_in=gain)
    stage.audio(mono_of(1))
    others: list[bytes] = []
    stage.pipeline.hand_to(others.append)
    for n in (2, 3):
        stage.bring_usual(mono_of(n))
    assert stage.frames == [mono_of(1 << gain)]
    assert others == [mono_of(2 << gain), mono_of(3 << gain)]
    assert gain or stage.leg.on_usual == others.append


@pytest.mark.parametrize(
    "change",
    [
        lambda pipeline: pipeline.set_gate(False),
        lambda pipeline: pipeline.set_mute(True, None),
        lambda pipeline: pipeline.hand_to(lambda frame: None),
    ],
    ids=["gate", "mute", "taker"],
)
def test_what_a_frame_leads_to_counts_for_the_next_one_already(change: Any) -> None:
    """What takes a frame may report it, and the answer may change the pipeline."""
    stage = PipelineStage()
    taken: list[bytes] = []

    def take(frame: bytes) -> None:
        taken.append(frame)
        change(stage.pipeline)

    stage.pipeline.hand_to(take)
    stage.attach()
    stage.bring(mono_of(1))
    assert stage.leg.on_usual == stage.pipeline.input_of(IN)
    stage.bring_usual(mono_of(2))
    assert [frame for frame in taken if any(frame)] == [mono_of(1)]


# --- Batched reads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "frame_bytes"),
    [
        ({"direction": Direction.IN}, 320),
        ({"direction": Direction.BOTH}, 320),
        ({"direction": Direction.OUT}, 640),
        ({"direction": Direction.OUT, "legs": (OUT,), "sample_rate": 16_000}, 640),
    ],
    ids=["in", "mix", "pairs", "wide"],
)
def test_reads_are_batched_in_frames_of_the_leg(wishes: dict[str, Any], frame_bytes: int) -> None:
    stage = PipelineStage(**wishes)
    stage.pipeline.batch_reads(100)  # nobody is there
    stage.attach()
    stage.pipeline.batch_reads(100)
    assert stage.leg.batched == [(frame_bytes, 100)]


@pytest.mark.parametrize(
    ("wishes", "batch_ms"), [({"keep_time": True}, 100), ({}, 20)], ids=["time is kept", "a frame"]
)
def test_reads_are_not_batched_where_each_frame_is_wanted(
    wishes: dict[str, Any], batch_ms: int, clock: FakeLoop
) -> None:
    stage = PipelineStage(Direction.IN, **wishes)
    stage.attach()
    stage.pipeline.batch_reads(batch_ms)
    assert stage.leg.batched == []


# --- Kept time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [(Direction.IN, 320), (Direction.OUT, 320), (Direction.BOTH, 320), (Direction.STEREO, 640)],
)
def test_silence_is_handed_on_and_counted_where_the_leg_brings_nothing(
    clock: FakeLoop, direction: Direction, frame_bytes: int
) -> None:
    stage = PipelineStage(direction, keep_time=True)
    clock.advance(1)
    assert stage.frames == []
    stage.attach()
    clock.advance(1)
    count = len(stage.frames)
    assert 40 <= count <= 48
    assert stage.frames == [bytes(frame_bytes)] * count
    assert (stage.pipeline.filled, stage.pipeline.frames_in) == (count, count)
    assert stage.pipeline.frames_brought == 0


def test_pause_of_a_mixed_leg_is_filled_and_what_comes_late_is_handed_on_too(
    clock: FakeLoop,
) -> None:
    stage = PipelineStage(Direction.BOTH, keep_time=True)
    stage.attach()
    stage.audio(mono_of(5))
    clock.advance(0.5)
    filled = len(stage.frames) - 1
    assert 16 <= filled <= 23
    stage.audio(mono_of(7))
    assert stage.frames == [mono_of(5), *[bytes(320)] * filled, mono_of(7)]
    assert (stage.pipeline.frames_in, stage.pipeline.frames_brought) == (filled + 2, 2)


def test_silence_is_filled_in_only_after_frames_were_kept(clock: FakeLoop) -> None:
    stage = PipelineStage(keep_time=True)
    kept: list[bytes] = []
    stage.pipeline.keep(lambda _part, frame: kept.append(frame))
    stage.attach()
    stage.audio(mono_of(5))
    clock.advance(1)
    assert (stage.frames, kept) == ([], [mono_of(5)])
    stage.pipeline.keep(None)
    clock.advance(1)
    assert 40 <= len(stage.frames) <= 48


def test_frames_of_the_leg_put_off_the_silence(clock: FakeLoop) -> None:
    stage = PipelineStage(keep_time=True)
    stage.attach()
    for frame in numbered(50):
        stage.audio(frame)
    clock.advance(1)
    assert stage.frames == numbered(50)


def test_frames_of_the_fast_path_are_counted_where_time_is_kept(clock: FakeLoop) -> None:
    """Or the silence filler would put silence beside what comes."""
    stage = PipelineStage(keep_time=True)
    stage.attach()
    for n in range(100):
        stage.audio(mono_of(n))
        clock.advance(0.02)
    assert stage.leg.on_usual == stage.frames.append
    assert stage.frames == [mono_of(n) for n in range(100)]


def test_silence_is_handed_to_another_taker_too(clock: FakeLoop) -> None:
    stage = PipelineStage(keep_time=True)
    stage.attach()
    others: list[bytes] = []
    stage.pipeline.hand_to(others.append)
    clock.advance(0.3)
    assert others
    assert set(others) == {bytes(320)}
    assert stage.frames == []


def test_fork_that_does_not_keep_time_has_no_silence(clock: FakeLoop) -> None:
    stage = PipelineStage()
    stage.attach()
    stage.pipeline.set_gate(True)
    clock.advance(1)
    assert (stage.frames, clock.armed) == ([], 0)


def test_no_silence_while_the_gate_is_shut(clock: FakeLoop) -> None:
    stage = PipelineStage(keep_time=True, gate_open=False)
    stage.attach()
    clock.advance(10)
    assert stage.frames == []
    stage.pipeline.set_gate(True)
    clock.advance(0.11)
    assert stage.frames == []
    clock.advance(0.89)
    count = len(stage.frames)
    assert 42 <= count <= 45
    stage.pipeline.set_gate(False)
    clock.advance(10)
    assert len(stage.frames) == count


@pytest.mark.parametrize("happens", ["gate opens before", "leg goes", "all ends"])
def test_no_silence_without_a_leg(clock: FakeLoop, happens: str) -> None:
    stage = PipelineStage(keep_time=True, gate_open=happens != "gate opens before")
    if happens == "gate opens before":
        stage.pipeline.set_gate(True)
    elif happens == "leg goes":
        stage.attach()
        stage.detach()
    else:
        stage.attach()
        stage.pipeline.finish()
    clock.advance(1)
    assert (stage.frames, clock.armed) == ([], 0)
