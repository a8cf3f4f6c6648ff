"""Configuration files of Asterisk, read with all that they include, as main/config.c reads them.

Text is bytes decoded as Latin-1: each byte comes back as it was, whatever its encoding. Scripts of
`#exec` are not run; a file that has one says so (`Conf.runs_scripts`).
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from audiofork.commands.dialplan import Kind, without_comments
from audiofork.files import read_file

BOM = b"\xef\xbb\xbf".decode("latin-1")
GENERAL = "general"
MAX_CONF_BYTES = 64 << 20  # generated dialplans are large
_MAX_DEPTH = 10  # MAX_INCLUDE_LEVEL
_HEADER = re.compile(r"\[([^]]*)\]\s*(?:\(([^)]*)\))?")
_DIRECTIVE = re.compile(r"#(include|tryinclude|exec)\s+(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Setting:
    """A line `name = value`, with the place where it stands."""

    name: str
    value: str
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(slots=True)
class Section:
    """A section with the lines that it has from its templates and by `(+)`, in their order."""

    name: str
    is_template: bool
    path: Path
    line: int
    settings: list[Setting] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"

    def last(self, name: str) -> Setting | None:
        """Return the line that sets an option, the last of several: that one counts."""
        found = [one for one in self.settings if one.name.lower() == name]
        return found[-1] if found else None

    def value(self, name: str, default: str = "") -> str:
        """Return the value of an option."""
        setting = self.last(name)
        return default if setting is None else setting.value


class Files:
    """The files there are, and over them those that are to be written.

    Attributes:
        planned: Contents by path; they hide what is there.
    """

    def __init__(self) -> None:
        self.planned: dict[Path, bytes] = {}

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file; None: there is no such file.

        Raises:
            OSError: It cannot be read, or is none.
        """
        if (target := real(path)) in self.planned:
            return self.planned[target]
        try:
            return read_file(target, MAX_CONF_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def matching(self, pattern: Path) -> list[Path]:
        """Return the files that a pattern of an `#include` names, sorted."""
        there = {Path(name) for name in glob.glob(str(pattern))}
        there |= {path for path in self.planned if fnmatch.fnmatchcase(str(path), str(pattern))}
        return sorted(there)


class Conf:
    """One configuration file of Asterisk, manager.conf say, with all that it includes.

    Args:
        folder: Asterisk's configuration folder, which relative names count from.
        name: Of the file.
        files: Where they are read from.

    Attributes:
        path: Of the file itself.
        patterns: What `#include` and `#tryinclude` name, as paths that may hold wildcards.
        read: The paths of all files that were read, in their order.
        runs_scripts: Lines with `#exec`, as `path:line`.

    Raises:
        OSError: One of them cannot be read.
    """

    def __init__(self, folder: Path, name: str, files: Files) -> None:
        self.path = folder / name
        self.patterns: list[Path] = []
        self.read: list[Path] = []
        self.runs_scripts: list[str] = []
        self._folder = folder
        self._files = files
        self._sections: list[Section] = []
        self._current: Section | None = None
        self._read(self.path, 0)

    def section(self, name: str) -> Section | None:
        """Return the first section of a name, the one that counts."""
        return next(iter(self.sections(name)), None)

    def sections(self, name: str) -> list[Section]:
        """Return all sections of a name that are no templates."""
        named = (one for one in self._sections if one.name.lower() == name.lower())
        return [one for one in named if not one.is_template]

    def includes(self, path: Path) -> bool:
        """Return whether a file is among those read, or would be if it were there."""
        return path in self.read or any(
            fnmatch.fnmatchcase(str(path), str(one)) for one in self.patterns
        )

    def wildcard_place(self, *names: str) -> Path | None:
        """Return where a new file of one of these names is included by a wildcard that stands."""
        for pattern in self.patterns:
            for name in names:
                path = pattern.parent / name
                if glob.has_magic(pattern.name) and fnmatch.fnmatchcase(name, pattern.name):
                    return None if glob.has_magic(str(pattern.parent)) else path
        return None

    def _read(self, path: Path, depth: int) -> None:
        content = self._files.read(path)
        if content is None or depth > _MAX_DEPTH:
            return
        self.read.append(path)
        code = code_of(content.decode("latin-1"))
        for number, line in enumerate(code.split("\n"), 1):
            self._take(line.strip(), path, number, depth)

    def _take(self, line: str, path: Path, number: int, depth: int) -> None:
        if line.startswith("["):
            self._enter(line, path, number)
        elif line.startswith("#"):
            self._obey(line, f"{path}:{number}", depth)
        elif "=" in line and self._current is not None:
            name, _, value = line.partition("=")
            text = value.removeprefix(">").strip().replace("\\;", ";")
            self._current.settings.append(Setting(name.strip(), text, path, number))

    def _enter(self, line: str, path: Path, number: int) -> None:
        """Begin a section, or go on with one: `[name](!)`, `[name](template,...)`, `[name](+)`."""
        match = _HEADER.match(line)
        if match is None:  # Asterisk refuses the whole file
            return
        name, words = match[1].strip(), [word.strip() for word in (match[2] or "").split(",")]
        if "+" in words and (first := self.section(name)) is not None:
            self._current = first
            return
        self._current = Section(name, "!" in words, path, number)
        for word in words:
            parent = next((one for one in self._sections if one.name == word), None)
            self._current.settings += parent.settings if parent else []
        self._sections.append(self._current)

    def _obey(self, line: str, where: str, depth: int) -> None:
        match = _DIRECTIVE.match(line)
        if match is None:
            return
        if match[1].lower() == "exec":
            self.runs_scripts.append(where)
            return
        pattern = self._folder / match[2].strip().strip('"<>').strip()
        self.patterns.append(pattern)
        for path in self._files.matching(pattern):
            self._read(path, depth + 1)


def code_of(text: str) -> str:
    """Return a file's text without comments and mark of encoding; each line stays in its place."""
    return without_comments(text.removeprefix(BOM), Kind.CONF)


def is_true(value: str) -> bool:
    """Return what Asterisk's ast_true() does."""
    return value.lower() in ("yes", "true", "y", "t", "1", "on")


def real(path: Path) -> Path:
    """Return the file that a path leads to, itself there or not; of a circle of links, a link."""
    return Path(os.path.realpath(path))
