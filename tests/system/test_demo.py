"""The demo as a newcomer runs it, and as one who gives up half-way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiofork.commands.receiver import dbfs, peaks_of
from testbed.demo import CALL_S, CALLEE_WAITS_S
from tests.system.conftest import needs_pairs

pytestmark = pytest.mark.asterisk

ROOT = Path(__file__).parents[2]
SECOND = 8000 * 2  # bytes of one channel


class Demo:
    """A demo in a folder of its own; its processes can be told by a variable."""

    def __init__(self, folder: Path, module: str = "testbed.demo") -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEMO_TEST": self._mark}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def processes(self) -> list[str]:
        """Return the command lines of all processes of the demo."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # ended meanwhile, or another user's
        return found

    def read_until(self, text: str) -> str:
        """Return the output up to a line with this text in it."""
        assert self.process.stdout is not None
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"expected {text!r}, got:\n{read}")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path)
    yield one
    one.process.terminate()
    one.process.communicate()


def audio(folder: Path, name: str) -> tuple[int, bytes]:
    (path,) = (folder / "recordings").glob(f"*-{name}.wav")
    with wave.open(str(path)) as file:
        return file.getnchannels(), file.readframes(file.getnframes())


@needs_pairs()
def test_demo(demo: Demo) -> None:
    """Three recordings of a call, which differ as they should, and nothing left running."""
    output, _ = demo.process.communicate(timeout=300)
    assert demo.process.returncode == 0, output
    assert demo.processes() == []
    assert "Gosub(audiofork,start,1(ws://127.0.0.1:" in output
    assert re.search(r"in +\d\.\d s +-\d+\.\d dBFS #+", output)

    channels, said = audio(demo.folder, "in")
    assert channels == 1
    assert len(said) / SECOND == pytest.approx(CALL_S, abs=1)
    channels, heard = audio(demo.folder, "out")
    assert channels == 1
    assert len(heard) / SECOND == pytest.approx(CALL_S, abs=1)
    channels, both = audio(demo.folder, "stereo")
    assert channels == 2
    assert len(both) / SECOND / 2 == pytest.approx(CALL_S, abs=1)

    # The caller speaks first, and is silent when the callee has begun.
    turn = round(CALLEE_WAITS_S)
    begin, end = slice(0, (turn - 1) * SECOND), slice((turn + 2) * SECOND, (turn + 4) * SECOND)
    assert dbfs(*peaks_of(said[begin], 1)) > -20 > -60 > dbfs(*peaks_of(said[end], 1))
    assert dbfs(*peaks_of(heard[end], 1)) > -20 > -60 > dbfs(*peaks_of(heard[begin], 1))
    assert all(dbfs(peak) > -20 for peak in peaks_of(both, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_interrupted(demo: Demo, number: signal.Signals) -> None:
    """Whenever it is interrupted, nothing is left running."""
    demo.read_until("dBFS")
    assert len(demo.processes()) >= 4  # demo, Asterisk, daemon, receiver
    demo.process.send_signal(number)
    output, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 130, output
    assert "Traceback" not in output
    assert demo.processes() == []


@pytest.mark.parametrize("delay_s", [0.3, 0.5, 0.7, 0.9, 1.1])
def test_demo_interrupted_at_the_start(demo: Demo, delay_s: float) -> None:
    """Ctrl-C in a terminal goes to all processes at once."""
    demo.read_until("Looking for")
    time.sleep(delay_s)
    os.killpg(demo.process.pid, signal.SIGINT)
    output, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 130, output
    assert demo.processes() == []


def test_demo_cannot_record(tmp_path: Path) -> None:
    """A failure is said, ends with 1, and leaves nothing running."""
    (tmp_path / "recordings").touch()
    demo = Demo(tmp_path)
    output, _ = demo.process.communicate(timeout=300)
    assert demo.process.returncode == 1
    assert "The demo failed: `audiofork receive` did not start: " in output
    assert "cannot write to recordings" in output
    assert demo.processes() == []
