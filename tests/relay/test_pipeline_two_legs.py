"""What a pipeline makes of the frames of two legs, with a list as the taker."""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterable

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
def test_time_of_two_legs_is_kept_by_themselves(direction: Direction, clock: FakeLoop) -> None:
    stage = PipelineStage(direction, legs=BOTH_LEGS, keep_time=True)
    stage.attach()
    stage.pipeline.set_gate(True)
    clock.advance(1)
    assert (stage.frames, clock.armed) == ([], 0)


# --- Batched reads -------------------------------------------------------------------------------


def batched(batch_ms: int = 100) -> PipelineStage:
    """Return a stage whose legs have begun, and read in batches."""
    stage = two_legs()
    bring(stage)
    assert stage.pipeline.batch_reads(batch_ms)
    stage.frames.clear()
    return stage


def test_reads_are_batched_once_both_legs_have_brought_a_frame() -> None:
    stage = PipelineStage(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    assert not stage.pipeline.batch_reads(100)
    stage.audio(mono_of(5), IN)
    assert not stage.pipeline.batch_reads(100)
    assert [leg.batched for leg in stage.legs.values()] == [[], []]
    stage.audio(mono_of(7), OUT)
    assert stage.pipeline.batch_reads(100)
    assert [leg.batched for leg in stage.legs.values()] == [[(320, 100)]] * 2


def test_reads_are_not_batched_where_each_frame_is_a_message() -> None:
    stage = PipelineStage(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    assert stage.pipeline.batch_reads(20)
    assert [leg.batched for leg in stage.legs.values()] == [[], []]


class Kernel:
    """Holds what two legs of a pipeline bring until they are to read it, and sends messages.

    Attributes:
        wakes: How often a leg had as many frames as it was to wait for.
    """

    def __init__(self, stage: PipelineStage, batch_frames: int) -> None:
        self._stage = stage
        self._batch_frames = batch_frames
        self._unread: dict[LegPart, list[bytes]] = {IN: [], OUT: []}
        self._sent = 0
        self.wakes = 0
        for part, leg in stage.legs.items():
            leg.awaited = batch_frames
            leg.on_every_rest = functools.partial(self._read, part)

    def bring(self, part: LegPart, frame: bytes) -> None:
        self._unread[part].append(frame)
        leg = self._stage.legs[part]
        if len(self._unread[part]) < leg.awaited:
            return
        self.wakes += 1
        self._read(part)
        self._stage.pipeline.end_batch(part)
        frames = len(self._stage.frames)
        missing = self._batch_frames - frames % self._batch_frames
        leg.awaited = self._stage.pipeline.await_message(part, missing)

    def _read(self, part: LegPart) -> None:
        unread, self._unread[part] = self._unread[part], []
        for frame in unread:
            self._stage.bring_usual(frame, part)


def sides_of(frames: Iterable[bytes]) -> list[tuple[int, int]]:
    """Return the numbers of in and of out in frames of pairs; 0: silence."""
    return [struct.unpack_from("<2h", frame) for frame in frames]


def brought(
    batch_frames: int, phase_ms: float, missed: Collection[tuple[LegPart, int]] = ()
) -> tuple[list[tuple[int, int]], int]:
    """Let two legs bring 3000 numbered frames each, out later by `phase_ms`.

    Returns:
        The numbers in each pair, and how often the process was woken for them.
    """
    stage = PipelineStage(Direction.STEREO, legs=BOTH_LEGS)
    stage.attach()
    stage.audio(mono_of(1), IN)
    stage.audio(mono_of(1), OUT)
    assert stage.pipeline.batch_reads(20 * batch_frames)
    kernel = Kernel(stage, batch_frames)
    times = [
        (20 * n + phase, part, n)
        for n in range(2, 3001)
        for part, phase in ((IN, 0), (OUT, phase_ms))
    ]
    for _, part, n in sorted(times, key=lambda one: one[0]):
        if (part, n) not in missed:
            kernel.bring(part, mono_of(n))
    return sides_of(stage.frames), kernel.wakes


@pytest.mark.parametrize("batch_frames", [2, 5, 10, 50])
@pytest.mark.parametrize("phase_ms", [-15, 0, 1, 19])
def test_batched_reads_of_two_legs_need_no_silence_and_wake_once_a_message(
    batch_frames: int, phase_ms: float
) -> None:
    pairs, wakes = brought(batch_frames, phase_ms)
    assert pairs == [(n, n) for n in range(1, len(pairs) + 1)]
    assert len(pairs) >= 3000 - batch_frames - 1
    assert wakes <= 3000 / batch_frames + 2


@pytest.mark.parametrize("batch_frames", [2, 5, 10, 50])
@pytest.mark.parametrize("part", [IN, OUT])
@pytest.mark.parametrize("later_ms", [5, 15])
def test_tick_that_a_leg_misses_is_silence_within_ten_batches(
    batch_frames: int, part: LegPart, later_ms: float
) -> None:
    phase_ms = later_ms if part is OUT else -later_ms
    pairs, _ = brought(batch_frames, phase_ms, [(part, 1000)])
    place = 0 if part is IN else 1
    assert [pair[1 - place] for pair in pairs] == list(range(1, len(pairs) + 1))
    assert [pair[place] for pair in pairs].count(0) == 1
    settled = 1000 + max(50, 10 * batch_frames) + 2 * batch_frames
    assert pairs[:999] == [(n, n) for n in range(1, 1000)]
    assert pairs[settled:] == [(n, n) for n in range(settled + 1, len(pairs) + 1)]


def test_tick_that_is_missed_is_silence_after_a_second_where_reads_cannot_be_batched() -> None:
    stage = PipelineStage(Direction.STEREO, legs=BOTH_LEGS)
    stage.attach()
    stage.audio(mono_of(1), IN)
    stage.audio(mono_of(1), OUT)
    for leg in stage.legs.values():
        leg.can_batch = False
    assert stage.pipeline.batch_reads(1000)
    for n in range(2, 200):
        stage.bring_usual(mono_of(n), IN)
        if n != 100:
            stage.bring_usual(mono_of(n), OUT)
    pairs = sides_of(stage.frames)
    assert [side_out for _, side_out in pairs].count(0) == 1
    assert pairs[:99] == [(n, n) for n in range(1, 100)]
    assert pairs[150:] == [(n, n) for n in range(151, len(pairs) + 1)]


def test_leg_that_comes_anew_has_the_other_read_what_waits_and_each_frame_from_then_on() -> None:
    stage = batched()
    stage.detach(IN)
    stage.legs[OUT].on_rest = lambda: stage.bring_usual(mono_of(7), OUT)
    stage.attach(IN)
    assert stage.frames == [mono_of(7)]  # with silence: it is older than the leg
    assert not stage.legs[OUT].is_batching
    assert not stage.pipeline.batch_reads(100)
    stage.bring_usual(mono_of(7), OUT)
    stage.audio(mono_of(5), IN)
    assert stage.frames == [mono_of(7), mono_of(12)]
    assert stage.pipeline.batch_reads(100)
    assert stage.legs[OUT].is_batching


@pytest.mark.parametrize("gain", [0, -1], ids=["plain", "quieter"])
@in_joined
def test_frames_of_both_legs_that_are_read_at_once_are_joined_and_taken_at_once(
    direction: Direction, gain: int
) -> None:
    stage, singly = (two_legs(direction, gain_in=gain) for _ in range(2))
    batches: list[list[bytes]] = []
    for one in (stage, singly):
        bring(one)
    stage.pipeline.hand_to(stage.frames.append, batches.append)
    stage.frames.clear()
    singly.frames.clear()
    for one in (stage, singly):
        one.bring_batch(mono_of(-5), mono_of(6), mono_of(9), part=IN)
        one.bring_batch(mono_of(7), mono_of(-8), part=OUT)
    assert batches == [singly.frames]
    assert (stage.frames, len(singly.frames)) == ([], 2)
    assert singly.pipeline.legs[IN].on_batch is not None


def test_batches_of_two_legs_stop_at_a_shut_gate_and_are_heard_and_noted_frame_by_frame() -> None:
    stage = two_legs(Direction.STEREO)
    batches: list[list[bytes]] = []
    heard: list[bytes] = []
    noted: list[LegPart] = []
    stage.pipeline.hand_to(stage.frames.append, batches.append)

    def bring_batches() -> None:
        stage.bring_batch(mono_of(5), mono_of(6), part=IN)
        stage.bring_batch(mono_of(7), mono_of(8), part=OUT)

    joined = [pairs_of(5, 7), pairs_of(6, 8)]
    bring(stage)
    stage.frames.clear()
    stage.pipeline.set_gate(False)
    bring_batches()
    assert (batches, stage.pipeline.gated) == ([], 2)
    stage.pipeline.set_gate(True)
    stage.pipeline.overhear(heard.append)
    bring_batches()
    assert heard == stage.frames == joined
    stage.pipeline.overhear(None)
    bring_batches()
    assert batches == [joined]
    stage.pipeline.note(lambda part, _: noted.append(part))
    bring_batches()
    assert (batches, stage.frames) == ([joined], joined * 2)
    assert noted == [IN, OUT] * 2
    kept: list[bytes] = []
    stage.pipeline.keep(lambda _, frame: kept.append(frame))
    bring_batches()
    assert kept == [mono_of(n) for n in (5, 6, 7, 8)]
    assert (batches, stage.frames) == ([joined], joined * 2)


def test_batch_of_frames_of_an_unexpected_size_is_dropped() -> None:
    stage = two_legs()
    bring(stage)
    stage.bring_batch(bytes(640), bytes(640), part=OUT)
    assert stage.unexpected_sizes == [640, 640]
    assert bring(stage) == mono_of(12)


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
