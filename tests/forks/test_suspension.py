"""A registry that does not lead for a while: another controller may, so it leaves all as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.errors import Refusal, RequestRefused
from audiofork.forks.events import Refused
from audiofork.forks.journal import Entry
from audiofork.forks.leaving import LEAVE_TIMEOUT_S
from audiofork.link.messages import Adopt, HeldFork, LegPart, RelayLost
from tests.control_plane import START, UNIQUEID, WAY, Rig

WHY = "the broker is away"
LATER_S = 10.0  # than any time limit of a leg


@pytest.fixture
def left(rig: Rig) -> Iterator[Rig]:
    """A registry whose forks are another's after the test."""
    yield rig
    rig.live.clear()
    rig.journal.entries.clear()


async def held_of(rig: Rig, fork_id: str) -> Entry:
    """Have the relay hold a fork that was left; return its entry."""
    entry = rig.journal.entries[fork_id]
    leg_ids = {LegPart.PAIRS.value: f"audiofork-{fork_id}"}
    rig.ami.channels[f"audiofork-{fork_id}"] = "AudioSocket/us-1"
    rig.held[fork_id] = HeldFork(
        *(fork_id, WAY, (LegPart.PAIRS,), 8000, leg_ids), attached=(LegPart.PAIRS,)
    )
    return entry


async def test_forks_are_left_and_nothing_is_done_to_them(left: Rig) -> None:
    fork_id = await left.stream()
    orders, posts, actions = len(left.tap.orders), len(left.ami.posts), len(left.ami.actions)
    left.forks.suspend(WHY, 0)
    assert len(left.forks) == 0
    left.forks.on_event(ChannelHangup(f"audiofork-{fork_id}", is_gone=True))
    left.forks.on_event(ChannelHangup(UNIQUEID, is_gone=True))
    for _ in range(20):
        await left.clock.advance(LATER_S / 20)
    assert len(left.tap.orders) == orders
    assert (len(left.ami.posts), len(left.ami.actions)) == (posts, actions)
    assert fork_id in left.journal.entries
    assert left.sent == left.sent[:1]  # the order of the fork


async def test_who_asks_for_the_forks_gets_the_reason(left: Rig) -> None:
    await left.stream()
    left.forks.suspend(WHY, 0)
    with pytest.raises(RequestRefused, match=WHY):
        await left.forks.views()
    with pytest.raises(RequestRefused, match=WHY):
        await left.ask(Command="StopAudioFork", Uniqueid=UNIQUEID)


async def test_leg_that_waits_for_its_relay_is_not_requested(left: Rig) -> None:
    gate = asyncio.Event()

    async def wait(_fork_id: str) -> bool:
        return await gate.wait()

    left.forks._legs._until_expected = wait
    await left.start()
    left.forks.suspend(WHY, 0)
    gate.set()
    await left.clock.settle()
    assert not left.tap.orders


async def test_fork_of_a_lost_relay_that_waits_for_its_turn_is_not_started_again(left: Rig) -> None:
    left.allow(max_starts=1)
    ids = [await left.stream()]
    await left.clock.advance(1)
    ids.append(await left.stream(wsserver="ws://example.org/b"))
    await left.clock.advance(1)
    left.forks.on_report(RelayLost(tuple(ids), 0.0))
    await left.clock.settle()
    orders = len(left.tap.orders)
    left.forks.suspend(WHY, 0)
    for _ in range(20):
        await left.clock.advance(0.1)
    assert len(left.tap.orders) == orders


async def test_start_whose_turn_had_come_is_refused(rig: Rig) -> None:
    rig.taps.gate = asyncio.Event()
    asking = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    rig.forks.suspend(WHY, 0)
    rig.taps.gate.set()
    with pytest.raises(RequestRefused, match=WHY):
        await asking
    assert not rig.sent
    (refused,) = [one for one in rig.events if isinstance(one, Refused)]
    assert refused.reason is Refusal.CLUSTER


async def test_forks_are_taken_up_again_as_they_were_left(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.suspend(WHY, 0)
    entry = await held_of(rig, fork_id)
    rig.forks.resume_after_login([entry])
    rig.forks.go_on()
    await rig.forks.on_login()
    assert rig.sent[1:] == [Adopt(fork_id)]
    assert len(rig.tap.orders) == 1
    assert not rig.forks.is_suspended
    rig.forks.on_event(ChannelHangup(UNIQUEID, is_gone=True))
    await rig.clock.advance(LEAVE_TIMEOUT_S)
    assert len(rig.sent) == 3  # and its end


async def test_taking_up_ends_where_it_is_suspended_in_the_midst(left: Rig) -> None:
    ids = [await left.stream(wsserver=f"ws://example.org/{number}") for number in range(3)]
    left.forks.suspend(WHY, 0)
    entries = [left.journal.entries[fork_id] for fork_id in ids]
    left.forks.resume_after_login(entries)  # the relay has none of them any more
    left.forks.go_on()
    before = len(left.sent)
    left.taps.gate = asyncio.Event()
    taking = asyncio.create_task(left.forks.on_login())
    await left.clock.settle()
    left.forks.suspend(WHY, 0)
    left.taps.gate.set()
    await taking
    assert len(left.sent) == before
    assert len(left.forks) == 0
    assert set(left.journal.entries) == set(ids)
