"""What the receiver keeps to: how much it writes, and how many lines it shows."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audiofork.commands.wav import WavFile
from audiofork.text import reason_of

GIB = 1 << 30
FILE_BYTES = 4096  # what a file takes at least, so that a million empty ones count
LOOK_AGAIN_S = 10.0  # somebody may have made room
TEXTS_SHOWN = 20  # a second, of all forks together


@dataclass(frozen=True)
class Limits:
    """What the receiver keeps to; 0: any.

    Attributes:
        quota_bytes: Most bytes of all files in its folder, also of files made by others.
        keep_free_bytes: What has to be free on the disk.
    """

    quota_bytes: int = 10 * GIB
    keep_free_bytes: int = GIB


DEFAULTS = Limits()


class Space:
    """The room that is left in a folder, which has to be there.

    Counts what is written, and looks at the files themselves only when there is no room, once in
    LOOK_AGAIN_S.

    Raises:
        OSError: From every call, when the disk does not do what it should.
    """

    def __init__(
        self, folder: Path, limits: Limits, clock: Callable[[], float] = lambda: time.monotonic()
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._look()

    def _look(self) -> None:
        self._looked = self._clock()
        self._used_bytes = _size_of(self._folder) if self._limits.quota_bytes else 0

    def why_full(self, more_bytes: int = 0) -> str:
        """Return why these bytes may not be written; empty if they may."""
        quota, keep_free = self._limits.quota_bytes, self._limits.keep_free_bytes
        if quota and self._used_bytes + more_bytes > quota:
            if self._clock() >= self._looked + LOOK_AGAIN_S:
                self._look()
            if self._used_bytes + more_bytes > quota:
                return f"the recordings take {_gib(quota)} (--quota)"
        if keep_free and _free_bytes(self._folder) - more_bytes < keep_free:
            return f"less than {_gib(keep_free)} of the disk are free (--keep-free)"
        return ""

    def take(self, count: int) -> None:
        """Count bytes that were written."""
        self._used_bytes += count


class Output:
    """The file of a recording: there is none before its first audio, nor when it has ended.

    Attributes:
        path: Where it is, or was.
        full: Why there was no room for more; empty: there was.
    """

    def __init__(self, stem: Path, space: Space) -> None:
        self.path: Path | None = None
        self.full = ""
        self._stem = stem
        self._space = space
        self._file: WavFile | None = None

    @property
    def folder(self) -> Path:
        """Where the file goes."""
        return self._stem.parent

    def open(self, channels: int, sample_rate: int) -> Path:
        """Begin the file.

        Raises:
            OSError: It cannot be created.
        """
        self._file = WavFile(self._stem, channels, sample_rate)
        self._space.take(FILE_BYTES)
        self.path = self._file.path
        return self.path

    def write(self, audio: bytes | bytearray) -> str:
        """Write audio if there is a file; return why that has ended with this, if it has."""
        if self._file is None:
            return ""
        try:
            self.full = self._space.why_full(len(audio))
            if not self.full:
                self._file.write(audio)
                self._space.take(len(audio))
                return ""
        except OSError as exc:
            self.close()
            return f"it cannot be written: {reason_of(exc)}"
        self.close()
        return self.full

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class Second:
    """What came in a second that may come as a flood, and is counted."""

    def __init__(self) -> None:
        self._texts = 0
        self._refused = 0
        self._why = ""

    def refuse(self, why: str) -> None:
        """Count a connection that is refused."""
        self._refused += 1
        self._why = why

    def may_show_text(self) -> bool:
        """Count a text; return whether it is among the first."""
        self._texts += 1
        return self._texts <= TEXTS_SHOWN

    def lines(self) -> list[str]:
        """Return what there is to say of it."""
        lines = []
        if self._refused:
            lines.append(f"{self._refused} connections refused: {self._why}")
        if self._texts > TEXTS_SHOWN:
            lines.append(f"{self._texts - TEXTS_SHOWN} more texts not shown")
        return lines


def _size_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                total += max(FILE_BYTES, os.lstat(os.path.join(parent, name)).st_size)
    return total


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _gib(count: int) -> str:
    return f"{count / GIB:g} GiB"
