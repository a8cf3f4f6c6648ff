"""The legs of forks: asked for, lost and replaced. The registry around them is the real one."""

import asyncio

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    RequestRefused,
)
from audiofork.forks.leaving import LEAVE_TIMEOUT_S
from audiofork.link.messages import (
    EndReason,
    LegPart,
)
from tests.control_plane import NAME, START, UNIQUEID, Rig

IN, OUT, PAIRS = LegPart.IN, LegPart.OUT, LegPart.PAIRS


# --- Legs that Asterisk keeps: their channel has no media -----------------------------------------

OTHER = "PJSIP/200-0000002b"


@pytest.fixture
def stuck(rig: Rig) -> Rig:
    """The rig with an Asterisk whose legs do not end when they are hung up."""
    rig.legs_stay = True
    return rig


async def end_one(rig: Rig, **fields: str) -> list[str]:
    """Start a fork, let its legs connect, and stop it; return the ids of its legs."""
    fork_id = await rig.attach(**fields)
    leg_ids = [order.leg_id for order in rig.tap.orders if order.fork_id == fork_id]
    rig.ami.channels.update(dict.fromkeys(leg_ids, "AudioSocket/us-1"))
    await rig.ended(fork_id, EndReason.STOPPED)
    return leg_ids


async def go(rig: Rig, *leg_ids: str, told: bool = True) -> None:
    """Let legs go at last; Asterisk tells so or not."""
    for leg_id in leg_ids:
        del rig.ami.channels[leg_id]
        if told:
            rig.forks.on_event(ChannelHangup(leg_id))
    await rig.clock.settle()


async def refused(rig: Rig, after_s: float = LEAVE_TIMEOUT_S, **fields: str) -> str:
    """Return why a start is refused, which must take so long."""
    asked = asyncio.create_task(rig.ask(**{**START, **fields}))
    await rig.clock.advance(after_s - 0.05)
    assert not asked.done()
    await rig.clock.advance(0.1)
    with pytest.raises(RequestRefused) as caught:
        await asked
    return str(caught.value)


def why_full(count: int) -> str:
    return (
        f"{count} legs of earlier forks of the channel cannot end before it has media "
        "(asterisk#978), and no more are left there"
    )


async def test_no_more_than_two_legs_are_left_to_a_channel(stuck: Rig) -> None:
    legs = await end_one(stuck)
    second = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.settle()
    assert second.done()
    stuck.connect((await second)[0], PAIRS)
    legs.append(stuck.tap.legs[-1])
    stuck.ami.channels[legs[-1]] = "AudioSocket/us-1"
    await stuck.ended((await second)[0], EndReason.STOPPED)
    started = len(stuck.tap.orders)
    for _ in range(3):
        assert await refused(stuck) == why_full(2)
    assert (len(stuck.tap.orders), stuck.live) == (started, [])
    await end_one(stuck, channel=OTHER)  # that is another matter
    await go(stuck, *stuck.forks._legs.leaving.ids)


async def test_fork_of_two_legs_does_not_begin_beside_one_that_is_left(stuck: Rig) -> None:
    legs = await end_one(stuck)
    stuck.taps.parts = (IN, OUT)
    assert await refused(stuck) == why_full(1)
    await go(stuck, *legs)
    stuck.connect(await stuck.start(), IN, OUT)
    stuck.legs_stay = False


async def test_start_waits_for_legs_that_are_about_to_go(stuck: Rig) -> None:
    legs = await end_one(stuck) + await end_one(stuck)
    asked = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.advance(LEAVE_TIMEOUT_S / 2)
    assert (asked.done(), len(stuck.tap.orders)) == (False, 2)
    await go(stuck, legs[0])
    assert await asked == stuck.live
    await go(stuck, legs[1])
    stuck.legs_stay = False


async def test_start_is_stopped_while_it_waits_for_legs_to_go(stuck: Rig) -> None:
    legs = await end_one(stuck) + await end_one(stuck)
    asked = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.settle()
    await stuck.ask(command="StopAudioFork", channel=NAME)
    await go(stuck, *legs)
    with pytest.raises(RequestRefused, match="^ended before it began: stopped$"):
        await asked
    assert len(stuck.tap.orders) == 2


