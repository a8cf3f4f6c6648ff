"""The daemon beside a private Asterisk can be that of another tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from testbed.asterisk import Asterisk, Installation
from testbed.daemon import Daemon

# Says where its package comes from, and where that of a process that it starts.
TELLS = """
import subprocess, sys, time
tell = "import audiofork; print(audiofork.__file__, file=sys.stderr, flush=True)"
exec(tell)
subprocess.run([sys.executable, "-c", "import sys; " + tell])
print("told", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.fixture
def asterisk(tmp_path: Path) -> Asterisk:
    """One that does not run, and has a port all the same."""
    asterisk = Asterisk(Installation("22", (), tmp_path, tmp_path, tmp_path))
    asterisk.ami_port = 5038
    return asterisk


def test_daemon_and_its_processes_are_those_of_the_tree(asterisk: Asterisk, tmp_path: Path) -> None:
    package = tmp_path / "audiofork/__init__.py"
    package.parent.mkdir()
    package.touch()
    command = (sys.executable, "-c", TELLS)
    with Daemon(asterisk, command=command, waits_for="told", tree=tmp_path) as daemon:
        assert daemon.log().split() == [str(package), str(package), "told"]
