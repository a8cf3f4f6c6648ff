"""Forks whose server is the other party of the call. The registry around them is the real one."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.asterisk.ami_protocol import RequestReceived
from audiofork.config import Place, ProfileConfig
from audiofork.errors import AmiActionFailed, LegRefused
from audiofork.forks.journal import Entry
from audiofork.forks.legs import LEG_LOSS_GRACE_S, LEG_TIMEOUT_S, MOVED_ON
from audiofork.forks.waiting_calls import CHECK_INTERVAL_S, GONE_ON
from audiofork.link.messages import (
    CommandAsked,
    EndFork,
    EndReason,
    ForkSpec,
    LegPart,
    RelayAway,
    ServerCommand,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
    Voice,
)
from tests.control_plane import ANY_URL, START, UNIQUEID, Rig

CONNECT = {"Command": "ConnectAudioFork"}


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """A registry that grants calls to all servers."""
    rig.allow(allow_speak=(*ANY_URL, "@*"))
    return rig


async def opened(rig: Rig) -> str:
    """Connect a call to a server that is there; return the id of the fork."""
    fork_id = await rig.start(**CONNECT)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    return fork_id


async def talking(rig: Rig) -> str:
    """Connect a call, whose leg comes; return the id of the fork."""
    fork_id = await opened(rig)
    rig.connect(fork_id, LegPart.IN)
    return fork_id


async def test_server_is_heard_at_every_time_and_may_play_clear_and_mark(rig: Rig) -> None:
    await rig.start(**CONNECT)
    (spec,) = rig.sent
    assert isinstance(spec, ForkSpec)
    assert spec.voice == Voice((LegPart.IN,), steady=True)
    assert spec.commands == (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)
    assert spec.legs == (LegPart.IN,)


async def test_call_is_left_alone_until_the_server_is_there(rig: Rig) -> None:
    fork_id = await rig.start(**CONNECT)
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert (rig.tap.orders, rig.expected, rig.ends) == ([], [], [])
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    (order,) = rig.tap.orders
    assert (order.part, order.leads) == (LegPart.IN, True)


async def test_call_is_left_alone_where_the_dialplan_has_no_place_for_it(rig: Rig) -> None:
    rig.ami.values["DIALPLAN_EXISTS(audiofork,led,1)"] = "0"
    await rig.request(**{**START, **CONNECT})
    assert (rig.sent, rig.tap.orders) == ([], [])
    assert rig.last_event[1]["Reason"].startswith("the dialplan has no audiofork,led,1, to which")
    request = RequestReceived({**START, "command": "ConnectAudioFork"}, UNIQUEID)
    rig.user_events.on_request(request)  # by the Gosub, which has its own way
    await rig.clock.settle()
    assert len(rig.sent) == 1


async def test_call_that_asks_itself_is_not_taken_from_where_it_waits(rig: Rig) -> None:
    rig.user_events.on_request(RequestReceived({**START, "command": "ConnectAudioFork"}, UNIQUEID))
    await rig.clock.settle()
    (spec,) = rig.sent
    assert isinstance(spec, ForkSpec)
    rig.forks.on_report(SinkOpened(spec.fork_id))
    await rig.clock.settle()
    assert [order.leads for order in rig.tap.orders] == [False]


async def test_server_that_is_not_there_at_first_ends_it_without_another_attempt(rig: Rig) -> None:
    fork_id = await rig.start(**CONNECT)
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused", 0.2))
    assert rig.ends == [EndFork(fork_id, EndReason.SINK_GONE, "Connection refused")]


async def test_server_that_is_lost_in_the_call_is_tried_again_with_the_same_leg(rig: Rig) -> None:
    fork_id = await talking(rig)
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.2))
    rig.forks.on_report(SinkResumed(fork_id, 0))
    await rig.clock.settle()
    assert rig.ends == []
    assert len(rig.tap.orders) == 1


async def test_leg_that_ends_while_the_call_goes_on_ends_it_and_is_not_replaced(rig: Rig) -> None:
    fork_id = await talking(rig)
    await rig.lose_leg(fork_id, part=LegPart.IN)
    await rig.clock.advance(2 * LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.STOPPED, MOVED_ON)]
    assert len(rig.tap.orders) == 1


async def test_leg_that_does_not_come_ends_it(rig: Rig) -> None:
    fork_id = await opened(rig)
    await rig.clock.advance(LEG_TIMEOUT_S)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "the leg of in did not connect")]


async def test_call_that_may_not_be_taken_from_where_it_is_ends_it_with_the_reason(
    rig: Rig,
) -> None:
    rig.tap.fault = LegRefused("Redirect: Permission denied")
    fork_id = await opened(rig)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "Redirect: Permission denied")]


async def test_it_is_in_the_journal_until_the_daemon_ends_it(rig: Rig) -> None:
    fork_id = await talking(rig)
    await rig.request(Command="AudioForkMute", AudioForkID=fork_id, Direction="read", State="1")
    assert rig.journal.entries[fork_id].connects
    stopping = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.obey()
    await stopping
    assert rig.journal.entries == {}


async def next_daemon(rig: Rig, entry: Entry) -> Rig:
    """Return the next daemon's registry after its login."""
    again = Rig(rig.clock)
    again.allow(allow_speak=(*ANY_URL, "@*"))
    again.ami.values_of = rig.ami.values_of
    again.journal.put(entry)
    again.forks.resume_after_login([entry])
    await again.forks.on_login()
    await again.clock.settle()
    return again


