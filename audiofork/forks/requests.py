"""Parses the fields of a message from any door into a request, or refuses it with a reason."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from audiofork.asterisk.channels import Target
from audiofork.errors import RequestRefused
from audiofork.forks.options import Options, parse_options
from audiofork.text import printable

MAX_FIELD_BYTES = 1000  # AMI discards lines longer than 1024 bytes
_STATES = {
    **{"1": True, "on": True, "yes": True, "true": True},
    **{"0": False, "off": False, "no": False, "false": False},
}


class Origin(NamedTuple):
    """Who sends a request, as far as known; turns are shared fairly between origins.

    Attributes:
        door: The door that the request came through.
        who: The channel that runs the dialplan, or a connection. Over AMI, where Asterisk does not
            report the user, it is the channel that the request names.
    """

    door: str = ""
    who: str = ""


UNKNOWN = Origin()


def _origin() -> Origin:
    """Declare the field; requests that differ only in their origin are equal."""
    return field(default=UNKNOWN, compare=False)


@dataclass(frozen=True, slots=True)
class StartFork:
    """Start a fork on a channel.

    Attributes:
        options_text: The option string that `options` was parsed from.
    """

    target: Target
    url: str
    options: Options
    post_process: str = ""
    action_id: str = ""
    options_text: str = ""
    origin: Origin = _origin()


@dataclass(frozen=True, slots=True)
class StopFork:
    """Stop one fork, or all forks of a channel if there is no fork_id."""

    target: Target
    fork_id: str
    action_id: str = ""
    origin: Origin = _origin()


@dataclass(frozen=True, slots=True)
class MuteFork:
    """Mute or unmute sides of one fork, or of all forks of a channel if there is no fork_id.

    Attributes:
        mute_in: True or False for the side *read*; None leaves it unchanged.
        mute_out: The same for the side *write*.
    """

    target: Target
    fork_id: str
    mute_in: bool | None
    mute_out: bool | None
    action_id: str = ""
    origin: Origin = _origin()


Request = StartFork | StopFork | MuteFork

START, STOP, MUTE = "startaudiofork", "stopaudiofork", "audioforkmute"
_NAMES = (
    *("Channel", "Uniqueid", "WsServer", "Options", "PostProcess"),
    *("AudioForkID", "Direction", "State", "ActionID", "Command"),
)
_FIELDS = {name.lower(): name for name in _NAMES}  # as messages write them


def parse_request(fields: Mapping[str, str], origin: Origin = UNKNOWN) -> Request:
    """Check the fields of a request.

    Args:
        fields: Names (in any case) and values as received. `Command` holds the verb; a request
            without a verb is a start.
        origin: Who sends the request.

    Raises:
        RequestRefused: A field is missing or not allowed; the text names it.
    """
    lower = {name.lower(): value.strip(" \t") for name, value in fields.items()}
    for name, value in lower.items():
        _check_field(_FIELDS.get(name) or printable(name, "?"), value)
    verb = lower.get("command", "").lower()
    if verb == STOP:
        return _stop(lower, origin)
    if verb == MUTE:
        return _mute(lower, origin)
    return _start(lower, origin)


def flag_of(fields: Mapping[str, str], name: str) -> bool:
    """Return a field that is yes or no; without it, no.

    Raises:
        RequestRefused: It is something else.
    """
    lower = {key.lower(): value.strip(" \t").lower() for key, value in fields.items()}
    text = lower.get(name.lower(), "no")
    if text not in _STATES:
        raise RequestRefused(f"{name}: expected 1, 0, on, off, yes, no, true or false")
    return _STATES[text]


def _start(fields: dict[str, str], origin: Origin) -> StartFork:
    target = _target(fields)
    url = fields.get("wsserver", "")
    if not url:
        raise RequestRefused("WsServer: missing")
    command = fields.get("command", "")
    # As in app_audiofork, a Command that is not a verb is the post-process command.
    post_process = fields.get("postprocess", "") or ("" if command.lower() == START else command)
    text = fields.get("options", "")
    options = parse_options(text)
    action_id = fields.get("actionid", "")
    return StartFork(target, url, options, post_process, action_id, text, origin)


def _stop(fields: dict[str, str], origin: Origin) -> StopFork:
    fork_id = _fork_id(fields)
    return StopFork(_target(fields, fork_id), fork_id, fields.get("actionid", ""), origin)


def _mute(fields: dict[str, str], origin: Origin) -> MuteFork:
    fork_id = _fork_id(fields)
    target = _target(fields, fork_id)
    direction = fields.get("direction", "").lower()
    if direction not in ("read", "write", "both"):
        what = "Invalid" if direction else "No"
        raise RequestRefused(f"{what} direction specified. Must be read, write or both")
    state = fields.get("state", "").lower()
    if not state:
        raise RequestRefused("No state specified")
    mute = flag_of(fields, "State")
    mute_in = mute if direction in ("read", "both") else None
    mute_out = mute if direction in ("write", "both") else None
    return MuteFork(target, fork_id, mute_in, mute_out, fields.get("actionid", ""), origin)


def _check_field(name: str, value: str) -> None:
    # Values are copied into AMI actions, where a line break would begin a new header.
    if not value.isprintable():
        raise RequestRefused(f"{name}: control characters are not allowed")
    if name != "Options" and len(value.encode()) > MAX_FIELD_BYTES:
        raise RequestRefused(f"{name}: longer than {MAX_FIELD_BYTES} bytes")


def _target(fields: dict[str, str], fork_id: str = "") -> Target:
    target = Target(fields.get("channel", ""), fields.get("uniqueid", ""))
    if not target.channel and not target.uniqueid and not fork_id:
        raise RequestRefused("No channel specified")
    return target


def _fork_id(fields: dict[str, str]) -> str:
    """Return the fork id in its canonical form; empty if the request has none."""
    text = fields.get("audioforkid", "")
    try:
        return str(uuid.UUID(text)) if text else ""
    except ValueError:
        raise RequestRefused("AudioForkID: not a UUID") from None
