"""The files of Unix sockets that the daemon, or a relay process of its own, listens at; peers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from audiofork.errors import ConfigError
from audiofork.text import reason_of

MAX_PATH_BYTES = 107  # sun_path is 108 bytes, the last one zero
PROBE_TIMEOUT_S = 1.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred


class AddressTaken(ConfigError):
    """Raised if another daemon listens at the path."""


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket, by the kernel's word.

    Attributes:
        pid: The process; 0: it is in another PID namespace.
        uid: Its user; `gid` its group.
    """

    pid: int
    uid: int
    gid: int

    @property
    def may_be_trusted(self) -> bool:
        """Whether it is a process of our own user, or of root."""
        return self.uid in (os.geteuid(), 0)


def peer_of(end: socket.socket) -> Peer:
    """Return who is at the other end of a connected Unix socket."""
    told = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(told))


def bind(path: Path, option: str, mode: int = 0o660) -> socket.socket:
    """Return a bound socket, by default one that only its owner and group may use.

    Args:
        path: Its file; that of a daemon that is gone is replaced.
        option: The option that names it, `[control] socket`.
        mode: Who may use it.

    Raises:
        ConfigError: The path cannot be used, or another daemon listens there.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"{option}: the path is longer than {MAX_PATH_BYTES} bytes")
    _remove_stale(path, option)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must be right from the start, so chmod would come too late.
    old_mask = os.umask(0o777 & ~mode)
    try:
        bound.bind(os.fspath(path))
    except OSError as exc:
        bound.close()
        raise ConfigError(f"{option} {path}: {reason_of(exc)}") from exc
    finally:
        os.umask(old_mask)
    return bound


def remove(path: Path, inode: int) -> None:
    """Remove the file of a socket, unless another daemon has put its own there meanwhile.

    Args:
        path: The file.
        inode: Its inode when it was bound.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _remove_stale(path: Path, option: str) -> None:
    """Remove the socket of a daemon that is gone.

    Raises:
        ConfigError: The path is something else, or its daemon is alive.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{option} {path}: exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as exc:  # a live daemon's backlog may be full, or it is another user's
        raise ConfigError(f"{option} {path}: {reason_of(exc)}") from exc
    else:
        raise AddressTaken(f"{option} {path}: another daemon listens there")
