"""The tap of calls whose other party is the server: what Asterisk is told, and where."""

from dataclasses import replace

import pytest

from audiofork.asterisk.channels import NO_SUCH_CHANNEL
from audiofork.asterisk.taps.base import LegOrder
from audiofork.asterisk.taps.connect import ConnectTap
from audiofork.asterisk.taps.ways import Connects
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
)
from audiofork.link.messages import LegPart
from tests.asterisk.test_chanspy import FORK_ID, LEG_UUID, FakeRelay
from tests.control_plane import NAME, UNIQUEID, FakeAmi


def order(sample_rate: int = 8000, *, leads: bool = False) -> LegOrder:
    return LegOrder(
        *("", LEG_UUID, FORK_ID, LegPart.IN, UNIQUEID, Connects.DIAL, sample_rate),
        channel=NAME,
        leads=leads,
    )


@pytest.fixture
def ami() -> FakeAmi:
    one = FakeAmi()
    one.channels = {UNIQUEID: NAME}
    return one


@pytest.fixture
def tap(ami: FakeAmi) -> ConnectTap:
    return ConnectTap(ami, FakeRelay("127.0.0.1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("leg", "where"),
    [
        (order(), f"AudioSocket/127.0.0.1:9093/{LEG_UUID}/c(slin)"),
        (order(sample_rate=16000), f"AudioSocket/127.0.0.1:9093/{LEG_UUID}/c(slin16)"),
    ],
)
async def test_channel_that_waits_is_told_where_to_connect(
    ami: FakeAmi, tap: ConnectTap, leg: LegOrder, where: str
) -> None:
    await tap.start(leg)
    ((name, headers, _),) = ami.actions
    told = {"Channel": UNIQUEID, "Variable": "AUDIOFORK_LEG", "Value": where}
    assert (name, dict(headers)) == ("Setvar", told)


async def test_channel_elsewhere_is_told_first_and_then_taken_to_the_dialplan_that_connects(
    ami: FakeAmi, tap: ConnectTap
) -> None:
    await tap.start(order(leads=True))
    (first, second) = ami.actions
    assert first[0] == "Setvar"
    place = {"Channel": NAME, "Context": "audiofork", "Exten": "led", "Priority": "1"}
    assert (second[0], dict(second[1])) == ("Redirect", place)


async def test_spare_leg_is_a_channel_that_waits_and_the_call_is_left_alone(
    ami: FakeAmi, tap: ConnectTap
) -> None:
    leg_id = tap.name_leg(FORK_ID, LegPart.IN, anew=True)
    assert leg_id.startswith(f"audiofork-{FORK_ID}-")
    assert leg_id != tap.name_leg(FORK_ID, LegPart.IN, anew=True)
    await tap.start(replace(order(sample_rate=16000), leg_id=leg_id, is_spare=True))
    ((name, headers, action_id),) = ami.actions
    told = dict(headers)
    assert (name, action_id, told["ChannelId"]) == ("Originate", leg_id, leg_id)
    assert told["Channel"] == f"AudioSocket/127.0.0.1:9093/{LEG_UUID}/c(slin16)"
    assert told["Application"] == "Wait"


@pytest.mark.parametrize("action", ["Setvar", "Redirect"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (AmiActionFailed("Setvar", NO_SUCH_CHANNEL), NoSuchChannel),
        (AmiActionFailed("Redirect", "Permission denied"), LegRefused),
        (AmiTimeout("no answer within 5 s"), LegUncertain),
    ],
)
async def test_start_that_fails_says_how(
    ami: FakeAmi, tap: ConnectTap, action: str, fault: AmiError, error: type[Exception]
) -> None:
    ami.faults[action] = fault
    with pytest.raises(error):
        await tap.start(order(leads=True))


def test_no_channel_is_a_leg_of_it(tap: ConnectTap) -> None:
    assert not tap.owns(f"AudioSocket/127.0.0.1:9093-{LEG_UUID}", UNIQUEID)
