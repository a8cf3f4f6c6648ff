"""URLs with fields of the call: `ws://h/x?from={caller_number}`.

A value is percent-encoded, so that whatever a caller has chosen stays within its place. Only the
path and the query may have fields, because callers must not choose who gets the audio.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from audiofork.errors import RequestRefused
from audiofork.forks.call_info import FIELDS
from audiofork.forks.urls import MAX_URL_BYTES

MAX_VALUE_BYTES = 120  # of an encoded value; the rest is cut off
_FIELD = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)\}")
_AUTHORITY = re.compile(r"[^:]*://[^/?#]*")


def names(url: str) -> list[str]:
    """Return the names of the fields in a URL."""
    return _FIELD.findall(url)


def check_template(url: str) -> str:
    """Return a URL with a short value in place of each field, to be checked like any other URL.

    Raises:
        RequestRefused: A field is unknown or in the host, or the URL might become too long.
    """
    unknown = sorted(set(names(url)) - set(FIELDS))
    if unknown:
        raise RequestRefused(
            f"WsServer: no field {{{unknown[0]}}}; there are {', '.join(FIELDS)}; a brace of the "
            "URL's own is written %7B"
        )
    authority = _AUTHORITY.match(url)
    if authority is not None and names(authority[0]):
        raise RequestRefused("WsServer: a field may stand in the path and in the query only")
    longest = len(_FIELD.sub("", url).encode(errors="replace")) + MAX_VALUE_BYTES * len(names(url))
    if names(url) and longest > MAX_URL_BYTES:
        raise RequestRefused(
            f"WsServer: with {MAX_VALUE_BYTES} bytes for each field it may be longer than "
            f"{MAX_URL_BYTES} bytes"
        )
    return _FIELD.sub("x", url)


def filled(url: str, values: Mapping[str, str]) -> str:
    """Return a URL with the values of its fields; a missing value is empty."""
    query = url.find("?")

    def value(field: re.Match[str]) -> str:
        text = values.get(field[1], "")
        in_path = query < 0 or field.start() < query
        return _quoted(_of_path(text) if in_path else text)

    return _FIELD.sub(value, url)


def _of_path(text: str) -> str:
    """Return a value without characters that could lead to another path of the server."""
    plain = re.sub(r"[/\\]", "_", text)
    return plain if plain.strip(".") else "_" * len(plain)


def _quoted(text: str) -> str:
    """Return a value percent-encoded; a value that is too long is cut between two characters."""
    encoded = ""
    for character in text:
        more = quote(character, safe="", errors="replace")
        if len(encoded) + len(more) > MAX_VALUE_BYTES:
            break
        encoded += more
    return encoded