# --- Its relay dies -------------------------------------------------------------------------------


def waiting(
    rig: Rig, fork_id: str, status: str = "STARTING", exten: str = "connect", peers: str = ""
) -> None:
    """Let the dialplan say that the call waits for a server."""
    rig.ami.values_of[UNIQUEID] = {
        "AUDIOFORK_CONNECT": status,
        "AUDIOFORK_CONNECT_ID": fork_id,
        "CHANNEL(context)": "audiofork",
        "CHANNEL(exten)": exten,
        "BRIDGEPEER": peers,
    }


def bridges(rig: Rig) -> list[dict[str, str]]:
    """Return what was asked to be bridged."""
    return [dict(headers) for name, headers, _ in rig.ami.actions if name == "Bridge"]


async def flowing(rig: Rig) -> str:
    """Connect a call, and let its audio flow; return the id of the fork."""
    fork_id = await talking(rig)
    rig.forks.on_report(Streaming(fork_id))
    return fork_id


async def other_relay(rig: Rig, fork_id: str) -> None:
    """Let the relay of a call die, and the leg of another one come."""
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()


async def test_call_whose_relay_dies_gets_a_leg_of_another_and_is_bridged_with_it(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    await rig.lose_relay(fork_id)
    assert len(rig.tap.orders) == 1  # first the server
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    order = rig.tap.orders[-1]
    assert (order.is_spare, order.leg_id) == (True, rig.expected[-1].leg_id)
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()
    assert bridges(rig) == [{"Channel1": order.leg_id, "Channel2": UNIQUEID}]
    assert rig.last_event[0] == "AudioForkResumed"
    await rig.clock.advance(60)
    assert rig.ends == []
    (view,) = await rig.forks.views()
    assert view.state == "streaming"


async def test_call_whose_relays_die_one_after_the_other_is_bridged_each_time(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    for count in (1, 2):
        await other_relay(rig, fork_id)
        assert len(bridges(rig)) == count
    # The first was an end of the call; the second is a channel, which may outlive its relay.
    assert rig.hung_up == [rig.tap.orders[1].leg_id]
    assert rig.ends == []


GONE = [
    {"status": "STOPPED"},
    {"status": "FAILED"},
    {"fork_id": "another fork"},
    {"exten": "elsewhere"},
    {"peers": "PJSIP/agent-00000001"},
]


async def test_call_whose_relay_dies_before_its_leg_has_come_is_led_there_as_at_first(
    rig: Rig,
) -> None:
    fork_id = await opened(rig)
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    assert [(order.is_spare, order.leads) for order in rig.tap.orders] == [(False, True)] * 2


@pytest.mark.parametrize("how", GONE)
async def test_call_that_does_not_wait_any_more_is_left_alone(
    rig: Rig, how: dict[str, str]
) -> None:
    fork_id = await flowing(rig)
    waiting(rig, **{"fork_id": fork_id, **how})
    await other_relay(rig, fork_id)
    assert bridges(rig) == []
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, GONE_ON)]


