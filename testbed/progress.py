"""Reports progress while a command runs, a line every two seconds.

    python3 -m testbed.progress "Installing audiofork" .venv/bin/pip install ...

Runs before anything is installed: it needs no more than Python.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 2.0
# Of what pip says, in the form of several versions of it.
_WORTH_SAYING = re.compile(
    r"\s*(Downloading|Using cached|Building|Installing|Successfully)\b(?!.*: finished)"
)
_LINES_KEPT = 200
_WIDTH = 100


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)


class Telling:
    """Reports progress while its context lasts; a context manager.

    Args:
        how_far: Returns the progress as a line; called in a thread of its own.
        interval_s: Seconds of silence after which it is reported; None: INTERVAL_S.
        tell: Prints a line.
        at_once: Whether the first line comes at the beginning.
    """

    def __init__(
        self,
        how_far: Callable[[], str],
        interval_s: float | None = None,
        tell: Callable[[str], None] = say,
        *,
        at_once: bool = False,
    ) -> None:
        self._how_far = how_far
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._tell = tell
        self._at_once = at_once
        self._began = self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._at_once:
            self._say_how_far()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def say(self, line: str) -> None:
        """Say something else; the next line of ours comes later."""
        self._last = time.monotonic()
        self._tell(line)

    def _watch(self) -> None:
        while not self._over.wait(self._last + self._interval_s - time.monotonic()):
            if time.monotonic() - self._last >= self._interval_s:
                self._say_how_far()

    def _say_how_far(self) -> None:
        self.say(f"{self._how_far()}, {time.monotonic() - self._began:.0f} s")


def megabytes(folder: Path) -> str:
    """Return the size of a folder, as `45 MB`; files may come and go meanwhile."""
    return f"{sum(map(_size, folder.rglob('*'))) / 1e6:.0f} MB"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def run(title: str, command: Sequence[str]) -> int:
    """Run a command and report its progress, and its output if it fails; return its exit code."""
    say(f"{title} ...")
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    with process, Telling(lambda: "still at it", tell=lambda line: say(f"  {line}")) as telling:
        for line in process.stdout:
            said.append(line.rstrip())
            if _WORTH_SAYING.match(line):
                telling.say(_shortened(line))
    if process.returncode:
        say("\n".join(said))
    return process.returncode


def _shortened(line: str) -> str:
    """Return a line of pip's without the platforms that a file is for."""
    return re.sub(r"-(py|cp)[^ ]*\.whl", "", line.strip())[:_WIDTH]


def main() -> int:
    title, *command = sys.argv[1:]
    try:
        return run(title, command)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
