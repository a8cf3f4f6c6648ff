"""Tones that tell the target's party about the fork (options B, p and P)."""

from __future__ import annotations

import asyncio
import functools
import math
import struct
from collections.abc import Callable

from audiofork.audiosocket import SAMPLE_BYTES, frame_bytes
from audiofork.link.messages import Beeps

# The usual tone for recorded calls: 1400 Hz for 200 ms.
FREQUENCY_HZ = 1400
BEEP_FRAMES = 10
AMPLITUDE = 8192  # -12 dBFS
_RAMP_S = 0.005  # without a ramp the tone clicks
# Asterisk still plays buffered audio after it got the last frame of a tone.
TAIL_S = 0.1


@functools.cache
def tone(sample_rate: int) -> list[bytes]:
    """Return the mono frames of one beep, 20 ms each."""
    size = frame_bytes(sample_rate)
    count = BEEP_FRAMES * size // SAMPLE_BYTES
    ramp_samples = sample_rate * _RAMP_S
    samples = []
    for n in range(count):
        ramp = min(1.0, n / ramp_samples, (count - n) / ramp_samples)
        samples.append(
            round(AMPLITUDE * ramp * math.sin(math.tau * FREQUENCY_HZ * n / sample_rate))
        )
    slin = struct.pack(f"<{count}h", *samples)
    return [slin[start : start + size] for start in range(0, len(slin), size)]


class Beeper:
    """Says when there is a beep; owned by a speaker.

    Args:
        beeps: Which beeps the party hears, and how often.
        beep: Called when one begins.
    """

    def __init__(self, beeps: Beeps, beep: Callable[[], None]) -> None:
        self._start_is_due = beeps.at_start
        self._interval_s = beeps.interval_s
        self._beep = beep
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Beep at the start, only once; repeat beeps at the interval from now, without drift."""
        if self._start_is_due:
            self._start_is_due = False
            self._beep()
        if self._interval_s:
            self._arm(asyncio.get_running_loop().time() + self._interval_s)

    def _arm(self, at: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(at, self._repeat, at)

    def _repeat(self, at: float) -> None:
        self._beep()
        self._arm(at + self._interval_s)

    def stop(self) -> None:
        """Beep no more, until the next `begin`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