async def test_call_that_is_parked_is_left_alone(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    rig.ami.bridged.add(UNIQUEID)  # by himself
    await other_relay(rig, fork_id)
    assert bridges(rig) == []
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, GONE_ON)]


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "away"])
async def test_call_that_goes_on_while_no_relay_is_there_has_no_server_any_more(
    rig: Rig, is_lost: bool
) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    if is_lost:
        await rig.lose_relay(fork_id)
    else:
        rig.forks.on_report(RelayAway((fork_id,)))
    await rig.clock.advance(2 * CHECK_INTERVAL_S)
    assert rig.ends == []
    waiting(rig, fork_id, "STOPPED")
    await rig.clock.advance(CHECK_INTERVAL_S)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, GONE_ON)]


@pytest.mark.parametrize(
    ("is_lost", "reason"), [(True, EndReason.LEG_FAILED), (False, EndReason.STOPPED)]
)
async def test_dialplan_that_stops_what_it_waits_for_in_vain_does_so_as_the_relay_is_lost(
    rig: Rig, is_lost: bool, reason: EndReason
) -> None:
    fork_id = await flowing(rig)
    if is_lost:
        rig.forks.on_report(RelayAway((fork_id,)))
    fields = {"command": "StopAudioFork", "audioforkid": fork_id}
    rig.user_events.on_request(RequestReceived(fields, UNIQUEID))
    await rig.clock.settle()
    assert [end.reason for end in rig.ends] == [reason]


async def test_call_whose_leg_is_lost_and_that_waits_gets_another(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    await rig.lose_leg(fork_id, part=LegPart.IN)
    await rig.clock.advance(2 * LEG_LOSS_GRACE_S)
    order = rig.tap.orders[-1]
    assert (len(rig.tap.orders), order.is_spare) == (2, True)
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()
    assert bridges(rig) == [{"Channel1": order.leg_id, "Channel2": UNIQUEID}]
    assert rig.ends == []


@pytest.mark.parametrize("is_own", [True, False])
async def test_call_that_is_with_a_leg_that_hangs_is_taken_from_there_alone(
    rig: Rig, is_own: bool
) -> None:
    fork_id = await flowing(rig)
    presented = rig.tap.orders[0].uuid if is_own else "of somebody else's AudioSocket"
    waiting(rig, fork_id, peers=f"AudioSocket/192.0.2.1:9092-{presented}")
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    rig.ami.channels[rig.tap.orders[-1].leg_id] = "AudioSocket/192.0.2.2:9092-1"
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()
    assert len(bridges(rig)) == is_own
    assert [end.detail for end in rig.ends] == ([] if is_own else [GONE_ON])


async def test_call_whose_leg_is_lost_as_it_is_with_somebody_else_is_left_there(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id, peers="AudioSocket/192.0.2.1:9092-of-somebody-else")
    await rig.lose_leg(fork_id, part=LegPart.IN)
    await rig.clock.advance(2 * LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.STOPPED, MOVED_ON)]


async def test_leg_goes_where_the_call_was_taken_elsewhere_in_the_moment_of_the_bridge(
    rig: Rig,
) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    gate = rig.ami.gates["Bridge"] = asyncio.Event()
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()
    waiting(rig, fork_id, exten="agent")
    gate.set()
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, GONE_ON)]


