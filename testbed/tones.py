"""Makes tones and measures their pitch, which shows what a fork carries and at which rate."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

SAMPLE_RATE = 8000


def tone(frequency_hz: float, seconds: float, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Return a sine as slin: int16 little-endian, a quarter of full scale."""
    count = round(seconds * sample_rate)
    step = math.tau * frequency_hz / sample_rate
    return struct.pack(f"<{count}h", *(round(8000 * math.sin(step * n)) for n in range(count)))


def level(slin: bytes, frequency_hz: float, sample_rate: int = SAMPLE_RATE) -> float:
    """Return the amplitude of one frequency in slin, by Goertzel's algorithm; 8000 of a `tone`."""
    samples = struct.unpack(f"<{len(slin) // 2}h", slin)
    factor = 2 * math.cos(math.tau * frequency_hz / sample_rate)
    before = last = 0.0
    for sample in samples:
        before, last = last, sample + factor * last - before
    power = last * last + before * before - factor * last * before
    return 2 * math.sqrt(max(power, 0.0)) / max(len(samples), 1)


def pitches(
    slin: bytes, candidates_hz: Iterable[int], sample_rate: int = SAMPLE_RATE, least: float = 1500
) -> list[int]:
    """Return those of some frequencies that are there, by their amplitude."""
    return [one for one in candidates_hz if level(slin, one, sample_rate) >= least]
