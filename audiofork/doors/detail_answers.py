"""Answers what controllers of a cluster ask each other for the HTTP interface.

ListAudioForkMoments tells what has happened to the fork AudioForkID, oldest first, and
ListAudioForkMinutes what has happened in each minute of the last Hours:

    {"ok": true, "moments": [{"at": 1700000000.25, "kind": "started", "text": ""}]}
    {"ok": true, "minutes": [{"at": 1700000040, "started": 2, ...}]}       with the fields of Minute
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from audiofork.doors.control_answers import MOMENTS
from audiofork.errors import RequestRefused
from audiofork.forks.series import MOST_HOURS, Series
from audiofork.forks.timelines import Timelines


class DetailAnswers:
    """Answers from what the daemon has noted of its forks.

    Args:
        timelines: What has happened to each fork.
        series: What has happened in each minute.
    """

    def __init__(self, timelines: Timelines, series: Series) -> None:
        self._timelines = timelines
        self._series = series

    def answer(self, command: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer to a command, as types that JSON has.

        Args:
            command: One of the two.
            fields: The fields of the request, by name in lower case.

        Raises:
            RequestRefused: A field is wrong.
        """
        if command == MOMENTS:
            moments = self._timelines.of(fields.get("audioforkid", ""))
            return {"moments": [one._asdict() for one in moments]}
        hours = fields.get("hours", "")
        if not (hours.isascii() and hours.isdigit() and len(hours) < 3):
            raise RequestRefused(f"Hours: expected 1 to {MOST_HOURS}")
        minutes = self._series.minutes(int(hours))
        return {"minutes": [dataclasses.asdict(one) for one in minutes]}
