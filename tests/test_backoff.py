"""Waits between attempts."""

from __future__ import annotations

from audiofork.backoff import Backoff, is_passing


def waits(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_s() for _ in range(count)]


def test_each_wait_is_twice_the_one_before_up_to_the_longest() -> None:
    assert waits(Backoff(0.5, 3.0), 5) == [0.5, 1, 2, 3, 3]


def test_first_wait_is_no_longer_than_the_longest() -> None:
    assert waits(Backoff(0.5, 0.1), 3) == [0.1, 0.1, 0.1]


def test_first_attempt_at_once_comes_before_the_first_wait() -> None:
    assert waits(Backoff(0.25, 5.0, at_once=True), 8) == [0, 0.25, 0.5, 1, 2, 4, 5, 5]


def test_reset_begins_anew() -> None:
    for at_once in (False, True):
        backoff = Backoff(0.5, 3.0, at_once=at_once)
        first = waits(backoff, 3)
        backoff.reset()
        assert waits(backoff, 3) == first


def test_statuses_that_pass_are_those_of_a_busy_server() -> None:
    assert [status for status in range(100, 600) if is_passing(status)] == [
        *(408, 425, 429),
        *range(500, 600),
    ]