async def test_legs_that_have_gone_without_news_are_found_to_be_before_a_start_is_refused(
    stuck: Rig,
) -> None:
    """Hangup may be filtered out in manager.conf."""
    legs = await end_one(stuck) + await end_one(stuck)
    await go(stuck, *legs, told=False)
    assert stuck.forks._legs.leaving.ids == legs
    asked = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    assert await asked == stuck.live
    assert stuck.forks.legs_left == 0
    stuck.legs_stay = False


async def test_leg_that_asterisk_lists_is_there_though_it_does_not_answer_for_it(
    stuck: Rig,
) -> None:
    """It does not for a channel that is being hung up."""
    legs = await end_one(stuck) + await end_one(stuck)
    asked = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.settle()
    before = len(stuck.ami.actions)
    stuck.ami.faults["Getvar"] = AmiActionFailed("Getvar", "No such channel")
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    with pytest.raises(RequestRefused) as caught:
        await asked
    assert str(caught.value) == why_full(2)
    assert {name for name, *_ in stuck.ami.actions[before:]} == {"CoreShowChannels"}
    assert stuck.forks._legs.leaving.ids == legs
    await go(stuck, *legs)


@pytest.mark.parametrize(
    "exc",
    [
        AmiUnavailable("the connection is lost"),
        AmiTimeout("CoreShowChannels: no answer within 5 s"),
        AmiActionFailed("CoreShowChannels", "Permission denied"),
    ],
    ids=["down", "late", "denied"],
)
async def test_start_that_asterisk_cannot_be_asked_for_room_raises_why(
    stuck: Rig, exc: AmiError
) -> None:
    legs = await end_one(stuck) + await end_one(stuck)
    started = len(stuck.tap.orders)
    asked = asyncio.create_task(stuck.ask(**START))
    await stuck.clock.settle()
    stuck.ami.faults["CoreShowChannels"] = exc
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    with pytest.raises(AmiError) as caught:
        await asked
    assert caught.value is exc
    assert (len(stuck.tap.orders), stuck.live) == (started, [])
    assert stuck.forks._legs.leaving.ids == legs
    del stuck.ami.faults["CoreShowChannels"]
    await go(stuck, *legs)


