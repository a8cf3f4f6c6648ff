"""The choice of tap and sample rate, and which legs are whose; the taps are the real ones."""

import asyncio
from dataclasses import replace

import pytest

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.chanspy import ChanSpyTap
from audiofork.asterisk.taps.choice import FIRST_CONNECT_TIMEOUT_S, NOT_BY_CHANSPY, Choice, Taps
from audiofork.asterisk.taps.connect import ConnectTap
from audiofork.asterisk.taps.snoop import SnoopTap
from audiofork.asterisk.taps.ways import WAYS, Site, Way, Wish
from audiofork.asterisk.versions import Version
from audiofork.config import Address, AriConfig, AsteriskConfig
from audiofork.errors import AmiUnavailable, NoSuchChannel, RequestRefused
from audiofork.link.messages import Direction, LegPart
from audiofork.text import MAX_REASON_CHARACTERS
from tests.control_plane import NAME, UNIQUEID, UNKNOWN_ID, Clock, FakeAmi, FakeAri

NATIVE = "CHANNEL(audionativeformat)"
SET_ARI = "set up [ari] (audiofork check says how)"
DOWN = "no connection to ARI at http://127.0.0.1:8088/ari: Connection refused"
APPLICATION, DIAL, SPY_HALF, SPY_IN, SPY_PAIRS, SPY_MIX = WAYS
BOTH = Wish(Direction.BOTH)


class FakeRelay:
    addresses = (Address("127.0.0.1", 9093), Address("127.0.0.1", 9094))

    def address_of(self, fork_id: str) -> Address:
        return self.addresses[0]


class Rig:
    """Taps between an Asterisk 22.5 and an ARI that are the test's; a channel speaks G.722."""

    def __init__(self) -> None:
        self.ami = FakeAmi()
        self.ami.channels = {UNIQUEID: NAME}
        self.ami.values = {NATIVE: "(g722|alaw)"}
        self.ari = FakeAri()
        self.ari.status = DOWN
        self.chanspy = ChanSpyTap(self.ami, FakeRelay())  # type: ignore[arg-type]
        self.snoop = SnoopTap(self.ari, AriConfig(), FakeRelay())  # type: ignore[arg-type]

    def taps(
        self,
        *,
        ari: bool = True,
        tap: str = "auto",
        narrowband: bool = False,
        sample_rate: int = 8000,
    ) -> Taps:
        channels = Channels(self.ami)  # type: ignore[arg-type]
        pairs = "narrowband" if narrowband else "never"
        config = AsteriskConfig(tap=tap, chanspy_pairs=pairs)
        snoop = self.snoop if ari else None
        connect = ConnectTap(self.ami, FakeRelay())  # type: ignore[arg-type]
        return Taps(self.ami, self.chanspy, snoop, connect, channels, config, sample_rate)

    def by_snoop(self, way: Way = APPLICATION, sample_rate: int = 8000) -> Choice:
        return Choice(self.snoop, way, sample_rate)

    def by_chanspy(self, way: Way = SPY_MIX, note: str = "") -> Choice:
        return Choice(self.chanspy, way, 8000, note)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def refusal(taps: Taps, *wished_rates: int, wish: Wish = BOTH) -> str:
    """Return why a fork is refused."""
    with pytest.raises(RequestRefused) as caught:
        await taps.choose(UNIQUEID, wish, wished_rates)
    return str(caught.value)


def why_not_16000(why_no_ari: str) -> str:
    return f"D(both), 16000 Hz: {why_no_ari}; ChanSpy has only 8000 Hz"


# --- Which tap -----------------------------------------------------------------------------------


async def test_with_ari_a_fork_gets_the_snoop_tap(rig: Rig) -> None:
    assert await rig.taps().choose(UNIQUEID, BOTH) == rig.by_snoop()


async def test_without_ari_a_fork_gets_chanspy(rig: Rig) -> None:
    assert await rig.taps(ari=False).choose(UNIQUEID, BOTH) == rig.by_chanspy()


