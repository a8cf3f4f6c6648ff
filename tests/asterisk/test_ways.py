"""The table of ways to get legs: which is taken for what, and what is said of the others."""

import itertools

import pytest

from audiofork.asterisk.taps.choice import NOT_BY_CHANSPY
from audiofork.asterisk.taps.ways import (
    WAYS,
    Audience,
    Connects,
    Site,
    Way,
    Wish,
    as_markdown,
    best_way,
    known_faults,
    way_named,
    ways_for,
    why_none,
)
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.link.messages import Direction, LegPart
from audiofork.text import MAX_REASON_CHARACTERS, harmless

IN, OUT, BOTH, STEREO = Direction.IN, Direction.OUT, Direction.BOTH, Direction.STEREO
APPLICATION, DIAL, SPY_HALF, SPY_IN, SPY_PAIRS, SPY_MIX = WAYS

# Versions by what they have, each with all that those before have: option D of ChanSpy, a harmless
# AudioSocket(), and whispers that leak.
# A pair's half is better than in alone on some of those that have pairs.
HALF_IS_BETTER = [
    "18.22.0",
    "18.24.3",
    "20.7.0",
    "20.9.3",
    "certified/20.7-cert2",
    "21.2.0",
    "21.4.0",
]
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

NO_ARI = "set up [ari]"
NO_CHANSPY = "is ruled out"


def site(version: str, **there_is: object) -> Site:
    return Site(Version.parse(version), **there_is)  # type: ignore[arg-type]


def without_ari(version: str, *, narrowband: bool = False) -> Site:
    return Site(Version.parse(version), no_ari=NO_ARI, narrowband=narrowband)


# --- A leg for each side by AudioSocket() ---------------------------------------------------------


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("apart", [False, True])
def test_narrow_legs_come_by_the_application_where_it_rests_and_its_legs_end_with_the_daemon(
    direction: Direction, apart: bool
) -> None:
    for version in (*BY_APPLICATION, *LEAKING, "(version unknown)"):
        assert best_way(Wish(direction, apart=apart), site(version)) is APPLICATION, version


@pytest.mark.parametrize("direction", Direction)
def test_narrow_legs_come_by_dial_where_the_application_does_harm(direction: Direction) -> None:
    for version in BEFORE_PAIRS + WITH_PAIRS:
        assert best_way(Wish(direction), site(version)) is DIAL, version


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("18.19.0", "AudioSocket() uses a core for each leg"),
        ("20.4.0", "AudioSocket() uses a core for each leg"),
        ("18.20.0", "a leg of AudioSocket() outlives a daemon that is killed, and holds its call"),
        ("22.3.0", "a leg of AudioSocket() outlives a daemon that is killed, and holds its call"),
    ],
)
def test_application_is_not_taken_for_the_first_harm_that_it_does(version: str, why: str) -> None:
    assert APPLICATION.why_not(Wish(IN), site(version)) == f"{why} on Asterisk {version}"


@pytest.mark.parametrize("rate", [12_000, 16_000, 48_000, 192_000])
@pytest.mark.parametrize("direction", Direction)
def test_wide_legs_come_by_dial_alone(direction: Direction, rate: int) -> None:
    wish = Wish(direction, rate)
    for version in ("18.0.0", "22.3.0", "22.10.1", "24.0.0"):
        here = site(version, narrowband=True)
        assert best_way(wish, here) is DIAL, version
        assert [way for way in WAYS if not way.why_not(wish, here)] == [DIAL], version


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_legs_that_speak_come_by_ari_where_that_silences_nobody(
    direction: Direction, rate: int
) -> None:
    wish = Wish(direction, rate, speaks=True)
    for version in BEFORE_PAIRS + WITH_PAIRS + BY_APPLICATION:
        way = best_way(wish, site(version))
        assert way is not None
        assert way.tap == "snoop"


