"""What those who wait are told."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from testbed import progress
from testbed.progress import Telling, megabytes, run

ROOT = Path(__file__).parents[2]


class Said:
    """What is told, which can be waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._news:
            self.lines.append(line)
            self._news.notify_all()

    def wait(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.lines) >= count, 10), self.lines


def test_long_silence_is_broken_again_and_again_with_how_far_it_is() -> None:
    said, so_far = Said(), iter(range(1000))
    with Telling(lambda: f"{next(so_far)} of 1000", 0.01, said):
        said.wait(3)
    count = len(said.lines)
    assert [line.split(",")[0] for line in said.lines[:3]] == [f"{n} of 1000" for n in range(3)]
    assert len(said.lines) == count, "nothing more once it is over"


def test_other_lines_put_the_next_one_off() -> None:
    said = Said()
    with Telling(lambda: "far", 60, said) as telling:
        telling.say("one")
        telling.say("two")
    assert said.lines == ["one", "two"]


def test_first_line_comes_at_once_where_that_is_wanted() -> None:
    said = Said()
    with Telling(lambda: "far", 60, said, at_once=True):
        assert said.lines == ["far, 0 s"]


def test_failure_meanwhile_ends_the_telling_and_goes_on() -> None:
    said = Said()
    with pytest.raises(ZeroDivisionError), Telling(lambda: "far", 0.01, said):
        raise ZeroDivisionError
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_megabytes_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(bytes(2_600_000))
    (tmp_path / "d").write_bytes(bytes(400_000))
    (tmp_path / "gone").symlink_to("nowhere")
    assert megabytes(tmp_path) == "3 MB"
    assert megabytes(tmp_path / "none") == "0 MB"


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_run_passes_on_what_pip_downloads_and_builds_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (
        "Collecting x\n  Downloading x-1.0-cp311-cp311-manylinux_x86_64.whl (1.2 MB)\nWARNING: y\n"
        "  Installing build dependencies: finished with status 'done'\n"
        "Installing collected packages: x\n"
    )
    assert run("Installing", python(f"print({lines!r})")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Installing ...",
        "  Downloading x-1.0 (1.2 MB)",
        "  Installing collected packages: x",
    ]


def test_run_that_fails_says_all_that_was_said_and_ends_with_its_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("Installing", python("print('Collecting x'); print('ERROR: y'); exit(3)")) == 3
    assert capsys.readouterr().out == "Installing ...\nCollecting x\nERROR: y\n"


def test_run_of_a_silent_command_is_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
    assert run("Making", python("import time; time.sleep(0.3)")) == 0
    assert "  still at it, 0 s\n" in capsys.readouterr().out


def test_progress_needs_no_more_than_python() -> None:
    command = [sys.executable, "-S", "-m", "testbed.progress", "Waiting", "true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "Waiting ...\n"), done.stderr
