"""Holds the server's audio until it is played: pieces of any length in, frames of 20 ms out.

It does no I/O and waits for nothing: the owner says when audio comes and when a frame is due.
"""

from __future__ import annotations

import audioop
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from audiofork.audiosocket import PTIME_MS, PTIME_S, SAMPLE_BYTES, frame_bytes
from audiofork.relay.formats.base import BufferLevel, Cleared, Event, Mark
from audiofork.relay.resampler import LAG_S, Resampler

# How long the first audio of a spurt waits, so that the next may be late by as much. A server that
# sends frame by frame has a clock of 20 ms; one that sends longer pieces has a coarser one. Until
# the leg's turn there are 0 to 2 ms besides: with a frame's wait 20 ms in the mean.
PREBUFFER_S = 0.04
FRAME_PREBUFFER_S = 0.019
# A frame of a server of the first kind that is late by no more is played when it comes: a shorter
# gap than silence and another wait. And no longer one, so that 40 ms never pass without a packet.
PATIENCE_S = 0.016
# A spurt that begins so soon after the last one was part of it, and came too late.
UNDERRUN_S = 0.2
# What all frames of a second, or two, have waited without need is spared when the server begins to
# speak after a pause. Less is not worth it; where frames wait longer, that may be meant. A few that
# were late may wait less than the others, by so much: they were not late often.
WINDOW = 50  # frames
FEW = 4
FEW_LESS_S = 0.016
PAUSE = 25
LEAST_GAIN_S = 0.001
MOST_WAIT_S = 0.2
_SILENT = 8  # the smallest value that A-law has for silence
# A half sample waits no longer than this for its other half.
HALF_SAMPLE_S = 1.0
# Shares of the buffer at which the server is told to wait, and to go on.
HIGH, LOW = 0.8, 0.5
MOST_MARKS = 1000

_TOLERANCE_S = 1e-6  # times are sums of floats
_NO_WAITS = [math.inf] * (FEW + 1)


@dataclass(slots=True)
class PlayoutCounts:
    """Counts of frames; in = played + cleared + unplayed + waiting, at any moment.

    Attributes:
        played: Frames that were taken to be played, and silence that was passed over.
        cleared: Those that were dropped by `Playout.clear`.
        unplayed: Those that did not fit, could not be written or were left at the end.
        underruns: How often audio came so late that there was a gap within a spurt.
        unplayed_before: `unplayed` when the latest spurt began.
    """

    played: int = 0
    cleared: int = 0
    unplayed: int = 0
    underruns: int = 0
    unplayed_before: int = 0


