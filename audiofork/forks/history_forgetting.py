"""Finds where other calls mention the number of a caller who is to be forgotten.

Only texts that come from a call are looked at: names, channels, and what servers have said. Our own
words, which have sample rates, ports and times, are left, and so are URLs and ids: digits in them
are nobody's number as far as anybody can know.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from audiofork.errors import HistoryUnavailable
from audiofork.forks.history_entries import timeline_of, timeline_row
from audiofork.forks.masking import LEAST_IN_TEXT, Blanking, endpoint_of
from audiofork.forks.timelines import Moment

# Who says the text of these: a server.
_OF_SERVERS = ("message", "command")

Change = tuple[int, dict[str, str]]
"""The number of an entry, and the other values of some of its columns."""


class Forgotten(NamedTuple):
    """What was done to forget a caller.

    Attributes:
        removed: How many entries were removed: those of the caller.
        blanked: In how many others the number was blanked, because they mention it.
    """

    removed: int
    blanked: int


def mentions(db: sqlite3.Connection, digits: str) -> Iterator[Change]:
    """Yield how the entries of others are to be changed that mention a number.

    Args:
        db: The file; what is yielded may be changed before the next.
        digits: The number's digits; of fewer than LEAST_IN_TEXT nothing is a mention.
    """
    if len(digits) < LEAST_IN_TEXT:
        return
    blanking = Blanking(digits)
    for number in _candidates(db, digits):
        columns = "channel, caller_name, detail, moments, texts"
        row = db.execute(f"SELECT {columns} FROM forks WHERE number = ?", (number,)).fetchone()
        if row is not None and (values := _changed(blanking, *row)):
            yield number, values


def _candidates(db: sqlite3.Connection, digits: str) -> list[int]:
    """Return which entries may mention it; the texts of most are our own, and left out."""
    words = f'("{digits}" OR "00{digits}")'
    of_servers = " OR ".join(f"instr(moments, '\"{kind}\"')" for kind in _OF_SERVERS)
    found = db.execute(
        "SELECT rowid FROM words WHERE words MATCH ?"
        " UNION SELECT words.rowid FROM words CROSS JOIN forks ON forks.number = words.rowid"
        f" WHERE words MATCH ? AND ({of_servers}) AND forks.caller_key != ?",
        (f"{{channel caller_name}} : {words}", f"texts : {words}", digits),
    )
    return [number for (number,) in found]


def _changed(
    blanking: Blanking, channel: str, name: str, detail: str, moments: str, texts: str
) -> dict[str, Any]:
    """Return the columns that change, with their values."""
    blank = blanking.of_channel(channel)

    def of_moment(moment: Moment) -> Moment:
        text = of_ours(moment.text)
        if moment.kind == "message":
            text = blanking.of(text)
        elif moment.kind == "command":  # what it asked for, such as a transfer; then our answer
            asked, colon, answer = text.partition(": ")
            text = blanking.of(asked) + colon + answer
        return moment._replace(text=text)

    def of_ours(text: str) -> str:
        """Blank the channel alone: our own words may name it."""
        return text.replace(channel, blank) if blank != channel else text

    try:
        timeline = timeline_of(moments, texts)
    except (TypeError, ValueError) as exc:
        raise HistoryUnavailable("an entry cannot be read") from exc
    before = {
        **{"channel": channel, "endpoint": endpoint_of(channel), "caller_name": name},
        **{"detail": detail, "texts": texts},
    }
    after = {
        **{"channel": blank, "endpoint": endpoint_of(blank), "caller_name": blanking.of(name)},
        **{
            "detail": of_ours(detail),
            "texts": timeline_row([of_moment(one) for one in timeline])[1],
        },
    }
    return {column: text for column, text in after.items() if text != before[column]}
