"""What setup is going to write: over the files there are, before one of them is touched."""

from __future__ import annotations

import grp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiofork.commands.setup import edits
from audiofork.commands.setup.conf import Files, real

PRIVATE = 0o600
FOR_GROUP = 0o640
FOR_ALL = 0o644


@dataclass(frozen=True, slots=True)
class Change:
    """One file that is to be written.

    Attributes:
        path: Of the file itself, no link.
        before: Its content; None: it is not there.
        after: What it is to have.
        lines: The lines that are added; empty: the whole file is ours.
        mode, group: Of a new file; one that is there keeps its own.
        is_secret: Nothing of it may be shown.
    """

    path: Path
    before: bytes | None
    after: bytes
    lines: tuple[str, ...]
    mode: int
    group: int
    is_secret: bool

    def __str__(self) -> str:
        if self.is_secret:
            return f"{self.path}: a new file with a random secret, mode {self.mode:o}"
        new = f"a new file, mode {self.mode:o}, group {group_name(self.group)}:\n"
        shown = edits.diff(self.path, self.before, self.after)
        return (new if self.before is None else "") + shown


@dataclass(frozen=True, slots=True)
class NewFolder:
    """An empty folder that is to be made."""

    path: Path
    mode: int
    group: int

    def __str__(self) -> str:
        return f"{self.path}: a new folder, mode {self.mode:o}, group {group_name(self.group)}"


@dataclass(frozen=True, slots=True)
class _Kind:
    is_whole: bool
    mode: int
    group: int
    is_secret: bool = False


class Draft:
    """Collects what is to be written.

    Attributes:
        files: The files as they are to be.
        notes: What the administrator has to know besides.
        folders: Empty folders that are to be made.
    """

    def __init__(self) -> None:
        self.files = Files()
        self.notes: list[str] = []
        self.folders: list[NewFolder] = []
        self._before: dict[Path, bytes | None] = {}
        self._kinds: dict[Path, _Kind] = {}

    def text(self, path: Path) -> str:
        """Return a file's text as it is to be, Latin-1 for bytes; empty: it is not there."""
        return (self.files.read(path) or b"").decode("latin-1")

    def write(self, path: Path, content: bytes, mode: int = FOR_ALL, group: int = 0) -> None:
        """Plan a file that is ours as a whole."""
        self._plan(path, content, _Kind(True, mode, group))

    def make_folder(self, path: Path, mode: int, group: int) -> None:
        """Plan an empty folder, unless there is one."""
        if not path.exists():
            self.folders.append(NewFolder(path, mode, group))

    def write_secret(self, path: Path, content: bytes, group: int | None = None) -> None:
        """Plan a file for root, and perhaps a group, alone, which is not shown."""
        mode = PRIVATE if group is None else FOR_GROUP
        self._plan(path, content, _Kind(True, mode, group or 0, is_secret=True))

    def append(self, path: Path, lines: Sequence[str], group: int) -> None:
        """Plan lines at the end of one of Asterisk's files, which is made if it is not there."""
        text = edits.append(self.text(path), lines, path)
        self.change(path, text, FOR_GROUP, group)

    def change(self, path: Path, text: str, mode: int, group: int = 0) -> None:
        """Plan a file's new text, in which lines of our own have been added to the old one."""
        self._plan(path, text.encode("latin-1"), _Kind(False, mode, group))

    def changes(self) -> list[Change]:
        """Return what differs from what is there: whole files first, for others include them."""
        found = [self._change(path) for path in self._kinds]
        differing = [one for one in found if one.before != one.after]
        return sorted(differing, key=lambda one: bool(one.lines))

    def _plan(self, path: Path, content: bytes, kind: _Kind) -> None:
        path = real(path)
        self._before.setdefault(path, self.files.read(path))
        self.files.planned[path] = content
        self._kinds[path] = kind

    def _change(self, path: Path) -> Change:
        before, after, kind = self._before[path], self.files.planned[path], self._kinds[path]
        old, new = (before or b"").decode("latin-1"), after.decode("latin-1")
        lines = () if kind.is_whole else tuple(edits.added_lines(old, new))
        return Change(path, before, after, lines, kind.mode, kind.group, kind.is_secret)


def group_name(number: int) -> str:
    """Return the name of a group, or its number if it has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
