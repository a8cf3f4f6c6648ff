"""The system around the files: Asterisk's reloads, systemd's service, the check at the end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from audiofork.commands.setup.daemon_files import SERVICE, this_program
from audiofork.commands.setup.record import Service

SYSTEMD_RUNS = Path("/run/systemd/system")
_TIMEOUT_S = 90

Say = Callable[[str], None]


def reload_asterisk(ask: Callable[[str], str], commands: list[str], say: Say) -> None:
    """Have Asterisk read its files again; one that does not answer does so at its next start."""
    if commands and not ask("core show settings"):
        say("Asterisk does not answer: what has changed counts from its next start")
        return
    for command in commands:
        answer = " ".join(ask(command).split())
        failed = any(
            word in answer.lower() for word in ("no such", "not properly", "fail", "unable")
        )
        say(f'asterisk -rx "{command}"' + (f": {answer}" if failed else ""))


class Systemd:
    """The service of the daemon.

    Args:
        run: Runs systemctl with arguments; returns its exit code and what it said.
    """

    def __init__(self, run: Callable[[list[str]], tuple[int, str]] | None = None) -> None:
        self._run = run or _systemctl

    def state(self) -> Service:
        """Return how the service is."""
        return Service(
            was_enabled=self._run(["is-enabled", SERVICE])[1].strip() == "enabled",
            was_active=self._run(["is-active", SERVICE])[1].strip() == "active",
        )

    def start(self, say: Say, *, anew: bool) -> bool:
        """Have it started, now and at each boot; return whether it runs.

        Args:
            anew: What it reads at its start has changed.
        """
        commands = [["daemon-reload"], ["enable", SERVICE]]
        commands.append(["restart" if anew else "start", SERVICE])
        return all(self._do(one, say) for one in commands)

    def take_back(self, before: Service, say: Say) -> None:
        """Have it as it was, as long as its unit is there."""
        if not before.was_active:
            self._do(["stop", SERVICE], say)
        if not before.was_enabled:
            self._do(["disable", SERVICE], say)

    def reload(self, before: Service, say: Say) -> None:
        """Have systemd read the units again, once they are as they were."""
        self._do(["daemon-reload"], say)
        if before.was_active:
            self._do(["restart", SERVICE], say)

    def _do(self, arguments: list[str], say: Say) -> bool:
        code, said = self._run(arguments)
        say(f"systemctl {' '.join(arguments)}" + (f": {said.strip()}" if code else ""))
        return code == 0


def _systemctl(arguments: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return 1, str(exc)
    return done.returncode, done.stdout


def check(ini: Path) -> int:
    """Run `audiofork check`, which prints what it finds; return its exit code."""
    return subprocess.run([*this_program(), "check", "-c", str(ini)], check=False).returncode
