"""The URI that a URL with letters of any script stands for."""

from __future__ import annotations

import re
from urllib.parse import quote

# Those of RFC 3986, 2.2, that a path or a query may hold beside letters, digits and - . _ ~; and #,
# which ends them.
_KEPT = "/?:@!$&'()*+,;=#"
# A name (RFC 3986, 3.2.2) without escapes, which no resolver knows; or an address in brackets,
# perhaps with the interface that it is of; then perhaps a port.
_AUTHORITY = re.compile(
    r"(?:[\w.~!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\])(?::[0-9]*)?", re.ASCII
)


def uri_of(url: str) -> str:
    """Return a URL as it is requested (RFC 3987, 3.1): printable ASCII, with nothing lost.

    What is escaped stays as it is, what is not and must be is escaped as UTF-8, and so is a % that
    begins no escape. A host beyond ASCII comes in its IDNA form. A URL that is a URI already comes
    back unchanged.

    Args:
        url: scheme://host[:port][/path][?query].

    Raises:
        UnicodeError: The host cannot be a name; or the rest holds half a surrogate.
    """
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    return scheme + separator + _ascii_host(authority) + escaped(rest[len(authority) :])


def escaped(text: str) -> str:
    """Return a path, perhaps with a query, as a URI has it: see `uri_of`.

    Raises:
        UnicodeError: It holds half a surrogate.
    """
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe=_KEPT + "%")


def _ascii_host(authority: str) -> str:
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, colon, port = authority, "", ""
    known = host.encode("idna").decode() + colon + port
    if not _AUTHORITY.fullmatch(known):
        raise UnicodeError("a character that no host name has")
    return known