@pytest.mark.parametrize("version", LEAKING)
@pytest.mark.parametrize("direction", Direction)
def test_legs_that_speak_do_not_come_by_ari_where_that_may_silence_the_other_party(
    version: str, direction: Direction
) -> None:
    way = best_way(Wish(direction, speaks=True), site(version, narrowband=True))
    assert way is (SPY_IN if direction is IN else SPY_PAIRS)
    why = f"beeps by snoop may silence the other party on {version}"
    for by_ari in (APPLICATION, DIAL):
        assert by_ari.why_not(Wish(direction, speaks=True), site(version)) == why
        assert by_ari.why_not(Wish(direction, 16_000, speaks=True), site(version)) == why


@pytest.mark.parametrize("version", ALL)
def test_no_leg_comes_by_ari_where_there_is_none(version: str) -> None:
    for direction, rate in itertools.product(Direction, (8000, 16_000)):
        wish = Wish(direction, rate)
        assert {way.why_not(wish, without_ari(version)) for way in (APPLICATION, DIAL)} == {NO_ARI}


# --- ChanSpy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [Wish(IN), Wish(IN, speaks=True), Wish(IN, apart=True)], ids=str)
def test_in_alone_comes_by_chanspy_on_every_version(wish: Wish) -> None:
    for version in ALL:
        assert best_way(wish, without_ari(version)) is SPY_IN, version


@pytest.mark.parametrize("wish", [Wish(IN), Wish(IN, speaks=True), Wish(IN, apart=True)], ids=str)
def test_in_is_half_of_pairs_at_a_narrowband_site_where_in_alone_loses_frames(wish: Wish) -> None:
    for version in HALF_IS_BETTER:
        assert best_way(wish, without_ari(version, narrowband=True)) is SPY_HALF, version


def test_in_is_alone_at_a_narrowband_site_where_that_is_whole_or_there_are_no_pairs() -> None:
    for version in {*ALL} - {*HALF_IS_BETTER}:
        assert best_way(Wish(IN), without_ari(version, narrowband=True)) is SPY_IN, version


def test_half_of_pairs_says_where_in_alone_is_better() -> None:
    assert SPY_HALF.why_not(Wish(IN), without_ari("22.10.1", narrowband=True)) == (
        "loses more than option o on Asterisk 22.10.1"
    )


@pytest.mark.parametrize("speaks", [False, True])
def test_both_comes_mixed_by_chanspy_on_every_version(speaks: bool) -> None:
    for version in ALL:
        assert best_way(Wish(BOTH, speaks=speaks), without_ari(version)) is SPY_MIX, version


@pytest.mark.parametrize(
    "wish", [Wish(OUT), Wish(STEREO), Wish(STEREO, apart=True), Wish(BOTH, apart=True)], ids=str
)
def test_sides_apart_do_not_come_by_chanspy_where_calls_may_be_wideband(wish: Wish) -> None:
    for version in ALL:
        assert best_way(wish, without_ari(version)) is None, version


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("direction", [OUT, BOTH, STEREO])
def test_sides_apart_come_in_pairs_at_a_narrowband_site_with_option_d(
    direction: Direction, apart: bool
) -> None:
    for version in (*WITH_PAIRS, *BY_APPLICATION, *LEAKING):
        way = best_way(Wish(direction, apart=apart), without_ari(version, narrowband=True))
        assert way is SPY_PAIRS, version


@pytest.mark.parametrize("version", BEFORE_PAIRS)
def test_without_option_d_a_narrowband_site_has_both_mixed_and_nothing_apart(version: str) -> None:
    here = without_ari(version, narrowband=True)
    assert best_way(Wish(BOTH), here) is SPY_MIX
    for wish in (Wish(OUT), Wish(STEREO), Wish(BOTH, apart=True)):
        assert best_way(wish, here) is None
    expected = f"cannot keep in and out apart (no option D) on Asterisk {version}"
    assert SPY_PAIRS.why_not(Wish(OUT), here) == expected


@pytest.mark.parametrize("narrowband", [False, True])
def test_nothing_wide_comes_by_chanspy(narrowband: bool) -> None:
    here = without_ari("22.10.1", narrowband=narrowband)
    for direction in Direction:
        assert best_way(Wish(direction, 16_000), here) is None
    assert SPY_MIX.why_not(Wish(BOTH, 16_000), here) == "has only 8000 Hz"


