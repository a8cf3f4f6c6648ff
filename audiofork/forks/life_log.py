"""The log of a fork's life: a line when it is requested, one when it streams, one when it ends.

Each line has the same fields as text and as JSON, and the JSON has further ones, with the names
that the history has for them; docs/usage.md lists them.
"""

from __future__ import annotations

import logging

from audiofork.forks.events import FAILURES
from audiofork.forks.fork import Fork
from audiofork.link.messages import EndReason, ForkEnded, ForkStats
from audiofork.log import host_of, without_query
from audiofork.text import harmless


def log_requested(fork: Fork) -> None:
    """Log that a start was granted, or that a fork of an earlier run is resumed."""
    options = fork.request.options
    event = "resumed" if fork.from_earlier_run else "requested"
    url, (door, who) = without_query(fork.url), fork.request.origin
    asked = " ".join(filter(None, (door, harmless(who))))
    fork.log.info(
        "%s%s, %s by %s at %d Hz to %s",
        *(event, f" by {asked}" if asked else ""),
        *(options.direction, fork.tap.name, fork.sample_rate, url),
        extra=_fields(
            fork,
            event,
            door=door,
            who=harmless(who),
            direction=options.direction.value,
            tap=fork.tap.name,
            sample_rate=fork.sample_rate,
            url=url,
            host=host_of(fork.url),
            profile=fork.request.profile,
            format=options.format.value,
        ),
    )
    _log_notes(fork)


def _log_notes(fork: Fork) -> None:
    """Log what differs from what the requester may expect."""
    options = fork.request.options
    if fork.choice is not None and fork.choice.note:
        fork.log.warning("%s", fork.choice.note)
    if options.ignored:
        fork.log.info("option %s is accepted but has no effect", options.ignored)
    if options.tls is not None and options.tls.insecure:
        fork.log.warning("the server's certificate is not checked: T(insecure)")


def log_streaming(fork: Fork) -> None:
    """Log that the first frame went to the server."""
    times = fork.chronicle
    ms, server_ms, legs_ms = (
        times.ms_until(at) for at in (times.streaming_at, times.server_at, times.legs_at)
    )
    parts = {"the server": server_ms, "the legs": legs_ms}
    fork.log.info(
        "streaming %d ms after the %s (%s)",
        *(ms, "resumption" if fork.from_earlier_run else "request"),
        ", ".join(f"{what} after {at} ms" for what, at in parts.items() if at is not None),
        extra=_fields(fork, "streaming", ms=ms, server_ms=server_ms, legs_ms=legs_ms),
    )


def log_ended(fork: Fork, report: ForkEnded, *, is_failure: bool) -> None:
    """Log the end of a fork.

    Args:
        fork: The fork, in its final state.
        report: The relay's report, or its substitute.
        is_failure: Whether an administrator should look at it.
    """
    stats, times = report.stats, fork.chronicle
    detail = harmless(report.detail)
    fork.log.log(
        logging.WARNING if is_failure else logging.INFO,
        "ended: %s%s, %.1f s, frames %d in, %d sent, %d dropped, %d reconnects, %d gaps%s%s",
        *(report.reason, f" ({detail})" if detail else "", fork.age_s),
        *(stats.frames_in, stats.frames_sent, stats.frames_dropped, stats.reconnects, times.gaps),
        f" of {times.gap_s:.1f} s" if times.gaps else "",
        _played(stats) if fork.speaks else "",
        extra=_fields(
            fork,
            "ended",
            reason=report.reason.value,
            failed=is_failure,
            detail=detail,
            duration_s=round(fork.age_s, 1),
            frames_in=stats.frames_in,
            frames_sent=stats.frames_sent,
            frames_dropped=stats.frames_dropped,
            reconnects=stats.reconnects,
            gaps=times.gaps,
            gap_s=round(times.gap_s, 1),
            frames_missing=stats.frames_missing,
            messages_ignored=stats.messages_ignored,
            messages_unused=stats.messages_unused,
            commands_refused=stats.commands_refused,
            relays_lost=fork.progress.relays_lost,
            **(_played_fields(stats) if fork.speaks else {}),
        ),
    )
    if stats.frames_missing:
        fork.log.warning(
            "Asterisk delivered %d frames fewer than 50 a second: its timer misses ticks, or the "
            "machine is too busy (docs/asterisk.md, The timing module)",
            stats.frames_missing,
        )


def _played(stats: ForkStats) -> str:
    """Return what became of the server's audio, as the rest of a line."""
    return (
        f"; of the server's {stats.frames_played} played, {stats.frames_cleared} cleared, "
        f"{stats.frames_unplayed} unplayed, {stats.underruns} underruns"
    )


def _played_fields(stats: ForkStats) -> dict[str, int]:
    names = ("frames_played", "frames_cleared", "frames_unplayed", "underruns")
    return {name: getattr(stats, name) for name in names}


def log_left(fork: Fork) -> None:
    """Log that a fork ends in this run of the daemon, and is left for the next one."""
    fork.log.info(
        "left for the next start after %.1f s",
        fork.age_s,
        extra=_fields(fork, "left", duration_s=round(fork.age_s, 1)),
    )


def log_unresumable(fork: Fork, reason: EndReason, detail: str) -> None:
    """Log the end of a fork of an earlier run that cannot be resumed; it has no statistics."""
    fork.log.warning(
        "ended: %s (%s)",
        *(reason, harmless(detail)),
        extra=_fields(
            *(fork, "ended"),
            reason=reason.value,
            failed=reason in FAILURES,
            detail=harmless(detail),
        ),
    )


def _fields(fork: Fork, event: str, **fields: str | int | float | None) -> dict[str, object]:
    named = {"event": event, "fork_id": fork.id, "uniqueid": fork.uniqueid}
    return {"fields": {**named, **fields}}
