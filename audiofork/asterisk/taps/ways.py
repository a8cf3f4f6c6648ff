"""The ways to get a fork's legs, the best first: one table, for the daemon, `check` and the docs.

A fork uses the first way whose rules are all met. Wrong audio is worse than none: if no way gives
correct audio, the fork is refused, and the rules say why.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from audiofork.asterisk.versions import (
    AUDIOSOCKET_RESTS,
    CHANSPY_IN_WHOLE,
    CHANSPY_PAIRS,
    LEG_ENDS_WITH_PEER,
    UNKNOWN,
    WHISPER_LEAKS,
    Since,
    Version,
    releases,
)
from audiofork.link.messages import Direction, LegPart

NARROW_RATE = 8000


class Connects(enum.StrEnum):
    """How a leg is connected to the relay."""

    APPLICATION = "AudioSocket()"
    """The snoop channel runs the application."""
    DIAL = "Dial(AudioSocket/...)"
    """The snoop channel dials an AudioSocket channel: two more channels, but any sample rate."""
    ORIGINATE = "Originate"
    """An AudioSocket channel runs ChanSpy."""


# Where legs by ARI are sent to, in the shipped dialplan.
CONTEXT = "audiofork-leg"
# Its extensions. The one for Dial has this name because it once served only wideband.
EXTENSIONS = {Connects.APPLICATION: "narrow", Connects.DIAL: "wide"}


class Audience(enum.StrEnum):
    """Who in a call hears what a leg brings into it."""

    PARTY = "party"
    """The channel's own party."""
    PEER = "peer"
    """Whoever the channel is bridged with."""
    BOTH = "both"

    @property
    def sides(self) -> tuple[Audience, ...]:
        """The sides that it consists of: PARTY, PEER, or the two."""
        return (Audience.PARTY, Audience.PEER) if self is Audience.BOTH else (self,)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a fork needs from its legs.

    Attributes:
        direction: What the server gets.
        sample_rate: In Hz.
        speaks: Whether the channel's party must hear beeps.
        apart: Whether in and out have different volume or mute.
        audience: Who must hear the server; None: nobody.
    """

    direction: Direction
    sample_rate: int = NARROW_RATE
    speaks: bool = False
    apart: bool = False
    audience: Audience | None = None

    @property
    def hearers(self) -> tuple[Audience, ...]:
        """The sides of the call that must hear beeps or the server."""
        sides = self.audience.sides if self.audience is not None else ()
        return tuple(dict.fromkeys((*((Audience.PARTY,) if self.speaks else ()), *sides)))

    def __str__(self) -> str:
        more = [] if self.sample_rate == NARROW_RATE else [f"{self.sample_rate} Hz"]
        if self.audience is not None:
            more.append(f"k({self.audience})")
        if self.speaks:
            more.append("beeps")
        if self.apart and self.direction is Direction.BOTH:
            more.append("in and out apart")
        return ", ".join([f"D({self.direction})", *more])


@dataclass(frozen=True, slots=True)
class Site:
    """What the installation provides for legs.

    Attributes:
        version: The version of Asterisk.
        no_ari: Why ARI cannot be used; empty if it can.
        no_chanspy: Why ChanSpy may not be used; empty if it may.
        narrowband: Whether all audio is at 8000 Hz: [asterisk] chanspy_pairs.
    """

    version: Version = UNKNOWN
    no_ari: str = ""
    no_chanspy: str = ""
    narrowband: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition of a way.

    Attributes:
        text: The condition, for people.
        why_not: Returns why the condition is not met; empty if it is.
    """

    text: str
    why_not: Callable[[Wish, Site], str]


def _version_rule(since: Since, text: str, without: str) -> Rule:
    """Return a rule that needs a version with a feature; `without` says what happens on others."""

    def why_not(_wish: Wish, site: Site) -> str:
        has = site.version.has(since)
        return "" if has else f"{without} on Asterisk {site.version}"

    return Rule(f"{text} ({releases(since)} or later)", why_not)


def _no_ari(_wish: Wish, site: Site) -> str:
    return site.no_ari


def _no_chanspy(_wish: Wish, site: Site) -> str:
    return site.no_chanspy


def _narrow_alone(wish: Wish, _site: Site) -> str:
    return "" if wish.sample_rate == NARROW_RATE else "has only 8000 Hz"


def _silences(wish: Wish, site: Site) -> str:
    if not wish.hearers or not site.version.has(WHISPER_LEAKS):
        return ""
    what = "beeps" if wish.audience is None else "a voice"
    return f"{what} by snoop may silence the other party on {site.version}"


def _is_not_heard_by_chanspy(wish: Wish, site: Site) -> str:
    if wish.audience is None:
        return ""
    if Audience.PEER in wish.audience.sides:
        return "is heard by the party alone"
    return f"leaks memory on {site.version}" if site.version.has(WHISPER_LEAKS) else ""