async def test_while_the_link_is_down_a_fork_gets_chanspy_and_later_ones_snoop(rig: Rig) -> None:
    taps = rig.taps()
    rig.ari.ready = False
    assert await taps.choose(UNIQUEID, BOTH) == rig.by_chanspy()
    rig.ari.ready = True
    assert await taps.choose(UNIQUEID, BOTH) == rig.by_snoop()


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("direction", Direction)
async def test_tap_snoop_refuses_forks_with_the_reason_while_the_link_is_down(
    rig: Rig, direction: Direction, rate: int
) -> None:
    taps = rig.taps(tap="snoop", narrowband=True)
    rig.ari.ready = False
    asked = f"D({direction}), 16000 Hz" if rate == 16000 else f"D({direction})"
    assert await refusal(taps, rate, wish=Wish(direction)) == (
        f"{asked}: {DOWN}; ChanSpy {NOT_BY_CHANSPY}"
    )
    rig.ari.ready = True
    assert (await taps.choose(UNIQUEID, Wish(direction), (rate,))).tap is rig.snoop


async def test_tap_chanspy_says_so_where_a_fork_would_need_ari(rig: Rig) -> None:
    taps = rig.taps(ari=False, tap="chanspy")
    assert await taps.choose(UNIQUEID, BOTH) == rig.by_chanspy()
    assert await refusal(taps, 16000) == why_not_16000("[asterisk] tap = chanspy rules ARI out")


@pytest.mark.parametrize(
    ("version", "way"),
    [("20.4.0", DIAL), ("22.3.0", DIAL), ("22.4.0", APPLICATION), ("22.11.0-rc1", APPLICATION)],
)
async def test_way_is_that_of_the_version_that_asterisk_has_at_the_moment(
    rig: Rig, version: str, way: Way
) -> None:
    taps = rig.taps()
    await taps.choose(UNIQUEID, BOTH)
    rig.ami.version = Version.parse(version)
    assert await taps.choose(UNIQUEID, BOTH) == rig.by_snoop(way)


@pytest.mark.parametrize(
    ("ari", "tap", "narrowband", "ready", "site"),
    [
        (True, "auto", False, True, ("", "", False)),
        (True, "auto", True, True, ("", "", True)),
        (True, "auto", False, False, (DOWN, "", False)),
        (False, "auto", False, True, (SET_ARI, "", False)),
        (True, "snoop", False, True, ("", NOT_BY_CHANSPY, False)),
        (False, "chanspy", True, True, ("[asterisk] tap = chanspy rules ARI out", "", True)),
    ],
)
async def test_site_is_what_is_configured_and_reachable(
    rig: Rig, ari: bool, tap: str, narrowband: bool, ready: bool, site: tuple[str, str, bool]
) -> None:
    rig.ari.ready = ready
    taps = rig.taps(ari=ari, tap=tap, narrowband=narrowband)
    assert taps.site() == Site(Version.parse("22.5.2"), *site)


@pytest.mark.parametrize("ready", [True, False])
async def test_fork_waits_a_moment_for_a_link_that_is_just_being_made(
    rig: Rig, clock: Clock, ready: bool
) -> None:
    rig.ari.ready = False
    rig.ari.first_attempt.clear()
    choosing = asyncio.create_task(rig.taps().choose(UNIQUEID, BOTH, (16000, 8000)))
    await clock.advance(FIRST_CONNECT_TIMEOUT_S - 0.1)
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
    choosing = asyncio.create_task(taps.choose(UNIQUEID, BOTH))
    await clock.advance(FIRST_CONNECT_TIMEOUT_S)
    await choosing
    await taps.choose(UNIQUEID, BOTH)
    assert len(rig.ari.settle_timeouts) == 1


async def test_fork_does_not_wait_longer_for_a_link_that_is_just_being_made(
    rig: Rig, clock: Clock
) -> None:
    rig.ari.ready = False
    rig.ari.first_attempt.clear()
    choosing = asyncio.create_task(rig.taps().choose(UNIQUEID, BOTH))
    await clock.advance(FIRST_CONNECT_TIMEOUT_S)
    assert choosing.done()
    assert (await choosing).tap is rig.chanspy


# --- Which sample rate ---------------------------------------------------------------------------


@pytest.mark.parametrize("ari", [True, False])
@pytest.mark.parametrize("rates", [(8000,), (8000, 16000)], ids=str)
async def test_8000_hz_is_had_without_a_note_by_any_tap(
    rig: Rig, ari: bool, rates: tuple[int, ...]
) -> None:
    choice = await rig.taps(ari=ari, sample_rate=16000).choose(UNIQUEID, BOTH, rates)
    assert choice == (rig.by_snoop() if ari else rig.by_chanspy())
    assert rig.ami.actions == []


