"""Tones that tell the target's party of the fork (options B, p and P)."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable

from audiofork.relay.audiosocket import PTIME_S

# The tone that is usual for recorded calls: 1400 Hz, a fifth of a second.
FREQUENCY_HZ = 1400
BEEP_FRAMES = 10
AMPLITUDE = 8192  # -12 dBFS
_SAMPLE_RATE = 8000
_FRAME_SAMPLES = 160
_RAMP_SAMPLES = 40  # 5 ms, or the tone would click
# After its last frame Asterisk still holds some of a tone.
TAIL_S = 0.1


def tone() -> list[bytes]:
    """Return the frames of one beep, 320 bytes each."""
    count = BEEP_FRAMES * _FRAME_SAMPLES
    samples = []
    for n in range(count):
        ramp = min(1.0, n / _RAMP_SAMPLES, (count - n) / _RAMP_SAMPLES)
        samples.append(
            round(AMPLITUDE * ramp * math.sin(math.tau * FREQUENCY_HZ * n / _SAMPLE_RATE))
        )
    slin = struct.pack(f"<{count}h", *samples)
    return [slin[start : start + 320] for start in range(0, len(slin), 320)]


_TONE = tone()


class Beeper:
    """Sends tones over a leg, a frame each 20 ms; owned by a session."""

    def __init__(self, speak: Callable[[bytes], None]) -> None:
        self._speak = speak
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def repeat(self, interval_s: float) -> None:
        """Beep each so many seconds, counted from now without drift."""
        self._arm_repeat(self._loop.time() + interval_s, interval_s)

    def _arm_repeat(self, at: float, interval_s: float) -> None:
        def beep_and_go_on() -> None:
            self.beep()
            self._arm_repeat(at + interval_s, interval_s)

        self._timers["repeat"] = self._loop.call_at(at, beep_and_go_on)

    def beep(self, then: Callable[[], None] | None = None) -> None:
        """Beep now, and call `then` when it has been heard."""
        self._frame(0, self._loop.time(), then)

    def _frame(self, number: int, began: float, then: Callable[[], None] | None) -> None:
        if number < len(_TONE):
            self._speak(_TONE[number])
            at = began + (number + 1) * PTIME_S
            self._timers["frame"] = self._loop.call_at(at, self._frame, number + 1, began, then)
        elif then is not None:
            self._timers["frame"] = self._loop.call_later(TAIL_S, then)

    def stop(self) -> None:
        """Fall silent at once."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