@pytest.mark.parametrize("version", ["18.0.0", "22.10.1"])
def test_nothing_comes_by_chanspy_where_it_is_not_wanted(version: str) -> None:
    here = site(version, no_chanspy=NO_CHANSPY, narrowband=True)
    for direction, apart in itertools.product(Direction, (False, True)):
        wish = Wish(direction, apart=apart)
        way = best_way(wish, here)
        assert way is not None
        assert way.tap == "snoop"
        served = [way for way in (SPY_HALF, SPY_IN, SPY_PAIRS, SPY_MIX) if direction in way.parts]
        assert {way.why_not(wish, here) for way in served} == {NO_CHANSPY}
        nowhere = site(version, no_ari=NO_ARI, no_chanspy=NO_CHANSPY, narrowband=True)
        assert best_way(wish, nowhere) is None


@pytest.mark.parametrize(
    ("way", "direction", "why"),
    [
        (SPY_IN, OUT, "has in alone"),
        (SPY_PAIRS, IN, "has out, both, stereo alone"),
        (SPY_MIX, STEREO, "has both alone"),
    ],
)
def test_way_that_does_not_serve_a_direction_says_which_it_does(
    way: Way, direction: Direction, why: str
) -> None:
    assert way.why_not(Wish(direction), without_ari("22.10.1", narrowband=True)) == why


def test_all_that_speaks_against_a_way_is_told_in_the_order_of_its_rules() -> None:
    here = site("18.19.0", no_ari=NO_ARI, no_chanspy=NO_CHANSPY)
    assert APPLICATION.all_against(Wish(OUT, 16_000), here) == [
        "set up [ari]",
        "has only 8000 Hz",
        "AudioSocket() uses a core for each leg on Asterisk 18.19.0",
        "a leg of AudioSocket() outlives a daemon that is killed, and holds its call on Asterisk "
        "18.19.0",
    ]
    assert SPY_PAIRS.all_against(Wish(OUT, 16_000), here) == [
        "is ruled out",
        "has only 8000 Hz",
        "needs a narrowband site ([asterisk] chanspy_pairs = narrowband)",
        "cannot keep in and out apart (no option D) on Asterisk 18.19.0",
    ]
    assert SPY_IN.all_against(Wish(OUT, 16_000), here) == ["has in alone"]
    assert SPY_MIX.all_against(Wish(BOTH), without_ari("18.19.0")) == []


# --- Who hears the server ------------------------------------------------------------------------


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    ("audience", "with_beeps"),
    [(Audience.PARTY, False), (Audience.PARTY, True), (Audience.PEER, False)],
)
def test_one_side_hears_the_server_by_snoop_whatever_the_fork_carries(
    direction: Direction, audience: Audience, with_beeps: bool
) -> None:
    wish = Wish(direction, speaks=with_beeps, audience=audience)
    for version in ALL:
        way = best_way(wish, site(version, no_chanspy=NO_CHANSPY))
        assert (way is None) is (version in LEAKING), version
        if way is not None:
            legs = way.parts[direction]
            heard = legs[0] if audience is Audience.PARTY else legs[-1]
            assert way.leg_heard_by(audience, direction) is heard


@pytest.mark.parametrize("direction", [BOTH, STEREO])
def test_both_sides_hear_the_server_by_a_leg_each(direction: Direction) -> None:
    way = best_way(Wish(direction, audience=Audience.BOTH), site("22.10.1"))
    assert way is APPLICATION
    assert [way.leg_heard_by(side, direction) for side in Audience.BOTH.sides] == [
        LegPart.IN,
        LegPart.OUT,
    ]


def test_party_hears_the_server_by_chanspy_where_whispering_does_not_leak() -> None:
    for version in ALL:
        wish = Wish(BOTH, audience=Audience.PARTY)
        expected = None if version in LEAKING else SPY_MIX
        assert best_way(wish, without_ari(version)) is expected, version