@pytest.mark.parametrize("rate", [12000, 16000, 44100, 192000])
@pytest.mark.parametrize("second", [(), (8000,)], ids=["alone", "or-8000"])
async def test_wide_audio_is_had_by_the_snoop_tap(
    rig: Rig, rate: int, second: tuple[int, ...]
) -> None:
    assert await rig.taps().choose(UNIQUEID, BOTH, (rate, *second)) == rig.by_snoop(DIAL, rate)


@pytest.mark.parametrize("rates", [(16000,), (16000, 48000)], ids=str)
async def test_wide_audio_without_ari_is_refused_and_the_text_says_what_to_configure(
    rig: Rig, rates: tuple[int, ...]
) -> None:
    text = why_not_16000(SET_ARI)
    assert await refusal(rig.taps(ari=False), *rates) == text


async def test_wide_audio_while_the_link_is_down_is_refused_and_the_text_says_why(
    rig: Rig,
) -> None:
    rig.ari.ready = False
    assert await refusal(rig.taps(), 16000) == why_not_16000(DOWN)


@pytest.mark.parametrize(("ari", "why"), [(False, SET_ARI), (True, DOWN)], ids=["unset", "down"])
async def test_wide_audio_or_8000_hz_falls_back_and_the_note_says_so(
    rig: Rig, ari: bool, why: str
) -> None:
    rig.ari.ready = False
    choice = await rig.taps(ari=ari).choose(UNIQUEID, BOTH, (16000, 8000))
    assert choice == rig.by_chanspy(note=f"8000 Hz in place of 16000: {why}")


async def test_fork_without_a_wish_gets_the_configured_rate_as_it_is_now(rig: Rig) -> None:
    taps = rig.taps(sample_rate=16000)
    assert (await taps.choose(UNIQUEID, BOTH)).sample_rate == 16000
    taps.sample_rate = 48000
    assert (await taps.choose(UNIQUEID, BOTH)).sample_rate == 48000
    assert (await taps.choose(UNIQUEID, BOTH, (24000,))).sample_rate == 24000


async def test_configured_rate_that_chanspy_does_not_have_refuses_too(rig: Rig) -> None:
    text = why_not_16000(SET_ARI)
    assert await refusal(rig.taps(ari=False, sample_rate=16000)) == text


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "wished-for"])
async def test_the_channel_s_own_rate_is_asked_for(rig: Rig, configured: bool) -> None:
    taps = rig.taps(sample_rate=0 if configured else 8000)
    choice = await taps.choose(UNIQUEID, BOTH, () if configured else (0,))
    assert choice == rig.by_snoop(DIAL, 16000)
    assert rig.ami.actions == [
        ("Getvar", [("Channel", UNIQUEID), ("Variable", f"REPLACE({NATIVE},\\\\r,\\n)")], "")
    ]


async def test_the_channel_s_own_rate_of_8000_hz_is_had_by_chanspy_without_a_note(
    rig: Rig,
) -> None:
    rig.ami.values[NATIVE] = "(ulaw)"
    assert await rig.taps(ari=False).choose(UNIQUEID, BOTH, (0,)) == rig.by_chanspy()


async def test_the_channel_s_own_rate_that_chanspy_does_not_have_is_refused_by_its_number(
    rig: Rig,
) -> None:
    text = why_not_16000(SET_ARI)
    assert await refusal(rig.taps(ari=False), 0) == text


async def test_the_channel_s_own_rate_or_8000_hz_falls_back_and_the_note_says_so(
    rig: Rig,
) -> None:
    choice = await rig.taps(ari=False).choose(UNIQUEID, BOTH, (0, 8000))
    assert choice == rig.by_chanspy(note=f"8000 Hz in place of 16000: {SET_ARI}")


@pytest.mark.parametrize("ari", [True, False])
async def test_the_own_rate_of_a_channel_that_is_gone_finds_none(rig: Rig, ari: bool) -> None:
    rig.ami.channels.clear()
    with pytest.raises(NoSuchChannel):
        await rig.taps(ari=ari).choose(UNIQUEID, BOTH, (0, 8000))


async def test_the_own_rate_that_cannot_be_asked_for_raises_why(rig: Rig) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("down")
    with pytest.raises(AmiUnavailable, match="^down$"):
        await rig.taps().choose(UNIQUEID, BOTH, (0,))


