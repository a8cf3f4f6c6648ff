"""Forks and their events as the types that JSON has: the one place for the names of fields."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import urlsplit

from audiofork.forks.events import (
    Attack,
    CommandHandled,
    DomainEvent,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
    Muted,
    Parting,
    Pressed,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.requests import MuteFork, StartFork
from audiofork.forks.view import ForkView
from audiofork.link.messages import ForkStats
from audiofork.log import without_query
from audiofork.text import harmless

MAX_MESSAGE_CHARACTERS = 8000  # of a server's text; what is beyond is cut off

Fields = dict[str, Any]

_OF_VIEW = tuple(one.name for one in dataclasses.fields(ForkView))
_OF_STATS = tuple(one.name for one in dataclasses.fields(ForkStats))


def host_of(url: str) -> str:
    """Return the host of a URL, with its port if there is one; never user and password."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def fork_fields(view: ForkView) -> Fields:
    """Return a fork with all its fields, its URL without the query, and the host of that."""
    fields = {name: getattr(view, name) for name in _OF_VIEW}
    fields["url"] = without_query(view.url)
    fields["host"] = host_of(view.url)
    return fields


def info_fields(fork: ForkInfo) -> Fields:
    """Return what each event tells of its fork."""
    return {
        "id": fork.id,
        "channel": fork.channel,
        "uniqueid": fork.uniqueid,
        "url": without_query(fork.url),
        "host": host_of(fork.url),
    }


# --- Events --------------------------------------------------------------------------------------

NAMES: dict[type, str] = {
    Requested: "fork.requested",
    Started: "fork.started",
    Reconnecting: "fork.reconnecting",
    Resumed: "fork.resumed",
    MessageReceived: "fork.message",
    Pressed: "fork.dtmf",
    CommandHandled: "fork.command",
    Muted: "fork.muted",
    Ended: "fork.ended",
    Stopped: "fork.stopped",
    Failed: "fork.failed",
    Refused: "fork.refused",
    Attack: "attack",
}
"""The name of each event; `Parting`, which comes before `Ended`, has none."""


def event_fields(event: DomainEvent, *, tells_keys: bool = False) -> Fields:
    """Return what happened, with `fork`, but not when.

    Args:
        event: The event.
        tells_keys: Whether it may be told which keys a party pressed; they may be a secret.
    """
    if isinstance(event, Refused):
        return _of_refused(event)
    if isinstance(event, Attack):
        kind = event.kind.value
        return {"fork": None, "kind": kind, "detail": harmless(event.detail), "count": event.count}
    return {"fork": info_fields(event.fork), **_more(event, tells_keys)}


def _more(event: DomainEvent, tells_keys: bool) -> Fields:
    match event:
        case Requested():
            return _of_requested(event)
        case Started():
            return {"sample_rate": event.fork.sample_rate, "subprotocol": event.subprotocol}
        case Reconnecting():
            return {
                "what": event.what.value,
                "attempt": event.attempt,
                "detail": harmless(event.why),
                "was_streaming": event.was_streaming,
            }
        case Resumed():
            return {
                "what": event.what.value,
                "frames_dropped": event.frames_dropped,
                "gap_ms": event.gap_ms,
                "is_streaming": event.is_streaming,
            }
        case Pressed():
            digit = event.digit if tells_keys else None
            return {"digit": digit, "duration_ms": event.duration_ms}
        case Muted():
            return {"in": event.mute_in, "out": event.mute_out}
        case _:
            return _of_talk_and_end(event)


def _of_requested(event: Requested) -> Fields:
    fork, request = event.fork, event.request
    options = request.options
    return {
        "direction": options.direction.value,
        "format": options.format.value,
        "profile": request.profile,
        "sample_rate": fork.sample_rate,
        "speaks": fork.speaks,
        "connects": fork.connects,
        "from_earlier_run": fork.from_earlier_run,
        "door": request.origin.door,
        "who": harmless(request.origin.who),
    }


def _of_talk_and_end(event: DomainEvent) -> Fields:
    match event:
        case MessageReceived():
            text = event.text[:MAX_MESSAGE_CHARACTERS]
            return {"text": text, "is_cut": len(text) < len(event.text)}
        case CommandHandled():
            return {
                "command": event.command.value,
                "value": harmless(event.value),
                "outcome": event.outcome.value,
                "detail": harmless(event.reason),
            }
        case Ended():
            return {
                "reason": event.reason.value,
                "detail": harmless(event.detail),
                "failed": event.has_failed,
                **_of_stats(event.stats),
            }
        case Stopped() | Failed():
            return {
                "reason": event.reason.value,
                "detail": harmless(event.detail),
                "duration_s": round(event.age_s, 3),
                "relays_lost": event.relays_lost,
                "post_process_status": harmless(event.post_process_status),
                **_of_stats(event.stats),
            }
        case Parting():
            return {"reason": event.reason.value, "failed": event.has_failed}
        case _:
            return {}


def _of_stats(stats: ForkStats) -> Fields:
    return {name: getattr(stats, name) for name in _OF_STATS}


def _of_refused(event: Refused) -> Fields:
    request = event.request
    is_start = isinstance(request, StartFork)
    fork: Fields = {
        "id": "" if isinstance(request, StartFork) else request.fork_id[:100],
        "channel": harmless(request.target.channel),
        "uniqueid": harmless(request.target.uniqueid),
        "url": _refused_url(request.server) if isinstance(request, StartFork) else "",
        "host": "",
    }
    what = "start" if is_start else "mute" if isinstance(request, MuteFork) else "stop"
    return {
        "fork": fork,
        "request": what,
        "detail": harmless(event.why),
        "door": request.origin.door,
        "who": harmless(request.origin.who),
    }


def _refused_url(url: str) -> str:
    """Return a URL that was refused, if it is one: a password may be anywhere in what is not."""
    if not url.lower().startswith(("ws://", "wss://", "@")) or "@" in url[1:]:
        return ""
    return harmless(without_query(url))
