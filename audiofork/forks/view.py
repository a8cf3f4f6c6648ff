"""A fork as lists, and clients that wait for its audio, see it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from audiofork.forks.chronicle import Trouble
from audiofork.forks.fork import Fork, muted_sides
from audiofork.forks.lifecycle import Away, ForkState
from audiofork.link.messages import EndReason, ForkStats
from audiofork.text import harmless


@dataclass(frozen=True, slots=True)
class ForkView:
    """A fork as `list` shows it.

    Attributes:
        state: requested, attaching, streaming or reconnecting; ended only for waiting clients.
        age_s: Seconds since the request.
        muted: "read", "write", "both", or empty for neither.
        tap: "chanspy" or "snoop"; empty while not chosen.
        sample_rate: In Hz; 0 while not chosen.
        waits_for: What is missing before its audio flows (again), for people; empty: nothing.
        last_error: The latest error of a missing part, otherwise of any part; empty: none.
        last_error_s: Seconds since that error; None: there was none.
        away_s: Seconds since the part with that error went missing; None: none is missing.
        attempt: The number of the next attempt, from 1; 0: none is missing.
        next_attempt_s: Seconds until that attempt, 0 while it is under way; None: none is missing.
        messages_ignored: Texts of the server beyond the limit per second.
        messages_unused: Messages of the server that nothing came of.
        keys: Keys of the party that the server was told of.
        ending: Why it is being ended, for example `hangup` or `stopped`; empty: it is not.
        gaps: How often its audio was interrupted, in this run of the daemon.
        speaks: Whether its server may be heard in the call.
        frames_played, frames_cleared, frames_unplayed, underruns: Of its audio, as in `ForkStats`.
        commands_refused: What the server has asked for in vain.
        caller_number, caller_name: The caller as Asterisk has it, for people; empty: none, or
            nobody has asked Asterisk (see `Forks`).
        profile: The name of the profile that its server comes from; empty: it comes from none.
        format: What is spoken with the server, as option x names it.
        connects: Whether its server is the other party of the call.
        requested_at: When it was requested, in seconds since 1970.
        backlog: Frames that wait for the server.
        rtt_ms, unacked_bytes: Of the connection to the server, as in `ForkStats`.
        relay_host: The name of the relay host that it is on; empty: it is on none, or there is no
            cluster.
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
    waits_for: str = ""
    last_error: str = ""
    last_error_s: float | None = None
    away_s: float | None = None
    attempt: int = 0
    next_attempt_s: float | None = None
    gaps: int = 0
    messages_ignored: int = 0
    messages_unused: int = 0
    keys: int = 0
    ending: str = ""
    speaks: bool = False
    frames_played: int = 0
    frames_cleared: int = 0
    frames_unplayed: int = 0
    underruns: int = 0
    commands_refused: int = 0
    caller_number: str = ""
    caller_name: str = ""
    profile: str = ""
    format: str = ""
    connects: bool = False
    requested_at: float = 0.0
    backlog: int = 0
    rtt_ms: float = 0.0
    unacked_bytes: int = 0
    relay_host: str = ""


def view_of(fork: Fork, stats: ForkStats, relay_host: str = "") -> ForkView:
    """Return a fork as it is now.

    Args:
        fork: The fork.
        stats: Its statistics, which only the relay knows.
        relay_host: The name of the relay host that it is on.
    """
    now = time.monotonic()
    trouble = _latest(fork)
    is_away = trouble is not None and bool(fork.progress.away)
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
        waits_for=_shown(_waits_for(fork), fork),
        last_error=harmless(trouble.why) if trouble else "",
        last_error_s=now - trouble.at if trouble else None,
        away_s=now - trouble.since if trouble and is_away else None,
        attempt=trouble.attempt if trouble and is_away else 0,
        next_attempt_s=max(0.0, trouble.next_at - now) if trouble and is_away else None,
        gaps=fork.chronicle.gaps,
        messages_ignored=stats.messages_ignored,
        messages_unused=stats.messages_unused,
        keys=fork.progress.keys,
        ending=_ending(fork),
        speaks=fork.speaks,
        frames_played=stats.frames_played,
        frames_cleared=stats.frames_cleared,
        frames_unplayed=stats.frames_unplayed,
        underruns=stats.underruns,
        commands_refused=stats.commands_refused + fork.progress.commands_refused,
        caller_number=harmless(fork.call.caller_number),
        caller_name=harmless(fork.call.caller_name),
        profile=fork.request.profile,
        format=fork.request.options.format.value,
        connects=fork.connects,
        requested_at=fork.started_at,
        backlog=max(0, stats.frames_in - stats.frames_sent - stats.frames_dropped),
        rtt_ms=stats.rtt_ms,
        unacked_bytes=stats.unacked_bytes,
        relay_host=relay_host,
    )


def _ending(fork: Fork) -> str:
    """Return why a fork is being ended; after a hangup, the relay is only asked a little later."""
    if fork.progress.end_asked is not None:
        return fork.progress.end_asked.value
    return EndReason.HANGUP.value if fork.is_ending else ""


def _latest(fork: Fork) -> Trouble | None:
    """Return the latest error of the missing parts; of all parts if none is missing."""
    troubles = fork.chronicle.troubles
    missing = [trouble for what, trouble in troubles.items() if what in fork.progress.away]
    return max(missing or troubles.values(), key=lambda trouble: trouble.at, default=None)


def _shown(missing: tuple[str, ...], fork: Fork) -> str:
    """Return the text for a missing part; an ending fork still delivers what it has."""
    return " and ".join(missing) + (" to deliver the rest" if missing and fork.is_ending else "")


def _waits_for(fork: Fork) -> tuple[str, ...]:
    """Return what is missing, whether it was lost or has not come yet; empty: nothing."""
    if fork.state is ForkState.REQUESTED:
        return ("its turn" if fork.progress.looked_up.is_set() else "Asterisk's answer",)
    if fork.progress.relay_away:
        return ("a relay process",)
    missing = _missing_parts(fork)
    if missing or fork.state is not ForkState.ATTACHING:
        return missing
    is_gated = fork.request.options.bridged_only and not fork.call.bridged
    return ("a bridge (option b)",) if is_gated else ("audio of the call",)


def _missing_parts(fork: Fork) -> tuple[str, ...]:
    if fork.state is ForkState.ENDED:
        return ()
    has_server = fork.chronicle.server_at is not None and Away.SERVER not in fork.progress.away
    server = () if has_server else ("the server",)
    if fork.chronicle.held:
        return (*server, "the end of the hold")
    return (*server, *(str(leg) for leg in fork.legs.values() if not leg.attached))
