"""From the fields of any door to a request, or to a refusal with its reason."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from audiofork.control.options import Options, parse_options
from audiofork.errors import RequestRefused

MAX_FIELD_BYTES = 1000  # AMI discards lines longer than 1024 bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A channel as a request names it; a uniqueid goes before a name."""

    channel: str = ""
    uniqueid: str = ""


@dataclass(frozen=True, slots=True)
class StartFork:
    """Start a fork on a channel."""

    target: Target
    url: str
    options: Options
    action_id: str = ""


@dataclass(frozen=True, slots=True)
class StopFork:
    """Stop one fork, or all forks of a channel if there is no fork_id."""

    target: Target
    fork_id: str
    action_id: str = ""


Request = StartFork | StopFork

START, STOP = "startaudiofork", "stopaudiofork"
_VERBS = frozenset({START, STOP})
_NAMES = ("Channel", "Uniqueid", "WsServer", "Options", "AudioForkID", "ActionID", "Command")
_FIELDS = {name.lower(): name for name in _NAMES}  # as messages write them


def parse_request(fields: Mapping[str, str]) -> Request:
    """Check the fields of a request.

    Args:
        fields: Names (any case) and values as they came. `Command` holds the verb; without one
            it is a start.

    Raises:
        RequestRefused: A field is missing or not allowed; the text names it.
    """
    lower = {name.lower(): value.strip(" \t") for name, value in fields.items()}
    for name, value in lower.items():
        _check_field(_FIELDS.get(name, name), value)
    verb = lower.get("command", "").lower()
    target = Target(lower.get("channel", ""), lower.get("uniqueid", ""))
    action_id = lower.get("actionid", "")
    if verb == STOP:
        fork_id = _fork_id(lower.get("audioforkid", ""))
        if not fork_id:
            _check_target(target)
        return StopFork(target, fork_id, action_id)
    if verb and verb not in _VERBS:
        raise RequestRefused("Command: expected StartAudioFork or StopAudioFork")
    _check_target(target)
    url = lower.get("wsserver", "")
    if not url:
        raise RequestRefused("WsServer: missing")
    return StartFork(target, url, parse_options(lower.get("options", "")), action_id)


def _check_field(name: str, value: str) -> None:
    # Values end up in AMI actions, where a line break would begin a new header.
    if not value.isprintable():
        raise RequestRefused(f"{name}: control characters are not allowed")
    if name != "Options" and len(value.encode()) > MAX_FIELD_BYTES:
        raise RequestRefused(f"{name}: longer than {MAX_FIELD_BYTES} bytes")


def _check_target(target: Target) -> None:
    if not target.channel and not target.uniqueid:
        raise RequestRefused("No channel specified")


def _fork_id(text: str) -> str:
    """Return a fork id in its canonical form."""
    if not text:
        return ""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise RequestRefused("AudioForkID: not a UUID") from None
