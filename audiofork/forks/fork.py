"""One fork as the control plane knows it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from audiofork.asterisk.channels import Target
from audiofork.asterisk.taps.base import Tap
from audiofork.asterisk.taps.choice import Choice
from audiofork.asterisk.taps.ways import Way, Wish
from audiofork.errors import RequestRefused
from audiofork.forks.journal import Entry
from audiofork.forks.lifecycle import ForkEvent, ForkState, next_state
from audiofork.forks.options import Options, parse_options
from audiofork.forks.post_process.template import PostProcess, prepare
from audiofork.forks.requests import StartFork
from audiofork.link.messages import Direction, EndReason, ForkSpec, ForkStats, LegPart
from audiofork.log import ForkLog


@dataclass(slots=True, eq=False)
class Leg:
    """One leg of a fork.

    Attributes:
        part: What it brings.
        id: Names the one that was asked for last.
        attached: It has connected.
        gone: Its channel has ended.
        lost_at: Loop time since when there is none; None if there is one, or none yet.
        losses: Loop times of the latest losses.
        timer: Runs out if it does not connect.
    """

    part: LegPart
    id: str = ""
    attached: bool = False
    gone: bool = False
    lost_at: float | None = None
    losses: list[float] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"the leg of {self.part}" if self.part in (LegPart.IN, LegPart.OUT) else "the leg"


@dataclass(slots=True, eq=False)
class Fork:
    """One fork, from its request to its end.

    Attributes:
        url: Where the audio goes; differs from the request's with option T.
        started: When it was requested, by the monotonic clock; `started_at`: in seconds since 1970.
        asterisk_started: Names the run of Asterisk that has the channel.
        choice: Where its legs come from, and at which sample rate; None while that is open.
        legs: By what they bring.
        missing: What is away: "server", and the parts whose legs are.
        relay_away: No relay process has it at the moment.
        relays_lost: How often the relay process that had it has died.
        taken_up: An earlier run of the daemon has started it.
        kept: It shall be taken up by the next run.
        bridged: Whether the channel is in a bridge; None while that is not known.
        looked_up: Set when the request is granted or refused.
        chosen: Set when its legs are chosen, or it is refused.
    """

    id: str
    request: StartFork
    channel: str
    uniqueid: str
    url: str
    log: ForkLog
    started: float
    action_id: str
    started_at: float
    asterisk_started: str = ""
    choice: Choice | None = None
    legs: dict[LegPart, Leg] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    relay_away: bool = False
    relays_lost: int = 0
    taken_up: bool = False
    kept: bool = False
    state: ForkState = ForkState.REQUESTED
    hangup_seen: bool = False
    bridged: bool | None = None
    mute_in: bool = False
    mute_out: bool = False
    end_asked: EndReason | None = None
    post_process: PostProcess | None = None
    values: dict[str, str] = field(default_factory=dict)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    looked_up: asyncio.Event = field(default_factory=asyncio.Event)
    chosen: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, event: ForkEvent) -> None:
        """Move on; the only place where the state changes."""
        following = next_state(self.state, event)
        self.log.debug("= %s -> %s", self.state.name, following.name)
        self.state = following

    @property
    def tap(self) -> Tap:
        """Where its legs come from."""
        assert self.choice is not None, "chosen before it is launched"
        return self.choice.tap

    @property
    def way(self) -> Way:
        """What its legs bring, and how."""
        assert self.choice is not None, "chosen before it is launched"
        return self.choice.way

    @property
    def sample_rate(self) -> int:
        """Of its audio, in Hz; 0 while that is open."""
        return self.choice.sample_rate if self.choice is not None else 0

    @property
    def age_s(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True)
class ForkView:
    """A fork as `list` shows it.

    Attributes:
        state: requested, attaching, streaming or reconnecting.
        age_s: Seconds since the request.
        muted: Nothing, read, write or both.
        tap: chanspy or snoop; nothing while that is open, like the sample rate (Hz).
    """

    id: str
    channel: str
    uniqueid: str
    url: str
    direction: str
    state: str
    age_s: float
    frames_in: int
    frames_sent: int
    frames_dropped: int
    muted: str
    tap: str = ""
    sample_rate: int = 0


def effective_url(request: StartFork) -> str:
    """Return the URL of a request; option T makes wss of ws."""
    scheme, colon, rest = request.url.partition(":")
    return (
        f"wss:{rest}"
        if colon and scheme.lower() == "ws" and request.options.use_tls
        else request.url
    )


def spec_of(fork: Fork) -> ForkSpec:
    options = fork.request.options
    return ForkSpec(
        fork_id=fork.id,
        channel=fork.channel,
        url=fork.url,
        direction=options.direction,
        legs=tuple(fork.legs),
        sample_rate=fork.sample_rate,
        gain_in=options.gain_in,
        gain_out=options.gain_out,
        keep_time=needs_silence(fork),
        gate_open=not options.bridged_only or bool(fork.bridged),
        beeps=options.beeps,
        tls=options.tls,
        reconnect_interval_s=options.reconnect_interval_s,
        reconnect_attempts=options.reconnect_attempts,
        frame_ms=options.frame_ms,
    )


def needs_silence(fork: Fork) -> bool:
    """Tell whether the relay has to put silence where the leg brings nothing.

    All directions but `in` are promised to keep time; for that it is an option.
    """
    options = fork.request.options
    promised = options.keep_time or options.direction is not Direction.IN
    return promised and not fork.way.keeps_time


def wish_of(fork: Fork) -> Wish:
    """Return what a fork needs of its legs, at whatever sample rate."""
    options = fork.request.options
    apart = options.gain_in != options.gain_out or fork.mute_in != fork.mute_out
    return Wish(options.direction, speaks=options.beeps.any, apart=apart)


def why_not_muted(fork: Fork, mute_in: bool, mute_out: bool) -> str:
    """Return why a fork's sides cannot be muted like that; empty: they can."""
    if mute_in == mute_out or LegPart.MIX not in fork.legs:
        return ""
    return (
        f"fork {fork.id}: in and out come mixed by Asterisk (ChanSpy), so one of them cannot "
        "be muted alone; mute both, or set up [ari] for forks to come"
    )