@pytest.mark.parametrize("audience", [Audience.PEER, Audience.BOTH])
def test_peer_hears_nothing_by_chanspy_on_any_version(audience: Audience) -> None:
    for version, direction in itertools.product(ALL, Direction):
        wish = Wish(direction, audience=audience)
        assert best_way(wish, without_ari(version, narrowband=True)) is None


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
        {IN: (LegPart.PAIRS,)},
        {IN: (LegPart.IN,)},
        {OUT: (LegPart.PAIRS,), BOTH: (LegPart.PAIRS,), STEREO: (LegPart.PAIRS,)},
        {BOTH: (LegPart.MIX,)},
    ]
    assert [way.tap for way in WAYS] == ["snoop"] * 2 + ["chanspy"] * 4
    assert [way.connects for way in WAYS] == [
        Connects.APPLICATION,
        Connects.DIAL,
        *[Connects.ORIGINATE] * 4,
    ]
    assert [way.keeps_time for way in WAYS] == [True, True, True, False, True, False]


@pytest.mark.parametrize("version", ["18.22.0", "20.7.0", "21.4.0"])
def test_in_alone_by_chanspy_is_not_whole_on_older_versions(version: str) -> None:
    assert SPY_IN.flaw_on(Version.parse(version)) == (
        "one frame in 25 is lost while the party hears something on Asterisk "
        f"{version}; ARI's snoop loses none"
    )
    assert [way.flaw_on(Version.parse(version)) for way in WAYS if way is not SPY_IN] == [""] * 5


@pytest.mark.parametrize("version", ["18.25.0", "20.10.0", "21.5.0", "22.0.0", "GIT-22-f0c1c1a"])
def test_in_alone_by_chanspy_is_whole_on_later_versions(version: str) -> None:
    assert [way.flaw_on(Version.parse(version)) for way in WAYS] == [""] * 6


# --- What people are told ------------------------------------------------------------------------

WIDEBAND = "needs a narrowband site ([asterisk] chanspy_pairs = narrowband)"


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (Wish(IN), "D(in)"),
        (Wish(OUT, 16_000), "D(out), 16000 Hz"),
        (Wish(STEREO, speaks=True), "D(stereo), beeps"),
        (Wish(BOTH, 48_000, speaks=True), "D(both), 48000 Hz, beeps"),
        (Wish(IN, speaks=True, audience=Audience.PEER), "D(in), k(peer), beeps"),
        (Wish(BOTH, apart=True), "D(both), in and out apart"),
        (
            Wish(BOTH, 16_000, speaks=True, apart=True),
            "D(both), 16000 Hz, beeps, in and out apart",
        ),
        (Wish(STEREO, apart=True), "D(stereo)"),
    ],
)
def test_wish_tells_what_is_not_a_matter_of_course(wish: Wish, text: str) -> None:
    assert str(wish) == text


