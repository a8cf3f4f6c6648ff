"""Rewrites a dialplan from the applications of app_audiofork to those of this package.

What is plain is rewritten, all else stays as it is and is told with its line:

    AudioFork(URL,OPTIONS,COMMAND)      Gosub(audiofork,start,1(URL,OPTIONS,COMMAND))
    StopAudioFork(ID)                   Gosub(audiofork,stop,1(ID))
    ${AUDIOFORK(${VARIABLE},filename)}  ${AUDIOFORK_WSSERVER_${REPLACE(VARIABLE,-,_)}}

In Lua the two become app.UserEvent(): pbx_lua does not come back from a Gosub.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from audiofork.commands.dialplan import kind_of
from audiofork.commands.migrate_text import Migration, migrate_text
from audiofork.files import read_file
from audiofork.text import reason_of

EXIT_DONE = 0
EXIT_FAILED = 1

MAX_DIALPLAN_BYTES = 16 << 20
INCLUDE = "#include extensions_audiofork.conf"


def run(
    paths: Sequence[Path], *, write: bool, say: Callable[[str], None], warn: Callable[[str], None]
) -> int:
    """Show how files would be rewritten, as a diff that `patch` takes, or rewrite them.

    Files are replaced whole and at once, with their mode and owner; no copy of the old one
    stays: the diff turns the new one back (`patch -R`).

    Args:
        paths: The files; each one's language is told by its name.
        write: Whether to change the files.
        say: Takes each line of the diff.
        warn: Takes notes, as file:line: text, and errors.

    Returns:
        EXIT_DONE, or EXIT_FAILED if a file cannot be read or written, or something of the module
        was left in one.
    """
    failed = False
    needs_include = False
    for path in paths:
        try:
            old, result = _migrate_file(path)
            for line in _diff(path, old, result.text):
                say(line)
            if write and result.changes:
                _replace_file(path, _encode(result.text))
        except OSError as exc:
            warn(f"{path}: {reason_of(exc)}")
            failed = True
            continue
        for note in result.notes:
            warn(f"{path}:{note.line}: {note.text}")
            failed |= note.left
        warn(f"{path}: {_summary(result, write)}")
        needs_include |= "Gosub(audiofork," in result.text and INCLUDE not in result.text
    if needs_include:
        warn(f"extensions.conf needs the line: {INCLUDE}")
    return EXIT_FAILED if failed else EXIT_DONE


def _summary(result: Migration, write: bool) -> str:
    left = sum(note.left for note in result.notes)
    done = "rewritten" if write else "to rewrite, by --write"
    return f"{result.changes} {done}" + (f", {left} left to do by hand" if left else "")


def _migrate_file(path: Path) -> tuple[str, Migration]:
    # Bytes that are not UTF-8 (an old file in Latin-1) come through as they are.
    old = read_file(path, MAX_DIALPLAN_BYTES).decode("utf-8", "surrogateescape")
    return old, migrate_text(old, kind_of(path))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _diff(path: Path, old: str, new: str) -> Iterator[str]:
    lines = difflib.unified_diff(_lines(old), _lines(new), str(path), str(path), lineterm="\n")
    for line in lines:
        printable = _encode(line).decode("utf-8", "replace")
        yield printable.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _lines(text: str) -> list[str]:
    """Split at \\n alone, as Asterisk does; str.splitlines() knows many more line ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _replace_file(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one, or leave the old one as it was.

    Raises:
        OSError: The folder cannot be written to, or the owner cannot be kept.
    """
    target = path.resolve()  # of a link, the file that it names is replaced
    status = target.stat()
    # Asterisk's `#include *.conf` must not see the new file before its time.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