async def test_call_that_waits_for_its_server_for_the_first_time_is_waited_for(rig: Rig) -> None:
    fork_id = await rig.start(**CONNECT)
    waiting(rig, fork_id, exten="start")
    await rig.lose_relay(fork_id)
    await rig.clock.advance(3 * CHECK_INTERVAL_S)
    assert rig.ends == []
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    assert [order.is_spare for order in rig.tap.orders] == [False]


async def test_call_that_asks_for_another_server_has_left_the_one_before(rig: Rig) -> None:
    fork_id = await flowing(rig)
    told = len(rig.ami.told)
    rig.user_events.on_request(RequestReceived({**START, "command": "ConnectAudioFork"}, UNIQUEID))
    await rig.clock.settle()
    assert [end.fork_id for end in rig.ends] == [fork_id]
    specs = [one.fork_id for one in rig.sent if isinstance(one, ForkSpec)]
    assert len(specs) == 2
    assert "STOPPED" not in rig.ami.told[told:]  # or the dialplan would take that for its answer
    assert rig.ami.variables[UNIQUEID]["AUDIOFORK_CONNECT"] == "STARTING"


async def test_loss_of_a_leg_that_was_replaced_meanwhile_ends_nothing(rig: Rig) -> None:
    fork_id = await flowing(rig)
    await rig.lose_leg(fork_id, part=LegPart.IN)
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    await rig.clock.advance(2 * LEG_LOSS_GRACE_S)
    assert rig.ends == []


async def test_call_that_is_with_its_new_leg_already_is_not_bridged_again(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    leg_id = rig.tap.orders[-1].leg_id
    waiting(rig, fork_id, peers=f"AudioSocket/192.0.2.1:9092-{rig.tap.orders[-1].uuid}")
    rig.ami.channels[leg_id] = "AudioSocket/192.0.2.1:9092-1"
    rig.ami.bridged.add(leg_id)
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.settle()
    assert bridges(rig) == []
    assert rig.last_event[0] == "AudioForkResumed"


async def test_call_that_asterisk_does_not_bridge_ends_with_what_it_says(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    rig.ami.faults["Bridge"] = AmiActionFailed("Bridge", "Channel2 not found")
    await other_relay(rig, fork_id)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "Bridge: Channel2 not found")]


async def test_leg_of_another_relay_that_asterisk_refuses_ends_the_call(rig: Rig) -> None:
    fork_id = await flowing(rig)
    await rig.lose_relay(fork_id)
    rig.tap.fault = LegRefused("no")
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "no")]


async def test_call_that_is_hung_up_while_it_waits_for_another_relay_ends(rig: Rig) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    rig.ami.channels.clear()
    rig.connect(fork_id, LegPart.IN)
    await rig.clock.advance(1)
    assert [end.reason for end in rig.ends] == [EndReason.HANGUP]


# --- Its daemon dies ------------------------------------------------------------------------------


async def test_call_that_waits_when_the_next_daemon_comes_is_bridged_with_a_leg_of_that(
    rig: Rig,
) -> None:
    fork_id = await flowing(rig)
    waiting(rig, fork_id)
    (entry,) = rig.journal.entries.values()
    again = await next_daemon(rig, entry)
    assert again.tap.orders == []  # first the server
    again.forks.on_report(SinkOpened(fork_id))
    await again.clock.settle()
    (order,) = again.tap.orders
    assert order.is_spare
    again.connect(fork_id, LegPart.IN)
    await again.clock.settle()
    assert bridges(again) == [{"Channel1": order.leg_id, "Channel2": UNIQUEID}]
    await again.close()


async def test_call_that_waits_for_the_first_time_is_told_of_its_leg_by_the_next_daemon(
    rig: Rig,
) -> None:
    fork_id = await rig.start(**CONNECT)
    waiting(rig, fork_id, exten="start")
    (entry,) = rig.journal.entries.values()
    again = await next_daemon(rig, entry)
    again.forks.on_report(SinkOpened(fork_id))
    await again.clock.settle()
    assert [order.is_spare for order in again.tap.orders] == [False]
    await again.close()


