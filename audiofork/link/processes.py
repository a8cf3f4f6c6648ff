"""Runs the relay as several processes: starts and watches them, and distributes the forks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from audiofork.backoff import Backoff
from audiofork.config import Address, Config
from audiofork.errors import CannotListen
from audiofork.link.messages import (
    ForkSpec,
    SendReport,
)
from audiofork.link.relay_process import Detached, DetachedPlace, RelayProcess, start_child
from audiofork.link.sharing import SharedRelay
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
from audiofork.link.workers import ProcessWorker, RelayWorker
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
NO_PROCESS = "no relay process runs at the moment"


class RelayProcesses(SharedRelay):
    """Implements `Relay` by workers in processes of their own, which share the forks.

    A process that dies is restarted, and one that hangs is killed.

    Args:
        config: The configuration, with the number of workers. The addresses that they listen at do
            not change in a reload.
        report: Called with each report.
        check: Raises ConfigError if the workers could not use a configuration.
    """

    def __init__(self, config: Config, report: SendReport, check: Callable[[Config], None]) -> None:
        check(config)
        super().__init__(report, NO_PROCESS)
        self._check = check
        self._config = config
        self._workers: list[ProcessWorker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()
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

    def _all_workers(self) -> Sequence[ProcessWorker]:
        return self._workers

    def _choose(self, spec: ForkSpec) -> RelayWorker | None:  # noqa: ARG002 (all are alike)
        return min(self._listening(), key=lambda one: len(one.forks), default=None)

    async def until_expected(self, fork_id: str) -> bool:  # noqa: ARG002 (of Relay)
        """Nothing to wait for: the link is faster than Asterisk."""
        return True

    @property
    def outlives_daemon(self) -> bool:
        return self._config.relay.detached

    def _is_up(self, worker: RelayWorker) -> bool:
        return super()._is_up(worker) and not self._closing.is_set()

    async def close(self) -> None:
        self._closing.set()
        for worker in self._workers:
            self._let_go(worker)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for place in self._places:
            place.close()
        await self._close_sharing()

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
        worker.link = None
        if worker.wanted.port:  # what an earlier daemon had configured may have another
            worker.listen = worker.wanted
        self._on_worker_lost(worker)

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
        else:
            self._on_report(worker, message)

    def _on_held(self, worker: ProcessWorker, message: Held) -> None:
        """Take the forks that an earlier daemon has left, until they are adopted or ended."""
        if isinstance(worker.process, Detached):
            worker.process.is_service = message.is_service
            if not message.is_service and os.environ.get("NOTIFY_SOCKET"):
                log.warning(
                    "%s ends with this service: systemctl enable --now audiofork-relay@%d",
                    *(worker, self._workers.index(worker)),
                )
        self._take_held(worker, message)

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
