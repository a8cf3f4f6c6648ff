"""TLS handshakes take turns, and none waits for a server that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from audiofork.relay import handshake_turns as module
from audiofork.relay.handshake_turns import MOST_AT_ONCE, HandshakeTurns, handshake_turns
from tests.relay.peers import until

pytestmark = pytest.mark.usefixtures("nothing_left")


class Handshakes:
    """Some that wait for their server.

    Attributes:
        begun: The numbers of those that have begun, in this order.
        answers: Of the servers, by number.
    """

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.answers = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self._shake(number)) for number in range(count)]

    async def _shake(self, number: int) -> None:
        async with handshake_turns():
            self.begun.append(number)
            await self.answers[number].wait()

    async def end(self) -> None:
        for answer in self.answers:
            answer.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def many() -> AsyncIterator[Handshakes]:
    handshakes = Handshakes(MOST_AT_ONCE + 4)
    yield handshakes
    await handshakes.end()
    assert handshake_turns()._held == 0


async def turns_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody begins because those before take long."""
    monkeypatch.setattr(module, "PATIENCE_S", 3600.0)


@pytest.mark.usefixtures("patient")
async def test_next_begins_when_one_ends_in_the_order_they_came(many: Handshakes) -> None:
    await turns_of_the_loop()
    assert many.begun == list(range(MOST_AT_ONCE))
    many.answers[2].set()
    await turns_of_the_loop()
    assert many.begun == list(range(MOST_AT_ONCE + 1))
    many.answers[0].set()
    many.answers[1].set()
    await turns_of_the_loop()
    assert many.begun == list(range(MOST_AT_ONCE + 3))


@pytest.mark.usefixtures("patient")
async def test_cancelled_one_neither_begins_nor_keeps_its_turn(many: Handshakes) -> None:
    await turns_of_the_loop()
    many.tasks[MOST_AT_ONCE].cancel()  # waits
    many.tasks[0].cancel()  # has begun
    await turns_of_the_loop()
    assert many.begun == [*range(MOST_AT_ONCE), MOST_AT_ONCE + 1]


@pytest.mark.usefixtures("patient")
async def test_turn_given_to_one_that_is_cancelled_at_once_goes_on_to_the_next(
    many: Handshakes,
) -> None:
    await turns_of_the_loop()
    handshake_turns()._end()  # gives the next its turn, which it has not taken yet
    many.tasks[MOST_AT_ONCE].cancel()
    await turns_of_the_loop()
    assert many.begun == [*range(MOST_AT_ONCE), MOST_AT_ONCE + 1]
    handshake_turns()._held += 1  # as the one that still waits will end, too


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("has_begun", [False, True])
async def test_one_whose_task_is_dropped_keeps_no_turn(has_begun: bool) -> None:
    turns = HandshakeTurns()
    turns._held = MOST_AT_ONCE
    entering = turns.__aenter__()
    entering.send(None)  # as a task does: it waits now
    if has_begun:
        turns._end()
        assert turns._held == MOST_AT_ONCE
    entering.close()
    assert turns._held == MOST_AT_ONCE - has_begun
    turns._begin_next()  # skips it
    assert turns._held == MOST_AT_ONCE - has_begun


@pytest.mark.usefixtures("patient")
async def test_as_many_begin_as_are_due_where_the_loop_was_late(many: Handshakes) -> None:
    await turns_of_the_loop()
    turns = handshake_turns()
    assert len(many.begun) == MOST_AT_ONCE
    turns._on_impatience()  # in time: another has begun since
    await turns_of_the_loop()
    assert len(many.begun) == MOST_AT_ONCE
    turns._due -= 3 * 3600.0  # it was due two hours ago
    turns._on_impatience()
    await turns_of_the_loop()
    assert len(many.begun) == MOST_AT_ONCE + 3


async def test_none_waits_long_for_servers_that_do_not_answer(
    monkeypatch: pytest.MonkeyPatch, many: Handshakes
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    await until(lambda: len(many.begun) == len(many.tasks))
    assert many.begun == list(range(len(many.tasks)))
    assert not any(answer.is_set() for answer in many.answers)
