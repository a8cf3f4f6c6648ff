"""Changes the sample rate of a stream of slin, by libsoxr."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from audiofork.audiosocket import SAMPLE_BYTES

# What the library holds back of a stream at most, measured from 8 to 48 kHz.
LAG_S = 0.03

_lock = threading.Lock()
_libraries: tuple[Any, Any] | None = None


def load() -> tuple[Any, Any]:
    """Return the libraries soxr and numpy, which takes 0.1 s and 17 MB the first time."""
    global _libraries
    with _lock:
        if _libraries is None:
            _libraries = importlib.import_module("soxr"), importlib.import_module("numpy")
        return _libraries


def load_in_background() -> None:
    """Load the libraries in a thread: they would hold up the audio of all forks meanwhile."""
    if _libraries is None and not _lock.locked():
        threading.Thread(target=load, name="resampler", daemon=True).start()


class Resampler:
    """Resamples one stream of slin.

    The library runs with a variable rate, which it need not be: with a fixed one it works on blocks
    and holds back up to 90 ms, and gives nothing for 60 ms and then much. So it holds back 15 to
    30 ms, and a band up to 3.4 kHz is as flat.

    Args:
        rate_in: The sample rate in Hz of what is fed.
        rate_out: That of what comes back.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self.rate_in = rate_in
        self.rate_out = rate_out
        soxr, self._numpy = load()
        self._stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="int16", vr=True)
        self._fed = 0  # samples
        self._given = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are still to come of what was fed."""
        return max(0, self._fed * self.rate_out // self.rate_in - self._given) * SAMPLE_BYTES

    def feed(self, samples: bytes) -> bytes:
        """Return what is ready of the stream so far; the rest comes later.

        Args:
            samples: slin of whole samples.
        """
        return self._resample(samples, is_last=False)

    def end(self) -> bytes:
        """Return the rest of the stream, which is over then."""
        return self._resample(b"", is_last=True)

    def _resample(self, samples: bytes, *, is_last: bool) -> bytes:
        fed = self._numpy.frombuffer(samples, dtype="<i2")
        given = self._stream.resample_chunk(fed, last=is_last)
        self._fed += len(fed)
        self._given += len(given)
        resampled: bytes = given.tobytes()
        return resampled
