"""Measures the CPU time and memory of a process and its children, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_FIRST_NICE = -20
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """CPU time used.

    Attributes:
        total_s: As the scheduler counts it, in nanoseconds.
        user_ticks: Ticks (of 10 ms) at which user code was found to run; `system_ticks` the
            kernel. Samples: good for a share, where there are enough of them.
        waited_s: Time in which it could have run, and others did.
        wakes: How often it went on after it had nothing to do.
    """

    total_s: float
    waited_s: float
    user_ticks: int
    system_ticks: int
    wakes: int

    @property
    def ticks(self) -> int:
        return self.user_ticks + self.system_ticks

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(
            self.total_s - other.total_s,
            self.waited_s - other.waited_s,
            self.user_ticks - other.user_ticks,
            self.system_ticks - other.system_ticks,
            self.wakes - other.wakes,
        )


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for task in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu(pid: int) -> Cpu:
    """Return the CPU time used so far by a process and those that descend from it."""
    user = system = wakes = 0
    total_s = waited_s = 0.0
    for one in tree(pid):
        fields = (PROC / str(one) / "stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
        ran, waited = _scheduled(one)
        total_s += ran
        waited_s += waited
        wakes += _wakes(one)
    # A kernel without statistics of its scheduler tells ticks only.
    return Cpu(total_s or (user + system) / _TICKS_A_SECOND, waited_s, user, system, wakes)


def own_cpu_s(pid: int) -> float:
    """Return the CPU time of one process alone, in seconds, with that of threads that have ended.

    Asterisk has a thread for each channel, which `cpu` forgets when it ends.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)  # as clock_getcpuclockid(3) makes it


_CPUCLOCK_SCHED = 2


def _scheduled(pid: int) -> tuple[float, float]:
    """Return for how many seconds the threads of a process ran, and waited to run."""
    ran_ns = waited_ns = 0
    for task in (PROC / str(pid) / "task").iterdir():
        try:
            fields = (task / "schedstat").read_text().split()
        except OSError:  # the thread has just ended, or the kernel does not tell
            continue
        ran_ns += int(fields[0])
        waited_ns += int(fields[1])
    return ran_ns / 1e9, waited_ns / 1e9


def _wakes(pid: int) -> int:
    """Return how often the threads of a process gave up the CPU of their own accord."""
    total = 0
    for task in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", _status(task), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total


def _status(process: Path) -> str:
    return (process / "status").read_text()


def memory_kib(pid: int) -> int:
    """Return the resident memory of a process and those that descend from it."""
    total = 0
    for one in tree(pid):
        found = re.search(r"VmRSS:\s+(\d+) kB", _status(PROC / str(one)))
        total += int(found[1]) if found else 0
    return total


@dataclass(frozen=True)
class Thread:
    """What a thread has used: CPU time, and bytes written, to files above all: send() is apart."""

    cpu_s: float
    written_bytes: int


def threads(pid: int) -> dict[int, Thread]:
    """Return what each thread of a process has used; the first has the number of the process."""
    found: dict[int, Thread] = {}
    for task in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):  # the thread has just ended
            told = re.search(r"^wchar: (\d+)", (task / "io").read_text(), re.MULTILINE)
            ran_ns = int((task / "schedstat").read_text().split()[0])
            found[int(task.name)] = Thread(ran_ns / 1e9, int(told[1]) if told else 0)
    return found


def tcp_rows(port: int) -> list[list[str]]:
    """Return the rows of /proc/net/tcp with established connections to a port of loopback.

    Each is seen from the end that has the port; see proc(5) for the fields.
    """
    ours = f"0100007F:{port:04X}"
    rows = [line.split() for line in (PROC / "net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[1] == ours and row[3] != _LISTEN]


_LISTEN = "0A"


def connections_of(pid: int, port: int) -> int:
    """Return how many connections to a port of loopback a process has open."""
    inodes = {f"socket:[{row[9]}]" for row in tcp_rows(port)}
    found = 0
    for number in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found += os.readlink(number) in inodes
    return found


def go_first() -> bool:
    """Let this process and its programs run before others, if that may be; return whether.

    What others do on the machine then changes less of what is measured. It takes root, or a limit
    that allows it (`ulimit -e 40`).
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST_NICE)
    except PermissionError:
        return False
    return True


def hand_priority_to(pid: int) -> None:
    """Give a process that leads a session our priority for the session, too.

    Where the kernel groups processes by session, the priority of a process says only how it
    stands to others of its session; see sched(7), autogroup.
    """
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        (PROC / str(pid) / "autogroup").write_text(str(nice))
