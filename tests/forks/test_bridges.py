import asyncio

import pytest

from audiofork.asterisk.ami_protocol import BridgeChanged
from audiofork.errors import AmiUnavailable, NoSuchChannel
from audiofork.forks.bridges import WIDEBAND_SETTLES_S
from audiofork.link.messages import Direction, EndFork, EndReason, ForkSpec, LegPart, SetGate
from tests.control_plane import COMMANDS, NAME, START, UNIQUEID, URL, WAY, Rig

PAIRS = LegPart.PAIRS


# --- Bridges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bridged", [True, False])
async def test_bridged_only_begins_as_the_status_says(rig: Rig, bridged: bool) -> None:
    rig.ami.bridged = {UNIQUEID} if bridged else {"2.2"}
    await rig.start(options="b")
    assert rig.spec.gate_open is bridged


async def test_without_bridged_only_nobody_asks_and_the_gate_stays_open(rig: Rig) -> None:
    fork_id = await rig.stream()
    for entered in (True, False):
        rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    assert rig.spec.gate_open
    spec = ForkSpec(
        fork_id, NAME, URL, Direction.BOTH, (PAIRS,), steady=True, commands=COMMANDS, way=WAY
    )
    assert rig.sent == [spec]
    assert "Status" not in [name for name, _, _ in rig.ami.actions]


async def test_bridge_moves_the_gate_of_the_channel_s_own_forks_alone(rig: Rig) -> None:
    fork_id = await rig.stream(options="b")
    await rig.stream(options="b", channel="PJSIP/200-0000002b")
    await rig.stream()
    before = len(rig.sent)
    for entered in (True, False, True):
        rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    rig.forks.on_event(BridgeChanged("9.9", True))
    assert rig.sent[before:] == [SetGate(fork_id, is_open) for is_open in (True, False, True)]


async def test_bridge_event_without_news_moves_no_gate(rig: Rig) -> None:
    rig.ami.bridged = {UNIQUEID}
    await rig.stream(options="b")
    rig.forks.on_event(BridgeChanged(UNIQUEID, True))
    assert [type(command) for command in rig.sent] == [ForkSpec]


@pytest.mark.parametrize("entered", [True, False])
async def test_bridge_event_during_the_look_up_wins_over_the_status(
    rig: Rig, entered: bool
) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    rig.ami.bridged = set() if entered else {UNIQUEID}
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    rig.forks.on_event(BridgeChanged(UNIQUEID, entered))
    gate.set()
    await asked
    # The relay hears of it with the fork, not before.
    assert [type(command) for command in rig.sent] == [ForkSpec]
    assert rig.spec.gate_open is entered
    rig.forks.on_event(BridgeChanged(UNIQUEID, not entered))
    assert rig.sent[-1] == SetGate(rig.spec.fork_id, not entered)


async def test_bridged_only_on_a_channel_that_goes_before_its_status_is_refused(rig: Rig) -> None:
    gate = rig.ami.gates["Status"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, options="b"))
    await rig.clock.settle()
    rig.ami.channels.clear()
    gate.set()
    with pytest.raises(NoSuchChannel):
        await asked


async def test_login_catches_up_with_bridges(rig: Rig) -> None:
    fork_id = await rig.stream(options="b")
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.ami.bridged = {UNIQUEID, "2.2"}
    await rig.forks.on_login()
    assert rig.sent[2:] == [SetGate(fork_id, True)]
    rig.ami.channels.clear()
    await rig.forks.on_login()
    assert len(rig.sent) == 3


# --- Wideband audio that comes later -------------------------------------------------------------


PEER, PEER_ID = "PJSIP/200-0000002b", "2.2"


def why_wide(wide: str) -> str:
    return f"D(both) in a call with {wide}"


@pytest.fixture
def narrow(rig: Rig) -> Rig:
    """The rig at a narrowband site, with a bridge of the channel and another."""
    rig.taps.narrowband = True
    rig.ami.values_of = {UNIQUEID: {"BRIDGEPEER": PEER}, PEER_ID: {"BRIDGEPEER": NAME}}
    return rig


async def enter(rig: Rig, uniqueid: str) -> None:
    rig.forks.on_event(BridgeChanged(uniqueid, True))
    await rig.clock.settle()


