"""Relay processes that outlive the daemon, as daemons that come one after the other see them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.config import Address, AudioSocketConfig, Config, RelayConfig
from audiofork.errors import CannotListen
from audiofork.link import relay_process
from audiofork.link.messages import (
    Adopt,
    EndFork,
    EndReason,
    ForkEnded,
    LegAttached,
    LegPart,
    RelayLost,
    Streaming,
)
from audiofork.link.relay_process import SOCKET_NAME, Detached, retire_unused
from audiofork.unix_sockets import Peer
from testbed.asterisk import free_port
from testbed.recorder import Recorder
from tests.link.test_processes import TIMEOUT_S, Rig
from tests.relay.peers import Leg, lives, numbered, until

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One detached process."""
    return Config(
        audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)),
        relay=RelayConfig(detached=True, folder=str(tmp_path / "relay"), orphan_timeout=20.0),
    )


class Daemons:
    """Daemons, one after the other."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rigs: list[Rig] = []
        self.legs: list[Leg] = []

    async def start(self) -> Rig:
        rig = Rig(self.config)
        await rig.relays.start()
        self.rigs.append(rig)
        return rig

    async def stream(self, rig: Rig, recorder: Recorder) -> str:
        """Relay some frames of a new fork; return its id."""
        fork_id = rig.begin(recorder.url("/fork"))
        await rig.stats()
        leg = await Leg.connect(rig.relays.address_of(fork_id))
        self.legs.append(leg)
        leg.send_uuid(fork_id)
        await rig.reported(LegAttached(fork_id, LegPart.IN))
        leg.send_audio(*numbered(10))
        await recorder.wait_messages("/fork", 10)
        return fork_id

    async def succeed(self, recorder: Recorder) -> tuple[str, Rig]:
        """Let a daemon begin a fork and die; return the fork, and the next daemon."""
        first = await self.start()
        fork_id = await self.stream(first, recorder)
        await self.die(first)
        return fork_id, await self.start()

    async def die(self, rig: Rig) -> None:
        """Let a daemon vanish, as SIGKILL does: no message, no order."""
        self.rigs.remove(rig)
        relays = rig.relays
        for task in relays._tasks:
            task.cancel()
        relays._closing.set()  # it must not kill its process
        await asyncio.gather(*relays._tasks, return_exceptions=True)
        await relays.close()


@pytest.fixture
async def daemons(config: Config) -> AsyncIterator[Daemons]:
    one = Daemons(config)
    yield one
    for rig in one.rigs:
        pid = rig.pid(0)
        await rig.relays.close()
        if lives(pid):
            os.kill(pid, signal.SIGKILL)
    for leg in one.legs:
        await leg.close()


@pytest.fixture
def service(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """A process that somebody else has started, as systemd does."""
    with start_service(config) as one:
        yield one
        one.kill()


def start_service(config: Config) -> subprocess.Popen[bytes]:
    path = socket_of(config)
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    return subprocess.Popen([sys.executable, "-m", "audiofork", "relay", os.fspath(path)])


def socket_of(config: Config) -> Path:
    return Path(config.relay.folder) / "0" / SOCKET_NAME


async def test_next_daemon_finds_the_fork_and_its_process(
    daemons: Daemons, recorder: Recorder
) -> None:
    first = await daemons.start()
    fork_id = await daemons.stream(first, recorder)
    pid, address = first.pid(0), first.relays.addresses
    await daemons.die(first)
    second = await daemons.start()
    assert (second.pid(0), second.relays.addresses) == (pid, address)
    assert list(second.relays.held or ()) == [fork_id]
    assert second.relays.address_of(fork_id) == address[0]
    assert second.relays.workers[0].forks == 1
    second.relays.send(Adopt(fork_id))
    await second.reported(Streaming(fork_id))
    assert second.relays.held == {}
    assert (await second.stats())[fork_id].frames_in == 10
    second.relays.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: second.of(ForkEnded), TIMEOUT_S)
    assert len(recorder.recordings) == 1


async def test_held_fork_that_is_not_wanted_ends_and_is_not_reported(
    daemons: Daemons, recorder: Recorder
) -> None:
    fork_id, second = await daemons.succeed(recorder)
    second.relays.send(EndFork(fork_id, EndReason.SHUTDOWN, "nobody knows it"))
    await recorder.wait_closed("/fork")
    await until(lambda: not second.relays.held, TIMEOUT_S)
    assert second.of(ForkEnded) == []
    assert second.relays.workers[0].forks == 0


async def test_close_leaves_a_process_with_forks_and_ends_one_without(
    daemons: Daemons, recorder: Recorder
) -> None:
    first = await daemons.start()
    fork_id = await daemons.stream(first, recorder)
    pid = first.pid(0)
    daemons.rigs.remove(first)
    await first.relays.close()
    assert lives(pid)
    second = await daemons.start()
    second.relays.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: not second.relays.held, TIMEOUT_S)
    daemons.rigs.remove(second)
    await second.relays.close()
    assert not lives(pid)


async def test_process_of_somebody_else_is_used_and_left(
    daemons: Daemons, service: subprocess.Popen[bytes]
) -> None:
    await until(lambda: socket_of(daemons.config).exists(), TIMEOUT_S)
    rig = await daemons.start()
    assert rig.pid(0) == service.pid
    daemons.rigs.remove(rig)
    await rig.relays.close()
    assert service.poll() is None


async def test_process_that_dies_is_started_again_and_its_forks_are_lost(
    daemons: Daemons, recorder: Recorder
) -> None:
    rig = await daemons.start()
    fork_id = await daemons.stream(rig, recorder)
    old = rig.pid(0)
    rig.signal(0, signal.SIGKILL)
    assert (await rig.lost()).fork_ids == (fork_id,)
    assert rig.pid(0) != old
    assert not lives(old)


async def test_process_that_dies_with_held_forks_holds_them_no_more(
    daemons: Daemons, recorder: Recorder
) -> None:
    fork_id, second = await daemons.succeed(recorder)
    second.signal(0, signal.SIGKILL)
    assert (await second.lost()).fork_ids == (fork_id,)
    assert second.relays.held == {}


async def test_process_that_somebody_else_has_started_is_theirs_to_replace(
    daemons: Daemons, service: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_process, "REPLACE_TIMEOUT_S", TIMEOUT_S)
    await until(lambda: socket_of(daemons.config).exists(), TIMEOUT_S)
    rig = await daemons.start()
    service.kill()
    await asyncio.to_thread(service.wait)
    with start_service(daemons.config) as again:
        await rig.restarted(0, service.pid)
        assert rig.pid(0) == again.pid
        daemons.rigs.remove(rig)
        await rig.relays.close()
        again.kill()


async def test_process_that_nobody_replaces_is_replaced_by_the_daemon(
    daemons: Daemons, service: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_process, "REPLACE_TIMEOUT_S", 0.1)
    await until(lambda: socket_of(daemons.config).exists(), TIMEOUT_S)
    rig = await daemons.start()
    service.kill()
    await rig.restarted(0, service.pid)
    process = rig.relays._workers[0].process
    assert isinstance(process, Detached)
    await until(lambda: not process.is_service, TIMEOUT_S)


async def test_process_that_hangs_is_killed_and_replaced(
    daemons: Daemons, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.link.processes.PING_INTERVAL_S", 0.2)
    rig = await daemons.start()
    fork_id = await daemons.stream(rig, recorder)
    rig.signal(0, signal.SIGSTOP)
    assert (await rig.lost()).fork_ids == (fork_id,)


async def test_second_daemon_at_the_same_processes_is_refused_with_the_reason(
    daemons: Daemons, recorder: Recorder
) -> None:
    first = await daemons.start()
    fork_id = await daemons.stream(first, recorder)
    with pytest.raises(CannotListen, match="another daemon has the process of"):
        await daemons.start()
    assert list(await first.stats()) == [fork_id]
    assert first.of(RelayLost) == []


async def test_process_of_another_user_is_told_nothing(
    daemons: Daemons, service: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: socket_of(daemons.config).exists(), TIMEOUT_S)
    stranger = Peer(service.pid, os.geteuid() + 1, 0)
    monkeypatch.setattr(relay_process, "peer_of", lambda end: stranger)
    with pytest.raises(CannotListen, match=r"relay\.sock is of the process of another user"):
        await daemons.start()
    assert service.poll() is None


async def test_folder_that_is_open_to_others_is_refused(daemons: Daemons) -> None:
    socket_of(daemons.config).parent.mkdir(0o755, parents=True)
    with pytest.raises(CannotListen, match=r"closed to others \(chmod 700\)"):
        await daemons.start()


async def test_process_in_another_pid_namespace_is_refused_and_nothing_is_killed(
    daemons: Daemons, service: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: socket_of(daemons.config).exists(), TIMEOUT_S)
    monkeypatch.setattr(relay_process, "peer_of", lambda end: Peer(0, os.geteuid(), 0))
    with pytest.raises(CannotListen, match="of a process in another PID namespace"):
        await daemons.start()
    assert service.poll() is None


async def test_folder_that_cannot_be_used_is_told(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    relay = replace(config.relay, folder=str(tmp_path / "file"))
    with pytest.raises(CannotListen, match="Not a directory|exists"):
        await Daemons(replace(config, relay=relay)).start()


async def test_address_that_was_changed_takes_effect_with_the_next_process(
    daemons: Daemons, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    first = await daemons.start()
    await daemons.stream(first, recorder)
    (before,) = first.relays.addresses
    await daemons.die(first)
    listen = Address("127.0.0.1", free_port(socket.SOCK_STREAM))
    daemons.config = replace(daemons.config, audiosocket=AudioSocketConfig(listen=listen))
    second = await daemons.start()
    assert list(second.relays.addresses) == [before]
    assert f"listens at {before}, and not at {listen}: it has to be restarted" in caplog.text


async def test_process_that_is_not_configured_any_more_ends_with_its_forks(
    daemons: Daemons, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    first = await daemons.start()
    await daemons.stream(first, recorder)
    pid = first.pid(0)
    await daemons.die(first)
    await retire_unused(daemons.config.relay)  # it is configured
    assert lives(pid)
    await retire_unused(replace(daemons.config.relay, detached=False))
    assert not lives(pid)
    assert (await recorder.wait_closed("/fork")).close_code == 1001
    assert "which is not configured any more" in caplog.text


async def test_process_of_a_daemon_that_runs_is_not_ended_by_another(
    daemons: Daemons, recorder: Recorder
) -> None:
    first = await daemons.start()
    fork_id = await daemons.stream(first, recorder)
    await retire_unused(replace(daemons.config.relay, detached=False))
    assert list(await first.stats()) == [fork_id]
    assert first.of(RelayLost) == []


async def test_nothing_is_ended_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "note").touch()
    await retire_unused(RelayConfig(folder=str(tmp_path)))
    await retire_unused(RelayConfig(folder=str(tmp_path / "none")))
