"""One fork as the control plane knows it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass, field

from audiofork.asterisk.channels import Target
from audiofork.asterisk.taps.base import Tap
from audiofork.asterisk.taps.choice import Choice
from audiofork.asterisk.taps.ways import Way, Wish
from audiofork.errors import RequestRefused
from audiofork.forks.events import ForkInfo, Resumed
from audiofork.forks.journal import Entry
from audiofork.forks.lifecycle import FORK_LIFE, Away, ForkEvent, ForkState
from audiofork.forks.options import Options, parse_options
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.post_process.template import PostProcess
from audiofork.forks.requests import StartFork
from audiofork.link.messages import Direction, EndReason, ForkSpec, ForkStats, LegPart
from audiofork.log import ForkLog

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Leg:
    """One leg of a fork.

    Attributes:
        part: What it brings.
        id: Names the one that was asked for last.
        uuid: What that one presents to the relay; for Asterisk alone, in no log.
        attached: It has connected.
        gone: Its channel has ended.
        lost_at: Loop time since when there is none; None if there is one, or none yet.
        losses: Loop times of the latest losses.
        timer: Runs out if it does not connect.
    """

    part: LegPart
    id: str = ""
    uuid: str = field(default="", repr=False)
    attached: bool = False
    gone: bool = False
    lost_at: float | None = None
    losses: list[float] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"the leg of {self.part}" if self.part in (LegPart.IN, LegPart.OUT) else "the leg"

    def cancel_timer(self) -> None:
        """Give it all the time it takes to connect."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class Call:
    """The channel that a fork copies: as the request names it, then as Asterisk does.

    Attributes:
        asterisk_started: Names the run of Asterisk that has the channel; empty: not known.
        bridged: Whether the channel is in a bridge; None while that is not known.
        values: What the post-process command gets, by variable.
        hangup_seen: Whether Asterisk has told that the channel is hung up.
        hangup_timer: Ends the fork a moment later.
    """

    channel: str
    uniqueid: str
    asterisk_started: str = ""
    bridged: bool | None = None
    values: dict[str, str] = field(default_factory=dict)
    hangup_seen: bool = False
    hangup_timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Progress:
    """How far a fork is.

    Attributes:
        started: When it was requested, by the monotonic clock.
        away: What is missing at the moment.
        relay_away: Whether no relay process has it at the moment.
        relay_gap_ms: The longest time without a leg since its relay process died; None: it has not,
            or all is back.
        relays_lost: How many relay processes have died with it.
        attempts: How many runs of the daemon have begun to start it, since one was seen to outlive
            that.
        end_asked: Why the relay was told to end it, or will be; None: it was not.
        kept: Whether the next run of the daemon shall resume it.
        looked_up: Set when its channel is known, or it is refused.
        chosen: Set when its legs are chosen, or it is refused.
    """

    started: float = field(default_factory=lambda: time.monotonic())
    state: ForkState = ForkState.REQUESTED
    away: set[Away] = field(default_factory=set)
    relay_away: bool = False
    relay_gap_ms: int | None = None
    relays_lost: int = 0
    attempts: int = 0
    end_asked: EndReason | None = None
    kept: bool = False
    looked_up: asyncio.Event = field(default_factory=asyncio.Event)
    chosen: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Fork:
    """One fork, from its request to its end.

    Owned by the registry, whose parts change it by its methods.

    Attributes:
        action_id: Of the request that its events answer.
        started_at: When it was requested, in seconds since 1970.
        from_earlier_run: Whether an earlier run of the daemon started it.
        choice: Where its legs come from, and at which sample rate; None while that is open.
        legs: By what they bring.
    """

    id: str
    request: StartFork
    call: Call
    action_id: str
    started_at: float
    log: ForkLog
    post_process: PostProcess | None = None
    from_earlier_run: bool = False
    progress: Progress = field(default_factory=Progress)
    mute_in: bool = False
    mute_out: bool = False
    choice: Choice | None = None
    legs: dict[LegPart, Leg] = field(default_factory=dict)

    # --- What it is ---

    @property
    def channel(self) -> str:
        """The name of its channel."""
        return self.call.channel

    @property
    def uniqueid(self) -> str:
        """The uniqueid of its channel."""
        return self.call.uniqueid

    @property
    def url(self) -> str:
        """Where the audio goes; differs from the request's with option T."""
        return effective_url(self.request)

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
        return time.monotonic() - self.progress.started

    @property
    def info(self) -> ForkInfo:
        """What events tell of it."""
        return ForkInfo(
            self.id,
            self.channel,
            self.uniqueid,
            self.url,
            self.action_id,
            self.sample_rate,
            self.from_earlier_run,
        )

    # --- How it goes on ---

    @property
    def state(self) -> ForkState:
        """Where it stands."""
        return self.progress.state

    @property
    def is_ending(self) -> bool:
        """Whether its end was asked for, or its channel has gone."""
        return self.progress.end_asked is not None or self.call.hangup_seen

    @property
    def is_whole(self) -> bool:
        """Whether nothing is away."""
        return not self.progress.away

    def apply(self, event: ForkEvent) -> None:
        """Move on; the only place where the state changes."""
        following = FORK_LIFE.next_state(self.state, event)
        self.log.debug("= %s -> %s", self.state.name, following.name)
        self.progress.state = following

    def found(self, channel: str, uniqueid: str, asterisk_started: str) -> None:
        """Note what Asterisk calls its channel."""
        self.call.channel, self.call.uniqueid = channel, uniqueid
        self.call.asterisk_started = asterisk_started
        self.log = ForkLog(log, self.id, channel)

    def settle(self, choice: Choice) -> None:
        """Note where its legs come from, and so what they bring."""
        self.choice = choice
        parts = choice.way.parts[self.request.options.direction]
        self.legs = {part: Leg(part) for part in parts}
        self.progress.chosen.set()

    def mute(self, mute_in: bool, mute_out: bool) -> None:
        """Note which of its sides are silenced."""
        self.mute_in, self.mute_out = mute_in, mute_out
        self.log.info("muted: %s", muted_sides(self) or "nothing")

    def first_frame(self) -> None:
        """Note that audio flows."""
        self.progress.away.discard(Away.SERVER)
        self.apply(ForkEvent.FIRST_FRAME)
        if self.progress.away:
            self.apply(ForkEvent.LOST)

    def lost(self, what: Away) -> bool:
        """Note what is away; return whether audio had flowed."""
        was_streaming = self.state is not ForkState.ATTACHING
        if what is Away.RELAY:  # all goes with it, and another has yet to connect to the server
            self.progress.away.update((Away.SERVER, *map(Away, self.legs)))
            if was_streaming and self.progress.relay_gap_ms is None:
                self.progress.relay_gap_ms = 0
        else:
            self.progress.away.add(what)
        self.apply(ForkEvent.LOST)
        return was_streaming

    def back(
        self, what: Away, frames_dropped: int = 0, gap_ms: int | None = None
    ) -> Resumed | None:
        """Note that it is back; return what is to be told of that; None: it is no news.

        It is none of a fork whose audio has not flowed yet. What was lost with a relay process is
        told of once, when all is back, with the longest gap.
        """
        progress = self.progress
        progress.away.discard(what)
        if self.state is not ForkState.RECONNECTING:
            return None
        if self.is_whole:
            self.apply(ForkEvent.BACK)
        if progress.relay_gap_ms is not None:
            progress.relay_gap_ms = max(progress.relay_gap_ms, gap_ms or 0)
            if not self.is_whole:
                return None
            what, gap_ms, progress.relay_gap_ms = Away.RELAY, progress.relay_gap_ms, None
        return Resumed(self.info, what, frames_dropped, gap_ms, is_streaming=self.is_whole)

    def live_legs(self) -> list[Leg]:
        """Return its legs that Asterisk was asked for and that have not ended."""
        return [leg for leg in self.legs.values() if leg.id and not leg.gone]

    def cancel_timers(self) -> None:
        """Wait for nothing any more."""
        if self.call.hangup_timer is not None:
            self.call.hangup_timer.cancel()
        for leg in self.legs.values():
            leg.cancel_timer()


