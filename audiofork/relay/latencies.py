"""Counts how long frames take from their read to the acknowledgement by the server's TCP."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from audiofork.link.messages import LATENCY_BUCKETS_MS

_BOUNDS_S = tuple(bound / 1000 for bound in LATENCY_BUCKETS_MS)


class Latencies:
    """A histogram of all forks of a process; owned by its worker.

    Attributes:
        sum_s: What was added, together, in seconds.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a frame."""
        self._counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> tuple[int, ...]:
        """Return how many took no longer than each bound, and infinity; empty: none was added."""
        counts = tuple(accumulate(self._counts))
        return counts if counts[-1] else ()
