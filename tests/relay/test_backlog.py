"""The frames that wait: bounded, the oldest make room, all are counted."""

from __future__ import annotations

import pytest

from audiofork.relay.backlog import Backlog


def frames(*numbers: int) -> list[bytes]:
    return [bytes([number]) * 320 for number in numbers]


def take_all(backlog: Backlog) -> list[bytes]:
    return [backlog.take() for _ in range(len(backlog))]


def test_take_gives_frames_in_order() -> None:
    backlog = Backlog(1)
    for frame in frames(1, 2, 3):
        backlog.put(frame)
    assert len(backlog) == 3
    assert take_all(backlog) == frames(1, 2, 3)
    assert (len(backlog), backlog.dropped) == (0, 0)


def test_put_full_drops_oldest_and_counts() -> None:
    backlog = Backlog(0.06)
    for frame in frames(1, 2, 3, 4, 5):
        backlog.put(frame)
    assert backlog.dropped == 2
    assert take_all(backlog) == frames(3, 4, 5)


@pytest.mark.parametrize(
    ("limit_s", "limit"), [(0.02, 1), (0.039, 1), (0.04, 2), (0.1, 5), (10, 500), (0.019, 0)]
)
def test_limit_is_in_seconds_of_20_ms_frames(limit_s: float, limit: int) -> None:
    backlog = Backlog(limit_s)
    for _ in range(limit + 7):
        backlog.put(bytes(320))
        assert len(backlog) <= limit
    assert (len(backlog), backlog.dropped) == (limit, 7)


def test_put_with_zero_limit_drops_everything() -> None:
    backlog = Backlog(0)
    for frame in frames(1, 2):
        backlog.put(frame)
    assert (len(backlog), backlog.dropped) == (0, 2)
    assert not backlog


def test_take_of_nothing_raises() -> None:
    with pytest.raises(IndexError):
        Backlog(1).take()


def test_put_after_take_has_room_again() -> None:
    backlog = Backlog(0.04)
    for frame in frames(1, 2):
        backlog.put(frame)
    assert backlog.take() == frames(1)[0]
    backlog.put(frames(3)[0])
    assert backlog.dropped == 0
    assert take_all(backlog) == frames(2, 3)


def test_drop_all_counts_what_waited() -> None:
    backlog = Backlog(0.04)
    for frame in frames(1, 2, 3):
        backlog.put(frame)
    backlog.drop_all()
    assert (len(backlog), backlog.dropped) == (0, 3)
    backlog.drop_all()
    assert backlog.dropped == 3
