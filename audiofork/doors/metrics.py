"""Metrics of the daemon for Prometheus: counts events, asks the relay, and writes all as text."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import audiofork
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.reconnecting import ReconnectingClient
from audiofork.asterisk.versions import UNKNOWN
from audiofork.doors import metric_table as table
from audiofork.doors.cluster_metrics import ClusterState, write_cluster
from audiofork.doors.exposition import Exposition, Histogram
from audiofork.doors.loop_lag import LoopLag
from audiofork.doors.process_metrics import write_process
from audiofork.forks.counters import Counters
from audiofork.forks.events import DomainEvent, Reconnecting, Started
from audiofork.forks.lifecycle import Away
from audiofork.forks.registry import Forks
from audiofork.forks.totals import Totals
from audiofork.link.messages import LATENCY_BUCKETS_MS, StatsTaken
from audiofork.link.relay import Relay, WorkerState
from audiofork.system import usage_of

if TYPE_CHECKING:
    from audiofork.asterisk.ari import Ari

START_BOUNDS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
_LATENCY_BOUNDS_S = tuple(bound / 1000 for bound in LATENCY_BUCKETS_MS)
# How many forks are added up in one turn of the event loop, which audio may wait for: 0.3 ms.
_FORKS_AT_ONCE = 100


class Metrics:
    """Subscribes to the events of forks; owned by the daemon, and made only if it is asked for.

    `start` and `close` frame its life. `render` may be called at any time, also while another call
    is under way.

    Args:
        forks: The registry.
        counters: Counts the same events.
        relay: What relays the audio.
        ami: The connection to AMI.
        ari: The one to ARI; None: it is not used.
        cluster: The cluster; None: there is none.
    """

    def __init__(
        self,
        forks: Forks,
        counters: Counters,
        relay: Relay,
        ami: Ami,
        ari: Ari | None,
        cluster: ClusterState | None = None,
    ) -> None:
        self._forks = forks
        self._counters = counters
        self._relay = relay
        self._ami = ami
        self._ari = ari
        self._cluster = cluster
        self._totals = Totals()
        self._starts = Histogram(START_BOUNDS_S)
        self._retries = 0
        self._latency: tuple[Sequence[int], float] = (), 0.0
        self._loop_lag = LoopLag()
        self._relays_used = _RelaysUsed()
        own = usage_of()
        self._started_at = own.started if own is not None else None

    def start(self) -> None:
        """Begin to measure how late the event loop is."""
        self._loop_lag.start()

    def close(self) -> None:
        """Stop that."""
        self._loop_lag.close()

    def on_event(self, event: DomainEvent) -> None:
        """Count an event."""
        self._totals.on_event(event)
        if isinstance(event, Started) and not event.fork.from_earlier_run:
            self._starts.add(event.after_s)
        elif isinstance(event, Reconnecting) and event.what is Away.SERVER:
            self._retries += 1

    async def render(self, *, open_metrics: bool = False) -> str:
        """Return all metrics as text; see `exposition.py`.

        If the relay does not answer in time, the counts are those of the last answer, and what
        waits is left out.

        Args:
            open_metrics: Whether the text is OpenMetrics.
        """
        taken = await self._take()
        text = Exposition(open_metrics=open_metrics)
        self._write_asterisk(text)
        self._write_forks(text)
        self._write_audio(text, taken)
        self._write_servers(text, taken)
        self._write_relays(text)
        write_cluster(text, self._cluster)
        write_process(text, self._started_at)
        return text.text

    async def _take(self) -> StatsTaken | None:
        """Ask the relay, and take its counts, some forks in each turn of the event loop."""
        asked = self._totals.ask()
        try:
            taken = await self._forks.take_stats()
        except TimeoutError:
            return None
        self._latency = taken.latency, taken.latency_sum_s
        rest = iter(taken.stats.items())
        while some := dict(islice(rest, _FORKS_AT_ONCE)):
            self._totals.take(some, asked)
            await asyncio.sleep(0)
        return taken

    # --- The parts of the text ---

    def _write_asterisk(self, text: Exposition) -> None:
        versions = (audiofork.__version__, platform.python_version())
        text.each(table.BUILD, {versions: 1})
        version = self._ami.version
        text.each(table.ASTERISK, {} if version is UNKNOWN else {(str(version),): 1})
        text.one(table.AMI_UP, int(self._ami.is_up))
        text.one(table.AMI_RTT, self._ami.rtt_s or None)
        text.one(table.AMI_CONNECTS, self._ami.connects)
        ari: ReconnectingClient | None = self._ari
        text.one(table.ARI_UP, int(ari.is_up) if ari else None)
        text.one(table.ARI_RTT, (ari and ari.rtt_s) or None)
        text.one(table.ARI_CONNECTS, ari.connects if ari else None)
        lags = self._loop_lag.lags
        text.histogram(table.LOOP_LAG, lags.bounds_s, lags.cumulative, lags.sum_s)
        attacks = self._counters.attacks
        text.each(table.ATTACKS, {(kind.value,): count for kind, count in attacks.items()})

    def _write_forks(self, text: Exposition) -> None:
        counters, starts = self._counters, self._starts
        forks: Mapping[tuple[str, ...], int] = {
            (state.value, direction.value): count
            for (state, direction), count in self._forks.count().items()
            if state in table.STATES
        }
        text.each(table.FORKS, forks)
        text.one(table.REQUESTED, counters.requested)
        text.one(table.STARTED, counters.started)
        text.one(table.FAILED, counters.failed)
        text.each(table.ENDED, {(why.value,): count for why, count in counters.ended.items()})
        text.each(table.REFUSED, {(why.value,): count for why, count in counters.refusals.items()})
        text.histogram(table.START, starts.bounds_s, starts.cumulative, starts.sum_s)
        text.one(table.LEGS_LEFT, self._forks.legs_left)
        text.one(table.LEGS_LOST, counters.legs_lost)

    def _write_audio(self, text: Exposition, taken: StatsTaken | None) -> None:
        counts = self._totals.counts()
        text.one(table.FRAMES_IN, counts["frames_in"])
        text.one(table.FRAMES_SENT, counts["frames_sent"])
        text.one(table.FRAMES_DROPPED, counts["frames_dropped"])
        text.one(table.FRAMES_MISSING, counts["frames_missing"])
        stats = taken.stats.values() if taken is not None else ()
        waiting = sum(one.frames_in - one.frames_sent - one.frames_dropped for one in stats)
        text.one(table.FRAMES_WAITING, None if taken is None else waiting)
        text.histogram(table.LATENCY, _LATENCY_BOUNDS_S, *self._latency)
        fates = ("played", "cleared", "unplayed")
        text.each(table.PLAYED, {(fate,): counts[f"frames_{fate}"] for fate in fates})
        text.one(table.UNDERRUNS, counts["underruns"])
        text.one(table.COMMANDS_REFUSED, counts["commands_refused"])
        text.one(table.IGNORED, counts["messages_ignored"])
        text.one(table.UNUSED, counts["messages_unused"])

    def _write_servers(self, text: Exposition, taken: StatsTaken | None) -> None:
        unacked = rtt_s = None
        if taken is not None:
            stats = taken.stats.values()
            unacked = sum(one.unacked_bytes for one in stats)
            rtt_s = max((one.rtt_ms for one in stats), default=0.0) / 1000
        text.one(table.UNACKED, unacked)
        text.one(table.RTT_MAX, rtt_s)
        text.one(table.RECONNECTS, self._counters.reconnects)
        text.one(table.RETRIES, self._retries)

    def _write_relays(self, text: Exposition) -> None:
        workers = self._relay.workers
        up = sum(worker.is_up for worker in workers)
        text.each(table.RELAYS, {("up",): up, ("down",): len(workers) - up})
        named = [(one.name or str(number), one) for number, one in enumerate(workers, 1)]
        text.each(table.RELAY_FORKS, {(number,): worker.forks for number, worker in named})
        answered = [(number, worker.rtt_s) for number, worker in named if worker.rtt_s]
        text.each(table.RELAY_RTT, {(number,): rtt_s for number, rtt_s in answered})
        self._relays_used.look(workers)
        text.each(table.RELAY_CPU, self._relays_used.cpu_s)
        text.each(table.RELAY_MEMORY, self._relays_used.resident_bytes)
        text.one(table.RELAYS_LOST, self._counters.relays_lost)


class _RelaysUsed:
    """What relay processes use, each by the number of its worker, from 1.

    Attributes:
        cpu_s: CPU time in seconds, with that of processes that were replaced.
        resident_bytes: Resident memory of those that run.
    """

    def __init__(self) -> None:
        self.cpu_s: dict[tuple[str, ...], float] = {}
        self.resident_bytes: dict[tuple[str, ...], int] = {}
        # Of each: its process, what those before have used, and what it has used at last.
        self._processes: dict[tuple[str, ...], tuple[int, float, float]] = {}

    def look(self, workers: Sequence[WorkerState]) -> None:
        """Bring it up to date."""
        self.resident_bytes.clear()
        for number, worker in enumerate(workers, 1):
            if worker.pid and (usage := usage_of(worker.pid)) is not None:
                self.resident_bytes[str(number),] = usage.resident_bytes
                self._add((str(number),), worker.pid, usage.cpu_s)

    def _add(self, key: tuple[str, ...], pid: int, cpu_s: float) -> None:
        known, before, latest = self._processes.get(key, (pid, 0.0, 0.0))
        if known != pid:
            before, latest = before + latest, 0.0
        latest = max(latest, cpu_s)  # of one that is ending, the kernel may tell less
        self._processes[key] = pid, before, latest
        self.cpu_s[key] = before + latest
