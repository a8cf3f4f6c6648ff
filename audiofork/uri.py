"""Converts a URL with letters of any script to a URI."""

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
    """Return a URL as the request contains it (RFC 3987, 3.1): printable ASCII, with nothing lost.

    Existing escapes stay. Other characters that need it are escaped as UTF-8, and so is a % that
    begins no escape. A non-ASCII host gets its IDNA form. A URL that is already a URI is returned
    unchanged.

    Args:
        url: scheme://host[:port][/path][?query].

    Raises:
        UnicodeError: The host is not a valid name, or the rest contains half a surrogate pair.
    """
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    return scheme + separator + _ascii_host(authority) + escaped(rest[len(authority) :])


def readable_host(host: str) -> str:
    """Return a host in its Unicode form, so that it matches in either form of IDNA."""
    try:
        return host.encode("idna").decode("idna")
    except UnicodeError:
        return host


def escaped(text: str) -> str:
    """Return a path, perhaps with a query, in the form of a URI: see `uri_of`.

    Raises:
        UnicodeError: It contains half a surrogate pair.
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
