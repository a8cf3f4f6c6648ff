"""The queue of frames whose server is not connected yet, or not fast enough."""

from __future__ import annotations

from collections import deque

from audiofork.audiosocket import PTIME_MS


class Backlog:
    """A queue of at most `limit_s` seconds of frames; it drops and counts the oldest.

    Attributes:
        dropped: Frames that were lost here since the fork began.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit = int(limit_s * 1000) // PTIME_MS
        self._frames: deque[bytes] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: bytes) -> None:
        """Keep a frame; if that is one too many, drop the oldest."""
        self._frames.append(frame)
        if len(self._frames) > self._limit:
            self._frames.popleft()
            self.dropped += 1

    def put_back(self, frames: list[bytes]) -> None:
        """Put frames at the front: they are older than all others. Drop what does not fit."""
        self._frames.extendleft(reversed(frames))
        while len(self._frames) > self._limit:
            self._frames.popleft()
            self.dropped += 1

    def take(self) -> bytes:
        """Remove and return the oldest frame.

        Raises:
            IndexError: The backlog is empty.
        """
        return self._frames.popleft()

    def drop_all(self) -> None:
        """Drop all frames: no server will get them any more."""
        self.dropped += len(self._frames)
        self._frames.clear()
