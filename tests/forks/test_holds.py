"""Which calls are on hold, and forks whose legs wait for the end of that."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from audiofork.asterisk.ami_protocol import BridgeChanged, ChannelHangup, HoldChanged
from audiofork.asterisk.channels import Channels
from audiofork.errors import AmiUnavailable
from audiofork.forks.holds import Holds
from audiofork.link.messages import EndFork, EndReason, ForkSpec, LegPart, SetMute
from tests.control_plane import NAME, START, UNIQUEID, Clock, FakeAmi, Rig

PEER, PEER_ID = "PJSIP/200-0000002b", "2.2"
OTHER, OTHER_ID = "PJSIP/300-0000002c", "3.3"


class Stage:
    """A call of two channels, and a channel beside it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ami = FakeAmi()
        self.ami.channels = {UNIQUEID: NAME, PEER_ID: PEER, OTHER_ID: OTHER}
        self.ami.values_of = {UNIQUEID: {"BRIDGEPEER": PEER}, PEER_ID: {"BRIDGEPEER": NAME}}
        self.holds = Holds(Channels(self.ami))  # type: ignore[arg-type]
        self.waiting: asyncio.Task[None] | None = None

    def hold(self, uniqueid: str, *, on: bool = True) -> None:
        self.holds.on_changed(HoldChanged(uniqueid, self.ami.channels[uniqueid], on))

    async def wait(self) -> None:
        self.waiting = asyncio.create_task(self.holds.wait_over(UNIQUEID))
        await self.clock.settle()

    async def is_over(self) -> bool:
        assert self.waiting is not None
        await self.clock.settle()
        return self.waiting.done()


@pytest.fixture
async def stage(clock: Clock) -> AsyncIterator[Stage]:
    stage = Stage(clock)
    yield stage
    if stage.waiting is not None:
        stage.waiting.cancel()


# --- Holds ---------------------------------------------------------------------------------------


async def test_without_any_hold_none_concerns_a_channel_and_nothing_is_asked(stage: Stage) -> None:
    assert not await stage.holds.concern(UNIQUEID)
    assert stage.ami.actions == []


@pytest.mark.parametrize(
    ("holder", "concerned"), [(UNIQUEID, True), (PEER_ID, True), (OTHER_ID, False)]
)
async def test_hold_concerns_its_channel_and_those_that_are_bridged_with_it(
    stage: Stage, holder: str, concerned: bool
) -> None:
    stage.hold(holder)
    assert await stage.holds.concern(UNIQUEID) is concerned
    stage.hold(holder, on=False)
    assert not await stage.holds.concern(UNIQUEID)


async def test_call_that_both_hold_is_on_hold_until_neither_does(stage: Stage) -> None:
    stage.hold(UNIQUEID)
    stage.hold(PEER_ID)
    stage.hold(UNIQUEID, on=False)
    assert await stage.holds.concern(UNIQUEID)
    stage.hold(PEER_ID, on=False)
    assert not await stage.holds.concern(UNIQUEID)


@pytest.mark.parametrize("why", ["gone", "down"])
async def test_hold_does_not_concern_a_channel_that_cannot_be_asked_about(
    stage: Stage, why: str
) -> None:
    stage.hold(PEER_ID)
    if why == "gone":
        del stage.ami.channels[UNIQUEID]
    else:
        stage.ami.faults["Getvar"] = AmiUnavailable("down")
    assert not await stage.holds.concern(UNIQUEID)


async def test_waiting_is_over_at_once_where_nobody_holds(stage: Stage) -> None:
    stage.hold(OTHER_ID)
    await stage.wait()
    assert await stage.is_over()


@pytest.mark.parametrize("ends", ["unhold", "hangup"])
@pytest.mark.parametrize("holder", [UNIQUEID, PEER_ID])
async def test_waiting_is_over_when_the_party_that_holds_does_not_any_more(
    stage: Stage, holder: str, ends: str
) -> None:
    stage.hold(holder)
    stage.hold(OTHER_ID)
    await stage.wait()
    stage.hold(OTHER_ID, on=False)
    assert not await stage.is_over()
    if ends == "unhold":
        stage.hold(holder, on=False)
    else:
        stage.holds.forget(holder)
    assert await stage.is_over()


async def test_waiting_is_over_when_the_channel_leaves_the_bridge_of_who_holds(
    stage: Stage,
) -> None:
    stage.hold(PEER_ID)
    await stage.wait()
    stage.holds.look_again()
    assert not await stage.is_over()
    stage.ami.values_of.clear()
    stage.holds.look_again()
    assert await stage.is_over()


async def test_change_while_asterisk_is_asked_is_not_missed(stage: Stage) -> None:
    stage.hold(PEER_ID)
    gate = stage.ami.gates["Getvar"] = asyncio.Event()
    await stage.wait()
    stage.hold(OTHER_ID)
    stage.hold(PEER_ID, on=False)  # while it is asked who the peers are
    gate.set()
    assert await stage.is_over()


# --- Forks that wait -----------------------------------------------------------------------------


@pytest.fixture
def patient(rig: Rig) -> Rig:
    """A registry whose forks wait for the end of a hold; the party of the channel holds."""
    rig.forks._holds.waits = True
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, True))
    return rig


async def unhold(rig: Rig) -> None:
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, False))
    await rig.clock.settle()