# --- In and out apart by ChanSpy -----------------------------------------------------------------

STEREO = Wish(Direction.STEREO)
FORMATS = [
    "CHANNEL(audionativeformat)",
    "CHANNEL(audioreadformat)",
    "CHANNEL(audiowriteformat)",
]
PEER, PEER_ID = "PJSIP/200-0000002b", "2.2"


@pytest.fixture
def narrow(rig: Rig) -> Rig:
    """The rig, with a call that has no wideband audio: a channel and its bridge peer."""
    rig.ami.channels[PEER_ID] = PEER
    rig.ami.values = dict.fromkeys(FORMATS, "(alaw)")
    rig.ami.values_of = {UNIQUEID: {"BRIDGEPEER": PEER}, PEER_ID: {}}
    return rig


@pytest.mark.parametrize("wish", [Wish(Direction.OUT), STEREO, Wish(Direction.BOTH, apart=True)])
async def test_narrowband_call_of_a_narrowband_site_has_pairs_by_chanspy(
    narrow: Rig, wish: Wish
) -> None:
    taps = narrow.taps(ari=False, narrowband=True)
    assert await taps.choose(UNIQUEID, wish) == narrow.by_chanspy(SPY_PAIRS)


def why_in_the_call(wide: str) -> str:
    return (
        f"the call has wideband audio ({wide}), though [asterisk] chanspy_pairs = narrowband: "
        "ChanSpy gets in and out wrong; set up [ari] (audiofork check says how)"
    )


@pytest.mark.parametrize("whose", [UNIQUEID, PEER_ID], ids=["own", "peer"])
@pytest.mark.parametrize("expression", FORMATS)
@pytest.mark.parametrize(
    ("formats", "wide"),
    [
        ("(g722)", "g722"),
        ("(alaw|opus|g722)", "opus"),
        ("slin16", "slin16"),
        ("(slin48)", "slin48"),
    ],
)
async def test_call_with_a_wideband_format_of_its_own_or_of_its_peer_has_no_pairs(
    narrow: Rig, formats: str, wide: str, expression: str, whose: str
) -> None:
    narrow.ami.values_of.setdefault(whose, {})[expression] = formats
    taps = narrow.taps(ari=False, narrowband=True)
    assert await refusal(taps, wish=STEREO) == why_in_the_call(wide)
    assert await taps.wide(UNIQUEID) == wide


async def test_wideband_of_any_of_several_peers_counts(narrow: Rig) -> None:
    narrow.ami.channels["3.3"] = "PJSIP/300-0000002c"
    narrow.ami.values_of[UNIQUEID]["BRIDGEPEER"] = f"{PEER},PJSIP/300-0000002c"
    narrow.ami.values_of["3.3"] = {"CHANNEL(audiowriteformat)": "slin16"}
    taps = narrow.taps(ari=False, narrowband=True)
    assert await refusal(taps, wish=STEREO) == why_in_the_call("slin16")


@pytest.mark.parametrize("wish", [Wish(Direction.OUT), STEREO, Wish(Direction.BOTH, apart=True)])
@pytest.mark.parametrize("speaks", [False, True])
async def test_sides_apart_are_refused_in_a_wideband_call_of_a_narrowband_site(
    narrow: Rig, wish: Wish, speaks: bool
) -> None:
    narrow.ami.values_of[PEER_ID] = {"CHANNEL(audionativeformat)": "(g722)"}
    taps = narrow.taps(ari=False, narrowband=True)
    wish = replace(wish, speaks=speaks)
    assert await refusal(taps, wish=wish) == why_in_the_call("g722")


@pytest.mark.parametrize("wide", ["g722", "slin192", "silk24"])
def test_refusal_of_a_wideband_call_is_told_to_its_end_in_events(rig: Rig, wide: str) -> None:
    for taps in (rig.taps(ari=False, narrowband=True), rig.taps(narrowband=True)):
        rig.ari.ready = False
        assert len(taps.why_wide(BOTH, wide)) <= MAX_REASON_CHARACTERS == 240


def test_refusal_of_a_wideband_call_names_what_keeps_ari_from_it(rig: Rig) -> None:
    without, away = rig.taps(ari=False, narrowband=True), rig.taps(narrowband=True)
    rig.ari.ready = False
    assert without.why_wide(BOTH, "g722") == why_in_the_call("g722")
    assert away.why_wide(BOTH, "g722").endswith(f"wrong; {DOWN}")


