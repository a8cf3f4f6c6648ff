"""The benchmark of viewers runs, and sees what it is to see. No test asserts how fast it is."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import build, measure, viewers
from bench.rows import Bench, Row, Span
from bench.viewers import Crowd, Trial, Unread

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tools() -> build.Tools:
    return build.tools()


def test_viewers_and_listeners_get_all_while_no_frame_is_lost(
    tools: build.Tools, tmp_path: Path
) -> None:
    trial = Trial(Bench(tools, tmp_path, Span(0.1, 1.0)), Row(20), tmp_path)
    run = trial.run(Crowd(viewers=3, listeners=1))
    assert run.result.intact
    got = run.got
    assert got["lost"] == 0
    for name in ("levels", "stats", "events", "listener_bytes"):
        assert got[name] > 0, name
    assert trial.run(Crowd()).got == {}


@pytest.mark.long
def test_viewers_that_read_nothing_are_dropped(
    tools: build.Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer forks fill the buffers more slowly.
    monkeypatch.setattr(viewers, "UNREAD_S", 16.0)
    trial = Trial(Bench(tools, tmp_path, Span(0.1, 0.2)), Row(200), tmp_path)
    unread = trial.unread(Crowd(unread=3))
    assert unread.result is not None
    assert unread.result.intact
    assert unread.dropped_s is not None, str(unread)
    assert "3 viewers that read nothing: for each the daemon holds " in str(unread)


@pytest.mark.parametrize(
    ("unread", "is_fine"),
    [
        (Unread(50, 200.0, 50.0, 2.5), False),  # nothing is known of the frames
        (Unread(50, 250.0, 50.0, 2.5), False),
        (Unread(50, 200.0, 50.0, None), False),
    ],
)
def test_cost_above_the_limit_and_viewers_that_stay_are_no_success(
    unread: Unread, is_fine: bool
) -> None:
    assert unread.is_fine is is_fine


def test_whole_program_prints_its_table_and_exits_by_what_was_lost() -> None:
    arguments = ["--forks", "10", "--pairs", "1", "--seconds", "0.5", "--viewers", "2"]
    command = [sys.executable, "-m", "bench.viewers", *arguments, "--unread", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    lines = done.stdout.splitlines()
    assert lines[0] == viewers.HEAD, done.stderr
    assert [one.split()[0] for one in lines[1:3]] == ["alone", "viewers"]
    assert lines[3].startswith("p99: with viewers ")
    assert done.returncode == 0


def test_connections_of_a_process_are_counted_and_what_the_kernel_holds_of_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert measure.connections_of(os.getpid(), port) == 0
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
            assert measure.connections_of(os.getpid(), port) == 1
            accepted.sendall(b"x" * 65_536)
            accepted.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted.send(b"x" * 65_536)
            assert sum(viewers.queued_kib(port)) > 0
