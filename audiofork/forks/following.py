"""How a start goes on, for those who wait until audio flows."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.view import ForkView, view_of
from audiofork.link.messages import EndReason, ForkStats
from audiofork.text import harmless

BEAT_S = 1.0


class StartResult(enum.StrEnum):
    """What has become of a start."""

    WAITING = "waiting"
    """Audio does not flow yet."""
    STREAMING = "streaming"
    """The first frame has gone to the server."""
    ENDED = "ended"
    """The fork has ended before that."""


@dataclass(frozen=True, slots=True)
class StartNews:
    """How a start goes on.

    Attributes:
        result: What has become of it so far.
        fork: The fork as lists show it, without statistics.
        ms: Milliseconds from the request to the first frame; None while there was none.
        reason: Why it has ended; empty if it has not.
        detail: More about the reason, for people.
    """

    result: StartResult
    fork: ForkView
    ms: int | None = None
    reason: str = ""
    detail: str = ""


async def follow(fork: Fork) -> AsyncGenerator[StartNews, None]:
    """Yield how a start goes on, until audio flows or the fork has ended.

    The first comes at once, then one at each change, and at least one each BEAT_S: so somebody who
    has gone is noticed.
    """
    while True:
        following = fork.chronicle.news  # of what changes from here on
        news = _news_of(fork)
        yield news
        if news.result is not StartResult.WAITING:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await following.wait()


def _news_of(fork: Fork) -> StartNews:
    view, ms = view_of(fork, ForkStats()), fork.chronicle.ms_until(fork.chronicle.streaming_at)
    if ms is not None:
        return StartNews(StartResult.STREAMING, view, ms)
    if fork.state is not ForkState.ENDED:
        return StartNews(StartResult.WAITING, view)
    end = fork.chronicle.end
    if end is None:  # kept for the next run of the daemon
        return StartNews(StartResult.ENDED, view, reason=EndReason.SHUTDOWN)
    return StartNews(StartResult.ENDED, view, reason=end.reason, detail=harmless(end.detail))
