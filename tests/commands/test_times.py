"""Times as people give them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from audiofork.commands.times import EXPECTED, seconds_of

NOW = datetime(2026, 11, 28, 15, 30, 10).astimezone()


def local(*parts: int) -> float:
    return datetime(*parts).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", NOW.timestamp() - 90),
        ("15m", NOW.timestamp() - 900),
        ("2h", NOW.timestamp() - 7200),
        ("30d", NOW.timestamp() - 30 * 86_400),
        (" 1W ", NOW.timestamp() - 7 * 86_400),
        ("today", local(2026, 11, 28)),
        ("Yesterday", local(2026, 11, 27)),
        ("14:05", local(2026, 11, 28, 14, 5)),
        ("9:05:30", local(2026, 11, 28, 9, 5, 30)),
        ("2026-11-20", local(2026, 11, 20)),
        ("2026-11-20 14:05", local(2026, 11, 20, 14, 5)),
        ("2026-11-20T14:05:06", local(2026, 11, 20, 14, 5, 6)),
        (
            "2026-11-20T14:05+02:00",
            datetime(2026, 11, 20, 14, 5, tzinfo=timezone(timedelta(hours=2))).timestamp(),
        ),
        ("2026-11-20T14:05Z", datetime(2026, 11, 20, 14, 5, tzinfo=UTC).timestamp()),
    ],
)
def test_time_is_understood(text: str, at: float) -> None:
    assert seconds_of(text, NOW) == at


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("today", local(2026, 11, 29)),
        ("yesterday", local(2026, 11, 28)),
        ("2026-11-20", local(2026, 11, 21)),
        ("2026-11-20 14:05", local(2026, 11, 20, 14, 5)),
        ("2h", NOW.timestamp() - 7200),
    ],
)
def test_day_as_an_end_means_its_end(text: str, at: float) -> None:
    assert seconds_of(text, NOW, is_end=True) == at


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "h", "-2h", "2y", "25:00", "12:60", "tomorrow", "2026-13-01", "28.11.2026"),
        *("9999-12-31", "\u0662h"),
    ],
)
def test_what_is_no_time_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(EXPECTED)):
        seconds_of(text, NOW, is_end=True)
