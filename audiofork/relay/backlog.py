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
        # Only while frames wait: a deque takes three quarters of a kB from the start.
        self._frames: deque[bytes] | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames) if self._frames is not None else 0

    def put(self, frame: bytes) -> None:
        """Keep a frame; if that is one too many, drop the oldest."""
        if self._frames is None:
            self._frames = deque()
        self._frames.append(frame)
        self._drop_excess()

    def put_back(self, frames: list[bytes]) -> None:
        """Put frames at the front: they are older than all others. Drop what does not fit."""
        self._frames = deque((*frames, *(self._frames or ())))
        self._drop_excess()

    def _drop_excess(self) -> None:
        while len(self) > self._limit:
            self.take()
            self.dropped += 1

    def take(self) -> bytes:
        """Remove and return the oldest frame.

        Raises:
            IndexError: The backlog is empty.
        """
        if self._frames is None:
            raise IndexError("no frame waits")
        frame = self._frames.popleft()
        if not self._frames:
            self._frames = None
        return frame

    def drop_all(self) -> None:
        """Drop all frames: no server will get them any more."""
        self.dropped += len(self)
        self._frames = None
