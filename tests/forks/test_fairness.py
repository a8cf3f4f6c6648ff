"""Whose turn it is, and how much of each origin is answered."""

import random

import pytest

from audiofork.forks.fairness import Allowance, FairQueue
from audiofork.forks.requests import Origin

AMI_1, AMI_2, AMI_3 = (Origin("AMI", str(n)) for n in (1, 2, 3))
DIALPLAN = Origin("dialplan", "1.1")


def taken(queue: FairQueue[str]) -> list[str]:
    result = []
    while queue:
        result.append(queue.take())
    return result


def filled(*waiting: tuple[Origin, str]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for origin, item in waiting:
        queue.put(origin, item)
    return queue


def test_items_of_one_origin_come_in_their_order() -> None:
    assert taken(filled((AMI_1, "a"), (AMI_1, "b"), (AMI_1, "c"))) == ["a", "b", "c"]


def test_origins_take_turns() -> None:
    queue = filled(*((AMI_1, f"a{n}") for n in range(3)), (AMI_2, "b"), (AMI_3, "c"))
    assert taken(queue) == ["a0", "b", "c", "a1", "a2"]


def test_doors_take_turns_however_many_origins_one_has() -> None:
    queue = filled(*((Origin("AMI", str(n)), f"a{n}") for n in range(100)))
    queue.put(DIALPLAN, "d0")
    queue.put(DIALPLAN, "d1")
    assert taken(queue)[:4] == ["a0", "d0", "a1", "d1"]


def test_item_that_is_removed_is_not_taken() -> None:
    queue = filled((AMI_1, "a"), (AMI_1, "b"), (AMI_2, "c"))
    queue.remove(AMI_1, "a")
    queue.remove(AMI_2, "c")
    queue.remove(AMI_2, "c")
    queue.remove(DIALPLAN, "never")
    assert taken(queue) == ["b"]


def test_origins_of_which_nothing_waits_are_forgotten() -> None:
    queue = filled(*((Origin("AMI", str(n)), "a") for n in range(100)))
    taken(queue)
    assert not queue._doors
    assert queue.waiting(AMI_1) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_more_is_taken_before_an_item_than_is_told(seed: int) -> None:
    chance = random.Random(seed)
    origins = [Origin(door, who) for door in "xyz" for who in "abcd"]
    queue: FairQueue[str] = FairQueue()
    for number in range(chance.randrange(60)):
        queue.put(chance.choice(origins), str(number))
    for _ in range(chance.randrange(10)):
        if queue:
            queue.take()
    origin = chance.choice(origins)
    told = queue.ahead_of(origin)
    queue.put(origin, "this")
    assert taken(queue).index("this") <= told


def test_what_waits_is_told_of_an_origin_and_of_its_door() -> None:
    queue = filled((AMI_1, "a"), (AMI_1, "b"), (AMI_2, "c"), (DIALPLAN, "d"))
    assert queue.waiting(AMI_1) == (2, 3)
    assert queue.waiting(AMI_3) == (0, 3)


# --- So many a second ----------------------------------------------------------------------------


@pytest.fixture
def now() -> list[float]:
    return [50.0]


@pytest.fixture
def allowance(now: list[float]) -> Allowance:
    return Allowance(each=2, door=5, clock=lambda: now[0])


def test_origin_has_so_many_a_second(allowance: Allowance, now: list[float]) -> None:
    assert [allowance.take(AMI_1) for _ in range(3)] == [True, True, False]
    assert allowance.take(AMI_2)
    now[0] += 0.99
    assert not allowance.take(AMI_1)
    now[0] += 0.01
    assert allowance.take(AMI_1)


def test_door_has_so_many_a_second_of_whatever_origins(allowance: Allowance) -> None:
    granted = [allowance.take(Origin("AMI", str(n))) for n in range(10_000)]
    assert granted == [True] * 5 + [False] * 9_995
    assert allowance.take(DIALPLAN)
    assert len(allowance._done) <= 2 * (5 + 1)
