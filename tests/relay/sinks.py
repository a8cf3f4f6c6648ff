"""Sinks under test: what starts them, what is offered, what is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from audiofork.errors import SinkError
from audiofork.relay.sink import Sink
from tests.relay.peers import numbered

Running = tuple[Sink, asyncio.Task[None]]
Start = Callable[..., Running]
Waits = Callable[..., None]


async def opened(sink: Sink) -> None:
    """Wait until the sink is connected."""
    is_open = asyncio.Event()
    sink.on_open = is_open.set
    async with asyncio.timeout(5):
        await is_open.wait()


async def failure(task: asyncio.Task[None]) -> SinkError:
    """Return what a sink's run raises."""
    with pytest.raises(SinkError) as raised:
        async with asyncio.timeout(5):
            await task
    return raised.value


def offer(sink: Sink, frames: list[bytes], before: int = 0) -> None:
    """Send frames, checking after each that all are accounted for."""
    for count, frame in enumerate(frames, before + 1):
        sink.send(frame)
        assert sink.frames_sent + sink.backlog.dropped + len(sink.backlog) == count


def all_acknowledged(sink: Sink) -> bool:
    """Return whether the server's TCP has got all frames that were offered, and more may go."""
    if sink.backlog or sink._outlet._unacked is None or not sink._outlet._takes:
        return False
    sink._outlet._unacked.update()
    return not sink._outlet._unacked.writes


def offer_until_stalled(sink: Sink, frame_bytes: int = 320) -> int:
    """Send numbered frames until one has to wait; return how many were sent."""
    count = 0
    while not sink.backlog:
        offer(sink, numbered(1, count, frame_bytes), before=count)
        count += 1
        assert count < 100_000
    return count


def retries_of(sink: Sink) -> list[tuple[int, str]]:
    """Return the list to which a sink's retries are going to be added."""
    retried: list[tuple[int, str]] = []
    sink.on_retry = lambda attempt, why, _wait_s: retried.append((attempt, why))
    return retried
