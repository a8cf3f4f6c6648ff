"""How a start goes on, told to who waits for it: at once, at each change, each second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from audiofork.errors import RequestRefused
from audiofork.forks.following import BEAT_S, StartNews, StartResult
from audiofork.forks.requests import parse_request
from audiofork.link.messages import (
    EndReason,
    LegAttached,
    LegPart,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
)
from audiofork.link.messages import Streaming as StreamingReport
from tests.control_plane import START, UNKNOWN_ID, Rig

PAIRS = LegPart.PAIRS


class Follower:
    """Somebody who waits for a fork.

    Attributes:
        heard: What was told so far.
    """

    def __init__(self, news: AsyncGenerator[StartNews, None]) -> None:
        self._news = news
        self.heard: list[StartNews] = []
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for one in self._news:
            self.heard.append(one)

    @property
    def waits_for(self) -> list[str]:
        return [one.fork.waits_for for one in self.heard]

    @property
    def last(self) -> tuple[StartResult, str, str]:
        return self.heard[-1].result, self.heard[-1].reason, self.heard[-1].detail


async def follow(rig: Rig) -> tuple[str, Follower]:
    (fork_id,) = await rig.forks.ask(parse_request(START))
    follower = Follower(rig.forks.follow(fork_id))
    await rig.clock.settle()
    return fork_id, follower


async def test_start_is_told_at_once_and_at_each_change_until_it_streams(rig: Rig) -> None:
    fork_id, follower = await follow(rig)
    assert follower.waits_for == ["the server and the leg"]
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.settle()
    assert follower.waits_for[1:] == ["the leg"]
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.settle()
    assert follower.waits_for[2:] == ["audio of the call"]
    rig.forks.on_report(StreamingReport(fork_id))
    await rig.clock.settle()
    assert follower.task.done()
    assert follower.last == (StartResult.STREAMING, "", "")
    assert follower.heard[-1].ms == 0


async def test_server_that_is_back_before_any_audio_is_told_at_once(rig: Rig) -> None:
    fork_id, follower = await follow(rig)
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.3))
    await rig.clock.settle()
    assert follower.waits_for[-1] == "the server"
    rig.forks.on_report(SinkResumed(fork_id, 0))
    await rig.clock.settle()
    assert follower.waits_for[-1] == "audio of the call"


async def test_start_that_does_not_change_is_told_each_second(rig: Rig) -> None:
    _, follower = await follow(rig)
    for _ in range(3):
        await rig.clock.advance(BEAT_S)
    assert [one.result for one in follower.heard] == [StartResult.WAITING] * 4
    assert follower.heard[-1].fork.age_s == 3 * BEAT_S


async def test_error_of_the_server_is_told_with_the_time_until_the_next_attempt(rig: Rig) -> None:
    fork_id, follower = await follow(rig)
    rig.forks.on_report(SinkRetrying(fork_id, 2, "Connection refused", 3.0))
    await rig.clock.settle()
    shown = follower.heard[-1].fork
    assert (shown.last_error, shown.attempt, shown.next_attempt_s) == ("Connection refused", 2, 3.0)


@pytest.mark.parametrize(
    "reason", [EndReason.SINK_GONE, EndReason.SINK_REFUSED, EndReason.HANGUP, EndReason.STOPPED]
)
async def test_fork_that_ends_before_it_streams_is_told_with_its_reason(
    rig: Rig, reason: EndReason
) -> None:
    fork_id, follower = await follow(rig)
    await rig.ended(fork_id, reason, "a\r\ndetail")
    assert follower.task.done()
    assert follower.last == (StartResult.ENDED, reason, "a??detail")
    assert follower.heard[-1].fork.state == "ended"


async def test_fork_that_streams_and_ends_in_one_turn_is_told_as_streaming(rig: Rig) -> None:
    fork_id, follower = await follow(rig)
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(StreamingReport(fork_id))
    await rig.ended(fork_id, EndReason.HANGUP)
    assert follower.last == (StartResult.STREAMING, "", "")


async def test_fork_that_is_kept_for_the_next_run_is_told_as_ended_by_the_shutdown(
    rig: Rig,
) -> None:
    _, follower = await follow(rig)
    stop = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.obey()
    await stop
    assert follower.last == (StartResult.ENDED, EndReason.SHUTDOWN, "")
    rig.journal.entries.clear()


async def test_fork_that_ended_at_once_is_told_to_who_asked_right_after_the_start(
    rig: Rig,
) -> None:
    rig.spec_fault = "no such file"
    (fork_id,) = await rig.forks.ask(parse_request(START))
    rig.live.clear()
    follower = Follower(rig.forks.follow(fork_id))
    await rig.clock.settle()
    assert follower.last == (StartResult.ENDED, EndReason.SINK_REFUSED, "no such file")


async def test_two_followers_of_one_fork_hear_the_same(rig: Rig) -> None:
    fork_id, first = await follow(rig)
    second = Follower(rig.forks.follow(fork_id))
    for report in (SinkOpened(fork_id), LegAttached(fork_id, PAIRS), StreamingReport(fork_id)):
        await rig.clock.settle()
        rig.forks.on_report(report)
    await rig.clock.settle()
    assert first.heard == second.heard
    assert first.last == (StartResult.STREAMING, "", "")


async def test_fork_that_is_not_there_cannot_be_followed(rig: Rig) -> None:
    with pytest.raises(RequestRefused, match="^No such fork$"):
        rig.forks.follow(UNKNOWN_ID)
