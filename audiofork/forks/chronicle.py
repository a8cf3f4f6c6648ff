"""Records what has happened to one fork, and when: for the log, lists, and waiting clients."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from audiofork.forks.lifecycle import Away, ForkState
from audiofork.link.messages import ForkEnded


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a part is or was missing.

    Times are in seconds of the monotonic clock.

    Attributes:
        why: The latest error, for people; any text.
        since: When the part went missing.
        at: When the latest error was reported.
        attempt: The number of the next attempt, from 1.
        next_at: When the next attempt is due.
    """

    why: str
    since: float
    at: float
    attempt: int
    next_at: float


@dataclass(slots=True, eq=False)
class Chronicle:
    """The times of a fork in this run of the daemon, its gaps and its errors.

    Owned by the fork. Times are in seconds of the monotonic clock.

    Attributes:
        begun: When the request came, or when a fork of an earlier run was resumed.
        server_at: When the server first accepted the connection; None if it has not.
        legs_at: When the first legs were complete; None if they were not.
        streaming_at: When the first frame went to the server; None if none has.
        gaps: How often the audio was interrupted after that.
        gap_s: The total length of the gaps that are over, in seconds.
        gap_since: When the current gap began; None if there is none.
        held: Whether its legs wait for the end of a hold.
        troubles: The latest error of each part that is or was missing.
        news: Set, and then replaced by a new event, when anything here has changed.
        end: The relay's last report; None while it has not come.
    """

    begun: float = field(default_factory=lambda: time.monotonic())
    server_at: float | None = None
    legs_at: float | None = None
    streaming_at: float | None = None
    gaps: int = 0
    gap_s: float = 0.0
    gap_since: float | None = None
    held: bool = False
    troubles: dict[Away, Trouble] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    end: ForkEnded | None = None

    def tell(self) -> None:
        """Wake those who wait for news."""
        self.news.set()
        self.news = asyncio.Event()

    def on_state(self, state: ForkState) -> None:
        """Record that the fork has entered a state."""
        now = time.monotonic()
        if state is ForkState.STREAMING and self.streaming_at is None:
            self.streaming_at = now
        is_gap = state is ForkState.RECONNECTING
        if is_gap and self.gap_since is None:
            self.gap_since, self.gaps = now, self.gaps + 1
        elif not is_gap and self.gap_since is not None:
            self.gap_s, self.gap_since = self.gap_s + now - self.gap_since, None
        self.tell()

    def on_gap_before(self, seconds: float) -> None:
        """Record that the gap that has just begun is so much older than was known."""
        if self.gap_since is not None:
            self.gap_since -= seconds

    def on_server(self) -> None:
        """Record that the server has accepted the connection."""
        self.server_at = self.server_at or time.monotonic()
        self.tell()

    def on_legs(self) -> None:
        """Record that all legs are there."""
        self.legs_at = self.legs_at or time.monotonic()
        self.tell()

    def on_hold(self, *, held: bool) -> None:
        """Record whether the legs wait for the end of a hold."""
        self.held = held
        self.tell()

    def on_trouble(
        self, what: Away, why: str, attempt: int, wait_s: float, *, is_new: bool
    ) -> None:
        """Record an error.

        Args:
            what: The part that is missing.
            why: The error, for people.
            attempt: The number of the attempt that follows.
            wait_s: Seconds until that attempt.
            is_new: Whether the part was there until now.
        """
        now = time.monotonic()
        before = None if is_new else self.troubles.get(what)
        since = before.since if before is not None else now
        self.troubles[what] = Trouble(why, since, now, attempt, now + wait_s)

    def ms_until(self, at: float | None) -> int | None:
        """Return the milliseconds from the beginning to a time; None if the time is None."""
        return None if at is None else round((at - self.begun) * 1000)