class Playout:
    """The audio of one server that waits to be played.

    A spurt is audio without a gap: it begins with the first audio after silence, waits a moment,
    and ends when nothing waits any more; its last frame is padded with silence.

    A server that sends in real time, silence too, never ends a spurt. What once made a frame late
    would make all that follow late. So the first sound after a pause begins a new spurt, sooner by
    as much as nearly all frames have waited without need in the time before. What makes a frame of
    such a server late by less than 20 ms makes those that follow late by that, and not by the wait
    of a new spurt besides.

    Args:
        buffer_s: Seconds of audio that may wait; what is more is dropped.
        sample_rate: In Hz, of the frames.
        tell: Called with each event for the server.
        clock: Returns the time in seconds.

    Attributes:
        counts: What became of the audio.
        begins_at: When the spurt begins or began, or is given up while it is late; None: there is
            silence.
        marks: Those that have not been told, and what else is to be done; each with the number of
            frames that it waits for.
    """

    def __init__(
        self,
        buffer_s: float,
        sample_rate: int,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.counts = PlayoutCounts()
        self.begins_at: float | None = None
        self._tell = tell
        self._times = _Times(clock)
        self._most = max(1, round(buffer_s / PTIME_S))
        self._sample_rate = sample_rate
        self._frame_bytes = frame_bytes(sample_rate)
        self._input = _Input()
        self._resampler: Resampler | None = None
        self._frames: deque[bytes] = deque()
        self._rest = b""  # less than a frame
        self._taken = 0  # frames that have left the queue
        self.marks: deque[tuple[int, Mark | Callable[[], None]]] = deque()
        self._is_high = False

    @property
    def is_late(self) -> bool:
        """Whether the spurt's next frame was due, and may still come."""
        return self._times.is_late

    @property
    def waiting(self) -> int:
        """How many frames wait; a part of one counts as one."""
        return len(self._frames) + -(-self._partial_bytes // self._frame_bytes)

    @property
    def next_frame(self) -> bytes | None:
        """The frame that `take` will return next; empty: it has not come yet; None: silence."""
        if self.begins_at is None:
            return None
        return self._frames[0] if self._frames else b""

    @property
    def _partial_bytes(self) -> int:
        """Bytes that are no frame yet."""
        held = self._resampler.held_bytes if self._resampler is not None else 0
        return len(self._rest) + held

    # --- What the server sends ---

    def put(self, samples: bytes, sample_rate: int) -> None:
        """Add audio; what does not fit is dropped and counted.

        Args:
            samples: slin; any number of bytes, also an odd one.
            sample_rate: In Hz.
        """
        is_frame = len(samples) == self._frame_bytes and sample_rate == self._sample_rate
        if is_frame and not (self._rest or self._input.half or self._resampler):
            whole = samples
        else:
            whole = self._input.whole_samples(samples, sample_rate, self._times.now())
            is_frame = False
        if not whole:
            return
        if self.begins_at is None:
            self.counts.underruns += self._times.have_ended_just_now
            self._begin(len(whole) / SAMPLE_BYTES / sample_rate, sample_rate)
        elif is_frame and not self._times.is_late:
            self._spare_delay(whole)
        if is_frame and len(self._frames) < self._most:
            self._frames.append(whole)  # the shortest way, for a server that sends frame by frame
        else:
            self._cut(self._at_own_rate(whole, sample_rate))
        if self._times.is_late and self._frames:
            self._go_on()
        if not self._is_high and len(self._frames) >= HIGH * self._most:
            self._set_high(True)

    def _begin(self, piece_s: float, sample_rate: int) -> None:
        """Begin a spurt, whose first piece is so long."""
        self._times.by_frame = by_frame = piece_s <= PTIME_S
        wait_s = FRAME_PREBUFFER_S if by_frame else PREBUFFER_S
        if sample_rate != self._sample_rate:
            wait_s += LAG_S
        self._begin_at(self._times.now() + wait_s)

    def _begin_at(self, begins_at: float) -> None:
        self.begins_at = begins_at
        self.counts.unplayed_before = self.counts.unplayed
        self._times.begin(begins_at)

    def _go_on(self) -> None:
        """Let the frame that is late be due now, and the next 20 ms after it."""
        self._times.is_late = False
        self.begins_at = self._times.now()
        self.counts.underruns += 1

    def _spare_delay(self, frame: bytes) -> None:
        """Begin a new spurt with a frame that ends a pause, if frames have waited without need."""
        sooner_at = self._times.come(len(self._frames))
        if sooner_at is None or _is_silent(frame) or not all(map(_is_silent, self._frames)):
            return
        self._pass_over()
        self._begin_at(sooner_at)

    def _pass_over(self) -> None:
        """Drop what waits: silence, which is played without it."""
        count = len(self._frames)
        self._frames.clear()
        self._taken += count
        self.counts.played += count
        self.tell_marks()
        if self._is_high:
            self._set_high(False)

    def _at_own_rate(self, samples: bytes, sample_rate: int) -> bytes:
        resampler = self._resampler
        if sample_rate == self._sample_rate and resampler is None:
            return samples
        if resampler is None or resampler.rate_in != sample_rate:
            self._end_resampling()
            if sample_rate == self._sample_rate:
                return samples
            self._resampler = resampler = Resampler(sample_rate, self._sample_rate)
        return resampler.feed(samples)

    def _end_resampling(self) -> None:
        """Let the rest of the stream that is being resampled follow what waits."""
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            self._cut(resampler.end())

    def _cut(self, samples: bytes) -> None:
        """Cut samples into frames, as many as fit; the others are dropped."""
        data = self._rest + samples if self._rest else samples
        size = self._frame_bytes
        count = len(data) // size
        kept = min(count, max(0, self._most - len(self._frames)))
        self._frames.extend([data[start : start + size] for start in range(0, kept * size, size)])
        self.counts.unplayed += count - kept
        self._rest = data[count * size :]

    def _set_high(self, is_high: bool) -> None:
        self._is_high = is_high
        self._tell(BufferLevel(is_high))

    def mark(self, name: str) -> bool:
        """Set a mark, which is told when all before it was played: at once if nothing waits.

        Returns:
            Whether there was room for it: MOST_MARKS may wait.
        """
        return self._when_played(Mark(name))

    def then(self, do: Callable[[], None]) -> bool:
        """Do something when all before it was played, as `mark` tells it; a `clear` forgets it.

        Returns:
            Whether there was room for it, among the marks.
        """
        return self._when_played(do)

    def _when_played(self, due: Mark | Callable[[], None]) -> bool:
        if len(self.marks) >= MOST_MARKS:
            return False
        self.marks.append((self._taken + self.waiting, due))
        self.tell_marks()
        return True

    def clear(self) -> None:
        """Drop all that waits; tell all marks, and then that it was done."""
        speaks = self.begins_at is not None
        did_not_fit = self.counts.unplayed - self.counts.unplayed_before if speaks else 0
        dropped = self._drop()
        self.counts.cleared += dropped
        self.marks = deque(one for one in self.marks if isinstance(one[1], Mark))
        self.tell_marks()
        self._tell(Cleared((dropped + did_not_fit) * PTIME_MS))

    def drop_rest(self) -> None:
        """Drop all that waits, and tell nothing of it: nothing will be played any more."""
        self.marks.clear()
        self._is_high = False
        self.counts.unplayed += self._drop()

    def _drop(self) -> int:
        """Drop all that waits; return how many frames that were."""
        count = self.waiting
        self._taken += count
        self._frames.clear()
        self._rest = b""
        self._resampler = None
        self._input.forget()
        self._be_silent()
        self._times.ended_at = -math.inf
        if self._is_high:
            self._set_high(False)
        return count

    def _be_silent(self) -> None:
        self.begins_at = None
        self._times.is_late = False

    def forget_half_sample(self) -> None:
        """Expect no more of what the server has begun: its connection is lost."""
        self._input.forget()

    # --- What is played ---

    def take(self, now: float) -> bytes | None:
        """Return the frame that is due now; None: silence, or nothing yet while `is_late`.

        The owner calls this every 20 ms, sooner if a frame that `is_late` comes sooner, and
        `tell_marks` when the frame was written.

        Args:
            now: The time in seconds.
        """
        if self.begins_at is None or now + _TOLERANCE_S < self.begins_at:
            return None
        if not self._frames:
            if self._wait_on(now):
                return None
            if not self._end_spurt(now):
                self.tell_marks()  # those behind what was too short to be resampled
                return None
        frame = self._frames.popleft()
        self._taken += 1
        self.counts.played += 1
        self._times.take(now, frame)
        if self._is_high and len(self._frames) < LOW * self._most:
            self._set_high(False)
        return frame

    def _wait_on(self, now: float) -> bool:
        """Return whether to wait for the frame that is due: what is left of one is played now."""
        times = self._times
        if not times.by_frame or times.is_late or self._partial_bytes:
            return False
        times.is_late = True
        self.begins_at = now + PATIENCE_S
        return True

    def _end_spurt(self, now: float) -> bool:
        """End the spurt, with the rest as its last frames; return whether there is one."""
        self._end_resampling()
        if self._rest:
            self._cut(bytes(self._frame_bytes - len(self._rest)))
        if len(self._frames) < 2:
            self._be_silent()
            self._times.ended_at = now
        return bool(self._frames)

    def tell_marks(self) -> None:
        """Tell the marks that nothing waits before."""
        marks = self.marks
        while marks and (marks[0][0] <= self._taken or not self.waiting):
            _, due = marks.popleft()
            if isinstance(due, Mark):
                self._tell(due)
            else:
                due()

    def take_back(self) -> None:
        """Count the frame taken last as unplayed: it could not be written."""
        self.counts.played -= 1
        self.counts.unplayed += 1

    def set_rate(self, sample_rate: int) -> None:
        """Give frames of another sample rate from now on; what waits is resampled."""
        if sample_rate == self._sample_rate:
            return
        self._end_resampling()
        waiting = b"".join((*self._frames, self._rest))
        self._frames.clear()
        self._rest = b""
        before, self._sample_rate = self._sample_rate, sample_rate
        self._frame_bytes = frame_bytes(sample_rate)
        if waiting:
            resampler = Resampler(before, sample_rate)
            self._cut(resampler.feed(waiting) + resampler.end())
        self.tell_marks()


def _is_silent(frame: bytes) -> bool:
    return audioop.max(frame, SAMPLE_BYTES) <= _SILENT


class _Times:
    """When the frames of a spurt come and are due, and for how long they wait without need.

    Attributes:
        now: Returns the time in seconds.
        ended_at: When the last spurt ended; -inf: it was dropped.
        by_frame: Whether the spurt began with no more than one frame.
        is_late: Whether its next frame was due, and may still come.
    """

    __slots__ = (
        "_in_window",
        "_least_before_s",
        "_shortest_s",
        "_silent",
        "_taken_at",
        "by_frame",
        "ended_at",
        "is_late",
        "now",
    )

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.by_frame = self.is_late = False
        self.ended_at = -math.inf
        self.begin(0.0)

    @property
    def have_ended_just_now(self) -> bool:
        """Whether a spurt that begins now was part of the last one, and comes too late."""
        return self.now() - self.ended_at < UNDERRUN_S

    def begin(self, begins_at: float) -> None:
        """Note when a spurt begins."""
        self._taken_at = begins_at - PTIME_S  # when the last frame was due
        # The shortest waits of frames in this window, the shorter ones first; how many frames it
        # has; and the least that frames waited in the window before.
        self._shortest_s = _NO_WAITS.copy()
        self._in_window, self._least_before_s = 0, 0.0
        self._silent = 0  # frames played in a row

    def come(self, waiting: int) -> float | None:
        """Note that a frame comes behind so many that wait.

        Returns:
            When it could be due, after a pause, if that is sooner; else None.
        """
        due = self._taken_at + (waiting + 1) * PTIME_S
        wait_s = due - self.now()
        shortest_s = self._shortest_s
        if wait_s < shortest_s[-1]:
            shortest_s[-1] = wait_s
            shortest_s.sort()
        if self._silent < PAUSE or wait_s > MOST_WAIT_S:
            return None
        gain_s = min(self._least_s, self._least_before_s) - FRAME_PREBUFFER_S
        return due - gain_s if gain_s > LEAST_GAIN_S else None

    @property
    def _least_s(self) -> float:
        """The least that frames have waited in this window; a few may have waited less."""
        return min(self._shortest_s[-1], self._shortest_s[0] + FEW_LESS_S)

    def take(self, due: float, frame: bytes) -> None:
        """Note that a frame is played."""
        self._taken_at = due
        self._in_window += 1
        if self._in_window == WINDOW:
            self._least_before_s, self._in_window = self._least_s, 0
            self._shortest_s = _NO_WAITS.copy()
        if self._least_before_s > FRAME_PREBUFFER_S:
            self._silent = self._silent + 1 if _is_silent(frame) else 0


@dataclass(slots=True)
class _Input:
    """Makes whole samples of pieces that may be cut within one."""

    half: bytes = b""
    sample_rate: int = 0
    at: float = 0.0

    def whole_samples(self, piece: bytes, sample_rate: int, now: float) -> bytes:
        """Return the whole samples so far; half a one is kept for the next call."""
        is_new = sample_rate != self.sample_rate or now - self.at > HALF_SAMPLE_S
        data = self.half + piece if self.half and not is_new else piece
        self.sample_rate, self.at = sample_rate, now
        whole = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
        self.half = data[whole:]
        return data[:whole] if self.half else data

    def forget(self) -> None:
        self.half = b""
