"""The programs of the benchmark of a cluster: NATS servers, controllers and relay hosts."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import measure
from bench.cluster_asterisk import SECRET, StubAsterisk
from bench.program import ProgramFailed
from bench.rows import ROOT
from testbed.nats import NatsServer, nats_servers

START_TIMEOUT_S = 60.0
REPLICAS = 3
_ALARM = re.compile(r" is lost: no sign of life| suspended: ")
_CONTROL = (sys.executable, "-m", "audiofork", "control")
_RELAY = (sys.executable, "-m", "bench.cluster_relay")


class Node:
    """A controller or a relay host.

    Args:
        folder: For its files.
        name: Its name in the cluster.
        command: Gets `-c FILE`.
        settings: The lines of its configuration.
    """

    def __init__(self, folder: Path, name: str, command: Sequence[str], settings: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        config = folder / f"{name}.ini"
        config.write_text(settings)
        self._log_start = len(self._log.read_bytes()) if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-c", str(config)], stderr=log, stdout=log, cwd=ROOT
            )
        self.pid = self._process.pid

    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def has_said(self, text: str) -> bool:
        """Return whether a text is in its log.

        Raises:
            ProgramFailed: It has ended.
        """
        log = self.log()
        if self._process.poll() is not None:
            raise ProgramFailed(f"{self.name} has ended: {log[-2000:]}")
        return text in log

    def wait_said(self, text: str) -> None:
        """Wait until a text is in its log.

        Raises:
            ProgramFailed: It has ended, or does not say it in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.has_said(text):
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.name} did not start: {self.log()[-2000:]}")
            time.sleep(0.02)

    @property
    def leads(self) -> bool:
        """Whether it is a controller that leads, as its log says."""
        log = self.log()
        return log.rfind(": leading") > log.rfind(": standing by")

    def kill(self) -> None:
        """End it without giving it a chance to clean up."""
        self._process.kill()
        self._process.wait()


class Programs:
    """All programs; leaving the context ends them.

    Args:
        folder: For their files.
        forks: How many forks all relay hosts shall take together when one is missing, twice.
        relays: How many relay hosts.
        servers: How many NATS servers.
        dead_after_s: [cluster] dead_after.

    Attributes:
        servers: The NATS servers.
        relays: The relay hosts, by the port that legs connect to.
        leaders, standbys: The controllers, by the name of their Asterisk.
    """

    def __init__(
        self, folder: Path, forks: int, relays: int, servers: int, dead_after_s: float
    ) -> None:
        self._folder = folder
        self._dead_after_s = dead_after_s
        self._forks = forks
        self._count = relays
        self._stack = ExitStack()
        self.servers: list[NatsServer] = self._stack.enter_context(nats_servers(servers))
        self.relays: dict[int, Node] = {}
        self.leaders: dict[str, Node] = {}
        self.standbys: dict[str, Node] = {}

    def _node(self, name: str, command: Sequence[str], sections: dict[str, str]) -> Node:
        urls = " ".join(server.url for server in self.servers)
        replicas = min(REPLICAS, len(self.servers))
        cluster = (
            f"servers = {urls}\nname = {name}\nreplicas = {replicas}\n"
            f"dead_after = {self._dead_after_s}\n"
        )
        sections["cluster"] = cluster + sections.get("cluster", "")
        text = "".join(f"[{section}]\n{lines}" for section, lines in sections.items())
        node = Node(self._folder, name, command, text)
        self._stack.callback(node.kill)
        return node

    def start_relays(self) -> None:
        """Start all relay hosts; return when they are in the cluster."""
        nodes = [self._relay(f"relay{number}") for number in range(self._count)]
        for node in nodes:
            self._note_relay(node)

    def _relay(self, name: str) -> Node:
        capacity = 2 * self._forks // max(1, self._count - 1) + 1
        sections = {
            "audiosocket": "listen = 127.0.0.1:0\n",
            "cluster": f"capacity = {capacity}\n",
        }
        return self._node(name, _RELAY, sections)

    def _note_relay(self, node: Node) -> None:
        node.wait_said("connected to the NATS server")
        port = node.log().partition("audio on 127.0.0.1:")[2].split()[0]
        self.relays[int(port)] = node

    def replace_relay(self, port: int) -> None:
        """Start a relay host with the name of one that was killed."""
        node = self._relay(self.relays.pop(port).name)
        self._note_relay(node)

    def start_leader(self, asterisk: StubAsterisk) -> None:
        """Start a controller; it leads as soon as it can."""
        self.leaders[asterisk.name] = self._controller(asterisk, f"{asterisk.name}-a")

    def start_standby(self, asterisk: StubAsterisk) -> None:
        """Start another controller; return when it stands by."""
        is_taken = self.leaders[asterisk.name].name.endswith("-b")
        node = self._controller(asterisk, f"{asterisk.name}-{'a' if is_taken else 'b'}")
        node.wait_said("standing by")
        self.standbys[asterisk.name] = node

    def _controller(self, asterisk: StubAsterisk, name: str) -> Node:
        most = 2 * len(asterisk.calls)
        sections = {
            "asterisk": f"port = {asterisk.port}\nsecret = {SECRET}\n",
            "cluster": f"asterisk = {asterisk.name}\n",
            "control": f"socket = {self._folder / name}.sock\n",
            "history": f"file = {self._folder / name}.history\n",
            "security": f"max_forks = {most}\n",
        }
        return self._node(name, _CONTROL, sections)

    def kill_leader(self, name: str) -> None:
        """Kill the controller that leads for an Asterisk; the other one counts as leader now."""
        if self.standbys[name].leads:  # the machine was so busy that a lease was lost
            self.leaders[name], self.standbys[name] = self.standbys[name], self.leaders[name]
        self.leaders[name].kill()
        self.leaders[name] = self.standbys.pop(name)

    def false_alarms(self) -> int:
        """Return how often a relay host was taken for dead, or a controller has lost its lease."""
        nodes = (*self.leaders.values(), *self.standbys.values())
        return sum(len(_ALARM.findall(node.log())) for node in nodes)

    def memory_kib(self) -> dict[str, int]:
        """Return the memory of each controller that leads, by its name."""
        return {node.name: measure.memory_kib(node.pid) for node in self.leaders.values()}

    def close(self) -> None:
        """End all."""
        self._stack.close()
