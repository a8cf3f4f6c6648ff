"""When to leave a NATS server that answers, and where nobody else is heard any more."""

from __future__ import annotations

from collections.abc import Callable

from audiofork.backoff import Backoff

# Longer than NATS takes to elect the leader of a stream, 4 to 9 s, in which no controller leads: a
# server that is tried then in vain would make a relay host look dead when one leads again.
FIRST_WAIT_S = 10.0
LONGEST_WAIT_S = 60.0


class Wandering:
    """Tells when a connection is to move to the next server, while nobody is heard.

    A server that is cut off from the others of its cluster goes on to answer its own clients.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        self._next_at: float | None = None

    def is_due(self, *, is_heard: bool) -> bool:
        """Return whether to move now; asked again and again.

        Args:
            is_heard: Whether somebody is heard.
        """
        now = self._clock()
        if is_heard:
            self._waits.reset()
            self._next_at = None
            return False
        is_due = self._next_at is not None and now >= self._next_at
        if is_due or self._next_at is None:
            self._next_at = now + self._waits.next_s()
        return is_due
