import asyncio
from typing import Any

import pytest

from audiofork.errors import AmiUnavailable, NoSuchChannel, Refusal, RequestRefused
from audiofork.forks.counters import Counters
from audiofork.forks.events import Attack, AttackKind, Started
from audiofork.link.messages import (
    EndReason,
    ForkStats,
    LegPart,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from tests.control_plane import START, UNIQUEID, Rig


def test_counters_begin_at_nothing() -> None:
    assert Counters() == Counters(requested=0, refused=0, started=0, failed=0, frames_in=0)
    assert Counters().ended == {}


async def test_forks_are_counted_as_requested_started_and_ended_by_reason(rig: Rig) -> None:
    first, second = await rig.stream(), await rig.attach()
    assert (rig.counters.requested, rig.counters.started) == (2, 1)
    assert rig.counters.ended == {}
    await rig.ended(first, EndReason.HANGUP)
    await rig.ended(second, EndReason.STOPPED)
    await rig.ended(await rig.stream(), EndReason.HANGUP)
    assert (rig.counters.requested, rig.counters.started) == (3, 2)
    assert rig.counters.ended == {EndReason.HANGUP: 2, EndReason.STOPPED: 1}
    assert rig.counters.failed == 0


async def test_fork_that_fails_counts_as_failed_and_by_its_reason(rig: Rig) -> None:
    await rig.ended(await rig.attach(), EndReason.SINK_GONE)
    await rig.ended(await rig.stream(), EndReason.SINK_GONE)  # no failure: audio had flowed
    assert rig.counters.failed == 1
    assert rig.counters.ended == {EndReason.SINK_GONE: 2}


async def test_refusals_count_at_any_door(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    with pytest.raises(NoSuchChannel):
        await rig.ask(**{**START, "channel": "nobody"})
    assert (rig.counters.refused, rig.counters.requested) == (2, 0)
    assert rig.counters.refusals == {Refusal.NO_SUCH_CHANNEL: 2}


@pytest.mark.parametrize(
    ("security", "fields", "reason"),
    [
        ({"allow_urls": ("ws://other.example",)}, {}, Refusal.NOT_ALLOWED),
        ({"allow_private": False}, {"wsserver": "ws://10.0.0.1/"}, Refusal.NOT_ALLOWED),
        ({}, {"options": "k(party)"}, Refusal.NOT_ALLOWED),
        ({}, {"options": "T(insecure)"}, Refusal.NOT_ALLOWED),
        ({"allow_post_process": False}, {"postprocess": "date"}, Refusal.NOT_ALLOWED),
        ({}, {"wsserver": "http://example.org/"}, Refusal.INVALID),
        ({}, {"wsserver": "@nowhere"}, Refusal.INVALID),
        ({"max_forks": 0}, {}, Refusal.LIMIT),
        ({"max_forks_per_channel": 0}, {}, Refusal.LIMIT),
        ({}, {"channel": "nobody"}, Refusal.NO_SUCH_CHANNEL),
        ({}, {"command": "StopAudioFork"}, Refusal.NO_SUCH_FORK),
    ],
)
async def test_refusal_counts_by_its_reason(
    rig: Rig, security: dict[str, Any], fields: dict[str, str], reason: Refusal
) -> None:
    rig.allow(**security)
    with pytest.raises(RequestRefused):
        await rig.ask(**{**START, **fields})
    assert rig.counters.refusals == {reason: 1}


async def test_refusal_because_asterisk_cannot_be_asked_counts_as_that(rig: Rig) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("away")
    with pytest.raises(AmiUnavailable):
        await rig.ask(**START)
    assert rig.counters.refusals == {Refusal.ASTERISK: 1}


async def test_start_that_would_wait_too_long_counts_as_too_fast(rig: Rig) -> None:
    rig.allow(max_starts=1, max_forks=100, max_forks_per_channel=100)
    asked = [asyncio.create_task(rig.ask(**START)) for _ in range(9)]
    await rig.clock.advance(0.0)
    for _ in range(8):
        await rig.clock.advance(1.0)
    ended = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, RequestRefused)]
    assert 0 < len(refused) < len(asked)
    assert rig.counters.refusals == {Refusal.RATE: len(refused)}


async def test_call_without_a_tap_counts_as_that(rig: Rig) -> None:
    rig.taps.faults[UNIQUEID] = RequestRefused("no way", Refusal.NO_TAP)
    with pytest.raises(RequestRefused):
        await rig.ask(**START)
    assert rig.counters.refusals == {Refusal.NO_TAP: 1}


async def test_start_while_the_daemon_stops_counts_as_that(rig: Rig) -> None:
    await rig.shut_down()
    with pytest.raises(RequestRefused):
        await rig.ask(**START)
    assert rig.counters.refusals == {Refusal.STOPPING: 1}


async def test_start_says_how_long_it_took_from_the_request_on(rig: Rig) -> None:
    fork_id = await rig.attach()
    await rig.clock.advance(0.75)
    rig.forks.on_report(Streaming(fork_id))
    (started,) = [event for event in rig.events if isinstance(event, Started)]
    assert started.after_s == 0.75


async def test_frames_of_ended_forks_add_up(rig: Rig) -> None:
    for stats in (ForkStats(9, 5, 4, frames_missing=2), ForkStats(100, 99, 1, frames_missing=3)):
        await rig.ended(await rig.stream(), EndReason.HANGUP, stats=stats)
    counters = rig.counters
    assert (counters.frames_in, counters.frames_sent, counters.frames_dropped) == (109, 104, 5)
    assert counters.frames_missing == 5


async def test_servers_that_come_back_count_as_reconnects(rig: Rig) -> None:
    fork_id = await rig.stream()
    for attempt in (1, 2):
        rig.forks.on_report(SinkRetrying(fork_id, attempt, "refused"))
    assert rig.counters.reconnects == 0
    rig.forks.on_report(SinkResumed(fork_id, 0))
    assert (rig.counters.reconnects, rig.counters.legs_lost) == (1, 0)


async def test_lost_legs_count_and_their_return_is_no_reconnect(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(2):
        await rig.lose_leg(fork_id)
        await rig.clock.advance(0.5)
        rig.connect(fork_id, LegPart.PAIRS)
    assert (rig.counters.legs_lost, rig.counters.reconnects) == (2, 0)


async def test_lost_relay_process_counts_by_itself(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.connect(fork_id, LegPart.PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    counters = rig.counters
    assert (counters.relays_lost, counters.legs_lost, counters.reconnects) == (1, 0, 0)


def test_attacks_add_up_by_their_kind() -> None:
    counters = Counters()
    for kind, count in (("wrong-uuid", 3), ("contested-leg", 1), ("wrong-uuid", 2)):
        counters.on_event(Attack(AttackKind(kind), "from 127.0.0.1", count))
    assert counters.attacks == {AttackKind.WRONG_UUID: 5, AttackKind.CONTESTED_LEG: 1}
