"""A fork's own state: what is away, what is muted, which legs it has."""

import pytest

from audiofork.asterisk.taps.choice import Choice
from audiofork.asterisk.taps.ways import Connects, Way
from audiofork.errors import InvalidTransition, RequestRefused
from audiofork.forks.events import ForkInfo
from audiofork.forks.fork import Fork, new_fork
from audiofork.forks.lifecycle import Away, ForkEvent, ForkState
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.requests import StartFork, parse_request
from audiofork.link.messages import Direction, LegPart
from tests.control_plane import NAME, START, UNIQUEID, URL, FakeTap


def make_fork(**fields: str) -> Fork:
    request = parse_request({**START, **fields})
    assert isinstance(request, StartFork)
    return new_fork(request, Commands({}))


def choice(*parts: LegPart) -> Choice:
    way = Way("chanspy", "", Connects.ORIGINATE, dict.fromkeys(Direction, parts), True, rules=())
    return Choice(FakeTap(), way, 16000)


@pytest.fixture
def fork() -> Fork:
    """A fork that is attaching, with a leg for each side."""
    fork = make_fork()
    fork.found(NAME, UNIQUEID, "today")
    fork.settle(choice(LegPart.IN, LegPart.OUT))
    fork.apply(ForkEvent.RESOLVED)
    return fork


def test_new_fork_is_named_as_its_request_names_the_channel() -> None:
    fork = make_fork(uniqueid="9.9")
    assert (fork.channel, fork.uniqueid, fork.state) == (NAME, "9.9", ForkState.REQUESTED)
    assert fork.info == ForkInfo(fork.id, NAME, "9.9", URL, "7")


def test_new_fork_with_a_command_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(RequestRefused, match="^PostProcess: "):
        make_fork(postprocess="eval ^{CALLERID(name)}")


def test_fork_that_is_found_is_named_as_asterisk_names_the_channel() -> None:
    fork = make_fork(channel="other")
    fork.found(NAME, UNIQUEID, "today")
    assert (fork.channel, fork.uniqueid) == (NAME, UNIQUEID)
    assert fork.log.extra == {"fork": fork.id, "channel": NAME}


def test_choice_settles_the_legs(fork: Fork) -> None:
    assert list(fork.legs) == [LegPart.IN, LegPart.OUT]
    assert fork.progress.chosen.is_set()
    assert (fork.sample_rate, fork.info.sample_rate) == (16000, 16000)


def test_live_legs_are_those_that_were_asked_for_and_are_not_gone(fork: Fork) -> None:
    leg_in, leg_out = fork.legs.values()
    assert fork.live_legs() == []
    leg_in.id, leg_out.id = "a", "b"
    leg_in.gone = True
    assert fork.live_legs() == [leg_out]


def test_loss_before_audio_flows_is_told_from_one_after(fork: Fork) -> None:
    assert (fork.lost(Away.SERVER), fork.state) == (False, ForkState.ATTACHING)
    fork.first_frame()
    assert (fork.lost(Away.SERVER), fork.state) == (True, ForkState.RECONNECTING)


def test_fork_streams_again_when_all_that_was_away_is_back(fork: Fork) -> None:
    fork.first_frame()
    fork.lost(Away.SERVER)
    fork.lost(Away.IN)
    assert fork.back(Away.SERVER)
    assert (fork.state, fork.is_whole) == (ForkState.RECONNECTING, False)
    assert fork.back(Away.IN)
    assert (fork.state, fork.is_whole) == (ForkState.STREAMING, True)


@pytest.mark.parametrize("streaming", [True, False])
def test_return_is_no_news_while_nothing_that_flowed_was_lost(fork: Fork, streaming: bool) -> None:
    if streaming:
        fork.first_frame()
    else:
        fork.lost(Away.SERVER)
    state = fork.state
    assert not fork.back(Away.SERVER)
    assert fork.state is state


def test_first_frame_means_that_the_server_is_there_and_the_leg_may_not_be(fork: Fork) -> None:
    fork.lost(Away.SERVER)
    fork.lost(Away.OUT)
    fork.first_frame()
    assert fork.state is ForkState.RECONNECTING
    assert fork.progress.away == {Away.OUT}


def test_first_frame_twice_is_a_bug(fork: Fork) -> None:
    fork.first_frame()
    with pytest.raises(InvalidTransition):
        fork.first_frame()


def test_fork_is_ending_once_its_channel_was_hung_up(fork: Fork) -> None:
    assert not fork.is_ending
    fork.call.hangup_seen = True
    assert fork.is_ending
