"""When the pacer calls its players, on a clock that the test owns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from audiofork.relay.pacer import Pacer
from tests.relay.peers import FakeLoop


class FakePlayer:
    """Keeps the times at which it is called, since the test began, in ms."""

    def __init__(self, clock: FakeLoop) -> None:
        self._clock = clock
        self._began = clock.time()
        self.times: list[int] = []
        self.due: list[int] = []
        self.then: Callable[[], None] = lambda: None

    def tick(self, now: float) -> None:
        self.times.append(round((self._clock.time() - self._began) * 1000))
        self.due.append(round((now - self._began) * 1000))
        self.then()


@pytest.fixture
def pacer(clock: FakeLoop) -> Pacer:
    return Pacer()


@pytest.fixture
def player(clock: FakeLoop) -> FakePlayer:
    return FakePlayer(clock)


def test_player_is_called_every_20_ms(pacer: Pacer, player: FakePlayer, clock: FakeLoop) -> None:
    pacer.place(player, clock.time())
    clock.advance(0.09)
    assert player.times == [0, 20, 40, 60, 80]


@pytest.mark.parametrize(("at_ms", "first"), [(3, 4), (10, 10), (19, 0), (31, 12), (40, 0)])
def test_player_is_called_in_the_phase_that_it_asks_for(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop, at_ms: int, first: int
) -> None:
    pacer.place(player, clock.time() + at_ms / 1000)
    clock.advance(0.05)
    assert player.times[:2] == [first, first + 20]


def test_a_minute_does_not_drift(pacer: Pacer, player: FakePlayer, clock: FakeLoop) -> None:
    clock.late_s = 0.001
    pacer.place(player, clock.time() + 0.006)
    clock.advance(60)
    assert player.times[-1] == 6 + 20 * (len(player.times) - 1) + 1
    assert len(player.times) == 3000


def test_players_are_spread_over_the_phases(pacer: Pacer, clock: FakeLoop) -> None:
    players = [FakePlayer(clock) for _ in range(20)]
    for player in players:
        pacer.place_anywhere(player)
    clock.advance(0.02)
    firsts = sorted(player.times[0] for player in players)
    assert firsts == sorted([*range(0, 20, 2)] * 2)


def test_there_is_no_timer_while_nobody_plays(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop
) -> None:
    assert clock.armed == 0
    pacer.place_anywhere(player)
    assert clock.armed == 1
    pacer.remove(player)
    pacer.remove(player)
    assert (clock.armed, player in pacer) == (0, False)
    clock.advance(1)
    assert player.times == []


@pytest.mark.parametrize(("stall_ms", "times"), [(15, [0, 20, 40]), (25, [0, 25, 40])])
def test_call_that_is_late_comes_late_and_the_next_in_time(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop, stall_ms: int, times: list[int]
) -> None:
    pacer.place(player, clock.time())
    clock.advance(0)
    clock.stall(stall_ms / 1000)
    clock.advance(0.05 - stall_ms / 1000)
    assert player.times == times
    assert player.due == [0, 20, 40]


def test_calls_that_are_late_by_more_than_a_frame_are_left_out(
    pacer: Pacer, clock: FakeLoop
) -> None:
    players = [FakePlayer(clock) for _ in range(30)]
    for player in players:
        pacer.place_anywhere(player)
    clock.advance(0.1)
    for player in players:
        player.times.clear()
    clock.stall(0.5)
    clock.advance(0.001)
    assert {tuple(player.times) for player in players} == {(600,)}
    clock.advance(0.0189)
    assert {len(player.times) for player in players} <= {1, 2}
    clock.advance(0.2)
    for player in players:
        gaps = [b - a for a, b in zip(player.times, player.times[1:], strict=False)]
        assert set(gaps[1:]) == {20}


def test_player_that_moves_in_its_turn_is_not_called_twice(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop
) -> None:
    def move() -> None:
        player.then = lambda: None
        pacer.place(player, clock.time() + 0.013)

    player.then = move
    pacer.place(player, clock.time())
    clock.advance(0.06)
    assert player.times == [0, 14, 34, 54]


def test_player_that_leaves_in_its_turn_takes_no_turn_of_others(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop
) -> None:
    other = FakePlayer(clock)
    player.then = lambda: pacer.remove(player)
    pacer.place(player, clock.time())
    pacer.place(other, clock.time())
    clock.advance(0.05)
    assert (player.times, other.times) == ([0], [0, 20, 40])


def test_place_in_the_slot_that_was_just_served_calls_nobody_again(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop
) -> None:
    other = FakePlayer(clock)
    pacer.place(player, clock.time())
    clock.advance(0)
    pacer.place(other, clock.time())
    clock.advance(0.03)
    assert (player.times, other.times) == ([0, 20], [2, 22])


def test_player_that_fails_is_called_no_more_and_the_others_are(
    pacer: Pacer, player: FakePlayer, clock: FakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    other = FakePlayer(clock)
    player.then = fail
    pacer.place(player, clock.time())
    pacer.place(other, clock.time())
    clock.advance(0.05)
    assert (player.times, other.times) == ([0], [0, 20, 40])
    (record,) = caplog.records
    assert record.exc_info is not None
