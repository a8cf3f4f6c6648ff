"""The contract `Relay`, tried on every implementation.

A new one joins by a line in IMPLEMENTATIONS.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import audiofork
from audiofork.config import (
    Address,
    AudioSocketConfig,
    ClusterConfig,
    Config,
    RelayConfig,
    WebSocketConfig,
)
from audiofork.errors import CannotListen, ConfigError
from audiofork.link.hosts import RelayHosts
from audiofork.link.inline import InlineRelay, check_files
from audiofork.link.messages import (
    CheckLeg,
    Command,
    Direction,
    EndFork,
    EndReason,
    ExpectCheckLeg,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeardAudio,
    LegAttached,
    LegLost,
    LegPart,
    Levels,
    LevelsTaken,
    Listen,
    Report,
    SendReport,
    SetGate,
    SetMute,
    SinkOpened,
    StatsTaken,
    StrangersRefused,
    Streaming,
    TakeLevels,
    TakeStats,
    Tls,
)
from audiofork.link.processes import RelayProcesses
from audiofork.link.relay import Relay, Reports, give
from testbed.recorder import Recorder
from tests.link.hosted import HostedRelay
from tests.relay.peers import HANGUP, Leg, numbered, until

pytestmark = pytest.mark.slow

TIMEOUT_S = 30  # a busy machine may take long to start Python
CONFIG = Config(
    audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)), relay=RelayConfig(workers=1)
)


def detached(config: Config) -> Config:
    """Return a configuration with processes of their own folder that outlive the daemon."""
    folder = tempfile.mkdtemp(prefix="audiofork-relay-")
    return replace(config, relay=RelayConfig(detached=True, folder=folder, orphan_timeout=1.0))


IMPLEMENTATIONS: dict[str, Callable[[Config, SendReport], Relay]] = {
    "inline": InlineRelay,
    "processes": lambda config, report: RelayProcesses(config, report, check_files),
    "detached": lambda config, report: RelayProcesses(detached(config), report, check_files),
}
# Those whose settings and addresses are not of the daemon's configuration.
ELSEWHERE: dict[str, Callable[[Config, SendReport], Relay]] = {"hosts": HostedRelay}
PACKAGE = str(Path(audiofork.__file__).parent)
# Who may not wait for a handler of reports: who sends a command, and transports.
NOT_WITHIN = {"send", "data_received", "eof_received", "connection_made", "connection_lost"}


def callers() -> list[str]:
    """Return the names of the package's functions that are being called."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


