import pytest

from audiofork.config import Address
from audiofork.control.tap.chanspy import LEG_PREFIX, ChanSpyTap
from audiofork.errors import AmiActionFailed, AmiTimeout
from audiofork.model import Direction

from .conftest import FakeAmi

FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
LEG = LEG_PREFIX + FORK_ID


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


def hung_up(ami: FakeAmi) -> list[str]:
    return [dict(headers)["Channel"] for name, headers, _ in ami.actions if name == "Hangup"]


@pytest.mark.parametrize(
    ("speaks", "whisper"), [(False, ""), (True, "w")], ids=["silent", "speaks"]
)
@pytest.mark.parametrize(
    ("direction", "options"),
    [
        (Direction.IN, "quolES"),
        (Direction.OUT, "qulDES"),
        (Direction.BOTH, "qulDES"),
        (Direction.STEREO, "qulDES"),
    ],
)
async def test_start_originates_a_leg_that_spies_on_the_uniqueid(
    ami: FakeAmi,
    tap: ChanSpyTap,
    direction: Direction,
    options: str,
    speaks: bool,
    whisper: str,
) -> None:
    await tap.start(LEG, FORK_ID, "1700000000.1", direction, speaks=speaks)
    ((name, headers, action_id),) = ami.actions
    assert (name, action_id) == ("Originate", LEG)
    assert dict(headers) == {
        "Channel": f"AudioSocket/127.0.0.1:9093/{FORK_ID}/c(slin)",
        "ChannelId": LEG,
        "Application": "ChanSpy",
        "Data": f"1700000000.1,{options}{whisper}",
        "Timeout": "5000",
        "Variable": "CDR_PROP(disable)=1",
        "Async": "true",
    }


async def test_start_refused_raises(ami: FakeAmi, tap: ChanSpyTap) -> None:
    ami.faults["Originate"] = AmiActionFailed("Originate", "Permission denied")
    with pytest.raises(AmiActionFailed):
        await tap.start(LEG, FORK_ID, "1.1", Direction.IN, speaks=False)


async def test_start_with_ipv6_dials_the_address_in_brackets(ami: FakeAmi) -> None:
    await ChanSpyTap(ami, FakeRelay("::1")).start(  # type: ignore[arg-type]
        LEG, FORK_ID, "1.1", Direction.IN, speaks=False
    )
    assert dict(ami.actions[0][1])["Channel"] == f"AudioSocket/[::1]:9093/{FORK_ID}/c(slin)"


async def test_leg_dials_the_worker_that_has_the_fork(ami: FakeAmi, tap: ChanSpyTap) -> None:
    await tap.start(LEG_PREFIX + OTHER_ID, OTHER_ID, "1.1", Direction.IN, speaks=False)
    assert dict(ami.actions[0][1])["Channel"] == f"AudioSocket/127.0.0.1:9094/{OTHER_ID}/c(slin)"


OURS = f"AudioSocket/127.0.0.1:9093-{FORK_ID}"
OTHER_ID = "3f2a91c0-1111-4222-8333-444455556667"


async def test_first_leg_has_the_fork_s_name_and_each_further_one_another(
    tap: ChanSpyTap,
) -> None:
    first = tap.name_leg(FORK_ID, anew=False)
    further = {tap.name_leg(FORK_ID, anew=True) for _ in range(100)}
    assert first == LEG
    assert len(further) == 100
    for leg in (first, *further):
        assert tap.is_leg(leg)
        assert tap.fork_id_of(leg) == FORK_ID


async def test_start_of_a_further_leg_presents_the_fork_s_uuid(
    ami: FakeAmi, tap: ChanSpyTap
) -> None:
    leg = tap.name_leg(FORK_ID, anew=True)
    await tap.start(leg, FORK_ID, "1.1", Direction.IN, speaks=False)
    ((_, headers, action_id),) = ami.actions
    assert dict(headers)["Channel"] == f"AudioSocket/127.0.0.1:9093/{FORK_ID}/c(slin)"
    assert dict(headers)["ChannelId"] == action_id == leg


async def test_sweep_hangs_up_legs_of_this_daemon_alone(ami: FakeAmi, tap: ChanSpyTap) -> None:
    present = {
        LEG: OURS,
        f"{LEG}-0a1b2c3d": OURS.replace("9093", "9094"),  # in place of the first, elsewhere
        f"{LEG_PREFIX}1": f"AudioSocket/127.0.0.1:90931-{FORK_ID}",  # other port
        f"{LEG_PREFIX}2": f"AudioSocket/192.0.2.1:9093-{FORK_ID}",  # other daemon
        f"{LEG_PREFIX}3": "PJSIP/100-0000002b",
        f"{LEG_PREFIX}4": "",
        "1700000000.1": OURS,  # of the dialplan
        "1700000000.2": "PJSIP/100-0000002a",
    }
    assert await tap.sweep(present, ()) == 2
    assert hung_up(ami) == [LEG, f"{LEG}-0a1b2c3d"]


async def test_sweep_keeps_legs_that_are_wanted_but_no_earlier_one_of_their_fork(
    ami: FakeAmi, tap: ChanSpyTap
) -> None:
    wanted = f"{LEG}-0a1b2c3d"
    present = {LEG: OURS, wanted: OURS, LEG_PREFIX + OTHER_ID: OURS.replace(FORK_ID, OTHER_ID)}
    assert await tap.sweep(present, {wanted}) == 2
    assert hung_up(ami) == [LEG, LEG_PREFIX + OTHER_ID]


async def test_sweep_of_a_leg_that_is_gone_goes_on(ami: FakeAmi, tap: ChanSpyTap) -> None:
    ami.faults["Hangup"] = AmiActionFailed("Hangup", "No such channel")
    await tap.sweep({LEG: OURS, f"{LEG}-0a1b2c3d": OURS}, ())
    assert len(hung_up(ami)) == 2


async def test_sweep_without_an_answer_raises(ami: FakeAmi, tap: ChanSpyTap) -> None:
    ami.faults["Hangup"] = AmiTimeout("Hangup")
    with pytest.raises(AmiTimeout):
        await tap.sweep({LEG: OURS}, ())


def test_is_leg_by_the_prefix_alone(tap: ChanSpyTap) -> None:
    assert tap.is_leg(LEG)
    assert not tap.is_leg("1700000000.1")
    assert not tap.is_leg("")
    assert not tap.is_leg("x" + LEG)


def test_fork_id_of_an_action_id_of_ours_alone(tap: ChanSpyTap) -> None:
    assert tap.fork_id_of(LEG) == FORK_ID
    assert tap.fork_id_of(LEG_PREFIX) == ""
    assert tap.fork_id_of(FORK_ID) == ""
    assert tap.fork_id_of("") == ""
    assert tap.fork_id_of("x" + LEG) == ""
