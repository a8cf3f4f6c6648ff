"""How long frames may wait to be read at once, by a clock that the test owns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiofork.relay.read_batching import Patience, ReadBatching
from tests.relay.peers import FakeLoop

# Of 100 ms, and two ticks more.
LONGEST_S = 0.14


class Connection:
    """Stands for a transport and its socket.

    Attributes:
        wanted: The bytes at which the kernel was last told to wake the process.
    """

    def __init__(self, patience: Patience) -> None:
        self.wanted = 0
        self.batching = ReadBatching(cast(Any, self), 320, 100, patience)

    def get_extra_info(self, name: str) -> Connection:
        assert name == "socket"
        return self

    def setsockopt(self, _level: int, _name: int, value: int) -> None:
        assert value != self.wanted
        self.wanted = value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    faked = SimpleNamespace(get_running_loop=lambda: loop)
    monkeypatch.setattr("audiofork.relay.read_batching.asyncio", faked)
    return loop


@pytest.fixture
def patience(clock: FakeLoop) -> Patience:  # noqa: ARG001 (in place of the event loop's)
    return Patience(100)


def late(*connections: Connection) -> list[bool]:
    return [one.batching.is_late for one in connections]


def test_legs_that_are_read_in_time_share_one_timer(clock: FakeLoop, patience: Patience) -> None:
    legs = [Connection(patience) for _ in range(3)]
    for _ in range(20):
        for leg in legs:
            clock.advance(0.03)
            leg.batching.on_read(5)
        assert clock.armed == 1
    assert late(*legs) == [False] * 3
    assert [leg.wanted for leg in legs] == [5 * 323] * 3


def test_each_leg_is_late_when_it_was_not_read_for_so_long(
    clock: FakeLoop, patience: Patience
) -> None:
    first, second = Connection(patience), Connection(patience)
    clock.advance(0.05)
    first.batching.on_read(5)
    clock.advance(LONGEST_S - 0.051)
    assert late(first, second) == [False, False]
    clock.advance(0.002)
    assert late(first, second) == [False, True]
    assert second.wanted == 1
    clock.advance(0.05)
    assert late(first, second) == [True, True]
    assert clock.armed == 0


def test_leg_that_was_late_is_waited_for_again_after_its_next_read(
    clock: FakeLoop, patience: Patience
) -> None:
    leg = Connection(patience)
    clock.advance(1)
    leg.batching.on_read(3)
    assert (late(leg), leg.wanted, clock.armed) == ([False], 3 * 323, 1)
    clock.advance(LONGEST_S + 0.001)
    assert late(leg) == [True]


def test_leg_that_reads_each_frame_is_not_waited_for(clock: FakeLoop, patience: Patience) -> None:
    legs = [Connection(patience) for _ in range(2)]
    for leg, armed in zip(legs, (1, 0), strict=True):
        leg.batching.stop()
        leg.batching.stop()
        assert (leg.wanted, clock.armed) == (1, armed)
    clock.advance(1)
    assert late(*legs) == [False, False]