def new_fork(request: StartFork, commands: Commands) -> Fork:
    """Return the fork of a request.

    Args:
        request: The start.
        commands: Those that may run after it.

    Raises:
        RequestRefused: Its post-process command cannot be run.
    """
    target = request.target
    fork_id = str(uuid.uuid4())
    return Fork(
        id=fork_id,
        request=request,
        call=Call(target.channel, target.uniqueid),
        action_id=request.action_id,
        started_at=time.time(),
        log=ForkLog(log, fork_id, target.channel or target.uniqueid),
        post_process=commands.prepare(request.post_process) if request.post_process else None,
    )


def restored(entry: Entry, commands: Commands) -> tuple[Fork, str]:
    """Return the fork of an entry, and why its request would be refused today, if it would."""
    options, post_process, why = Options(), None, ""
    try:
        options = parse_options(entry.options)
        post_process = commands.prepare(entry.post_process) if entry.post_process else None
    except RequestRefused as exc:
        why = str(exc)
    fork = Fork(
        id=entry.fork_id,
        request=StartFork(
            target=Target(entry.channel, entry.uniqueid),
            url=entry.url,
            options=options,
            post_process=entry.post_process,
            action_id=entry.action_id,
            options_text=entry.options,
        ),
        call=Call(entry.channel, entry.uniqueid, entry.asterisk_started, values=entry.values),
        action_id=entry.action_id,
        started_at=entry.started,
        log=ForkLog(log, entry.fork_id, entry.channel),
        post_process=post_process,
        from_earlier_run=True,
        progress=Progress(
            time.monotonic() - max(0.0, time.time() - entry.started), attempts=entry.attempts
        ),
        mute_in=entry.mute_in,
        mute_out=entry.mute_out,
    )
    fork.progress.looked_up.set()
    fork.progress.chosen.set()
    return fork, why


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
    frames_missing: int = 0


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
        steady=fork.way.keeps_time,
        gate_open=not options.bridged_only or bool(fork.call.bridged),
        beeps=options.beeps,
        tls=options.tls,
        reconnect_interval_s=options.reconnect_interval_s,
        reconnect_attempts=options.reconnect_attempts,
        frame_ms=options.frame_ms,
    )


def needs_silence(fork: Fork) -> bool:
    """Return whether the relay has to put silence where the leg brings nothing.

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
        values=fork.call.values,
        mute_in=fork.mute_in,
        mute_out=fork.mute_out,
        started=fork.started_at,
        asterisk_started=fork.call.asterisk_started,
        attempts=fork.progress.attempts,
    )


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
        frames_missing=stats.frames_missing,
    )
