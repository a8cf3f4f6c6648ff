"""Times as people give them: 2h, today, 2026-11-28 14:30."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DAYS_AGO = {"today": 0, "yesterday": 1}
EXPECTED = "2h (s, m, h, d, w), today, yesterday, 14:30, 2026-11-28 or 2026-11-28T14:30"


def seconds_of(text: str, now: datetime, *, is_end: bool = False) -> float:
    """Return a time in seconds since 1970.

    Args:
        text: A time before now, such as 2h; a day; a time of today; or both. Without a time zone it
            is the local time.
        now: The time now, with its time zone.
        is_end: Whether a day means its end; otherwise its beginning.

    Raises:
        ValueError: The text is no time; the exception says what is expected.
    """
    text = text.strip().lower()
    if ago := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
        return now.timestamp() - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        if text in _DAYS_AGO:
            day = now.date() - timedelta(days=_DAYS_AGO[text])
            return _midnight(datetime.combine(day, time()), is_end).timestamp()
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text):
            of_day = time.fromisoformat(text.zfill(len(text) + (text.index(":") < 2)))
            return datetime.combine(now.date(), of_day).timestamp()
        moment = datetime.fromisoformat(text.upper())
        is_day = re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None
        return _midnight(moment, is_end and is_day).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(EXPECTED) from None


def _midnight(day: datetime, is_end: bool) -> datetime:
    """Return the beginning of a day, or its end: the beginning of the next, also in a short one."""
    return day + timedelta(days=1) if is_end else day


def shown(at: float) -> str:
    """Return a time as text, to the second, in local time."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
