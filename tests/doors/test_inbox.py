"""Requests that come faster than they shall be handled."""

import asyncio

import pytest

from audiofork.doors.inbox import AT_ONCE, OF_DOOR, OF_ORIGIN, PAUSE_S, Inbox
from audiofork.forks.requests import Origin
from tests.control_plane import Clock

FLOOD, GOOD = Origin("AMI", "flood"), Origin("AMI", "good")


@pytest.fixture
def handled() -> list[int]:
    return []


@pytest.fixture
async def inbox(clock: Clock, handled: list[int]) -> Inbox[int]:
    return Inbox(lambda item, _: handled.append(item))


async def test_item_is_handed_on_after_put_has_returned(
    inbox: Inbox[int], handled: list[int], clock: Clock
) -> None:
    assert inbox.put(1, GOOD)
    assert handled == []
    await clock.settle()
    assert handled == [1]
    inbox.put(2, GOOD)
    await clock.settle()
    assert handled == [1, 2]


async def test_many_are_handed_on_with_pauses_and_another_origin_waits_for_one_of_them(
    inbox: Inbox[int], handled: list[int], clock: Clock
) -> None:
    for number in range(AT_ONCE + 20):
        inbox.put(number, FLOOD)
    inbox.put(-1, GOOD)
    await clock.settle()
    assert len(handled) == AT_ONCE
    assert handled[:3] == [0, -1, 1]
    await clock.advance(PAUSE_S)
    assert len(handled) == AT_ONCE + 21


async def test_there_is_room_for_so_many_of_an_origin_and_of_a_door(inbox: Inbox[int]) -> None:
    assert [inbox.put(0, FLOOD) for _ in range(OF_ORIGIN + 2)][-3:] == [True, False, False]
    assert inbox.put(0, GOOD)
    room = sum(inbox.put(0, Origin("AMI", str(number))) for number in range(2 * OF_DOOR))
    assert room == OF_DOOR - OF_ORIGIN - 1
    assert inbox.put(0, Origin("dialplan", "1.1"))
    inbox.close()


async def test_all_that_waits_is_handed_on_in_the_end(
    inbox: Inbox[int], handled: list[int], clock: Clock
) -> None:
    for number in range(AT_ONCE + 20):
        inbox.put(number, FLOOD)
    inbox.flush()
    assert handled == list(range(AT_ONCE + 20))
    await clock.advance(PAUSE_S)
    assert len(handled) == AT_ONCE + 20


async def test_what_waits_is_forgotten_by_a_close(
    inbox: Inbox[int], handled: list[int], clock: Clock
) -> None:
    inbox.put(1, GOOD)
    inbox.close()
    await clock.settle()
    assert handled == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
