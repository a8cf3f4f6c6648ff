"""The choice of tap and sample rate, and which legs are whose; the taps are the real ones."""

import asyncio

import pytest

from audiofork.config import Address, AriConfig
from audiofork.control.channels import Channels
from audiofork.control.tap.chanspy import ChanSpyTap
from audiofork.control.tap.choice import FIRST_LINK_TIMEOUT_S, Choice, Taps
from audiofork.control.tap.snoop import SnoopTap
from audiofork.errors import AmiUnavailable, NoSuchChannel, RequestRefused
from audiofork.model import LegPart

from .conftest import NAME, UNIQUEID, UNKNOWN_ID, Clock, FakeAmi, FakeAri

NATIVE = "CHANNEL(audionativeformat)"
SET_ARI = "set [ari] and [asterisk] tap in audiofork.ini; `audiofork check` tells how"
DOWN = "no link to ARI at http://127.0.0.1:8088/ari: Connection refused"


class FakeRelay:
    addresses = (Address("127.0.0.1", 9093), Address("127.0.0.1", 9094))

    def address_of(self, fork_id: str) -> Address:
        return self.addresses[0]


class Rig:
    """Taps between an Asterisk and an ARI that are the test's; a channel speaks G.722."""

    def __init__(self) -> None:
        self.ami = FakeAmi()
        self.ami.channels = {UNIQUEID: NAME}
        self.ami.values = {NATIVE: "(g722|alaw)"}
        self.ari = FakeAri()
        self.ari.status = DOWN
        self.chanspy = ChanSpyTap(self.ami, FakeRelay())  # type: ignore[arg-type]
        self.snoop = SnoopTap(self.ari, AriConfig(), FakeRelay())  # type: ignore[arg-type]

    def taps(self, *, ari: bool = True, required: bool = False, sample_rate: int = 8000) -> Taps:
        channels = Channels(self.ami)  # type: ignore[arg-type]
        snoop = self.snoop if ari else None
        return Taps(self.chanspy, snoop, channels, required=required, sample_rate=sample_rate)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def refusal(taps: Taps, *wished_rates: int) -> str:
    """Return why a fork is refused."""
    with pytest.raises(RequestRefused) as caught:
        await taps.choose(UNIQUEID, wished_rates)
    return str(caught.value)


# --- Which tap -----------------------------------------------------------------------------------


async def test_with_ari_a_fork_gets_the_snoop_tap(rig: Rig) -> None:
    assert await rig.taps().choose(UNIQUEID, ()) == Choice(rig.snoop, 8000)


async def test_without_ari_a_fork_gets_chanspy(rig: Rig) -> None:
    assert await rig.taps(ari=False).choose(UNIQUEID, ()) == Choice(rig.chanspy, 8000)


async def test_while_the_link_is_down_a_fork_gets_chanspy_and_later_ones_snoop(rig: Rig) -> None:
    taps = rig.taps()
    rig.ari.ready = False
    assert await taps.choose(UNIQUEID, ()) == Choice(rig.chanspy, 8000)
    rig.ari.ready = True
    assert await taps.choose(UNIQUEID, ()) == Choice(rig.snoop, 8000)


@pytest.mark.parametrize("rates", [(), (16000, 8000), (0,)], ids=str)
async def test_required_tap_refuses_forks_with_the_reason_while_the_link_is_down(
    rig: Rig, rates: tuple[int, ...]
) -> None:
    taps = rig.taps(required=True)
    rig.ari.ready = False
    expected = f"[asterisk] tap = snoop: {DOWN}"
    assert await refusal(taps, *rates) == expected
    rig.ari.ready = True
    assert (await taps.choose(UNIQUEID, rates)).tap is rig.snoop


@pytest.mark.parametrize("ready", [True, False])
async def test_fork_waits_a_moment_for_a_link_that_is_just_being_made(
    rig: Rig, clock: Clock, ready: bool
) -> None:
    rig.ari.ready = False
    rig.ari.first_attempt.clear()
    choosing = asyncio.create_task(rig.taps().choose(UNIQUEID, (16000, 8000)))
    await clock.advance(FIRST_LINK_TIMEOUT_S - 0.1)
    assert not choosing.done()
    rig.ari.ready = ready
    rig.ari.first_attempt.set()
    await clock.settle()
    assert (await choosing).tap is (rig.snoop if ready else rig.chanspy)


