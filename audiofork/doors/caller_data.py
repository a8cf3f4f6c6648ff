"""What a caller wrote into a request of the dialplan, as far as it shows.

Asterisk splits the arguments of UserEvent() and Gosub() at commas after it has put values in their
places. Where a dialplan puts in `${EXTEN}` as it is, who dials `1,WsServer: ws://...` adds a field.
What was added is also in what Asterisk tells of the caller: that is refused. It is a net for
dialplans that should have used URIENCODE() or variables, not a reason to do without them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping

from audiofork.errors import RequestRefused

_ENCODED = ("wsserver", "options", "postprocess", "audioforkid", "direction", "state", "dialled")
# What would do harm: whose audio goes where, and what is run then.
_FIELDS = {
    name.lower(): name
    for name in ("WsServer", "PostProcess", "Command", "AudioForkID", "Channel", "Uniqueid")
}
WHAT_TO_DO = "give the URL by AUDIOFORK_URL, or put what callers choose through URIENCODE()"


def decoded(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a request with the values decoded that the shipped dialplan has encoded.

    Of a URL that was an argument, quotes are taken away as Asterisk would have done.

    Raises:
        RequestRefused: A value is not encoded.
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
    return text[1:].decode("utf-8", "replace")  # without the dot


def slipped_in(fields: Mapping[str, str], caller_data: Iterable[str]) -> str:
    """Return the name of a field that a caller has written, or nothing.

    Args:
        fields: Those of a request, decoded; names in lower case.
        caller_data: What the caller may have chosen.
    """
    plain = {name: _bare(value) for name, value in fields.items()}
    for text in caller_data:
        first, *others = map(str.strip, _bare(text).split(","))
        # It has ended the URL, so what follows are further arguments.
        ends_url = bool(first) and plain.get("wsserver", "").endswith(first)
        for piece in others:
            name, _, value = map(str.strip, piece.partition(":"))
            if value and plain.get(name.lower(), "").startswith(value) and name.lower() in _FIELDS:
                return _FIELDS[name.lower()]
            if ends_url and piece and piece in (plain.get("options"), plain.get("postprocess")):
                return "Options" if piece == plain.get("options") else "PostProcess"
    return ""


def _bare(text: str) -> str:
    """Return a text without what Asterisk takes out of arguments."""
    return text.replace('"', "").replace("\\", "").strip()
