"""Forks move from a relay host that is drained: with new legs beside the old ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.errors import AmiActionFailed, LegRefused
from audiofork.forks.leaving import LEAVE_TIMEOUT_S
from audiofork.link.messages import (
    EndReason,
    ExpectLeg,
    Moved,
    MoveFork,
    MoveReady,
    NotMoved,
    RelayDraining,
    SetMute,
    SinkRetrying,
    TakenOver,
)
from tests.control_plane import NAME, UNIQUEID, Rig
from tests.forks.test_connected import bridges, waiting


async def drain(rig: Rig, *fork_ids: str) -> None:
    rig.sent.clear()
    rig.forks.on_report(RelayDraining(fork_ids))
    await rig.clock.settle()


async def test_fork_is_ordered_with_legs_of_other_ids_and_goes_on(rig: Rig) -> None:
    fork_id = await rig.stream()
    (old,) = rig.tap.legs
    told = list(rig.ami.told)
    await drain(rig, fork_id)
    (move,) = rig.sent
    assert isinstance(move, MoveFork)
    assert move.spec.fork_id == fork_id
    new = rig.tap.legs[-1]
    (expected,) = move.orders
    assert isinstance(expected, ExpectLeg)
    assert expected.leg_id == new
    assert new != old
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert rig.ami.told == told


async def test_moved_fork_has_the_new_legs_and_the_old_ones_may_go(rig: Rig) -> None:
    fork_id = await rig.stream()
    (old,) = rig.tap.legs
    await drain(rig, fork_id)
    told = list(rig.ami.told)
    rig.forks.on_report(Moved(fork_id, "r2"))
    rig.forks.on_event(ChannelHangup(old))
    await rig.clock.advance(LEAVE_TIMEOUT_S)
    assert rig.ami.told == told
    assert [leg.id for leg in rig.forks.find(fork_id).legs.values()] == rig.tap.legs[1:]  # type: ignore[union-attr]
    assert rig.hung_up == []
    await rig.lose_leg(fork_id)
    await rig.clock.advance(1)
    assert len(rig.tap.legs) == 3  # that of the new legs is replaced like any other


async def test_fork_that_stays_has_its_legs_and_the_new_ones_are_hung_up(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    old = list(rig.tap.legs)
    await drain(rig, fork_id)
    rig.forks.on_report(NotMoved(fork_id, "nobody has room"))
    assert rig.hung_up == rig.tap.legs[1:]
    assert [leg.id for leg in rig.forks.find(fork_id).legs.values()] == old  # type: ignore[union-attr]
    assert "it stays at its relay host: nobody has room" in caplog.text
    await drain(rig, fork_id)
    assert isinstance(rig.sent[0], MoveFork)


async def test_fork_that_moves_already_is_not_moved_again(rig: Rig) -> None:
    fork_id = await rig.stream()
    await drain(rig, fork_id)
    await drain(rig, fork_id)
    assert rig.sent == []


async def test_muted_fork_is_muted_where_it_goes(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.request(command="AudioForkMute", channel=NAME, direction="read", state="1")
    await drain(rig, fork_id)
    (move,) = rig.sent
    assert isinstance(move, MoveFork)
    assert move.orders[-1] == SetMute(fork_id, mute_in=True, mute_out=False)


async def test_fork_that_does_not_flow_stays_until_it_does(rig: Rig) -> None:
    waiting, flowing = await rig.attach(), await rig.stream(actionid="8")
    retrying = await rig.stream(actionid="9")
    rig.forks.on_report(SinkRetrying(retrying, 1, "refused", 1.0))
    await drain(rig, waiting, flowing, retrying, "unknown")
    moves = [one.fork_id for one in rig.sent if isinstance(one, MoveFork)]
    assert moves == [flowing]


async def test_leg_that_asterisk_refuses_for_the_other_host_ends_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    rig.tap.fault = LegRefused("no room")
    await drain(rig, fork_id)
    assert len(rig.forks) == 1
    assert "no room" in caplog.text


async def test_fork_that_ends_while_it_moves_is_told_once(rig: Rig) -> None:
    fork_id = await rig.stream()
    await drain(rig, fork_id)
    await rig.request(command="StopAudioFork", channel=NAME)
    await rig.ended(fork_id, EndReason.STOPPED)
    assert rig.ami.told.count("AudioForkStopped") == 1
    rig.forks.on_report(NotMoved(fork_id, "it has ended"))
    assert len(rig.forks) == 0
    assert rig.hung_up[-1] == rig.tap.legs[-1]


@pytest.mark.parametrize(("is_exact", "warnings"), [(True, 0), (False, 1)])
async def test_frames_that_may_be_missing_after_a_move_are_told(
    rig: Rig, caplog: pytest.LogCaptureFixture, is_exact: bool, warnings: int
) -> None:
    fork_id = await rig.stream()
    await drain(rig, fork_id)
    rig.forks.on_report(Moved(fork_id, "r2"))
    rig.forks.on_report(TakenOver(fork_id, is_exact))
    assert caplog.text.count("some frames may be missing") == warnings


async def bots(rig: Rig, count: int) -> list[str]:
    """Return forks that flow, whose server is the other party."""
    ids = [await rig.stream(actionid=str(number)) for number in range(count)]
    for fork_id in ids:
        fork = rig.forks.find(fork_id)
        assert fork is not None
        fork.request = replace(fork.request, connects=True)
        for leg in fork.legs.values():
            leg.gone = True  # it is an end of the call
    return ids


async def test_calls_to_a_bot_stay_for_now_which_is_told_when_their_number_changes(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [*await bots(rig, 2), await rig.stream(actionid="9")]
    caplog.set_level("INFO")
    rig.sent.clear()
    for _ in range(2):
        rig.forks.on_report(RelayDraining(tuple(ids), "r1"))
    await rig.clock.settle()
    assert [one.fork_id for one in rig.sent if isinstance(one, MoveFork)] == [ids[2]]
    text = "the relay host r1 is drained: 1 forks are to move; 2 calls whose other party is a"
    assert caplog.text.count(text) == 1
    rig.forks.on_report(RelayDraining(tuple(ids[1:]), "r1"))
    assert "; 1 calls whose" in caplog.text


async def moving_bot(rig: Rig) -> tuple[str, str]:
    """Return a call to a bot whose host is to be rid of it, and the leg that it gets."""
    (fork_id,) = await bots(rig, 1)
    rig.sent.clear()
    waiting(rig, fork_id, peers=f"AudioSocket/192.0.2.1:9092-{rig.tap.orders[0].uuid}")
    rig.forks.on_report(RelayDraining((fork_id,), "r1", moves_calls=True))
    await rig.clock.settle()
    (move,) = rig.sent
    assert isinstance(move, MoveFork)
    assert move.by_bridge
    order = rig.tap.orders[-1]
    assert order.is_spare
    return fork_id, order.leg_id


async def test_call_to_a_bot_is_bridged_with_its_new_leg_when_that_is_ready(rig: Rig) -> None:
    fork_id, leg_id = await moving_bot(rig)
    assert bridges(rig) == []
    rig.forks.on_report(MoveReady(fork_id))
    await rig.clock.settle()
    assert bridges(rig) == [{"Channel1": leg_id, "Channel2": UNIQUEID}]
    assert rig.hung_up == []
    rig.forks.on_report(Moved(fork_id, "r2"))
    fork = rig.forks.find(fork_id)
    assert fork is not None
    assert [leg.id for leg in fork.live_legs()] == [leg_id]  # by now it is a channel of its own
    assert rig.hung_up == []


async def test_new_leg_of_a_bot_goes_where_asterisk_does_not_bridge_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id, leg_id = await moving_bot(rig)
    rig.ami.faults["Bridge"] = AmiActionFailed("Bridge", "no such channel")
    rig.forks.on_report(MoveReady(fork_id))
    await rig.clock.settle()
    assert rig.hung_up == [leg_id]
    assert "it is not connected with another relay host: Bridge: no such channel" in caplog.text


async def test_call_to_a_bot_that_was_taken_elsewhere_meanwhile_is_not_bridged(rig: Rig) -> None:
    fork_id, leg_id = await moving_bot(rig)
    waiting(rig, fork_id, exten="agent")
    rig.forks.on_report(MoveReady(fork_id))
    await rig.clock.settle()
    assert bridges(rig) == []
    assert rig.hung_up == [leg_id]


async def test_leg_goes_where_the_call_was_taken_elsewhere_in_the_moment_of_the_bridge(
    rig: Rig,
) -> None:
    fork_id, leg_id = await moving_bot(rig)
    gate = rig.ami.gates["Bridge"] = asyncio.Event()
    rig.forks.on_report(MoveReady(fork_id))
    await rig.clock.settle()
    waiting(rig, fork_id, exten="agent", peers="AudioSocket/192.0.2.1:9092-2")
    gate.set()
    await rig.clock.settle()
    assert len(bridges(rig)) == 1
    assert rig.hung_up == [leg_id]


async def test_call_to_a_bot_that_ends_is_not_bridged(rig: Rig) -> None:
    fork_id, _ = await moving_bot(rig)
    await rig.request(command="StopAudioFork", channel=NAME)
    rig.forks.on_report(MoveReady(fork_id))
    await rig.clock.settle()
    assert bridges(rig) == []
