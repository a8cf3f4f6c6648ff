"""What passes through NATS servers, as their monitoring tells."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self

from testbed.nats import NatsServer

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Counts:
    """What has passed so far.

    Attributes:
        sent, received: Messages that clients have sent, and have got.
        client_bytes: The payloads of both.
        between: Messages between the servers, and `between_bytes` their payloads.
        writes: Entries that were written to streams, those of removed keys, too.
        stored_bytes: What all streams hold; of each stream one copy.
    """

    sent: int
    received: int
    client_bytes: int
    between: int
    between_bytes: int
    writes: int
    stored_bytes: int

    def __sub__(self, other: Self) -> Counts:
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def messages(self) -> int:
        """Messages of clients, both ways."""
        return self.sent + self.received


def counts(servers: Sequence[NatsServer]) -> Counts:
    """Return what has passed through the servers so far; of clients, those that are connected."""
    clients = [one for server in servers for one in _of(server, "connz", "connections")]
    routes = [one for server in servers for one in _of(server, "routez", "routes")]
    streams = _streams(servers)
    return Counts(
        sent=sum(one["in_msgs"] for one in clients),
        received=sum(one["out_msgs"] for one in clients),
        client_bytes=sum(one["in_bytes"] + one["out_bytes"] for one in clients),
        between=sum(one["in_msgs"] for one in routes),
        between_bytes=sum(one["in_bytes"] for one in routes),
        writes=sum(writes for writes, _ in streams.values()),
        stored_bytes=sum(stored for _, stored in streams.values()),
    )


def _streams(servers: Sequence[NatsServer]) -> dict[str, tuple[int, int]]:
    """Return the writes to each stream, and the bytes that it holds, by its name."""
    found: dict[str, tuple[int, int]] = {}
    for server in servers:
        for account in _of(server, "jsz?streams=true", "account_details"):
            for stream in account.get("stream_detail", ()):
                state = stream["state"]
                here = state["last_seq"], state["bytes"]
                found[stream["name"]] = max(here, found.get(stream["name"], here))
    return found


def _of(server: NatsServer, what: str, part: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{server.monitoring_url}/{what}", timeout=_TIMEOUT_S) as answer:
        return list(json.load(answer).get(part) or ())
