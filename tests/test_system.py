"""What systemd is told, the limit on open files, and what a process uses."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audiofork import audiosocket
from audiofork.system import (
    feed_watchdog,
    file_limit,
    hot_path,
    lift_file_limit,
    notify,
    open_files,
    openable,
    spare_collections,
    usage_of,
    warn_of_low_file_limit,
)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("/x/audiosocket.py", "Python"),
        ("/x/audiosocket.cpython-311-x86_64-linux-gnu.so", "compiled"),
    ],
)
def test_hot_path_is_compiled_if_its_modules_are_no_python_files(
    monkeypatch: pytest.MonkeyPatch, file: str, told: str
) -> None:
    monkeypatch.setattr(audiosocket, "__file__", file)
    assert hot_path() == told


def test_notify_reaches_systemd(systemd: socket.socket) -> None:
    notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = str(tmp_path)[-60:].replace("/", "-")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify("STATUS=here")
        assert listening.recv(100) == b"STATUS=here"


def test_notify_without_systemd_does_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.messages == []


def test_notify_to_a_socket_that_is_gone_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "could not tell systemd READY=1" in caplog.text


async def test_watchdog_is_fed_twice_a_period(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays_s: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) == 3:
            raise asyncio.CancelledError

    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await feed_watchdog()
    assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    assert delays_s == [15.0] * 3


async def test_watchdog_that_is_off_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await feed_watchdog()


def test_file_limit_is_lifted_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        lift_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_file_limit_that_may_not_be_asked_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(limit: int) -> tuple[int, int]:
        raise OSError("not permitted")

    monkeypatch.setattr(resource, "getrlimit", refuse)
    lift_file_limit()


@contextmanager
def limit(soft: int) -> Iterator[None]:
    """Let this process have so many files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def descriptors() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc/self/fd"))


@pytest.fixture
def packed() -> Iterator[int]:
    """Open files until none is free below the highest; return the lowest that is free then."""
    highest = descriptors()[-1]
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < highest:
        opened.append(os.dup(opened[0]))
    yield max(opened[-1], highest) + 1
    for descriptor in opened:
        os.close(descriptor)


def test_as_many_files_can_be_opened_as_the_limit_leaves(packed: int) -> None:
    before = descriptors()
    with limit(packed + 5):
        assert openable(1) == 1
        assert openable(5) == 5
        assert openable(6) == 5
        assert openable(1000) == 5
    with limit(packed):
        assert openable(1) == 0
    assert descriptors() == before


def test_other_faults_of_the_probe_are_no_want_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "/nowhere")
    assert openable(5) == 5


def test_file_limit_is_the_soft_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with limit(200):
        assert file_limit() == 200
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda what: unlimited)
    assert file_limit() is None


def test_low_file_limit_is_said_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with limit(1699):
        warn_of_low_file_limit(100)
    assert caplog.messages == [
        "this process may open 1699 files, but [security] max_forks = 100 needs 1700; "
        "set LimitNOFILE=1700, or lower max_forks"
    ]


def test_file_limit_that_suffices_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    with limit(1800):
        warn_of_low_file_limit(100)
    assert caplog.messages == []


def test_usage_of_a_process_is_what_the_kernel_tells() -> None:
    used = usage_of()
    assert used is not None
    assert used.cpu_s == pytest.approx(time.process_time(), abs=1)
    assert 1_000_000 < used.resident_bytes < used.virtual_bytes
    assert 0 <= time.time() - used.started < 86_400
    assert usage_of(os.getpid()) is not None


def test_usage_of_a_process_with_an_odd_name_is_found(tmp_path: Path) -> None:
    program = tmp_path / "a) b ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            used = usage_of(process.pid)
            assert used is not None
            assert used.resident_bytes < used.virtual_bytes
        finally:
            process.kill()
    assert usage_of(process.pid) is None


def test_open_files_are_counted() -> None:
    before = open_files()
    assert before is not None
    with Path(os.devnull).open():
        assert open_files() == before + 1
    assert open_files() == before


def test_collector_leaves_what_is_there_alone_and_waits_for_more() -> None:
    before = gc.get_threshold()
    try:
        spare_collections()
        assert gc.get_threshold() == (5_000, 5, 10)
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
