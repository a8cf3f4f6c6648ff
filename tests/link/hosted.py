"""A relay on another host, for the contract tests: a real NATS server, a real relay host."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from audiofork.cluster.broker import Broker
from audiofork.cluster.lease import MAX_OBEYED_EPOCH
from audiofork.cluster.registration import Registered
from audiofork.cluster.roster import Roster
from audiofork.config import Address, ClusterConfig, Config
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import SendReport
from testbed.nats import nats_servers

CONTROLLER = ClusterConfig(servers=("nats://127.0.0.1:1",), name="c1", asterisk="pbx")


class Held:
    """A lease that is ours; stands in for `Lease`."""

    epoch = 1
    is_held = True

    @property
    def renewed_at(self) -> float:
        return time.monotonic()

    def outbid(self, epoch: int) -> None:
        if epoch <= MAX_OBEYED_EPOCH:
            self.epoch = max(self.epoch, epoch + 1)


def be_patient(relay: RelayHosts, roster: Roster) -> None:
    """Let no relay host count as dead because the machine is busy."""
    relay._seen._dead_after_s = roster._dead_after_s = 60.0


def end(host: subprocess.Popen[bytes]) -> None:
    """End a relay host at once, in order if it can: then it tells coverage what it has run."""
    host.send_signal(signal.SIGCONT)
    host.send_signal(signal.SIGINT)
    try:
        host.wait(5)
    except subprocess.TimeoutExpired:
        host.kill()


class HostedRelay(RelayHosts):
    """Relay hosts, with one, and the broker that it needs.

    Attributes:
        is_patient: Whether no host counts as dead.
        settings: Further sections in the files of the hosts.
    """

    is_patient = True
    settings = ""

    def __init__(self, config: Config, report: SendReport) -> None:
        self._stack = ExitStack()
        self._logs: list[Path] = []
        (self.server,) = self._stack.enter_context(nats_servers())
        self.cluster = replace(CONTROLLER, servers=(self.server.url,))
        self.client = Broker(self.cluster, "c1")
        self.lease = Held()
        self.roster = Roster(self.client, self.cluster.dead_after)
        config = replace(config, cluster=self.cluster)
        super().__init__(config, self.client, self.lease, self.roster, report)  # type: ignore[arg-type]

    def log(self) -> str:
        """Return what the relay hosts have logged so far."""
        return "".join(path.read_text() for path in self._logs)

    def start_host(self, name: str = "r1") -> subprocess.Popen[bytes]:
        """Start a relay host; it ends with this."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "audiofork.ini"
        file.write_text(
            "[audiosocket]\nlisten = 127.0.0.1:0\n"
            f"[cluster]\nname = {name}\nservers = {self.server.url}\n{self.settings}"
        )
        command = [sys.executable, "-m", "audiofork", "relay", "-c", str(file)]
        log = self._stack.enter_context((folder / "log").open("w"))
        self._logs.append(folder / "log")
        process = self._stack.enter_context(subprocess.Popen(command, stderr=log))
        self._stack.callback(end, process)
        return process

    async def start(self) -> Address:
        await self.client.connect()
        await self.roster.start()
        # As a controller does: it makes the bucket, so that hosts can register.
        await Registered(self.client, self.roster.on_registered)._read_once()
        self.host = self.start_host()
        async with asyncio.timeout(30):
            while not self.roster.hosts:  # noqa: ASYNC110 (that it is there is no event)
                await asyncio.sleep(0.01)
            await super().start()
            while not self._listening():  # noqa: ASYNC110 (that it is there is no event)
                await asyncio.sleep(0.01)
        if self.is_patient:
            be_patient(self, self.roster)
        return self.addresses[0]

    async def close(self) -> None:
        await super().close()
        await self.client.close()
        print(self.log())  # of a failure
        self._logs.clear()
        self._stack.close()
