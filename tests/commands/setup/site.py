"""A machine of its own for setup: Asterisk's folder, a program that plays Asterisk, no systemd."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from audiofork.commands.setup.daemon_files import Paths
from audiofork.commands.setup.run import Setup
from audiofork.commands.setup.system import Systemd

FILES = {
    "asterisk.conf": b"[directories](!)\nastetcdir => /etc/asterisk\n",
    "manager.conf": b"[general]\nenabled = yes\nport = 5038\nbindaddr = 127.0.0.1\n",
    "http.conf": b"[general]\nservername=Asterisk\nbindaddr=127.0.0.1\n;enabled=yes\n",
    "ari.conf": b"[general]\nenabled = yes       ; When set to no, ARI support is disabled.\n",
    "extensions.conf": b"[general]\nstatic=yes\n[default]\nexten => 100,1,Answer()\n",
}

_PROGRAM = """\
#!/bin/sh
[ "$1" = -V ] && { echo "Asterisk %s"; exit 0; }
echo "$@" >> "$(dirname "$0")/asked"
%s
"""
_RUNS = """\
[ "$4" = "core show settings" ] && { echo "  Version: %s"; exit 0; }
[ "$4" = "" ] || exit 0
"""


class Machine:
    """A machine below a folder.

    Args:
        root: The folder.
        files: Of Asterisk's configuration.
        version: Of Asterisk.
        runs: Whether Asterisk answers.
    """

    def __init__(
        self,
        root: Path,
        files: Mapping[str, bytes] = FILES,
        version: str = "22.10.1",
        *,
        runs: bool = True,
    ) -> None:
        self.root = root
        self.etc = root / "etc/asterisk"
        self.ini = root / "etc/audiofork/audiofork.ini"
        self.said: list[str] = []
        self.answers = [True] * 10
        self.checks: list[Path] = []
        self.etc.mkdir(parents=True)
        for name, content in files.items():
            self.write(name, content)
        self.program = root / "sbin/asterisk"
        self.program.parent.mkdir()
        self.program.write_text(_PROGRAM % (version, _RUNS % version if runs else "exit 1"))
        self.program.chmod(0o755)

    def write(self, name: str, content: bytes) -> Path:
        path = self.etc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o640)
        return path

    def text(self, name: str) -> str:
        return (self.etc / name).read_bytes().decode("latin-1")

    def asked(self) -> list[str]:
        """Return what Asterisk has been asked, but for its settings."""
        path = self.program.with_name("asked")
        lines = path.read_text().splitlines() if path.exists() else []
        commands = [line.partition(" -rx ")[2] for line in lines]
        return [one for one in commands if one != "core show settings"]

    def setup(
        self,
        *,
        units: Path | None = None,
        systemd: Systemd | None = None,
        group: str = "no group of this name",
    ) -> Setup:
        return Setup(
            self.said.append,
            lambda _: self.answers.pop(0),
            self.etc,
            Paths(self.ini, units=units, packaged_units=(), group=group),
            self.root / "state",
            systemd,
            self._check,
        )

    def _check(self, ini: Path) -> int:
        self.checks.append(ini)
        return 0

    def tree(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Return all there is of the configuration: mode, owner, group, content."""
        found = {}
        for path in sorted((self.root / "etc").rglob("*")):
            status = path.lstat()
            if path.is_symlink():
                content = os.readlink(path).encode()
            else:
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            name = str(path.relative_to(self.root))
            found[name] = (status.st_mode, status.st_uid, status.st_gid, content)
        return found

    def last(self) -> str:
        return "\n".join(self.said)
