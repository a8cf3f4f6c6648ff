"""Starts relay processes, which end with the daemon, and finds detached ones, which do not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Protocol

from audiofork.config import RelayConfig
from audiofork.link.stream import Close, encode
from audiofork.system import child_environment
from audiofork.unix_sockets import peer_of

log = logging.getLogger(__name__)

MODULE = "audiofork.relay.process"
DETACHED_MODULE = "audiofork.relay.detached"
SOCKET_NAME = "relay.sock"
# How long a detached process may take until its socket is there: a busy machine starts Python
# slowly. Who has started an earlier one, such as systemd, may take so long to replace it.
START_TIMEOUT_S = 30.0
REPLACE_TIMEOUT_S = 5.0
STALE_TIMEOUT_S = 2.0  # where one was before this daemon, and is not known to be a service
RETIRE_TIMEOUT_S = 4.0  # longer than its forks may take to end
_INTERVAL_S = 0.02
# Prefixes of environment variables that relay processes must not get: the configuration with the
# secret.
_WITHHELD = ("AUDIOFORK_", "CREDENTIALS_")
_NOT_THERE = (FileNotFoundError, ConnectionRefusedError)


class RelayProcess(Protocol):
    """A process that runs a worker.

    Attributes:
        end: Our end of the link to it.
        pid: Its process.
    """

    end: socket.socket

    @property
    def pid(self) -> int: ...

    def kill(self) -> None:
        """Kill it; no effect if it has ended."""

    async def wait(self) -> str:
        """Wait until it has ended; return how, as text for the log."""

    def let_go(self) -> None:
        """Look after it no more: it has ended, or goes on for the next daemon."""


class Child:
    """Implements `RelayProcess` by a process that ends when its link is closed."""

    def __init__(self, process: Process, end: socket.socket) -> None:
        self._process = process
        self.end = end

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        return _how(await self._process.wait())

    def let_go(self) -> None:
        """Nothing to do: it does not go on."""


async def start_child() -> Child:
    """Start a relay process that gets an end of the link as its standard input.

    It has a session of its own, so that signals of a terminal (Ctrl-C) go to the daemon alone.

    Raises:
        OSError: The process cannot be started.
    """
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE),
            stdin=theirs.fileno(),
            env=child_environment(*_WITHHELD),
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Child(process, ours)


class Detached:
    """Implements `RelayProcess` by a process that outlives the daemon.

    Args:
        end: The socket, connected to it.

    Attributes:
        is_service: Whether somebody else than a daemon has started it, as it has told.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.is_service = True
        self.pid = peer_of(end).pid
        # By its descriptor, since another process may get its number.
        self._process = os.pidfd_open(self.pid)
        self._has_ended = False

    def kill(self) -> None:
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    async def wait(self) -> str:
        if not self._has_ended:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(self._process, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._process)
            self.let_go()
        return self._reaped()

    def let_go(self) -> None:
        """Look after it no more: it has ended, or goes on for the next daemon."""
        if not self._has_ended:
            self._has_ended = True
            os.close(self._process)

    def _reaped(self) -> str:
        """Return how it ended, if it is a child of this process: nobody else reaps it then."""
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return _how(os.waitstatus_to_exitcode(status))
        return "it is gone"


