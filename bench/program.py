"""Runs a program of the benchmark as a child process that speaks lines of JSON."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import measure

Answer = dict[str, Any]


class ProgramFailed(Exception):
    """A program of the benchmark ended, or said nothing in time."""


class Program:
    """A child process; leaving the context ends it.

    Args:
        command: Program and arguments.
        environment: Added to ours.
        folder: Where it runs; None: here.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._name = " ".join(Path(part).name for part in command[:3])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close; a pipe could fill up)
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,  # and with it a share of the CPU of its own
        )
        self._rest = b""
        self.pid = self._process.pid
        measure.hand_priority_to(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._log.close()

    def say(self, line: str = "") -> None:
        """Give it a line on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout_s: float = 10.0) -> Answer:
        """Return its next line of JSON.

        Raises:
            ProgramFailed: It ended, or said nothing in time; the text has what it complained of.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not self._read_some(deadline - time.monotonic()):
                raise ProgramFailed(f"{self._name} said nothing: {self.errors()}")
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Answer = json.loads(line)
        return answer

    def ask(self, timeout_s: float = 10.0) -> Answer:
        """Give it an empty line, and return its answer."""
        self.say()
        return self.hear(timeout_s)

    def errors(self) -> str:
        """Return the end of what it has written to its standard error."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        return self._log.read().decode(errors="replace").strip()

    def _read_some(self, timeout_s: float) -> bool:
        """Read from its standard output; return whether there was something."""
        assert self._process.stdout is not None
        if timeout_s <= 0 or not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return False
        chunk = os.read(self._process.stdout.fileno(), 65536)
        self._rest += chunk
        return bool(chunk)
