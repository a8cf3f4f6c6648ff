"""The relay as several processes: how they are started, watched and replaced; see test_relay.

The processes are real; where a fault is wanted that they do not show, a small program stands in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiofork.config import (
    Address,
    AudioSocketConfig,
    Config,
    RelayConfig,
    WebSocketConfig,
)
from audiofork.errors import CannotListen, ConfigError
from audiofork.link import processes as relays_module
from audiofork.link import relay_process, sharing
from audiofork.link.messages import (
    LATENCY_BUCKETS_MS,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    RelayAway,
    RelayLost,
    Report,
    SetMute,
    SinkOpened,
    StatsTaken,
    Streaming,
    TakeStats,
)
from audiofork.link.processes import NO_PROCESS, RelayProcesses
from audiofork.link.relay_process import start_child
from audiofork.link.workers import ProcessWorker
from testbed.asterisk import free_port
from testbed.recorder import Recorder
from tests.relay.peers import Leg, counted, numbered, until

pytestmark = pytest.mark.slow

TIMEOUT_S = 30  # a busy machine may take long to start Python
CONFIG = Config(
    audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)), relay=RelayConfig(workers=2)
)


class Rig:
    """Two workers, and what they report."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.reports: list[Report] = []
        self.unusable = ""  # why a configuration cannot be used
        self.relays = RelayProcesses(config, self.reports.append, self._check)

    def _check(self, config: Config) -> None:
        if self.unusable:
            raise ConfigError(self.unusable)

    def begin(self, url: str = "ws://127.0.0.1:1/") -> str:
        """Order a fork; return its id."""
        fork_id = str(uuid.uuid4())
        self.order(fork_id, url)
        return fork_id

    def order(self, fork_id: str, url: str = "ws://127.0.0.1:1/") -> None:
        wishes: dict[str, Any] = {"reconnect_attempts": 0}
        spec = ForkSpec(fork_id, "PJSIP/1", url, Direction.IN, (LegPart.IN,), **wishes)
        self.relays.send(spec)
        self.relays.send(ExpectLeg(fork_id, LegPart.IN, fork_id))

    def worker_of(self, fork_id: str) -> int:
        """Return which worker has a fork."""
        return self.relays.addresses.index(self.relays.address_of(fork_id))

    def pid(self, worker: int) -> int:
        process = self.relays._workers[worker].process
        assert process is not None
        return process.pid

    def signal(self, worker: int, number: signal.Signals) -> None:
        os.kill(self.pid(worker), number)

    async def restarted(self, worker: int, old_pid: int) -> None:
        """Wait until another process listens in place of one."""
        await until(
            lambda: self.pid(worker) != old_pid and self.relays._workers[worker].address, TIMEOUT_S
        )

    async def reported(self, report: Report) -> None:
        await until(lambda: report in self.reports, TIMEOUT_S)

    def of(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    async def lost(self) -> RelayLost:
        """Return the first report of a process that is lost."""
        await until(lambda: self.of(RelayLost), TIMEOUT_S)
        (report,) = self.of(RelayLost)
        assert isinstance(report, RelayLost)
        return report

    async def stats(self, ticket: int = 1) -> dict[str, ForkStats]:
        return counted((await self.taken(ticket)).stats)

    async def taken(self, ticket: int) -> StatsTaken:
        self.relays.send(TakeStats(ticket))
        await until(lambda: self.of(StatsTaken), TIMEOUT_S)
        taken = self.of(StatsTaken)[-1]
        assert isinstance(taken, StatsTaken)
        assert taken.ticket == ticket
        self.reports.remove(taken)
        return taken


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Two workers that listen; after the test none may be left."""
    rig = Rig()
    await rig.relays.start()
    yield rig
    await rig.relays.close()
    for worker in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(rig.pid(worker), 0)


async def stream(rig: Rig, fork_id: str, recorder: Recorder, path: str, frames: int = 10) -> Leg:
    """Connect the leg of a fork and relay some frames."""
    leg = await Leg.connect(rig.relays.address_of(fork_id))
    leg.send_uuid(fork_id)
    leg.send_audio(*numbered(frames))
    await recorder.wait_messages(path, frames)
    return leg


# --- What a single worker does too ---


async def test_forks_of_both_workers_are_relayed_and_reported(rig: Rig, recorder: Recorder) -> None:
    forks = {path: rig.begin(recorder.url(path)) for path in ("/a", "/b")}
    await rig.stats()  # they have the forks by now
    legs = [await stream(rig, fork_id, recorder, path) for path, fork_id in forks.items()]
    assert sorted(map(rig.worker_of, forks.values())) == [0, 1]
    assert await rig.stats() == {fork_id: ForkStats(10, 10) for fork_id in forks.values()}
    for path, fork_id in forks.items():
        rig.relays.send(SetMute(fork_id, mute_in=True))
        rig.relays.send(EndFork(fork_id, EndReason.STOPPED, "enough"))
        await rig.reported(ForkEnded(fork_id, EndReason.STOPPED, "enough", ForkStats(10, 10)))
        assert (await recorder.wait_closed(path)).messages == numbered(10)
    assert {type(report) for report in rig.reports} >= {LegAttached, SinkOpened}
    assert await rig.stats() == {}
    for leg in legs:
        await leg.close()


async def test_leg_that_is_lost_may_come_again_to_the_same_worker(
    rig: Rig, recorder: Recorder
) -> None:
    fork_id = rig.begin(recorder.url("/a"))
    await rig.stats()
    leg = await stream(rig, fork_id, recorder, "/a")
    await leg.close()
    await rig.reported(LegLost(fork_id, LegPart.IN, 10))
    before = rig.worker_of(fork_id)
    rig.relays.send(ExpectLeg(fork_id, LegPart.IN, fork_id))
    await rig.stats()
    again = await Leg.connect(rig.relays.address_of(fork_id))
    again.send_uuid(fork_id)
    await until(lambda: rig.reports.count(LegAttached(fork_id, LegPart.IN)) == 2)
    assert rig.worker_of(fork_id) == before
    await again.close()


async def test_close_ends_all_forks_in_order_and_says_so(rig: Rig, recorder: Recorder) -> None:
    forks = {path: rig.begin(recorder.url(path)) for path in ("/a", "/b")}
    await rig.stats()
    legs = [await stream(rig, fork_id, recorder, path) for path, fork_id in forks.items()]
    await rig.relays.close()
    for path, fork_id in forks.items():
        assert ForkEnded(fork_id, EndReason.SHUTDOWN, "", ForkStats(10, 10)) in rig.reports
        assert (await recorder.wait_closed(path)).close_code == 1001
    for leg in legs:
        await leg.close()


# --- Sharing out ---


async def test_forks_go_to_the_least_loaded(rig: Rig) -> None:
    forks = [rig.begin() for _ in range(10)]
    workers = [rig.worker_of(fork_id) for fork_id in forks]
    assert workers.count(0) == workers.count(1) == 5
    for fork_id in (fork_id for fork_id in forks if rig.worker_of(fork_id) == 1):
        rig.relays.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: len(rig.of(ForkEnded)) == 5, TIMEOUT_S)
    assert [rig.worker_of(rig.begin()) for _ in range(5)] == [1] * 5


async def test_asterisk_dials_the_advertised_ports_one_by_one() -> None:
    audiosocket = replace(CONFIG.audiosocket, advertise=Address("192.0.2.1", 9093))
    rig = Rig(replace(CONFIG, audiosocket=audiosocket))
    await rig.relays.start()
    fork_ids = [rig.begin(), rig.begin()]
    expected = [Address("192.0.2.1", 9093), Address("192.0.2.1", 9094)]
    assert rig.relays.addresses == expected
    assert [rig.relays.address_of(fork_id) for fork_id in fork_ids] == expected
    await rig.relays.close()


async def test_workers_listen_at_ports_one_after_another() -> None:
    first = free_port(socket.SOCK_STREAM, 2)
    listen = Address("127.0.0.1", first)
    rig = Rig(replace(CONFIG, audiosocket=AudioSocketConfig(listen=listen)))
    assert await rig.relays.start() == listen
    assert rig.relays.addresses == [listen, Address("127.0.0.1", first + 1)]
    for address in rig.relays.addresses:
        with socket.create_connection((address.host, address.port)):
            pass
    await rig.relays.close()


# --- Start and configuration ---


async def test_port_that_is_taken_fails_the_start_and_leaves_no_process() -> None:
    first = free_port(socket.SOCK_STREAM, 2)
    rig = Rig(replace(CONFIG, audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", first))))
    with (
        socket.create_server(("127.0.0.1", first + 1)),
        pytest.raises(CannotListen, match=rf"listen on 127.0.0.1:{first + 1}: .*in use"),
    ):
        await rig.relays.start()
    for worker in (0, 1):
        with pytest.raises(ProcessLookupError):
            rig.signal(worker, signal.SIGCONT)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Let processes run another program from now on."""
    (folder / "stand_in_of_a_relay.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(relay_process, "MODULE", "stand_in_of_a_relay")


async def test_process_that_dies_at_its_start_fails_the_start_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, "raise SystemExit(7)")
    with pytest.raises(CannotListen, match="the relay process died: exit code 7"):
        await Rig().relays.start()


async def test_process_that_cannot_be_started_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CannotListen, match="cannot be started: .*No such file"):
        await Rig().relays.start()


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


