import pytest

from audiofork.asterisk.taps.base import LEG_PREFIX, LegOrder, fork_id_of, is_leg
from audiofork.asterisk.taps.chanspy import ChanSpyTap
from audiofork.asterisk.taps.ways import Audience, Connects
from audiofork.config import Address
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    LegRefused,
    LegUncertain,
)
from audiofork.link.messages import LegPart
from tests.control_plane import FakeAmi

FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
LEG = LEG_PREFIX + FORK_ID
LEG_UUID = "6d1c9a52-8a3f-4f5e-9d0b-2f6f3c1e7a90"


class FakeRelay:
    """Two workers; the second has all forks but one."""

    def __init__(self, host: str) -> None:
        self.addresses = [Address(host, 9093), Address(host, 9094)]

    def address_of(self, fork_id: str) -> Address:
        return self.addresses[fork_id != FORK_ID]


@pytest.fixture
def ami() -> FakeAmi:
    return FakeAmi()


@pytest.fixture
def tap(ami: FakeAmi) -> ChanSpyTap:
    return ChanSpyTap(ami, FakeRelay("127.0.0.1"))  # type: ignore[arg-type]


def order(
    leg_id: str = LEG,
    fork_id: str = FORK_ID,
    uniqueid: str = "1.1",
    part: LegPart = LegPart.IN,
    *,
    heard_by: Audience | None = None,
) -> LegOrder:
    return LegOrder(leg_id, LEG_UUID, fork_id, part, uniqueid, Connects.ORIGINATE, 8000, heard_by)


@pytest.mark.parametrize(
    ("heard_by", "whisper"), [(None, ""), (Audience.PARTY, "w")], ids=["silent", "speaks"]
)
@pytest.mark.parametrize(
    ("part", "options"),
    [(LegPart.IN, "quolES"), (LegPart.PAIRS, "qulDES"), (LegPart.MIX, "qulES")],
)
async def test_start_originates_a_leg_that_spies_on_the_uniqueid(
    ami: FakeAmi,
    tap: ChanSpyTap,
    part: LegPart,
    options: str,
    heard_by: Audience | None,
    whisper: str,
) -> None:
    await tap.start(order(uniqueid="1700000000.1", part=part, heard_by=heard_by))
    ((name, headers, action_id),) = ami.actions
    assert (name, action_id) == ("Originate", LEG)
    assert dict(headers) == {
        "Channel": f"AudioSocket/127.0.0.1:9093/{LEG_UUID}/c(slin)",
        "ChannelId": LEG,
        "Application": "ChanSpy",
        "Data": f"1700000000.1,{options}{whisper}",
        "Timeout": "5000",
        "Variable": "CDR_PROP(disable)=1",
        "Async": "true",
    }


async def test_start_refused_raises(ami: FakeAmi, tap: ChanSpyTap) -> None:
    ami.faults["Originate"] = AmiActionFailed("Originate", "Permission denied")
    with pytest.raises(LegRefused, match="^Originate: Permission denied$"):
        await tap.start(order())


@pytest.mark.parametrize(
    "exc",
    [AmiTimeout("Originate: no answer within 5 s"), AmiUnavailable("the connection is lost")],
    ids=["timeout", "link"],
)
async def test_start_that_asterisk_may_have_heard_of_raises_that_it_is_uncertain(
    ami: FakeAmi, tap: ChanSpyTap, exc: AmiError
) -> None:
    ami.faults["Originate"] = exc
    with pytest.raises(LegUncertain, match=f"^{exc}$"):
        await tap.start(order())


async def test_start_with_ipv6_dials_the_address_in_brackets(ami: FakeAmi) -> None:
    await ChanSpyTap(ami, FakeRelay("::1")).start(order())  # type: ignore[arg-type]
    assert dict(ami.actions[0][1])["Channel"] == f"AudioSocket/[::1]:9093/{LEG_UUID}/c(slin)"


async def test_leg_dials_the_worker_that_has_the_fork(ami: FakeAmi, tap: ChanSpyTap) -> None:
    await tap.start(order(LEG_PREFIX + OTHER_ID, OTHER_ID))
    assert dict(ami.actions[0][1])["Channel"] == f"AudioSocket/127.0.0.1:9094/{LEG_UUID}/c(slin)"


OURS = f"AudioSocket/127.0.0.1:9093-{LEG_UUID}"
OTHER_ID = "3f2a91c0-1111-4222-8333-444455556667"


async def test_first_leg_has_the_fork_s_name_and_each_further_one_another(
    tap: ChanSpyTap,
) -> None:
    first = tap.name_leg(FORK_ID, LegPart.PAIRS, anew=False)
    further = {tap.name_leg(FORK_ID, LegPart.PAIRS, anew=True) for _ in range(100)}
    assert first == LEG
    assert len(further) == 100
    for leg in (first, *further):
        assert is_leg(leg)
        assert fork_id_of(leg) == FORK_ID


async def test_start_of_a_further_leg_presents_the_uuid_of_the_order(
    ami: FakeAmi, tap: ChanSpyTap
) -> None:
    leg = tap.name_leg(FORK_ID, LegPart.PAIRS, anew=True)
    await tap.start(order(leg))
    ((_, headers, action_id),) = ami.actions
    assert dict(headers)["Channel"] == f"AudioSocket/127.0.0.1:9093/{LEG_UUID}/c(slin)"
    assert dict(headers)["ChannelId"] == action_id == leg


@pytest.mark.parametrize(
    ("uniqueid", "name", "owned"),
    [
        pytest.param(LEG, OURS, True, id="leg"),
        pytest.param(f"{LEG}-0a1b2c3d", OURS.replace("9093", "9094"), True, id="elsewhere"),
        pytest.param(f"{LEG_PREFIX}1", OURS.replace("9093", "90931"), False, id="other-port"),
        pytest.param(
            f"{LEG_PREFIX}2", f"AudioSocket/192.0.2.1:9093-{LEG_UUID}", False, id="other-daemon"
        ),
        pytest.param(f"{LEG_PREFIX}3", "PJSIP/100-0000002b", False, id="other-kind"),
        pytest.param(f"{LEG_PREFIX}4", "", False, id="no-name"),
        pytest.param("1700000000.1", OURS, False, id="of-the-dialplan"),
        pytest.param("1700000000.2", "PJSIP/100-0000002a", False, id="call"),
    ],
)
def test_owns_legs_of_this_daemon_alone(
    tap: ChanSpyTap, uniqueid: str, name: str, owned: bool
) -> None:
    assert tap.owns(name, uniqueid) is owned


def test_is_leg_by_the_prefix_alone() -> None:
    assert is_leg(LEG)
    assert not is_leg("1700000000.1")
    assert not is_leg("")
    assert not is_leg("x" + LEG)


def test_fork_id_of_an_action_id_of_ours_alone() -> None:
    assert fork_id_of(LEG) == FORK_ID
    assert fork_id_of(LEG_PREFIX) == ""
    assert fork_id_of(FORK_ID) == ""
    assert fork_id_of("") == ""
    assert fork_id_of("x" + LEG) == ""


@pytest.mark.parametrize("suffix", ["-0a1b2c3d", "-audiofork-in", "-audiofork-out-0a1b2c3d"])
def test_fork_id_of_a_leg_with_more_in_its_name(suffix: str) -> None:
    assert fork_id_of(LEG + suffix) == FORK_ID
