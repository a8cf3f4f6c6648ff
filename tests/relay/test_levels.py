"""How loud a fork is: of any leg, by any way of its frames, and at no cost to them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiofork.link.messages import (
    Direction,
    EndReason,
    LegPart,
    Levels,
    ServerCommand,
    Voice,
)
from audiofork.relay.formats.base import Audio
from audiofork.relay.levels import FORGET_S, ForkMeter, Meters
from audiofork.relay.playout import PATIENCE_S
from tests.relay.peers import FakeLoop, until
from tests.relay.pipeline_stage import (
    BOTH_LEGS,
    FORK_ID,
    IN,
    MIX,
    OUT,
    PAIRS,
    PipelineStage,
    mono_of,
    pairs_of,
    spec_of,
)
from tests.relay.relay_stage import RelayStage
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENT = Levels(0, 0, -1, -1)


@pytest.fixture
def meters(clock: FakeLoop) -> Meters:
    return Meters()


def take(meters: Meters, stage: SessionStage) -> Levels:
    taken = meters.take({FORK_ID: stage.session})
    assert taken.fork_ids == (FORK_ID,)
    return taken.levels[FORK_ID]


def wave(peak: int, low: int, pairs: int = 80) -> bytes:
    """Return 20 ms of samples that alternate between two values."""
    return struct.pack("<2h", peak, low) * pairs


async def test_peak_and_rms_are_those_of_the_samples(begin: Begin, meters: Meters) -> None:
    stage = begin()
    stage.stream()
    assert take(meters, stage) == SILENT
    stage.audio(wave(-3000, 4000))
    assert take(meters, stage) == Levels(4000, 3535, -1, -1)  # sqrt((3000² + 4000²) / 2)


async def test_loudest_sample_fits(begin: Begin, meters: Meters) -> None:
    stage = begin()
    stage.stream()
    take(meters, stage)
    stage.audio(mono_of(-32768))
    assert take(meters, stage) == Levels(32767, 32767, -1, -1)


@pytest.mark.parametrize(
    ("direction", "legs", "frames", "expected"),
    [
        (Direction.IN, (IN,), {IN: mono_of(7)}, Levels(7, 7, -1, -1)),
        (Direction.OUT, (OUT,), {OUT: mono_of(7)}, Levels(-1, -1, 7, 7)),
        (Direction.BOTH, (MIX,), {MIX: mono_of(7)}, Levels(7, 7, -1, -1, mixed=True)),
        (Direction.BOTH, (PAIRS,), {PAIRS: pairs_of(7, 9)}, Levels(7, 7, 9, 9)),
        (Direction.STEREO, (PAIRS,), {PAIRS: pairs_of(7, 9)}, Levels(7, 7, 9, 9)),
        (Direction.IN, (PAIRS,), {PAIRS: pairs_of(7, 9)}, Levels(7, 7, 9, 9)),
        (Direction.OUT, (PAIRS,), {PAIRS: pairs_of(7, 9)}, Levels(7, 7, 9, 9)),
        (Direction.STEREO, BOTH_LEGS, {IN: mono_of(7), OUT: mono_of(9)}, Levels(7, 7, 9, 9)),
        (Direction.BOTH, BOTH_LEGS, {OUT: mono_of(9)}, Levels(0, 0, 9, 9)),
    ],
)
async def test_each_side_has_the_level_of_the_leg_that_brings_it(
    begin: Begin,
    meters: Meters,
    direction: Direction,
    legs: tuple[LegPart, ...],
    frames: dict[LegPart, bytes],
    expected: Levels,
) -> None:
    stage = begin(direction, legs=legs)
    stage.attach()
    stage.sink.open()
    for part in legs:
        stage.audio(bytes(640 if part is PAIRS else 320), part)
    take(meters, stage)
    for part, frame in frames.items():
        stage.audio(frame, part)
    assert take(meters, stage) == expected


async def test_wideband_leg_is_measured(begin: Begin, meters: Meters) -> None:
    stage = begin(sample_rate=16_000)
    stage.attach()
    stage.sink.open()
    take(meters, stage)
    stage.audio(mono_of(7, 16_000))
    assert take(meters, stage) == Levels(7, 7, -1, -1)


async def test_fork_without_a_leg_is_silent(begin: Begin, meters: Meters) -> None:
    stage = begin()
    for _ in range(3):
        assert take(meters, stage) == SILENT


async def test_muted_side_is_as_loud_as_the_leg_brings_it(begin: Begin, meters: Meters) -> None:
    stage = begin()
    stage.stream()
    stage.mute(True, None)
    take(meters, stage)
    stage.audio(mono_of(7))
    assert take(meters, stage) == Levels(7, 7, -1, -1)
    assert stage.sink.frames == [bytes(320)]


@pytest.mark.parametrize("legs", [(PAIRS,), BOTH_LEGS], ids=["pairs", "two legs"])
async def test_leg_behind_a_shut_gate_is_measured(
    begin: Begin, meters: Meters, legs: tuple[LegPart, ...]
) -> None:
    stage = begin(Direction.STEREO, legs=legs, gate_open=False)
    stage.attach()
    take(meters, stage)
    for part in legs:
        stage.audio(pairs_of(7, 7) if part is PAIRS else mono_of(7), part)
    assert take(meters, stage) == Levels(7, 7, 7, 7)
    assert stage.sink.frames == []


async def test_volume_of_the_fork_changes_no_level(begin: Begin, meters: Meters) -> None:
    stage = begin(gain_in=2)
    stage.stream()
    take(meters, stage)
    stage.audio(mono_of(7))
    assert take(meters, stage) == Levels(7, 7, -1, -1)
    assert stage.sink.frames == [mono_of(28)]


# --- The way of the frames ---


async def test_one_frame_is_measured_and_the_next_takes_the_way_that_it_always_took(
    begin: Begin, meters: Meters
) -> None:
    stage = begin()
    stage.stream()
    stage.audio(mono_of(1))
    ways = stage.leg.on_usual, stage.session.inlets[IN].on_audio
    assert ways[0] == stage.sink.send
    for _ in range(3):
        take(meters, stage)
        assert stage.leg.on_usual != stage.sink.send
        stage.audio(mono_of(2))
        assert (stage.leg.on_usual, stage.session.inlets[IN].on_audio) == ways


async def test_frame_that_differs_in_length_from_the_one_before_is_measured_too(
    begin: Begin, meters: Meters
) -> None:
    stage = begin()
    stage.stream()
    stage.audio(mono_of(1))
    ways = stage.leg.on_usual, stage.session.inlets[IN].on_audio
    take(meters, stage)
    stage.session.inlets[IN].on_audio(mono_of(7))
    assert (stage.leg.on_usual, stage.session.inlets[IN].on_audio) == ways
    assert take(meters, stage) == Levels(7, 7, -1, -1)


@pytest.mark.parametrize("frame", [bytes(2), pairs_of(9, 9) * 2, mono_of(9) + b"\0\1"])
async def test_frame_of_another_size_than_expected_is_dropped_and_not_measured(
    begin: Begin, meters: Meters, frame: bytes
) -> None:
    stage = begin(Direction.STEREO)
    stage.stream()
    take(meters, stage)
    stage.audio(frame)
    stage.audio(frame)
    assert stage.session.stats().frames_dropped == 2
    assert take(meters, stage) == Levels(0, 0, 0, 0)
    stage.audio(pairs_of(7, 9))
    assert take(meters, stage) == Levels(7, 7, 9, 9)


async def test_mute_between_a_take_and_the_next_frame_is_obeyed(
    begin: Begin, meters: Meters
) -> None:
    stage = begin()
    stage.stream()
    take(meters, stage)
    stage.audio(mono_of(7))
    take(meters, stage)
    stage.mute(True, None)
    stage.audio(mono_of(8))
    assert stage.sink.frames == [mono_of(7), bytes(320)]
    assert take(meters, stage) == Levels(7, 7, -1, -1)  # it keeps the last one once
    stage.audio(mono_of(9))
    assert take(meters, stage) == Levels(9, 9, -1, -1)


async def test_leg_that_replaces_another_is_measured(begin: Begin, meters: Meters) -> None:
    stage = begin()
    stage.stream()
    take(meters, stage)
    stage.close_leg()
    take(meters, stage)
    stage.attach()
    stage.audio(mono_of(1))
    take(meters, stage)
    stage.audio(mono_of(7))
    assert take(meters, stage) == Levels(7, 7, -1, -1)


# --- Silence, and who looks no more ---


@pytest.mark.parametrize(("frame_ms", "takes"), [(20, 1), (100, 1), (200, 2), (1000, 6)])
async def test_leg_that_brings_nothing_is_silent_once_a_message_should_have_come(
    begin: Begin, meters: Meters, frame_ms: int, takes: int
) -> None:
    stage = begin()
    stage.sink.frame_ms = frame_ms
    stage.stream()
    take(meters, stage)
    stage.audio(mono_of(7))
    assert [take(meters, stage).in_peak for _ in range(takes + 2)] == [7] * (takes + 1) + [0]


async def test_ended_fork_has_no_levels(begin: Begin, meters: Meters) -> None:
    stage = begin()
    stage.stream()
    take(meters, stage)
    stage.session.end(EndReason.STOPPED)
    assert take(meters, stage) == SILENT
    assert meters.take({}).levels == {}


async def test_all_is_as_before_when_nobody_has_looked_for_a_while(
    begin: Begin, meters: Meters, clock: FakeLoop
) -> None:
    stage = begin()
    stage.stream()
    ways = stage.leg.on_usual, stage.session.inlets[IN].on_audio
    armed = clock.armed
    take(meters, stage)
    clock.advance(FORGET_S - 0.01)
    assert stage.leg.on_usual != ways[0]  # the leg has brought nothing
    take(meters, stage)
    clock.advance(FORGET_S)
    assert (stage.leg.on_usual, stage.session.inlets[IN].on_audio) == ways
    assert clock.armed == armed


async def test_level_of_long_ago_is_not_told(begin: Begin, meters: Meters, clock: FakeLoop) -> None:
    stage = begin()
    stage.stream()
    take(meters, stage)
    stage.audio(mono_of(7))
    clock.advance(2 * FORGET_S)
    assert take(meters, stage) == SILENT


# --- What the server of a connected fork says ---


def connected(begin: Begin) -> SessionStage:
    stage = begin(voice=Voice((IN,), steady=True), commands=tuple(ServerCommand))
    stage.stream()
    return stage


async def test_what_the_server_of_a_connected_fork_says_is_out(
    begin: Begin, meters: Meters, clock: FakeLoop
) -> None:
    stage = connected(begin)
    stage.audio(mono_of(7))
    assert take(meters, stage) == Levels(0, 0, 0, 0)
    stage.sink.on_audio(Audio(mono_of(9) * 50, 8000))
    stage.audio(mono_of(7))
    for _ in range(4):
        clock.advance(0.2)
        stage.audio(mono_of(7))
        assert take(meters, stage) == Levels(7, 7, 9, 9)
    clock.advance(0.5)
    assert take(meters, stage)[2:4] == (0, 0)


async def test_server_whose_next_frame_is_just_late_is_not_silent(
    begin: Begin, meters: Meters, clock: FakeLoop
) -> None:
    stage = connected(begin)
    stage.sink.on_audio(Audio(mono_of(9), 8000))
    take(meters, stage)
    while mono_of(9) not in stage.leg.spoken:
        clock.advance(0.001)
    assert take(meters, stage)[2:4] == (9, 9)
    clock.advance(0.02 + PATIENCE_S)  # silence was played in place of the next
    assert take(meters, stage)[2:4] == (0, 0)


async def test_server_is_silent_while_its_leg_is_away(
    begin: Begin, meters: Meters, clock: FakeLoop
) -> None:
    stage = connected(begin)
    stage.sink.on_audio(Audio(mono_of(9) * 50, 8000))
    clock.advance(0.1)
    stage.close_leg()
    assert take(meters, stage)[2:4] == (0, 0)


async def test_server_that_whispers_is_not_what_a_fork_captures(
    begin: Begin, meters: Meters, clock: FakeLoop
) -> None:
    stage = begin(voice=Voice((IN,)), commands=tuple(ServerCommand))
    stage.stream()
    stage.sink.on_audio(Audio(mono_of(9) * 50, 8000))
    assert take(meters, stage) == SILENT


# --- Any order of things ---

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("usual", "unusual", "batch")), st.integers(-50, 50)),
        st.tuples(st.sampled_from(("mute", "gate")), st.booleans()),
        st.just(("take", 0)),
        st.just(("replace", 0)),
        st.just(("stop", 0)),
    ),
    max_size=60,
)


class _Inlet:
    def __init__(self, on_audio: Any) -> None:
        self.on_audio = on_audio


class _Played:
    """A pipeline whose legs are watched, or not."""

    def __init__(self, direction: Direction, legs: tuple[LegPart, ...], *, watched: bool) -> None:
        self.stage = PipelineStage(direction, legs=legs)
        self.stage.pipeline.hand_to(self.stage.frames.append, self.stage.frames.extend)
        self.stage.attach()
        self.inlets = {part: _Inlet(self.stage.pipeline.input_of(part)) for part in legs}
        self.meter: ForkMeter | None = None
        if watched:
            spec = spec_of(direction, legs=legs)
            voice: Any = None
            self.meter = ForkMeter(spec, self.stage.pipeline.legs, self.inlets, voice, 20)

    def play(self, what: str, value: int) -> None:
        pipeline, legs = self.stage.pipeline, self.stage.legs
        for part in legs:
            frame = pairs_of(value, -value) if part is PAIRS else mono_of(value)
            if what == "usual":
                legs[part].on_usual(frame)
            elif what == "batch":
                self.stage.bring_batch(frame, frame, frame, part=part)
            elif what == "unusual":
                self.inlets[part].on_audio(frame)
            elif what == "replace":
                self.stage.detach(part)
                self.stage.attach(part)
        if what == "mute":
            pipeline.set_mute(bool(value), None)
        elif what == "gate":
            pipeline.set_gate(bool(value))
        elif what == "take" and self.meter is not None:
            for take_side in self.meter.takes:
                take_side()
        elif what == "stop" and self.meter is not None:
            self.meter.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "legs"),
    [
        (Direction.IN, (IN,)),
        (Direction.BOTH, (PAIRS,)),
        (Direction.STEREO, (PAIRS,)),
        (Direction.STEREO, BOTH_LEGS),
    ],
)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_server_gets_the_same_frames_as_if_nobody_looked(
    direction: Direction, legs: tuple[LegPart, ...], steps: list[tuple[str, int]]
) -> None:
    plain, watched = (_Played(direction, legs, watched=one) for one in (False, True))
    for step in steps:
        plain.play(*step)
        watched.play(*step)
    assert watched.stage.frames == plain.stage.frames
    assert watched.stage.pipeline.gated == plain.stage.pipeline.gated
    watched.play("stop", 0)
    for part in legs:
        ways = [
            (getattr(one.stage.legs[part].on_usual, "__name__", ""), one.inlets[part].on_audio)
            for one in (plain, watched)
        ]
        assert ways[0][0] == ways[1][0]
        batch_ways = [one.stage.legs[part].on_batch is None for one in (plain, watched)]
        assert batch_ways[0] == batch_ways[1]
        assert ways[1][1] == watched.stage.pipeline.input_of(part)


# --- Over TCP ---


async def test_leg_whose_reads_are_batched_has_the_level_of_what_it_brings(
    relay: RelayStage, recorder: Any
) -> None:
    fork_id = relay.begin(recorder.url("/a"), Direction.IN, frame_ms=100)
    leg = await relay.attach(fork_id)
    meters = Meters()

    def level() -> int:
        return meters.take(relay.worker.sessions).levels[fork_id].in_peak

    sent = 0

    def send(peak: int) -> None:
        nonlocal sent
        leg.send_audio(*[mono_of(peak)] * 5)
        sent += 1

    for peak in (0, 0, 0, 700, 900, 0):
        send(peak)
        await recorder.wait_messages("/a", sent)
        level()
        send(peak)
        await recorder.wait_messages("/a", sent)
        await until(lambda peak=peak: level() == peak)  # type: ignore[misc]
    meters.close()
    frames = (await recorder.wait_messages("/a", sent)).audio
    assert frames == b"".join(mono_of(peak) * 10 for peak in (0, 0, 0, 700, 900, 0))
