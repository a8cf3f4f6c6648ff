"""Runs the daemon beside a private Asterisk, as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from audiofork.asterisk.versions import Version
from audiofork.commands.setup.asterisk_files import manager_user
from testbed.asterisk import Asterisk, find_installation

SECRET = "testbed-secret"
ETC = Path(__file__).parent.parent / "etc"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


def manager_conf(version: str = "") -> str:
    """Return the shipped AMI user, with the secret that `Daemon` uses.

    Args:
        version: The version of the Asterisk that reads it; by default that of `find_installation`.
    """
    shipped = (ETC / "asterisk/manager_audiofork.conf").read_text().replace("CHANGE-ME", SECRET)
    return manager_user(shipped, Version.parse(version or find_installation().version))


class HasAmi(Protocol):
    """An Asterisk, or what passes for one, by the port of its AMI."""

    @property
    def ami_port(self) -> int: ...


def asterisk_settings(asterisk: HasAmi) -> str:
    """Return the lines of [asterisk] that every daemon needs beside this Asterisk."""
    return f"port = {asterisk.ami_port}\nsecret = {SECRET}\n"


def ari_conf() -> str:
    """Return the shipped ARI user, with SECRET as its password."""
    shipped = (ETC / "asterisk/ari_audiofork.conf").read_text()
    return shipped.replace("CHANGE-ME", SECRET)


def ari_settings(asterisk: Asterisk) -> str:
    """Return the lines of [ari] for an Asterisk that has `ari_conf()` in its ari.conf."""
    return f"url = http://127.0.0.1:{asterisk.http_port}/ari\npassword = {SECRET}\n"


def dialplan() -> str:
    """Return the shipped dialplan."""
    return (ETC / "asterisk/extensions_audiofork.conf").read_text()


class Daemon:
    """`audiofork run` with a configuration for this Asterisk.

    Args:
        asterisk: Must have `manager_conf()` in its manager.conf.
        settings: The lines of further sections of the configuration; they replace the defaults.
        command: Runs instead of `audiofork run`; gets `-c FILE`.
        waits_for: The text in its log that shows that it has started.
        tree: The folder whose `audiofork` it runs, a source tree or what `bench.build.compiled`
            made; None: what Python finds here.
    """

    def __init__(
        self,
        asterisk: HasAmi,
        settings: dict[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "audiofork", "run"),
        waits_for: str = "connected to Asterisk",
        tree: Path | None = None,
    ) -> None:
        self._command = command
        self._tree = tree
        self._waits_for = waits_for
        self._folder = Path(tempfile.mkdtemp(prefix="audiofork-daemon-"))
        self.config = self._folder / "audiofork.ini"
        self.profiles = self._folder / "profiles.d"
        self.socket = self._folder / "control.sock"
        self._log = self._folder / "log"
        self.journal = self._folder / "journal.sqlite3"
        self.history = self._folder / "history.sqlite3"
        sections = {
            "asterisk": asterisk_settings(asterisk),
            "audiosocket": "listen = 127.0.0.1:0\n",
            "control": f"socket = {self.socket}\n",
            "daemon": f"journal = {self.journal}\n",
            "history": f"file = {self.history}\n",
            **(settings or {}),
        }
        self.config.write_text("".join(f"[{name}]\n{text}" for name, text in sections.items()))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it logs that it is connected to Asterisk, or `waits_for`.

        After `stop` or `kill` it may be started again, with the same journal.
        """
        self._log_start = len(self.log())
        # `python -m` looks in the folder where it runs first, and the relay's processes do as well.
        environment = os.environ | ({"PYTHONPATH": str(self._tree)} if self._tree else {})
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "-c", str(self.config)],
                stderr=log,
                env=environment,
                cwd=self._tree,
            )
        try:
            self._wait_started()
        except BaseException:
            self.stop()
            raise

    def _wait_started(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._waits_for not in self.log()[self._log_start :]:
            if self.exit_code is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not start:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> float:
        """End it by SIGTERM; return the seconds that took.

        Raises:
            RuntimeError: It had to be killed.
        """
        assert self._process is not None
        began = time.monotonic()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError(f"the daemon did not end:\n{self.log()}") from None
        return time.monotonic() - began

    def kill(self) -> None:
        """End it without giving it a chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def reload(self, says: str, *, times: int = 1) -> None:
        """Make it read its configuration again; wait until its log has a text this many times."""
        self.signal(signal.SIGHUP)
        await self.says(says, times=times)

    async def says(self, text: str, *, times: int = 1) -> None:
        """Wait until its log has a text this many times."""
        async with asyncio.timeout(10):
            while self.log().count(text) < times:  # noqa: ASYNC110 (a file has no event)
                await asyncio.sleep(0.02)

    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def audiosocket_port(self) -> int:
        """The port that Asterisk dials."""
        found = re.search(r"audio on 127\.0\.0\.1:(\d+)", self.log())
        assert found is not None
        return int(found[1])

    def descriptors(self, *, but_to_port: int = 0) -> int:
        """Return how many files and sockets it has open.

        Args:
            but_to_port: Do not count connections to this port of 127.0.0.1, which are pooled.
        """
        links = []
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(f"/proc/{self.pid}/fd/{number}"))
        pooled = {f"socket:[{inode}]" for inode in _inodes_of_connections_to(but_to_port)}
        return sum(link not in pooled for link in links)

    def memory_kib(self) -> int:
        """Return its resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])

    def cpu_s(self) -> float:
        """Return the CPU time it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _inodes_of_connections_to(port: int) -> set[str]:
    """Return the inodes of the machine's TCP connections to a port of 127.0.0.1."""
    peer = f"0100007F:{port:04X}"  # as proc(5) writes it
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {row[9] for row in rows if row[2] == peer}
