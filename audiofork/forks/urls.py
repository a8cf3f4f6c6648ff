"""Checks which URLs audio may go to."""

from __future__ import annotations

import logging
import re
from urllib.parse import SplitResult, urlsplit

from audiofork.addresses import address_of_host, is_public
from audiofork.errors import Refusal, RequestRefused
from audiofork.text import reason_of
from audiofork.uri import uri_of
from audiofork.url_patterns import PORTS, is_among, leads_elsewhere

log = logging.getLogger(__name__)

# AMI discards lines longer than 1024 bytes, and `WsServer: ` comes before the URL.
MAX_URL_BYTES = 1000
_PLAIN_AUTHORITY = re.compile(r"(?:\[[^\]@]*\]|[^:@\[\]]+)(?::[0-9]*)?")


def check_url(url: str, allowed: tuple[str, ...], *, allow_private: bool = True) -> None:
    """Raise unless audio may go to this URL.

    A name is not resolved here; its addresses are checked when the connection is opened.

    Args:
        url: The URL as in the request.
        allowed: Patterns as in `[security] allow_urls`.
        allow_private: Whether its host may be a private address.

    Raises:
        RequestRefused: The text names the rule that the URL breaks; it contains no part of the URL
            that may be secret.
    """
    if len(url.encode(errors="replace")) > MAX_URL_BYTES:
        raise RequestRefused(f"WsServer: longer than {MAX_URL_BYTES} bytes")
    if _may_hold_credentials(url):
        raise RequestRefused("WsServer: credentials are not allowed in a URL")
    try:
        parts = urlsplit(url)
    except ValueError:  # its text is not passed on, because it quotes the host
        raise RequestRefused("WsServer: not a URL") from None
    try:
        port = parts.port
    except ValueError:
        raise RequestRefused("WsServer: not a URL: the port is no number up to 65535") from None
    if parts.scheme not in PORTS:
        raise RequestRefused("WsServer: the scheme must be ws or wss")
    if not parts.hostname:
        raise RequestRefused("WsServer: no host")
    if "#" in url:
        raise RequestRefused("WsServer: a fragment is not allowed")
    if port == 0:
        raise RequestRefused("WsServer: port 0 is not allowed")
    if not url.isprintable() or " " in url:
        raise RequestRefused("WsServer: blanks are not allowed in a URL")
    try:
        requested = urlsplit(uri_of(url))
    except UnicodeError as exc:
        raise RequestRefused(f"WsServer: not a host name: {reason_of(exc)}") from exc
    _check_requested(requested, allowed, allow_private)


def hosts_at_will(allowed: tuple[str, ...]) -> bool:
    """Return whether patterns let whoever may start a fork choose any host.

    `*.example.org` names the hosts of one owner; a `*` anywhere else may stand for another's:
    `wss://example.org*` allows example.org.example.net.
    """
    hosts = (re.match(r"[^/]*//(\[[^]]*\]|[^:/]*)", pattern) for pattern in allowed)
    return any(
        host is not None and "*" in re.sub(r"^\*(?=\.[^.*]+\.)", "", host[1]) for host in hosts
    )


def warn_of_hosts_at_will(allowed: tuple[str, ...]) -> None:
    """Log a warning if patterns let forks go to any host."""
    if hosts_at_will(allowed):
        log.warning(
            "[security] allow_urls names no host: whoever may start a fork, such as each AMI user "
            "with write = user, can send the audio of any call anywhere"
        )


def _may_hold_credentials(url: str) -> bool:
    """Return whether the URL may contain a password: it has an @ and no plain host.

    The password may be in an unusual place: ws:user:pw@host, ws://user:pa/ss@host.
    """
    authority = re.split(r"[/?#]", url.partition("://")[2])[0]
    return "@" in url and not _PLAIN_AUTHORITY.fullmatch(authority)


def _check_requested(requested: SplitResult, allowed: tuple[str, ...], allow_private: bool) -> None:
    """Raise unless this URI is allowed; the server may unescape its path."""
    if leads_elsewhere(requested):
        raise RequestRefused("WsServer: .. is not allowed in a path")
    if not is_among(requested, allowed):
        raise RequestRefused(
            "WsServer: not among the URLs of [security] allow_urls: name its server there",
            Refusal.NOT_ALLOWED,
        )
    address = address_of_host(requested.hostname or "")
    if not allow_private and address is not None and not is_public(address):
        raise RequestRefused(
            f"WsServer: {address} is a private address, which [security] allow_private forbids",
            Refusal.NOT_ALLOWED,
        )
