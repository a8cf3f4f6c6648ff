"""What a fork adds to the WebSocket handshake: headers, credentials, subprotocols.

They come from the options H, A and s. A ValueError here says what is expected, and never repeats a
value, because that may be a secret.
"""

from __future__ import annotations

import base64
import re

# A token of HTTP (RFC 9110, 5.6.2): the name of a header or of a subprotocol.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Headers of the handshake itself, and those that would change how the data after it is read.
_RESERVED = frozenset(
    {"host", "upgrade", "connection", "content-length", "transfer-encoding", "te", "trailer"}
)
_RESERVED_PREFIX = "sec-websocket-"
MAX_HEADERS = 32


def headers(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `name:value&name:value`; drop blanks around names and values.

    Raises:
        ValueError: The text is not of this form, or a name is reserved.
    """
    found = [header(part) for part in text.split("&")]
    if len(found) > MAX_HEADERS:
        raise ValueError(f"{MAX_HEADERS} headers at most")
    return tuple(found)


def header(part: str) -> tuple[str, str]:
    """Parse `name:value`; raises as `headers`."""
    name, colon, value = part.partition(":")
    name, value = name.strip(" \t"), value.strip(" \t")
    if not (colon and _TOKEN.fullmatch(name)):
        raise ValueError("name:value, several joined by &")
    if name.lower() in _RESERVED or name.lower().startswith(_RESERVED_PREFIX):
        raise ValueError(f"no header {name}: it belongs to the handshake itself")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"printable ASCII alone as the value of {name}")
    return name, value


def authorization(text: str) -> str:
    """Return the header Authorization for `token` (Bearer) or `user:password` (Basic).

    Raises:
        ValueError: The text is empty, or not a token.
    """
    if ":" in text:
        return f"Basic {base64.b64encode(text.encode()).decode()}"
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token without blanks, or user:password")
    return f"Bearer {text}"


def subprotocols(text: str) -> tuple[str, ...]:
    """Parse `name` or `name&name`, the preferred one first.

    Raises:
        ValueError: A name is missing, is not a token, or appears twice.
    """
    names = tuple(name.strip(" \t") for name in text.split("&"))
    # A token may contain &, but here it separates names; a comma would separate them in the header.
    if not all(_TOKEN.fullmatch(name) for name in names) or len(set(names)) < len(names):
        raise ValueError("names of subprotocols, each once, several joined by &")
    return names