@pytest.mark.parametrize(
    ("wish", "here", "text"),
    [
        pytest.param(
            Wish(OUT),
            without_ari("22.10.1"),
            f"D(out): set up [ari]; ChanSpy {WIDEBAND}",
            id="out",
        ),
        pytest.param(
            Wish(BOTH, apart=True),
            without_ari("22.10.1"),
            f"D(both), in and out apart: set up [ari]; ChanSpy {WIDEBAND}, or mixes them",
            id="both-apart",
        ),
        pytest.param(
            Wish(STEREO, apart=True),
            without_ari("20.4.0", narrowband=True),
            "D(stereo): set up [ari]; ChanSpy cannot keep in and out apart (no option D) on "
            "Asterisk 20.4.0",
            id="no-option-d",
        ),
        pytest.param(
            Wish(BOTH, apart=True),
            without_ari("20.4.0", narrowband=True),
            "D(both), in and out apart: set up [ari]; ChanSpy cannot keep in and out "
            "apart (no option D) on Asterisk 20.4.0, or mixes them",
            id="both-apart-no-option-d",
        ),
        pytest.param(
            Wish(BOTH, 16_000),
            without_ari("22.10.1", narrowband=True),
            "D(both), 16000 Hz: set up [ari]; ChanSpy has only 8000 Hz",
            id="wide",
        ),
        pytest.param(
            Wish(STEREO, speaks=True),
            site("22.11.0-rc1"),
            "D(stereo), beeps: beeps by snoop may silence the other party on 22.11.0-rc1; ChanSpy "
            f"{WIDEBAND}",
            id="beeps-silence",
        ),
        pytest.param(
            Wish(BOTH, audience=Audience.PARTY),
            site("22.11.0-rc1"),
            "D(both), k(party): a voice by snoop may silence the other party on 22.11.0-rc1; "
            "ChanSpy leaks memory on 22.11.0-rc1",
            id="voice-leaks",
        ),
        pytest.param(
            Wish(BOTH, audience=Audience.PEER),
            without_ari("22.10.1"),
            "D(both), k(peer): set up [ari]; ChanSpy is heard by the party alone",
            id="voice-to-the-peer",
        ),
        pytest.param(
            Wish(IN, audience=Audience.BOTH),
            site("22.10.1"),
            "D(in), k(both): two sides hear it by two legs, take D(both) or D(stereo); ChanSpy is "
            "heard by the party alone",
            id="voice-to-both-by-one-leg",
        ),
        pytest.param(
            Wish(OUT, speaks=True, audience=Audience.PEER),
            site("22.10.1"),
            "D(out), k(peer), beeps: two sides hear it by two legs, take D(both) or D(stereo); "
            "ChanSpy is heard by the party alone",
            id="voice-and-beeps-by-one-leg",
        ),
        pytest.param(
            Wish(IN),
            site("22.10.1", no_ari="the connection is down", no_chanspy="is ruled out"),
            "D(in): the connection is down; ChanSpy is ruled out",
            id="snoop-alone",
        ),
    ],
)
def test_why_there_is_no_way_is_told_by_each_tap(wish: Wish, here: Site, text: str) -> None:
    assert best_way(wish, here) is None
    assert why_none(wish, here) == text


SET_ARI = "set up [ari] (audiofork check says how)"
LINK_DOWN = (
    "no connection to ARI at http://127.0.0.1:8088/ari: "
    "Connection refused (no program listens there)"
)


@pytest.mark.parametrize("no_chanspy", ["", NOT_BY_CHANSPY])
@pytest.mark.parametrize(
    "no_ari", ["", SET_ARI, "[asterisk] tap = chanspy rules ARI out", LINK_DOWN]
)
@pytest.mark.parametrize("version", ["20.4.0", "22.10.1", "22.11.0-rc1"])
def test_refusals_are_told_to_their_end_in_events(
    version: str, no_ari: str, no_chanspy: str
) -> None:
    """An event has 240 characters of a reason: what is behind them, the remedy, is lost."""
    refused = 0
    for (direction, rate, audience), (speaks, apart, narrowband) in itertools.product(
        itertools.product(Direction, (8000, 16_000), (None, *Audience)),
        itertools.product((False, True), repeat=3),
    ):
        wish = Wish(direction, rate, speaks, apart, audience)
        here = site(version, no_ari=no_ari, no_chanspy=no_chanspy, narrowband=narrowband)
        if best_way(wish, here) is None:
            refused += 1
            text = why_none(wish, here)
            assert len(text) <= MAX_REASON_CHARACTERS == 240, text
            assert harmless(text) == text
    assert refused or not no_ari


@pytest.mark.parametrize(
    ("wish", "remedies"),
    [
        (Wish(OUT), [SET_ARI, "chanspy_pairs = narrowband"]),
        (Wish(STEREO), [SET_ARI, "chanspy_pairs = narrowband"]),
        (Wish(BOTH, apart=True), [SET_ARI, "chanspy_pairs = narrowband"]),
        (Wish(STEREO, speaks=True), [SET_ARI, "chanspy_pairs = narrowband"]),
        (Wish(BOTH, speaks=True, apart=True), [SET_ARI, "chanspy_pairs = narrowband"]),
        (Wish(BOTH, 16_000), [SET_ARI]),
        (Wish(IN, 16_000, speaks=True), [SET_ARI]),
        (Wish(IN, audience=Audience.PEER), [SET_ARI]),
    ],
    ids=str,
)
def test_refusals_in_events_tell_what_was_asked_for_and_all_remedies(
    wish: Wish, remedies: list[str]
) -> None:
    text = harmless(why_none(wish, site("22.10.1", no_ari=SET_ARI)))
    assert text.startswith(f"{wish}: ")
    for remedy in remedies:
        assert remedy in text


