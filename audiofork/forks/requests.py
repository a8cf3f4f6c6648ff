"""Parses the fields of a message from any door into a request, or refuses it with a reason."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlencode

from audiofork.asterisk.channels import Target
from audiofork.config import Proxy
from audiofork.errors import RequestRefused
from audiofork.forks.options import Options, parse_options
from audiofork.forks.params import MAX_PARAMS_BYTES, check_size, parse_params
from audiofork.link.messages import Direction, Format
from audiofork.text import did_you_mean, printable

PROFILE_MARK = "@"  # marks the name of a profile in place of a URL; no URL begins with it
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
DIALPLAN = "dialplan"  # the door of what a channel's dialplan asks; `who` is the channel


def _origin() -> Origin:
    """Declare the field; requests that differ only in their origin are equal."""
    return field(default=UNKNOWN, compare=False)


@dataclass(frozen=True, slots=True)
class StartFork:
    """Start a fork on a channel.

    Attributes:
        options_text: The option string that `options` was parsed from; may contain secrets.
        params: Parameters for the server; a value may be a secret.
        profile: The name of the profile that the URL comes from; empty: it comes from none.
        proxy: The proxy of the profile; None: the proxy that is configured for all forks.
        status_callback: The status callback of the profile; empty: the one for all forks.
        profile: The name of the profile that the URL is of; empty: of none.
        connects: Whether the server becomes the other party of the call; else it gets a copy.
    """

    target: Target
    url: str
    options: Options
    post_process: str = ""
    action_id: str = ""
    options_text: str = field(default="", repr=False)
    params: dict[str, str] = field(default_factory=dict, repr=False)
    profile: str = ""
    proxy: Proxy | None = field(default=None, repr=False)
    status_callback: str = field(default="", repr=False)
    connects: bool = False
    origin: Origin = _origin()

    @property
    def server(self) -> str:
        """The server as requested: a URL, or a profile as @NAME."""
        return PROFILE_MARK + self.profile if self.profile else self.url


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
CONNECT = "connectaudiofork"
_NAMES = (
    *("Channel", "Uniqueid", "WsServer", "Options", "PostProcess"),
    *("AudioForkID", "Direction", "State", "ActionID", "Command", "Params"),
)
VERBS = ("StartAudioFork", "StopAudioFork", "AudioForkMute", "ConnectAudioFork")
# How similar a name must be to that of a field, or to a verb, to count as a misspelling of it.
_MISSPELT = 0.8
# Characters that web pages and phones put around copied text.
_BLANKS = " \t\u00a0\u200b\ufeff"
_DIRECTIONS = ("read", "write", "both")
_SIDES = {"in": "; in is read", "out": "; out is write"}
_FIELDS = {name.lower(): name for name in _NAMES}  # as error messages spell them


def parse_request(fields: Mapping[str, str], origin: Origin = UNKNOWN) -> Request:
    """Check the fields of a request.

    Args:
        fields: Names (in any case) and values as received. `Command` holds the verb; a request
            without a verb is a start.
        origin: Who sends the request.

    Raises:
        RequestRefused: A field is missing or not allowed; the text names it.
    """
    lower = {name.lower(): value.strip(_BLANKS) for name, value in fields.items()}
    for name, value in lower.items():
        _check_field(_FIELDS.get(name) or printable(name, "?"), value)
    _refuse_misspelt(lower)
    verb = lower.get("command", "").lower()
    if verb == STOP:
        return _stop(lower, origin)
    if verb == MUTE:
        return _mute(lower, origin)
    return _start(lower, origin)


def fields_of(request: Request) -> list[dict[str, str]]:
    """Return the fields of the messages that `parse_request` makes this request of.

    There are two where one side becomes silent and the other is heard again.
    """
    target = {"Channel": request.target.channel, "Uniqueid": request.target.uniqueid}
    common = target | {"ActionID": request.action_id}
    if isinstance(request, StartFork):
        own = {
            "Command": "ConnectAudioFork" if request.connects else "StartAudioFork",
            "WsServer": request.server,
            "Options": request.options_text,
            "PostProcess": request.post_process,
            "Params": urlencode(request.params),
        }
        return [_given(common | own)]
    common["AudioForkID"] = request.fork_id
    if isinstance(request, StopFork):
        return [_given(common | {"Command": "StopAudioFork"})]
    sides = {"read": request.mute_in, "write": request.mute_out}
    if request.mute_in == request.mute_out:
        sides = {"both": request.mute_in}
    return [
        _given(
            common
            | {"Command": "AudioForkMute", "Direction": side, "State": "on" if muted else "off"}
        )
        for side, muted in sides.items()
        if muted is not None
    ]


def _given(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}


def _refuse_misspelt(fields: Mapping[str, str]) -> None:
    """Refuse a name that nearly matches a missing field, and a command that nearly is a verb.

    Other unknown names are ignored: requests contain headers that are meant for others.
    """
    # Not ActionID, because AMI actions have a header Action.
    absent = [name for name in _NAMES if name != "ActionID" and not fields.get(name.lower())]
    for name in fields.keys() - _FIELDS.keys():
        if hint := did_you_mean(name, absent, likeness=_MISSPELT):
            raise RequestRefused(f"{printable(name, '?')}: no such field{hint}")
    command = fields.get("command", "")
    hint = did_you_mean(command, VERBS, likeness=_MISSPELT)
    if command.lower() not in (START, STOP, MUTE, CONNECT) and hint:
        raise RequestRefused(f"Command: no such verb as {command}{hint}")


def flag_of(fields: Mapping[str, str], name: str) -> bool:
    """Return the value of a yes-or-no field; no if it is missing.

    Raises:
        RequestRefused: The field has another value.
    """
    lower = {key.lower(): value.strip(" \t").lower() for key, value in fields.items()}
    text = lower.get(name.lower(), "no")
    if text not in _STATES:
        hint = did_you_mean(text, _STATES)
        raise RequestRefused(f"{name}: expected 1, 0, on, off, yes, no, true or false{hint}")
    return _STATES[text]


def _start(fields: dict[str, str], origin: Origin) -> StartFork:
    target = _target(fields)
    url = fields.get("wsserver", "")
    command = fields.get("command", "")
    connects = command.lower() == CONNECT
    is_start = connects or command.lower() == START
    if not url:
        unknown = command and not is_start
        hint = f"; Command: {command} is none of {', '.join(VERBS)}" if unknown else ""
        raise RequestRefused(f"WsServer: missing{hint}")
    # As in app_audiofork, a Command that is not a verb is the post-process command.
    post_process = fields.get("postprocess", "") or ("" if is_start else command)
    text = fields.get("options", "")
    options = parse_options(text)
    action_id = fields.get("actionid", "")
    params = _params(fields)
    return StartFork(
        *(target, url, options, post_process, action_id, text, params),
        connects=connects,
        origin=origin,
    )


def connected(request: StartFork) -> StartFork:
    """Return the request of a connected fork with its direction: what the party says.

    Raises:
        RequestRefused: An option asks for what such a fork does not have.
    """
    options = request.options
    if options.direction not in (Direction.BOTH, Direction.IN):
        raise RequestRefused(
            f"Options: D({options.direction}): a connected server gets what the party says, D(in)"
        )
    if options.audience is not None:
        raise RequestRefused(
            f"Options: k({options.audience}): a connected server is the other party, leave k out"
        )
    return replace(request, options=replace(options, direction=Direction.IN))


def check_params_are_sent(params: Mapping[str, str], options: Options) -> None:
    """Raise RequestRefused if there are parameters that no option sends to the server."""
    if params and options.format is Format.OPENAI_REALTIME:
        raise RequestRefused(f"Params: the format {options.format} sends none, leave them out")
    if params and not options.tells_of_call:
        raise RequestRefused("Params: they are sent to the server with option M or x")


def _params(fields: dict[str, str]) -> dict[str, str]:
    try:
        params = parse_params(fields.get("params", ""))
        check_size(params)
        return params
    except ValueError as exc:
        raise RequestRefused(f"Params: {exc}") from None


def _stop(fields: dict[str, str], origin: Origin) -> StopFork:
    fork_id = _fork_id(fields)
    return StopFork(_target(fields, fork_id), fork_id, fields.get("actionid", ""), origin)


def _mute(fields: dict[str, str], origin: Origin) -> MuteFork:
    fork_id = _fork_id(fields)
    target = _target(fields, fork_id)
    direction = fields.get("direction", "").lower()
    if direction not in _DIRECTIONS:
        what = "Invalid" if direction else "No"
        hint = _SIDES.get(direction) or did_you_mean(direction, _DIRECTIONS)
        raise RequestRefused(f"{what} direction specified. Must be read, write or both{hint}")
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
        colours = " (it has the colours of a terminal)" if "\x1b[" in value else ""
        raise RequestRefused(f"{name}: control characters are not allowed{colours}")
    if name not in ("Options", "Params") and len(value.encode()) > MAX_FIELD_BYTES:
        raise RequestRefused(f"{name}: longer than {MAX_FIELD_BYTES} bytes")
    if name == "Params" and len(value) > 3 * MAX_PARAMS_BYTES:  # three characters for a byte
        raise RequestRefused(f"Params: longer than {MAX_PARAMS_BYTES} bytes, all together")


def _target(fields: dict[str, str], fork_id: str = "") -> Target:
    target = Target(fields.get("channel", ""), fields.get("uniqueid", ""))
    if not target.channel and not target.uniqueid and not fork_id:
        raise RequestRefused("No channel specified")
    return target


def _fork_id(fields: dict[str, str]) -> str:
    """Return the fork id in its canonical form; empty if the request has none.

    The beginning of an id is returned unchanged: it matches no fork, but the registry knows which
    one is meant.
    """
    text = fields.get("audioforkid", "")
    if is_beginning_of_id(text):
        return text.lower()
    try:
        return str(uuid.UUID(text)) if text else ""
    except ValueError:
        raise RequestRefused("AudioForkID: not a UUID") from None


def is_beginning_of_id(text: str) -> bool:
    """Return whether a text is the beginning of a fork's id, 8 of its characters or more."""
    return 8 <= len(text) < 36 and _AS_ID.fullmatch(text) is not None


_AS_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{0,4}){0,3}(-[0-9a-f]{0,12})?", re.IGNORECASE)
