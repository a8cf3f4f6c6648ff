"""Ends each process together with the one that started it, however that ends.

Child processes inherit the environment, and a variable in it identifies all of them, whatever
their parent, process group and session. The kernel's parent-death signal would not do: it is sent
as soon as the thread that started them ends, and does not reach their own children.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path

VARIABLE = "AUDIOFORK_TESTBED_RUN"


def end_with_us() -> None:
    """Have all processes that this one starts from now on killed when it ends, even by SIGKILL."""
    mark = secrets.token_hex(16)
    # It must stand what ends us: Ctrl-C at the terminal, and a guard of who started us.
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    # The other end is never closed, but by the kernel when we have ended.
    its_end, _ = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", __file__, mark],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, its_end, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    os.close(its_end)
    os.environ[VARIABLE] = mark


def processes_with(mark: str) -> list[int]:
    """Return the ids of the living processes that have this mark."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def _kill(mark: str) -> None:
    while found := processes_with(mark):  # again and again: they may start others meanwhile
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


if __name__ == "__main__":
    sys.stdin.read()
    _kill(sys.argv[1])