async def test_legs_of_a_call_on_hold_are_asked_for_when_that_is_over(
    patient: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id = await patient.start()  # the relay connects to the server meanwhile
    await patient.clock.advance(3600)
    assert patient.tap.orders == []
    assert (patient.ends, patient.live) == ([], [fork_id])
    assert (
        "on hold: its legs are requested when the hold is over ([asterisk] on_hold)" in caplog.text
    )
    await unhold(patient)
    assert patient.tap.started == [(fork_id, UNIQUEID)]
    assert len(patient.tap.orders) == 1


async def test_legs_of_a_call_that_is_not_on_hold_are_asked_for_at_once(patient: Rig) -> None:
    fork_id = await patient.start(channel=PEER)
    assert patient.tap.started == [(fork_id, PEER_ID)]


async def test_legs_are_asked_for_on_hold_too_unless_it_is_configured(rig: Rig) -> None:
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, True))
    fork_id = await rig.start()
    assert rig.tap.started == [(fork_id, UNIQUEID)]


async def test_fork_whose_peer_holds_goes_on_when_the_bridge_is_left(rig: Rig) -> None:
    rig.forks._holds.waits = True
    rig.ami.values_of[UNIQUEID] = {"BRIDGEPEER": PEER}
    rig.forks.on_event(HoldChanged(PEER_ID, PEER, True))
    fork_id = await rig.start()
    assert rig.tap.orders == []
    rig.ami.values_of.clear()
    rig.forks.on_event(BridgeChanged(UNIQUEID, False))
    await rig.clock.settle()
    assert rig.tap.started == [(fork_id, UNIQUEID)]


async def test_fork_whose_peer_holds_goes_on_when_that_is_gone_and_not_before(rig: Rig) -> None:
    rig.forks._holds.waits = True
    rig.ami.values_of[UNIQUEID] = {"BRIDGEPEER": PEER}
    rig.forks.on_event(HoldChanged(PEER_ID, PEER, True))
    fork_id = await rig.start()
    rig.forks.on_event(ChannelHangup(PEER_ID, is_gone=False))
    await rig.clock.settle()
    assert rig.tap.orders == []
    rig.forks.on_event(ChannelHangup(PEER_ID))
    await rig.clock.settle()
    assert rig.tap.started == [(fork_id, UNIQUEID)]


async def test_fork_that_is_stopped_on_hold_asks_for_no_leg_afterwards(patient: Rig) -> None:
    fork_id = await patient.start()
    await patient.ask(command="StopAudioFork", channel=NAME)
    await patient.obey()
    await unhold(patient)
    assert (patient.tap.orders, patient.ends) == ([], [EndFork(fork_id, EndReason.STOPPED)])


@pytest.mark.parametrize("is_gone", [True, False], ids=["hangup", "hangup-request"])
async def test_channel_that_is_hung_up_on_hold_ends_its_fork_without_a_leg(
    patient: Rig, is_gone: bool
) -> None:
    fork_id = await patient.start()
    patient.forks.on_event(ChannelHangup(UNIQUEID, is_gone))
    await patient.clock.advance(10)
    assert patient.tap.orders == []
    assert patient.ends == [EndFork(fork_id, EndReason.HANGUP)]
    await unhold(patient)


async def test_mute_on_hold_reaches_the_relay(patient: Rig) -> None:
    fork_id = await patient.start()
    await patient.ask(command="AudioForkMute", channel=NAME, direction="both", state="1")
    assert patient.sent[1:] == [SetMute(fork_id, True, True)]
    await unhold(patient)


async def test_relay_process_that_dies_on_hold_has_the_legs_asked_for_once(patient: Rig) -> None:
    fork_id = await patient.start()
    await patient.lose_relay(fork_id)
    assert [type(command) for command in patient.sent] == [ForkSpec, ForkSpec]
    await patient.clock.advance(60)
    assert (patient.tap.orders, patient.ends) == ([], [])
    await unhold(patient)
    assert patient.tap.started == [(fork_id, UNIQUEID)]
    patient.connect(fork_id, LegPart.PAIRS)
    await patient.clock.advance(60)
    assert patient.ends == []


async def test_fork_does_not_wait_for_the_end_of_a_hold_that_may_have_been_missed(
    patient: Rig,
) -> None:
    """The connection to Asterisk was away, and nobody can be asked who holds."""
    fork_id = await patient.start()
    await patient.forks.on_login()
    await patient.clock.settle()
    assert patient.tap.started == [(fork_id, UNIQUEID)]


async def test_two_forks_of_a_call_on_hold_both_go_on(patient: Rig) -> None:
    fork_ids = [await patient.start(), await patient.start()]
    await unhold(patient)
    assert {fork_id for fork_id, _ in patient.tap.started} == set(fork_ids)


async def test_start_on_hold_is_granted_at_once(patient: Rig) -> None:
    assert await patient.ask(**START) == patient.live
    await unhold(patient)


async def test_leg_that_is_lost_on_hold_is_asked_for_again_when_that_is_over(rig: Rig) -> None:
    rig.forks._holds.waits = True
    fork_id = await rig.stream()
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, True))
    await rig.lose_leg(fork_id)
    await rig.clock.advance(3600)
    assert (len(rig.tap.orders), rig.ends) == (1, [])
    await unhold(rig)
    assert len(rig.tap.orders) == 2
    rig.connect(fork_id, LegPart.PAIRS)
    await rig.clock.advance(60)
    assert rig.ends == []
