"""Frames that wait because their server is not there yet, or not fast enough."""

from __future__ import annotations

from collections import deque

from audiofork.audiosocket import PTIME_MS


class Backlog:
    """A queue of frames, bounded in time; the oldest make room and are counted.

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
        """Keep frames that are older than all that wait, as far as there is room."""
        self._frames.extendleft(reversed(frames))
        while len(self._frames) > self._limit:
            self._frames.popleft()
            self.dropped += 1

    def take(self) -> bytes:
        """Remove and return the oldest frame.

        Raises:
            IndexError: There is none.
        """
        return self._frames.popleft()

    def drop_all(self) -> None:
        """Give up what waits: nobody will take it any more."""
        self.dropped += len(self._frames)
        self._frames.clear()
