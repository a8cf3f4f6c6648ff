"""The music that callers hear while their server is lost; Asterisk is a fake, events are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup, Event, OriginateFailed
from audiofork.asterisk.channels import Target
from audiofork.asterisk.versions import Version
from audiofork.config import Address, ProfileConfig
from audiofork.errors import AmiActionFailed, AmiUnavailable
from audiofork.forks import music as music_module
from audiofork.forks.events import DomainEvent, ForkInfo, Parting, Reconnecting, Requested, Resumed
from audiofork.forks.lifecycle import Away
from audiofork.forks.music import Music
from audiofork.forks.options import parse_options
from audiofork.forks.profiles import Profiles
from audiofork.forks.requests import StartFork
from audiofork.link.messages import EndReason
from tests.control_plane import NAME, UNIQUEID, Clock, FakeAmi

FORK = ForkInfo("f" * 36, NAME, UNIQUEID, "wss://bot.example.org/", connects=True)
PROFILES = {
    "bot": ProfileConfig(url="wss://bot.example.org/", music="jazz"),
    "mute": ProfileConfig(url="wss://bot.example.org/"),
}
LOST = Reconnecting(FORK, Away.SERVER, 1, "gone", was_streaming=True)


class Relay:
    """Where legs connect to."""

    addresses = (Address("127.0.0.1", 8090),)

    def address_of(self, _fork_id: str) -> Address:
        return self.addresses[0]


def _request(profile: str) -> StartFork:
    return StartFork(Target(NAME), f"@{profile}", parse_options(""), profile=profile)


class Stage:
    """The music of a fork of a profile."""

    def __init__(self, clock: Clock, profile: str, fork: ForkInfo = FORK) -> None:
        self.clock = clock
        self.ami = FakeAmi()
        self.ami.version = Version.parse("22.10.1")
        self.music = Music(self.ami, Relay(), Profiles(PROFILES))  # type: ignore[arg-type]
        self.music.on_event(Requested(fork, _request(profile)))

    async def tell(self, *events: DomainEvent) -> None:
        for event in events:
            self.music.on_event(event)
            await self.clock.settle()

    def actions(self, name: str) -> list[dict[str, str]]:
        return [dict(headers) for one, headers, _ in self.ami.actions if one == name]


@pytest.fixture
def stage(clock: Clock) -> Stage:
    return Stage(clock, "bot")


@pytest.mark.parametrize(
    "end",
    [Resumed(FORK, Away.SERVER), Parting(FORK, EndReason.SINK_GONE, has_failed=False)],
    ids=["back", "end"],
)
async def test_music_plays_from_the_loss_of_the_server_to_its_return_or_the_end(
    stage: Stage, end: DomainEvent
) -> None:
    await stage.tell(LOST, LOST)
    (asked,) = stage.actions("Originate")
    assert asked["Channel"] == "Local/music@audiofork-leg"
    assert asked["Data"] == f"{UNIQUEID},quESw"
    assert asked["Variable"] == "__AUDIOFORK_MUSIC=jazz"
    assert asked["ChannelId"].startswith(f"audiofork-{FORK.id}-music-8090-")
    await stage.tell(end, end)
    assert stage.actions("Hangup") == [{"Channel": asked["ChannelId"]}]


@pytest.mark.parametrize(
    "event",
    [
        Reconnecting(FORK, Away.SERVER, 1, "refused", was_streaming=False),
        Reconnecting(FORK, Away.IN, 1, "gone", was_streaming=True),
    ],
    ids=["never there", "leg"],
)
async def test_no_music_plays_unless_a_server_that_was_there_is_lost(
    stage: Stage, event: DomainEvent
) -> None:
    await stage.tell(event, Resumed(FORK, Away.IN))
    assert not stage.ami.actions


@pytest.mark.parametrize(
    ("profile", "connects"), [("mute", True), ("bot", False)], ids=["profile without", "copy"]
)
async def test_no_music_plays_where_none_is_wanted(
    clock: Clock, profile: str, connects: bool
) -> None:
    fork = ForkInfo(FORK.id, NAME, UNIQUEID, FORK.url, connects=connects)
    stage = Stage(clock, profile, fork)
    await stage.tell(Reconnecting(fork, Away.SERVER, 1, "gone", was_streaming=True))
    await stage.tell(Resumed(fork, Away.SERVER))
    assert not stage.ami.actions


async def test_music_that_does_not_exist_yet_is_hung_up_a_moment_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(music_module, "BETWEEN_TRIES_S", 0.0)
    failures: Iterator[AmiActionFailed | None] = iter([AmiActionFailed("Hangup", "No such"), None])
    action = stage.ami.action

    async def fail_once(
        name: str, headers: list[tuple[str, str]], *, action_id: str = ""
    ) -> dict[str, str]:
        answer = await action(name, headers, action_id=action_id)
        if name == "Hangup" and (failure := next(failures)):
            raise failure
        return answer

    monkeypatch.setattr(stage.ami, "action", fail_once)
    await stage.tell(LOST, Resumed(FORK, Away.SERVER))
    await stage.music.close()
    assert len(stage.actions("Hangup")) == 2


async def test_music_that_asterisk_refuses_is_logged_and_asked_for_at_the_next_attempt(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.ami.faults["Originate"] = AmiUnavailable("no connection to Asterisk")
    await stage.tell(LOST)
    assert "no music for the caller: no connection to Asterisk" in caplog.text
    stage.ami.faults.clear()
    await stage.tell(LOST)
    assert len(stage.actions("Originate")) == 2


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            lambda uniqueid: OriginateFailed(uniqueid, "0"),
            "Asterisk could not make its channel (reason 0)",
        ),
        (lambda uniqueid: ChannelHangup(uniqueid, is_gone=True), "its channel has ended"),
    ],
    ids=["not made", "ended"],
)
async def test_music_without_its_channel_is_logged_and_asked_for_at_the_next_attempt(
    stage: Stage, caplog: pytest.LogCaptureFixture, told: Callable[[str], Event], why: str
) -> None:
    await stage.tell(LOST)
    for other in f"audiofork-{FORK.id}", UNIQUEID:  # a leg, the caller
        stage.music.on_asterisk(told(other))
    assert not caplog.text
    stage.music.on_asterisk(told(stage.actions("Originate")[0]["ChannelId"]))
    assert caplog.text.count(f"no music for the caller: {why}") == 1
    await stage.tell(LOST)
    assert len(stage.actions("Originate")) == 2


async def test_asterisk_that_leaks_when_whispered_to_plays_no_music(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.ami.version = Version.parse("22.11.0")
    back = Resumed(FORK, Away.SERVER)
    await stage.tell(LOST, LOST, LOST, back, LOST)  # once in each outage
    assert not stage.ami.actions
    told = "no music for the caller: whispering leaks on Asterisk 20.21, 22.11, 23.5"
    assert caplog.text.count(told) == 2


async def test_sweep_hangs_up_what_an_earlier_run_left_and_nothing_else(stage: Stage) -> None:
    await stage.tell(LOST)
    own = stage.actions("Originate")[0]["ChannelId"]
    stray, other = f"audiofork-{'e' * 36}-music-8090-1", f"audiofork-{'e' * 36}-music-8091-1"
    name = "Local/music@audiofork-leg-0000000{}"
    channels = {one: name.format(number) for number, one in enumerate((own, stray, other))}
    await stage.music.sweep({**channels, UNIQUEID: NAME})
    assert stage.actions("Hangup") == [{"Channel": stray}]
