"""The findings of the command `check`, and how they are shown."""

from __future__ import annotations

import enum
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


class Outcome(enum.IntEnum):
    """The result of a check; the numbers are the command's exit codes."""

    FINE = 0
    FAULTS = 1
    UNREACHABLE = 4


class Mark(enum.StrEnum):
    OK = "ok"
    FAIL = "FAIL"
    SKIP = "skip"
    """Could not be checked; not a fault in itself."""
    WARN = "warn"
    """Works, but may be abused, or differs from what was shipped."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check, with a remedy if something must be done.

    A remedy is one paragraph, or several lines; indented lines are meant for a file as they are.
    Where several Asterisks are checked, `asterisk` is the one that it is of.
    """

    mark: Mark
    text: str
    remedy: str = ""
    asterisk: str = ""

    def __str__(self) -> str:
        line = f"{self.mark:<4}  {self._whole_text()}"
        remedy = [part for text in self.remedy.splitlines() for part in _wrapped(text)]
        return "\n".join([line, *(f"        {part}" for part in remedy)])

    def as_json(self) -> str:
        """Return it as a JSON object in one line: its text begins with the name of what it is of.

        The daemon reads these lines for its HTTP interface.
        """
        name = self.text.partition(": ")[0]
        fields = {
            "status": self.mark.lower(),
            "name": name,
            "text": self._whole_text(),
            "remedy": self.remedy,
        }
        if self.asterisk:
            fields["asterisk"] = self.asterisk
        return json.dumps(fields)

    def _whole_text(self) -> str:
        return f"{self.asterisk}: {self.text}" if self.asterisk else self.text


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, width=84, break_long_words=False, break_on_hyphens=False)


class Findings:
    """Reports each finding immediately, and keeps the worst outcome.

    Args:
        say: Called with each finding.
        asterisk: The Asterisk that all of them are of; empty: there is only one.

    Attributes:
        outcome: The worst outcome so far.
    """

    def __init__(self, say: Callable[[Finding], None], asterisk: str = "") -> None:
        self._say = say
        self._asterisk = asterisk
        self.outcome = Outcome.FINE

    def _tell(self, mark: Mark, text: str, remedy: str = "") -> None:
        self._say(Finding(mark, text, remedy, self._asterisk))

    def ok(self, text: str) -> None:
        self._tell(Mark.OK, text)

    def skip(self, text: str, remedy: str = "") -> None:
        self._tell(Mark.SKIP, text, remedy)

    def warn(self, text: str, remedy: str) -> None:
        self._tell(Mark.WARN, text, remedy)

    def fail(self, text: str, remedy: str, outcome: Outcome = Outcome.FAULTS) -> None:
        self.outcome = max(self.outcome, outcome)
        self._tell(Mark.FAIL, text, remedy)
