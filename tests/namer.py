"""An engine for the live-transcription example that needs no speech.

A module of its own: each recogniser is a process that imports it, and need not import the tests.
"""

from __future__ import annotations

import os
import time

# Samples by which the engine knows what to do.
SLOW, DEADLY, WORDY = 30001, 30002, 30003


class Namer:
    """Understands the word `1000` where the samples are 1000; each frame of 20 ms is a text."""

    def __init__(self) -> None:
        self._frames = 0

    def feed(self, pcm: bytes) -> list[str]:
        texts = []
        for start in range(0, len(pcm), 320):
            sample = int.from_bytes(pcm[start : start + 2], "little", signed=True)
            self._frames += 1
            if sample == SLOW:
                time.sleep(0.05)
            elif sample == DEADLY:
                os._exit(3)
            elif sample == WORDY:
                texts.append("one\ntwo \r\n three\x20" + 1000 * "é")
            elif sample:
                texts.append(str(sample))
        return texts

    def partial(self) -> str:
        return f"heard {self._frames}"

    def finish(self) -> list[str]:
        return [f"in all {self._frames}"]
