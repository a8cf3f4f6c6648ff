"""What a process started does not outlive it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import guard

PATIENCE_S = 20

# Starts two processes from a thread that ends, one of them in a session of its own, with a child.
OWNER = """
import os, subprocess, sys, threading
from testbed import guard

def start():
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sh", "-c", "sleep 600; true"], start_new_session=True)

guard.end_with_us()
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(os.environ[guard.VARIABLE], flush=True)
sys.stdin.readline()
os._exit(0)
"""


def wait_for_count(mark: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(guard.processes_with(mark)) != count:
        assert time.monotonic() < deadline, guard.processes_with(mark)
        time.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_owner_that_ends_takes_all_along(end: signal.Signals | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        mark = owner.stdout.readline().strip()
        wait_for_count(mark, 3)
        if end is not None:
            owner.send_signal(end)
    wait_for_count(mark, 0)


def test_process_without_the_mark_is_not_found() -> None:
    assert guard.processes_with("0" * 32) == []