def _needs_two_legs(wish: Wish, _site: Site) -> str:
    if len(wish.hearers) <= len(_SIDES[wish.direction]):
        return ""
    return "two sides hear it by two legs, take D(both) or D(stereo)"


def _is_mixed(wish: Wish, _site: Site) -> str:
    return "mixes them" if wish.apart else ""


def _in_by_o_loses_less(_wish: Wish, site: Site) -> str:
    if site.version.has(CHANSPY_IN_WHOLE):
        return f"loses more than option o on Asterisk {site.version}"
    return ""


def _may_be_wide(_wish: Wish, site: Site) -> str:
    if site.narrowband:
        return ""
    return "needs a narrowband site ([asterisk] chanspy_pairs = narrowband)"


_ARI = Rule("ARI", _no_ari)
_CHANSPY = Rule("[asterisk] tap is not snoop", _no_chanspy)
_NARROW = Rule("8000 Hz", _narrow_alone)
_NARROWBAND = Rule("[asterisk] chanspy_pairs = narrowband, no wideband in the call", _may_be_wide)
_OPTION_D = _version_rule(CHANSPY_PAIRS, "option D", "cannot keep in and out apart (no option D)")
_BY_TWO_LEGS = Rule("k(both) with both and stereo alone", _needs_two_legs)
_PARTY_ALONE = Rule(
    f"of option k k(party) alone, and not where Asterisk is {releases(WHISPER_LEAKS)} or later",
    _is_not_heard_by_chanspy,
)
_NO_WHISPER = Rule(
    f"no beeps and no option k where Asterisk is {releases(WHISPER_LEAKS)} or later",
    _silences,
)

_SNOOP_RULES = (_NO_WHISPER, _BY_TWO_LEGS, _ARI)
_CHANSPY_RULES = (_CHANSPY, _NARROW, _PARTY_ALONE)
_PAIRS_RULES = (*_CHANSPY_RULES, _NARROWBAND, _OPTION_D)