async def test_process_sees_nothing_of_the_environment_that_is_for_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUDIOFORK_ASTERISK_SECRET", "hunter2")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", "/etc/ssl/certs")
    rig = Rig()
    await rig.relays.start()
    environment = environment_of(rig.pid(0))
    assert "SSL_CERT_DIR" in environment
    assert "hunter2" not in environment
    assert "NOTIFY_SOCKET" not in environment
    await rig.relays.close()


async def test_new_configuration_counts_in_all_workers_and_in_those_started_later(
    rig: Rig, recorder: Recorder
) -> None:
    rig.relays.configure(replace(CONFIG, websocket=WebSocketConfig(frame_ms=200)))
    old_pid = rig.pid(0)
    rig.signal(0, signal.SIGKILL)
    await rig.restarted(0, old_pid)
    forks = {path: rig.begin(recorder.url(path)) for path in ("/a", "/b")}
    await rig.stats()
    for path, fork_id in forks.items():
        leg = await Leg.connect(rig.relays.address_of(fork_id))
        leg.send_uuid(fork_id)
        leg.send_audio(*numbered(10))
        recording = await recorder.wait_messages(path, 1)
        assert [len(message) for message in recording.messages] == [3200]
        await leg.close()


async def test_configuration_that_cannot_be_used_changes_nothing(
    rig: Rig, recorder: Recorder
) -> None:
    rig.unusable = "no such file"
    with pytest.raises(ConfigError, match="no such file"):
        rig.relays.configure(replace(CONFIG, websocket=WebSocketConfig(frame_ms=200)))
    fork_id = rig.begin(recorder.url("/a"))
    await rig.stats()
    leg = await stream(rig, fork_id, recorder, "/a")
    await leg.close()


