"""Pairs the frames of two legs, one of in and one of out, by their 20-ms clocks.

Asterisk sends a frame of each leg every 20 ms, silence where there is nothing else, so the frames
that come within the same 20 ms belong together. A clock that misses a tick leaves its leg one
frame behind for good; silence in its place brings the two together again. No frame is ever left
out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from audiofork.link.messages import LegPart

# Frames that wait during this many pairs in a row (one second) do so because the other leg has
# missed as many ticks; jitter passes.
WINDOW_PAIRS = 50
# A leg is waited for this long (half a second): more than the network between Asterisk and us may
# hold a frame back. A leg that is not there is not waited for.
PATIENCE_FRAMES = 25
# Until its first frame a leg is waited for no longer than two clocks are apart: when it connects
# tells nothing of its clock.
FIRST_PATIENCE_FRAMES = 1

_OTHER = {LegPart.IN: LegPart.OUT, LegPart.OUT: LegPart.IN}


class Pairing:
    """Pairs the frames of two legs.

    Owned by a pipeline, which calls `attach` and `detach` as legs come and go, `put` for each
    frame, and `flush` at the end.

    Args:
        emit: Takes a frame of in and a frame of out that belong together.
        silence: Stands for a frame that is missing.
    """

    def __init__(self, emit: Callable[[bytes, bytes], None], silence: bytes) -> None:
        self._emit = emit
        self._silence = silence
        # The number of frames that may wait for one of a part.
        self._patience = dict.fromkeys(_OTHER, 0)
        # Frames of one part alone: as soon as there is one of the other, both go.
        self._waiting: deque[bytes] = deque()
        self._ahead = LegPart.IN  # the part of those
        self._begin_window()

    def _begin_window(self) -> None:
        self._pairs = 0
        self._least_waiting = PATIENCE_FRAMES + 1  # after a pair of the window

    def attach(self, part: LegPart) -> None:
        """Wait for the frames of a leg from now on."""
        self._patience[part] = FIRST_PATIENCE_FRAMES

    def detach(self, part: LegPart) -> None:
        """Wait for the frames of a leg no more: it is gone."""
        self._patience[part] = 0
        if self._ahead is not part:
            self.flush()

    def flush(self) -> None:
        """Emit what waits, with silence for what it waited for."""
        while self._waiting:
            self._fill()

    def put(self, part: LegPart, frame: bytes) -> None:
        """Take a frame of one part, whose leg is there; emit what it completes."""
        self._patience[part] = PATIENCE_FRAMES
        if self._waiting and self._ahead is not part:
            self._pair(self._waiting.popleft(), frame)
            self._watch()
            return
        self._ahead = part
        self._waiting.append(frame)
        if len(self._waiting) > self._patience[_OTHER[part]]:
            self._fill()

    def _pair(self, frame: bytes, other: bytes) -> None:
        """Emit a frame of the part that is ahead, with one of the other part."""
        if self._ahead is LegPart.IN:
            self._emit(frame, other)
        else:
            self._emit(other, frame)

    def _fill(self) -> None:
        self._pair(self._waiting.popleft(), self._silence)

    def _watch(self) -> None:
        """Note the frames that wait; at the end of a window, give up waiting for missed ones.

        A window begins when no frame waits.
        """
        waiting = len(self._waiting)
        if waiting < self._least_waiting:
            self._least_waiting = waiting
        self._pairs += 1
        if self._pairs == WINDOW_PAIRS or not waiting:
            for _ in range(self._least_waiting):
                self._fill()
            self._begin_window()