_SIDES = {
    Direction.IN: (LegPart.IN,),
    Direction.OUT: (LegPart.OUT,),
    Direction.BOTH: (LegPart.IN, LegPart.OUT),
    Direction.STEREO: (LegPart.IN, LegPart.OUT),
}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get the legs of a fork.

    Attributes:
        tap: The name of the `Tap`.
        how: How it works inside Asterisk, for people.
        connects: How a leg connects to the relay.
        parts: What the legs bring, by the direction of the fork; other directions are impossible.
        keeps_time: Whether each leg brings 50 frames a second, also in silence.
        rules: The conditions for using it.
        flaw: The first releases without a known loss of audio, and the loss, for people.
    """

    tap: str
    how: str
    connects: Connects
    parts: Mapping[Direction, tuple[LegPart, ...]]
    keeps_time: bool
    rules: tuple[Rule, ...]
    flaw: tuple[Since, str] | None = None

    def why_not(self, wish: Wish, site: Site) -> str:
        """Return the first reason against it; empty if there is none."""
        return next(iter(self.all_against(wish, site)), "")

    def all_against(self, wish: Wish, site: Site) -> list[str]:
        """Return all reasons against it."""
        if wish.direction not in self.parts:
            return [f"has {', '.join(self.parts)} alone"]
        return [why for rule in self.rules if (why := rule.why_not(wish, site))]

    def flaw_on(self, version: Version) -> str:
        """Return what audio is lost on a version, for people; empty if no loss is known."""
        if self.flaw is None or version.has(self.flaw[0]):
            return ""
        return f"{self.flaw[1]} on Asterisk {version}; ARI's snoop loses none"

    @property
    def name(self) -> str:
        """A name that stays the same in later versions; with the parts it brings it is unique."""
        return f"{self.tap}/{self.connects.name.lower()}"

    def leg_heard_by(self, side: Audience, direction: Direction) -> LegPart:
        """Return the part of the leg over which a side of the call hears the server, or beeps.

        The party hears the first leg, the peer the last one: one leg is heard by one side, since
        a snoop channel that whispers to both makes Asterisk's queues wait for each other.
        """
        return self.parts[direction][0 if side is Audience.PARTY else -1]

    def __str__(self) -> str:
        return f"{self.tap}, {self.how}"


WAYS = (
    Way(
        "snoop",
        "a leg for each side by AudioSocket()",
        Connects.APPLICATION,
        _SIDES,
        keeps_time=True,
        rules=(
            *_SNOOP_RULES,
            _NARROW,
            _version_rule(
                AUDIOSOCKET_RESTS,
                "AudioSocket() does not poll",
                "AudioSocket() uses a core for each leg",
            ),
            _version_rule(
                LEG_ENDS_WITH_PEER,
                "legs end with the daemon",
                "a leg of AudioSocket() outlives a daemon that is killed, and holds its call",
            ),
        ),
    ),
    Way(
        "snoop",
        "a leg for each side by Dial()",
        Connects.DIAL,
        _SIDES,
        keeps_time=True,
        rules=_SNOOP_RULES,
    ),
    Way(
        "chanspy",
        "in as one half of pairs (option D)",
        Connects.ORIGINATE,
        {Direction.IN: (LegPart.PAIRS,)},
        keeps_time=True,
        rules=(
            *_PAIRS_RULES,
            Rule(
                f"option o loses frames (before {releases(CHANSPY_IN_WHOLE)})", _in_by_o_loses_less
            ),
        ),
    ),
    Way(
        "chanspy",
        "in alone (option o)",
        Connects.ORIGINATE,
        {Direction.IN: (LegPart.IN,)},
        keeps_time=False,
        rules=_CHANSPY_RULES,
        flaw=(CHANSPY_IN_WHOLE, "one frame in 25 is lost while the party hears something"),
    ),
    Way(
        "chanspy",
        "in and out side by side (option D)",
        Connects.ORIGINATE,
        dict.fromkeys((Direction.OUT, Direction.BOTH, Direction.STEREO), (LegPart.PAIRS,)),
        keeps_time=True,
        rules=_PAIRS_RULES,
    ),
    Way(
        "chanspy",
        "in and out mixed by Asterisk",
        Connects.ORIGINATE,
        {Direction.BOTH: (LegPart.MIX,)},
        keeps_time=False,
        rules=(*_CHANSPY_RULES, Rule("volume and mute the same for in and out", _is_mixed)),
    ),
)
"""All ways, in the order of preference."""


def way_named(name: str, direction: Direction, parts: tuple[LegPart, ...]) -> Way | None:
    """Return the way with a `Way.name` that brings these parts for a direction; None: no more."""
    fits = (way for way in WAYS if way.name == name and way.parts.get(direction) == parts)
    return next(fits, None)


def best_way(wish: Wish, site: Site) -> Way | None:
    """Return the first way that a fork can use; None if there is none: see `why_none`."""
    return next((way for way in WAYS if not way.why_not(wish, site)), None)


def why_none(wish: Wish, site: Site) -> str:
    """Return why a fork can use no way, for each tap."""
    by_chanspy = [
        way.why_not(wish, site)
        for way in WAYS
        if way.tap == "chanspy" and wish.direction in way.parts
    ]
    return (
        f"{wish}: {why_not_by_ari(wish, site)}; ChanSpy {', or '.join(dict.fromkeys(by_chanspy))}"
    )


def why_not_by_ari(wish: Wish, site: Site) -> str:
    """Return why a fork cannot use the snoop tap; empty if it can."""
    return next(way for way in WAYS if way.connects is Connects.DIAL).why_not(wish, site)


def known_faults(version: Version) -> list[str]:
    """Return the faults of a version that an administrator should know, one sentence each."""
    faults = []
    if version.has(WHISPER_LEAKS):
        faults.append(
            "options B, p and P (beeps) leak some 86 MB an hour while their party hears nothing; "
            "by ARI's snoop they may silence the other party, so only ChanSpy is used for them; "
            "option k is refused"
        )
    if not version.has(LEG_ENDS_WITH_PEER):
        faults.append(
            "a leg whose daemon was killed may take a core while its channel is silent, until the "
            "daemon is back or `audiofork sweep` has run"
        )
    if not version.has(CHANSPY_IN_WHOLE):
        faults.append(
            "by ChanSpy one frame in 25 of D(in) is lost while the party hears something; ARI's "
            "snoop has them all"
        )
    return faults


def ways_for(site: Site) -> list[str]:
    """Return lines that list all ways, the best first, and the reasons against each at a site."""
    lines = [f"Asterisk {site.version}; a fork uses the first of these that suits it:"]
    for number, way in enumerate(WAYS, 1):
        lines.append(f"{number}. {way}: {', '.join(way.parts)}")
        against = way.all_against(Wish(next(iter(way.parts))), site)
        lines.append(f"   needs: {'; '.join(rule.text for rule in way.rules)}")
        lines.append(f"   here: {'no: ' + '; '.join(against) if against else 'yes'}")
        if flaw := way.flaw_on(site.version):
            lines.append(f"   but: {flaw}")
    return lines


def as_markdown() -> str:
    """Return the table of all ways for docs/asterisk.md."""
    rows = [
        f"| {number} | {way.tap} | {way.how} | {', '.join(way.parts)} | "
        f"{'; '.join(rule.text for rule in way.rules)} |"
        for number, way in enumerate(WAYS, 1)
    ]
    head = ["| | tap | how | for | conditions |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])