# --- Processes that die ---


async def test_death_of_a_process_is_reported_for_its_forks_alone_and_another_is_started(
    rig: Rig, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    forks = [rig.begin(recorder.url("/a")), *(rig.begin() for _ in range(3))]
    stays = next(one for one in forks if rig.worker_of(one) != rig.worker_of(forks[0]))
    dying = rig.worker_of(forks[0])
    expected = {one for one in forks if rig.worker_of(one) == dying}
    addresses, old_pid = rig.relays.addresses, rig.pid(dying)
    rig.signal(dying, signal.SIGKILL)
    lost = await rig.lost()
    assert set(lost.fork_ids) == expected
    assert len(lost.fork_ids) == 2
    assert lost.away_s >= 0
    (line,) = [record.message for record in caplog.records if "died" in record.message]
    assert "killed by SIGKILL" in line
    assert "2 forks" in line
    assert str(addresses[dying]) in line
    await rig.restarted(dying, old_pid)
    assert rig.relays.addresses == addresses
    assert stays in await rig.stats()
    # The lost ones can be ordered again.
    rig.order(forks[0], recorder.url("/a"))
    assert forks[0] in await rig.stats()
    leg = await stream(rig, forks[0], recorder, "/a")
    await leg.close()


async def test_lost_forks_go_to_the_others_at_once(rig: Rig) -> None:
    forks = [rig.begin() for _ in range(4)]
    dying = rig.worker_of(forks[0])
    rig.signal(dying, signal.SIGKILL)
    for fork_id in (await rig.lost()).fork_ids:
        rig.order(fork_id)
    assert {rig.worker_of(fork_id) for fork_id in forks} == {1 - dying}
    assert len(await rig.stats()) == 4


async def test_command_for_a_fork_that_is_lost_leads_to_nothing(rig: Rig) -> None:
    fork_id = rig.begin()
    rig.signal(rig.worker_of(fork_id), signal.SIGKILL)
    await rig.lost()
    rig.reports.clear()
    rig.relays.send(SetMute(fork_id, mute_in=True))
    rig.relays.send(ExpectLeg(fork_id, LegPart.IN, fork_id))
    assert await rig.stats() == {}
    assert rig.reports == []


WAITING = """
import pathlib, runpy, time
while not pathlib.Path({!r}).exists():
    time.sleep(0.01)
runpy.run_module("audiofork.relay.process", run_name="__main__")
"""


async def test_without_any_process_forks_wait_for_the_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    stand_in(monkeypatch, tmp_path, WAITING.format(str(go)))
    forks = [rig.begin() for _ in range(4)]
    pids = [rig.pid(0), rig.pid(1)]
    rig.signal(0, signal.SIGKILL)
    rig.signal(1, signal.SIGKILL)
    await until(lambda: rig.of(RelayAway), TIMEOUT_S)
    first, *waiting = rig.relays._orphaned
    away = rig.of(RelayAway)[-1]  # one for each death, if both came at once
    assert {first, *waiting} <= set(away.fork_ids)
    rig.reports.clear()  # of the first, perhaps, while the other seemed to live
    rig.relays.send(EndFork(first, EndReason.STOPPED, "enough"))
    await rig.reported(ForkEnded(first, EndReason.STOPPED, "enough", ForkStats()))
    assert rig.of(RelayLost) == []
    go.touch()
    for worker in (0, 1):
        await rig.restarted(worker, pids[worker])
    lost = [fork_id for report in rig.of(RelayLost) for fork_id in report.fork_ids]
    assert sorted(lost) == sorted(waiting)
    rig.order(forks[0])
    assert list(await rig.stats()) == [forks[0]]


async def test_forks_of_processes_that_die_at_once_wait_for_one_and_are_not_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "CLOSE_TIMEOUT_S", 0.1)  # for processes that do not know
    forks = {rig.begin(), rig.begin()}
    for worker in rig.relays._workers:  # in one turn of the loop
        rig.relays._on_death(worker, "killed")
    await until(lambda: rig.of(RelayAway))
    assert set(rig.of(RelayAway)[-1].fork_ids) == forks
    assert rig.of(RelayLost) == []
    first = rig.relays._workers[0]
    rig.relays._on_listening(first, first.listen)
    assert set((await rig.lost()).fork_ids) == forks
    for fork_id in forks:
        rig.order(fork_id)
    assert first.forks == forks
    assert rig.of(ForkEnded) == []
    await rig.relays.close()  # while the time-out is the short one


