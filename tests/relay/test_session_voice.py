"""What a session does with what its server sends, between a leg and a sink of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from audiofork.link.messages import (
    Beeps,
    CommandAsked,
    Direction,
    EndReason,
    LegLost,
    ServerCommand,
    Voice,
)
from audiofork.relay.formats.base import Audio, BufferLevel, Cleared, Command, Mark
from tests.relay.peers import FakeLoop, numbered
from tests.relay.pipeline_stage import FORK_ID, IN, OUT
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = tuple(ServerCommand)
SPEECH = numbered(100, 1)
SILENCE = bytes(320)


def speaking(begin: Begin, **wishes: Any) -> SessionStage:
    """Begin a fork with a voice, whose leg is attached and whose server is there."""
    stage = begin(**{"voice": Voice((IN,)), "commands": ALL, **wishes})
    stage.stream()
    return stage


def say(stage: SessionStage, *frames: bytes) -> None:
    for frame in frames:
        stage.sink.on_audio(Audio(frame, 8000))


def order(stage: SessionStage, command: ServerCommand, value: str = "") -> None:
    stage.sink.on_command(Command(command, value))


def events(stage: SessionStage) -> list[Any]:
    return [event for _, event in stage.sink.events]


# --- Audio ----------------------------------------------------------------------------------------


async def test_audio_that_comes_before_the_fork_is_taken_over_is_played_after_that(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(voice=Voice((IN,), steady=True), commands=ALL, holds=True)
    stage.attach()
    stage.sink.open()
    say(stage, *SPEECH)
    clock.advance(3)
    assert stage.leg.spoken == []  # nor silence, over a leg that another host's server is heard by
    stage.session.take_over(((), ()), 0)
    clock.advance(3)
    assert [one for one in stage.leg.spoken if one != SILENCE] == SPEECH
    assert stage.session.stats().frames_unplayed == 0


async def test_audio_is_played_and_counted(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH)
    clock.advance(3)
    assert stage.leg.spoken == SPEECH
    assert stage.session.stats().frames_played == 100


async def test_audio_goes_over_the_leg_of_the_voice_alone(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(Direction.STEREO, legs=(IN, OUT), voice=Voice((OUT,)), commands=ALL)
    stage.attach()
    say(stage, *SPEECH)
    clock.advance(3)
    assert (stage.legs[OUT].spoken, stage.legs[IN].spoken) == (SPEECH, [])


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"voice": None}, "(audio): the fork has no voice (option k)"),
        ({"commands": (ServerCommand.CLEAR,)}, "(audio): it is not granted ([security]"),
    ],
    ids=["no voice", "not granted"],
)
async def test_audio_that_is_not_allowed_is_counted_and_logged_once(
    begin: Begin, clock: FakeLoop, wishes: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = speaking(begin, **wishes)
    say(stage, *SPEECH)
    clock.advance(3)
    assert stage.leg.spoken == []
    assert stage.session.stats().commands_refused == 100
    (record,) = caplog.records
    assert why in record.getMessage()
    assert record.__dict__["fork"] == FORK_ID


async def test_audio_of_a_server_that_is_lost_is_still_played(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH)
    clock.advance(0.5)
    stage.sink.lose(0)
    stage.sink.on_retry(1, "gone", 1.0)
    clock.advance(3)
    assert stage.leg.spoken == SPEECH


async def test_half_a_sample_of_a_lost_server_shifts_nothing(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    say(stage, b"\1")
    stage.sink.on_retry(1, "gone", 1.0)
    say(stage, SPEECH[0])
    clock.advance(1)
    assert stage.leg.spoken == SPEECH[:1]


async def test_steady_leg_has_silence_while_the_server_is_away(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin, voice=Voice((IN,), steady=True))
    clock.advance(0.5)
    stage.sink.lose(0)
    stage.sink.on_retry(1, "gone", 1.0)
    clock.advance(1)
    assert len(stage.leg.spoken) in (75, 76)
    assert set(stage.leg.spoken) == {SILENCE}


async def test_lost_leg_leaves_the_audio_to_the_next(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH)
    clock.advance(0.5)
    stage.close_leg()
    clock.advance(3)
    assert stage.count(LegLost) == 1
    stage.attach()
    clock.advance(3)
    assert stage.leg.spoken == SPEECH


async def test_what_waits_at_the_end_counts_as_unplayed(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH)
    order(stage, ServerCommand.MARK, "never")
    clock.advance(0.51)
    played = len(stage.leg.spoken)
    stage.session.end(EndReason.HANGUP)
    say(stage, *SPEECH)
    order(stage, ServerCommand.MARK, "too late")
    order(stage, ServerCommand.HANGUP)
    stats = (await stage.ended()).stats
    assert (stats.frames_played, stats.frames_unplayed) == (played, 100 - played)
    assert (events(stage), stage.count(CommandAsked), clock.armed) == ([], 0, 0)


async def test_server_that_sends_too_much_is_told_and_the_excess_is_counted(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin, voice=Voice((IN,), buffer_s=1))
    say(stage, *SPEECH)
    assert events(stage) == [BufferLevel(is_high=True)]
    clock.advance(3)
    assert stage.leg.spoken == SPEECH[:50]
    assert events(stage)[1:] == [BufferLevel(is_high=False)]
    assert stage.session.stats().frames_unplayed == 50


# --- The end of a leg -----------------------------------------------------------------------------


@pytest.mark.parametrize("steady", [False, True])
async def test_steady_leg_is_ended_so_that_the_call_goes_on(
    begin: Begin, clock: FakeLoop, steady: bool
) -> None:
    stage = speaking(begin, voice=Voice((IN,), steady=steady))
    stage.session.end(EndReason.STOPPED)
    assert (stage.leg.hang_ups, stage.leg.lets_go) == (1, steady)


async def test_steady_leg_that_comes_too_late_is_ended_so_that_the_call_goes_on(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(voice=Voice((IN,), steady=True))
    stage.session.end(EndReason.STOPPED)
    stage.attach()
    assert (stage.leg.hang_ups, stage.leg.lets_go) == (1, True)


async def test_last_beep_of_a_steady_leg_has_no_more_of_the_servers_audio(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin, voice=Voice((IN,), steady=True), beeps=Beeps(at_end=True))
    say(stage, *SPEECH)
    clock.advance(0.5)
    stage.session.end(EndReason.STOPPED)
    say(stage, *SPEECH)
    count = len(stage.leg.spoken)
    clock.advance(1)
    assert not {*SPEECH} & {*stage.leg.spoken[count:]}
    assert (stage.leg.hang_ups, clock.armed) == (1, 0)


# --- Commands -------------------------------------------------------------------------------------


async def test_100_clears_each_silence_at_once_and_bring_all_marks_back(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin, voice=Voice((IN,), steady=True))
    for trial in range(100):
        stage.sink.events.clear()
        for number, frame in enumerate(SPEECH[:20]):
            say(stage, frame)
            order(stage, ServerCommand.MARK, f"{trial} {number}")
        clock.advance(0.1 + trial * 0.003)
        cleared = stage.session.stats().frames_cleared
        order(stage, ServerCommand.CLEAR)
        spoken = len(stage.leg.spoken)
        clock.advance(0.7)
        assert set(stage.leg.spoken[spoken:]) == {SILENCE}
        lost_ms = (stage.session.stats().frames_cleared - cleared) * 20
        assert events(stage) == [*(Mark(f"{trial} {n}") for n in range(20)), Cleared(lost_ms)]
    stats = stage.session.stats()
    assert stats.frames_played + stats.frames_cleared == 2000
    assert stats.frames_cleared > 0


async def test_100_marks_come_back_each_after_its_audio(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    for number, frame in enumerate(SPEECH):
        say(stage, frame)
        order(stage, ServerCommand.MARK, str(number))
    for number in range(100):
        while len(stage.leg.spoken) <= number:
            assert len(events(stage)) == number
            clock.advance(0.002)
        assert events(stage) == [Mark(str(n)) for n in range(number + 1)]


async def test_server_gets_no_audio_while_it_pauses(begin: Begin, clock: FakeLoop) -> None:
    stage = speaking(begin)
    first, missed, last = numbered(3, 1)
    stage.audio(first)
    order(stage, ServerCommand.PAUSE)
    order(stage, ServerCommand.PAUSE)
    stage.audio(missed)
    order(stage, ServerCommand.RESUME)
    stage.audio(last)
    assert stage.sink.frames == [first, last]


@pytest.mark.parametrize("gate_first", [False, True])
async def test_resume_leaves_a_shut_gate_shut(begin: Begin, gate_first: bool) -> None:
    stage = speaking(begin)
    if gate_first:
        stage.session.set_gate(is_open=False)
    order(stage, ServerCommand.PAUSE)
    stage.session.set_gate(is_open=False)
    order(stage, ServerCommand.RESUME)
    stage.audio(SPEECH[0])
    assert stage.sink.frames == []
    stage.session.set_gate(is_open=True)
    stage.audio(SPEECH[0])
    assert stage.sink.frames == SPEECH[:1]


async def test_gate_that_opens_leaves_a_pause(begin: Begin) -> None:
    stage = speaking(begin)
    order(stage, ServerCommand.PAUSE)
    stage.session.set_gate(is_open=False)
    stage.session.set_gate(is_open=True)
    stage.audio(SPEECH[0])
    assert stage.sink.frames == []


async def test_pause_ends_with_the_connection(begin: Begin) -> None:
    stage = speaking(begin)
    order(stage, ServerCommand.PAUSE)
    stage.sink.on_retry(1, "gone", 1.0)
    stage.audio(SPEECH[0])
    assert stage.sink.frames == SPEECH[:1]


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (ServerCommand.HANGUP, ""),
        (ServerCommand.DTMF, "12#"),
        (ServerCommand.TRANSFER, "sales"),
    ],
)
async def test_what_the_relay_cannot_do_is_reported(
    begin: Begin, command: ServerCommand, value: str
) -> None:
    stage = speaking(begin, voice=None)
    order(stage, command, value)
    assert stage.reports[-1] == CommandAsked(FORK_ID, command, value)
    assert stage.session.stats().commands_refused == 0


async def test_hang_up_after_audio_is_reported_once_that_was_played(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH[:10])
    stage.sink.on_command(Command(ServerCommand.HANGUP, after_audio=True))
    clock.advance(0.15)
    assert stage.count(CommandAsked) == 0
    clock.advance(0.09)
    assert stage.leg.spoken == SPEECH[:10]
    assert stage.count(CommandAsked) == 0, "the party has not heard the last of it"
    clock.advance(0.2)
    assert stage.reports[-1] == CommandAsked(FORK_ID, ServerCommand.HANGUP)


@pytest.mark.parametrize("ends", [False, True])
async def test_hang_up_after_audio_that_is_dropped_does_not_come(
    begin: Begin, clock: FakeLoop, ends: bool
) -> None:
    stage = speaking(begin)
    say(stage, *SPEECH[:10])
    stage.sink.on_command(Command(ServerCommand.HANGUP, after_audio=True))
    if ends:
        stage.session.end(EndReason.STOPPED)
        await stage.ended()
    else:
        order(stage, ServerCommand.CLEAR)
    clock.advance(1)
    assert stage.count(CommandAsked) == 0


async def test_hang_up_after_audio_of_a_fork_without_a_voice_is_reported_at_once(
    begin: Begin,
) -> None:
    stage = speaking(begin, voice=None)
    stage.sink.on_command(Command(ServerCommand.HANGUP, after_audio=True))
    assert stage.reports[-1] == CommandAsked(FORK_ID, ServerCommand.HANGUP)


@pytest.mark.parametrize("command", [one for one in ServerCommand if one != ServerCommand.AUDIO])
async def test_command_that_is_not_granted_does_nothing_and_is_counted(
    begin: Begin, clock: FakeLoop, command: ServerCommand, caplog: pytest.LogCaptureFixture
) -> None:
    stage = speaking(begin, commands=(ServerCommand.AUDIO,))
    say(stage, *SPEECH)
    reports = len(stage.reports)
    order(stage, command, "1")
    order(stage, command, "2")
    stage.audio(SPEECH[0])
    clock.advance(3)
    assert (stage.leg.spoken, stage.sink.frames, events(stage)) == (SPEECH, SPEECH[:1], [])
    assert len(stage.reports) == reports
    assert stage.session.stats().commands_refused == 2
    (record,) = caplog.records
    assert f"({command}): it is not granted" in record.getMessage()


async def test_resume_needs_no_grant_of_its_own(begin: Begin) -> None:
    stage = speaking(begin, commands=(ServerCommand.PAUSE,))
    order(stage, ServerCommand.PAUSE)
    order(stage, ServerCommand.RESUME)
    stage.audio(SPEECH[0])
    assert stage.sink.frames == SPEECH[:1]


@pytest.mark.parametrize(
    ("command", "allowed"), [(ServerCommand.MARK, 200), (ServerCommand.HANGUP, 20)]
)
async def test_commands_beyond_the_limit_are_refused(
    begin: Begin, clock: FakeLoop, command: ServerCommand, allowed: int
) -> None:
    stage = speaking(begin)
    for _ in range(300):
        order(stage, command)
    assert stage.session.stats().commands_refused == 300 - allowed
    clock.advance(1.1)
    order(stage, command)
    assert stage.session.stats().commands_refused == 300 - allowed


async def test_long_name_of_a_mark_is_refused(begin: Begin) -> None:
    stage = speaking(begin)
    order(stage, ServerCommand.MARK, "x" * 1000)
    order(stage, ServerCommand.MARK, "x" * 1001)
    assert events(stage) == [Mark("x" * 1000)]
    assert stage.session.stats().commands_refused == 1


async def test_clear_without_a_voice_is_refused(begin: Begin) -> None:
    stage = speaking(begin, voice=None)
    order(stage, ServerCommand.CLEAR)
    assert (events(stage), stage.session.stats().commands_refused) == ([], 1)
