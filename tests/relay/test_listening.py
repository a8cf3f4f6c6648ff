"""Who listens to a fork gets what its server gets, and the fork loses nothing by it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    HeardAudio,
    LegPart,
    Listen,
    ServerCommand,
    Voice,
)
from audiofork.relay.formats.base import Audio
from audiofork.relay.listening import FRAMES_IN_MESSAGE, Listening
from testbed.recorder import Recorder
from tests.relay.peers import FakeLoop, numbered, until
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
)
from tests.relay.relay_stage import RelayStage
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")


class Ear:
    """Listens to a session, and keeps what it hears."""

    def __init__(self, stage: SessionStage) -> None:
        self.heard: list[HeardAudio] = []
        self.listening = Listening(stage.session, self.heard.append)  # type: ignore[arg-type]

    @property
    def samples(self) -> bytes:
        return b"".join(one.samples for one in self.heard)


def listened(begin: Begin, direction: Direction, **wishes: Any) -> tuple[SessionStage, Ear]:
    """Begin a fork whose legs and server are there, and listen."""
    stage = begin(direction, **wishes)
    stage.attach()
    stage.sink.open()
    return stage, Ear(stage)


def bring(stage: SessionStage, value_in: int, value_out: int, count: int = 1) -> None:
    """Bring frames by all legs."""
    for _ in range(count):
        for part in stage.legs:
            values = {IN: value_in, MIX: value_in, OUT: value_out}
            pairs = pairs_of(value_in, value_out)
            stage.audio(pairs if part is PAIRS else mono_of(values[part]), part)


@pytest.mark.parametrize(
    ("direction", "legs", "sides", "frame"),
    [
        (Direction.IN, (IN,), (IN,), mono_of(7)),
        (Direction.OUT, (OUT,), (OUT,), mono_of(9)),
        (Direction.BOTH, (MIX,), (MIX,), mono_of(7)),
        (Direction.BOTH, (PAIRS,), (IN, OUT), pairs_of(7, 9)),
        (Direction.STEREO, (PAIRS,), (IN, OUT), pairs_of(7, 9)),
        (Direction.IN, (PAIRS,), (IN,), mono_of(7)),
        (Direction.OUT, (PAIRS,), (OUT,), mono_of(9)),
        (Direction.BOTH, BOTH_LEGS, (IN, OUT), pairs_of(7, 9)),
        (Direction.STEREO, BOTH_LEGS, (IN, OUT), pairs_of(7, 9)),
    ],
)
async def test_sides_that_are_captured_are_heard_and_stay_apart(
    begin: Begin,
    direction: Direction,
    legs: tuple[LegPart, ...],
    sides: tuple[LegPart, ...],
    frame: bytes,
) -> None:
    stage, ear = listened(begin, direction, legs=legs)
    bring(stage, 7, 9, 2 * FRAMES_IN_MESSAGE)
    samples = frame * FRAMES_IN_MESSAGE
    assert ear.heard == [
        HeardAudio(FORK_ID, number, 8000, sides, samples) for number in (0, FRAMES_IN_MESSAGE)
    ]
    assert ear.heard[0].channels == len(sides)
    assert len(stage.sink.frames) == 2 * FRAMES_IN_MESSAGE


async def test_rate_of_a_wideband_fork_is_told(begin: Begin) -> None:
    stage, ear = listened(begin, Direction.IN, sample_rate=16_000)
    for _ in range(5):
        stage.audio(mono_of(7, 16_000))
    assert ear.heard == [HeardAudio(FORK_ID, 0, 16_000, (IN,), mono_of(7, 16_000) * 5)]


@pytest.mark.parametrize("legs", [(PAIRS,), BOTH_LEGS], ids=["pairs", "two legs"])
async def test_muted_party_is_not_heard(begin: Begin, legs: tuple[LegPart, ...]) -> None:
    stage, ear = listened(begin, Direction.STEREO, legs=legs)
    bring(stage, 7, 9)
    stage.mute(True, None)
    bring(stage, 7, 9, 2)
    stage.mute(False, None)
    bring(stage, 7, 9, 2)
    assert ear.samples == pairs_of(7, 9) + 2 * pairs_of(0, 9) + 2 * pairs_of(7, 9)


@pytest.mark.parametrize("mute", [(True, None), (None, True)])
async def test_muted_side_of_a_mix_silences_it_for_listeners_too(begin: Begin, mute: Any) -> None:
    stage, ear = listened(begin, Direction.BOTH)
    stage.mute(*mute)
    bring(stage, 7, 9, 5)
    assert ear.samples == mono_of(0) * 5


@pytest.mark.parametrize("legs", [(PAIRS,), BOTH_LEGS], ids=["pairs", "two legs"])
async def test_nothing_is_heard_through_a_shut_gate(
    begin: Begin, legs: tuple[LegPart, ...]
) -> None:
    stage, ear = listened(begin, Direction.STEREO, legs=legs)
    bring(stage, 1, 1, 5)
    stage.session.set_gate(False)
    bring(stage, 2, 2, 5)
    stage.session.set_gate(True)
    bring(stage, 3, 3, 5)
    assert ear.samples == pairs_of(1, 1) * 5 + pairs_of(3, 3) * 5


async def test_volume_is_as_the_server_gets_it(begin: Begin) -> None:
    stage, ear = listened(begin, Direction.IN, gain_in=2)
    bring(stage, 7, 0, 5)
    assert ear.samples == b"".join(stage.sink.frames) == mono_of(28) * 5


async def test_silence_that_is_filled_in_is_heard(begin: Begin, clock: FakeLoop) -> None:
    stage, ear = listened(begin, Direction.BOTH, legs=(PAIRS,), keep_time=True)
    bring(stage, 7, 9)
    clock.advance(0.5)
    assert ear.samples.startswith(pairs_of(7, 9) + pairs_of(0, 0) * 9)


async def test_frames_take_their_way_again_when_nobody_listens(begin: Begin) -> None:
    stage, ear = listened(begin, Direction.IN)
    bring(stage, 7, 0, 3)
    assert stage.leg.on_usual != stage.sink.send
    ear.listening.stop()
    bring(stage, 8, 0, 2)
    assert stage.leg.on_usual == stage.sink.send
    assert ear.heard == []


async def test_what_is_left_is_told_at_the_end(begin: Begin) -> None:
    stage, ear = listened(begin, Direction.IN)
    bring(stage, 7, 0, 7)
    ear.listening.finish()
    assert [(one.number, len(one.samples)) for one in ear.heard] == [(0, 1600), (5, 640)]


async def test_listener_hears_a_fork_whose_server_is_away(begin: Begin) -> None:
    stage = begin(Direction.IN)
    ear = Ear(stage)
    stage.attach()
    bring(stage, 7, 0, 5)
    assert ear.samples == mono_of(7) * 5
    assert len(stage.sink.backlog) == 5


# --- A server that is the other party ---


def connected(begin: Begin, **wishes: Any) -> tuple[SessionStage, Ear]:
    voice = Voice((IN,), steady=True)
    wishes = {"voice": voice, "commands": tuple(ServerCommand), **wishes}
    return listened(begin, Direction.IN, **wishes)


async def test_server_of_a_connected_fork_is_heard_beside_the_party(
    begin: Begin, clock: FakeLoop
) -> None:
    stage, ear = connected(begin)
    for turn in range(50):
        if turn == 10:
            stage.sink.on_audio(Audio(mono_of(9) * 20, 8000))
        clock.advance(0.02)
        stage.audio(mono_of(7))
    assert {one.sides for one in ear.heard} == {(IN, OUT)}
    pairs = [ear.samples[start : start + 640] for start in range(0, len(ear.samples), 640)]
    # The server's silence comes before the party's first frame.
    assert set(pairs[1:]) == {pairs_of(7, 0), pairs_of(7, 9)}
    assert pairs.count(pairs_of(7, 9)) == 20
    assert stage.sink.frames == [mono_of(7)] * 50
    assert stage.leg.spoken.count(mono_of(9)) == 20


async def test_server_that_is_played_at_a_lower_rate_is_heard_at_that_of_the_fork(
    begin: Begin, clock: FakeLoop
) -> None:
    stage, ear = connected(begin, sample_rate=16_000)
    stage.leg.spoken_rate = 8000
    stage.sink.on_audio(Audio(mono_of(9) * 30, 8000))
    for _ in range(40):
        clock.advance(0.02)
        stage.audio(mono_of(7, 16_000))
    assert {len(one.samples) for one in ear.heard} == {5 * 1280}
    _, loudest = struct.unpack_from("<2h", ear.heard[4].samples, 640)
    assert loudest == 9


async def test_server_of_a_connected_fork_is_told_to_nobody_when_nobody_listens(
    begin: Begin, clock: FakeLoop
) -> None:
    stage, ear = connected(begin)
    ear.listening.stop()
    stage.sink.on_audio(Audio(mono_of(9) * 20, 8000))
    for _ in range(30):
        clock.advance(0.02)
        stage.audio(mono_of(7))
    assert ear.heard == []
    assert stage.leg.spoken.count(mono_of(9)) == 20


# --- Any order of things ---

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(-50, 50)),
        st.tuples(st.sampled_from(("mute in", "mute out", "gate", "listen")), st.booleans()),
        st.just(("replace", 0)),
    ),
    max_size=60,
)


def play(stage: PipelineStage, what: str, value: int) -> None:
    pipeline = stage.pipeline
    for part in stage.legs:
        if what == "frame":
            stage.audio(pairs_of(value, -value) if part is PAIRS else mono_of(value), part)
        elif what == "replace":
            stage.detach(part)
            stage.attach(part)
    if what.startswith("mute"):
        is_in = what == "mute in"
        pipeline.set_mute(bool(value) if is_in else None, None if is_in else bool(value))
    elif what == "gate":
        pipeline.set_gate(bool(value))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "legs"),
    [
        (Direction.IN, (IN,)),
        (Direction.BOTH, (MIX,)),
        (Direction.STEREO, (PAIRS,)),
        (Direction.STEREO, BOTH_LEGS),
    ],
)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_listener_hears_just_what_the_server_gets_and_changes_nothing_of_it(
    direction: Direction, legs: tuple[LegPart, ...], steps: list[tuple[str, int]]
) -> None:
    """Where the server gets the sides apart, or one alone."""
    plain, stage = (PipelineStage(direction, legs=legs) for _ in range(2))
    plain.attach()
    stage.attach()
    heard: list[bytes] = []
    expected: list[bytes] = []
    listens = False
    for what, value in steps:
        before = len(stage.frames)
        play(plain, what, value)
        play(stage, what, value)
        expected += stage.frames[before:] if listens else []
        if what == "listen":
            listens = bool(value)
            stage.pipeline.overhear(heard.append if listens else None)
    assert heard == expected
    assert stage.frames == plain.frames


# --- Over TCP ---


async def test_listener_of_a_fork_gets_each_frame_and_then_its_end(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url("/a"), Direction.IN, frame_ms=100)
    leg = await relay.attach(fork_id)
    relay.worker.handle(Listen(fork_id, is_on=True))
    relay.worker.handle(Listen(fork_id, is_on=True))  # of another relay process, in error
    leg.send_audio(*numbered(52))
    await until(lambda: relay.worker.sessions[fork_id].stats().frames_in == 52)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    await relay.reported(ForkEnded, fork_id)
    heard = [one for one in relay.reports if isinstance(one, HeardAudio)]
    assert [one.number for one in heard] == list(range(0, 52, 5))
    assert b"".join(one.samples for one in heard) == b"".join(numbered(52))
    assert isinstance(relay.reports[-1], ForkEnded)
    assert (await recorder.wait_messages("/a", 11)).audio == b"".join(numbered(52))


async def test_listening_that_is_turned_off_and_on_begins_anew(
    relay: RelayStage, recorder: Recorder
) -> None:
    fork_id = relay.begin(recorder.url("/a"), Direction.IN)
    leg = await relay.attach(fork_id)
    for is_on, first in ((True, 0), (False, 6), (False, 12), (True, 18)):
        relay.worker.handle(Listen(fork_id, is_on=is_on))
        leg.send_audio(*numbered(6, first))
        await recorder.wait_messages("/a", first + 6)
    heard = [one for one in relay.reports if isinstance(one, HeardAudio)]
    assert [(one.number, one.samples) for one in heard] == [
        (0, b"".join(numbered(5))),
        (0, b"".join(numbered(5, 18))),
    ]


async def test_fork_that_there_is_not_is_not_listened_to(relay: RelayStage) -> None:
    relay.worker.handle(Listen("gone", is_on=True))
    relay.worker.handle(Listen("gone", is_on=False))
    assert relay.reports == []