async def test_report_of_a_fork_that_the_process_does_not_have_is_dropped(rig: Rig) -> None:
    worker = rig.relays._workers[0]
    rig.relays._on_message(worker, Streaming("gone"))
    rig.relays._on_message(worker, ForkEnded("gone", EndReason.FAULT, "", ForkStats()))
    assert rig.reports == []


async def test_without_any_process_in_time_forks_are_lost_and_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rig.relays, "_patience_s", 0.2)
    stand_in(monkeypatch, tmp_path, "import time; time.sleep(600)")
    fork_ids = {rig.begin(), rig.begin()}
    for worker in (0, 1):
        rig.signal(worker, signal.SIGKILL)
    await until(
        lambda: {one for report in rig.of(RelayLost) for one in report.fork_ids} == fork_ids,
        TIMEOUT_S,
    )
    fork_id = fork_ids.pop()
    await until(lambda: not rig.relays._listening(), TIMEOUT_S)
    rig.order(fork_id)
    await rig.reported(ForkEnded(fork_id, EndReason.LEG_FAILED, NO_PROCESS, ForkStats()))
    assert await rig.stats() == {}
    monkeypatch.setattr(relays_module, "CLOSE_TIMEOUT_S", 0.1)
    await rig.relays.close()


async def test_process_that_hangs_is_killed_and_another_is_started(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = rig.begin()
    worker, old_pid = rig.worker_of(fork_id), rig.pid(rig.worker_of(fork_id))
    rig.signal(worker, signal.SIGSTOP)
    monkeypatch.setattr(relays_module, "PING_INTERVAL_S", 0.1)
    lost = await rig.lost()
    assert lost.fork_ids == (fork_id,)
    await rig.restarted(worker, old_pid)
    assert f"relay process {old_pid} at {rig.relays.addresses[worker]} does not answer" in [
        record.message for record in caplog.records
    ]


async def test_process_that_answers_is_let_live(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = [rig.pid(0), rig.pid(1)]
    monkeypatch.setattr(relays_module, "PING_INTERVAL_S", 0.1)
    await asyncio.sleep(2.5)
    assert [rig.pid(0), rig.pid(1)] == pids
    assert all(worker.unanswered <= 2 for worker in rig.relays._workers)


async def test_process_that_sends_nonsense_is_killed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = "import os, time; os.write(0, b'nonsense\\n'); time.sleep(600)"
    with monkeypatch.context() as patch:
        stand_in(patch, tmp_path, program)
        rig.signal(0, signal.SIGKILL)
        await until(lambda: "no JSON" in caplog.text, TIMEOUT_S)
    await until(lambda: rig.relays._workers[0].address, TIMEOUT_S)
    assert len(rig.relays._listening()) == 2


async def test_processes_that_die_again_and_again_are_started_after_longer_and_longer_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    pauses: list[float] = []

    async def die(worker: Any) -> str:
        return "at once"

    async def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 8:
            rig.relays._closing.set()

    monkeypatch.setattr(rig.relays, "_run", die)
    monkeypatch.setattr(rig.relays, "_pause", pause)
    await rig.relays._supervise(ProcessWorker(Address("127.0.0.1", 0), None, start_child))
    assert pauses == [0, 0.25, 0.5, 1, 2, 4, 5, 5]


async def test_close_does_not_wait_for_a_process_that_hangs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "CLOSE_TIMEOUT_S", 0.3)
    rig.signal(0, signal.SIGSTOP)
    async with asyncio.timeout(TIMEOUT_S):
        await rig.relays.close()
    await until(lambda: not Path(f"/proc/{rig.pid(0)}").exists())


async def test_close_does_not_wait_for_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relays_module, "FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(relays_module, "LONGEST_PAUSE_S", 600.0)
    rig = Rig()
    await rig.relays.start()
    stand_in(monkeypatch, tmp_path, "")
    for worker in (0, 1):
        rig.signal(worker, signal.SIGKILL)
    await until(lambda: caplog.text.count(" died (") == 4, TIMEOUT_S)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await rig.relays.close()
    assert loop.time() - began < relays_module.CLOSE_TIMEOUT_S


async def test_worker_whose_process_dies_is_down_until_another_listens(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "PING_INTERVAL_S", 0.2)
    await until(lambda: all(worker.rtt_s for worker in rig.relays.workers), TIMEOUT_S)
    assert all(0 < worker.rtt_s < TIMEOUT_S for worker in rig.relays.workers)
    old = rig.pid(1)
    rig.signal(1, signal.SIGKILL)
    await until(lambda: not rig.relays.workers[1].is_up, TIMEOUT_S)
    assert (rig.relays.workers[0].is_up, rig.relays.workers[1].rtt_s) == (True, 0.0)
    await rig.restarted(1, old)
    assert all(worker.is_up for worker in rig.relays.workers)


# --- Statistics ---


async def test_statistics_do_not_wait_for_a_process_that_hangs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "STATS_TIMEOUT_S", 3.0)
    forks = [rig.begin(), rig.begin()]
    await until(lambda: len(rig.relays._owners) == 2)
    rig.signal(0, signal.SIGSTOP)
    answered = await rig.stats()
    assert list(answered) == [one for one in forks if rig.worker_of(one) == 1]
    monkeypatch.setattr(sharing, "STATS_TIMEOUT_S", 60.0)
    rig.signal(0, signal.SIGCONT)
    assert len(await rig.stats(2)) == 2  # the late answer to the first is no answer to it
    assert rig.of(StatsTaken) == []


