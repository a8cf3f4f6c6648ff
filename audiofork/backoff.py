"""Computes the waits between attempts: each is twice as long as the one before."""

from __future__ import annotations

# 408 Request Timeout, 425 Too Early, 429 Too Many Requests.
_PASSING_STATUSES = frozenset({408, 425, 429})


def is_passing(status: int) -> bool:
    """Return whether another attempt may succeed after an answer with this HTTP status."""
    return status in _PASSING_STATUSES or 500 <= status <= 599


class Backoff:
    """Computes the waits between repeated attempts.

    If many clients retry at the same time, as the sinks of forks do, each of these waits is only
    the limit of a random wait (`relay/retry.py`).

    Args:
        first_s: The first wait, in seconds.
        longest_s: The longest, in seconds; it limits the first one, too.
        at_once: Whether one attempt without a wait comes before the first wait.
    """

    def __init__(self, first_s: float, longest_s: float, *, at_once: bool = False) -> None:
        self._first_s = min(first_s, longest_s)
        self._longest_s = longest_s
        self._at_once = at_once
        self.reset()

    def reset(self) -> None:
        """Begin with the first wait again, after an attempt that had lasting success."""
        self._next_s = 0.0 if self._at_once else self._first_s

    def next_s(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        wait_s = self._next_s
        self._next_s = min(max(2 * wait_s, self._first_s), self._longest_s)
        return wait_s
