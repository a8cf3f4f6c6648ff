"""Pairs the frames of two legs, one of in and one of out, by their 20-ms clocks.

Asterisk sends a frame of each leg every 20 ms, and silence if there is no audio. So frames that
come within the same 20 ms belong together. If a clock misses a tick, its leg stays one frame
behind; a frame of silence in place of the missing one corrects that. No frame is ever dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from audiofork.link.messages import LegPart

# If some frames wait all the time during this many pairs (1 s), the other leg has missed as many
# ticks. Jitter lasts less long.
WINDOW_PAIRS = 50
# The same for batched reads. What waits is counted after each batch, not after each pair.
WINDOW_BATCHES = 10
# How long a frame waits for the other leg (0.5 s): longer than the network may delay a frame. If
# the other leg is not connected, the frame does not wait. Where reads are batched, a batch longer.
PATIENCE_FRAMES = 25
# How long a frame waits for a leg that is connected but has sent no frame yet: two clocks are at
# most one tick apart. The moment of the connect says nothing about the leg's clock.
FIRST_PATIENCE_FRAMES = 1

_OTHER = {LegPart.IN: LegPart.OUT, LegPart.OUT: LegPart.IN}


class Pairing:
    """Pairs the frames of two legs.

    Owned by a pipeline, which calls `attach` and `detach` as legs come and go, `put` for each
    frame, or `put_batch`, and `flush` at the end.

    Args:
        emit: Called with a frame of in and a frame of out that belong together.
        silence: Replaces a frame that is missing.

    Attributes:
        emit: As the argument.
        emit_batch: Called with the frames of in and those of out of several pairs, if they came at
            once; None: `emit` gets each pair.
        ahead: The part of the frames that wait.
    """

    emit_batch: Callable[[list[bytes], list[bytes]], None] | None = None

    def __init__(self, emit: Callable[[bytes, bytes], None], silence: bytes) -> None:
        self.emit = emit
        self._silence = silence
        self._is_batched = False
        self._usual_patience, self._window_pairs = PATIENCE_FRAMES, WINDOW_PAIRS
        # For each part, how many frames of the other part may wait for it.
        self._patience = dict.fromkeys(_OTHER, 0)
        # Frames of one part only: when a frame of the other part comes, both are emitted.
        self._waiting: deque[bytes] = deque()
        self.ahead = LegPart.IN
        self._begin_window()

    def _begin_window(self) -> None:
        self._pairs = 0
        self._least_waiting = self._usual_patience + 1  # the minimum over all pairs of the window

    def attach(self, part: LegPart) -> None:
        """Wait for the frames of a leg from now on."""
        self._patience[part] = FIRST_PATIENCE_FRAMES

    @property
    def are_both_there(self) -> bool:
        """Whether both legs have brought frames since they were attached."""
        return min(self._patience.values()) > FIRST_PATIENCE_FRAMES

    @property
    def waiting(self) -> int:
        """How many frames wait, all of the part that is `ahead`."""
        return len(self._waiting)

    def expect_batches(self, frames: int) -> None:
        """Let this many frames of a part come at once, before those of the other.

        Args:
            frames: 1: each comes as its leg has it. Otherwise `watch` is to be called whenever
                all that both legs have was put.
        """
        self._is_batched = frames > 1
        self._usual_patience = PATIENCE_FRAMES + frames - 1
        self._window_pairs = max(WINDOW_PAIRS, WINDOW_BATCHES * frames)
        for part, patience in self._patience.items():
            if patience > FIRST_PATIENCE_FRAMES:
                self._patience[part] = self._usual_patience
        self._begin_window()

    def detach(self, part: LegPart) -> None:
        """Stop waiting for the frames of a leg: it is gone."""
        self._patience[part] = 0
        if self.ahead is not part:
            self.flush()

    def wait_for(self, part: LegPart) -> None:
        """Note that a leg brings frames, though they do not come here yet."""
        self._patience[part] = self._usual_patience

    def flush(self) -> None:
        """Emit the frames that wait, each with silence for the missing frame."""
        while self._waiting:
            self._fill()

    def put(self, part: LegPart, frame: bytes) -> None:
        """Add a frame of a part whose leg is connected; emit the pair that it completes, if any."""
        self._patience[part] = self._usual_patience
        if self._waiting and self.ahead is not part:
            self._pair(self._waiting.popleft(), frame)
            self._pairs += 1
            if not self._is_batched:
                self.watch()
            return
        self.ahead = part
        self._waiting.append(frame)
        if len(self._waiting) > self._patience[_OTHER[part]]:
            self._fill()

    def put_batch(self, part: LegPart, frames: list[bytes]) -> None:
        """Add frames of a part that came at once; emit the pairs that they complete, if any."""
        self._patience[part] = self._usual_patience
        waiting = self._waiting
        if waiting and self.ahead is not part:
            count = min(len(waiting), len(frames))
            others = [waiting.popleft() for _ in range(count)]
            ours, frames = frames[:count], frames[count:]
            self._pair_all(*((ours, others) if part is LegPart.IN else (others, ours)))
            if not self._is_batched:
                self.watch()
        if frames:
            self.ahead = part
            waiting.extend(frames)
            while len(waiting) > self._patience[_OTHER[part]]:
                self._fill()

    def _pair_all(self, sides_in: list[bytes], sides_out: list[bytes]) -> None:
        self._pairs += len(sides_in)
        if self.emit_batch is not None:
            self.emit_batch(sides_in, sides_out)
        else:
            for side_in, side_out in zip(sides_in, sides_out, strict=True):
                self.emit(side_in, side_out)

    def _pair(self, frame: bytes, other: bytes) -> None:
        """Emit a frame of the part that is ahead, with one of the other part."""
        if self.ahead is LegPart.IN:
            self.emit(frame, other)
        else:
            self.emit(other, frame)

    def _fill(self) -> None:
        self._pair(self._waiting.popleft(), self._silence)

    def watch(self) -> None:
        """Count the frames that wait; at the end of a window, fill in silence for missed ticks.

        If no frame waits the window ends, too, because no tick was missed then.
        """
        waiting = len(self._waiting)
        if waiting < self._least_waiting:
            self._least_waiting = waiting
        if self._pairs >= self._window_pairs or not waiting:
            for _ in range(self._least_waiting):
                self._fill()
            self._begin_window()
