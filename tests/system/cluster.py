"""A cluster on one machine: real NATS servers, controllers and relay hosts beside an Asterisk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.nats import NatsServer, nats_servers

CONTROL = (sys.executable, "-m", "audiofork", "control")
RELAY = (sys.executable, "-m", "audiofork", "relay")


class Cluster:
    """The programs of a cluster.

    Args:
        asterisk: The Asterisk of all controllers.
        servers: The NATS servers, which run.
        settings: The lines of further sections of the configuration of each program.
    """

    def __init__(
        self, asterisk: Asterisk, servers: list[NatsServer], settings: dict[str, str]
    ) -> None:
        self.asterisk = asterisk
        self.servers = servers
        self._settings = settings
        self._stack = ExitStack()

    def _daemon(
        self, name: str, command: tuple[str, ...], waits_for: str, more: dict[str, str]
    ) -> Daemon:
        urls = " ".join(server.url for server in self.servers)
        replicas = min(len(self.servers), 3)
        section = f"servers = {urls}\nname = {name}\nreplicas = {replicas}\n"
        settings = {
            **self._settings,
            **more,
            "cluster": section + self._settings.get("cluster", "") + more.get("cluster", ""),
        }
        daemon = Daemon(self.asterisk, settings, command, waits_for)
        self._stack.enter_context(daemon)
        self._stack.callback(lambda: print(f"--- {name} ---\n{daemon.log()}"))  # of a failure
        return daemon

    def controller(self, name: str, **more: str) -> Daemon:
        """Start a controller; return when it leads, or stands by."""
        return self._daemon(name, CONTROL, "standing by", more)

    def relay(self, name: str, **more: str) -> Daemon:
        """Start a relay host; return when it is connected to NATS."""
        return self._daemon(name, RELAY, "connected to the NATS server", more)

    def close(self) -> None:
        """End all programs."""
        self._stack.close()


@contextmanager
def clustered(
    asterisk: Asterisk, settings: dict[str, str] | None = None, servers: int = 1
) -> Iterator[Cluster]:
    """Run a cluster beside an Asterisk.

    Args:
        asterisk: The Asterisk.
        settings: The lines of further sections of the configuration of each program.
        servers: How many NATS servers there are.
    """
    with nats_servers(servers) as running:
        cluster = Cluster(asterisk, running, settings or {})
        try:
            yield cluster
        finally:
            cluster.close()
