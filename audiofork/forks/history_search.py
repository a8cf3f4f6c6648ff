"""Searches the history, in SQL."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from audiofork.errors import HistoryUnavailable
from audiofork.forks.history_entries import (
    MOST_ENTRIES,
    PLAIN,
    Cause,
    Entry,
    HistoryQuery,
    entry_of,
)
from audiofork.forks.masking import endpoint_of, key_of
from audiofork.forks.sqlite_file import telling_damage

MOST_CAUSES = 100
ANSWER_S = 3.0  # the longest that a search may take: writes wait meanwhile
_LOOK_AT_CLOCK = 10_000  # steps of SQLite's machine between two looks
LEAST_ID = 8  # characters of an id that are enough
# If a channel, say, has no more entries, they are looked at; else those that have the words.
_FEW = 5000

# Each has an index that the time follows in, so that the newest come first without sorting; in the
# order of how few entries one usually leaves: only the index of the first is used.
INDEXED = ("uniqueid", "endpoint", "caller_key", "host", "reason")
_LISTED = ", ".join(f"forks.{name}" for name in (*PLAIN, "totals"))
_WHOLE = f"{_LISTED}, forks.moments, forks.texts"

_Conditions = list[tuple[str, tuple[Any, ...]]]
"""Conditions, each with the values of its question marks."""


def search(db: sqlite3.Connection, query: HistoryQuery) -> tuple[list[Entry], str]:
    """Return the entries that fit a query, newest first, and the cursor of the next page.

    Raises:
        ValueError: The cursor is none of ours.
        HistoryUnavailable: It takes too long.
    """
    limit = min(max(query.limit, 1), MOST_ENTRIES)
    with _in_time(db), telling_damage():
        source, conditions, order = _plan(db, query)
        where = " AND ".join(condition for condition, _ in conditions) or "1"
        rows = db.execute(
            f"SELECT {_LISTED}, forks.number FROM {source} WHERE {where} ORDER BY {order} LIMIT ?",
            (*(value for _, values in conditions for value in values), limit + 1),
        ).fetchall()
    entries = [entry_of(row[:-1]) for row in rows[:limit]]
    more = len(rows) > limit
    return entries, f"{entries[-1].ended_at!r}-{rows[limit - 1][-1]}" if more else ""


def entry(db: sqlite3.Connection, fork_id: str) -> Entry | None:
    """Return the entry with an id, with its timeline; None if there is none.

    The first LEAST_ID characters of an id are enough, if no other begins with them.
    """
    with telling_damage():
        rows = db.execute(
            f"SELECT {_WHOLE} FROM forks WHERE fork_id >= ? AND fork_id < ? LIMIT 2",
            (fork_id, fork_id + "g"),  # no id has a letter beyond f
        ).fetchall()
    return entry_of(rows[0]) if len(rows) == 1 and len(fork_id) >= LEAST_ID else None


def causes(db: sqlite3.Connection, since: float) -> list[Cause]:
    """Return the causes of failures since a time, the most frequent first.

    Raises:
        HistoryUnavailable: It takes too long.
    """
    with _in_time(db), telling_damage():
        rows = db.execute(
            "SELECT reason, cause, count(*), max(ended_at), number FROM forks"
            " WHERE failed = 1 AND ended_at >= ? GROUP BY reason, cause"
            " ORDER BY count(*) DESC, max(ended_at) DESC LIMIT ?",
            (since, MOST_CAUSES),
        ).fetchall()
        return [
            Cause(reason, detail, count, latest_at, _id_of(db, number))
            for reason, detail, count, latest_at, number in rows
        ]


def _id_of(db: sqlite3.Connection, number: int) -> str:
    return str(db.execute("SELECT fork_id FROM forks WHERE number = ?", (number,)).fetchone()[0])


@contextlib.contextmanager
def _in_time(db: sqlite3.Connection) -> Iterator[None]:
    """Give up after ANSWER_S."""
    deadline = time.monotonic() + ANSWER_S
    db.set_progress_handler(lambda: time.monotonic() > deadline, _LOOK_AT_CLOCK)
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        text = f"the search takes longer than {ANSWER_S:g} s: give it a shorter time"
        raise HistoryUnavailable(text) from exc
    finally:
        db.set_progress_handler(None, 0)


# --- The plan of a search ------------------------------------------------------------------------


def _plan(db: sqlite3.Connection, query: HistoryQuery) -> tuple[str, _Conditions, str]:
    """Return what to search, the conditions, and the order."""
    words, exact = _words(query), _exact(query)
    indexed = next((name for name in INDEXED if name in exact), "")
    conditions = _plain(query, indexed)
    if words:
        few = _numbers_of(db, _exact_conditions(exact, indexed)) if indexed else None
        if few is None:
            return _by_words(db, query, words)
        # Only where they are, for the words may be in all entries.
        of_words = "SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ?"
        conditions.append((f"forks.number IN ({of_words})", (words, *few)))
    if query.cursor:
        conditions.append(("(forks.ended_at, forks.number) < (?, ?)", _position(query.cursor)))
    return "forks", conditions, "forks.ended_at DESC, forks.number DESC"


def _numbers_of(db: sqlite3.Connection, conditions: _Conditions) -> tuple[int, int] | None:
    """Return the lowest and the highest number that fits; None if there are more than a few."""
    where = " AND ".join(condition for condition, _ in conditions)
    values = [value for _, values in conditions for value in values]
    of_few = f"SELECT number FROM forks WHERE {where} LIMIT ?"
    counted = f"SELECT min(number), max(number), count(*) FROM ({of_few})"
    lowest, highest, count = db.execute(counted, (*values, _FEW)).fetchone()
    return (lowest, highest) if count < _FEW else None


def _by_words(
    db: sqlite3.Connection, query: HistoryQuery, words: str
) -> tuple[str, _Conditions, str]:
    conditions = [("words MATCH ?", (words,)), *_plain(query, "words"), *_numbers(db, query)]
    if query.cursor:
        conditions.append(("words.rowid < ?", _position(query.cursor)[1:]))
    return "words CROSS JOIN forks ON forks.number = words.rowid", conditions, "words.rowid DESC"


def _plain(query: HistoryQuery, indexed: str) -> _Conditions:
    """Return the conditions but for words.

    Args:
        query: The query.
        indexed: The column whose index leaves the fewest entries; a + keeps SQLite from using that
            of another. Empty: the index of times is used; `words`: none of these.
    """
    conditions = _exact_conditions(_exact(query), indexed)
    if query.failed is not None:
        conditions.append((f"forks.failed = {int(query.failed)}", ()))
    ended_at = "+forks.ended_at" if indexed == "words" else "forks.ended_at"
    if query.since is not None:
        conditions.append((f"{ended_at} >= ?", (query.since,)))
    if query.until is not None:
        conditions.append((f"{ended_at} < ?", (query.until,)))
    return conditions


def _exact_conditions(exact: dict[str, str], indexed: str) -> _Conditions:
    return [
        (f"{'' if name == indexed else '+'}forks.{name} = ?", (value,))
        for name, value in exact.items()
    ]


def _numbers(db: sqlite3.Connection, query: HistoryQuery) -> _Conditions:
    """Return which numbers entries of the time have: the index of words knows no times."""
    times = (
        ("min(number)", "ended_at >= ?", "words.rowid >= ?", query.since),
        ("max(number)", "ended_at < ?", "words.rowid <= ?", query.until),
    )
    conditions: _Conditions = []
    for number, of_time, of_number, at in times:
        if at is not None:
            asked = f"SELECT {number} FROM forks INDEXED BY by_time WHERE {of_time}"
            # NULL if there is none: then no entry fits.
            conditions.append((of_number, db.execute(asked, (at,)).fetchone()))
    return conditions


def _exact(query: HistoryQuery) -> dict[str, str]:
    """Return the columns that must have a value, and which."""
    exact: dict[str, str] = {}
    if query.channel and "/" not in query.channel:
        exact["uniqueid"] = query.channel
    elif query.channel:
        exact["endpoint"] = endpoint_of(query.channel)
        if exact["endpoint"] != query.channel:
            exact["channel"] = query.channel
    if _is_number(query.caller):
        exact["caller_key"] = key_of(query.caller)
    if query.host:
        exact["host"] = query.host.lower()
    if query.reason:
        exact["reason"] = query.reason
    return exact


def _is_number(caller: str) -> bool:
    return re.fullmatch(r"[*#+() ./-]*[\d*][\d*#+() ./-]*", caller) is not None


def _words(query: HistoryQuery) -> str:
    """Return what the index of words is asked for; empty: nothing."""
    caller = "" if _is_number(query.caller) else query.caller
    of_caller = [f"{{caller_number caller_name}}: {one}" for one in _phrases(caller)]
    return " AND ".join([*of_caller, *_phrases(query.text)])


def _phrases(text: str) -> list[str]:
    """Return each word of a text, quoted so that nothing in it is an operator.

    It stands for all words that begin with it; but a single letter, which many do, for itself.
    """
    words = (word.replace('"', "") for word in text.split() if re.search(r"[^\W_]", word))
    return [f'"{word}"{"*" if len(word) > 1 else ""}' for word in words]


def _position(cursor: str) -> tuple[float, int]:
    """Return the time and the number of the last entry of a page."""
    ended_at, _, number = cursor.rpartition("-")
    try:
        return float(ended_at), int(number)
    except ValueError:
        raise ValueError("expected one of an earlier answer") from None
