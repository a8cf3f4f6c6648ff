"""Look-ups of channels: so many at once, in turns of their origins."""

import asyncio

import pytest

from audiofork.asterisk.channels import Target
from audiofork.errors import NoSuchChannel, RequestRefused
from audiofork.forks.look_ups import (
    AT_ONCE,
    LONGEST_WAIT_S,
    TOO_MANY,
    WAITING_OF_DOOR,
    WAITING_OF_ORIGIN,
    LookUps,
)
from audiofork.forks.requests import Origin
from tests.control_plane import Clock

FLOOD, GOOD = Origin("AMI", "flood"), Origin("AMI", "good")


class SlowChannels:
    """Answers when it is told to: every channel is there but `nobody`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._gates: list[asyncio.Event] = []

    async def look_up(self, target: Target) -> tuple[str, str]:
        self.asked.append(target.channel)
        gate = asyncio.Event()
        self._gates.append(gate)
        await gate.wait()
        if target.channel == "nobody":
            raise NoSuchChannel
        return target.channel, "1.1"

    def answer(self, count: int = 1) -> None:
        for gate in self._gates[:count]:
            gate.set()
        del self._gates[:count]


class Asked:
    """Look-ups under way."""

    def __init__(self, clock: Clock) -> None:
        self.channels = SlowChannels()
        self.look_ups = LookUps(self.channels)  # type: ignore[arg-type]
        self.tasks: list[asyncio.Task[tuple[str, str]]] = []
        self.settle = clock.settle

    async def find(self, count: int, origin: Origin, channel: str = "nobody") -> None:
        for _ in range(count):
            found = self.look_ups.find(Target(channel), origin)
            self.tasks.append(asyncio.create_task(found))
        await self.settle()

    async def answer_all(self) -> list[object]:
        while not all(task.done() for task in self.tasks):
            self.channels.answer(AT_ONCE)
            await self.settle()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
def asked(clock: Clock) -> Asked:
    return Asked(clock)


async def test_no_more_are_under_way_than_may_be(asked: Asked) -> None:
    await asked.find(AT_ONCE + 5, FLOOD)
    assert len(asked.channels.asked) == AT_ONCE
    asked.channels.answer(2)
    await asked.settle()
    assert len(asked.channels.asked) == AT_ONCE + 2
    results = await asked.answer_all()
    assert all(isinstance(one, NoSuchChannel) for one in results)


async def test_one_more_origin_waits_for_the_next_turn_alone(asked: Asked) -> None:
    await asked.find(AT_ONCE + 50, FLOOD)
    await asked.find(1, GOOD, "PJSIP/1")
    asked.channels.answer(2)
    await asked.settle()
    assert "PJSIP/1" in asked.channels.asked
    results = await asked.answer_all()
    assert results[-1] == ("PJSIP/1", "1.1")


async def test_origin_that_has_too_many_waiting_is_refused_and_others_are_not(
    asked: Asked,
) -> None:
    await asked.find(AT_ONCE + WAITING_OF_ORIGIN + 3, FLOOD)
    refused = [task for task in asked.tasks if task.done()]
    assert [str(task.exception()) for task in refused] == ["too many requests at once"] * 3
    await asked.find(1, GOOD, "PJSIP/1")
    assert (await asked.answer_all())[-1] == ("PJSIP/1", "1.1")


async def test_origins_that_are_invented_fill_their_door_alone(asked: Asked) -> None:
    for number in range(AT_ONCE + WAITING_OF_DOOR):
        found = asked.look_ups.find(Target("nobody"), Origin("AMI", str(number)))
        asked.tasks.append(asyncio.create_task(found))
    await asked.settle()
    with pytest.raises(RequestRefused, match="^too many requests at once$"):
        await asked.look_ups.find(Target("nobody"), GOOD)
    await asked.find(1, Origin("dialplan", "1.1"), "PJSIP/1")
    asked.channels.answer(2)
    await asked.settle()
    assert "PJSIP/1" in asked.channels.asked
    await asked.answer_all()


async def test_look_up_whose_turn_does_not_come_is_refused_in_time(
    asked: Asked, clock: Clock
) -> None:
    await asked.find(AT_ONCE + 2, FLOOD)
    await clock.advance(LONGEST_WAIT_S)
    late = asked.tasks[AT_ONCE:]
    assert [str(task.exception()) for task in late] == [TOO_MANY] * 2
    assert not asked.look_ups._waiting
    await asked.answer_all()
    assert asked.look_ups._under_way == 0


async def test_turn_of_one_that_is_cancelled_in_that_moment_goes_to_the_next(asked: Asked) -> None:
    await asked.find(AT_ONCE + 2, FLOOD)
    asked.channels.answer(1)
    asked.tasks[AT_ONCE].cancel()  # its turn would come in the next turn of the loop
    await asked.settle()
    assert len(asked.channels.asked) == AT_ONCE + 1
    await asked.answer_all()
    assert asked.look_ups._under_way == 0


async def test_turn_that_has_come_to_one_that_is_cancelled_goes_to_the_next(asked: Asked) -> None:
    await asked.find(AT_ONCE + 2, FLOOD)
    first = asked.tasks[AT_ONCE]
    asked.channels.answer(1)
    while asked.look_ups._waiting.waiting(FLOOD)[0] == 2:  # noqa: ASYNC110 (one turn at a time)
        await asyncio.sleep(0)
    first.cancel()
    await asked.settle()
    assert len(asked.channels.asked) == AT_ONCE + 1
    results = await asked.answer_all()
    assert [isinstance(one, asyncio.CancelledError) for one in results].count(True) == 1
    assert asked.look_ups._under_way == 0
