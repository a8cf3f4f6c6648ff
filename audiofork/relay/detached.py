"""A worker as a process that outlives the daemon: the command `audiofork relay`.

It listens at a Unix socket for the daemon's link. While there is none its forks go on, and what
happens to them is kept for the next daemon, for as long as [relay] orphan_timeout says.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import uvloop

from audiofork.config import RelayConfig
from audiofork.errors import ConfigError
from audiofork.link.messages import Command, ForkReport, Listen, Report
from audiofork.link.stream import (
    Close,
    Configure,
    Down,
    Held,
    Link,
    Listening,
    Ping,
    Up,
    decode_down,
)
from audiofork.relay.handover import Handover
from audiofork.relay.process import WorkerProcess
from audiofork.system import lift_file_limit, notify, spare_collections
from audiofork.text import why
from audiofork.unix_sockets import AddressTaken, bind, peer_of, remove

log = logging.getLogger(__name__)

_MODE = 0o600
_WAIT_S = 1.0


class DetachedProcess(WorkerProcess):
    """Runs the worker; `run` returns when it is told to end, or no daemon has come for too long.

    The last daemon that connects has it: daemons lock each other out before they do.

    Args:
        path: The socket that it listens at.
        is_service: Whether somebody else than a daemon has started it.
    """

    def __init__(self, path: Path, *, is_service: bool = True) -> None:
        super().__init__()
        self._path = path
        self._is_service = is_service
        self._handover = Handover(time.monotonic)
        self._link: Link[Down] | None = None
        self._orphan_timeout_s = RelayConfig.orphan_timeout
        self._orphan_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve one daemon after the other.

        Raises:
            ConfigError: The socket cannot be used.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for number in (signal.SIGHUP, signal.SIGUSR1):  # only the daemon acts on these
            loop.add_signal_handler(number, lambda: None)
        listener = await self._bind()
        inode = self._path.stat().st_ino
        listener.listen()
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener))
        self._wait_for_daemon()
        notify("READY=1")
        await self._stop.wait()
        notify("STOPPING=1")
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        remove(self._path, inode)
        listener.close()
        # Before its forks end: the daemon orders them from another process, and is not told here.
        if self._link is not None:
            self._link.close()
        await self._end_worker()

    async def _bind(self) -> socket.socket:
        """Return the socket; a service waits for its place, which the daemon may have filled.

        Raises:
            ConfigError: It cannot be used.
        """
        waits = False
        while True:
            try:
                return bind(self._path, "the socket", _MODE)
            except AddressTaken as exc:
                if not self._is_service or self._stop.is_set():
                    raise
                if not waits:
                    log.warning("%s; waiting for its end", exc)
                waits = True
            await asyncio.sleep(_WAIT_S)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                end, _ = await loop.sock_accept(listener)
            except OSError as exc:  # of file descriptors there may be too few
                log.error("a daemon cannot connect: %s", why(exc))
                await asyncio.sleep(_WAIT_S)
                continue
            peer = peer_of(end)
            if not peer.may_be_trusted:
                log.error("process %d of the user %d may not order forks here", peer.pid, peer.uid)
                end.close()
                continue
            await self._serve(end)

    async def _serve(self, end: socket.socket) -> None:
        link: Link[Down] = Link(
            decode_down,
            lambda message: self._on_heard(link, message),
            lambda: self._on_daemon_gone(link),
        )
        await link.open(end)

    def _on_heard(self, link: Link[Down], message: Down) -> None:
        if isinstance(message, Configure) and link is not self._link:
            self._take(link)
        if isinstance(message, Ping):
            self._handover.on_ping()
        if isinstance(message, Close) or link is self._link:
            self._on_message(message)
        else:  # it is no daemon, or one whose place is taken
            link.close()

    def _take(self, link: Link[Down]) -> None:
        """Let a daemon have this process, in place of an earlier one."""
        if (before := self._link) is not None:
            before.close()
            self._on_daemon_gone(before)
        self._link = link

    def _on_daemon_gone(self, link: Link[Down]) -> None:
        if link is not self._link:
            return
        self._link = None
        self._handover.on_daemon_gone()
        if self._worker is not None:
            for fork_id in self._worker.sessions:  # who listened is gone, too
                self._worker.handle(Listen(fork_id, is_on=False))
        self._wait_for_daemon()

    def _wait_for_daemon(self) -> None:
        if self._forks:
            log.warning(
                "there is no daemon: %d forks go on, for %g s at most",
                *(self._forks, self._orphan_timeout_s),
            )
        loop = asyncio.get_running_loop()
        self._cancel_timer()
        self._orphan_timer = loop.call_later(self._orphan_timeout_s, self._give_up)

    def _give_up(self) -> None:
        """End, unless there is nothing to end, and somebody else wants it to wait on."""
        if len(self._handover):
            log.error("no daemon came for %g s: %d forks end", self._orphan_timeout_s, self._forks)
        # One that listens for legs holds a port: as a new process it does not.
        if len(self._handover) or not self._is_service or self._worker is not None:
            self._stop.set()

    def _cancel_timer(self) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None

    def _configure(self, message: Configure) -> None:
        """Use a configuration; what a daemon sends first, which is told what there is."""
        worker = self._worker
        super()._configure(message)
        self._orphan_timeout_s = message.relay.orphan_timeout
        if self._orphan_timer is None:
            return  # a reload
        self._cancel_timer()
        self._tell(Held(self._handover.held(), self._is_service))
        if worker is not None and worker.is_listening:
            self._tell(Listening(worker.address))
            log.info("a daemon has come; %d forks wait for it", len(self._handover.held()))

    def _obey(self, command: Command) -> None:
        for report in self._handover.on_command(command):
            self._tell(report)
        super()._obey(command)

    def _on_report(self, report: Report) -> None:
        if not isinstance(report, ForkReport) or self._handover.on_report(report):
            super()._on_report(report)

    def _tell(self, message: Up) -> None:
        if self._link is not None:
            self._link.send(message)


def run(path: Path, *, is_service: bool = True) -> None:
    """Run the process until SIGTERM, or until no daemon has come for too long.

    Args:
        path: The socket that it listens at.
        is_service: Whether somebody else than a daemon has started it.

    Raises:
        ConfigError: The socket cannot be used.
    """
    lift_file_limit()
    spare_collections()
    uvloop.run(DetachedProcess(path, is_service=is_service).run())


def main() -> None:
    """Run the process that a daemon starts, with the path of the socket."""
    try:
        run(Path(sys.argv[1]), is_service=False)
    except ConfigError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