@pytest.mark.parametrize("whose", [UNIQUEID, PEER_ID], ids=["own", "peer"])
@pytest.mark.parametrize("speaks", [False, True])
async def test_both_comes_mixed_in_a_wideband_call_of_a_narrowband_site(
    narrow: Rig, whose: str, speaks: bool
) -> None:
    taps = narrow.taps(ari=False, narrowband=True)
    wish = Wish(Direction.BOTH, speaks=speaks)
    assert await taps.choose(UNIQUEID, wish) == narrow.by_chanspy(SPY_PAIRS)
    narrow.ami.values_of[whose]["CHANNEL(audionativeformat)"] = "(g722)"
    assert await taps.choose(UNIQUEID, wish) == narrow.by_chanspy(SPY_MIX)


async def test_mix_in_place_of_pairs_keeps_the_note_on_its_sample_rate(narrow: Rig) -> None:
    narrow.ami.values_of[PEER_ID] = {"CHANNEL(audionativeformat)": "(g722)"}
    taps = narrow.taps(ari=False, narrowband=True)
    assert await taps.choose(UNIQUEID, BOTH, (16000, 8000)) == narrow.by_chanspy(
        SPY_MIX, f"8000 Hz in place of 16000: {SET_ARI}"
    )


async def test_peer_that_has_just_gone_is_no_reason_to_refuse(narrow: Rig) -> None:
    del narrow.ami.channels[PEER_ID]
    taps = narrow.taps(ari=False, narrowband=True)
    assert await taps.choose(UNIQUEID, STEREO) == narrow.by_chanspy(SPY_PAIRS)


async def test_formats_that_cannot_be_asked_for_raise_why(narrow: Rig) -> None:
    narrow.ami.faults["Getvar"] = AmiUnavailable("down")
    with pytest.raises(AmiUnavailable, match="^down$"):
        await narrow.taps(ari=False, narrowband=True).choose(UNIQUEID, STEREO)


@pytest.mark.parametrize(
    ("ari", "wish"),
    [(True, STEREO), (False, BOTH), (False, Wish(Direction.IN))],
    ids=["snoop", "mix", "in"],
)
async def test_formats_are_not_asked_for_where_nothing_comes_in_pairs(
    rig: Rig, ari: bool, wish: Wish
) -> None:
    await rig.taps(ari=ari).choose(UNIQUEID, wish)
    assert rig.ami.actions == []


@pytest.mark.parametrize("wish", [Wish(Direction.OUT), STEREO, Wish(Direction.BOTH, apart=True)])
async def test_sides_apart_are_refused_where_the_site_may_have_wideband(
    narrow: Rig, wish: Wish
) -> None:
    text = await refusal(narrow.taps(ari=False), wish=wish)
    asked = "D(both), in and out apart" if wish.apart else f"D({wish.direction})"
    or_mixed = ", or mixes them" if wish.apart else ""
    assert text == (
        f"{asked}: set up [ari] (audiofork check says how); ChanSpy needs a narrowband site "
        f"([asterisk] chanspy_pairs = narrowband){or_mixed}"
    )


async def test_refusal_for_any_of_several_rates_is_that_for_the_best(narrow: Rig) -> None:
    text = await refusal(narrow.taps(ari=False), 16000, 8000, wish=STEREO)
    assert text == f"D(stereo), 16000 Hz: {SET_ARI}; ChanSpy has only 8000 Hz"


# --- Notes ---------------------------------------------------------------------------------------


async def test_note_tells_what_chanspy_loses_on_this_version(rig: Rig) -> None:
    rig.ami.version = Version.parse("20.7.0")
    flaw = (
        "one frame in 25 is lost while the party hears something on Asterisk 20.7.0; ARI's snoop "
        "loses none"
    )
    taps = rig.taps(ari=False)
    assert await taps.choose(UNIQUEID, Wish(Direction.IN)) == rig.by_chanspy(SPY_IN, flaw)
    assert await taps.choose(UNIQUEID, BOTH) == rig.by_chanspy()
    choice = await taps.choose(UNIQUEID, Wish(Direction.IN), (16000, 8000))
    assert choice.note == f"{flaw}; 8000 Hz in place of 16000: {SET_ARI}"


