"""A relay process that outlives its daemon: the process is real, the daemon is the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.config import Address, AudioSocketConfig, Config, RelayConfig
from audiofork.link.messages import (
    Adopt,
    EndFork,
    EndReason,
    ForkEnded,
    HeardAudio,
    Listen,
    SinkMessage,
    StatsTaken,
    Streaming,
)
from audiofork.link.stream import (
    Close,
    Configure,
    Held,
    Listening,
    NotListening,
    Ping,
    Pong,
    encode,
)
from audiofork.relay import detached
from audiofork.relay.detached import DetachedProcess
from audiofork.unix_sockets import Peer
from testbed.recorder import Recorder
from tests.relay.peers import counted, numbered, until
from tests.relay.test_process import CONFIG, TIMEOUT_S, Control

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "audiofork", "relay"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sock"


@pytest.fixture
def process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*COMMAND, str(path)], stderr=subprocess.PIPE) as one:
        yield one
        one.kill()


def listens(path: Path) -> bool:
    """Return whether a process listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def mode_of(path: Path) -> int | None:
    """Return who may use a file; None: it does not exist."""
    return path.stat().st_mode & 0o777 if path.exists() else None


@asynccontextmanager
async def daemon(path: Path, process: subprocess.Popen[bytes]) -> AsyncIterator[Control]:
    """Connect as a daemon does; close the link at the end."""
    await until(lambda: listens(path) or process.poll() is not None, TIMEOUT_S)
    end = socket.socket(socket.AF_UNIX)
    end.setblocking(False)
    await asyncio.get_running_loop().sock_connect(end, os.fspath(path))
    one = Control(process, end)
    await one.link.open(end)
    try:
        yield one
    finally:
        one.link.close()
        await one.closed.wait()


async def test_fork_goes_on_without_a_daemon_and_the_next_one_gets_it_as_it_stands(
    path: Path, process: subprocess.Popen[bytes], recorder: Recorder
) -> None:
    async with daemon(path, process) as control:
        address = await control.start()
        assert control.of(Held) == [Held(())]
        fork_id, leg = await control.stream(recorder, "/fork", 10)
    leg.send_audio(*numbered(25)[10:])
    recording = await recorder.wait_messages("/fork", 25)
    assert recording.connection is not None
    await recording.connection.send("meanwhile")
    async with daemon(path, process) as control:
        assert await control.start() == address
        (held,) = (await control.hears(Held)).forks
        assert held.fork_id == fork_id
        control.send(Adopt(fork_id))
        await control.hears(Streaming)
        message = await control.hears(SinkMessage)
        assert message.text == "meanwhile"
        leg.send_audio(*numbered(30)[25:])
        await recorder.wait_messages("/fork", 30)
        control.send(EndFork(fork_id, EndReason.STOPPED))
        ended: ForkEnded = await control.hears(ForkEnded)
        assert (ended.stats.frames_in, ended.stats.frames_sent) == (30, 30)
    recording = await recorder.wait_closed("/fork")
    assert recording.messages == numbered(30)
    await leg.close()


async def test_fork_that_no_daemon_comes_for_ends_in_order_and_so_does_the_process(
    path: Path, process: subprocess.Popen[bytes], recorder: Recorder
) -> None:
    async with daemon(path, process) as control:
        await control.start(replace(CONFIG, relay=RelayConfig(orphan_timeout=1.0)))
        _, leg = await control.stream(recorder, "/fork")
    recording = await recorder.wait_closed("/fork")
    assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    assert await control.ends() == 0
    assert mode_of(path) is None
    await leg.close()
    assert process.stderr is not None
    log = process.stderr.read().decode()
    assert "there is no daemon: 1 forks go on, for 1 s at most" in log
    assert "no daemon came for 1 s: 1 forks end" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_and_the_daemon_is_told_by_the_end_of_the_link_alone(
    path: Path, process: subprocess.Popen[bytes], recorder: Recorder, number: signal.Signals
) -> None:
    async with daemon(path, process) as control:
        await control.start()
        _, leg = await control.stream(recorder, "/fork")
        process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_S):
            await control.closed.wait()
        assert control.of(ForkEnded) == []  # else it would not order it from another process
    assert (await recorder.wait_closed("/fork")).close_code == 1001
    assert await control.ends() == 0
    await leg.close()


async def test_close_ends_it(path: Path, process: subprocess.Popen[bytes]) -> None:
    async with daemon(path, process) as control:
        await control.start()
        control.send(Close())
        assert await control.ends() == 0


async def test_second_daemon_takes_the_place_of_the_first(
    path: Path, process: subprocess.Popen[bytes], recorder: Recorder
) -> None:
    async with daemon(path, process) as first:
        await first.start()
        fork_id, leg = await first.stream(recorder, "/fork")
        async with daemon(path, process) as second:
            await second.start()
            assert [one.fork_id for one in (await second.hears(Held)).forks] == [fork_id]
            async with asyncio.timeout(TIMEOUT_S):
                await first.closed.wait()
            second.send(Ping())
            await second.hears(Pong)
    await leg.close()


