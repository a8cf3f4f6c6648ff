"""The table of ways to get legs: which is taken for what, and what is said of the others."""

import itertools

import pytest

from audiofork.control.tap.ways import (
    WAYS,
    Connects,
    Site,
    Way,
    Wish,
    as_markdown,
    best_way,
    known_faults,
    ways_for,
    why_none,
)
from audiofork.control.versions import UNKNOWN, Version
from audiofork.model import Direction, LegPart

IN, OUT, BOTH, STEREO = Direction.IN, Direction.OUT, Direction.BOTH, Direction.STEREO
APPLICATION, DIAL, SPY_IN, SPY_PAIRS, SPY_MIX = WAYS

# Versions by what they have, each with all that those before have: option D of ChanSpy, a harmless
# AudioSocket(), and whispers that leak.
BEFORE_PAIRS = ["18.0.0", "18.19.0", "18.20.0", "20.4.0", "20.5.0", "21.0.0", "21.1.0"]
WITH_PAIRS = ["18.22.0", "18.26.0", "20.7.0", "certified/20.7-cert2", "20.13.0", "21.2.0", "21.8.0"]
WITH_PAIRS += ["22.0.0", "22.3.0"]
BY_APPLICATION = [
    "20.14.0",
    "20.20.0",
    "21.9.0",
    "21.12.3",
    "22.4.0",
    "22.10.1",
    "23.0.0",
    "23.4.0",
]
BY_APPLICATION += ["GIT-22-f0c1c1a"]
LEAKING = ["20.21.0", "22.11.0-rc1", "22.12.0", "23.5.0", "24.0.0"]
ALL = BEFORE_PAIRS + WITH_PAIRS + BY_APPLICATION + LEAKING

NO_ARI = "set [ari]"
NO_CHANSPY = "tap = snoop"


def site(version: str, **there_is: object) -> Site:
    return Site(Version.parse(version), **there_is)  # type: ignore[arg-type]


def without_ari(version: str, *, narrowband: bool = False) -> Site:
    return Site(Version.parse(version), no_ari=NO_ARI, narrowband=narrowband)


# --- A leg for each side by AudioSocket() ---------------------------------------------------------


@pytest.mark.parametrize("version", [*BY_APPLICATION, *LEAKING, "(version unknown)"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("apart", [False, True])
def test_narrow_legs_come_by_the_application_where_it_rests_and_its_legs_end_with_the_daemon(
    version: str, direction: Direction, apart: bool
) -> None:
    assert best_way(Wish(direction, apart=apart), site(version)) is APPLICATION


@pytest.mark.parametrize("version", BEFORE_PAIRS + WITH_PAIRS)
@pytest.mark.parametrize("direction", Direction)
def test_narrow_legs_come_by_dial_where_the_application_does_harm(
    version: str, direction: Direction
) -> None:
    assert best_way(Wish(direction), site(version)) is DIAL


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("18.19.0", "AudioSocket() takes a core for each leg"),
        ("20.4.0", "AudioSocket() takes a core for each leg"),
        ("18.20.0", "a leg of AudioSocket() outlives a daemon that is killed, and holds its call"),
        ("22.3.0", "a leg of AudioSocket() outlives a daemon that is killed, and holds its call"),
    ],
)
def test_application_is_not_taken_for_the_first_harm_that_it_does(version: str, why: str) -> None:
    assert APPLICATION.why_not(Wish(IN), site(version)) == f"Asterisk {version}: {why}"


@pytest.mark.parametrize("rate", [12_000, 16_000, 48_000, 192_000])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("version", ["18.0.0", "22.3.0", "22.10.1", "24.0.0"])
def test_wide_legs_come_by_dial_alone(version: str, direction: Direction, rate: int) -> None:
    wish = Wish(direction, rate)
    assert best_way(wish, site(version, narrowband=True)) is DIAL
    assert [way for way in WAYS if not way.why_not(wish, site(version, narrowband=True))] == [DIAL]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_legs_that_speak_come_by_ari_where_whispering_does_not_leak(
    direction: Direction, rate: int
) -> None:
    wish = Wish(direction, rate, speaks=True)
    for version in BEFORE_PAIRS + WITH_PAIRS + BY_APPLICATION:
        way = best_way(wish, site(version))
        assert way is not None and way.tap == "snoop"


