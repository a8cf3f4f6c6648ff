"""Shares forks among workers that may die: what relay processes and relay hosts have in common."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from audiofork.config import Address
from audiofork.link.messages import (
    Adopt,
    CheckLeg,
    Command,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    ForkStats,
    HeldFork,
    LevelsTaken,
    RelayAway,
    RelayLost,
    Report,
    SendReport,
    StatsTaken,
    StrangersRefused,
    TakeLevels,
    TakeStats,
    WatchReport,
)
from audiofork.link.relay import Reports, WorkerState
from audiofork.link.stream import Held
from audiofork.link.workers import NO_LATENCY, Latency, RelayWorker

log = logging.getLogger(__name__)

# How long forks wait for a worker while there is none: a relay process is started again in less,
# even on a machine that is much too busy.
NO_WORKER_TIMEOUT_S = 20.0
STATS_TIMEOUT_S = 1.0  # shorter than the registry waits for the answer


@dataclass
class _Asked:
    """A TakeStats that some workers have not answered yet."""

    waits_for: set[RelayWorker]
    stats: dict[str, ForkStats] = field(default_factory=dict)


class SharedRelay(ABC):
    """Implements what `Relay` says of forks, for workers that are somewhere else.

    The forks of a worker that dies are reported in a RelayLost as soon as another can take them, in
    a RelayAway before that if they have to wait.

    Args:
        report: Called with each report.
        no_worker: Why a fork is refused while there is no worker, for people.
        patience_s: How long forks wait for a worker while there is none.
    """

    def __init__(
        self, report: SendReport, no_worker: str, patience_s: float = NO_WORKER_TIMEOUT_S
    ) -> None:
        self._reports = Reports(report)
        self._no_worker = no_worker
        self._patience_s = patience_s
        self._owners: dict[str, RelayWorker] = {}
        self._orphaned: dict[str, float] = {}  # when each fork without a worker lost it
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._asked: dict[int, _Asked] = {}
        self._latency_of_dead = NO_LATENCY

    @abstractmethod
    def _all_workers(self) -> Sequence[RelayWorker]:
        """Return all workers, also those that do not work now, always in the same order."""

    @abstractmethod
    def _choose(self, spec: ForkSpec) -> RelayWorker | None:
        """Return the worker that a new fork is to have; None: there is none that can take it."""

    # --- Towards the daemon ---

    @property
    def addresses(self) -> Sequence[Address]:
        return [worker.leg_address for worker in self._all_workers()]

    def address_of(self, fork_id: str) -> Address:
        worker = self._owners.get(fork_id) or self._all_workers()[0]
        return worker.leg_address

    def host_of(self, fork_id: str) -> str:
        worker = self._owners.get(fork_id)
        return worker.name if worker is not None else ""

    def send(self, command: Command) -> None:
        if isinstance(command, TakeStats):
            self._ask_for_stats(command)
        elif isinstance(command, ForkSpec):
            self._begin(command)
        elif isinstance(command, ExpectCheckLeg | TakeLevels):
            self._send_to_all(command)
        elif command.fork_id in self._owners:
            owner = self._owners[command.fork_id]
            owner.send(command)
            if isinstance(command, Adopt):
                owner.held.pop(command.fork_id, None)
        elif isinstance(command, EndFork) and command.fork_id in self._orphaned:
            del self._orphaned[command.fork_id]
            self._report_end(command.fork_id, command.reason, command.detail)

    def _send_to_all(self, message: Command) -> None:
        for worker in self._all_workers():
            worker.send(message)

    def _begin(self, spec: ForkSpec) -> None:
        worker = self._choose(spec)
        if worker is None:
            self._report_end(spec.fork_id, EndReason.LEG_FAILED, self._no_worker)
            return
        self._owners[spec.fork_id] = worker
        worker.forks.add(spec.fork_id)
        worker.send(spec)

    def _listening(self) -> list[RelayWorker]:
        return [worker for worker in self._all_workers() if worker.address is not None]

    def _report_end(self, fork_id: str, reason: EndReason, detail: str) -> None:
        """Report the end of a fork that no worker relays."""
        self._reports.put(ForkEnded(fork_id, reason, detail, ForkStats()))

    @property
    def held(self) -> Mapping[str, HeldFork] | None:
        held: dict[str, HeldFork] = {}
        for worker in self._all_workers():
            held |= worker.held
        return held

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [
            WorkerState(one.listen, self._is_up(one), len(one.forks), one.rtt_s, one.pid, one.name)
            for one in self._all_workers()
        ]

    def _is_up(self, worker: RelayWorker) -> bool:
        return worker.address is not None

    async def _close_sharing(self) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
        await self._reports.close()

    def _forget_forks(self) -> None:
        """Forget all forks; nothing becomes of those that have no worker."""
        self._owners.clear()
        self._orphaned.clear()
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None

    # --- Workers that die ---

    def _on_worker_lost(self, worker: RelayWorker, silent_s: float = 0.0) -> None:
        """Take its forks from a worker that is dead, and was silent before; they go to others."""
        worker.address = None
        self._latency_of_dead = self._latency_of_dead.plus(worker.latency)
        worker.latency, worker.rtt_s = NO_LATENCY, 0.0
        self._orphan(worker, list(worker.forks), silent_s)
        worker.held.clear()
        for ticket in list(self._asked):
            self._answered(ticket, worker, {})
        self._look_after_orphans()

    def _orphan(self, worker: RelayWorker, fork_ids: Sequence[str], silent_s: float = 0.0) -> None:
        """Note that a worker does not relay these forks any more, and has not for a while."""
        lost_at = asyncio.get_running_loop().time() - silent_s
        for fork_id in fork_ids:
            worker.forks.discard(fork_id)
            del self._owners[fork_id]
            self._orphaned[fork_id] = lost_at

    def _look_after_orphans(self) -> None:
        """Report the forks without a worker, as lost if another can take them, else as waiting."""
        # Which of the two is decided when the report is delivered: the last worker may die in the
        # same turn of the event loop, and then a fork that is ordered again would be refused.
        self._reports.put_made(self._report_of_orphans)

    def _report_of_orphans(self) -> Report | None:
        if self._listening():
            return self._give_orphans_back()
        if not self._orphaned:
            return None
        if self._orphan_timer is None:
            loop = asyncio.get_running_loop()
            self._orphan_timer = loop.call_later(self._patience_s, self._on_orphans_late)
        return RelayAway(tuple(self._orphaned))

    def _on_orphans_late(self) -> None:
        self._reports.put_made(self._give_orphans_back)

    def _give_orphans_back(self) -> RelayLost | None:
        """Forget the forks without a worker; return the report of their loss, if there are any."""
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None
        if not self._orphaned:
            return None
        lost, self._orphaned = self._orphaned, {}
        away_s = asyncio.get_running_loop().time() - min(lost.values())
        return RelayLost(tuple(lost), away_s)

    # --- From the workers ---

    def _on_report(
        self,
        worker: RelayWorker,
        message: ForkReport | WatchReport | StatsTaken | StrangersRefused | CheckLeg,
    ) -> None:
        if isinstance(message, StatsTaken):
            worker.latency = Latency(message.latency, message.latency_sum_s)
            self._answered(message.ticket, worker, self._on_stats(worker, message).stats)
        elif isinstance(message, StrangersRefused | CheckLeg | LevelsTaken):
            self._reports.put(message)
        elif message.fork_id in worker.forks:
            if isinstance(message, ForkEnded):
                worker.forks.remove(message.fork_id)
                del self._owners[message.fork_id]
            if message.fork_id not in worker.held:
                self._reports.put(message)
            elif isinstance(message, ForkEnded):  # nobody wanted it
                del worker.held[message.fork_id]

    def _on_stats(self, worker: RelayWorker, taken: StatsTaken) -> StatsTaken:  # noqa: ARG002
        """Return the statistics of a worker as they count."""
        return taken

    def _take_held(self, worker: RelayWorker, held: Held) -> None:
        """Take the forks that an earlier daemon has left, until they are adopted or ended."""
        worker.held = {one.fork_id: one for one in held.forks}
        worker.forks.update(worker.held)
        self._owners.update(dict.fromkeys(worker.held, worker))

    # --- Statistics ---

    def _ask_for_stats(self, command: TakeStats) -> None:
        workers = self._listening()
        self._asked[command.ticket] = _Asked(set(workers))
        for worker in workers:
            worker.send(command)
        asyncio.get_running_loop().call_later(STATS_TIMEOUT_S, self._answer, command.ticket)
        if not workers:
            self._answer(command.ticket)

    def _answered(self, ticket: int, worker: RelayWorker, stats: dict[str, ForkStats]) -> None:
        asked = self._asked.get(ticket)
        if asked is not None:
            asked.stats.update(stats)
            asked.waits_for.discard(worker)
            if not asked.waits_for:
                self._answer(ticket)

    def _answer(self, ticket: int) -> None:
        """Report the statistics that have come, the first time that this is called for a ticket."""
        asked = self._asked.pop(ticket, None)
        if asked is not None:
            latency = self._latency_of_dead
            for worker in self._all_workers():
                latency = latency.plus(worker.latency)
            self._reports.put(StatsTaken(ticket, asked.stats, *latency))
