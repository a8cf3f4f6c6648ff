"""Shows the changes of files as a diff, and replaces files, for `migrate`."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from audiofork.commands.dialplan import MAX_DIALPLAN_BYTES
from audiofork.files import read_file

COPY_SUFFIX = ".before-migrate"

# --- The diff ------------------------------------------------------------------------------------


def diff(path: Path, old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield the lines of a unified diff, without their line ends; nothing if nothing changes.

    The lines are the exact bytes of the file, so that patch(1) can apply the diff, and revert it
    with -R. The file is named by its whole path, links resolved, because patch changes no links.
    """
    before, after = _lines(old), _lines(new)
    header = [b"--- " + _name(path), b"+++ " + _name(path)]
    for group in _LineByLine(before, after).get_grouped_opcodes():
        yield from header
        header = []
        _, start, _, new_start, _ = group[0]
        _, _, end, _, new_end = group[-1]
        yield b"@@ -%s +%s @@" % (_range(start, end), _range(new_start, new_end))
        for tag, a, b, c, d in group:
            if tag == "equal":
                yield from _marked(b" ", before[a:b])
            else:
                yield from _marked(b"-", before[a:b])
                yield from _marked(b"+", after[c:d])


class _LineByLine(difflib.SequenceMatcher[bytes]):
    """Compares line by line if the number of lines is the same: a search is slow in big files."""

    def __init__(self, before: Sequence[bytes], after: Sequence[bytes]) -> None:
        super().__init__(a=before, b=after)
        self._before, self._after = before, after

    def get_opcodes(self) -> list[tuple[str, int, int, int, int]]:  # type: ignore[override]
        if len(self._before) != len(self._after):
            return super().get_opcodes()  # type: ignore[return-value]
        codes, position = [], 0
        pairs = zip(self._before, self._after, strict=True)
        for same, run in itertools.groupby(pairs, lambda pair: pair[0] == pair[1]):
            end = position + len(list(run))
            codes.append(("equal" if same else "replace", position, end, position, end))
            position = end
        return codes


def _lines(content: bytes) -> list[bytes]:
    """Split only at \\n, as Asterisk does; bytes.splitlines() knows more line ends."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def _marked(mark: bytes, lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark + line.removesuffix(b"\n")
        if not line.endswith(b"\n"):
            yield b"\\ No newline at end of file"


def _range(start: int, end: int) -> bytes:
    """Return a range of lines as diff(1) writes it; an empty one names the line before it."""
    if end - start == 1:
        return b"%d" % (start + 1)
    return b"%d,%d" % (start + (end > start), end - start)


def _name(path: Path) -> bytes:
    """Return a path as patch(1) reads it: quoted, or followed by a tab, if necessary."""
    name = os.fsencode(path.resolve())
    if re.search(rb'[\0-\x1f\x7f"\\]', name):
        return b'"' + re.sub(rb'[\0-\x1f\x7f"\\]', lambda one: b"\\%03o" % ord(one[0]), name) + b'"'
    return name + b"\t" if b" " in name else name


# --- Writing -------------------------------------------------------------------------------------


def replace_file(path: Path, old: bytes, new: bytes, patterns: Sequence[str]) -> Path:
    """Replace the content of a file, or leave it unchanged; return the path of the copy.

    File and copy have the mode, the owner and the extended attributes of the old file. For a link,
    the file that it leads to is replaced. No copy of an earlier run is replaced.

    Args:
        path: The file.
        old: Its content.
        new: Its new content.
        patterns: Paths with wildcards that the copy must not match, because Asterisk includes them.

    Raises:
        OSError: The folder cannot be written to, the owner cannot be kept, or the content has
            changed.
    """
    target = path.resolve()
    with _written(target, old) as copied, _written(target, new) as replacement:
        os.utime(replacement)
        if read_file(target, MAX_DIALPLAN_BYTES) != old:
            raise OSError(0, "it has changed while it was being rewritten")
        copy = _free_name(target, patterns)
        os.rename(copied, copy)
        try:
            os.replace(replacement, target)
        except BaseException:
            os.unlink(copy)
            raise
    return copy


@contextmanager
def _written(target: Path, content: bytes) -> Iterator[str]:
    """Yield a new file with this content, and the mode and owner of another one.

    It is removed at the end, if it still exists. Asterisk's `#include *.conf` does not match it.
    """
    status = target.stat()
    descriptor, path = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, status.st_uid, status.st_gid)
            shutil.copystat(target, path)
            os.fsync(descriptor)
        yield path
    finally:
        if os.path.lexists(path):
            os.unlink(path)


def _free_name(target: Path, patterns: Sequence[str]) -> Path:
    """Return an unused name for a copy, which Asterisk does not include."""
    for number in itertools.count(1):
        name = f"{target.name}{COPY_SUFFIX}" + (f".{number}" if number > 1 else "")
        copy = target.with_name(name)
        if any(fnmatch.fnmatch(str(copy), pattern) for pattern in patterns):
            copy = target.with_name(f".{name}")
        if not os.path.lexists(copy):
            return copy
    raise AssertionError("numbers do not end")