@pytest.mark.parametrize("version", LEAKING)
@pytest.mark.parametrize("direction", Direction)
def test_legs_that_speak_do_not_come_by_ari_where_whispering_leaks(
    version: str, direction: Direction
) -> None:
    way = best_way(Wish(direction, speaks=True), site(version, narrowband=True))
    assert way is (SPY_IN if direction is IN else SPY_PAIRS)
    why = f"beeps leak memory on Asterisk {version}, and may silence the other party"
    for by_ari in (APPLICATION, DIAL):
        assert by_ari.why_not(Wish(direction, speaks=True), site(version)) == why
        assert by_ari.why_not(Wish(direction, 16_000, speaks=True), site(version)) == why


@pytest.mark.parametrize("version", ALL)
def test_no_leg_comes_by_ari_where_there_is_none(version: str) -> None:
    for direction, rate in itertools.product(Direction, (8000, 16_000)):
        wish = Wish(direction, rate)
        assert {way.why_not(wish, without_ari(version)) for way in (APPLICATION, DIAL)} == {NO_ARI}


# --- ChanSpy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("wish", [Wish(IN), Wish(IN, speaks=True), Wish(IN, apart=True)], ids=str)
def test_in_alone_comes_by_chanspy_on_every_version(version: str, wish: Wish) -> None:
    for narrowband in (False, True):
        assert best_way(wish, without_ari(version, narrowband=narrowband)) is SPY_IN


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("speaks", [False, True])
def test_both_comes_mixed_by_chanspy_on_every_version(version: str, speaks: bool) -> None:
    assert best_way(Wish(BOTH, speaks=speaks), without_ari(version)) is SPY_MIX


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    "wish", [Wish(OUT), Wish(STEREO), Wish(STEREO, apart=True), Wish(BOTH, apart=True)], ids=str
)
def test_sides_apart_do_not_come_by_chanspy_where_calls_may_be_wideband(
    version: str, wish: Wish
) -> None:
    assert best_way(wish, without_ari(version)) is None


@pytest.mark.parametrize("version", [*WITH_PAIRS, *BY_APPLICATION, *LEAKING])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("direction", [OUT, BOTH, STEREO])
def test_sides_apart_come_in_pairs_at_a_narrowband_site_with_option_d(
    version: str, direction: Direction, apart: bool
) -> None:
    way = best_way(Wish(direction, apart=apart), without_ari(version, narrowband=True))
    assert way is SPY_PAIRS


@pytest.mark.parametrize("version", BEFORE_PAIRS)
def test_without_option_d_a_narrowband_site_has_both_mixed_and_nothing_apart(version: str) -> None:
    here = without_ari(version, narrowband=True)
    assert best_way(Wish(BOTH), here) is SPY_MIX
    for wish in (Wish(OUT), Wish(STEREO), Wish(BOTH, apart=True)):
        assert best_way(wish, here) is None
    expected = f"Asterisk {version}: its ChanSpy cannot keep in and out apart (option D)"
    assert SPY_PAIRS.why_not(Wish(OUT), here) == expected


@pytest.mark.parametrize("narrowband", [False, True])
def test_nothing_wide_comes_by_chanspy(narrowband: bool) -> None:
    here = without_ari("22.10.1", narrowband=narrowband)
    for direction in Direction:
        assert best_way(Wish(direction, 16_000), here) is None
    assert SPY_MIX.why_not(Wish(BOTH, 16_000), here) == "not at 16000 Hz, only at 8000"


@pytest.mark.parametrize("version", ["18.0.0", "22.10.1"])
def test_nothing_comes_by_chanspy_where_it_is_not_wanted(version: str) -> None:
    here = site(version, no_chanspy=NO_CHANSPY, narrowband=True)
    for direction, apart in itertools.product(Direction, (False, True)):
        wish = Wish(direction, apart=apart)
        way = best_way(wish, here)
        assert way is not None and way.tap == "snoop"
        served = [way for way in (SPY_IN, SPY_PAIRS, SPY_MIX) if direction in way.parts]
        assert {way.why_not(wish, here) for way in served} == {NO_CHANSPY}
        nowhere = site(version, no_ari=NO_ARI, no_chanspy=NO_CHANSPY, narrowband=True)
        assert best_way(wish, nowhere) is None


