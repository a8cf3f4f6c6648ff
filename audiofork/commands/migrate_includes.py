"""Reads the files of a dialplan: the named ones, and what they include.

Asterisk's rules (config_text_file_load in main/config.c, res/ael/ael.flex): a relative name is
relative to the configuration folder, whatever file includes it; names may have wildcards and
braces. Here each file is read once, whatever includes it, so that circles end.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiofork.commands.dialplan import MAX_DIALPLAN_BYTES, Kind, kind_of, without_comments
from audiofork.commands.migrate_draft import Note
from audiofork.files import read_file

MAX_LEVELS = 50  # AEL's limit; that of extensions.conf is 10
# The most names that the braces of one include may expand to.
MAX_NAMES = 1000


@dataclass(slots=True)
class DialplanFile:
    """A file of a dialplan, as it was read.

    Attributes:
        path: The path that named or included it.
        content: Its bytes.
        kind: Its language.
        notes: Notes on its includes.
    """

    path: Path
    content: bytes
    kind: Kind
    notes: list[Note] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The content; bytes that are not UTF-8 (an old file in Latin-1) are preserved."""
        return decode(self.content)


def decode(content: bytes) -> str:
    """Return any bytes as text, from which `encode` restores the same bytes."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Return the bytes of a text that `decode` made."""
    return text.encode("utf-8", "surrogateescape")


class Reader:
    """Reads files and all that they include.

    Args:
        folder: Asterisk's configuration folder; None: the folder of each named file.

    Attributes:
        files: In the order in which Asterisk reads them.
        errors: The named files that cannot be read, with the reason.
        patterns: The paths by which files are included: absolute, perhaps with wildcards.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self.files: list[DialplanFile] = []
        self.errors: list[tuple[Path, str]] = []
        self.patterns: list[str] = []

    def read(self, path: Path) -> None:
        """Read a named file, and what it includes."""
        if os.path.realpath(path) in self._seen:
            return
        try:
            self._read(path, self._folder or path.absolute().parent, None, MAX_LEVELS)
        except OSError as exc:
            self.errors.append((path, exc.strerror or str(exc)))

    def _read(self, path: Path, folder: Path, included_by: Kind | None, levels: int) -> None:
        if not levels:
            raise OSError(0, f"more than {MAX_LEVELS} files that include one another")
        self._seen.add(os.path.realpath(path))
        content = read_file(path, MAX_DIALPLAN_BYTES)
        if b"\0" in content:
            raise OSError(0, "not a text file: it contains NUL bytes")
        text = decode(content)
        file = DialplanFile(path, content, kind_of(path, text, included_by))
        self.files.append(file)
        for line, directive, name in directives(text, file.kind):
            if directive in ("include", "tryinclude"):
                self._include(file, line, directive, name, folder, levels - 1)
            else:
                file.notes.append(Note(line, f"not followed: {directive} {name}", left=True))

    def _include(
        self, file: DialplanFile, line: int, directive: str, name: str, folder: Path, levels: int
    ) -> None:
        patterns = [os.path.join(folder, one) for one in expand_braces(name)]
        self.patterns += patterns
        paths = [path for pattern in patterns for path in matches(pattern)]
        if not paths:
            self._note_missing(file, line, directive, patterns)
        for path in paths:
            if os.path.realpath(path) in self._seen:
                continue
            try:
                self._read(Path(path), folder, file.kind, levels)
            except OSError as exc:
                why = exc.strerror or str(exc)
                file.notes.append(Note(line, f"not followed: {path}: {why}", left=True))

    def _note_missing(
        self, file: DialplanFile, line: int, directive: str, patterns: Sequence[str]
    ) -> None:
        missing = " or ".join(patterns)
        if directive == "tryinclude":
            file.notes.append(Note(line, f"there is no {missing}, which is allowed"))
            return
        hint = "" if self._folder else "; --asterisk-config names Asterisk's folder if that differs"
        what = "ignores it" if file.kind is Kind.AEL else "loads nothing of such a dialplan"
        text = f"there is no {missing}: Asterisk {what}{hint}"
        file.notes.append(Note(line, text, left=True))


_DIRECTIVE = re.compile(
    r"^[ \t]*(?:#(?P<directive>include|tryinclude|exec)[ \t]+"
    r"|(?P<switch>[le]?switch)[ \t]*=>?[ \t]*(?=Realtime))(?P<name>[^\r\n]+)",
    re.I | re.M,
)
# How Lua runs other files; the files of `require` are usually libraries.
_LUA_FILE = re.compile(r"(?<![\w.:])(?P<directive>dofile|loadfile)\b(?P<name>[^\r\n]*)")


def directives(text: str, kind: Kind) -> Iterator[tuple[int, str, str]]:
    """Yield line number, directive in lower case and argument of everything that includes files."""
    code = without_comments(text, kind)
    line, position = 1, 0
    for match in (_LUA_FILE if kind is Kind.LUA else _DIRECTIVE).finditer(code):
        line += code.count("\n", position, match.start())
        position = match.start()
        name = _dequoted(match["name"].strip())
        if name:
            # A switch to Realtime: a part of the dialplan that is in a database.
            yield line, (match["directive"] or match["switch"]).lower(), name


def _dequoted(name: str) -> str:
    """Return a name without surrounding quotes or angle brackets, if they match."""
    closing = {'"': '"', "<": ">"}.get(name[0]) if name else None
    return name[1:-1] if len(name) > 1 and closing == name[-1] else name


def matches(pattern: str) -> list[str]:
    """Return the paths that match a name with wildcards; without wildcards, the name if it exists.

    A link that leads nowhere exists.
    """
    if not glob.has_magic(pattern):
        return [pattern] if os.path.lexists(pattern) else []
    return sorted(glob.glob(pattern))


def expand_braces(name: str) -> list[str]:
    """Return the names that `a{b,c}` expands to, as glob(3) does with GLOB_BRACE."""
    names, todo = list[str](), [name]
    while todo:
        one = todo.pop(0)
        if (found := _BRACES.search(one)) is None:
            names.append(one)
        else:
            before, after = one[: found.start()], one[found.end() :]
            todo[:0] = [before + part + after for part in found[1].split(",")]
        if len(names) + len(todo) > MAX_NAMES:
            return [name]
    return names


_BRACES = re.compile(r"\{([^{},]*(?:,[^{},]*)+)\}")  # an innermost one
