"""The opening of a profile for x(openai-realtime): the session, and what is said after it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Object = dict[str, Any]

_KINDS = ("realtime", "transcription")


class Opening(NamedTuple):
    """What a server of the API is told first.

    Attributes:
        session: The session object; its audio has no formats.
        events: The events that follow, each with its type.
    """

    session: Object
    events: tuple[Object, ...] = ()


def parse_opening(text: str) -> Opening:
    """Return what the text of an opening says.

    Args:
        text: JSON: the session, or a list of the session and of events; strings in it may have
            several lines. Empty: a session without wishes.

    Raises:
        ValueError: It is something else; the text goes on from "expected", and repeats no value.
    """
    if not text:
        return Opening({})
    try:
        parsed = json.loads(text, strict=False)
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno}, column {exc.colno}"
        raise ValueError(f"JSON; {exc.msg[:1].lower()}{exc.msg[1:]} at {place}") from None
    except RecursionError:
        raise ValueError("JSON that is less deeply nested") from None
    session, *events = parsed if isinstance(parsed, list) and parsed else [parsed]
    _check_session(session)
    for number, event in enumerate(events, 1):
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise ValueError(f'a JSON object with "type" as event {number} after the session')
    return Opening(session, tuple(events))


def _check_session(session: object) -> None:
    if not isinstance(session, dict):
        raise ValueError("a JSON object, the session, or a list that begins with it")
    if session.get("type", _KINDS[0]) not in _KINDS:
        raise ValueError(f"session.type to be {' or '.join(_KINDS)}")
    audio = _object_in(session, "audio", "session")
    for side in ("input", "output"):
        if "format" in _object_in(audio, side, "session.audio"):
            raise ValueError(
                f"no session.audio.{side}.format, since options decide it: "
                "none is mu-law, c(alaw) A-law, L(24000) PCM at 24000 Hz"
            )
    tools = session.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("session.tools to be a list of JSON objects")
    if _object_in(audio, "input", "").get("turn_detection", {}) is None:
        raise ValueError(
            "session.audio.input.turn_detection not to be null: "
            "nobody else would notice that the caller has finished"
        )


def _object_in(outer: Object, name: str, path: str) -> Object:
    inner = outer.get(name, {})
    if not isinstance(inner, dict):
        raise ValueError(f"{path}.{name} to be a JSON object")
    return inner
