"""Tones that tell the target's party about the fork (options B, p and P)."""

from __future__ import annotations

import asyncio
import functools
import math
import struct
from collections.abc import Callable, Iterator

from audiofork.audiosocket import PTIME_S, SAMPLE_BYTES, frame_bytes
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
    """Sends tones over a leg, one frame every 20 ms; owned by a session.

    Args:
        beeps: Which beeps the party hears, and how often.
        speak: Called with each frame.
        sample_rate: Called when a beep begins; returns the sample rate of its frames in Hz.
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
        """Play the start beep, only once; repeat beeps at the interval from now, without drift."""
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
        """Beep now; call `then` when the party has heard the beep."""
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
        """Stop all beeps at once, until the next `begin` or `beep`."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
