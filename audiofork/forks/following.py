"""Reports the progress of a start to clients that wait until audio flows."""

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
from audiofork.link.relay import HostOf, this_host
from audiofork.text import harmless

BEAT_S = 1.0


class StartResult(enum.StrEnum):
    """The result of a start so far."""

    WAITING = "waiting"
    """Audio does not flow yet."""
    STREAMING = "streaming"
    """The first frame was sent to the server."""
    ENDED = "ended"
    """The fork ended before that."""


@dataclass(frozen=True, slots=True)
class StartNews:
    """The progress of a start.

    Attributes:
        result: The result so far.
        fork: The fork as lists show it, without statistics.
        ms: Milliseconds from the request to the first frame; None before that.
        reason: Why the fork has ended; empty if it has not.
        detail: More about the reason, for people.
    """

    result: StartResult
    fork: ForkView
    ms: int | None = None
    reason: str = ""
    detail: str = ""


async def follow(fork: Fork, host_of: HostOf = this_host) -> AsyncGenerator[StartNews, None]:
    """Yield the progress of a start, until audio flows or the fork has ended.

    The first item comes at once, then one at each change, and at least one every BEAT_S: so a
    client that has gone is noticed.

    Args:
        fork: The fork.
        host_of: Returns the name of the relay host that a fork is on.
    """
    while True:
        following = fork.chronicle.news  # set by any change from here on
        news = _news_of(fork, host_of(fork.id))
        yield news
        if news.result is not StartResult.WAITING:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S):
                await following.wait()


def _news_of(fork: Fork, relay_host: str) -> StartNews:
    view = view_of(fork, ForkStats(), relay_host)
    ms = fork.chronicle.ms_until(fork.chronicle.streaming_at)
    if ms is not None:
        return StartNews(StartResult.STREAMING, view, ms)
    if fork.state is not ForkState.ENDED:
        return StartNews(StartResult.WAITING, view)
    end = fork.chronicle.end
    if end is None:  # kept for the next run of the daemon
        return StartNews(StartResult.ENDED, view, reason=EndReason.SHUTDOWN)
    return StartNews(StartResult.ENDED, view, reason=end.reason, detail=harmless(end.detail))
