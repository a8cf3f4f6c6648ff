"""How a relay host is, for those who look at it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from audiofork.cluster.beats import Beat


@dataclass(frozen=True, slots=True)
class HostFigures:
    """A relay host as it is now.

    Attributes:
        beat: What it tells the cluster.
        is_connected: Whether it is connected to NATS, as far as known.
        forks: How many it has of each Asterisk.
        controllers: Whether the controller of each Asterisk is heard.
        counts: The sums of what its forks have counted, also those that have ended; by the fields
            of `ForkStats`.
        waiting: Frames that wait for their servers now.
        unacked_bytes: Bytes that the servers' TCP has not acknowledged.
        latency, latency_sum_s: As in `StatsTaken`.
    """

    beat: Beat
    is_connected: bool
    forks: Mapping[str, int]
    controllers: Mapping[str, bool]
    counts: Mapping[str, int]
    waiting: int
    unacked_bytes: int
    latency: Sequence[int]
    latency_sum_s: float
