"""A worker as a process of its own: `python -m audiofork.relay.process`.

The daemon starts it, with one end of a link as its standard input. It ends on a message of the
daemon, or when the daemon ends, because that closes the link. It ignores signals that a terminal
or systemd sends to all processes of the daemon: only the daemon acts on them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from abc import ABC, abstractmethod

import uvloop

from audiofork import log as logs
from audiofork.errors import ConfigError
from audiofork.link.messages import Command, RelaysReport, Report
from audiofork.link.relay import give
from audiofork.link.stream import (
    Close,
    Configure,
    Down,
    Link,
    Listening,
    NotListening,
    Ping,
    Pong,
    Up,
    decode_down,
)
from audiofork.relay.worker import Worker
from audiofork.system import lift_file_limit, spare_collections
from audiofork.text import reason_of

log = logging.getLogger(__name__)

# How long to retry if the port is in use: a worker of a killed daemon may not have closed it yet.
LISTEN_TIMEOUT_S = 1.0
_LISTEN_INTERVAL_S = 0.05
_LAST_WORDS_TIMEOUT_S = 1.0


class WorkerProcess(ABC):
    """Runs a worker for the daemon at the other end of a link."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    @abstractmethod
    def _tell(self, message: Up) -> None:
        """Send a message to the daemon, if there is one."""

    def _on_message(self, message: Down) -> None:
        if isinstance(message, Configure):
            self._configure(message)
        elif isinstance(message, Ping):
            self._tell(Pong())
        elif isinstance(message, Close):
            self._stop.set()
        else:
            self._obey(message)

    def _configure(self, message: Configure) -> None:
        logs.set_up(message.log)
        try:
            if self._worker is None:
                self._worker = Worker(message.config, self._on_report)
            else:
                self._worker.configure(message.config)
            self._listen_soon(self._worker)
        except ConfigError as exc:  # rare: the daemon has just checked the same configuration
            log.error("a relay process cannot use the configuration: %s", exc)
            if self._worker is None:
                self._tell(NotListening(0, str(exc)))

    def _listen_soon(self, worker: Worker) -> None:
        """Listen, unless that is done, or under way; an earlier daemon may have seen it fail."""
        is_starting = self._starting is not None and not self._starting.done()
        if not (worker.is_listening or is_starting):
            self._starting = asyncio.create_task(self._listen(worker))

    async def _listen(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LISTEN_TIMEOUT_S
        while not self._stop.is_set():
            try:
                self._tell(Listening(await worker.start()))
                return
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE or loop.time() > deadline:
                    self._tell(NotListening(exc.errno or 0, reason_of(exc)))
                    return
            await asyncio.sleep(_LISTEN_INTERVAL_S)

    def _on_report(self, report: Report) -> None:
        assert not isinstance(report, RelaysReport), "not of this process's making"
        self._tell(report)

    def _obey(self, command: Command) -> None:
        assert self._worker is not None, "configured first"
        give(command, self._worker.handle, self._on_report)

    @property
    def _forks(self) -> int:
        """How many forks the worker has."""
        return len(self._worker.sessions) if self._worker is not None else 0

    async def _end_worker(self) -> None:
        """End all forks and stop listening."""
        if self._starting is not None:
            await self._starting
        if self._worker is not None:
            await self._worker.close()


class Process(WorkerProcess):
    """Runs the worker and its link; `run` returns when one of them has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._link = Link(decode_down, self._on_message, self._on_closed)
        self._closed = asyncio.Event()

    async def run(self, end: socket.socket) -> None:
        """Serve the link until it is closed, or a message asks to close it.

        Args:
            end: The worker's end of the link.
        """
        await self._link.open(end)
        await self._stop.wait()
        await self._end_worker()
        self._link.close()
        try:
            await asyncio.wait_for(self._closed.wait(), _LAST_WORDS_TIMEOUT_S)
        except TimeoutError:
            log.warning("the daemon was not told how the last forks ended")

    def _tell(self, message: Up) -> None:
        self._link.send(message)

    def _on_closed(self) -> None:
        if not self._stop.is_set():
            log.error("the daemon is gone; the %d forks of this relay process end", self._forks)
        self._closed.set()
        self._stop.set()


def main() -> None:
    """Run the process of a worker."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        end = socket.socket(fileno=sys.stdin.fileno())
    except OSError:
        sys.exit("a relay process is started by the daemon: [relay] workers")
    lift_file_limit()
    spare_collections()
    uvloop.run(Process().run(end))


if __name__ == "__main__":
    main()