@pytest.mark.parametrize(
    ("way", "direction", "why"),
    [
        (SPY_IN, OUT, "serves in alone"),
        (SPY_PAIRS, IN, "serves out, both, stereo alone"),
        (SPY_MIX, STEREO, "serves both alone"),
    ],
)
def test_way_that_does_not_serve_a_direction_says_which_it_does(
    way: Way, direction: Direction, why: str
) -> None:
    assert way.why_not(Wish(direction), without_ari("22.10.1", narrowband=True)) == why


# --- What the ways bring -------------------------------------------------------------------------


def test_ways_bring_what_their_directions_need() -> None:
    sides = {
        IN: (LegPart.IN,),
        OUT: (LegPart.OUT,),
        BOTH: (LegPart.IN, LegPart.OUT),
        STEREO: (LegPart.IN, LegPart.OUT),
    }
    assert [way.parts for way in WAYS] == [
        sides,
        sides,
        {IN: (LegPart.IN,)},
        {OUT: (LegPart.PAIRS,), BOTH: (LegPart.PAIRS,), STEREO: (LegPart.PAIRS,)},
        {BOTH: (LegPart.MIX,)},
    ]
    assert [way.tap for way in WAYS] == ["snoop", "snoop", "chanspy", "chanspy", "chanspy"]
    assert [way.connects for way in WAYS] == [
        Connects.APPLICATION,
        Connects.DIAL,
        Connects.ORIGINATE,
        Connects.ORIGINATE,
        Connects.ORIGINATE,
    ]
    assert [way.keeps_time for way in WAYS] == [True, True, False, True, False]


@pytest.mark.parametrize("version", ["18.22.0", "20.7.0", "21.4.0"])
def test_in_alone_by_chanspy_is_not_whole_on_older_versions(version: str) -> None:
    assert SPY_IN.flaw_on(Version.parse(version)) == (
        "one frame in 25 is lost while the party hears something on Asterisk "
        f"{version}; ARI's snoop has it whole"
    )
    assert [way.flaw_on(Version.parse(version)) for way in WAYS if way is not SPY_IN] == [""] * 4


@pytest.mark.parametrize("version", ["18.25.0", "20.10.0", "21.5.0", "22.0.0", "GIT-22-f0c1c1a"])
def test_in_alone_by_chanspy_is_whole_on_later_versions(version: str) -> None:
    assert [way.flaw_on(Version.parse(version)) for way in WAYS] == [""] * 5


# --- What people are told ------------------------------------------------------------------------

WIDEBAND = (
    "in and out apart are wrong in calls with wideband audio; if all audio of this site is at "
    "8000 Hz, set [asterisk] chanspy_pairs = narrowband"
)


@pytest.mark.parametrize(
    ("wish", "here", "text"),
    [
        pytest.param(
            Wish(OUT),
            without_ari("22.10.1"),
            f"D(out) at 8000 Hz: by ARI's snoop: set [ari]; by ChanSpy: {WIDEBAND}",
            id="out",
        ),
        pytest.param(
            Wish(BOTH, apart=True),
            without_ari("22.10.1"),
            "D(both) at 8000 Hz with in and out treated differently: by ARI's snoop: set [ari]; "
            f"by ChanSpy: {WIDEBAND}, or in and out come mixed, nothing can be done to one of them",
            id="both-apart",
        ),
        pytest.param(
            Wish(STEREO, apart=True),
            without_ari("20.4.0", narrowband=True),
            "D(stereo) at 8000 Hz: by ARI's snoop: set [ari]; by ChanSpy: Asterisk 20.4.0: its "
            "ChanSpy cannot keep in and out apart (option D)",
            id="no-option-d",
        ),
        pytest.param(
            Wish(BOTH, 16_000),
            without_ari("22.10.1", narrowband=True),
            "D(both) at 16000 Hz: by ARI's snoop: set [ari]; by ChanSpy: not at 16000 Hz, only at "
            "8000",
            id="wide",
        ),
        pytest.param(
            Wish(STEREO, speaks=True),
            site("22.11.0-rc1"),
            "D(stereo) at 8000 Hz with beeps: by ARI's snoop: beeps leak memory on Asterisk "
            f"22.11.0-rc1, and may silence the other party; by ChanSpy: {WIDEBAND}",
            id="beeps-leak",
        ),
        pytest.param(
            Wish(IN),
            site("22.10.1", no_ari="the link is down", no_chanspy="tap = snoop"),
            "D(in) at 8000 Hz: by ARI's snoop: the link is down; by ChanSpy: tap = snoop",
            id="snoop-alone",
        ),
    ],
)
def test_why_there_is_no_way_is_told_by_each_tap(wish: Wish, here: Site, text: str) -> None:
    assert best_way(wish, here) is None
    assert why_none(wish, here) == text


