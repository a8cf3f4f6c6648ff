"""Tones by which the target's party knows of the fork (options B, p and P)."""

from __future__ import annotations

import asyncio
import functools
import math
import struct
from collections.abc import Callable, Iterator

from audiofork.audiosocket import PTIME_S, SAMPLE_BYTES, frame_bytes
from audiofork.link.messages import Beeps

# The tone that is usual for recorded calls: 1400 Hz, a fifth of a second.
FREQUENCY_HZ = 1400
BEEP_FRAMES = 10
AMPLITUDE = 8192  # -12 dBFS
_RAMP_S = 0.005  # or the tone would click
# After its last frame Asterisk still holds some of a tone.
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
    """Sends tones over a leg, a frame each 20 ms; owned by a session.

    Args:
        beeps: What the party is to hear.
        speak: Takes each frame.
        sample_rate: Returns, when a beep begins, the sample rate in Hz of its frames.
    """

    def __init__(
        self, beeps: Beeps, speak: Callable[[bytes], None], sample_rate: Callable[[], int]
    ) -> None:
        self._start_is_due = beeps.at_start
        self._interval_s = beeps.interval_s
        self._speak = speak
        self._sample_rate = sample_rate
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self) -> None:
        """Beep for the start, unless that was done, and at the interval, from now without drift."""
        if self._start_is_due:
            self._start_is_due = False
            self.beep()
        if self._interval_s:
            self._arm_repeat(self._loop.time() + self._interval_s)

    def _arm_repeat(self, at: float) -> None:
        def beep_and_go_on() -> None:
            self.beep()
            self._arm_repeat(at + self._interval_s)

        self._timers["repeat"] = self._loop.call_at(at, beep_and_go_on)

    def beep(self, then: Callable[[], None] | None = None) -> None:
        """Beep now, and call `then` when it has been heard."""
        self._frame(iter(tone(self._sample_rate())), self._loop.time(), then)

    def _frame(self, rest: Iterator[bytes], due: float, then: Callable[[], None] | None) -> None:
        frame = next(rest, None)
        if frame is not None:
            self._speak(frame)
            due += PTIME_S
            self._timers["frame"] = self._loop.call_at(due, self._frame, rest, due, then)
        elif then is not None:
            self._timers["frame"] = self._loop.call_later(TAIL_S, then)

    def stop(self) -> None:
        """Fall silent at once, until `begin` or `beep`."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