async def test_only_the_first_fork_waits_for_a_link_that_is_not_made(
    rig: Rig, clock: Clock
) -> None:
    taps = rig.taps()
    rig.ari.ready = False
    rig.ari.first_attempt.clear()
    choosing = asyncio.create_task(taps.choose(UNIQUEID, ()))
    await clock.advance(FIRST_LINK_TIMEOUT_S)
    await choosing
    await taps.choose(UNIQUEID, ())
    assert len(rig.ari.settle_timeouts) == 1


async def test_fork_does_not_wait_longer_for_a_link_that_is_just_being_made(
    rig: Rig, clock: Clock
) -> None:
    rig.ari.ready = False
    rig.ari.first_attempt.clear()
    choosing = asyncio.create_task(rig.taps().choose(UNIQUEID, ()))
    await clock.advance(FIRST_LINK_TIMEOUT_S)
    assert choosing.done()
    assert (await choosing).tap is rig.chanspy


# --- Which sample rate ---------------------------------------------------------------------------


@pytest.mark.parametrize("ari", [True, False])
@pytest.mark.parametrize("rates", [(8000,), (8000, 16000)], ids=str)
async def test_8000_hz_is_had_without_a_note_by_any_tap(
    rig: Rig, ari: bool, rates: tuple[int, ...]
) -> None:
    choice = await rig.taps(ari=ari, sample_rate=16000).choose(UNIQUEID, rates)
    assert choice == Choice(rig.snoop if ari else rig.chanspy, 8000)
    assert rig.ami.actions == []


@pytest.mark.parametrize("rate", [12000, 16000, 44100, 192000])
@pytest.mark.parametrize("second", [(), (8000,)], ids=["alone", "or-8000"])
async def test_wide_audio_is_had_by_the_snoop_tap(
    rig: Rig, rate: int, second: tuple[int, ...]
) -> None:
    assert await rig.taps().choose(UNIQUEID, (rate, *second)) == Choice(rig.snoop, rate)


@pytest.mark.parametrize("rates", [(16000,), (16000, 48000)], ids=str)
async def test_wide_audio_without_ari_is_refused_and_the_text_says_what_to_configure(
    rig: Rig, rates: tuple[int, ...]
) -> None:
    text = f"16000 Hz needs the snoop tap: {SET_ARI}"
    assert await refusal(rig.taps(ari=False), *rates) == text


async def test_wide_audio_while_the_link_is_down_is_refused_and_the_text_says_why(
    rig: Rig,
) -> None:
    rig.ari.ready = False
    assert await refusal(rig.taps(), 16000) == f"16000 Hz needs the snoop tap: {DOWN}"


@pytest.mark.parametrize(("ari", "why"), [(False, SET_ARI), (True, DOWN)], ids=["unset", "down"])
async def test_wide_audio_or_8000_hz_falls_back_and_the_note_says_so(
    rig: Rig, ari: bool, why: str
) -> None:
    rig.ari.ready = False
    choice = await rig.taps(ari=ari).choose(UNIQUEID, (16000, 8000))
    assert choice == Choice(rig.chanspy, 8000, f"8000 Hz in place of 16000: {why}")


async def test_fork_without_a_wish_gets_the_configured_rate_as_it_is_now(rig: Rig) -> None:
    taps = rig.taps(sample_rate=16000)
    assert (await taps.choose(UNIQUEID, ())).sample_rate == 16000
    taps.sample_rate = 48000
    assert (await taps.choose(UNIQUEID, ())).sample_rate == 48000
    assert (await taps.choose(UNIQUEID, (24000,))).sample_rate == 24000


async def test_configured_rate_that_chanspy_does_not_have_refuses_too(rig: Rig) -> None:
    text = f"16000 Hz needs the snoop tap: {SET_ARI}"
    assert await refusal(rig.taps(ari=False, sample_rate=16000)) == text


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "wished-for"])
async def test_the_channel_s_own_rate_is_asked_for(rig: Rig, configured: bool) -> None:
    taps = rig.taps(sample_rate=0 if configured else 8000)
    choice = await taps.choose(UNIQUEID, () if configured else (0,))
    assert choice == Choice(rig.snoop, 16000)
    assert rig.ami.actions == [("Getvar", [("Channel", UNIQUEID), ("Variable", NATIVE)], "")]


async def test_the_channel_s_own_rate_of_8000_hz_is_had_by_chanspy_without_a_note(
    rig: Rig,
) -> None:
    rig.ami.values[NATIVE] = "(ulaw)"
    assert await rig.taps(ari=False).choose(UNIQUEID, (0,)) == Choice(rig.chanspy, 8000)


async def test_the_channel_s_own_rate_that_chanspy_does_not_have_is_refused_by_its_number(
    rig: Rig,
) -> None:
    text = f"16000 Hz needs the snoop tap: {SET_ARI}"
    assert await refusal(rig.taps(ari=False), 0) == text


