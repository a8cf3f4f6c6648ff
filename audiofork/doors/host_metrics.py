"""Metrics of a relay host for Prometheus; docs/metrics.md has them as a table."""

from __future__ import annotations

import platform

from audiofork.cluster.figures import HostFigures
from audiofork.doors import metric_table as table
from audiofork.doors.exposition import Exposition, Kind, Metric
from audiofork.doors.process_metrics import write_process
from audiofork.link.messages import LATENCY_BUCKETS_MS
from audiofork.system import usage_of

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
# Other names than those of a daemon, whose counts have the same frames: sums over both stay right.
_P = "audiofork_host_"
_LATENCY_BOUNDS_S = tuple(bound / 1000 for bound in LATENCY_BUCKETS_MS)

INFO = Metric(
    _P + "info", GAUGE, "1, with the name and the zone of the relay host.", {"host": (), "zone": ()}
)
CONNECTED = Metric(_P + "broker_up", GAUGE, "1 while it is connected to a NATS server, else 0.")
DRAINING = Metric(_P + "draining", GAUGE, "1 while it takes no more forks, else 0.")
CAPACITY = Metric(_P + "capacity", GAUGE, "The most forks that it takes.")
FORKS = Metric(_P + "forks", GAUGE, "Its forks.", {"asterisk": ()})
CONTROLLERS = Metric(
    _P + "controller_up", GAUGE,
    "1 while the controller of an Asterisk is heard, else 0; absent if none ever was.",
    {"asterisk": ()},
)  # fmt: skip
FRAMES_IN = Metric(_P + "frames_in_total", COUNTER, "Frames of 20 ms that Asterisk has brought.")
FRAMES_SENT = Metric(_P + "frames_sent_total", COUNTER, "Those that were sent to servers.")
FRAMES_DROPPED = Metric(
    _P + "frames_dropped_total", COUNTER, "Those that were dropped, as a server was away or slow."
)
FRAMES_MISSING = Metric(
    _P + "frames_missing_total", COUNTER,
    "Frames that Asterisk should have brought, and did not.",
)  # fmt: skip
FRAMES_WAITING = Metric(_P + "frames_waiting", GAUGE, "Frames that wait for their servers now.")
LATENCY = Metric(
    _P + "latency_seconds", HISTOGRAM,
    "From the read of a frame to its acknowledgement by the server's TCP.",
)  # fmt: skip
UNACKED = Metric(
    _P + "unacked_bytes", GAUGE, "Bytes that the servers' TCP has not acknowledged."
)  # fmt: skip

METRICS = tuple(one for one in list(globals().values()) if isinstance(one, Metric))
"""Those that a daemon does not have; besides there are `BUILD` and those of the process."""


class HostMetrics:
    """Writes the metrics of a relay host; made only if they are asked for."""

    def __init__(self) -> None:
        own = usage_of()
        self._started_at = own.started if own is not None else None

    def render(self, figures: HostFigures, *, open_metrics: bool = False) -> str:
        """Return all metrics as text; see `exposition.py`."""
        text, beat, counts = Exposition(open_metrics=open_metrics), figures.beat, figures.counts
        text.each(table.BUILD, {(beat.version, platform.python_version()): 1})
        text.each(INFO, {(beat.name, beat.zone): 1})
        text.one(CONNECTED, int(figures.is_connected))
        text.one(DRAINING, int(beat.is_draining))
        text.one(CAPACITY, beat.capacity)
        text.each(FORKS, {(asterisk,): count for asterisk, count in figures.forks.items()})
        text.each(CONTROLLERS, {(name,): int(is_up) for name, is_up in figures.controllers.items()})
        text.one(FRAMES_IN, counts["frames_in"])
        text.one(FRAMES_SENT, counts["frames_sent"])
        text.one(FRAMES_DROPPED, counts["frames_dropped"])
        text.one(FRAMES_MISSING, counts["frames_missing"])
        text.one(FRAMES_WAITING, figures.waiting)
        text.histogram(LATENCY, _LATENCY_BOUNDS_S, figures.latency, figures.latency_sum_s)
        text.one(UNACKED, figures.unacked_bytes)
        write_process(text, self._started_at)
        return text.text
