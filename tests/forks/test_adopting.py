"""Forks that their relay process has gone on with while there was no daemon."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.asterisk.taps.base import fork_id_of
from audiofork.errors import AmiUnavailable
from audiofork.forks import fork as fork_module
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.journal import Entry
from audiofork.forks.legs import LEG_LOSS_GRACE_S
from audiofork.forks.recovery import AT_ONCE, NO_WAY, RESTARTED
from audiofork.link.messages import (
    Adopt,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeldFork,
    Leave,
    LegAttached,
    LegLost,
    LegPart,
    RelaysFound,
    SinkMessage,
    SinkOpened,
    Streaming,
)
from audiofork.text import A_BUG
from tests.control_plane import ANY_URL, NAME, UNIQUEID, UNKNOWN_ID, WAY, Rig
from tests.forks.test_connected import bridges, talking, waiting
from tests.forks.test_recovery import ENTRY, resume

PAIRS = LegPart.PAIRS
LEG = f"audiofork-{UNKNOWN_ID}"
HELD = HeldFork(UNKNOWN_ID, WAY, (PAIRS,), 16_000, {"pairs": LEG}, attached=(PAIRS,))


@pytest.fixture
async def leaving(rig: Rig) -> AsyncIterator[Rig]:
    """A registry whose relay goes on when it stops."""
    one = Rig(rig.clock, outlives_daemon=True)
    yield one
    await one.close()


@pytest.fixture(autouse=True)
def legs_end(rig: Rig) -> Iterator[None]:
    """Asterisk ends the legs of ended forks."""
    yield
    rig.ami.channels.pop(LEG, None)


def hold(rig: Rig, held: HeldFork = HELD) -> None:
    rig.held = {held.fork_id: held}
    if UNIQUEID in rig.ami.channels:
        legs = dict.fromkeys(held.leg_ids.values(), "AudioSocket/127.0.0.1:9093-1")
        rig.ami.channels = {**rig.ami.channels, **legs}


async def adopt(rig: Rig) -> None:
    """Adopt a fork that streams."""
    hold(rig)
    await resume(rig, ENTRY)
    for report in (
        SinkOpened(UNKNOWN_ID),
        LegAttached(UNKNOWN_ID, PAIRS),
        Streaming(UNKNOWN_ID),
    ):
        rig.forks.on_report(report)
    await rig.clock.settle()


async def test_fork_that_went_on_is_adopted_with_its_legs_and_none_is_asked_for(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await adopt(rig)
    assert rig.sent == [Adopt(UNKNOWN_ID)]
    assert rig.expected == []
    assert rig.tap.started == []
    assert rig.taps.kept == [{LEG}]
    assert rig.ami.told == ["STREAMING", "AudioForkStarted"]
    assert rig.last_event[1]["TakenUp"] == "yes"
    assert rig.last_event[1]["SampleRate"] == "16000"
    assert "resumed 0 of the 1 forks that an earlier run left, and found 1 that went on" in (
        caplog.text
    )
    (view,) = await rig.forks.views()
    assert (view.channel, view.state) == (NAME, "streaming")
    await rig.clock.advance(60)  # nobody waits for its legs
    assert rig.ends == []


async def test_age_of_an_adopted_fork_is_that_which_its_relay_tells(rig: Rig) -> None:
    """The wall clock of the host that has noted when it began may be another."""
    hold(rig, replace(HELD, age_s=12.0))
    await resume(rig, replace(ENTRY, started=ENTRY.started + 3600))
    await rig.clock.advance(1)
    (view,) = await rig.forks.views()
    assert view.age_s == 13.0


async def test_start_is_noted_once_where_the_relay_would_outlive_its_fault(
    leaving: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Entry] = []
    monkeypatch.setattr(leaving.journal, "put", noted.append)
    await leaving.stream()
    assert [entry.attempts for entry in noted] == [0]


async def test_adopted_fork_is_found_muted_and_stopped_as_any_other(rig: Rig) -> None:
    await adopt(rig)
    await rig.request(Command="StopAudioFork", Channel=NAME)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.STOPPED)]


async def test_leg_that_was_lost_meanwhile_is_replaced(rig: Rig) -> None:
    await adopt(rig)
    rig.forks.on_report(LegLost(UNKNOWN_ID, PAIRS, 5))
    await rig.clock.advance(2 * LEG_LOSS_GRACE_S)
    assert [one.part for one in rig.expected] == [PAIRS]
    assert rig.expected[0].leg_id != LEG


async def test_leg_that_was_not_ordered_any_more_is_ordered(rig: Rig) -> None:
    hold(rig, replace(HELD, leg_ids={}))
    await resume(rig, ENTRY)
    assert rig.sent == [Adopt(UNKNOWN_ID)]
    assert [one.part for one in rig.expected] == [PAIRS]


async def test_leg_that_asterisk_was_not_asked_for_any_more_is_asked_for(rig: Rig) -> None:
    """The relay expects it, but the daemon died before it could ask Asterisk."""
    hold(rig)
    del rig.ami.channels[LEG]
    await resume(rig, ENTRY)
    assert [one.part for one in rig.expected] == [PAIRS]
    assert rig.tap.started == [(UNKNOWN_ID, UNIQUEID)]


async def test_channel_that_was_hung_up_meanwhile_ends_it_with_what_the_relay_has_counted(
    rig: Rig,
) -> None:
    rig.ami.channels = {}
    await adopt(rig)
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.HANGUP)]
    stats = ForkStats(frames_in=500, frames_sent=500)
    rig.forks.on_report(ForkEnded(UNKNOWN_ID, EndReason.HANGUP, "", stats))
    await rig.clock.settle()
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["FramesIn"] == "500"
    assert rig.journal.entries == {}


async def test_asterisk_that_was_restarted_meanwhile_ends_it(rig: Rig) -> None:
    hold(rig)
    await resume(rig, replace(ENTRY, asterisk_started="yesterday"))
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.LEG_FAILED, RESTARTED)]


async def test_rule_that_forbids_it_now_ends_it(rig: Rig) -> None:
    rig.allow(allow_urls=("wss://elsewhere.example/",))
    hold(rig)
    await resume(rig, ENTRY)
    (end,) = rig.ends
    assert end.reason is EndReason.STOPPED
    assert end.detail.startswith("not resumed: ")


async def test_limit_that_was_lowered_does_not_end_it(rig: Rig) -> None:
    rig.allow(max_forks=1, max_forks_per_channel=1)
    hold(rig)
    await resume(rig, ENTRY)
    assert rig.ends == []


async def test_way_that_is_not_to_be_had_any_more_ends_it(rig: Rig) -> None:
    hold(rig, replace(HELD, way="snoop/application"))
    await resume(rig, ENTRY)
    assert rig.sent == [EndFork(UNKNOWN_ID, EndReason.STOPPED, NO_WAY)]
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["Detail"] == NO_WAY
    assert rig.journal.entries == {}


async def test_fork_that_the_journal_does_not_know_is_ended(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    hold(rig)
    await resume(rig)
    assert [end.reason for end in rig.ends] == [EndReason.SHUTDOWN]
    assert "ended 1 forks that went on: the journal does not know them: " in caplog.text


@pytest.mark.parametrize("muted", [False, True])
async def test_what_the_relay_has_muted_counts_and_not_what_could_be_noted_of_it(
    rig: Rig, muted: bool
) -> None:
    hold(rig, replace(HELD, mute_in=muted))
    await resume(rig, replace(ENTRY, mute_in=not muted))
    assert rig.sent == [Adopt(UNKNOWN_ID)]
    (view,) = await rig.forks.views()
    assert view.muted == ("read" if muted else "")
    assert rig.journal.entries[UNKNOWN_ID].mute_in is muted


async def test_leg_that_is_not_attached_is_hung_up_and_asked_for_anew(rig: Rig) -> None:
    """The daemon may have died in the midst of it, and nobody would go on with that."""
    hold(rig, replace(HELD, attached=()))
    await resume(rig, ENTRY)
    assert [one.part for one in rig.expected] == [PAIRS]
    assert rig.hung_up == [LEG]


async def test_callers_of_adopted_forks_are_asked_for_together_in_the_order_of_the_entries(
    rig: Rig,
) -> None:
    rig.forks._look_ups._asks_callers = True
    entries = [replace(ENTRY, fork_id=str(uuid.UUID(int=one))) for one in range(2 * AT_ONCE + 1)]
    rig.held = {one.fork_id: replace(HELD, fork_id=one.fork_id, leg_ids={}) for one in entries}
    rig.ami.gates["Getvar"] = gate = asyncio.Event()
    resuming = asyncio.create_task(resume(rig, *entries))
    await rig.clock.settle()
    assert [name for name, *_ in rig.ami.actions].count("Getvar") == AT_ONCE
    assert rig.sent == []
    gate.set()
    await resuming
    assert [one for one in rig.sent if isinstance(one, Adopt)] == [
        Adopt(entry.fork_id) for entry in entries
    ]


async def test_callers_that_cannot_be_asked_for_leave_all_entries_to_the_next_login(
    rig: Rig,
) -> None:
    rig.forks._look_ups._asks_callers = True
    rig.ami.faults["Getvar"] = AmiUnavailable("lost")
    hold(rig)
    with pytest.raises(AmiUnavailable):
        await resume(rig, ENTRY)
    assert rig.sent == []
    del rig.ami.faults["Getvar"]
    await rig.forks.on_login()
    assert rig.sent == [Adopt(UNKNOWN_ID)]


async def test_entry_that_cannot_be_used_keeps_no_other_from_its_fork(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = HeldFork(UNKNOWN_ID.replace("0", "1"), WAY, (PAIRS,), 8000, {})
    hold(rig)
    rig.held[other.fork_id] = other

    def restored(entry: Entry, *more: Any) -> Any:
        if entry.fork_id == other.fork_id:
            raise KeyError(entry.fork_id)
        return fork_module.restored(entry, *more)

    monkeypatch.setattr("audiofork.forks.registry.restored", restored)
    await resume(rig, replace(ENTRY, fork_id=other.fork_id), ENTRY)
    assert rig.ends == [EndFork(other.fork_id, EndReason.FAULT, A_BUG)]
    assert Adopt(UNKNOWN_ID) in rig.sent
    assert list(rig.journal.entries) == [UNKNOWN_ID]
    assert f"fork {other.fork_id} of an earlier run is lost" in caplog.text
    caplog.clear()  # the traceback is meant


async def test_stop_before_the_adoption_ends_held_forks(rig: Rig) -> None:
    hold(rig)
    await rig.stop()
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.SHUTDOWN)]


async def test_connected_fork_whose_profile_is_gone_is_ended(rig: Rig) -> None:
    hold(rig, HeldFork(UNKNOWN_ID, "connect/dial", (LegPart.IN,), 8000, {"in": LEG}))
    await resume(rig, replace(ENTRY, url="@bot", options="", connects=True))
    assert rig.sent == [EndFork(UNKNOWN_ID, EndReason.STOPPED, NO_WAY)]


async def test_message_that_came_meanwhile_is_told(rig: Rig) -> None:
    await adopt(rig)
    rig.forks.on_report(SinkMessage(UNKNOWN_ID, "hello"))
    await rig.clock.settle()
    assert rig.last_event[0] == "AudioForkMessage"


async def test_forks_that_went_on_are_adopted_before_others_are_resumed(rig: Rig) -> None:
    hold(rig)
    other = replace(ENTRY, fork_id=UNKNOWN_ID.replace("0", "1"))
    await resume(rig, other, ENTRY)
    assert rig.sent[0] == Adopt(UNKNOWN_ID)
    assert len(rig.expected) == 1


async def test_stop_that_keeps_leaves_forks_to_the_relay_and_says_so_to_nobody(
    leaving: Rig,
) -> None:
    rig = leaving
    fork_id = await rig.stream()
    told = list(rig.ami.told)
    await rig.stop(keep=True)
    assert rig.sent[-1] == Leave(fork_id)
    assert rig.ends == []
    assert rig.ami.told == told
    assert list(rig.journal.entries) == [fork_id]


async def test_stop_that_keeps_ends_what_ends_anyway(leaving: Rig) -> None:
    rig = leaving
    fork_id = await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    stopping = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    await stopping
    assert rig.journal.entries == {}


async def test_stop_that_does_not_keep_ends_forks(leaving: Rig) -> None:
    rig = leaving
    fork_id = await rig.stream()
    stopping = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.SHUTDOWN)]
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    await stopping


async def test_connected_fork_is_left_and_adopted_without_leading_its_call_again(
    leaving: Rig,
) -> None:
    rig = leaving
    rig.allow(allow_speak=(*ANY_URL, "@*"))
    fork_id = await talking(rig)
    await rig.stop(keep=True)
    (entry,) = rig.journal.entries.values()
    assert rig.sent[-1] == Leave(fork_id)

    again = Rig(rig.clock, outlives_daemon=True)
    again.allow(allow_speak=(*ANY_URL, "@*"))
    leg = {"in": rig.expected[0].leg_id}
    hold(again, HeldFork(fork_id, "connect/dial", (LegPart.IN,), 8000, leg))
    await resume(again, entry)
    assert again.sent == [Adopt(fork_id)]
    for report in (
        SinkOpened(fork_id),
        LegAttached(fork_id, LegPart.IN),
        Streaming(fork_id),
    ):
        again.forks.on_report(report)
    await again.clock.advance(60)
    assert again.ends == []
    assert again.expected == []
    (view,) = await again.forks.views()
    assert view.state == "streaming"
    await again.close()


async def test_connected_fork_whose_server_is_not_there_yet_is_told_of_its_first_leg(
    leaving: Rig,
) -> None:
    rig = leaving
    rig.allow(allow_speak=(*ANY_URL, "@*"))
    fork_id = await rig.start(Command="ConnectAudioFork")
    await rig.stop(keep=True)
    (entry,) = rig.journal.entries.values()
    again = Rig(rig.clock, outlives_daemon=True)
    again.allow(allow_speak=(*ANY_URL, "@*"))
    hold(again, HeldFork(fork_id, "connect/dial", (LegPart.IN,), 8000, {}))
    await resume(again, entry)
    again.forks.on_report(SinkOpened(fork_id))
    await again.clock.settle()
    assert [order.is_spare for order in again.tap.orders] == [False]
    await again.close()


async def next_of_moved(rig: Rig, *, attached: bool) -> tuple[Rig, str]:
    """Return the next daemon's registry, which adopts a call that has moved; and its leg's id."""
    rig.allow(allow_speak=(*ANY_URL, "@*"))
    fork_id = await talking(rig)
    await rig.stop(keep=True)
    (entry,) = rig.journal.entries.values()
    again = Rig(rig.clock, outlives_daemon=True)
    again.allow(allow_speak=(*ANY_URL, "@*"))
    leg_id = f"audiofork-{fork_id}-1234abcd"
    ids, parts = {"in": leg_id}, (LegPart.IN,) if attached else ()
    if attached:
        again.ami.channels[leg_id] = "AudioSocket/192.0.2.9:9092-1"
    hold(again, HeldFork(fork_id, "connect/dial", (LegPart.IN,), 8000, ids, attached=parts))
    waiting(again, fork_id, peers="AudioSocket/192.0.2.9:9092-1" if attached else "")
    await resume(again, entry)
    return again, leg_id


@pytest.mark.parametrize("is_bridged", [True, False])
async def test_call_that_has_moved_keeps_its_leg_and_is_bridged_with_it_if_it_is_not_yet(
    leaving: Rig, is_bridged: bool
) -> None:
    again, leg_id = await next_of_moved(leaving, attached=True)
    if is_bridged:
        again.ami.bridged.add(leg_id)
    again.forks.on_report(LegAttached(fork_id_of(leg_id), LegPart.IN))
    await again.clock.settle()
    assert (again.expected, again.hung_up) == ([], [])
    assert [one["Channel1"] for one in bridges(again)] == ([] if is_bridged else [leg_id])
    await again.close()


async def test_call_that_has_moved_whose_leg_did_not_come_gets_another(leaving: Rig) -> None:
    again, leg_id = await next_of_moved(leaving, attached=False)
    (order,) = again.tap.orders
    assert order.is_spare
    assert order.leg_id != leg_id
    await again.close()


# --- Relays that are not heard of yet ------------------------------------------------------------


async def wait_for_relays(rig: Rig) -> None:
    """Let a fork be left whose relay is not heard of, but may come."""
    rig.ami.channels[LEG] = "AudioSocket/192.0.2.9:9092-1"
    rig.taps.left = []
    rig.knows_held = False
    await resume(rig, ENTRY)


async def find_relays(rig: Rig, *found: HeldFork) -> None:
    rig.knows_held = True
    rig.held = {one.fork_id: one for one in found}
    rig.forks.on_report(RelaysFound())
    await rig.clock.settle()


def hung_up(rig: Rig) -> list[str]:
    return [dict(headers)["Channel"] for name, headers, _ in rig.ami.actions if name == "Hangup"]


async def test_fork_waits_until_its_relay_is_known_and_is_adopted_then(rig: Rig) -> None:
    await wait_for_relays(rig)
    await rig.clock.advance(15)
    assert (rig.sent, hung_up(rig), rig.ends) == ([], [], [])
    assert LEG in rig.taps.kept[-1]
    assert UNKNOWN_ID in rig.journal.entries
    await find_relays(rig, HELD)
    assert rig.sent == [Adopt(UNKNOWN_ID)]
    assert (hung_up(rig), rig.ends, rig.tap.started) == ([], [], [])


async def test_fork_that_waited_in_vain_begins_anew(rig: Rig) -> None:
    await wait_for_relays(rig)
    await rig.clock.advance(15)
    await find_relays(rig)
    assert [type(one) for one in rig.sent] == [ForkSpec]
    assert hung_up(rig) == [LEG]
    assert rig.tap.started == [(UNKNOWN_ID, UNIQUEID)]


async def test_call_that_ends_while_its_fork_waits_is_told_when_that_is_found(rig: Rig) -> None:
    await wait_for_relays(rig)
    rig.forks.on_event(ChannelHangup(UNIQUEID, is_gone=True))
    del rig.ami.channels[UNIQUEID]
    await find_relays(rig, HELD)
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.sent == [Adopt(UNKNOWN_ID), EndFork(UNKNOWN_ID, EndReason.HANGUP)]
    rig.forks.on_report(ForkEnded(UNKNOWN_ID, EndReason.HANGUP, "", ForkStats()))
    await rig.clock.settle()
    assert UNKNOWN_ID not in rig.journal.entries


async def test_login_while_a_fork_waits_leaves_it_waiting(rig: Rig) -> None:
    await wait_for_relays(rig)
    await rig.forks.on_login()
    assert (rig.sent, hung_up(rig)) == ([], [])
    await find_relays(rig, HELD)
    assert rig.sent == [Adopt(UNKNOWN_ID)]


async def test_relays_that_are_found_during_a_login_have_each_fork_adopted_once(rig: Rig) -> None:
    await wait_for_relays(rig)
    rig.ami.gates["CoreShowChannels"] = asyncio.Event()
    login = asyncio.create_task(rig.forks.on_login())
    await rig.clock.settle()
    await find_relays(rig, HELD)
    rig.ami.gates["CoreShowChannels"].set()
    await login
    await rig.clock.settle()
    assert rig.sent == [Adopt(UNKNOWN_ID)]


async def test_relays_that_are_found_without_asterisk_leave_the_fork_to_the_next_login(
    rig: Rig,
) -> None:
    await wait_for_relays(rig)
    rig.ami.faults["CoreShowChannels"] = AmiUnavailable("away")
    await find_relays(rig, HELD)
    assert rig.sent == []
    del rig.ami.faults["CoreShowChannels"]
    await rig.forks.on_login()
    assert rig.sent == [Adopt(UNKNOWN_ID)]
