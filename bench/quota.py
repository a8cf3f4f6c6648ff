"""Limits processes to a share of a core, by CPU quotas of cgroups (v1 or v2). Needs root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

V1_ROOT = Path("/sys/fs/cgroup/cpu")
V2_ROOT = Path("/sys/fs/cgroup")
# Short, so that a process that has used its quota goes on soon. The kernel takes no quota below
# 1 ms: 20 % is the least share.
PERIOD_US = 5000
LEAST_PERCENT = 20
# A process that has just ended keeps its cgroup for a moment.
_REMOVE_TIMEOUT_S = 5.0


class NoQuota(Exception):
    """The kernel gives no CPU quota, or not to us; the text says why."""


def settings(root: Path, share_percent: int) -> dict[str, str]:
    """Return what to write to which file of a cgroup.

    With the share comes the greatest weight: else the programs that the benchmark lets run first
    would push the process aside, and it had less than its share.

    Raises:
        NoQuota: There is no cgroup hierarchy with CPU quotas.
    """
    quota = PERIOD_US * share_percent // 100
    if (root / "cpu.cfs_quota_us").exists():
        return {
            "cpu.cfs_period_us": str(PERIOD_US),
            "cpu.cfs_quota_us": str(quota),
            "cpu.shares": "262144",
        }
    if (root / "cgroup.subtree_control").exists():
        return {"cpu.max": f"{quota} {PERIOD_US}", "cpu.weight": "10000"}
    raise NoQuota(f"{root} has no CPU quotas of cgroups")


def hierarchy() -> Path:
    """Return where this machine has its CPU quotas."""
    return V1_ROOT if V1_ROOT.exists() else V2_ROOT


@contextmanager
def held(pids: list[int], share_percent: int) -> Iterator[None]:
    """Hold each process to a share of a core of its own, until the end of the context.

    Raises:
        NoQuota: That cannot be done here.
    """
    root = hierarchy()
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(_held(root, pid, share_percent))
        yield


@contextmanager
def _held(root: Path, pid: int, share_percent: int) -> Iterator[None]:
    folder = root / f"audiofork-bench-{os.getpid()}-{pid}"
    wanted = settings(root, share_percent)
    try:
        try:
            folder.mkdir()
            for name, value in wanted.items():
                (folder / name).write_text(value)
            (folder / "cgroup.procs").write_text(str(pid))
        except OSError as exc:
            raise NoQuota(f"no CPU quota can be set: {exc} (it takes root)") from exc
        yield
    finally:
        _remove(root, folder, pid)


def _remove(root: Path, folder: Path, pid: int) -> None:
    """Let the process go on in the root, and remove the cgroup if it was made."""
    with suppress(OSError):  # it has ended
        (root / "cgroup.procs").write_text(str(pid))
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    while folder.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