class DetachedPlace:
    """Where one detached process is found, and started if there is none.

    A daemon that has it keeps others away by a lock on the folder, which its death gives up.

    Args:
        folder: Its folder, which only the daemon's user may use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / SOCKET_NAME
        self._lock: int | None = None
        self._last: Detached | None = None

    async def reach(self) -> Detached:
        """Return the process that runs; start one if none does.

        One that somebody else has started is waited for when it has died, which its socket shows:
        it may be started again.

        Raises:
            OSError: Another daemon has it, or it cannot be started.
        """
        self._take_lock()
        if self._last is None:
            patience_s = STALE_TIMEOUT_S if self._path.exists() else 0.0
        else:
            patience_s = REPLACE_TIMEOUT_S if self._last.is_service else 0.0
        with contextlib.suppress(TimeoutError):
            self._last = await self._connected(patience_s)
            return self._last
        pid = self._start()
        try:
            self._last = await self._connected(START_TIMEOUT_S, pid)
            return self._last
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise OSError(errno.ETIMEDOUT, "it did not start in time") from None

    async def retire(self) -> bool:
        """Let the process end, with its forks, if it runs and no daemon has it.

        Who has started it may start it again; it then waits for a daemon, and listens at no port.

        Returns:
            Whether it has ended.
        """
        try:
            self._take_lock()
            process = await self._connected(0.0)
        except OSError:  # TimeoutError is one
            return False
        finally:
            self.close()
        loop = asyncio.get_running_loop()
        with process.end, contextlib.suppress(ConnectionError):
            await loop.sock_sendall(process.end, encode(Close()))
        try:
            async with asyncio.timeout(RETIRE_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            return False
        finally:
            process.let_go()
        return True

    def _take_lock(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is not None:
            if os.path.samestat(os.fstat(self._lock), self._folder.stat()):
                return
            self.close()  # systemd has made the folder anew
        lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            raise OSError(exc.errno, f"another daemon has the process of {self._folder}") from None
        try:
            _check_private(lock, self._folder)
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

    async def _connected(self, patience_s: float, pid: int = 0) -> Detached:
        """Return the process once its socket is there.

        Raises:
            TimeoutError: It is not there in time.
            OSError: The socket cannot be used, or the process that was started has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while True:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.setblocking(False)
            try:
                await loop.sock_connect(end, os.fspath(self._path))
                _check_trusted(end, self._path)
                return Detached(end)
            except _NOT_THERE:
                end.close()
            except BaseException:
                end.close()
                raise
            if pid and _has_ended(pid):
                raise OSError(errno.ECHILD, "it ended at its start; the log has its reason")
            if loop.time() >= deadline:
                raise TimeoutError
            await asyncio.sleep(_INTERVAL_S)

    def _start(self) -> int:
        """Start a process in a session of its own; return its id.

        Not by the event loop, which would end it with itself.

        Raises:
            OSError: It cannot be started.
        """
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return os.posix_spawn(
            sys.executable,
            (sys.executable, "-P", "-m", DETACHED_MODULE, os.fspath(self._path)),
            child_environment(*_WITHHELD),
            file_actions=[nothing],
            setsid=True,
        )

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def retire_unused(relay: RelayConfig) -> None:
    """Let the detached processes end that an earlier configuration had, and this one has not.

    Their forks would go on beside those that the journal has begun anew.
    """
    for folder in _unused(relay):
        if await DetachedPlace(folder).retire():
            log.warning("ended the relay process of %s, which is not configured any more", folder)


def _unused(relay: RelayConfig) -> list[Path]:
    """Return the folders of detached processes that are not configured."""
    first = relay.workers if relay.detached else 0
    folders = Path(relay.folder).glob("[0-9]*")
    numbers = [int(path.name) for path in folders if path.name.isdecimal()]
    return [Path(relay.folder) / str(one) for one in sorted(numbers) if one >= first]


def _check_private(folder: int, path: Path) -> None:
    """Raise PermissionError unless a folder is for its owner alone, who is us or root."""
    found = os.fstat(folder)
    if found.st_mode & 0o077 or found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            errno.EPERM, f"{path} must be the daemon's own, and closed to others (chmod 700)"
        )


def _check_trusted(end: socket.socket, path: Path) -> None:
    """Raise PermissionError if another user's process is there: it would get URLs with tokens."""
    peer = peer_of(end)
    if not peer.pid:
        raise PermissionError(errno.EPERM, f"{path} is of a process in another PID namespace")
    if not peer.may_be_trusted:
        raise PermissionError(errno.EPERM, f"{path} is of the process of another user, {peer.uid}")


def _has_ended(pid: int) -> bool:
    """Return whether a child of this process has ended; if so, reap it."""
    return os.waitpid(pid, os.WNOHANG)[0] != 0


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
