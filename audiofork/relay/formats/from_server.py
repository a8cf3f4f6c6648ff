"""Reads the JSON texts of servers, whatever they hold."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from audiofork.reading_json import parsed_json


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; empty if it is something else."""
    if not text.lstrip().startswith("{"):
        return {}
    try:
        found = parsed_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def as_json(value: object) -> str:
    """Return a part of what `json_object` has read, as JSON again."""
    try:
        return json.dumps(value)
    except RecursionError:  # deeper than the reader may go, in another interpreter, say
        return "null"


def member(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the object that is a member of another; empty if there is none."""
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def text(found: dict[str, Any], name: str) -> str:
    """Return a member that is a text; empty if there is none."""
    value = found.get(name)
    return value if isinstance(value, str) else ""


def base64_bytes(found: dict[str, Any], name: str) -> bytes | None:
    """Return the bytes of a member in base64; None if there are none."""
    try:
        return base64.b64decode(text(found, name), validate=True) or None
    except (binascii.Error, ValueError):
        return None