@pytest.mark.parametrize("how", GONE)
async def test_call_that_has_gone_on_is_left_alone_by_the_next_daemon(
    rig: Rig, how: dict[str, str]
) -> None:
    fork_id = await flowing(rig)
    waiting(rig, **{"fork_id": fork_id, **how})
    (entry,) = rig.journal.entries.values()
    again = await next_daemon(rig, entry)
    assert again.journal.entries == {}
    assert (again.ami.told, again.sent) == ([], [])
    await again.close()


# --- Others of its call ---------------------------------------------------------------------------


async def test_second_server_for_a_call_is_refused_and_a_copy_is_not(rig: Rig) -> None:
    fork_id = await talking(rig)
    await rig.request(**START, **CONNECT)
    why = f"the channel is connected already, by the fork {fork_id}"
    assert rig.last_event[1]["Reason"] == why
    assert isinstance(rig.sent[-1], ForkSpec)
    assert await rig.start() != fork_id


async def test_call_whose_first_server_is_still_being_told_of_the_end_may_have_another(
    rig: Rig,
) -> None:
    fork_id = await talking(rig)
    await rig.request(Command="StopAudioFork", AudioForkID=fork_id)
    assert (rig.variables["AUDIOFORK_CONNECT"], rig.variables["AUDIOFORK_REASON"]) == (
        "STOPPED",
        "stopped",
    )
    assert rig.live == [fork_id]
    second = await rig.start(**CONNECT)
    await rig.ended(fork_id, EndReason.STOPPED)
    assert rig.variables["AUDIOFORK_CONNECT"] == "STARTING"
    assert second in rig.live


async def test_directions_without_in_are_refused(rig: Rig) -> None:
    for direction in ("out", "stereo"):
        await rig.request(**START, **CONNECT, **{"Options": f"D({direction})"})
        assert rig.last_event[1]["Reason"].startswith(f"Options: D({direction}): a connected")


async def test_place_that_the_server_names_is_told_to_the_dialplan_which_gets_the_call_back(
    rig: Rig,
) -> None:
    rig.profiles.configure(
        {
            "bot": ProfileConfig(
                url="ws://h/",
                commands=("transfer",),
                transfer_to=(Place("sales", "100"),),
            )
        }
    )
    fork_id = await rig.start(**CONNECT, wsserver="@bot")
    rig.forks.on_report(SinkOpened(fork_id))
    rig.connect(fork_id, LegPart.IN)
    rig.ami.values["DIALPLAN_EXISTS(sales,100,1)"] = "1"
    rig.forks.on_report(CommandAsked(fork_id, ServerCommand.TRANSFER, "sales,100"))
    await rig.clock.settle()
    assert rig.variables["AUDIOFORK_NEXT"] == "sales,100,1"
    assert rig.ends == [
        EndFork(fork_id, EndReason.STOPPED, "transferred by the server to sales,100,1")
    ]


@pytest.mark.parametrize("allowed", [(), ("wss://other/",), ("@*",)])
async def test_call_may_be_taken_from_where_it_is_only_to_a_server_that_allow_speak_names(
    rig: Rig, allowed: tuple[str, ...]
) -> None:
    rig.allow(allow_speak=allowed)
    await rig.request(**START, **CONNECT)
    assert rig.sent == []
    why = rig.last_event[1]["Reason"]
    assert why.startswith(
        "Command: ConnectAudioFork, not of the call's own dialplan: the server of"
    )
    assert why.endswith(f"allow_speak has {' '.join(allowed) or 'none'}")


async def test_dialplan_may_connect_its_own_call_without_a_grant(rig: Rig) -> None:
    rig.allow(allow_speak=())
    fields = {**START, "command": "ConnectAudioFork"}
    rig.user_events.on_request(RequestReceived(fields, UNIQUEID))
    await rig.clock.settle()
    assert isinstance(rig.sent[-1], ForkSpec)
    assert rig.sent[-1].keep_time, "the server hears by the silence that the party has finished"
