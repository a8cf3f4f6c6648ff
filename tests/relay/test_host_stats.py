"""What the forks of a relay host have counted, for all who want to know."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.link.messages import EndReason, ForkEnded, ForkStats, StatsTaken, TakeStats
from audiofork.relay.host_stats import HostStats


class Worker:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.stats = HostStats(lambda command: self._handle(command))

    def _handle(self, command: TakeStats) -> None:
        self.asked.append(command.ticket)

    def answer(self, **forks: ForkStats) -> None:
        self.stats.on_taken(StatsTaken(self.asked.pop(0), forks))

    async def take(self, *running: str, **forks: ForkStats) -> StatsTaken:
        task = asyncio.create_task(self.stats.take(running))
        await asyncio.sleep(0)
        self.answer(**forks)
        return await task

    def end(self, fork_id: str, stats: ForkStats) -> None:
        self.stats.on_ended(ForkEnded(fork_id, EndReason.HANGUP, "", stats))

    @property
    def frames(self) -> tuple[int, ...]:
        counts = self.stats.counts()
        return tuple(counts[f"frames_{what}"] for what in ("in", "sent", "dropped", "missing"))


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def test_each_asker_gets_the_answer_to_its_own_question(worker: Worker) -> None:
    told: list[str] = []
    worker.stats.ask(lambda report: told.append(f"first {list(report.stats)}"))
    worker.stats.ask(lambda report: told.append(f"second {list(report.stats)}"))
    worker.answer(a=ForkStats())
    worker.answer(b=ForkStats())
    assert told == ["first ['a']", "second ['b']"]


async def test_sums_are_of_forks_that_run_and_that_have_ended(worker: Worker) -> None:
    assert worker.frames == (0, 0, 0, 0)
    await worker.take("a", "b", a=ForkStats(10, 8, 1, frames_missing=2), b=ForkStats(5, 5))
    assert worker.frames == (15, 13, 1, 2)
    worker.end("a", ForkStats(12, 11, 1, frames_missing=2))
    assert worker.frames == (17, 16, 1, 2)
    worker.end("of no answer", ForkStats(1, 1))
    assert worker.frames == (18, 17, 1, 2)


async def test_no_sum_decreases_when_frames_come_back_from_a_broken_connection(
    worker: Worker,
) -> None:
    await worker.take("a", a=ForkStats(10, 10))
    await worker.take("a", a=ForkStats(11, 7))
    assert worker.frames[:2] == (11, 10)
    worker.end("a", ForkStats(12, 9, 3))
    assert worker.frames[:3] == (12, 10, 3)


async def test_fork_that_ends_while_it_is_asked_for_is_counted_once(worker: Worker) -> None:
    running = {"a": None}
    task = asyncio.create_task(worker.stats.take(running))
    await asyncio.sleep(0)
    worker.end("a", ForkStats(10, 10))
    del running["a"]
    worker.answer(a=ForkStats(9, 9))
    await task
    assert worker.frames[:2] == (10, 10)


async def test_answer_to_one_who_has_left_has_no_effect(worker: Worker) -> None:
    task = asyncio.create_task(worker.stats.take(()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    worker.answer(a=ForkStats(9, 9))
    assert worker.frames[:2] == (0, 0)
