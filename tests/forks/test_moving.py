"""Forks whose relay is lost begin again at the rate that Asterisk bears."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from audiofork.forks.lost_relays import RELAY_DIED
from audiofork.link.messages import RelayLost
from tests.control_plane import Rig

RATE = 5


@pytest.fixture
def slow(rig: Rig) -> Rig:
    """A registry that starts 5 forks a second at most."""
    rig.forks.security = replace(rig.forks.security, max_starts=RATE, max_forks_per_channel=100)
    return rig


async def streams(rig: Rig, count: int) -> list[str]:
    ids = []
    for number in range(count):
        ids.append(await rig.stream(url=f"ws://127.0.0.1/{number}"))
        await rig.clock.advance(1)
    return ids


async def advance(rig: Rig, seconds: float) -> None:
    """Advance the clock in steps, so that each timer sets the next."""
    for _ in range(round(seconds / 0.1)):
        await rig.clock.advance(0.1)


async def lose(rig: Rig, ids: list[str]) -> int:
    """Lose the relay of forks; return how many legs were requested before."""
    before = len(rig.tap.legs)
    rig.forks.on_report(RelayLost(tuple(reversed(ids)), 0.0))
    await rig.clock.settle()
    return before


async def test_as_many_as_may_start_in_a_second_begin_at_once_and_the_rest_at_that_rate(
    slow: Rig,
) -> None:
    before = await lose(slow, await streams(slow, 12))
    assert len(slow.tap.legs) - before == RATE
    await advance(slow, 1)
    assert len(slow.tap.legs) - before == 2 * RATE
    await advance(slow, 1)
    assert len(slow.tap.legs) - before == 12


async def test_oldest_begin_first(slow: Rig) -> None:
    ids = await streams(slow, 8)
    before = await lose(slow, ids)
    await advance(slow, 2)
    assert [fork_id for fork_id, _ in slow.tap.started[before:]] == ids


async def test_fork_that_ends_while_it_waits_is_told_so_soon(slow: Rig) -> None:
    ids = await streams(slow, 8)
    await lose(slow, ids)
    await slow.request(command="StopAudioFork", audioforkid=ids[-1])
    await advance(slow, 0.2)
    ((_, headers),) = [one for one in slow.ami.events if one[0] == "AudioForkStopped"]
    assert (headers["AudioForkID"], headers["Reason"]) == (ids[-1], "stopped")
    assert headers["Detail"] == RELAY_DIED


async def test_log_says_how_far_it_is(slow: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await lose(slow, await streams(slow, 12))
    await advance(slow, 2)
    assert "forks have another relay" in caplog.text
    assert "all 12 forks have another relay, after" in caplog.text


async def test_few_forks_begin_at_once_and_nothing_is_said(
    slow: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    before = await lose(slow, await streams(slow, 3))
    assert len(slow.tap.legs) - before == 3
    assert "another relay" not in caplog.text
