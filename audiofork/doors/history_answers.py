"""Answers questions to the history in fields, as the control socket has them.

ListAudioForkHistory has the fields of HistoryQuery, all of them text: Failed is yes or no, Since
and Until are seconds since 1970. With AudioForkID it asks for one entry, with its timeline; the
first eight characters of the id are enough.

    {"ok": true, "entries": [...], "next_cursor": ""}       with the fields of Entry

ListAudioForkCauses groups the failures since Since:

    {"ok": true, "causes": [{"reason": "sink-gone", "detail": "...", "count": 3, ...}]}

ForgetAudioForkCaller removes all entries of the caller Number, and blanks it where others mention
it:

    {"ok": true, "removed": 3, "blanked": 1}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from audiofork.errors import RequestRefused
from audiofork.forks.history import Entry, History, HistoryQuery
from audiofork.forks.masking import is_number
from audiofork.forks.requests import flag_of

HISTORY, CAUSES = "listaudioforkhistory", "listaudioforkcauses"
FORGET = "forgetaudioforkcaller"
COMMANDS = frozenset({HISTORY, CAUSES, FORGET})

_TEXTS = ("channel", "caller", "host", "reason", "text", "cursor")


class HistoryAnswers:
    """Answers questions to the history.

    Every method raises RequestRefused if a field is wrong, and HistoryUnavailable.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    async def answer(self, command: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer to one of COMMANDS, as types that JSON has.

        Args:
            command: The command.
            fields: The fields of the request, by name in lower case.
        """
        if command == CAUSES:
            causes = await self._history.causes(_seconds(fields, "Since") or 0.0)
            return {"causes": [dataclasses.asdict(cause) for cause in causes]}
        if command == FORGET:
            return (await self._history.forget(number_of(fields)))._asdict()
        if fork_id := fields.get("audioforkid", "").strip().lower():
            entry = await self._history.entry(fork_id)
            return {"entries": [as_dict(entry)] if entry else [], "next_cursor": ""}
        try:
            entries, cursor = await self._history.search(query_of(fields))
        except ValueError as exc:
            raise RequestRefused(f"Cursor: {exc}") from None
        return {"entries": [as_dict(entry) for entry in entries], "next_cursor": cursor}


def number_of(fields: Mapping[str, str]) -> str:
    """Return the number that is to be forgotten, of fields by name in lower case.

    Raises:
        RequestRefused: It is none.
    """
    number = fields.get("number", "")
    if not is_number(number):
        raise RequestRefused("Number: expected a number")
    return number


def query_of(fields: Mapping[str, str]) -> HistoryQuery:
    """Return the query of fields, by name in lower case.

    Raises:
        RequestRefused: A field is wrong; the text names it.
    """
    failed = flag_of(fields, "Failed") if fields.get("failed", "").strip() else None
    limit = fields.get("limit", "").strip() or str(HistoryQuery().limit)
    if not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 10):
        raise RequestRefused("Limit: expected a whole number")
    return HistoryQuery(
        **{name: fields.get(name, "").strip() for name in _TEXTS},
        failed=failed,
        since=_seconds(fields, "Since"),
        until=_seconds(fields, "Until"),
        limit=int(limit),
    )


def _seconds(fields: Mapping[str, str], name: str) -> float | None:
    text = fields.get(name.lower(), "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise RequestRefused(f"{name}: expected seconds since 1970")
    return seconds


def as_dict(entry: Entry) -> dict[str, Any]:
    """Return an entry as types that JSON has; the timeline is empty in the results of a search."""
    return {
        **{one.name: getattr(entry, one.name) for one in dataclasses.fields(entry)},
        "totals": dict(entry.totals),
        "timeline": [moment._asdict() for moment in entry.timeline],
    }