async def test_connection_that_is_no_daemon_changes_nothing(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    async with daemon(path, process) as control:
        await control.start()
        async with daemon(path, process) as other:
            pass
        async with daemon(path, process) as other:
            other.send(Ping())  # no configuration: it is asked to go
            async with asyncio.timeout(TIMEOUT_S):
                await other.closed.wait()
        control.send(Ping())
        await control.hears(Pong)


async def test_second_service_at_the_same_socket_waits_for_the_end_of_the_first(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    """A daemon may have filled its place with a process of its own."""
    await until(lambda: listens(path), TIMEOUT_S)
    second = await asyncio.create_subprocess_exec(*COMMAND, str(path), stderr=subprocess.PIPE)
    try:
        assert second.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            await second.stderr.readline()  # what runs
            line = await second.stderr.readline()
        assert b"another daemon listens there; waiting for its end" in line
        async with daemon(path, process) as control:
            await control.start()
            control.send(Close())
            assert await control.ends() == 0
        await until(lambda: listens(path), TIMEOUT_S)
        assert second.returncode is None
    finally:
        second.kill()
        await second.wait()


async def test_second_process_of_a_daemon_at_the_same_socket_ends_with_the_reason(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    await until(lambda: listens(path), TIMEOUT_S)
    command = [sys.executable, "-m", "audiofork.relay.detached", str(path)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 1
    assert "another daemon listens there" in done.stderr
    async with daemon(path, process) as control:
        control.send(Configure.of(CONFIG))
        await control.hears(Listening)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
async def test_signals_for_the_daemon_change_nothing(
    path: Path, process: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    async with daemon(path, process) as control:
        await control.start()
        process.send_signal(number)
        control.send(Ping())
        await control.hears(Pong)


async def test_port_that_was_taken_for_an_earlier_daemon_is_tried_again(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Address("127.0.0.1", other.getsockname()[1])
        config = Config(audiosocket=AudioSocketConfig(listen=listen))
        async with daemon(path, process) as control:
            control.send(Configure.of(config))
            await control.hears(NotListening)
    async with daemon(path, process) as control:
        assert await control.start(config) == listen


async def test_service_without_forks_that_no_daemon_comes_for_gives_its_port_up(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    """As a new process, which somebody else starts, it listens nowhere."""
    async with daemon(path, process) as control:
        await control.start(replace(CONFIG, relay=RelayConfig(orphan_timeout=1.0)))
    assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0


async def test_reload_configures_and_holds_nothing(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    async with daemon(path, process) as control:
        await control.start()
        control.send(Configure.of(CONFIG))
        control.send(Ping())
        await control.hears(Pong)
        assert len(control.of(Held)) == 1
        assert len(control.of(Listening)) == 1


async def test_who_listened_to_a_fork_is_forgotten_with_the_daemon(
    path: Path, process: subprocess.Popen[bytes], recorder: Recorder
) -> None:
    async with daemon(path, process) as control:
        await control.start()
        fork_id, leg = await control.stream(recorder, "/fork")
        control.send(Listen(fork_id, is_on=True))
        await control.obeyed()
        leg.send_audio(*numbered(10))
        await control.hears(HeardAudio)
    async with daemon(path, process) as control:
        await control.start()
        control.send(Adopt(fork_id))
        await control.obeyed()
        leg.send_audio(*numbered(10))
        await recorder.wait_messages("/fork", 30)
        await control.obeyed()
        (*_, taken) = control.of(StatsTaken)
        assert counted(taken.stats)[fork_id].frames_in == 30
        assert control.of(HeardAudio) == []
    await leg.close()


async def test_socket_is_for_its_owner_alone(path: Path, process: subprocess.Popen[bytes]) -> None:
    async with daemon(path, process):
        assert mode_of(path) == 0o600


async def test_another_user_is_refused_and_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(detached, "peer_of", lambda end: Peer(4321, os.geteuid() + 1, 0))
    one = DetachedProcess(path)
    running = asyncio.create_task(one.run())
    await until(lambda: listens(path), TIMEOUT_S)
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(encode(Configure.of(CONFIG)))
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    finally:
        writer.close()
        one._stop.set()
        await running
    assert f"process 4321 of the user {os.geteuid() + 1} may not order forks here" in caplog.text


async def test_service_without_forks_waits_on(path: Path) -> None:
    one = DetachedProcess(path)
    one._orphan_timeout_s = 0.05
    running = asyncio.create_task(one.run())
    try:
        await until(lambda: listens(path), TIMEOUT_S)
        await asyncio.sleep(0.2)
        assert not running.done()
    finally:
        one._stop.set()
        await running


async def test_process_of_a_daemon_without_forks_does_not_wait_for_ever(path: Path) -> None:
    one = DetachedProcess(path, is_service=False)
    one._orphan_timeout_s = 0.05
    async with asyncio.timeout(TIMEOUT_S):
        await one.run()
    assert mode_of(path) is None
