"""What the registry emits, and how that reaches its subscribers."""

from typing import Any

import pytest

from audiofork.errors import AmiUnavailable, RequestRefused
from audiofork.forks.events import (
    DomainEvent,
    Ended,
    Events,
    Failed,
    ForkInfo,
    MessageReceived,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.lost_relays import RELAY_DIED
from audiofork.forks.requests import StartFork, StopFork
from audiofork.link.messages import (
    EndReason,
    ForkStats,
    LegPart,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
)
from tests.control_plane import NAME, START, UNIQUEID, UNKNOWN_ID, URL, Rig

STARTED = Started(ForkInfo(UNKNOWN_ID, NAME, UNIQUEID, URL))
STATS = ForkStats(9, 5, 4, reconnects=1)


def info(fork_id: str, action_id: str = "7", **more: Any) -> ForkInfo:
    return ForkInfo(fork_id, NAME, UNIQUEID, URL, action_id, sample_rate=8000, **more)


# --- The way to the subscribers ------------------------------------------------------------------


def test_event_reaches_all_subscribers_in_their_order() -> None:
    events, heard = Events(), []
    events.subscribe(lambda event: heard.append(("first", event)))
    events.subscribe(lambda event: heard.append(("second", event)))
    events.emit(STARTED)
    assert heard == [("first", STARTED), ("second", STARTED)]


def test_fault_of_a_subscriber_is_logged_and_the_next_one_hears_the_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, heard = Events(), list[DomainEvent]()
    events.subscribe(lambda event: [][0])
    events.subscribe(heard.append)
    events.emit(STARTED)
    assert heard == [STARTED]
    assert caplog.messages == ["a subscriber failed on Started"]
    assert caplog.records[0].exc_info is not None


# --- What is emitted -----------------------------------------------------------------------------


async def test_life_of_a_fork_is_emitted_once_each_in_order(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "refused"))
    rig.forks.on_report(SinkResumed(fork_id, 17))
    rig.forks.on_report(SinkMessage(fork_id, "hello"))
    await rig.clock.advance(2.5)
    await rig.ended(fork_id, EndReason.SINK_GONE, "why", STATS)
    requested, *rest = rig.events
    assert isinstance(requested, Requested)
    assert (requested.fork, requested.request.url) == (info(fork_id), URL)
    assert rest == [
        Started(info(fork_id)),
        Reconnecting(info(fork_id), Away.SERVER, 1, "refused", was_streaming=True),
        Resumed(info(fork_id), Away.SERVER, 17),
        MessageReceived(info(fork_id), "hello"),
        Ended(info(fork_id), EndReason.SINK_GONE, STATS, has_failed=False, detail="why", gaps=1),
        Stopped(info(fork_id), EndReason.SINK_GONE, "why", 2.5, STATS),
    ]


async def test_fork_that_fails_before_audio_flows_is_emitted_as_failed(rig: Rig) -> None:
    fork_id = await rig.attach()
    rig.events.clear()
    await rig.ended(fork_id, EndReason.SINK_GONE, "why")
    assert rig.events == [
        Ended(info(fork_id), EndReason.SINK_GONE, ForkStats(), has_failed=True, detail="why"),
        Failed(info(fork_id), EndReason.SINK_GONE, "why", 0, ForkStats()),
    ]


async def test_leg_that_is_lost_and_back_is_named(rig: Rig) -> None:
    rig.taps.parts = (LegPart.IN, LegPart.OUT)
    fork_id = await rig.stream()
    rig.events.clear()
    await rig.lose_leg(fork_id, part=LegPart.OUT)
    await rig.clock.advance(0.5)
    rig.connect(fork_id, LegPart.OUT)
    why = "the leg of out was lost: Asterisk closed it"
    assert rig.events == [
        Reconnecting(info(fork_id), Away.OUT, 1, why, was_streaming=True),
        Resumed(info(fork_id), Away.OUT, gap_ms=500),
    ]


async def test_part_that_is_back_while_another_is_away_does_not_mean_streaming(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "refused"))
    await rig.lose_leg(fork_id)
    await rig.clock.advance(0.5)
    rig.events.clear()
    rig.forks.on_report(SinkResumed(fork_id, 0))
    rig.connect(fork_id, LegPart.PAIRS)
    assert rig.events == [
        Resumed(info(fork_id), Away.SERVER, is_streaming=False),
        Resumed(info(fork_id), Away.PAIRS, gap_ms=500),
    ]


async def test_relay_process_that_died_and_is_replaced_is_named(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.events.clear()
    await rig.lose_relay(fork_id)
    rig.connect(fork_id, LegPart.PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    assert rig.events == [
        Reconnecting(info(fork_id), Away.RELAY, 1, RELAY_DIED, was_streaming=True),
        Resumed(info(fork_id), Away.RELAY, gap_ms=0),
    ]


async def test_end_tells_how_many_relay_processes_died(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    await rig.ended(fork_id, EndReason.HANGUP)
    stopped = rig.events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.relays_lost == 1


async def test_event_has_the_action_id_of_the_request_that_it_answers(rig: Rig) -> None:
    await rig.stream()
    await rig.request(command="StopAudioFork", channel=NAME, actionid="8")
    await rig.obey()
    started, *_, stopped = [event for event in rig.events if isinstance(event, Started | Stopped)]
    assert (started.fork.action_id, stopped.fork.action_id) == ("7", "8")


@pytest.mark.parametrize(
    ("fields", "kind", "why"),
    [
        ({**START, "channel": "nobody"}, StartFork, "No such channel"),
        ({"command": "StopAudioFork", "audioforkid": UNKNOWN_ID}, StopFork, "No such fork"),
    ],
    ids=["start", "stop"],
)
async def test_request_that_is_not_granted_is_emitted_with_the_reason(
    rig: Rig, fields: dict[str, str], kind: type, why: str
) -> None:
    with pytest.raises(RequestRefused):
        await rig.ask(**fields)
    (event,) = rig.events
    assert isinstance(event, Refused)
    assert (type(event.request), event.why) == (kind, why)


async def test_request_that_asterisk_cannot_be_asked_about_is_emitted_as_refused(rig: Rig) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("down")
    with pytest.raises(AmiUnavailable):
        await rig.ask(**START)
    (event,) = rig.events
    assert isinstance(event, Refused)
    assert event.why == "down"


async def test_refusal_at_a_user_event_is_emitted_once(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    assert [type(event) for event in rig.events] == [Refused]


async def test_shutdown_that_keeps_emits_that_the_daemon_is_away_and_no_end(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.events.clear()
    rig.forks._ending.end_all(keep=True)
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    why = "the daemon is restarted"
    assert rig.events == [Reconnecting(info(fork_id), Away.DAEMON, 1, why, was_streaming=True)]
    rig.journal.entries.clear()
