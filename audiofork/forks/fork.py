"""One fork in the control plane: its data, its state, and what is derived from them."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from audiofork.asterisk.channels import Target
from audiofork.asterisk.taps.base import Tap
from audiofork.asterisk.taps.choice import Choice
from audiofork.asterisk.taps.ways import Way
from audiofork.errors import RequestRefused
from audiofork.forks import url_templates
from audiofork.forks.chronicle import Chronicle
from audiofork.forks.events import About, ForkInfo, Resumed
from audiofork.forks.grants import Grants
from audiofork.forks.journal import Entry, Journal
from audiofork.forks.leg import Leg as Leg
from audiofork.forks.lifecycle import FORK_LIFE, Away, ForkEvent, ForkState
from audiofork.forks.options import Options, parse_options
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.post_process.template import PostProcess
from audiofork.forks.profiles import Profiles, filled
from audiofork.forks.requests import StartFork, connected
from audiofork.link.dialogue import PLAIN_DIALOGUE, Dialogue
from audiofork.link.messages import EndReason, LegPart
from audiofork.log import ForkLog

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Call:
    """The channel that a fork copies.

    Attributes:
        channel: Its name: first as in the request, then as Asterisk reports it.
        uniqueid: Its uniqueid, likewise.
        asterisk_started: Identifies the run of Asterisk that has the channel; empty if unknown.
        bridged: Whether the channel is in a bridge; None while unknown.
        values: Values for the post-process command, by variable.
        caller: The caller's number and name as Asterisk has them, if they were asked for beside
            `info`; they may be anything.
        info: Fields of the call for the server, by name; empty: they were not asked for.
        params: Parameters for the server: those of the request, and of channel variables.
        dialogue: What the profile has the server told, with the fields of the call.
        hangup_seen: Whether Asterisk has reported the hangup of the channel.
        hangup_timer: Ends the fork HANGUP_GRACE_S after the hangup.
    """

    channel: str
    uniqueid: str
    asterisk_started: str = ""
    bridged: bool | None = None
    caller: tuple[str, str] = ("", "")
    values: dict[str, str] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    dialogue: Dialogue = PLAIN_DIALOGUE
    hangup_seen: bool = False
    hangup_timer: asyncio.TimerHandle | None = None

    @property
    def caller_number(self) -> str:
        """The caller's number; empty: it has none, or nobody has asked. It may be anything."""
        return self.info.get("caller_number", self.caller[0])

    @property
    def caller_name(self) -> str:
        """The caller's name, likewise."""
        return self.info.get("caller_name", self.caller[1])


