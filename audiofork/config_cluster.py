"""The options of a cluster: controllers and relays on several hosts, and the broker between."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from audiofork.addresses import IPNetwork
from audiofork.config_values import networks, number, text, texts, whole
from audiofork.config_values import option as _option

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_SERVER = re.compile(r"(nats|tls)://[^\s,@/]+")
_SEED = re.compile(r"SU[A-Z2-7]{56}")
_CREDENTIALS = re.compile(
    r"-+BEGIN NATS USER JWT-+\n(?P<jwt>[\w.-]+)\n-+END NATS USER JWT-+\n.*"
    r"-+BEGIN USER NKEY SEED-+\n(?P<seed>SU[A-Z2-7]{56})\n-+END USER NKEY SEED-+",
    re.DOTALL,
)
NAME_RULE = "letters, digits, - and _, 63 at most"


def is_name(value: str) -> bool:
    """Return whether a text may be the name of a host, or of an Asterisk, in a cluster."""
    return _NAME.fullmatch(value) is not None


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(NAME_RULE)
    return value


def name_or_nothing(value: str) -> str:
    """Return a name in a cluster, or nothing; raises ValueError."""
    return _name(value) if value else ""


def _servers(value: str) -> tuple[str, ...]:
    found = tuple(value.replace(",", " ").split())
    for one in found:
        if not _SERVER.fullmatch(one):
            raise ValueError("nats://HOST:PORT or tls://HOST:PORT, several with spaces between")
    if len({one.partition(":")[0] for one in found}) > 1:
        raise ValueError("tls:// before all servers, or nats:// before all")
    return found


def _seed(value: str) -> str:
    if value and not _SEED.fullmatch(value):
        raise ValueError("the seed of a user's NKey, SU and 56 more letters and digits, alone")
    return value


def _credentials(value: str) -> str:
    """Return a credentials file of NATS without all that stands around its JWT and its seed."""
    kept = texts(value)
    if kept and not _CREDENTIALS.search(kept):
        raise ValueError("a credentials file of NATS, with the JWT and the seed of a user")
    return kept


@dataclass(frozen=True)
class ClusterConfig:
    """Several hosts: `audiofork control` beside each Asterisk, `audiofork relay` anywhere."""

    servers: tuple[str, ...] = _option(
        "",
        _servers,
        "The NATS servers, such as tls://a.example.org:4222 tls://b.example.org:4222; with nats:// "
        "what they are sent, secrets of forks among it, may go in the clear. Empty: there is no "
        "cluster, and the rest of this section has no meaning.",
    )
    name: str = _option(
        "",
        name_or_nothing,
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
        name_or_nothing,
        "Where this host is, such as a data centre: forks go to relays of the same zone as long as "
        "these have room.",
    )
    capacity: int = _option(
        "500", whole(1, 100_000), "The most forks that this host relays; for `audiofork relay`."
    )
    legs_from: tuple[IPNetwork, ...] = _option(
        "",
        networks,
        "Addresses and networks that the audio of this controller's Asterisk comes from; empty: "
        "any that [audiosocket] allow of a relay host lets in. What comes from elsewhere is no leg "
        "of its forks, even with the right UUID.",
    )
    replicas: int = _option(
        "1",
        whole(1, 5),
        "How many NATS servers keep each entry: 3 where there are three or more servers, so that "
        "one of them may die. A higher number than before counts when a controller starts.",
    )
    nkey: str = _option(
        "",
        _seed,
        "The seed of the NKey that NATS knows this controller or relay by; empty: none. Use "
        "nkey_file to keep it out of this file.",
        may_be_shown=False,
    )
    nkey_file: str = _option(
        "",
        text,
        "A file that contains the seed; under systemd it may be ${CREDENTIALS_DIRECTORY}/NAME.",
    )
    credentials: str = _option(
        "",
        _credentials,
        "In place of an NKey alone: the content of a credentials file (.creds) of NATS. Use "
        "credentials_file to keep it out of this file.",
        may_be_shown=False,
    )
    credentials_file: str = _option(
        "",
        text,
        "A credentials file; under systemd it may be ${CREDENTIALS_DIRECTORY}/NAME.",
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
        "moved to others without a gap; 0: it stops at once, and they have one. Calls whose other "
        "party is a server move 15 s before that, also of a host that is drained by command.",
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
