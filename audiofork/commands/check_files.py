"""Whether a daemon, or a relay host, may open as many files as its forks take."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from audiofork.commands.findings import Findings
from audiofork.system import FILES_PER_FORK, FURTHER_FILES


def check_file_limit(
    findings: Findings, option: str, forks: int, service: str, pid: int = 0
) -> None:
    """Compare the limit on open files with what is needed.

    Args:
        findings: Gets what comes of it.
        option: The option that says how many forks there may be, for people.
        forks: That number.
        service: The unit that sets the limit.
        pid: The process that runs already; 0: one that is started by us is looked at.
    """
    needed = FILES_PER_FORK * forks + FURTHER_FILES
    whose, limit = "a process started here", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if pid:
        with contextlib.suppress(OSError):
            whose, limit = "the daemon", _limit_of(pid)
    text = f"open files: {whose} may have {'any number' if limit < 0 else limit}"
    if limit < 0 or limit >= needed:
        findings.ok(f"{text}, {needed} are enough")
    else:
        findings.fail(
            f"{text}, {option.rpartition('] ')[2]} = {forks} takes {needed}",
            f"Set LimitNOFILE={needed} in the service (systemctl edit {service}) or by "
            f"ulimit -Hn, and restart it; or lower {option}.",
        )


def _limit_of(pid: int) -> int:
    """Return how many files a process may have open; -1: any number.

    Raises:
        OSError: It cannot be looked into.
    """
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return -1 if soft == "unlimited" else int(soft)
    return -1
