"""Messages over NATS that mean harm: from a relay host, or from whoever has stolen a key."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from audiofork.cluster.beats import SUBJECT, Beat
from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import ClusterConfig, Config
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import (
    Command,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeldFork,
    LegAttached,
    LegPart,
    Report,
    SinkOpened,
)
from audiofork.link.sessions import (
    MAX_EPOCH,
    Down,
    Hello,
    Numbers,
    Stamp,
    Up,
    decode_down,
    down_subject,
    pack,
    split,
    up_subject,
)
from audiofork.link.stream import Held, Ping, Pong
from testbed.nats import nats_servers
from testbed.recorder import Recorder
from tests.link.hosted import Held as HeldLease
from tests.link.hosted import HostedRelay, be_patient
from tests.link.test_relay import Rig, running
from tests.relay.peers import Leg, numbered, until

pytestmark = pytest.mark.nats

PBX = "pbx"
TOLD = "messages over NATS without effect"
# What is no message, of whatever kind.
GARBAGE = [
    b"",
    b"\n",
    b"\xff" * 1000,
    b"\0" * 900_000,
    b"[" * 900_000,
    b'{"a":' * 100_000,
    b"9" * 900_000,
    json.dumps([1, "s" * 900_000, 0]).encode() + b"\n[]",
    json.dumps([2**63, "s", 0]).encode() + b"\n[]",
    json.dumps([10**4000, "s", 0]).encode() + b"\n[]",
    b'[1e999, "s", 0]\n["Hello",{}]',
    b'[NaN, "s", NaN]\n["Hello",{}]',
    b'[1, "s", 0]\n["Hello",{"version":1}]',
    b'[1, "s", 0]\n["__class__",{}]',
    b'[1, "s", 0]\n[["Hello"],{}]',
    b'[0, "", 0]\n' + b"[" * 900_000,
    b'[1, "s", 0]\n["Held",{"forks":[1,2,3]}]',
    Hello().version.encode(),
]


# --- Towards a controller ------------------------------------------------------------------------


class FakeHost:
    """A relay host that does what a test wants."""

    def __init__(self, name: str, broker: Broker) -> None:
        self.name = name
        self.holds: tuple[HeldFork, ...] = ()
        self.commands: list[Command] = []
        self._broker = broker
        self._numbers = Numbers()
        self._epoch = 0

    async def start(self) -> None:
        await self._broker.subscribe(down_subject(self.name, PBX), self._on_payload)
        self.beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            beat = Beat(self.name, "run", "127.0.0.1:9", capacity=100)
            self._broker.publish(f"{SUBJECT}.{self.name}", beat.encode())
            # A session is begun anew where some beats come before an answer.
            await asyncio.sleep(0.3)

    def _on_payload(self, _subject: str, payload: bytes) -> None:
        stamp, line = split(payload)
        message: Down = decode_down(line)
        if isinstance(message, Hello):
            self._numbers.begin(stamp.session)
            self._epoch = stamp.epoch
            self.say(Held(self.holds))
        elif isinstance(message, Ping):
            self.say(Pong())
        else:
            self.commands.append(message)  # type: ignore[arg-type]

    def say(self, message: Up) -> None:
        stamp = self._numbers.stamp(self._epoch)
        self._broker.publish(up_subject(PBX, self.name), pack(stamp, message))

    def ended(self, fork_id: str) -> list[EndFork]:
        ends = [one for one in self.commands if isinstance(one, EndFork)]
        return [one for one in ends if one.fork_id == fork_id]


class Stage:
    """A controller's relay hosts, two of which are the test's."""

    def __init__(self, url: str) -> None:
        cluster = ClusterConfig(servers=(url,), name="c1", asterisk=PBX, dead_after=0.7)
        self.reports: list[Report] = []
        self.broker, self.theirs = Broker(cluster, "c1"), Broker(cluster, "hosts")
        self.config = Config(cluster=cluster)

    async def start(self) -> None:
        for broker in (self.broker, self.theirs):
            await broker.connect()
        self.hosts = [FakeHost(name, self.theirs) for name in ("r1", "r2")]
        for host in self.hosts:
            await host.start()
        lease = HeldLease()
        roster = Roster(self.broker, 0.7)
        await roster.start()
        self.relay = RelayHosts(
            self.config,
            self.broker,
            lease,  # type: ignore[arg-type]
            roster,
            self.reports.append,
        )
        await self.relay.start()
        await until(lambda: len(self.relay._listening()) == 2, 10)
        be_patient(self.relay, roster)

    def begin(self) -> tuple[str, FakeHost, FakeHost]:
        """Order a fork; return its id, the host that has it, and the other."""
        fork_id = str(uuid.uuid4())
        self.relay.send(ForkSpec(fork_id, "PJSIP/a", "ws://h/", Direction.IN))
        name = self.relay._owners[fork_id].beat.name  # type: ignore[attr-defined]
        first, second = self.hosts if name == "r1" else reversed(self.hosts)
        return fork_id, first, second

    async def stop(self) -> None:
        await self.relay.close()
        for host in self.hosts:
            host.beating.cancel()
        for broker in (self.broker, self.theirs):
            await broker.close()

    def of(self, kind: type[Report]) -> list[Report]:
        return [one for one in self.reports if isinstance(one, kind)]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with nats_servers() as (server,):
        one = Stage(server.url)
        await one.start()
        yield one
        await one.stop()


async def works(stage: Stage) -> None:
    """Check that a fork begins, is reported, and ends, at a good host."""
    fork_id, host, _ = stage.begin()
    await until(lambda: any(one.fork_id == fork_id for one in host.commands), 10)  # type: ignore[union-attr]
    host.say(SinkOpened(fork_id))
    await until(lambda: SinkOpened(fork_id) in stage.reports, 10)
    stage.relay.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: host.ended(fork_id), 10)
    end = ForkEnded(fork_id, EndReason.STOPPED, "", ForkStats())
    host.say(end)
    await until(lambda: end in stage.reports, 10)


@pytest.mark.parametrize("subject", [f"{SUBJECT}.r1", f"{SUBJECT}.x", up_subject(PBX, "r1")])
async def test_garbage_disturbs_no_controller_and_no_log(
    stage: Stage, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id, host, _ = stage.begin()
    sessions = {one.beat.name: one.numbers.session for one in stage.relay._all_workers()}
    for payload in GARBAGE * 5:
        stage.theirs.publish(subject, payload)
    await stage.theirs.flush()
    await works(stage)
    assert sessions == {one.beat.name: one.numbers.session for one in stage.relay._all_workers()}
    host.say(SinkOpened(fork_id))
    await until(lambda: SinkOpened(fork_id) in stage.reports, 10)
    assert "Traceback" not in caplog.text
    assert TOLD in caplog.text
    assert len(caplog.records) < 15


async def test_host_cannot_claim_a_fork_that_another_has(stage: Stage) -> None:
    """Also what a host has that was cut off, and whose forks live on elsewhere."""
    fork_id, first, second = stage.begin()
    second.holds = (HeldFork(fork_id, "chanspy", (LegPart.MIX,), 8000, {}),)
    second.say(Held(second.holds))
    await until(lambda: second.ended(fork_id), 10)
    second.say(LegAttached(fork_id, LegPart.MIX))
    second.say(ForkEnded(fork_id, EndReason.SHUTDOWN, "", ForkStats()))
    await asyncio.sleep(0.2)
    assert stage.reports == []
    first.say(SinkOpened(fork_id))
    await until(lambda: SinkOpened(fork_id) in stage.reports, 10)
    stage.relay.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: first.ended(fork_id), 10)
    end = ForkEnded(fork_id, EndReason.STOPPED, "", ForkStats())
    first.say(end)
    await until(lambda: end in stage.reports, 10)


async def test_host_reports_nothing_of_forks_that_it_does_not_have(stage: Stage) -> None:
    fork_id, first, second = stage.begin()
    second.say(ForkEnded(fork_id, EndReason.HANGUP, "", ForkStats()))
    second.say(ForkEnded(str(uuid.uuid4()), EndReason.HANGUP, "", ForkStats()))
    await asyncio.sleep(0.2)
    first.say(SinkOpened(fork_id))
    await until(lambda: stage.reports == [SinkOpened(fork_id)], 10)


# --- Towards a relay host ------------------------------------------------------------------------


class Evil:
    """Somebody who may publish what controllers may."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def send(self, asterisk: str, payload: bytes) -> None:
        self.broker.publish(down_subject("r1", asterisk), payload)
        await self.broker.flush()


