"""Files that somebody names: read whole if they are regular and not too big, else not at all.

A path may lead to a device or a pipe, which may block its reader or never end.
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
    """A file that the administrator names, or one in a folder that is open to requests.

    Attributes:
        path: Its path; within the folder also one that begins there.
        folder: None: it may lie anywhere.
    """

    path: str
    folder: str | None = None

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        """Return its content; see `read_file` and `read_below`."""
        return read_file(self.path) if self.folder is None else read_below(self.folder, self.path)


def read_file(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file that is not too big.

    Raises:
        OSError: It cannot be read, or is none; the text names it.
    """
    return _content(os.open(path, os.O_PATH | os.O_CLOEXEC), str(path), max_bytes)


def read_below(folder: str, path: str) -> bytes:
    """Return the content of a file as `read_file` does, if it lies below a folder.

    Symbolic links may lead about within the folder. Of what is outside the error tells nothing,
    not even whether it is there.

    Args:
        folder: Where it must lie; empty: nowhere.
        path: Relative to the folder, or one that begins with it.

    Raises:
        OSError: It cannot be read, or is none, or lies elsewhere.
    """
    try:
        inside = path_below(folder, path)
        root = os.path.realpath(folder)
        real = PurePosixPath(os.path.realpath(os.path.join(root, inside))).relative_to(root)
    except ValueError:
        raise OSError(errno.EACCES, outside_of(folder), path) from None
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in real.parts:
        # A link that has come since leads nowhere: it is neither a folder nor a file.
        descriptor = _step(descriptor, part, path)
    return _content(descriptor, path, MAX_FILE_BYTES)


def path_below(folder: str, path: str) -> str:
    """Return a path relative to a folder; asks no file system.

    Raises:
        ValueError: It does not lie there.
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
    """Return what is wrong with a path that does not lie below a folder."""
    return f"not a file below {folder} ([security] tls_dir)" if folder else _NOWHERE


_NOWHERE = "[security] tls_dir lets requests name no files"


def _step(descriptor: int, part: str, path: str) -> int:
    """Return the descriptor of a part of a path, in place of that of the folder it is in."""
    try:
        return os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from None
    finally:
        os.close(descriptor)


def _kind_of(mode: int) -> str:
    return "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"


def _content(found: int, path: str, max_bytes: int) -> bytes:
    """Return the content of what a descriptor without rights is of, and close that."""
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
