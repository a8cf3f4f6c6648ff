"""One fork as the control plane knows it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from audiofork.control.lifecycle import ForkEvent, ForkState, next_state
from audiofork.control.post_process_script import PostProcess
from audiofork.control.requests import StartFork
from audiofork.log import ForkLog
from audiofork.model import EndReason, ForkSpec, ForkStats


@dataclass(slots=True, eq=False)
class Fork:
    """One fork, from its request to its end.

    Attributes:
        url: Where the audio goes; differs from the request's with option T.
        bridged: Whether the channel is in a bridge; None while that is not known.
        looked_up: Set when the request is granted or refused.
    """

    id: str
    request: StartFork
    channel: str
    uniqueid: str
    url: str
    log: ForkLog
    started: float
    action_id: str
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

    def apply(self, event: ForkEvent) -> None:
        """Move on; the only place where the state changes."""
        following = next_state(self.state, event)
        self.log.debug("= %s -> %s", self.state.name, following.name)
        self.state = following

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
        gain_in=options.gain_in,
        gain_out=options.gain_out,
        keep_time=options.keep_time,
        gate_open=not options.bridged_only or bool(fork.bridged),
        beeps=options.beeps,
        tls=options.tls,
        reconnect_interval_s=options.reconnect_interval_s,
        reconnect_attempts=options.reconnect_attempts,
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
    )
