"""Runs the relay as several processes: starts and watches them, and distributes the forks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from audiofork.backoff import Backoff
from audiofork.config import Address, Config
from audiofork.errors import CannotListen
from audiofork.link.messages import (
    Adopt,
    CheckLeg,
    Command,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ForkEnded,
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
)
from audiofork.link.relay import Reports, WorkerState
from audiofork.link.relay_process import Detached, DetachedPlace, RelayProcess, start_child
from audiofork.link.stream import (
    Close,
    Configure,
    Held,
    Link,
    Listening,
    NotListening,
    Pong,
    Up,
    decode_up,
)
from audiofork.link.workers import NO_LATENCY, Latency, ProcessWorker
from audiofork.text import why

log = logging.getLogger(__name__)

PING_INTERVAL_S = 1.0
# A process is killed after this many pings without an answer: it hangs, or cannot finish its start.
MAX_UNANSWERED = 5
MAX_UNANSWERED_AT_START = 30
# A process that dies is restarted at once. One that ran for less than this is restarted after a
# pause, which grows.
STEADY_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
EXIT_TIMEOUT_S = 0.5  # from the end of the link to the exit of the process
CLOSE_TIMEOUT_S = 3.0  # longer than the 2.5 s that a worker gives its forks to end
# How long forks wait for a relay process while none runs.
NO_PROCESS_TIMEOUT_S = 6.0
STATS_TIMEOUT_S = 1.0  # shorter than the registry waits for the answer

NO_PROCESS = "no relay process runs at the moment"


@dataclass
class _Asked:
    """A TakeStats that some processes have not answered yet."""

    waits_for: set[ProcessWorker]
    stats: dict[str, ForkStats] = field(default_factory=dict)


class RelayProcesses:
    """Implements `Relay` by workers in processes of their own, which share the forks.

    A process that dies is restarted, and one that hangs is killed. The forks that it relayed are
    reported in a RelayLost as soon as a process can take them, in a RelayAway before that if they
    have to wait.

    Args:
        config: The configuration, with the number of workers. The addresses that they listen at do
            not change in a reload.
        report: Called with each report.
        check: Raises ConfigError if the workers could not use a configuration.
    """

    def __init__(self, config: Config, report: SendReport, check: Callable[[Config], None]) -> None:
        check(config)
        self._check = check
        self._config = config
        self._reports = Reports(report)
        self._workers: list[ProcessWorker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()
        self._owners: dict[str, ProcessWorker] = {}
        self._orphaned: dict[str, float] = {}  # when each fork without a process lost it
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._asked: dict[int, _Asked] = {}
        self._latency_of_dead = NO_LATENCY
        self._places: list[DetachedPlace] = []

    # --- Towards the daemon ---

    async def start(self) -> Address:
        audiosocket = self._config.audiosocket
        for number in range(self._config.relay.workers):
            advertise = audiosocket.advertise and audiosocket.advertise.of_worker(number)
            listen = audiosocket.listen.of_worker(number)
            self._workers.append(ProcessWorker(listen, advertise, self._opener_of(number)))
        self._tasks = [asyncio.create_task(self._supervise(one)) for one in self._workers]
        try:
            await asyncio.gather(*(worker.started for worker in self._workers))
        except CannotListen:
            await self.close()
            raise
        return self._workers[0].listen

    def _opener_of(self, number: int) -> Callable[[], Awaitable[RelayProcess]]:
        """Return what starts the process of a worker, or finds it."""
        relay = self._config.relay
        if not relay.detached:
            return start_child
        place = DetachedPlace(Path(relay.folder) / str(number))
        self._places.append(place)
        return place.reach

    def configure(self, config: Config) -> None:
        self._check(config)
        old = self._config
        self._config = replace(config, audiosocket=old.audiosocket, relay=old.relay)
        for worker in self._workers:
            self._configure(worker)

    def _configure(self, worker: ProcessWorker) -> None:
        audiosocket = replace(self._config.audiosocket, listen=worker.listen)
        worker.send(Configure.of(replace(self._config, audiosocket=audiosocket)))

    @property
    def addresses(self) -> Sequence[Address]:
        return [worker.advertise or worker.listen for worker in self._workers]

    def address_of(self, fork_id: str) -> Address:
        worker = self._owners.get(fork_id, self._workers[0])
        return worker.advertise or worker.listen

    def send(self, command: Command) -> None:
        if isinstance(command, TakeStats):
            self._ask_for_stats(command)
        elif isinstance(command, ForkSpec):
            self._begin(command)
        elif isinstance(command, ExpectCheckLeg | TakeLevels):
            for worker in self._workers:
                worker.send(command)
        elif command.fork_id in self._owners:
            owner = self._owners[command.fork_id]
            owner.send(command)
            if isinstance(command, Adopt):
                owner.held.pop(command.fork_id, None)
        elif isinstance(command, EndFork) and command.fork_id in self._orphaned:
            del self._orphaned[command.fork_id]
            self._report_end(command.fork_id, command.reason, command.detail)

    def _begin(self, spec: ForkSpec) -> None:
        """Order a fork from the worker with the fewest forks."""
        workers = self._listening()
        if not workers:
            self._report_end(spec.fork_id, EndReason.LEG_FAILED, NO_PROCESS)
            return
        worker = min(workers, key=lambda one: len(one.forks))
        self._owners[spec.fork_id] = worker
        worker.forks.add(spec.fork_id)
        worker.send(spec)

    def _listening(self) -> list[ProcessWorker]:
        return [worker for worker in self._workers if worker.address is not None]

    def _report_end(self, fork_id: str, reason: EndReason, detail: str) -> None:
        """Report the end of a fork that no process relays."""
        self._reports.put(ForkEnded(fork_id, reason, detail, ForkStats()))

    @property
    def outlives_daemon(self) -> bool:
        return self._config.relay.detached

    @property
    def held(self) -> Mapping[str, HeldFork]:
        held: dict[str, HeldFork] = {}
        for worker in self._workers:
            held |= worker.held
        return held

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [
            WorkerState(one.listen, self._is_up(one), len(one.forks), one.rtt_s, one.pid)
            for one in self._workers
        ]

    def _is_up(self, worker: ProcessWorker) -> bool:
        return worker.address is not None and not self._closing.is_set()

    async def close(self) -> None:
        self._closing.set()
        for worker in self._workers:
            self._let_go(worker)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
        for place in self._places:
            place.close()
        await self._reports.close()

    def _let_go(self, worker: ProcessWorker) -> None:
        """Have a process end, or let it go on for the next daemon."""
        if self._is_left(worker):
            assert worker.link is not None
            worker.link.close()
        else:
            worker.send(Close())

    def _is_left(self, worker: ProcessWorker) -> bool:
        """Return whether its process is left to the next daemon: one with forks, or a service."""
        process = worker.process
        if not (self._closing.is_set() and isinstance(process, Detached) and worker.link):
            return False
        return bool(worker.forks) or process.is_service

    # --- The processes ---

    async def _supervise(self, worker: ProcessWorker) -> None:
        """Keep a process running for a worker until the relay is closed."""
        loop = asyncio.get_running_loop()
        pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, at_once=True)
        while not self._closing.is_set():
            began = loop.time()
            how = await self._run(worker)
            if not self._closing.is_set():
                self._on_death(worker, how)
                if loop.time() - began > STEADY_S:
                    pauses.reset()
                await self._pause(pauses.next_s())

    async def _pause(self, pause_s: float) -> None:
        if pause_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()

    async def _run(self, worker: ProcessWorker) -> str:
        """Run one process until it ends; return how it ended, as text for the log."""
        try:
            worker.process = process = await worker.open_process()
        except OSError as exc:
            return f"cannot be started: {why(exc)}"
        closed = asyncio.Event()
        worker.unanswered = 0
        on_message = functools.partial(self._on_message, worker)
        link = Link(decode_up, on_message, closed.set)
        await link.open(process.end)
        worker.link = link
        watch = asyncio.create_task(_watch(worker, process))
        try:
            self._configure(worker)
            if self._closing.is_set():
                self._let_go(worker)
            await closed.wait()
            return await self._reap(worker, process)
        finally:  # also when `close` has waited long enough and cancels this
            watch.cancel()
            link.close()
            if self._is_left(worker):
                process.let_go()
            else:
                process.kill()
                await process.wait()

    async def _reap(self, worker: ProcessWorker, process: RelayProcess) -> str:
        """Wait until a process whose link was closed exits, or kill it; return how it ended."""
        if self._is_left(worker):
            return "it goes on"
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def _on_death(self, worker: ProcessWorker, how: str) -> None:
        log.error("%s died (%s); it had %d forks", worker, how, len(worker.forks))
        worker.fail_start(OSError(f"the relay process died: {how}"))
        worker.address = worker.link = None
        if worker.wanted.port:  # what an earlier daemon had configured may have another
            worker.listen = worker.wanted
        self._latency_of_dead = self._latency_of_dead.plus(worker.latency)
        worker.latency, worker.rtt_s = NO_LATENCY, 0.0
        now = asyncio.get_running_loop().time()
        for fork_id in worker.forks:
            del self._owners[fork_id]
            self._orphaned[fork_id] = now
        worker.forks.clear()
        worker.held.clear()
        for ticket in list(self._asked):
            self._answered(ticket, worker, {})
        self._look_after_orphans()

    def _look_after_orphans(self) -> None:
        """Report the forks without a process, as lost if another can take them, else as waiting."""
        # Which of the two is decided when the report is delivered: the last process may die in the
        # same turn of the event loop, and then a fork that is ordered again would be refused.
        self._reports.put_made(self._report_of_orphans)

    def _report_of_orphans(self) -> Report | None:
        if self._listening():
            return self._give_orphans_back()
        if not self._orphaned:
            return None
        if self._orphan_timer is None:
            loop = asyncio.get_running_loop()
            self._orphan_timer = loop.call_later(NO_PROCESS_TIMEOUT_S, self._on_orphans_late)
        return RelayAway(tuple(self._orphaned))

    def _on_orphans_late(self) -> None:
        self._reports.put_made(self._give_orphans_back)

    def _give_orphans_back(self) -> RelayLost | None:
        """Forget the forks without a process; return the report of their loss, if there are any."""
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None
        if not self._orphaned:
            return None
        lost, self._orphaned = self._orphaned, {}
        away_s = asyncio.get_running_loop().time() - min(lost.values())
        return RelayLost(tuple(lost), away_s)

    # --- From the processes ---

    def _on_message(self, worker: ProcessWorker, message: Up) -> None:
        if isinstance(message, Pong):
            worker.on_pong()
        elif isinstance(message, Held):
            self._on_held(worker, message)
        elif isinstance(message, Listening):
            self._on_listening(worker, message.address)
        elif isinstance(message, NotListening):
            self._on_not_listening(worker, message)
        elif isinstance(message, StatsTaken):
            worker.latency = Latency(message.latency, message.latency_sum_s)
            self._answered(message.ticket, worker, message.stats)
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

    def _on_held(self, worker: ProcessWorker, message: Held) -> None:
        """Take the forks that an earlier daemon has left, until they are adopted or ended."""
        if isinstance(worker.process, Detached):
            worker.process.is_service = message.is_service
            if not message.is_service and os.environ.get("NOTIFY_SOCKET"):
                log.warning(
                    "%s ends with this service: systemctl enable --now audiofork-relay@%d",
                    *(worker, self._workers.index(worker)),
                )
        worker.held = {one.fork_id: one for one in message.forks}
        worker.forks.update(worker.held)
        self._owners.update(dict.fromkeys(worker.held, worker))

    def _on_listening(self, worker: ProcessWorker, address: Address) -> None:
        if worker.wanted.port and address != worker.wanted:
            log.warning(
                "a relay process listens at %s, and not at %s: it has to be restarted for that",
                *(address, worker.wanted),
            )
        worker.address = worker.listen = address  # a port that the system chose is kept
        log.info("%s listens", worker)
        if not worker.started.done():
            worker.started.set_result(None)
        self._look_after_orphans()

    def _on_not_listening(self, worker: ProcessWorker, why: NotListening) -> None:
        log.error("%s cannot listen: %s", worker, why.text)
        worker.fail_start(OSError(why.number, why.text))
        worker.listen = worker.wanted  # another program may have taken the chosen port
        worker.send(Close())  # it exits, and the next process tries

    # --- Statistics ---

    def _ask_for_stats(self, command: TakeStats) -> None:
        workers = self._listening()
        self._asked[command.ticket] = _Asked(set(workers))
        for worker in workers:
            worker.send(command)
        asyncio.get_running_loop().call_later(STATS_TIMEOUT_S, self._answer, command.ticket)
        if not workers:
            self._answer(command.ticket)

    def _answered(self, ticket: int, worker: ProcessWorker, stats: dict[str, ForkStats]) -> None:
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
            for worker in self._workers:
                latency = latency.plus(worker.latency)
            self._reports.put(StatsTaken(ticket, asked.stats, *latency))


async def _watch(worker: ProcessWorker, process: RelayProcess) -> None:
    """Ping a process regularly; kill it when too many pings are unanswered."""
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        limit = MAX_UNANSWERED if worker.address is not None else MAX_UNANSWERED_AT_START
        # Pings are counted, not seconds: while this process itself is stopped, it sends none.
        if worker.unanswered >= limit:
            log.error("%s does not answer", worker)
            process.kill()
            return
        worker.ping()