async def test_in_is_half_of_pairs_where_that_loses_less_and_alone_in_a_wideband_call(
    narrow: Rig,
) -> None:
    narrow.ami.version = Version.parse("20.9.3")
    taps = narrow.taps(ari=False, narrowband=True)
    assert await taps.choose(UNIQUEID, Wish(Direction.IN)) == narrow.by_chanspy(SPY_HALF)
    narrow.ami.values[NATIVE] = "(g722)"
    assert (await taps.choose(UNIQUEID, Wish(Direction.IN))).way is SPY_IN


LEAKING = "22.11.0-rc1"
LEAK = "beeps leak memory while the party hears nothing on 22.11.0-rc1"


@pytest.mark.parametrize(
    ("direction", "way"),
    [
        (Direction.IN, SPY_IN),
        (Direction.OUT, SPY_PAIRS),
        (Direction.BOTH, SPY_PAIRS),
        (Direction.STEREO, SPY_PAIRS),
    ],
)
@pytest.mark.parametrize("ari", [True, False])
async def test_note_tells_of_the_leak_of_beeps_by_chanspy_on_versions_that_have_it(
    narrow: Rig, ari: bool, direction: Direction, way: Way
) -> None:
    taps = narrow.taps(ari=ari, narrowband=True)
    beeps = Wish(direction, speaks=True)
    assert (await taps.choose(UNIQUEID, beeps)).note == ""
    narrow.ami.version = Version.parse(LEAKING)
    assert await taps.choose(UNIQUEID, beeps) == narrow.by_chanspy(way, LEAK)
    assert (await taps.choose(UNIQUEID, Wish(direction))).note == ""


async def test_note_tells_of_the_leak_and_of_the_sample_rate(rig: Rig) -> None:
    rig.ami.version = Version.parse(LEAKING)
    beeps = Wish(Direction.BOTH, speaks=True)
    choice = await rig.taps(ari=False).choose(UNIQUEID, beeps, (16000, 8000))
    silenced = f"beeps by snoop may silence the other party on {LEAKING}"
    assert choice.note == f"{LEAK}; 8000 Hz in place of 16000: {silenced}"


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


def test_stray_legs_are_those_of_this_daemon_by_either_tap(rig: Rig) -> None:
    assert rig.taps().stray_legs(PRESENT, ()) == [
        LEG,
        f"{LEG}-0a1b2c3d",
        f"{LEG}-audiofork-in",
        f"{LEG}-audiofork-out-0a1b2c3d",
    ]


def test_legs_that_are_wanted_are_no_stray_legs(rig: Rig) -> None:
    keep = iter([f"{LEG}-0a1b2c3d", f"{LEG}-audiofork-in"])
    assert rig.taps().stray_legs(PRESENT, keep) == [LEG, f"{LEG}-audiofork-out-0a1b2c3d"]


def test_legs_by_ari_are_found_while_its_link_is_down(rig: Rig) -> None:
    leg_id = rig.snoop.name_leg(UNKNOWN_ID, LegPart.IN, anew=True)
    rig.ari.ready = False
    assert rig.taps().stray_legs({leg_id: SNOOP_NAME}, ()) == [leg_id]


def test_legs_by_ari_are_nobody_s_where_ari_is_not_configured(rig: Rig) -> None:
    assert rig.taps(ari=False).stray_legs(PRESENT, ()) == [LEG, f"{LEG}-0a1b2c3d"]


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


# --- Connected forks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "rates", "got"),
    [
        ("22.7.0", (16000,), 16000),
        ("22.7.0", (), 8000),
        ("22.7.0", (0,), 16000),
        ("22.6.0", (16000, 8000), 8000),
        ("18.26.4", (), 8000),
    ],
)
async def test_connected_fork_has_the_first_rate_that_this_asterisk_has(
    rig: Rig, version: str, rates: tuple[int, ...], got: int
) -> None:
    rig.ami.version = Version.parse(version)
    choice = await rig.taps().connecting(UNIQUEID, rates)
    assert (choice.tap.name, choice.sample_rate) == ("connect", got)


async def test_connected_fork_at_a_rate_that_this_asterisk_lacks_is_refused(rig: Rig) -> None:
    rig.ami.version = Version.parse("22.6.0")
    with pytest.raises(RequestRefused, match=r"^16000 Hz: .* 8000 Hz alone on Asterisk 22.6.0"):
        await rig.taps().connecting(UNIQUEID, (16000,))