@pytest.mark.parametrize("enters", [UNIQUEID, PEER_ID], ids=["own", "peer"])
async def test_wideband_that_enters_the_bridge_of_pairs_ends_the_fork_with_the_reason(
    narrow: Rig, enters: str
) -> None:
    fork_id = await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, enters)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("g722"))]


async def test_wideband_that_enters_ends_all_forks_of_that_bridge_and_no_other(
    narrow: Rig,
) -> None:
    mine = [await narrow.stream(), await narrow.start(), await narrow.stream(channel=PEER)]
    narrow.ami.channels["3.3"] = "PJSIP/300-0000002c"
    await narrow.stream(channel="PJSIP/300-0000002c")
    narrow.taps.wide_in = dict.fromkeys([UNIQUEID, PEER_ID, "3.3"], "opus")
    await enter(narrow, PEER_ID)
    assert {end.fork_id for end in narrow.ends} == set(mine)
    await enter(narrow, UNIQUEID)
    assert len(narrow.ends) == len(mine)


async def test_bridge_without_wideband_leaves_its_forks_alone(narrow: Rig) -> None:
    await narrow.stream()
    narrow.taps.wide_in[PEER_ID] = "g722"  # of a call that is not this one's
    await enter(narrow, UNIQUEID)
    await enter(narrow, PEER_ID)
    assert narrow.ends == []


async def test_bridge_that_is_left_is_not_looked_at(narrow: Rig) -> None:
    await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    narrow.forks.on_event(BridgeChanged(UNIQUEID, False))
    await narrow.clock.settle()
    assert narrow.ends == []


async def test_wideband_that_a_bridge_takes_its_time_to_show_ends_its_forks(narrow: Rig) -> None:
    """Whoever enters is not its sole member, nor named as one of the first eleven."""
    fork_id = await narrow.stream()
    await enter(narrow, "4.4")
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await narrow.clock.advance(WIDEBAND_SETTLES_S - 0.1)
    assert narrow.ends == []
    await narrow.clock.advance(0.2)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("g722"))]


async def test_who_enters_while_a_look_is_due_has_one_more_that_is_late_enough(
    narrow: Rig,
) -> None:
    fork_id = await narrow.stream()
    await enter(narrow, "4.4")
    await narrow.clock.advance(WIDEBAND_SETTLES_S - 1)
    await enter(narrow, "5.5")
    await narrow.clock.advance(1.1)  # the first look finds nothing
    narrow.taps.wide_in[UNIQUEID] = "opus"
    await narrow.clock.advance(WIDEBAND_SETTLES_S)
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("opus"))]


async def test_wideband_that_came_while_the_link_was_away_is_found_after_the_login(
    narrow: Rig,
) -> None:
    fork_id = await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "slin16"
    await narrow.forks.on_login()
    await narrow.clock.settle()
    assert narrow.ends == [EndFork(fork_id, EndReason.LEG_FAILED, why_wide("slin16"))]


@pytest.mark.parametrize("parts", [(LegPart.MIX,), (LegPart.IN,), (LegPart.IN, LegPart.OUT)])
async def test_wideband_does_not_matter_to_legs_that_are_no_pairs(
    narrow: Rig, parts: tuple[LegPart, ...]
) -> None:
    narrow.taps.parts = parts
    await narrow.stream()
    questions = len(narrow.ami.actions)
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, UNIQUEID)
    assert (narrow.ends, len(narrow.ami.actions)) == ([], questions)


async def test_bridges_are_not_looked_at_where_the_site_claims_nothing(narrow: Rig) -> None:
    narrow.taps.narrowband = False
    await narrow.stream()
    questions = len(narrow.ami.actions)
    narrow.taps.wide_in[UNIQUEID] = "g722"
    await enter(narrow, UNIQUEID)
    assert (narrow.ends, len(narrow.ami.actions)) == ([], questions)


@pytest.mark.parametrize("why", ["gone", "down"])
async def test_bridge_that_cannot_be_asked_about_leaves_its_forks_alone(
    narrow: Rig, why: str
) -> None:
    await narrow.stream()
    narrow.taps.wide_in[UNIQUEID] = "g722"
    if why == "gone":
        del narrow.ami.channels[PEER_ID]
    else:
        narrow.ami.faults["Getvar"] = AmiUnavailable("down")
    await enter(narrow, PEER_ID)
    assert narrow.ends == []
