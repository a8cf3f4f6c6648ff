import pytest

from audiofork.config import Address
from audiofork.control.tap.chanspy import LEG_PREFIX, ChanSpyTap
from audiofork.errors import AmiActionFailed, AmiTimeout
from audiofork.model import Direction

from .conftest import FakeAmi

FORK_ID = "3f2a91c0-1111-4222-8333-444455556666"
LEG = LEG_PREFIX + FORK_ID


@pytest.fixture
def ami() -> FakeAmi:
    return FakeAmi()


@pytest.fixture
def tap(ami: FakeAmi) -> ChanSpyTap:
    return ChanSpyTap(ami, Address("127.0.0.1", 9093))  # type: ignore[arg-type]


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
    await tap.start(FORK_ID, "1700000000.1", direction, speaks=speaks)
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
        await tap.start(FORK_ID, "1.1", Direction.IN, speaks=False)


async def test_start_with_ipv6_dials_the_address_in_brackets(ami: FakeAmi) -> None:
    await ChanSpyTap(ami, Address("::1", 9093)).start(  # type: ignore[arg-type]
        FORK_ID, "1.1", Direction.IN, speaks=False
    )
    assert dict(ami.actions[0][1])["Channel"] == f"AudioSocket/[::1]:9093/{FORK_ID}/c(slin)"


async def test_sweep_hangs_up_legs_of_this_daemon_alone(ami: FakeAmi, tap: ChanSpyTap) -> None:
    ours = f"AudioSocket/127.0.0.1:9093-{FORK_ID}"
    ami.lists["CoreShowChannels"] = [
        {"channel": ours, "uniqueid": LEG},
        {"channel": f"AudioSocket/127.0.0.1:90931-{FORK_ID}", "uniqueid": LEG},  # other port
        {"channel": f"AudioSocket/192.0.2.1:9093-{FORK_ID}", "uniqueid": LEG},  # other daemon
        {"channel": ours, "uniqueid": "1700000000.1"},  # of the dialplan
        {"channel": "PJSIP/100-0000002a", "uniqueid": "1700000000.2"},
        {"channel": "PJSIP/100-0000002b", "uniqueid": LEG},
        {},
    ]
    assert await tap.sweep(()) == 1
    assert hung_up(ami) == [ours]


async def test_sweep_keeps_the_legs_of_running_forks(ami: FakeAmi, tap: ChanSpyTap) -> None:
    other_id = "3f2a91c0-1111-4222-8333-444455556667"
    ami.lists["CoreShowChannels"] = [
        {
            "channel": f"AudioSocket/127.0.0.1:9093-{fork_id}",
            "uniqueid": LEG_PREFIX + fork_id,
        }
        for fork_id in (FORK_ID, other_id)
    ]
    assert await tap.sweep({FORK_ID: "a fork"}.keys()) == 1
    assert hung_up(ami) == [f"AudioSocket/127.0.0.1:9093-{other_id}"]


async def test_sweep_of_a_leg_that_is_gone_goes_on(ami: FakeAmi, tap: ChanSpyTap) -> None:
    leg = {"channel": f"AudioSocket/127.0.0.1:9093-{FORK_ID}", "uniqueid": LEG}
    ami.lists["CoreShowChannels"] = [leg, leg]
    ami.faults["Hangup"] = AmiActionFailed("Hangup", "No such channel")
    await tap.sweep(())
    assert len(hung_up(ami)) == 2


@pytest.mark.parametrize("action", ["CoreShowChannels", "Hangup"])
async def test_sweep_without_an_answer_raises(ami: FakeAmi, tap: ChanSpyTap, action: str) -> None:
    leg = {"channel": f"AudioSocket/127.0.0.1:9093-{FORK_ID}", "uniqueid": LEG}
    ami.lists["CoreShowChannels"] = [leg]
    ami.faults[action] = AmiTimeout(action)
    with pytest.raises(AmiTimeout):
        await tap.sweep(())


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
