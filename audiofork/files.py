"""Reads files that a configuration or request names, if they are regular and not too big.

Anything else is not read at all: a device or a pipe may block its reader, or never end.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the administrator names, or that a request names below one folder.

    Attributes:
        path: Its path; if there is a folder, it may also be relative to that.
        folder: The folder that must contain the file; None: it may be anywhere.
    """

    path: str
    folder: str | None = None

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        """Return its content; raises as `read_file` and `read_below` do."""
        return read_file(self.path) if self.folder is None else read_below(self.folder, self.path)


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes` bytes.

    Raises:
        OSError: It cannot be read, is not regular, or is too big; the text names it.
    """
    return _content(os.open(path, os.O_PATH | os.O_CLOEXEC), str(path), max_bytes)


def read_below(folder: str, path: str) -> bytes:
    """Return the content of a file as `read_file` does, if it lies below a folder.

    Symbolic links are followed if they stay within the folder. The error for a path outside is
    always the same, so that it does not reveal whether the file exists.

    Args:
        folder: The folder; empty: no file may be read.
        path: Relative to the folder, or absolute below it.

    Raises:
        OSError: The file cannot be read, is not regular, is too big, or lies elsewhere.
    """
    try:
        inside = path_below(folder, path)
        root = os.path.realpath(folder)
        real = PurePosixPath(os.path.realpath(os.path.join(root, inside))).relative_to(root)
    except ValueError:
        raise OSError(errno.EACCES, outside_of(folder), path) from None
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in real.parts:
        # A link that was created after `realpath` is not followed: opened like this, it is not
        # a regular file.
        descriptor = _step(descriptor, part, path)
    return _content(descriptor, path, MAX_FILE_BYTES)


def path_below(folder: str, path: str) -> str:
    """Return a path relative to a folder, by its text alone.

    Raises:
        ValueError: The path does not lie below the folder.
    """
    if not folder or "\0" in path or ".." in path.split("/"):
        raise ValueError(path)
    inside = PurePosixPath(path)
    if inside.is_absolute():
        inside = inside.relative_to(folder)
    if not inside.parts:
        raise ValueError(path)
    return str(inside)


def outside_of(folder: str) -> str:
    """Return the text of the error for a path that does not lie below a folder."""
    return f"not a file below {folder} ([security] tls_dir)" if folder else _NOWHERE


_NOWHERE = "[security] tls_dir lets requests name no files"


def _step(descriptor: int, part: str, path: str) -> int:
    """Open a part of a path in the folder of a descriptor, which is closed; return the new one."""
    try:
        return os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from None
    finally:
        os.close(descriptor)


def _kind_of(mode: int) -> str:
    return "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"


def _content(found: int, path: str, max_bytes: int) -> bytes:
    """Return the content of the file that an O_PATH descriptor stands for, and close that."""
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _kind_of(mode), path)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(f"/proc/self/fd/{found}", flags)
    except PermissionError as exc:
        raise PermissionError(exc.errno, exc.strerror, path) from None
    finally:
        os.close(found)
    try:
        content = b""
        while chunk := os.read(descriptor, max_bytes + 1 - len(content)):
            content += chunk
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB", path)
    return content
