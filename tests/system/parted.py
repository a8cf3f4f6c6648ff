"""A cluster whose network can fail: each program on a host of its own, and calls with forks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from nats.aio.client import Client

from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Host as RelayHost
from audiofork.cluster.roster import HostState, Roster
from audiofork.config import ClusterConfig
from testbed.ami import AmiClient
from testbed.crowd import BLOCK_S, Became, Crowd, became, logged, place_call, start_fork
from testbed.daemon import Daemon
from testbed.measuring import Scene
from testbed.namespaces import Host, Network
from testbed.nats import NatsServer
from testbed.recorder import Recorder, Recording
from testbed.sip import Call, SipUser
from tests.system.cluster import Cluster
from tests.system.conftest import channels

NATS = ("n0", "n1", "n2")
RELAYS = ("r1", "r2")
CONTROLLERS = ("c1", "c2")
LEASES, JOURNAL = "KV_audiofork-leases", "KV_audiofork-forks-asterisk"
CALLS, FORKS_EACH = 6, 2
SERVER = "connected to the NATS server"
LAST_EVENTS = ("AudioForkStopped", "AudioForkFailed")


@dataclass(frozen=True)
class Told:
    """An event of a fork: when it came, in loop time, and what it says."""

    at: float
    name: str
    headers: dict[str, str]


class Parted:
    """Two controllers, two relay hosts, three NATS servers, and calls that speak numbered blocks.

    Attributes:
        ami, sip: What the calls are made with.
        network, hosts: Where the programs run; `pbx` has Asterisk, the callers and the server.
        cluster: The programs.
        recorder: The server of all forks.
        crowd: The calls.
        roster: What the relay hosts tell.
    """

    def __init__(
        self,
        ami: AmiClient,
        sip: SipUser,
        network: Network,
        hosts: dict[str, Host],
        cluster: Cluster,
        recorder: Recorder,
        roster: Roster,
    ) -> None:
        self.ami, self.sip = ami, sip
        self.network, self.hosts = network, hosts
        self.cluster = cluster
        self.recorder = recorder
        self.crowd = Crowd(Scene(cluster.asterisk, ami, sip, None))  # type: ignore[arg-type]
        self.roster = roster
        self._more = 0

    # --- Staging ---

    async def begin(self) -> None:
        """Start all programs, and calls with forks; return when all speak their blocks.

        c1 leads, c2 stands by.
        """
        for name in RELAYS:
            self.cluster.relay(name)
        for name in CONTROLLERS:
            controller = self.cluster.controller(name)
            if name == "c1":
                await leads(controller)
        await self.roster.start()
        await self.crowd.gather(CALLS, self.recorder.url, "D(in)", FORKS_EACH)
        await self.crowd.speak()
        await asyncio.sleep(1)

    def daemon(self, name: str) -> Daemon:
        return self.cluster.daemons[name]

    def cut(self, name: str, *, only_nats: bool = False) -> None:
        """Cut a host off from all others, or only from the NATS servers."""
        others = [self.hosts[one] for one in NATS] if only_nats else []
        self.network.cut(self.hosts[name], *others)

    def at(self, relay: str) -> set[str]:
        """Return the paths of the forks that a relay host has a connection for."""
        return {
            one.path
            for one in self.recorder.recordings
            if not one.closed and _peer_of(one) == self.hosts[relay].address
        }

    async def call_more(self) -> OneMore:
        """Place one more call, and ask for a fork of it."""
        self._more += 1
        path = f"/more-{self._more}"
        caller = await place_call(self.ami, self.sip)
        caller.call.talk()
        action_id = start_fork(self.ami, caller.channel, self.recorder.url(path), "D(in)")
        return OneMore(self, action_id, caller.call)

    # --- NATS ---

    async def _ask_nats(self, subject: str, question: object = None) -> dict[str, object]:
        """Ask JetStream; any server that is reached may answer."""
        client = Client()
        await client.connect([one.url for one in self.cluster.servers], connect_timeout=1)
        try:
            payload = json.dumps(question).encode() if question else b""
            answer = await client.request(f"$JS.API.STREAM.{subject}", payload, timeout=5)
            return dict(json.loads(answer.data))
        finally:
            await client.close()

    async def broker_leader(self, stream: str) -> NatsServer:
        """Return the NATS server that leads a stream."""
        cluster = (await self._ask_nats(f"INFO.{stream}"))["cluster"]
        assert isinstance(cluster, dict)
        return next(one for one in self.cluster.servers if one.name == cluster["leader"])

    async def move_broker_leader(self, stream: str, name: str) -> None:
        """Have another NATS server lead a stream."""
        async with asyncio.timeout(30):
            while (await self.broker_leader(stream)).name != name:
                await self._ask_nats(
                    f"LEADER.STEPDOWN.{stream}", {"placement": {"preferred": name}}
                )
                await asyncio.sleep(0.5)

    def server_of(self, program: str) -> str:
        """Return the NATS server that a program has connected to last, by name."""
        line = [one for one in self.daemon(program).log().splitlines() if SERVER in one][-1]
        return next(one.name for one in self.cluster.servers if f"{SERVER} {one.address}:" in line)

    # --- What became of it ---

    def told(self, action_id: str, since: float = 0.0) -> list[Told]:
        """Return the events of the fork of a request."""
        return [
            Told(at, headers["UserEvent"], headers)
            for at, headers in self.ami.events
            if at >= since and headers.get("ActionID") == action_id and _is_of_fork(headers)
        ]

    async def taken_up(self, since: float, timeout_s: float = 15) -> float:
        """Wait until another controller has told of each fork; return how long that took."""
        ids = [fork.action_id for fork in self.crowd.forks]

        def latest() -> list[float]:
            return [
                one.at
                for action_id in ids
                for one in self.told(action_id, since)
                if one.headers.get("TakenUp") == "yes"
            ]

        await until(lambda: len(latest()) >= len(ids), timeout_s)
        return max(latest()) - since

    def flowing(self) -> Counter[str]:
        """Return how many connections bring audio now, by path."""
        since = time.monotonic() - 0.5
        return Counter(
            one.path for one in self.recorder.recordings if one.times and one.times[-1] > since
        )

    async def legs(self) -> int:
        present = await channels(self.ami)
        return sum(name.startswith("AudioSocket/") for name in present)

    def _open_hosts(self) -> list[RelayHost]:
        return [one for one in self.roster.hosts if one.state is HostState.OPEN]

    async def settle(self, timeout_s: float = 15, *, others: int = 0) -> float:
        """Heal all links; return in how many seconds each fork is where it belongs, and once.

        Args:
            timeout_s: How long that may take.
            others: How many forks there are beside those of the crowd.
        """
        self.network.heal()
        began = time.monotonic()
        paths = {fork.path: 1 for fork in self.crowd.forks}
        alive = {name for name in RELAYS if self.daemon(name).exit_code is None}

        def in_line() -> bool:
            forks = sum(one.beat.forks for one in self._open_hosts())
            open_ = {one.beat.name for one in self._open_hosts()}
            flow = {path: count for path, count in self.flowing().items() if path in paths}
            return open_ == alive and forks == len(paths) + others and flow == paths

        await until(in_line, timeout_s)
        return time.monotonic() - began

    async def end(self) -> dict[str, Became]:
        """Hang up; return what became of each fork, of which nothing may be left."""
        spoken_until = time.monotonic()
        await self.crowd.hang_up()
        await asyncio.sleep(1)
        for fork in self.crowd.forks:
            last = [one for one in self.told(fork.action_id) if one.name in LAST_EVENTS]
            assert [one.headers["Reason"] for one in last] == ["hangup"], last
        async with asyncio.timeout(20):
            while await self.legs():  # noqa: ASYNC110 (Asterisk is asked)
                await asyncio.sleep(0.1)
        await until(lambda: not sum(one.beat.forks for one in self._open_hosts()), 30)
        for name, daemon in self.cluster.daemons.items():
            assert "Traceback" not in daemon.log(), name
            assert "attack" not in daemon.log(), name
        recordings = [logged(one) for one in self.recorder.recordings]
        return became(self.crowd, recordings, spoken_until)


@dataclass
class OneMore:
    """A call with a fork, beside those of the crowd."""

    stage: Parted
    action_id: str
    call: Call

    @property
    def told(self) -> list[str]:
        """The names of the events of the fork so far."""
        return [one.name for one in self.stage.told(self.action_id)]

    async def first(self, timeout_s: float) -> str:
        """Return the name of the first event; empty: none has come, as nobody heard the request."""
        with contextlib.suppress(TimeoutError):
            await until(lambda: self.told, timeout_s)
        return self.told[0] if self.told else ""


@contextlib.asynccontextmanager
async def parted(
    network: Network, hosts: dict[str, Host], cluster: Cluster
) -> AsyncIterator[Parted]:
    """Stage a cluster; this process is on the host of Asterisk."""
    asterisk = cluster.asterisk
    broker = Broker(ClusterConfig(servers=tuple(one.url for one in cluster.servers)), "the test")
    async with (
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as sip,
        Recorder(address=hosts["pbx"].address) as recorder,
    ):
        await broker.connect()
        yield Parted(ami, sip, network, hosts, cluster, recorder, Roster(broker, 1.5))
        await broker.close()


async def leads(controller: Daemon) -> None:
    """Wait until a controller leads, and is connected to Asterisk."""
    await controller.says("connected to Asterisk")


async def until(condition: Callable[[], object], timeout_s: float) -> None:
    """Wait until a condition is true; looked at now and then, as it may take long to tell."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (of several processes)
            await asyncio.sleep(0.02)


def lost(all_of_it: dict[str, Became]) -> int:
    """Return how many blocks came to no server."""
    return sum(one.report.missing for one in all_of_it.values())


def twice(all_of_it: dict[str, Became]) -> int:
    """Return how many blocks came twice."""
    return sum(one.report.duplicated for one in all_of_it.values())


def longest_gap_s(all_of_it: dict[str, Became]) -> float:
    return max(one.longest_gap for one in all_of_it.values()) * BLOCK_S


def _is_of_fork(headers: dict[str, str]) -> bool:
    name = headers.get("UserEvent", "")
    return name.startswith("AudioFork") and name != "AudioFork"  # the request


def _peer_of(recording: Recording) -> str:
    assert recording.connection is not None
    return str(recording.connection.remote_address[0])