def entry_of(fork: Fork) -> Entry:
    """Return what the journal keeps of a fork."""
    request = fork.request
    return Entry(
        fork_id=fork.id,
        channel=fork.channel,
        uniqueid=fork.uniqueid,
        url=request.url,
        options=request.options_text,
        post_process=request.post_process,
        action_id=fork.action_id,
        values=fork.values,
        mute_in=fork.mute_in,
        mute_out=fork.mute_out,
        started=fork.started_at,
        asterisk_started=fork.asterisk_started,
    )


def restored(entry: Entry, logger: logging.Logger) -> tuple[Fork, str]:
    """Return the fork of an entry, and why its request would be refused today, if it would."""
    options, post_process, why = Options(), None, ""
    try:
        options = parse_options(entry.options)
        post_process = prepare(entry.post_process) if entry.post_process else None
    except RequestRefused as exc:
        why = str(exc)
    request = StartFork(
        target=Target(entry.channel, entry.uniqueid),
        url=entry.url,
        options=options,
        post_process=entry.post_process,
        action_id=entry.action_id,
        options_text=entry.options,
    )
    fork = Fork(
        id=entry.fork_id,
        request=request,
        channel=entry.channel,
        uniqueid=entry.uniqueid,
        url=effective_url(request),
        log=ForkLog(logger, entry.fork_id, entry.channel),
        started=time.monotonic() - max(0.0, time.time() - entry.started),
        action_id=entry.action_id,
        started_at=entry.started,
        asterisk_started=entry.asterisk_started,
        taken_up=True,
        mute_in=entry.mute_in,
        mute_out=entry.mute_out,
        post_process=post_process,
        values=entry.values,
    )
    fork.looked_up.set()
    fork.chosen.set()
    return fork, why


def muted_sides(fork: Fork) -> str:
    if fork.mute_in and fork.mute_out:
        return "both"
    return "read" if fork.mute_in else "write" if fork.mute_out else ""


def view_of(fork: Fork, stats: ForkStats) -> ForkView:
    return ForkView(
        id=fork.id,
        channel=fork.channel,
        uniqueid=fork.uniqueid,
        url=fork.url,
        direction=fork.request.options.direction.value,
        state=fork.state.value,
        age_s=fork.age_s,
        frames_in=stats.frames_in,
        frames_sent=stats.frames_sent,
        frames_dropped=stats.frames_dropped,
        muted=muted_sides(fork),
        tap=fork.choice.tap.name if fork.choice is not None else "",
        sample_rate=fork.sample_rate,
    )
