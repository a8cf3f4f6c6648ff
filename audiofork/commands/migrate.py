"""Rewrites a dialplan from the applications of app_audiofork to those of this package.

Plain calls are rewritten; everything else stays unchanged and is reported with its line:

    AudioFork(URL,OPTIONS,COMMAND)      ExecIf(...?Gosub(audiofork,start,1(URL,OPTIONS,COMMAND)))
    StopAudioFork(ID)                   ExecIf(...?Gosub(audiofork,stop,1(ID)))
    ${AUDIOFORK(${VARIABLE},filename)}  ${AUDIOFORK_WSSERVER_${REPLACE(VARIABLE,-,_)}}

In Lua the first two become app.UserEvent(), because pbx_lua does not return from a Gosub.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiofork.asterisk.versions import Version
from audiofork.commands.migrate_draft import Migration, Note
from audiofork.commands.migrate_files import diff, replace_file
from audiofork.commands.migrate_includes import DialplanFile, Reader, encode
from audiofork.commands.migrate_text import migrate_text
from audiofork.commands.terminal import EXIT_DONE, EXIT_FAILED
from audiofork.text import printable

DIALPLANS = ("extensions.conf", "extensions.ael", "extensions.lua")
DEFAULT_FOLDER = Path("/etc/asterisk")
SHIPPED = "extensions_audiofork.conf"
VERSION_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """A task of `migrate`.

    Attributes:
        paths: The files, each with all that it includes; empty: the dialplans of the folder.
        folder: Asterisk's configuration folder, which included files are relative to; None: the
            folder of each file.
        branch: The branch of the Asterisk that runs the dialplan, 22 for 22.10.1; None: unknown.
        write: Whether to change the files.
    """

    paths: Sequence[Path] = ()
    folder: Path | None = None
    branch: int | None = None
    write: bool = False


def run(task: Task, say: Callable[[bytes], None], warn: Callable[[str], None]) -> int:
    """Show how files would be rewritten, as a diff for `patch`, or rewrite them.

    Files are replaced atomically; a copy of each old file is kept.

    Args:
        task: What to do.
        say: Called with each line of the diff, without its line end.
        warn: Called with notes, as file:line: text, and errors.

    Returns:
        EXIT_DONE, or EXIT_FAILED if a file cannot be read or written, or something must be done by
        hand.
    """
    reader = Reader(task.folder or (None if task.paths else DEFAULT_FOLDER))
    paths = task.paths or dialplans_of(task.folder or DEFAULT_FOLDER)
    for path in paths:
        reader.read(path)
    one = _Run(task.write, task.branch, reader.patterns, say, warn)
    for path, why in reader.errors:
        one.fail(path, why)
    for file in reader.files:
        one.migrate(file)
    if not paths:
        folder = task.folder or DEFAULT_FOLDER
        one.fail(folder, f"there is no {', '.join(DIALPLANS)}: name files, or --asterisk-config")
    if one.has_gosubs and not _has_shipped(reader):
        one.warn(f"extensions.conf needs the line: #include {SHIPPED} (audiofork setup adds it)")
    return EXIT_FAILED if one.failed else EXIT_DONE


def dialplans_of(folder: Path) -> list[Path]:
    """Return the dialplans that Asterisk loads from a configuration folder, if they exist.

    If the folder cannot be read, return the first one: reading that reports the error.
    """
    try:
        return [path for name in DIALPLANS if (path := folder / name).exists()]
    except PermissionError:
        return [folder / DIALPLANS[0]]


def local_branch() -> int | None:
    """Return the branch of the installed Asterisk, 22 for 22.10.1; None if none is installed."""
    program = shutil.which("asterisk")
    if program is None:
        return None
    try:
        told = subprocess.run(
            [program, "-V"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Version.parse(told.stdout).branch


class _Run:
    """One run of the command.

    Attributes:
        failed: Whether something is left to do.
        has_gosubs: Whether rewritten calls use the shipped dialplan.
    """

    def __init__(
        self,
        write: bool,
        branch: int | None,
        patterns: Sequence[str],
        say: Callable[[bytes], None],
        warn: Callable[[str], None],
    ) -> None:
        self._write = write
        self._branch = branch
        self._patterns = patterns
        self._say = say
        self._warn = warn
        self.failed = False
        self.has_gosubs = False

    def migrate(self, file: DialplanFile) -> None:
        """Show the changes of a file, and write them if requested."""
        result = migrate_text(file.text, file.kind, self._branch)
        new = encode(result.text)
        for line in diff(file.path, file.content, new):
            self._say(line)
        notes = sorted([*file.notes, *_generated(result), *result.notes], key=_line_of)
        for note in notes:
            self.warn(f"{file.path}:{note.line}: {note.text}")
            self.failed |= note.left
        self.has_gosubs |= "Gosub(audiofork,start,1(" in result.text
        copy = None
        if self._write and result.changes:
            try:
                copy = replace_file(file.path, file.content, new, self._patterns)
            except OSError as exc:
                self.fail(file.path, f"not rewritten: {exc.strerror or exc}")
                return
        self.warn(f"{file.path}: {_summary(result, notes, copy)}")

    def fail(self, path: Path, why: str) -> None:
        """Report why a file is not read or written."""
        self.failed = True
        self.warn(f"{path}: {why}")

    def warn(self, text: str) -> None:
        """Report a note; control characters in a file's name cannot garble it."""
        self._warn(printable(text, "?"))


def _line_of(note: Note) -> int:
    return note.line


def _generated(result: Migration) -> Iterator[Note]:
    """Yield a note if the head of a rewritten file says that a program generates it."""
    if result.changes and (found := _GENERATED.search(result.text, 0, HEAD_CHARACTERS)):
        line = result.text.count("\n", 0, found.start()) + 1
        yield Note(line, "the file is generated: change its source", left=True)


_GENERATED = re.compile(r"auto-?(?:matically )?generated|do not edit", re.I)
HEAD_CHARACTERS = 2000


def _summary(result: Migration, notes: Sequence[Note], copy: Path | None) -> str:
    left = sum(note.left for note in notes)
    done = f"rewritten; old file: {copy}" if copy else "to rewrite with --write"
    parts = [f"{result.changes} {done}" if result.changes else "nothing to rewrite"]
    return ", ".join(parts + ([f"{left} left to do by hand"] if left else []))


def _has_shipped(reader: Reader) -> bool:
    """Return whether the dialplan includes or contains the shipped one."""
    names = [Path(pattern).name for pattern in reader.patterns]
    return SHIPPED in names or any(
        re.search(r"^[ \t]*\[audiofork\]", file.text, re.M) and "UserEvent(AudioFork" in file.text
        for file in reader.files
    )
