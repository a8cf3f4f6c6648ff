"""Those who wait for a flag."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.relay.flag import Flag


async def test_all_who_wait_go_on_when_it_is_set_though_it_is_cleared_at_once() -> None:
    flag = Flag()
    tasks = [asyncio.create_task(flag.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert (flag.is_set(), [task.done() for task in tasks]) == (False, [False, False])
    flag.set()
    flag.set()
    flag.clear()
    await asyncio.gather(*tasks)
    assert not flag._waiters


async def test_who_comes_while_it_is_set_does_not_wait() -> None:
    flag = Flag()
    flag.set()
    with pytest.raises(StopIteration):
        flag.wait().send(None)
    flag.clear()
    task = asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    flag.set()
    assert (flag.is_set(), flag._waiters) == (True, [])
