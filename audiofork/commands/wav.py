"""Writes WAV files that can be played while they grow."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

SAMPLE_BYTES = 2
# The sizes in a WAV header have 32 bits, enough for 37 hours of stereo at 8000 Hz. Longer files are
# written anyway; most players then use the size of the file.
MAX_WAV_BYTES = 0xFFFF_FFFF - 36

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


class WavFile:
    """A WAV file that can be played at any time: each write updates its header.

    Its name is STEM.wav, or STEM-2.wav and so on if that exists.

    Samples are int16 little-endian, `channels` interleaved, at `sample_rate` Hz. A call's audio
    is private: only the owner may read the file.

    Raises:
        OSError: By every call, if the file cannot be created or written.
    """

    def __init__(self, stem: Path, channels: int, sample_rate: int) -> None:
        self._frame_bytes = SAMPLE_BYTES * channels
        self._channels = channels
        self._sample_rate = sample_rate
        self._data_bytes = 0
        self.path, self._file = self._create(stem)
        try:
            self._append(self._header())
        except OSError:
            self.close()
            self.path.unlink(missing_ok=True)
            raise

    @staticmethod
    def _create(stem: Path) -> tuple[Path, int]:
        """Create a file that did not exist: STEM.wav, else STEM-2.wav and so on."""
        number = 1
        while True:
            path = Path(f"{stem}.wav" if number == 1 else f"{stem}-{number}.wav")
            with contextlib.suppress(FileExistsError):
                return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            number += 1

    def write(self, audio: bytes | bytearray) -> None:
        """Append whole samples, and update the header."""
        try:
            self._append(audio)
        except OSError:
            with contextlib.suppress(OSError):  # leave no half sample at the end
                os.ftruncate(self._file, _HEADER.size + self._data_bytes)
            raise
        self._data_bytes += len(audio)
        os.pwrite(self._file, self._header(), 0)

    def _append(self, content: bytes | bytearray) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _header(self) -> bytes:
        """Return the 44 bytes of a canonical WAV header (PCM, one data chunk)."""
        size = min(self._data_bytes, MAX_WAV_BYTES)
        bytes_per_s = self._sample_rate * self._frame_bytes
        return _HEADER.pack(
            *(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, self._channels, self._sample_rate),
            *(bytes_per_s, self._frame_bytes, 8 * SAMPLE_BYTES, b"data", size),
        )

    def close(self) -> None:
        """Close the file; all that was written is in it."""
        os.close(self._file)