LEAKS = (
    "a whispered channel leaks memory and may silence the other party, so options B, p and P "
    "(beeps) are not had by ARI's snoop"
)
OUTLIVES = (
    "a leg whose daemon was killed may take a core while its channel is silent, until the daemon "
    "is back or `audiofork sweep` has run"
)
LOSES = (
    "by ChanSpy one frame in 25 of D(in) is lost while the party hears something; ARI's snoop has "
    "them all"
)


@pytest.mark.parametrize(
    ("version", "faults"),
    [
        ("18.0.0", [OUTLIVES, LOSES]),
        ("18.26.4", [OUTLIVES]),
        ("20.4.0", [OUTLIVES, LOSES]),
        ("certified/20.7-cert2", [OUTLIVES, LOSES]),
        ("20.13.0", [OUTLIVES]),
        ("20.14.0", []),
        ("20.21.0", [LEAKS]),
        ("21.12.3", []),
        ("22.0.0", [OUTLIVES]),
        ("22.10.1", []),
        ("22.11.0-rc1", [LEAKS]),
        ("23.4.0", []),
        ("23.5.0", [LEAKS]),
        ("GIT-22-f0c1c1a", []),
    ],
)
def test_known_faults_are_those_of_the_version(version: str, faults: list[str]) -> None:
    assert known_faults(Version.parse(version)) == faults


def test_nothing_is_known_of_an_unknown_version() -> None:
    assert known_faults(UNKNOWN) == []


def test_ways_for_a_site_tell_what_each_needs_and_what_speaks_against_it() -> None:
    assert ways_for(without_ari("20.7.0")) == [
        "Asterisk 20.7.0; of these a fork takes the first that serves it:",
        "1. snoop, a leg for each side by AudioSocket(): in, out, both, stereo",
        "   needs: ARI; no beeps on 20.21, 22.11, 23.5 and later; 8000 Hz; AudioSocket() rests "
        "(18.20, 20.5, 21 or later); legs end with the daemon (20.14, 21.9, 22.4 or later)",
        "   here: set [ari]",
        "2. snoop, a leg for each side by Dial(): in, out, both, stereo",
        "   needs: ARI; no beeps on 20.21, 22.11, 23.5 and later",
        "   here: set [ari]",
        "3. chanspy, in alone (option o): in",
        "   needs: [asterisk] tap is not snoop; 8000 Hz",
        "   here: yes",
        "   but: one frame in 25 is lost while the party hears something on Asterisk 20.7.0; ARI's "
        "snoop has it whole",
        "4. chanspy, in and out side by side (option D): out, both, stereo",
        "   needs: [asterisk] tap is not snoop; 8000 Hz; [asterisk] chanspy_pairs = narrowband, no "
        "wideband in the call; option D (18.22, 20.7, 21.2, 22 or later)",
        f"   here: {WIDEBAND}",
        "5. chanspy, in and out mixed by Asterisk: both",
        "   needs: [asterisk] tap is not snoop; 8000 Hz; volume and mute the same for in and out",
        "   here: yes",
    ]


def test_ways_for_a_site_with_all_of_them_say_so() -> None:
    lines = ways_for(site("22.10.1", narrowband=True))
    assert [line for line in lines if "here:" in line] == ["   here: yes"] * 5
    assert not [line for line in lines if "but:" in line]


def test_table_for_the_docs_has_a_row_for_each_way_in_their_order() -> None:
    head, rule, *rows = as_markdown().split("\n")
    assert (head, rule) == ("| | tap | how | for | where |", "|---|---|---|---|---|")
    assert rows[2] == (
        "| 3 | chanspy | in alone (option o) | in | [asterisk] tap is not snoop; 8000 Hz |"
    )
    assert [row.split(" | ")[1:3] for row in rows] == [[way.tap, way.how] for way in WAYS]
