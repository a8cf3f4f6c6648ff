"""The patterns of URLs that options such as `[security] allow_urls` have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, unquote, urlsplit

from audiofork.uri import escaped, readable_host, uri_of

ANYWHERE = ("*://*",)
PORTS = {"ws": 80, "wss": 443}


def is_allowed(url: str, patterns: Iterable[str]) -> bool:
    """Return whether a text is a URL that matches one of several patterns."""
    try:
        parts = urlsplit(uri_of(url))
        return not leads_elsewhere(parts) and is_among(parts, patterns)
    except (ValueError, KeyError):  # no URL, or another scheme
        return False


def leads_elsewhere(url: SplitResult) -> bool:
    """Return whether a server that resolves a path would find one outside the pattern."""
    return ".." in re.split(r"[/\\]", unquote(url.path))


def is_among(url: SplitResult, patterns: Iterable[str]) -> bool:
    """Return whether a URI of ws or wss matches one of several patterns."""
    return any(_matches(url, pattern) for pattern in patterns)


def _matches(url: SplitResult, pattern: str) -> bool:
    """Return whether a URI matches a pattern; a part that the pattern omits may be anything."""
    scheme, _, rest = pattern.partition("://")
    authority, slash, path = rest.partition("/")
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, "*"
    url_port = url.port or PORTS[url.scheme]
    return (
        scheme.lower() in (url.scheme, "*")
        and _fits(readable_host(url.hostname or ""), readable_host(host.strip("[]").lower()))
        and port in ("*", str(url_port))
        and (not slash or path in ("", "*") or _fits(url.path, escaped("/" + path)))
    )


def _fits(text: str, pattern: str) -> bool:
    """Return whether a text matches a pattern in which only * is special."""
    return fnmatchcase(text, re.sub(r"[\[?]", r"[\g<0>]", pattern))
