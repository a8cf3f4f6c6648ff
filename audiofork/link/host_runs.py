"""Which run of a relay host counts where several have its name, and how often sessions are opened.

A beat may come from a second host with the same name, or from whoever has stolen the host's key.
"""

from __future__ import annotations

import logging
from collections import deque

from audiofork.cluster.beats import Beat

log = logging.getLogger(__name__)

# So many sessions may be opened at once; of more, so many in this time.
MOST_OPENINGS = 5
OPENINGS_IN_S = 10.0
# A run that follows another one sooner is no restart.
SETTLE_S = 1.0


class Runs:
    """The runs of relay hosts with one name: the first counts for as long as it lives.

    Args:
        first: Its first beat.
        now: The loop time.
    """

    def __init__(self, first: Beat, now: float) -> None:
        self._counts = first
        self._before = ""  # the run in whose place it came
        self._since = now
        self._rival: Beat | None = None
        self._is_told = False

    def count(self, beat: Beat, now: float, *, is_alive: bool) -> bool:
        """Return whether a beat is one of the run that counts, from now on or still.

        Args:
            beat: The beat.
            now: The loop time.
            is_alive: Whether the run that counts was heard of a moment ago.
        """
        if beat.run_id == self._counts.run_id:
            self._tell_rival()
            return True
        if is_alive and not self._is_restart(beat, now):
            self._rival = None if beat.is_last else beat
            return False
        self._counts, self._before = beat, self._counts.run_id
        self._since, self._rival, self._is_told = now, None, False
        return True

    def _is_restart(self, beat: Beat, now: float) -> bool:
        """Return whether the run that counts must be over: two cannot listen at one address."""
        is_its_place = beat.listen == self._counts.listen and beat.run_id != self._before
        return is_its_place and now - self._since >= SETTLE_S

    def _tell_rival(self) -> None:
        """Say once that both live: the first has told something since the second did."""
        if self._rival is not None and not self._is_told:
            self._is_told = True
            log.error(
                "two relay hosts have the name %s: that at %s has its forks, that at %s gets none; "
                "give one another [cluster] name",
                *(self._counts.name, self._counts.listen, self._rival.listen),
            )


class Openings:
    """The attempts to open a session with a relay host.

    Attributes:
        unanswered: How many beats of it came since something was asked that it has not answered.
        in_vain: How many sessions were opened since it has answered last.
    """

    def __init__(self) -> None:
        self.unanswered = 0
        self.in_vain = 0
        self._at: deque[float] = deque(maxlen=MOST_OPENINGS)

    def is_allowed(self, now: float) -> bool:
        """Return whether another may be opened now; `now` is the loop time."""
        return len(self._at) < MOST_OPENINGS or now - self._at[0] >= OPENINGS_IN_S

    def begin(self, now: float) -> None:
        """Count one."""
        self._at.append(now)
        self.unanswered = 0
        self.in_vain += 1

    def on_answer(self) -> None:
        """Note that the host has answered."""
        self.unanswered = self.in_vain = 0
