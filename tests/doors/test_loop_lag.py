"""How late the event loop is, by a timer of once a second."""

from __future__ import annotations

import asyncio

from audiofork.doors.loop_lag import LoopLag
from tests.control_plane import Clock


async def test_loop_in_time_has_no_lag_and_a_late_one_has(clock: Clock) -> None:
    lag = LoopLag()
    lag.start()
    await clock.advance(1.0)
    assert (lag.lags.cumulative[0], lag.lags.cumulative[-1]) == (1, 1)
    await clock.advance(1.3)
    assert (lag.lags.cumulative[0], lag.lags.cumulative[-1]) == (1, 2)
    assert round(lag.lags.sum_s, 6) == 0.3
    lag.close()


async def test_closed_one_leaves_no_timer(clock: Clock) -> None:
    lag = LoopLag()
    lag.close()
    lag.start()
    lag.close()
    await clock.advance(10.0)
    assert lag.lags.cumulative[-1] == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