async def test_the_channel_s_own_rate_or_8000_hz_falls_back_and_the_note_says_so(
    rig: Rig,
) -> None:
    choice = await rig.taps(ari=False).choose(UNIQUEID, (0, 8000))
    assert choice == Choice(rig.chanspy, 8000, f"8000 Hz in place of 16000: {SET_ARI}")


@pytest.mark.parametrize("ari", [True, False])
async def test_the_own_rate_of_a_channel_that_is_gone_finds_none(rig: Rig, ari: bool) -> None:
    rig.ami.channels.clear()
    with pytest.raises(NoSuchChannel):
        await rig.taps(ari=ari).choose(UNIQUEID, (0, 8000))


async def test_the_own_rate_that_cannot_be_asked_for_raises_why(rig: Rig) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("down")
    with pytest.raises(AmiUnavailable, match="^down$"):
        await rig.taps().choose(UNIQUEID, (0,))


# --- Whose legs ----------------------------------------------------------------------------------

LEG = f"audiofork-{UNKNOWN_ID}"
CHANSPY_NAME = f"AudioSocket/127.0.0.1:9094-{UNKNOWN_ID}"
SNOOP_NAME = f"Snoop/{UNIQUEID}-00000001"
PRESENT = {
    LEG: CHANSPY_NAME,
    f"{LEG}-0a1b2c3d": CHANSPY_NAME,
    f"{LEG}-audiofork-in": SNOOP_NAME,
    f"{LEG}-audiofork-out-0a1b2c3d": SNOOP_NAME,
    # Of other daemons:
    f"{LEG}-4d5e6f70": f"AudioSocket/192.0.2.1:9093-{UNKNOWN_ID}",
    f"{LEG}-audiofork-2-in": SNOOP_NAME,
    # Of nobody's fork:
    UNIQUEID: NAME,
    "1700000000.2": SNOOP_NAME,
    "1700000000.3": CHANSPY_NAME,  # the far end of a wide leg of ours, which ends with it
}


def test_legs_left_behind_are_those_of_this_daemon_by_either_tap(rig: Rig) -> None:
    assert rig.taps().left_behind(PRESENT, ()) == [
        LEG,
        f"{LEG}-0a1b2c3d",
        f"{LEG}-audiofork-in",
        f"{LEG}-audiofork-out-0a1b2c3d",
    ]


def test_legs_that_are_wanted_are_not_left_behind(rig: Rig) -> None:
    keep = iter([f"{LEG}-0a1b2c3d", f"{LEG}-audiofork-in"])
    assert rig.taps().left_behind(PRESENT, keep) == [LEG, f"{LEG}-audiofork-out-0a1b2c3d"]


def test_legs_by_ari_are_found_while_its_link_is_down(rig: Rig) -> None:
    leg_id = rig.snoop.name_leg(UNKNOWN_ID, LegPart.IN, anew=True)
    rig.ari.ready = False
    assert rig.taps().left_behind({leg_id: SNOOP_NAME}, ()) == [leg_id]


def test_legs_by_ari_are_nobody_s_where_ari_is_not_configured(rig: Rig) -> None:
    assert rig.taps(ari=False).left_behind(PRESENT, ()) == [LEG, f"{LEG}-0a1b2c3d"]


@pytest.mark.parametrize(
    ("uniqueid", "name", "expected"),
    [
        pytest.param(LEG, CHANSPY_NAME, True, id="chanspy"),
        pytest.param(f"{LEG}-audiofork-in", SNOOP_NAME, True, id="snoop"),
        pytest.param(f"{LEG}-audiofork-2-in", SNOOP_NAME, True, id="of-another-daemon"),
        pytest.param("audiofork-", "", True, id="prefix-alone"),
        pytest.param("1700000000.3", CHANSPY_NAME, True, id="dials-us"),
        pytest.param("1700000000.3", "AudioSocket/127.0.0.1:90931-1", False, id="dials-others"),
        pytest.param("1700000000.2", SNOOP_NAME, False, id="snoop-of-others"),
        pytest.param(UNIQUEID, NAME, False, id="call"),
        pytest.param(f"x{LEG}", NAME, False, id="other-prefix"),
    ],
)
@pytest.mark.parametrize("ari", [True, False])
def test_leg_is_known_by_its_uniqueid_or_by_whom_it_dials(
    rig: Rig, ari: bool, uniqueid: str, name: str, expected: bool
) -> None:
    assert rig.taps(ari=ari).is_leg(name, uniqueid) is expected
