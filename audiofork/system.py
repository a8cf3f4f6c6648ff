"""Talks to systemd, handles the limit on open files, and knows what runs and what it uses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import time
from pathlib import Path
from typing import NamedTuple

import audiofork
from audiofork import audiosocket
from audiofork.text import why

log = logging.getLogger(__name__)

# At most two legs, and the connection to the server.
FILES_PER_FORK = 3
# For everything else: clients of the control socket and of the AMI front, strangers at the
# AudioSocket port, the log, libraries.
FURTHER_FILES = 1400
# New objects until the youngest are looked at (0.5 ms), and how often that is until the older ones
# are, and then all. More of the first, and the garbage of refused connections takes 70 MB; more of
# the second, and the objects of 1,000 new forks are looked at in one go.
GC_THRESHOLDS = (5_000, 5, 10)
# Prefixes of the environment variables through which systemd talks to the daemon only.
_OF_SYSTEMD = ("NOTIFY_", "WATCHDOG_")


def hot_path() -> str:
    """Return how frames are relayed: by modules that are "compiled", or in "Python"."""
    return "Python" if audiosocket.__file__.endswith(".py") else "compiled"


def lift_file_limit() -> None:
    """Raise the limit on open files to the hard limit: each fork needs FILES_PER_FORK."""
    with contextlib.suppress(ValueError, OSError):  # a hardened service may not even read it
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spare_collections() -> None:
    """Let Python's collector of cycles work seldom, and not on what is there now.

    For a process that relays audio, once all is imported: a full collection looks at every object,
    and takes 18 ms with 400 forks, 45 ms with 1,000, in which no frame passes. By Python's defaults
    one is due as soon as a quarter of all objects is new and was kept for a moment, as the list of
    1,000 forks that somebody looks at is, each second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def file_limit() -> int | None:
    """Return how many files this process may have open; None: unlimited, or unknown."""
    try:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ValueError, OSError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def warn_of_low_file_limit(max_forks: int) -> None:
    """Log a warning if the limit on open files is too low for this number of forks."""
    limit, needed = file_limit(), FILES_PER_FORK * max_forks + FURTHER_FILES
    if limit is not None and limit < needed:
        log.warning(
            "this process may open %d files, but [security] max_forks = %d needs %d; "
            "set LimitNOFILE=%d, or lower max_forks",
            *(limit, max_forks, needed, needed),
        )


def openable(most: int) -> int:
    """Return how many more files can be opened now, up to `most`: opens them, then closes them."""
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        while len(opened) < most:
            opened.append(os.dup(opened[0]))
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            return most  # there is no /dev/null: this shows nothing about the limit
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return len(opened)


def child_environment(*withheld: str) -> dict[str, str]:
    """Return the environment for another process of this package.

    That process imports the package from the same place as this one, whatever the current folder.

    Args:
        withheld: Prefixes of variables that it must not get, besides those for the daemon only.
    """
    not_inherited = (*_OF_SYSTEMD, *withheld)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(not_inherited)
    }
    root = str(Path(audiofork.__file__).parent.parent)
    others = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = root + (os.pathsep + others if others else "")
    return environment


def notify(state: str) -> None:
    """Tell systemd a state, if it started this process; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
            notify_socket.sendto(state.encode(), address)
    except OSError as exc:
        log.warning("could not tell systemd %s: %s", state, why(exc))


async def feed_watchdog() -> None:
    """Tell systemd twice in each watchdog period that the event loop runs.

    Returns at once if the unit has no watchdog.
    """
    period_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    while period_us:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_us / 2_000_000)


class Usage(NamedTuple):
    """What a process uses.

    Attributes:
        cpu_s: CPU time so far, of user and system, in seconds.
        resident_bytes, virtual_bytes: Its memory.
        started: When it was started, in seconds since 1970.
    """

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    started: float


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def usage_of(pid: int | str = "self") -> Usage | None:
    """Return what a process uses; None: it has ended, or the kernel does not tell us."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # After the name in parentheses, which may hold anything: proc(5) counts state as 3.
        fields = text.rpartition(")")[2].split()
        user, system, began, virtual, pages = (int(fields[n - 3]) for n in (14, 15, 22, 23, 24))
    except (OSError, ValueError, IndexError):
        return None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Usage(
        (user + system) / _TICKS_PER_S,
        pages * _PAGE_BYTES,
        virtual,
        booted + began / _TICKS_PER_S,
    )


def open_files() -> int | None:
    """Return how many file descriptors this process has open; None: the kernel does not tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # without that of the folder itself
    except OSError:
        return None
