"""Finds fields that a caller has added to a request of the dialplan.

Asterisk splits the arguments of UserEvent() and Gosub() at commas after it has replaced variables.
If a dialplan uses `${EXTEN}` as it is, a caller who dials `1,WsServer: ws://...` adds a field. The
same text is then in what Asterisk reports of the caller, so the request is refused. This protects
dialplans that should have used URIENCODE() or variables; it does not replace those.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping

from audiofork.errors import RequestRefused

_ENCODED = ("wsserver", "options", "postprocess", "audioforkid", "direction", "state", "dialled")
# The fields that could do harm: whose audio is sent where, and what is run afterwards.
_FIELDS = {
    name.lower(): name
    for name in ("WsServer", "PostProcess", "Command", "AudioForkID", "Channel", "Uniqueid")
}
WHAT_TO_DO = "give the URL by AUDIOFORK_URL, or put what callers choose through URIENCODE()"


def decoded(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a request, with the values decoded that the shipped dialplan encodes.

    Quotes and backslashes are removed from a URL that was an argument, as Asterisk would do.

    Raises:
        RequestRefused: A value that should be encoded is not.
    """
    encoding = fields.get("encoding", "")
    if encoding not in ("base64", "base64-quoted"):
        return dict(fields)
    plain = {
        name: _decoded(name, value) if name in _ENCODED else value
        for name, value in fields.items()
        if name != "encoding"
    }
    if encoding == "base64-quoted":
        plain["wsserver"] = re.sub(r'\\(.?)|"', r"\1", plain.get("wsserver", ""))
    return plain


def _decoded(name: str, value: str) -> str:
    try:
        text = base64.b64decode(value, validate=True)
    except ValueError:
        raise RequestRefused(f"{name}: not in base64") from None
    if not text:
        raise RequestRefused(f"{name}: Asterisk has not encoded it; is func_base64.so loaded?")
    # The dialplan puts a dot before each value, so that an empty value differs from one that was
    # not encoded, and replaces each colon by a byte that never occurs in UTF-8.
    return text[1:].replace(b"\xff", b":").decode("utf-8", "replace")


def slipped_in(fields: Mapping[str, str], caller_data: Iterable[str]) -> str:
    """Return the name of a field that the caller has added; empty: there is none.

    Args:
        fields: The decoded fields of a request, by name in lower case.
        caller_data: Texts that the caller may have chosen, such as a number or a name.
    """
    plain = {name: _bare(value) for name, value in fields.items()}
    for text in caller_data:
        first, *others = map(str.strip, _bare(text).split(","))
        # The text is the end of the URL, so its further pieces became further arguments.
        ends_url = bool(first) and plain.get("wsserver", "").endswith(first)
        for piece in others:
            name, _, value = map(str.strip, piece.partition(":"))
            if value and plain.get(name.lower(), "").startswith(value) and name.lower() in _FIELDS:
                return _FIELDS[name.lower()]
            if ends_url and piece and piece in (plain.get("options"), plain.get("postprocess")):
                return "Options" if piece == plain.get("options") else "PostProcess"
    return ""


def _bare(text: str) -> str:
    """Return a text without the characters that Asterisk removes from arguments."""
    return text.replace('"', "").replace("\\", "").strip()