@pytest.fixture
async def hosted() -> AsyncIterator[tuple[Rig, Evil]]:
    """A relay host, and somebody evil."""
    async with running(HostedRelay) as rig, AsyncExitStack() as stack:
        assert isinstance(rig.relay, HostedRelay)
        broker = Broker(ClusterConfig(servers=(rig.relay.server.url,)), "evil")
        await broker.connect()
        stack.push_async_callback(broker.close)
        yield rig, Evil(broker)


async def streams(rig: Rig, recorder: Recorder, leg: Leg, path: str = "/a") -> None:
    """Check that each frame of a leg arrives."""
    before = len(recorder.recordings[0].messages) if recorder.recordings else 0
    leg.send_audio(*numbered(20))
    recording = await recorder.wait_messages(path, before + 20)
    assert recording.messages[before:] == numbered(20)
    assert await rig.stats()


@pytest.mark.parametrize("asterisk", [PBX, "other"])
async def test_garbage_disturbs_no_relay_host(
    hosted: tuple[Rig, Evil], recorder: Recorder, asterisk: str
) -> None:
    rig, evil = hosted
    leg = await rig.attach(rig.begin(recorder.url("/a")))
    await streams(rig, recorder, leg)
    for payload in GARBAGE * 3:
        await evil.send(asterisk, payload)
    await streams(rig, recorder, leg)
    await leg.close()
    assert isinstance(rig.relay, HostedRelay)
    log = rig.relay.log
    await until(lambda: TOLD in log(), 10)
    assert "Traceback" not in log()
    assert log().count(TOLD) < 20