class Rig:
    """A relay, and what it reports.

    Attributes:
        on_report: Called with each report, after it is noted.
        misplaced: Functions of the package that waited for a handler, and may not.
    """

    def __init__(self, build: Callable[[Config, SendReport], Relay]) -> None:
        self.reports: list[Report] = []
        self.on_report: Callable[[Report], None] = lambda report: None
        self.misplaced: list[str] = []
        self._handling = False
        self.relay = build(CONFIG, self._handle)

    def _handle(self, report: Report) -> None:
        self.misplaced += [name for name in callers() if name in NOT_WITHIN]
        self.misplaced += ["another handler"] if self._handling else []
        self.reports.append(report)
        self._handling = True
        try:
            self.on_report(report)
        finally:
            self._handling = False

    def begin(self, url: str = "ws://127.0.0.1:1/", **more: Any) -> str:
        """Order a fork; its leg may connect with the fork's id. Return that."""
        fork_id = str(uuid.uuid4())
        more = {"legs": (LegPart.IN,), "reconnect_attempts": 0, **more}
        self.relay.send(ForkSpec(fork_id, "PJSIP/1", url, Direction.IN, **more))
        self.relay.send(ExpectLeg(fork_id, LegPart.IN, fork_id))
        return fork_id

    async def attach(self, fork_id: str) -> Leg:
        """Connect the leg of a fork, when its relay has the fork."""
        await self.stats()
        leg = await Leg.connect(self.relay.address_of(fork_id))
        leg.send_uuid(fork_id)
        return leg

    async def reported(self, kind: type[Any], count: int = 1) -> Any:
        """Return the last report of a kind, once there are so many."""
        await until(lambda: len(self.of(kind)) >= count, TIMEOUT_S)
        return self.of(kind)[-1]

    def of(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    async def stats(self) -> dict[str, ForkStats]:
        ticket = 1000 + len(self.of(StatsTaken))
        self.relay.send(TakeStats(ticket))
        taken: StatsTaken = await self.reported(StatsTaken, ticket - 999)
        assert taken.ticket == ticket
        return taken.stats


@pytest.fixture(params=IMPLEMENTATIONS | ELSEWHERE)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A relay that listens; its handler was never called where it may not be."""
    async with running((IMPLEMENTATIONS | ELSEWHERE)[request.param]) as one:
        yield one


@pytest.fixture(params=IMPLEMENTATIONS)
async def configured(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """The same, of those that the daemon configures."""
    async with running(IMPLEMENTATIONS[request.param]) as one:
        yield one


@asynccontextmanager
async def running(build: Callable[[Config, SendReport], Relay]) -> AsyncIterator[Rig]:
    rig = Rig(build)
    assert await rig.relay.start() == rig.relay.addresses[0]
    yield rig
    await rig.relay.close()
    assert rig.misplaced == []


# --- Commands ---


async def test_send_returns_before_the_first_report(rig: Rig) -> None:
    fork_id = rig.begin("wss://127.0.0.1:1/", tls=Tls(ca_file="nowhere"))  # refused
    rig.relay.send(TakeStats(1))
    assert rig.reports == []
    ended: ForkEnded = await rig.reported(ForkEnded)
    assert (ended.fork_id, ended.reason) == (fork_id, EndReason.SINK_REFUSED)
    await rig.reported(StatsTaken)


async def test_send_within_a_handler_reports_after_the_handler(rig: Rig) -> None:
    def ask_again(report: Report) -> None:
        if report == StatsTaken(1, {}):
            rig.relay.send(TakeStats(2))
            assert rig.reports == [StatsTaken(1, {})]

    rig.on_report = ask_again
    rig.relay.send(TakeStats(1))
    assert await rig.reported(StatsTaken, 2) == StatsTaken(2, {})


async def test_command_for_a_fork_that_there_is_not_has_no_effect(rig: Rig) -> None:
    commands: list[Command] = [
        ExpectLeg("gone", LegPart.IN, str(uuid.uuid4())),
        SetMute("gone", mute_in=True),
        SetGate("gone", False),
        EndFork("gone", EndReason.STOPPED),
        Listen("gone", is_on=True),
        Listen("gone", is_on=False),
    ]
    for command in commands:
        rig.relay.send(command)
    assert await rig.stats() == {}
    assert len(rig.reports) == 1


async def test_command_that_meets_a_bug_ends_the_fork_alone(rig: Rig) -> None:
    fork_id = rig.begin(legs=(), sample_rate=-8000)  # what the control plane never asks for
    ended: ForkEnded = await rig.reported(ForkEnded)
    assert (ended.fork_id, ended.reason) == (fork_id, EndReason.FAULT)
    other = rig.begin()
    assert list(await rig.stats()) == [other]


def test_bug_of_another_command_is_logged_and_ends_no_fork(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(command: Command) -> None:
        raise RuntimeError("a bug")

    reports: list[Report] = []
    give(SetGate("a", True), fail, reports.append)
    assert reports == []
    assert "SetGate could not be handled" in caplog.text
    assert "a bug" in caplog.text


# --- Reports ---


async def test_reports_of_a_fork_come_in_order(rig: Rig, recorder: Recorder) -> None:
    fork_id = rig.begin(recorder.url("/a"))
    await rig.reported(SinkOpened)
    leg = await rig.attach(fork_id)
    leg.send_audio(*numbered(10))
    await recorder.wait_messages("/a", 10)
    rig.relay.send(EndFork(fork_id, EndReason.STOPPED, "enough"))
    await rig.reported(ForkEnded)
    assert [report for report in rig.reports if not isinstance(report, StatsTaken)] == [
        SinkOpened(fork_id),
        LegAttached(fork_id, LegPart.IN),
        Streaming(fork_id),
        ForkEnded(fork_id, EndReason.STOPPED, "enough", ForkStats(10, 10)),
    ]
    await leg.close()


@pytest.mark.parametrize("kind", [SinkOpened, LegAttached, Streaming])
async def test_handler_that_raises_is_logged_and_loses_no_frame(
    rig: Rig, recorder: Recorder, caplog: pytest.LogCaptureFixture, kind: type[Any]
) -> None:
    def fail(report: Report) -> None:
        if isinstance(report, kind):
            raise RuntimeError("a bug")

    rig.on_report = fail
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    leg.send_audio(*numbered(10))
    assert (await recorder.wait_messages("/a", 10)).messages == numbered(10)
    await rig.reported(kind)
    assert f"{kind.__name__} could not be handled" in caplog.text
    assert "a bug" in caplog.text
    await leg.close()


async def test_connection_with_a_wrong_uuid_is_reported_and_a_bug_there_loses_no_frame(
    rig: Rig, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(report: Report) -> None:
        if isinstance(report, StrangersRefused):
            raise RuntimeError("a bug")

    rig.on_report = fail
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    leg.send_audio(*numbered(5))
    await recorder.wait_messages("/a", 5)
    stranger = await Leg.connect(rig.relay.address_of(fork_id))
    stranger.send_uuid(str(uuid.uuid4()))
    assert await stranger.read_to_end() == HANGUP
    assert await rig.reported(StrangersRefused) == StrangersRefused(1, "127.0.0.1")
    leg.send_audio(*numbered(5, 5))
    assert (await recorder.wait_messages("/a", 10)).messages == numbered(10)
    assert "StrangersRefused could not be handled" in caplog.text
    for one in (leg, stranger):
        await one.close()


async def test_host_of_a_fork_is_named_where_it_is_another_one(rig: Rig) -> None:
    fork_id = rig.begin()
    await rig.stats()
    hosted = isinstance(rig.relay, HostedRelay)
    assert rig.relay.host_of(fork_id) == ("r1" if hosted else "")
    assert [worker.name for worker in rig.relay.workers][:1] == ["r1" if hosted else ""]
    assert rig.relay.host_of("gone") == ""


async def test_levels_are_taken_of_all_forks_and_a_take_measures_for_the_next(
    rig: Rig, recorder: Recorder
) -> None:
    forks = [rig.begin(recorder.url(path)) for path in ("/a", "/b")]
    leg = await rig.attach(forks[0])

    async def take() -> dict[str, Levels]:
        before = len(rig.of(LevelsTaken))
        rig.relay.send(TakeLevels())
        await rig.reported(LevelsTaken, before + len(rig.relay.addresses))
        taken: list[LevelsTaken] = rig.of(LevelsTaken)[before:]
        return {fork_id: levels for one in taken for fork_id, levels in one.levels.items()}

    silent = Levels(0, 0, -1, -1)
    leg.send_audio(*numbered(10))
    await recorder.wait_messages("/a", 10)
    assert await take() == dict.fromkeys(forks, silent)
    leg.send_audio(b"\x10\x00" * 160)
    await recorder.wait_messages("/a", 11)
    assert await take() == {forks[0]: Levels(16, 16, -1, -1), forks[1]: silent}
    await leg.close()


async def test_who_listens_hears_the_fork_until_its_end(rig: Rig, recorder: Recorder) -> None:
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    rig.relay.send(Listen(fork_id, is_on=True))
    await rig.stats()
    leg.send_audio(*numbered(12))
    await recorder.wait_messages("/a", 12)
    rig.relay.send(EndFork(fork_id, EndReason.STOPPED))
    await rig.reported(ForkEnded)
    heard: list[HeardAudio] = rig.of(HeardAudio)
    assert [(one.fork_id, one.number) for one in heard] == [(fork_id, n) for n in (0, 5, 10)]
    assert b"".join(one.samples for one in heard) == b"".join(numbered(12))
    assert isinstance(rig.reports[-1], ForkEnded)
    await leg.close()


async def test_who_listens_no_more_hears_nothing(rig: Rig, recorder: Recorder) -> None:
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    for is_on in (True, False):
        rig.relay.send(Listen(fork_id, is_on=is_on))
    await rig.stats()
    leg.send_audio(*numbered(12))
    await recorder.wait_messages("/a", 12)
    await rig.stats()
    assert rig.of(HeardAudio) == []
    await leg.close()


async def test_leg_of_a_check_is_expected_everywhere_and_reported_where_it_comes(rig: Rig) -> None:
    for address in rig.relay.addresses:
        leg_uuid = str(uuid.uuid4())
        before = len(rig.of(CheckLeg))
        rig.relay.send(ExpectCheckLeg(leg_uuid))
        expected = before + len(rig.relay.addresses)
        assert await rig.reported(CheckLeg, expected) == CheckLeg(leg_uuid, has_come=False)
        leg = await Leg.connect(address)
        leg.send_uuid(leg_uuid)
        assert await leg.read_to_end() == HANGUP
        assert await rig.reported(CheckLeg, expected + 1) == CheckLeg(leg_uuid, has_come=True)
        await leg.close()
    assert rig.of(StrangersRefused) == []


async def test_leg_that_comes_from_elsewhere_is_refused_and_the_right_one_is_let_in(
    rig: Rig, recorder: Recorder
) -> None:
    home = (ip_network("127.0.0.2"),)
    if isinstance(rig.relay, RelayHosts):  # a controller says where its Asterisk is
        rig.relay.configure(Config(cluster=ClusterConfig(legs_from=home)))
    fork_id = rig.begin(recorder.url("/a"), legs_from=home)
    stranger = await rig.attach(fork_id)
    assert await stranger.read_to_end() == HANGUP
    assert (await rig.reported(StrangersRefused)).address == "127.0.0.1"
    assert rig.of(LegAttached) == []
    leg = await Leg.connect(rig.relay.address_of(fork_id), "127.0.0.2")
    leg.send_uuid(fork_id)
    leg.send_audio(*numbered(3))
    assert (await recorder.wait_messages("/a", 3)).messages == numbered(3)
    for one in (stranger, leg):
        await one.close()


async def test_leg_of_a_uuid_that_two_present_is_reported_as_contested(
    rig: Rig, recorder: Recorder
) -> None:
    fork_id = rig.begin(recorder.url("/a"))
    first = await rig.attach(fork_id)
    await rig.reported(LegAttached)
    second = await rig.attach(fork_id)
    assert await first.read_to_end() == await second.read_to_end() == HANGUP
    assert await rig.reported(LegLost) == LegLost(fork_id, LegPart.IN, 0, contested=True)
    rig.relay.send(ExpectLeg(fork_id, LegPart.IN, other := str(uuid.uuid4())))
    await rig.stats()
    third = await Leg.connect(rig.relay.address_of(fork_id))
    third.send_uuid(other)
    third.send_audio(*numbered(3))
    assert (await recorder.wait_messages("/a", 3)).messages == numbered(3)
    for leg in (first, second, third):
        await leg.close()


async def test_handler_that_raises_delays_no_other_report(rig: Rig, recorder: Recorder) -> None:
    def fail(report: Report) -> None:
        raise RuntimeError("a bug")

    rig.on_report = fail
    fork_id = rig.begin(recorder.url("/a"))
    leg = await rig.attach(fork_id)
    await leg.close()
    assert await rig.reported(LegLost) == LegLost(fork_id, LegPart.IN, 0)
    rig.relay.send(EndFork(fork_id, EndReason.HANGUP))
    ended: ForkEnded = await rig.reported(ForkEnded)
    assert ended.reason is EndReason.HANGUP


async def test_reports_put_together_are_delivered_one_by_one_in_order() -> None:
    delivered: list[Report] = []

    def handle(report: Report) -> None:
        delivered.append(report)
        if report == SinkOpened("a"):
            reports.put(SinkOpened("c"))
            assert delivered == [SinkOpened("a")]

    reports = Reports(handle)
    reports.put(SinkOpened("a"))
    reports.put(SinkOpened("b"))
    assert delivered == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert delivered == [SinkOpened("a"), SinkOpened("b"), SinkOpened("c")]


async def test_report_that_is_made_is_made_when_its_turn_has_come() -> None:
    delivered: list[Report] = []
    reports = Reports(delivered.append)
    state = "before"
    reports.put_made(lambda: SinkOpened(state))
    reports.put_made(lambda: None)
    state = "now"
    await asyncio.sleep(0)
    assert delivered == [SinkOpened("now")]


# --- Start, settings, end ---


async def test_address_of_a_fork_is_one_of_the_addresses(rig: Rig) -> None:
    assert rig.relay.address_of(rig.begin()) in rig.relay.addresses
    assert rig.relay.address_of("gone") in rig.relay.addresses


@pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
async def test_address_that_is_taken_fails_the_start(
    build: Callable[[Config, SendReport], Relay],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Address("127.0.0.1", other.getsockname()[1])
        alone = RelayConfig(workers=1)  # the next port may be anybody's
        config = Config(audiosocket=AudioSocketConfig(listen=listen), relay=alone)
        relay = build(config, print)
        with pytest.raises(CannotListen, match=rf"\[audiosocket\] listen: .* {listen}: .*in use"):
            await relay.start()
        await relay.close()


UNUSABLE = replace(CONFIG, websocket=WebSocketConfig(ca_list_file="/nowhere.pem", frame_ms=40))


@pytest.mark.parametrize("build", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_relay_is_not_built_with_a_file_that_cannot_be_used(
    build: Callable[[Config, SendReport], Relay],
) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere\.pem"):
        build(UNUSABLE, print)


async def test_configuration_that_cannot_be_used_changes_nothing(
    configured: Rig, recorder: Recorder
) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere\.pem"):
        configured.relay.configure(UNUSABLE)
    await assert_message_sizes(configured, recorder, {320})


async def test_configuration_counts_for_new_forks(configured: Rig, recorder: Recorder) -> None:
    rig = configured
    before = rig.relay.addresses
    listen = AudioSocketConfig(listen=Address("127.0.0.1", 1))
    websocket = WebSocketConfig(frame_ms=40)
    rig.relay.configure(replace(CONFIG, audiosocket=listen, websocket=websocket))
    await assert_message_sizes(rig, recorder, {640})
    assert rig.relay.addresses == before


async def assert_message_sizes(rig: Rig, recorder: Recorder, sizes: set[int]) -> None:
    """Relay ten frames of a new fork, and look at the messages that the server gets."""
    leg = await rig.attach(rig.begin(recorder.url("/a")))
    leg.send_audio(*numbered(10))
    recording = await recorder.wait_messages("/a", 5)
    assert {len(message) for message in recording.messages} == sizes
    await leg.close()


async def test_close_has_delivered_every_report(rig: Rig, recorder: Recorder) -> None:
    forks = [rig.begin(recorder.url(path)) for path in ("/a", "/b", "/c")]
    await rig.reported(SinkOpened, 3)
    await rig.relay.close()
    ended = {report.fork_id: report.reason for report in rig.of(ForkEnded)}
    expected = [] if rig.relay.outlives_daemon else forks
    assert ended == dict.fromkeys(expected, EndReason.SHUTDOWN)


async def test_workers_show_where_they_listen_and_how_many_forks_they_have(rig: Rig) -> None:
    (worker,) = rig.relay.workers
    assert (worker.address, worker.is_up, worker.forks) == (rig.relay.addresses[0], True, 0)
    rig.begin(reconnect_attempts=9)
    await rig.stats()
    assert [worker.forks for worker in rig.relay.workers] == [1]
    await rig.relay.close()
    assert [worker.is_up for worker in rig.relay.workers] == [False]


async def test_close_twice_does_no_harm(rig: Rig) -> None:
    await rig.relay.close()
    await rig.relay.close()


async def test_report_that_comes_after_the_close_is_dropped() -> None:
    delivered: list[Report] = []
    reports = Reports(delivered.append)
    reports.put(SinkOpened("a"))
    await reports.close()
    reports.put(SinkOpened("b"))
    await asyncio.sleep(0)
    assert delivered == [SinkOpened("a")]


async def test_workers_are_up_and_have_their_forks(rig: Rig) -> None:
    fork_id = rig.begin()
    await rig.stats()
    assert [(state.is_up, state.forks) for state in rig.relay.workers] == [(True, 1)]
    rig.relay.send(EndFork(fork_id, EndReason.STOPPED))
    await rig.reported(ForkEnded)
    assert [(state.is_up, state.forks) for state in rig.relay.workers] == [(True, 0)]
