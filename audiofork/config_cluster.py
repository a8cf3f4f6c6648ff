"""The options of a cluster: controllers and relays on several hosts, and the broker between."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from audiofork.config_values import number, text, whole
from audiofork.config_values import option as _option

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_SERVER = re.compile(r"(nats|tls)://[^\s,@/]+")


def is_name(value: str) -> bool:
    """Return whether a text may be the name of a host, or of an Asterisk, in a cluster."""
    return _NAME.fullmatch(value) is not None


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("letters, digits, - and _, 63 at most")
    return value


def _name_or_nothing(value: str) -> str:
    return _name(value) if value else ""


def _servers(value: str) -> tuple[str, ...]:
    found = tuple(value.replace(",", " ").split())
    for one in found:
        if not _SERVER.fullmatch(one):
            raise ValueError("nats://HOST:PORT or tls://HOST:PORT, several with spaces between")
    return found


@dataclass(frozen=True)
class ClusterConfig:
    """Several hosts: `audiofork control` beside each Asterisk, `audiofork relay` anywhere."""

    servers: tuple[str, ...] = _option(
        "",
        _servers,
        "The NATS servers, such as tls://a.example.org:4222 tls://b.example.org:4222; empty: there "
        "is no cluster, and the rest of this section has no meaning.",
    )
    name: str = _option(
        "",
        _name_or_nothing,
        "The name of this controller or relay, which no other of the cluster has; empty: that of "
        "the host, up to its first dot.",
    )
    asterisk: str = _option(
        "asterisk",
        _name,
        "What the cluster calls the Asterisk of [asterisk]. Several controllers with the same name "
        "here look after the same Asterisk: one leads, the others stand by.",
    )
    zone: str = _option(
        "",
        _name_or_nothing,
        "Where this host is, such as a data centre: forks go to relays of the same zone as long as "
        "these have room.",
    )
    capacity: int = _option(
        "500", whole(1, 100_000), "The most forks that this host relays; for `audiofork relay`."
    )
    replicas: int = _option(
        "1",
        whole(1, 5),
        "How many NATS servers keep each entry: 3 where there are three or more servers, so that "
        "one of them may die. A higher number than before counts when a controller starts.",
    )
    credentials_file: str = _option(
        "", text, "A credentials file (.creds) of NATS, with the user's JWT and seed; empty: none."
    )
    nkey_file: str = _option(
        "", text, "A file with the seed of an NKey of NATS, in place of credentials; empty: none."
    )
    ca_file: str = _option(
        "",
        text,
        "A PEM file of the authorities that may sign the NATS servers' certificates; empty: the "
        "system's.",
    )
    dead_after: float = _option(
        "0.7",
        number(0.3, 60),
        "After so many seconds without a sign of life a relay, or a leading controller, counts as "
        "dead; the same value on all hosts.",
    )

    drain_timeout: float = _option(
        "60",
        number(0, 3600),
        "How many seconds a relay host that is told to stop (SIGTERM) waits until its forks have "
        "moved to others without a gap; 0: it stops at once, and they have one.",
    )
    start_wait: float = _option(
        "0",
        number(0, 60),
        "While the NATS servers are away, running forks go on and none can start: how many seconds "
        "a start waits for them; 0: it is refused at once.",
    )

    @property
    def own_name(self) -> str:
        """The name of this controller or relay."""
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:63]
        return self.name or host or "audiofork"
