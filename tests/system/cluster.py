"""A cluster on one machine: real NATS servers, controllers and relay hosts beside an Asterisk."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.namespaces import Host
from testbed.nats import NatsServer, nats_servers

CONTROL = (sys.executable, "-m", "audiofork", "control")
RELAY = (sys.executable, "-m", "audiofork", "relay")
WRONG_CLOCK = (sys.executable, "-m", "testbed.wrong_clock")


class Cluster:
    """The programs of a cluster.

    Args:
        asterisk: The Asterisk of all controllers.
        servers: The NATS servers, which run.
        settings: The lines of further sections of the configuration of each program.
        hosts: Where each program runs, by its name; others run here.

    Attributes:
        ahead: How many seconds the wall clock of a program is ahead, by its name; negative: behind.
        daemons: The programs that were started, by name.
    """

    def __init__(
        self,
        asterisk: Asterisk,
        servers: list[NatsServer],
        settings: dict[str, str],
        hosts: Mapping[str, Host] | None = None,
    ) -> None:
        self.asterisk = asterisk
        self.servers = servers
        self._settings = settings
        self._hosts = hosts or {}
        self.ahead: dict[str, float] = {}
        self.daemons: dict[str, Daemon] = {}
        self._stack = ExitStack()

    def _daemon(
        self,
        asterisk: Asterisk,
        name: str,
        command: tuple[str, ...],
        waits_for: str,
        more: dict[str, str],
    ) -> Daemon:
        urls = " ".join(server.url for server in self.servers)
        replicas = min(len(self.servers), 3)
        section = f"servers = {urls}\nname = {name}\nreplicas = {replicas}\n"
        settings = {
            **self._settings,
            **more,
            "cluster": section + self._settings.get("cluster", "") + more.get("cluster", ""),
        }
        if (seconds := self.ahead.get(name)) is not None:
            command = (*WRONG_CLOCK, str(seconds), *command[2:])
        if (host := self._hosts.get(name)) is not None:
            command = (*host.within, *command)
            settings["audiosocket"] = f"listen = {host.address}:0\n"
        self.daemons[name] = daemon = Daemon(asterisk, settings, command, waits_for)
        self._stack.enter_context(daemon)
        self._stack.callback(lambda: print(f"--- {name} ---\n{daemon.log()}"))  # of a failure
        return daemon

    def controller(self, name: str, asterisk: Asterisk | None = None, **more: str) -> Daemon:
        """Start a controller, also of another Asterisk; return when it leads, or stands by."""
        return self._daemon(asterisk or self.asterisk, name, CONTROL, "standing by", more)

    def relay(self, name: str, **more: str) -> Daemon:
        """Start a relay host; return when it is connected to NATS."""
        return self._daemon(self.asterisk, name, RELAY, "connected to the NATS server", more)

    def close(self) -> None:
        """End all programs."""
        self._stack.close()


@contextmanager
def clustered(
    asterisk: Asterisk,
    settings: dict[str, str] | None = None,
    servers: int = 1,
    hosts: Mapping[str, Host] | None = None,
) -> Iterator[Cluster]:
    """Run a cluster beside an Asterisk.

    Args:
        asterisk: The Asterisk.
        settings: The lines of further sections of the configuration of each program.
        servers: How many NATS servers there are: n0, n1 and so on.
        hosts: Where each program runs, by its name; none: all run here.
    """
    places = [hosts[f"n{number}"] for number in range(servers)] if hosts else ()
    with nats_servers(servers, hosts=places) as running:
        cluster = Cluster(asterisk, running, settings or {}, hosts)
        try:
            yield cluster
        finally:
            cluster.close()