LEAKS = (
    "options B, p and P (beeps) leak some 86 MB an hour while their party hears nothing; by ARI's "
    "snoop they may silence the other party, so only ChanSpy is used for them; option k is refused"
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
    spy = (
        "[asterisk] tap is not snoop; 8000 Hz; of option k k(party) alone, and not where Asterisk "
        "is 20.21, 22.11, 23.5 or later"
    )
    assert ways_for(without_ari("20.7.0")) == [
        "Asterisk 20.7.0; a fork uses the first of these that suits it:",
        "1. snoop, a leg for each side by AudioSocket(): in, out, both, stereo",
        "   needs: no beeps and no option k where Asterisk is 20.21, 22.11, 23.5 or later; k(both) "
        "with both and stereo alone; ARI; 8000 Hz; AudioSocket() does not poll "
        "(18.20, 20.5, 21 or later); legs end with the daemon (20.14, 21.9, 22.4 or later)",
        "   here: no: set up [ari]; a leg of AudioSocket() outlives a daemon that is killed, and "
        "holds its call on Asterisk 20.7.0",
        "2. snoop, a leg for each side by Dial(): in, out, both, stereo",
        "   needs: no beeps and no option k where Asterisk is 20.21, 22.11, 23.5 or later; k(both) "
        "with both and stereo alone; ARI",
        "   here: no: set up [ari]",
        "3. chanspy, in as one half of pairs (option D): in",
        f"   needs: {spy}; [asterisk] chanspy_pairs = narrowband, no "
        "wideband in the call; option D (18.22, 20.7, 21.2, 22 or later); option o loses frames "
        "(before 18.25, 20.10, 21.5, 22)",
        "   here: no: needs a narrowband site ([asterisk] chanspy_pairs = narrowband)",
        "4. chanspy, in alone (option o): in",
        f"   needs: {spy}",
        "   here: yes",
        "   but: one frame in 25 is lost while the party hears something on Asterisk 20.7.0; ARI's "
        "snoop loses none",
        "5. chanspy, in and out side by side (option D): out, both, stereo",
        f"   needs: {spy}; [asterisk] chanspy_pairs = narrowband, no "
        "wideband in the call; option D (18.22, 20.7, 21.2, 22 or later)",
        "   here: no: needs a narrowband site ([asterisk] chanspy_pairs = narrowband)",
        "6. chanspy, in and out mixed by Asterisk: both",
        f"   needs: {spy}; volume and mute the same for in and out",
        "   here: yes",
    ]


def test_ways_for_a_site_with_all_of_them_say_so() -> None:
    lines = ways_for(site("22.10.1", narrowband=True))
    assert [line for line in lines if "here:" in line] == [
        *["   here: yes"] * 2,
        "   here: no: loses more than option o on Asterisk 22.10.1",
        *["   here: yes"] * 3,
    ]
    assert not [line for line in lines if "but:" in line]


def test_table_for_the_docs_has_a_row_for_each_way_in_their_order() -> None:
    head, rule, *rows = as_markdown().split("\n")
    assert (head, rule) == ("| | tap | how | for | conditions |", "|---|---|---|---|---|")
    assert rows[3] == (
        "| 4 | chanspy | in alone (option o) | in | [asterisk] tap is not snoop; 8000 Hz; of "
        "option k k(party) alone, and not where Asterisk is 20.21, 22.11, 23.5 or later |"
    )
    assert [row.split(" | ")[1:3] for row in rows] == [[way.tap, way.how] for way in WAYS]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_way_is_found_again_by_its_name_and_what_it_brings(way: Way) -> None:
    for direction, parts in way.parts.items():
        assert way_named(way.name, direction, parts) is way
    assert way_named(way.name, next(iter(way.parts)), ()) is None
    assert way_named("other", next(iter(way.parts)), next(iter(way.parts.values()))) is None
