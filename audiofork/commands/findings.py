"""What the command `check` has found, and how it says so."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


class Outcome(enum.IntEnum):
    """What a check comes to; the numbers are the command's exit codes."""

    FINE = 0
    FAULTS = 1
    UNREACHABLE = 4


class Mark(enum.StrEnum):
    OK = "ok"
    FAIL = "FAIL"
    SKIP = "skip"
    """Could not be looked into; not a fault in itself."""
    WARN = "warn"
    """Works, but may be used to do harm, or is not as it was shipped."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check, with what to do about it, if anything is.

    A remedy is one paragraph, or several lines; those that are indented stand in a file so.
    """

    mark: Mark
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.mark:<4}  {self.text}"
        remedy = [part for text in self.remedy.splitlines() for part in _wrapped(text)]
        return "\n".join([line, *(f"        {part}" for part in remedy)])


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, width=84, break_long_words=False, break_on_hyphens=False)


class Findings:
    """Says each finding as soon as it is there, and keeps the worst outcome.

    Args:
        say: Gets each finding.

    Attributes:
        outcome: What all so far come to.
    """

    def __init__(self, say: Callable[[Finding], None]) -> None:
        self._say = say
        self.outcome = Outcome.FINE

    def ok(self, text: str) -> None:
        self._say(Finding(Mark.OK, text))

    def skip(self, text: str, remedy: str = "") -> None:
        self._say(Finding(Mark.SKIP, text, remedy))

    def warn(self, text: str, remedy: str) -> None:
        self._say(Finding(Mark.WARN, text, remedy))

    def fail(self, text: str, remedy: str, outcome: Outcome = Outcome.FAULTS) -> None:
        self.outcome = max(self.outcome, outcome)
        self._say(Finding(Mark.FAIL, text, remedy))
