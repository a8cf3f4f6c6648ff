"""A dialplan that is being rewritten: its edits, and notes on its lines."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Note:
    """A note on a line.

    Attributes:
        line: Its number, from 1.
        text: The note.
        left: Whether something must be changed by hand.
    """

    line: int
    text: str
    left: bool = False


@dataclass(frozen=True, slots=True)
class Migration:
    """The result for a text; `changes` counts the rewritten calls."""

    text: str
    notes: tuple[Note, ...]
    changes: int


@dataclass(slots=True)
class Draft:
    """A text, its planned edits, and its notes.

    Attributes:
        code: The text with blanks in place of comments, at the same positions.
        edits: Start, end, replacement; they do not overlap.
        notes: In the order they were made, each once.
        handled: Positions of the application names that were rewritten or noted.
    """

    text: str
    code: str
    changes: int = 0
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    notes: dict[Note, None] = field(default_factory=dict)
    handled: set[int] = field(default_factory=set)
    line_ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.line_ends = [match.start() for match in re.finditer("\n", self.text)]

    def has_comment(self, start: int, end: int) -> bool:
        """Return whether there is a comment between two positions."""
        return self.code[start:end] != self.text[start:end]

    def replace(self, start: int, end: int, replacement: str) -> None:
        """Replace text[start:end]."""
        self.edits.append((start, end, replacement))

    def leave(self, position: int, why: str) -> None:
        """Note that a use of the module is left unchanged."""
        self.note(position, f"left as it is: {why}", left=True)

    def note(self, position: int, text: str, *, left: bool = False) -> None:
        """Note something about the line of a position."""
        line = bisect.bisect_left(self.line_ends, position) + 1
        self.notes[Note(line, text, left)] = None

    def finish(self) -> Migration:
        """Return the text with the edits, and the notes by line."""
        parts, position = [], 0
        for start, end, replacement in sorted(self.edits):
            parts += [self.text[position:start], replacement]
            position = end
        parts.append(self.text[position:])
        notes = tuple(sorted(self.notes, key=lambda note: note.line))
        return Migration("".join(parts), notes, self.changes + len(self.edits))