async def test_legs_are_counted_as_left_and_this_is_said_only_when_they_do_not_go_in_time(
    stuck: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    legs = await end_one(stuck)
    await stuck.clock.advance(LEAVE_TIMEOUT_S - 0.1)
    assert (stuck.forks.legs_left, caplog.messages) == (0, [])
    await stuck.clock.advance(0.2)
    assert stuck.forks.legs_left == 1
    assert caplog.messages == [
        "1 legs stay in Asterisk until their channel has media or ends (asterisk#978)"
    ]
    await go(stuck, *legs)
    assert stuck.forks.legs_left == 0


async def test_legs_that_go_in_time_are_neither_counted_nor_said_to_stay(
    stuck: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    legs = await end_one(stuck)
    await stuck.clock.advance(LEAVE_TIMEOUT_S / 2)
    await go(stuck, *legs)
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    assert (stuck.forks.legs_left, caplog.messages) == (0, [])


@pytest.mark.parametrize("whose", ["leg", "channel"])
async def test_hangup_request_alone_does_not_mean_that_a_leg_is_gone(
    stuck: Rig, whose: str
) -> None:
    (leg_id,) = await end_one(stuck)
    uniqueid = leg_id if whose == "leg" else UNIQUEID
    stuck.forks.on_event(ChannelHangup(uniqueid, is_gone=False))
    assert stuck.forks._legs.leaving.ids == [leg_id]
    stuck.forks.on_event(ChannelHangup(uniqueid))
    assert stuck.forks._legs.leaving.ids == []


async def test_leg_that_is_requested_to_hang_up_before_its_fork_ends_is_left_all_the_same(
    stuck: Rig,
) -> None:
    fork_id = await stuck.attach()
    (leg_id,) = stuck.tap.legs
    stuck.forks.on_event(ChannelHangup(leg_id, is_gone=False))
    await stuck.ended(fork_id, EndReason.STOPPED)
    assert stuck.forks._legs.leaving.ids == [leg_id]
    stuck.forks.on_event(ChannelHangup(leg_id))


async def test_leg_that_is_gone_before_its_fork_ends_is_not_left(stuck: Rig) -> None:
    fork_id = await stuck.attach()
    stuck.forks.on_event(ChannelHangup(stuck.tap.legs[0]))
    await stuck.ended(fork_id, EndReason.STOPPED)
    assert stuck.forks._legs.leaving.ids == []


async def test_leg_that_has_yet_to_connect_is_watched_until_asterisk_does_not_list_it(
    stuck: Rig,
) -> None:
    """A stop may come before the leg; Asterisk makes it all the same."""
    fork_id = await stuck.start()
    await stuck.ended(fork_id, EndReason.STOPPED)
    (leg_id,) = stuck.tap.legs
    assert stuck.forks._legs.leaving.ids == [leg_id]
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    assert stuck.forks._legs.leaving.ids == []


async def test_legs_of_a_channel_that_was_hung_up_are_not_left(stuck: Rig) -> None:
    fork_id = await stuck.attach()
    stuck.forks.on_event(ChannelHangup(UNIQUEID))
    await stuck.ended(fork_id, EndReason.HANGUP)
    assert stuck.forks._legs.leaving.ids == []


async def test_each_of_two_legs_goes_by_itself(stuck: Rig) -> None:
    stuck.taps.parts = (IN, OUT)
    legs = await end_one(stuck)
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    assert stuck.forks.legs_left == 2
    await go(stuck, legs[0])
    assert (stuck.forks._legs.leaving.ids, stuck.forks.legs_left) == (legs[1:], 1)
    await go(stuck, legs[1])
    assert stuck.forks.legs_left == 0


async def test_new_login_forgets_the_legs_that_are_gone_and_sweeps_none_of_the_others(
    stuck: Rig,
) -> None:
    gone, stays = await end_one(stuck) + await end_one(stuck)
    del stuck.ami.channels[gone]
    await stuck.forks.on_login()
    assert stuck.forks._legs.leaving.ids == [stays]
    assert stuck.taps.kept[-1] == {stays}
    await go(stuck, stays)


# --- Legs of a relay process that died -----------------------------------------------------------


async def test_legs_of_a_relay_process_that_died_are_hung_up_at_once(two: Rig) -> None:
    fork_id = await two.stream()
    lost = list(two.tap.legs)
    await two.lose_relay(fork_id)
    assert two.hung_up == lost
    assert len(two.tap.legs) == 4
    await two.lose_relay(fork_id)
    assert two.hung_up == two.tap.legs[:4]


async def test_leg_that_is_gone_is_not_hung_up_when_its_relay_process_dies(two: Rig) -> None:
    fork_id = await two.stream()
    two.forks.on_event(ChannelHangup(two.tap.legs[0]))
    await two.lose_relay(fork_id)
    assert two.hung_up == two.tap.legs[1:2]


async def test_leg_that_is_only_requested_to_hang_up_is_hung_up_all_the_same(two: Rig) -> None:
    fork_id = await two.stream()
    two.forks.on_event(ChannelHangup(two.tap.legs[0], is_gone=False))
    await two.lose_relay(fork_id)
    assert two.hung_up == two.tap.legs[:2]


async def test_legs_of_a_fork_that_was_ending_are_hung_up_too_and_left_if_they_do_not_go(
    stuck: Rig,
) -> None:
    fork_id = await stuck.stream()
    await stuck.ask(command="StopAudioFork", channel=NAME)
    await stuck.lose_relay(fork_id)
    assert stuck.hung_up == stuck.tap.legs
    stuck.ami.channels |= dict.fromkeys(stuck.tap.legs, "AudioSocket/x")
    await stuck.clock.advance(LEAVE_TIMEOUT_S)
    assert stuck.forks.legs_left == 1
    for leg_id in stuck.tap.legs:
        del stuck.ami.channels[leg_id]
    stuck.legs_gone(fork_id)


async def test_hang_up_that_asterisk_cannot_be_told_does_not_matter(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    fork_id = await two.stream()
    two.ami.faults["Hangup"] = AmiActionFailed("Hangup", "No such channel")
    await two.lose_relay(fork_id)
    assert len(two.tap.legs) == 4
    assert caplog.messages == ["a relay process died; attempt 1 follows"]
