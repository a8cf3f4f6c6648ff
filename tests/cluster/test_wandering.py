"""When a connection moves to the next NATS server."""

from __future__ import annotations

from audiofork.cluster.wandering import FIRST_WAIT_S, LONGEST_WAIT_S, Wandering
from tests.told_clock import Clock


def moves_in(wandering: Wandering, clock: Clock, seconds: float) -> list[float]:
    """Return when it moves while nobody is heard, in seconds."""
    began, moved = clock.now_s, []
    while clock.now_s < began + seconds:
        if wandering.is_due(is_heard=False):
            moved.append(clock.now_s - began)
        clock.now_s += 0.5
    return moved


def test_it_moves_while_nobody_is_heard_ever_more_rarely_and_stays_where_somebody_is() -> None:
    clock = Clock()
    wandering = Wandering(clock)
    assert moves_in(wandering, clock, 80) == [FIRST_WAIT_S, 30, 70]
    later = moves_in(wandering, clock, 300)
    assert later[-1] - later[-2] == LONGEST_WAIT_S
    assert not wandering.is_due(is_heard=True)
    assert moves_in(wandering, clock, 20) == [FIRST_WAIT_S]