@dataclass(slots=True, eq=False)
class Progress:
    """The changing state of a fork.

    Attributes:
        started: When it was requested, in seconds of the monotonic clock.
        state: The state of its life.
        away: The parts that are missing now.
        relay_away: Whether no relay process has the fork now.
        relay_gap_ms: The longest time without a leg since its relay process died, in milliseconds;
            None if none died or all is back.
        relays_lost: How many relay processes the fork has lost.
        attempts: How many runs of the daemon in a row may have died while starting it; 0 when a
            run has survived that.
        subprotocol: The subprotocol that the server has chosen; empty: none.
        keys: How many keys the party has pressed that the server was told of.
        commands_refused: How many commands of the server were refused by this plane.
        end_asked: Why the relay was asked to end it, or will be; None if it was not.
        kept: Whether the next run of the daemon will resume it.
        looked_up: Set when its channel is known, or the fork is refused.
        chosen: Set when its legs are chosen, or the fork is refused.
    """

    started: float = field(default_factory=lambda: time.monotonic())
    state: ForkState = ForkState.REQUESTED
    away: set[Away] = field(default_factory=set)
    relay_away: bool = False
    relay_gap_ms: int | None = None
    relays_lost: int = 0
    attempts: int = 0
    subprotocol: str = ""
    keys: int = 0
    commands_refused: int = 0
    end_asked: EndReason | None = None
    kept: bool = False
    looked_up: asyncio.Event = field(default_factory=asyncio.Event)
    chosen: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Fork:
    """One fork, from its request to its end.

    Owned by the registry, whose parts change it by its methods.

    Attributes:
        id: A UUID.
        request: The start that was granted.
        call: The channel that it copies.
        action_id: The ActionID of the request that its events answer.
        started_at: When it was requested, in seconds since 1970.
        log: Adds the fork's id and channel to log lines.
        post_process: The command to run after its end; None if there is none.
        grants: What its server may do in the call.
        from_earlier_run: Whether an earlier run of the daemon started it.
        progress: Its changing state.
        chronicle: What has happened to it, and when.
        mute_in: Whether in is muted.
        mute_out: Whether out is muted.
        choice: The tap and the sample rate of its legs; None while not chosen.
        legs: Its legs by part.
    """

    id: str
    request: StartFork
    call: Call
    action_id: str
    started_at: float
    log: ForkLog
    post_process: PostProcess | None = None
    grants: Grants = Grants()
    from_earlier_run: bool = False
    progress: Progress = field(default_factory=Progress)
    chronicle: Chronicle = field(default_factory=Chronicle)
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
        """The URL for events, variables, lists and logs; of a profile its name, @NAME.

        With option T it differs from the request's.
        """
        request = self.request
        return request.server if request.profile else effective_url(request)

    @property
    def tap(self) -> Tap:
        """The tap that makes its legs."""
        assert self.choice is not None, "chosen before it is launched"
        return self.choice.tap

    @property
    def way(self) -> Way:
        """The way of its tap: what its legs bring, and how."""
        assert self.choice is not None, "chosen before it is launched"
        return self.choice.way

    @property
    def sample_rate(self) -> int:
        """The sample rate in Hz; 0 while it is not chosen."""
        return self.choice.sample_rate if self.choice is not None else 0

    @property
    def speaks(self) -> bool:
        """Whether its server may be heard in the call."""
        return self.connects or self.request.options.audience is not None

    @property
    def age_s(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self.progress.started

    @property
    def connects(self) -> bool:
        """Whether the server is the other party of the call; it is never started again."""
        return self.request.connects

    @property
    def info(self) -> ForkInfo:
        """The description for events."""
        return ForkInfo(
            self.id,
            self.channel,
            self.uniqueid,
            self.url,
            self.action_id,
            self.sample_rate,
            self.from_earlier_run,
            self.speaks,
            self.connects,
            self.call.caller_number,
            self.call.caller_name,
            self._about,
        )

    @property
    def _about(self) -> About:
        options = self.request.options
        return About(
            self.started_at,
            options.direction.value,
            options.format.value,
            self.request.profile,
            self.choice.tap.name if self.choice is not None else "",
        )

    # --- How it goes on ---

    @property
    def state(self) -> ForkState:
        """The state of its life."""
        return self.progress.state

    @property
    def is_ending(self) -> bool:
        """Whether its end was asked for, or its channel was hung up."""
        return self.progress.end_asked is not None or self.call.hangup_seen

    @property
    def is_whole(self) -> bool:
        """Whether no part is missing."""
        return not self.progress.away

    def apply(self, event: ForkEvent) -> None:
        """Change the state by an event; the state changes only here."""
        following = FORK_LIFE.next_state(self.state, event)
        self.log.debug("= %s -> %s", self.state.name, following.name)
        self.progress.state = following
        self.chronicle.on_state(following)

    def found(self, channel: str, uniqueid: str, asterisk_started: str) -> None:
        """Set the name and uniqueid of its channel as Asterisk reports them."""
        self.call.channel, self.call.uniqueid = channel, uniqueid
        self.call.asterisk_started = asterisk_started
        self.log = ForkLog(log, self.id, channel)

    def settle(self, choice: Choice) -> None:
        """Set the tap and sample rate, and create its legs."""
        self.choice = choice
        parts = choice.way.parts[self.request.options.direction]
        self.legs = {part: Leg(part) for part in parts}
        self.progress.chosen.set()

    def mute(self, mute_in: bool, mute_out: bool) -> None:
        """Set which of its sides are muted, and log it."""
        self.mute_in, self.mute_out = mute_in, mute_out
        self.log.info("muted: %s", muted_sides(self) or "nothing")

    def first_frame(self) -> None:
        """Change the state: audio flows."""
        self.progress.away.discard(Away.SERVER)
        self.apply(ForkEvent.FIRST_FRAME)
        if self.progress.away:
            self.apply(ForkEvent.LOST)

    def lost(self, what: Away, why: str = "", attempt: int = 1, wait_s: float = 0.0) -> bool:
        """Add a missing part; return whether audio had flowed.

        Args:
            what: The part.
            why: Why it is missing, for people; any text.
            attempt: The number of the attempt that follows.
            wait_s: Seconds until that attempt.
        """
        was_streaming = self.state is not ForkState.ATTACHING
        parts: tuple[Away, ...] = (what,)
        if what is Away.RELAY:  # its legs and its connection to the server are lost too
            parts = (Away.SERVER, *map(Away, self.legs))
            if was_streaming and self.progress.relay_gap_ms is None:
                self.progress.relay_gap_ms = 0
        for part in parts:
            is_new = part not in self.progress.away
            self.chronicle.on_trouble(part, why, attempt, wait_s, is_new=is_new)
        self.progress.away.update(parts)
        self.apply(ForkEvent.LOST)
        return was_streaming

    def back(
        self, what: Away, frames_dropped: int = 0, gap_ms: int | None = None
    ) -> Resumed | None:
        """Remove a missing part; return the event to emit, or None.

        None if audio has not flowed yet. After the loss of a relay process there is one event, when
        all parts are back, with the longest gap.

        Args:
            what: The part that is back.
            frames_dropped: Frames that did not fit in the backlog meanwhile.
            gap_ms: How many milliseconds there was no leg; None if the part is not a leg.
        """
        progress = self.progress
        progress.away.discard(what)
        self.chronicle.tell()
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
        """Return its legs that were requested from Asterisk and have not ended."""
        return [leg for leg in self.legs.values() if leg.id and not leg.gone]

    def cancel_timers(self) -> None:
        """Cancel all its timers."""
        if self.call.hangup_timer is not None:
            self.call.hangup_timer.cancel()
        for leg in self.legs.values():
            leg.cancel_timer()


def new_fork(request: StartFork, commands: Commands) -> Fork:
    """Return a new fork for a request.

    Args:
        request: The start.
        commands: The post-process commands.

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


def restored(entry: Entry, commands: Commands, profiles: Profiles) -> tuple[Fork, str]:
    """Return the fork of a journal entry, and why its request would be refused now; empty if not.

    The configuration or the version may have changed since the earlier run.
    """
    post_process, why = None, ""
    target = Target(entry.channel, entry.uniqueid)
    request = StartFork(
        target, entry.url, Options(), entry.post_process, entry.action_id, entry.options
    )
    request = replace(request, connects=entry.connects)
    try:
        request = replace(request, options=parse_options(entry.options))
        request = with_fields(profiles.apply(request), entry.call)
        if request.connects:
            request = connected(request)
        post_process = commands.prepare(entry.post_process) if entry.post_process else None
    except RequestRefused as exc:
        why = str(exc)
    fork = Fork(
        id=entry.fork_id,
        request=request,
        call=Call(
            entry.channel,
            entry.uniqueid,
            entry.asterisk_started,
            values=entry.values,
            info=entry.call,
            params=entry.params,
            dialogue=filled(profiles.dialogue_of(request), entry.call),
        ),
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


def with_fields(request: StartFork, values: Mapping[str, str]) -> StartFork:
    """Return a request with the fields of a call in its URL."""
    return replace(request, url=url_templates.filled(request.url, values))


def effective_url(request: StartFork) -> str:
    """Return the URL of a request; option T turns ws into wss."""
    scheme, colon, rest = request.url.partition(":")
    return (
        f"wss:{rest}"
        if colon and scheme.lower() == "ws" and request.options.use_tls
        else request.url
    )


def entry_of(fork: Fork) -> Entry:
    """Return the journal entry of a fork."""
    request = fork.request
    return Entry(
        fork_id=fork.id,
        channel=fork.channel,
        uniqueid=fork.uniqueid,
        url=request.server,
        options=request.options_text,
        post_process=request.post_process,
        action_id=fork.action_id,
        values=fork.call.values,
        mute_in=fork.mute_in,
        mute_out=fork.mute_out,
        started=fork.started_at,
        asterisk_started=fork.call.asterisk_started,
        attempts=fork.progress.attempts,
        call=fork.call.info,
        params=fork.call.params,
        connects=fork.connects,
    )


def record(fork: Fork, journal: Journal) -> None:
    """Write a fork to the journal."""
    journal.put(entry_of(fork))


def muted_sides(fork: Fork) -> str:
    if fork.mute_in and fork.mute_out:
        return "both"
    return "read" if fork.mute_in else "write" if fork.mute_out else ""
