"""What other controllers tell of forks, as the types that it had there.

It came over the broker: a field of another type is no fork's, and texts are made harmless. Fields
of a later version are passed over, and missing ones have their defaults.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from audiofork.doors.control_protocol import ASTERISK_AWAY, Code
from audiofork.errors import (
    AmiUnavailable,
    DaemonBusy,
    DaemonFault,
    HistoryUnavailable,
    NobodyLeads,
    NoMessage,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.series import Minute
from audiofork.forks.timelines import Moment
from audiofork.forks.view import ForkView
from audiofork.reading_json import parsed_json
from audiofork.text import printable

_Object = TypeVar("_Object")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
MAX_CHARACTERS = 4000  # of a text; the rest is cut off
MAX_NUMBER = 2**53
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_id(text: object) -> bool:
    """Return whether something is the id of a fork."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def object_in(fields: object, kind: type[_Object]) -> _Object:
    """Return the object that some fields stand for; all fields of its class are plain.

    Raises:
        NoMessage: They stand for none; the text says why.
    """
    if not isinstance(fields, dict):
        raise NoMessage(f"no {kind.__name__}")
    found = {
        one.name: _checked(fields[one.name], str(one.type), one.name)
        for one in dataclasses.fields(kind)  # type: ignore[arg-type]
        if one.name in fields and str(one.type) in _TYPES
    }
    try:
        return kind(**found)
    except TypeError:
        raise NoMessage("a field is missing") from None


def _checked(value: object, wanted: str, name: str) -> object:
    if type(value) not in _TYPES[wanted]:  # a bool is an int to isinstance
        raise NoMessage(f"{name} has another type")
    if isinstance(value, str):
        return text_in(value)
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= MAX_NUMBER):
        raise NoMessage(f"{name} is too great")
    return value


def text_in(value: object) -> str:
    """Return a text that may be shown."""
    return printable(str(value)[:MAX_CHARACTERS], "?")


def view_in(fields: object) -> ForkView:
    """Return a fork; raises as `object_in`."""
    view = object_in(fields, ForkView)
    if not is_id(view.id):
        raise NoMessage("its id cannot be one")
    return view


def news_in(fields: Mapping[str, Any]) -> StartNews:
    """Return the progress of a start; raises as `object_in`."""
    ms, result = fields.get("ms"), fields.get("result")
    if result not in list(StartResult) or not (ms is None or type(ms) is int):
        raise NoMessage("no progress of a start")
    reason, detail = (text_in(fields.get(name, "")) for name in ("reason", "detail"))
    return StartNews(StartResult(result), view_in(fields.get("fork")), ms, reason, detail)


def moment_in(fields: object) -> Moment:
    """Return what has happened to a fork once; raises as `object_in`."""
    if not isinstance(fields, dict):
        raise NoMessage("no moment")
    at: Any = _checked(fields.get("at"), "float", "at")
    return Moment(at, text_in(fields.get("kind", "")), text_in(fields.get("text", "")))


def minute_in(fields: object) -> Minute:
    """Return what has happened in a minute; raises as `object_in`."""
    return object_in(fields, Minute)


def granted(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of another controller, if the request was granted.

    Raises:
        RequestRefused, NoSuchChannel, AmiUnavailable, DaemonBusy, NobodyLeads, HistoryUnavailable,
            DaemonFault: It was not; the same as our own daemon would raise.
    """
    if answer.get("ok") is True:
        return answer
    text = text_in(answer.get("error", ""))
    match answer.get("code"):
        case Code.ASTERISK:
            raise AmiUnavailable(text.removeprefix(ASTERISK_AWAY))
        case Code.BUSY:
            raise DaemonBusy(text)
        case Code.CLUSTER:
            raise NobodyLeads(text)
        case Code.HISTORY:
            raise HistoryUnavailable(text)
        case Code.FAULT:
            raise DaemonFault(text)
        case _ if text == str(NoSuchChannel()):
            raise NoSuchChannel
        case _:
            raise RequestRefused(text)


def json_object(payload: bytes) -> dict[str, Any]:
    """Return the object that a message holds.

    Raises:
        NoMessage: It holds none.
    """
    try:
        value = parsed_json(payload)
    except ValueError:
        raise NoMessage("no JSON") from None
    if not isinstance(value, dict):
        raise NoMessage("no object")
    return value