async def test_latencies_of_all_processes_add_up_and_stay_when_one_dies(
    rig: Rig, recorder: Recorder
) -> None:
    forks = {path: rig.begin(recorder.url(path)) for path in ("/a", "/b")}
    await rig.stats()
    legs = [await stream(rig, fork_id, recorder, path, 60) for path, fork_id in forks.items()]
    before = await rig.taken(2)
    assert before.latency[-1] >= 4  # of two forks, one frame of 25
    assert len(before.latency) == len(LATENCY_BUCKETS_MS) + 1
    rig.signal(0, signal.SIGKILL)
    await rig.lost()
    after = await rig.taken(3)
    assert all(b >= a for a, b in zip(before.latency, after.latency, strict=True))
    assert after.latency_sum_s >= before.latency_sum_s
    for leg in legs:
        await leg.close()


async def test_statistics_do_not_wait_for_a_process_that_dies(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "STATS_TIMEOUT_S", 600.0)
    forks = [rig.begin(), rig.begin()]
    rig.signal(0, signal.SIGSTOP)
    rig.relays.send(TakeStats(1))
    rig.signal(0, signal.SIGKILL)
    await until(lambda: rig.of(StatsTaken), TIMEOUT_S)
    survivor = next(one for one in forks if rig.relays.addresses[1] == rig.relays.address_of(one))
    (taken,) = rig.of(StatsTaken)
    assert list(taken.stats) == [survivor]
