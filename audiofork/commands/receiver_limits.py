"""Limits what the receiver writes to the disk, and how many lines it shows."""

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
FILE_BYTES = 4096  # each file counts as at least so many, so that a million empty ones are limited
LOOK_AGAIN_S = 10.0  # files may have been deleted meanwhile
TEXTS_SHOWN = 20  # per second, of all forks together


@dataclass(frozen=True)
class Limits:
    """The limits of a receiver; 0: no limit.

    Attributes:
        quota_bytes: How many bytes all files in its folder may take, also those of others.
        keep_free_bytes: How many bytes have to stay free on the disk.
    """

    quota_bytes: int = 10 * GIB
    keep_free_bytes: int = GIB


DEFAULTS = Limits()


class Space:
    """Watches the room that is left in an existing folder.

    Counts the bytes that are written; reads the sizes of the files again only when the quota is
    used up, at most once in LOOK_AGAIN_S.

    Attributes:
        taken_bytes: How many bytes were written.

    Raises:
        OSError: By every call, if the folder or its disk cannot be read.
    """

    def __init__(
        self, folder: Path, limits: Limits, clock: Callable[[], float] = lambda: time.monotonic()
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self.taken_bytes = 0
        self._look()

    def _look(self) -> None:
        self._looked = self._clock()
        self._used_bytes = _size_of(self._folder) if self._limits.quota_bytes else 0

    def __str__(self) -> str:
        """Return how much is used, and how much may be, for people."""
        quota = self._limits.quota_bytes
        if not quota:
            return f"{size(self.taken_bytes)} written"
        return f"{size(self.taken_bytes)} written, {size(self._used_bytes)} of {_gib(quota)} used"

    def why_full(self, more_bytes: int = 0) -> str:
        """Return why so many more bytes may not be written; empty: they may."""
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
        """Count this number of bytes as written."""
        self._used_bytes += count
        self.taken_bytes += count


class Output:
    """Writes the file of a recording, from `open` until it is closed or there is no more room.

    Attributes:
        path: The path of the file, also after it was closed; None: there was none.
        full: Why there was no more room; empty: there was.
    """

    def __init__(self, stem: Path, space: Space) -> None:
        self.path: Path | None = None
        self.full = ""
        self._stem = stem
        self._space = space
        self._file: WavFile | None = None

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self._stem.parent

    def open(self, channels: int, sample_rate: int) -> Path:
        """Create the file; return its path.

        Raises:
            OSError: The file cannot be created.
        """
        self._file = WavFile(self._stem, channels, sample_rate)
        self._space.take(FILE_BYTES)
        self.path = self._file.path
        return self.path

    def write(self, audio: bytes | bytearray) -> str:
        """Write audio if the file is open; return why this closed it, empty: it did not."""
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
        """Close the file, if it is open."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class Second:
    """Counts the events of one second that may come as a flood."""

    def __init__(self) -> None:
        self._texts = 0
        self._refused = 0
        self._why = ""

    def refuse(self, why: str) -> None:
        """Count a refused connection, with the reason."""
        self._refused += 1
        self._why = why

    def may_show_text(self) -> bool:
        """Count a text message; return whether it is among the first TEXTS_SHOWN."""
        self._texts += 1
        return self._texts <= TEXTS_SHOWN

    def lines(self) -> list[str]:
        """Return the lines about refused connections and hidden texts; empty: there were none."""
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


def size(count: int) -> str:
    """Return a number of bytes as text: 0 B, 12.3 MiB."""
    for unit, one in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count} B"


def _gib(count: int) -> str:
    return f"{count / GIB:g} GiB"
