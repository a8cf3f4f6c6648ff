"""Searches the history, in SQL."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from audiofork.text import printable

MOST_CAUSES = 100
ANSWER_S = 3.0  # the longest that a search may take: writes wait meanwhile
_LOOK_AT_CLOCK = 10_000  # steps of SQLite's machine between two looks
LEAST_ID = 8  # characters of an id that are enough
# If a channel, say, has no more entries, they are looked at; else those that have the words.
_FEW = 5000
# Entries in the stretches of time that are searched for words: the first, and how the others grow.
_FIRST_STRETCH = 2000
_LONGER = 8
_FEW_WORDS = 2000  # entries that have the words and need no stretches
# As `search` writes it: repr of a time, and a number.
_CURSOR = re.compile(r"([0-9]{1,16}\.[0-9]{1,24})-([0-9]{1,19})")
_AFTER_ALL = 1e18  # a time
_LARGEST = 2**63 - 1  # that SQLite takes

# Each has an index that the time follows in, so that the newest come first without sorting; in the
# order of how few entries one usually leaves: only the index of the first is used.
INDEXED = ("uniqueid", "endpoint", "caller_key", "host", "reason")
_LISTED = ", ".join(f"forks.{name}" for name in (*PLAIN, "totals"))
_WHOLE = f"{_LISTED}, forks.moments, forks.texts"

_Conditions = list[tuple[str, tuple[Any, ...]]]
"""Conditions, each with the values of its question marks."""


def never() -> bool:
    """Return False: what is asked is not given up before its time is over."""
    return False


def search(
    db: sqlite3.Connection, query: HistoryQuery, give_up: Callable[[], bool] = never
) -> tuple[list[Entry], str]:
    """Return the entries that fit a query, newest first, and the cursor of the next page.

    Args:
        db: The file.
        query: The query.
        give_up: Asked again and again, whether nobody waits for the answer any more.

    Raises:
        ValueError: The cursor is none of ours.
        HistoryUnavailable: It takes too long, or was given up.
    """
    limit = min(max(query.limit, 1), MOST_ENTRIES)
    rows: list[Any] = []
    with in_time(db, ANSWER_S, give_up), telling_damage():
        for source, conditions in _plans(db, _harmless(query)):
            where = " AND ".join(condition for condition, _ in conditions) or "1"
            rows += db.execute(
                f"SELECT {_LISTED}, forks.number FROM {source} WHERE {where}"
                " ORDER BY forks.ended_at DESC, forks.number DESC LIMIT ?",
                (*_values(conditions), limit + 1 - len(rows)),
            ).fetchall()
            if len(rows) > limit:
                break
    entries = [entry_of(row[:-1]) for row in rows[:limit]]
    more = len(rows) > limit
    return entries, f"{entries[-1].ended_at!r}-{rows[limit - 1][-1]}" if more else ""


def entry(db: sqlite3.Connection, fork_id: str) -> Entry | None:
    """Return the entry with an id, with its timeline; None if there is none.

    The first LEAST_ID characters of an id are enough, if no other begins with them.
    """
    fork_id = printable(fork_id, "?")
    with telling_damage():
        rows = db.execute(
            f"SELECT {_WHOLE} FROM forks WHERE fork_id >= ? AND fork_id < ? LIMIT 2",
            (fork_id, fork_id + "g"),  # no id has a letter beyond f
        ).fetchall()
    return entry_of(rows[0]) if len(rows) == 1 and len(fork_id) >= LEAST_ID else None


def causes(
    db: sqlite3.Connection, since: float, give_up: Callable[[], bool] = never
) -> list[Cause]:
    """Return the causes of failures since a time, the most frequent first; see `search`.

    Raises:
        HistoryUnavailable: It takes too long, or was given up.
    """
    with in_time(db, ANSWER_S, give_up), telling_damage():
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
def in_time(
    db: sqlite3.Connection, limit_s: float, give_up: Callable[[], bool] = never
) -> Iterator[None]:
    """Give up after some seconds, or when `give_up` says so.

    Raises:
        HistoryUnavailable: It was given up.
    """
    deadline = time.monotonic() + limit_s
    db.set_progress_handler(lambda: time.monotonic() > deadline or give_up(), _LOOK_AT_CLOCK)
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        text = f"the search takes longer than {limit_s:g} s: give it a shorter time"
        raise HistoryUnavailable("the search was given up" if give_up() else text) from exc
    finally:
        db.set_progress_handler(None, 0)


def _harmless(query: HistoryQuery) -> HistoryQuery:
    """Return a query with texts that SQLite takes, and that are as entries have them."""
    return replace(
        query,
        channel=printable(query.channel, "?"),
        caller=printable(query.caller, "?"),
        host=printable(query.host, "?"),
        reason=printable(query.reason, "?"),
        text=printable(query.text, " "),
    )


def _values(conditions: _Conditions) -> list[Any]:
    return [value for _, values in conditions for value in values]


# --- The plan of a search ------------------------------------------------------------------------


def _plans(db: sqlite3.Connection, query: HistoryQuery) -> Iterator[tuple[str, _Conditions]]:
    """Yield what to search, and the conditions: one after the other, until there is enough."""
    words, exact = _words(query), _exact(query)
    indexed = next((name for name in INDEXED if name in exact), "")
    conditions = _plain(query, indexed)
    if words:
        few = _numbers_of(db, _exact_conditions(exact, indexed)) if indexed else None
        if few is None:
            yield from _by_words(db, query, words)
            return
        # Only where they are, for the words may be in all entries.
        of_words = "SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ?"
        conditions.append((f"forks.number IN ({of_words})", (words, *few)))
    yield "forks", [*conditions, *_after(query)]


def _after(query: HistoryQuery) -> _Conditions:
    """Return the condition of a query's cursor."""
    if not query.cursor:
        return []
    return [("(forks.ended_at, forks.number) < (?, ?)", _position(query.cursor))]