async def test_orders_of_another_asterisk_do_not_touch_its_forks(
    hosted: tuple[Rig, Evil], recorder: Recorder
) -> None:
    rig, evil = hosted
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    await streams(rig, recorder, leg)
    numbers = Numbers()
    numbers.begin("evil")
    other = str(uuid.uuid4())
    messages: list[Down] = [
        Hello(),
        ForkSpec(fork_id, "", "ws://127.0.0.1:9/", Direction.IN, (LegPart.IN,)),
        EndFork(fork_id, EndReason.STOPPED),
        ForkSpec(other, "", "ws://127.0.0.1:9/", Direction.IN, (LegPart.IN,)),
        ExpectLeg(other, LegPart.IN, fork_id),
        ForkSpec(str(uuid.uuid4()), "", "", Direction.IN, sample_rate=10**15),
        ForkSpec("x" * 1000, "", "", Direction.IN, frame_ms=-1),
        *(ExpectLeg(other, LegPart.IN, "no UUID") for _ in range(100)),
    ]
    for message in messages:
        await evil.send("other", pack(numbers.stamp(MAX_EPOCH - 1), message))
    await streams(rig, recorder, leg)
    await leg.close()


async def test_highest_epoch_locks_controllers_of_that_asterisk_out_and_forks_go_on(
    hosted: tuple[Rig, Evil], recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    rig, evil = hosted
    leg = await rig.attach(rig.begin(recorder.url("/a")))
    await streams(rig, recorder, leg)
    await evil.send(PBX, pack(Stamp(MAX_EPOCH - 1, "evil", 0), Hello()))
    await until(lambda: "obeys another controller by now" in caplog.text, 10)
    leg.send_audio(*numbered(20))
    await recorder.wait_messages("/a", 40)
    await asyncio.sleep(1)
    assert caplog.text.count("obeys another controller by now") == 1
    await leg.close()
