"""Calls that may block, in threads of their own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from audiofork.threads import Threads


async def test_result_and_exception_come_back_and_the_loop_goes_on_meanwhile() -> None:
    threads: Threads[str] = Threads(2)
    go = threading.Event()

    def slow() -> str:
        assert go.wait(5)
        return threading.current_thread().name

    def broken() -> str:
        raise LookupError("no such thing")

    result, failure = threads.run(slow), threads.run(broken)
    async with asyncio.timeout(5):
        with pytest.raises(LookupError, match="no such thing"):
            await failure
        assert (threads.running, threads.is_full) == (1, False)
        go.set()
        assert await result != threading.main_thread().name
    assert threads.running == 0


async def test_call_that_nobody_waits_for_counts_until_it_returns() -> None:
    threads: Threads[bool] = Threads(1)
    go = threading.Event()
    waiting = threads.run(lambda: go.wait(5))
    waiting.cancel()
    await asyncio.sleep(0)
    assert threads.is_full
    go.set()
    assert await asyncio.wait_for(threads.run(lambda: True), 5)
    async with asyncio.timeout(5):
        while threads.running:  # noqa: ASYNC110 (its future is cancelled)
            await asyncio.sleep(0.001)


async def test_system_without_more_threads_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads: Threads[None] = Threads(1)
    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(BlockingIOError, match="no more threads"):
        threads.run(lambda: None)
    assert threads.running == 0


def test_call_that_returns_after_its_loop_was_closed_troubles_nobody() -> None:
    go, before = threading.Event(), set(threading.enumerate())

    async def leave() -> None:
        Threads[bool](1).run(lambda: go.wait(5))

    asyncio.run(leave())
    (thread,) = set(threading.enumerate()) - before
    go.set()
    thread.join(5)
    assert not thread.is_alive()