def _numbers_of(db: sqlite3.Connection, conditions: _Conditions) -> tuple[int, int] | None:
    """Return the lowest and the highest number that fits; None if there are more than a few."""
    where = " AND ".join(condition for condition, _ in conditions)
    values = _values(conditions)
    of_few = f"SELECT number FROM forks WHERE {where} LIMIT ?"
    counted = f"SELECT min(number), max(number), count(*) FROM ({of_few})"
    lowest, highest, count = db.execute(counted, (*values, _FEW)).fetchone()
    return (lowest, highest) if count < _FEW else None


def _by_words(
    db: sqlite3.Connection, query: HistoryQuery, words: str
) -> Iterator[tuple[str, _Conditions]]:
    """Yield the plans for words, of one stretch of time after the other, the latest first.

    The index of words has the order of the numbers alone. That is the order of time only as long as
    the clock was never set back, so the entries of a stretch are sorted by their time.
    """
    conditions = [("words MATCH ?", (words,)), *_plain(query, "words"), *_after(query)]
    source = "words CROSS JOIN forks ON forks.number = words.rowid"
    of_few = "SELECT rowid FROM words WHERE words MATCH ? LIMIT ?"
    counted = f"SELECT min(rowid), max(rowid), count(*) FROM ({of_few})"
    *ends, count = db.execute(counted, (words, _FEW_WORDS)).fetchone()
    if count < _FEW_WORDS:  # all can be sorted
        yield source, [*conditions, ("words.rowid BETWEEN ? AND ?", tuple(ends))]
        return
    for lowest, highest, times in _stretches(db, query):
        numbers = ("words.rowid BETWEEN ? AND ?", (lowest, highest))
        yield source, [*conditions, numbers, times]


def _stretches(
    db: sqlite3.Connection, query: HistoryQuery
) -> Iterator[tuple[int, int, tuple[str, tuple[float, float]]]]:
    """Yield the lowest and the highest number of each stretch, and the condition of its time.

    The first is short: common words are found in it. The others are ever longer, for what is rare.
    """
    since = query.since if query.since is not None else 0.0
    until = query.until if query.until is not None else _AFTER_ALL
    if query.cursor:  # others of the same moment may follow
        until = min(until, math.nextafter(_position(query.cursor)[0], math.inf))
    count = _FIRST_STRETCH
    while since < until:
        of_time = "FROM forks INDEXED BY by_time WHERE ended_at >= ? AND ended_at < ?"
        earlier = f"SELECT ended_at {of_time} ORDER BY ended_at DESC LIMIT 1 OFFSET ?"
        found = db.execute(earlier, (since, until, count)).fetchone()
        begin = found[0] if found is not None else since
        numbers = f"SELECT min(number), max(number) {of_time}"
        lowest, highest = db.execute(numbers, (begin, until)).fetchone()
        if lowest is not None:
            condition = "+forks.ended_at >= ? AND +forks.ended_at < ?"
            yield lowest, highest, (condition, (begin, until))
        if found is None:
            return
        until, count = begin, count * _LONGER


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
    found = _CURSOR.fullmatch(cursor)
    if found is None or (number := int(found[2])) > _LARGEST:
        raise ValueError("expected one of an earlier answer")
    return float(found[1]), number
