"""Files written whole or not at all, with mode, owner and attributes of what they replace."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes, *, like: Path | None, mode: int, group: int) -> None:
    """Put a file in the place of another, or where there is none.

    Args:
        path: No link.
        like: Whose mode, owner, times and extended attributes it gets; None: mode and group below.

    Raises:
        OSError: Nothing was changed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if like is None:
                if group != os.getegid():
                    os.fchown(file.fileno(), -1, group)
                os.fchmod(file.fileno(), mode)
            else:
                copy_attributes(like, Path(name))
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def copy_attributes(source: Path, target: Path) -> None:
    """Give a file the owner, mode, times and extended attributes of another."""
    there = source.stat()
    own = target.stat()
    if (there.st_uid, there.st_gid) != (own.st_uid, own.st_gid):
        os.chown(target, there.st_uid, there.st_gid)
    shutil.copystat(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file with all that it has; it is on the disk when this returns."""
    replace(target, source.read_bytes(), like=source, mode=0, group=0)


def sync_folder(path: Path) -> None:
    """Have a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_folders(path: Path) -> list[Path]:
    """Return which of a folder and those above it are not there, the uppermost first."""
    return [one for one in reversed((path, *path.parents)) if not one.exists()]


def make_folder(path: Path, mode: int = 0o755, group: int | None = None) -> None:
    """Make a folder with a mode, whatever the umask; by default all may look into it."""
    path.mkdir(mode=0o700)
    if group is not None and group != os.getegid():
        os.chown(path, -1, group)
    path.chmod(mode)
