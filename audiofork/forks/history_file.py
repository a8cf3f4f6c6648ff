"""The file of the history: what is written, found and removed, in SQL."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audiofork.errors import HistoryUnavailable
from audiofork.forks.history_entries import (
    COLUMNS,
    MOST_ENTRIES,
    PLAIN,
    REFUSED,
    Cause,
    Entry,
    HistoryQuery,
    entry_of,
    row_of,
    timeline_row,
)
from audiofork.forks.masking import LEAST_IN_TEXT, MASK, digits_of, endpoint_of, key_of
from audiofork.forks.sqlite_file import Damaged, SqliteFile, check_kind, telling_damage
from audiofork.forks.timelines import Moment

MOST_CAUSES = 100
ANSWER_S = 3.0  # the longest that a search may take: writes wait meanwhile
_LOOK_AT_CLOCK = 10_000  # steps of SQLite's machine between two looks
_LOCKED_S = 0.5  # how long to wait for a daemon that has the file
STEP_ROWS = 200  # removed in one transaction
_MERGE_PAGES = 300  # of the index of words, in one step

_SEARCHED = ("channel", "caller_number", "caller_name", "url", "detail", "texts")
_LISTED = ", ".join(f"forks.{name}" for name in (*PLAIN, "totals"))
_WHOLE = f"{_LISTED}, forks.moments, forks.texts"
_TYPES = {
    **dict.fromkeys(("sample_rate", "failed"), "INTEGER"),
    **dict.fromkeys(("requested_at", "started_at", "ended_at"), "REAL"),
    "fork_id": "TEXT UNIQUE",
}
_COLUMN_LIST = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in COLUMNS)
# Each is followed by the time, so that the newest come first without sorting. In the order of how
# few entries one usually has: only the first of those that a query names is used.
_INDEXED = ("uniqueid", "endpoint", "caller_key", "host", "reason")
_INSERT = (
    f"INSERT INTO forks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    " ON CONFLICT (fork_id) DO NOTHING"
)
_WORDS = ", ".join(_SEARCHED)
_INDEX_WORDS = (
    f"INSERT INTO words (rowid, {_WORDS}) SELECT number, {_WORDS} FROM forks WHERE number = ?"
)
_FORGET_WORDS = (
    f"INSERT INTO words (words, rowid, {_WORDS})"
    f" SELECT 'delete', number, {_WORDS} FROM forks WHERE number = ?"
)


class HistoryFile(SqliteFile):
    """The file, open and locked; see SqliteFile.

    Attributes:
        rows: How many entries it has; refused: how many of these are of refused starts.
    """

    kind = "history"
    application_id = 0x61666873  # "afhs"
    version = 1
    schema = (
        f"CREATE TABLE forks (number INTEGER PRIMARY KEY, {_COLUMN_LIST})",
        "CREATE INDEX by_time ON forks (ended_at)",
        "CREATE INDEX failures ON forks (ended_at, reason, cause) WHERE failed = 1",
        *(f"CREATE INDEX by_{name} ON forks ({name}, ended_at)" for name in _INDEXED),
        f"CREATE VIRTUAL TABLE words USING fts5 ({_WORDS}, content = 'forks',"
        " content_rowid = 'number', columnsize = 0)",
    )
    checkpoint_pages = 1000

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._merging = self._to_wipe = False
        try:
            with telling_damage():
                self.rows = self._count("SELECT count(*) FROM forks")
                self.refused = self._count("SELECT count(*) FROM forks WHERE reason = ?", REFUSED)
        except BaseException:
            self.close()
            raise

    def _count(self, statement: str, *values: Any) -> int:
        return int(self.db.execute(statement, values).fetchone()[0])

    # --- Writing ---

    def write(self, works: Iterable[Entry | tuple[str, Sequence[Moment]]]) -> None:
        """Write entries, and newer timelines of entries by their ids, in one transaction.

        An entry that is there already stays: a daemon that was killed just then has written it.
        """
        rows, refused = self.rows, self.refused
        with telling_damage(), self.transaction():
            for work in works:
                if not isinstance(work, Entry):
                    self._write_timeline(*work)
                elif self._write_entry(work):
                    rows += 1
                    refused += work.reason == REFUSED
        self.rows, self.refused = rows, refused

    def _write_entry(self, entry: Entry) -> bool:
        done = self.db.execute(_INSERT, row_of(entry))
        if done.rowcount > 0:
            self.db.execute(_INDEX_WORDS, (done.lastrowid,))
        return done.rowcount > 0

    def _write_timeline(self, fork_id: str, timeline: Sequence[Moment]) -> None:
        found = self.db.execute("SELECT number FROM forks WHERE fork_id = ?", (fork_id,)).fetchone()
        if found is not None:
            self.db.execute(_FORGET_WORDS, found)
            self.db.execute(
                "UPDATE forks SET moments = ?, texts = ? WHERE number = ?",
                (*timeline_row(timeline), *found),
            )
            self.db.execute(_INDEX_WORDS, found)

    # --- Removing ---

    def remove_some(self, before: float, max_rows: int) -> bool:
        """Remove up to STEP_ROWS entries that are too old, or too many; return whether any was.

        Refused starts may be a tenth of all: a flood of them must not drive out all that happened.

        Args:
            before: Those that ended earlier are too old.
            max_rows: How many may stay.
        """
        oldest = "ORDER BY ended_at LIMIT ?"
        with telling_damage():
            numbers = self._numbers(f"ended_at < ? {oldest}", before, STEP_ROWS)
            if not numbers and (more := self.rows - max_rows) > 0:
                numbers = self._numbers(f"1 {oldest}", min(more, STEP_ROWS))
            if not numbers and (more := self.refused - max(max_rows // 10, 1)) > 0:
                numbers = self._numbers(f"reason = ? {oldest}", REFUSED, min(more, STEP_ROWS))
            self._remove(numbers)
            if self._to_wipe and not numbers:
                self.wipe()
            self._to_wipe = bool(numbers)
        return bool(numbers)

    def _numbers(self, condition: str, *values: Any) -> list[int]:
        found = self.db.execute(f"SELECT number FROM forks WHERE {condition}", values)
        return [number for (number,) in found]

    def _remove(self, numbers: Sequence[int]) -> None:
        refused = 0
        with self.transaction():
            for number in numbers:
                is_refused = "SELECT reason = ? FROM forks WHERE number = ?"
                refused += self._count(is_refused, REFUSED, number)
                self.db.execute(_FORGET_WORDS, (number,))
                self.db.execute("DELETE FROM forks WHERE number = ?", (number,))
        self.rows -= len(numbers)
        self.refused -= refused

    def merge(self) -> bool:
        """Do a step of removing the words of removed entries; return whether there is more to do.

        They only get a mark in the index until its parts are merged.
        """
        with telling_damage(), self.transaction():
            before = self.db.total_changes
            pages = _MERGE_PAGES if self._merging else -_MERGE_PAGES
            self.db.execute("INSERT INTO words (words, rank) VALUES ('merge', ?)", (pages,))
            self._merging = self.db.total_changes - before > 1
        return self._merging

    def forget(self, number: str) -> int:
        """Remove all entries with a caller's number, so that nothing of them is left in the file.

        Returns:
            How many entries there were: those of that caller, and others that mention the number.
        """
        with telling_damage():
            numbers = self._with_number(number)
            for begin in range(0, len(numbers), STEP_ROWS):
                self._remove(numbers[begin : begin + STEP_ROWS])
            if numbers:
                self.db.execute("INSERT INTO words (words) VALUES ('optimize')")
                self.wipe()
        return len(numbers)

    def _with_number(self, number: str) -> list[int]:
        digits = digits_of(number)
        if not digits or MASK in number:
            return []
        found = set(self._numbers("caller_key = ?", digits))
        if len(digits) >= LEAST_IN_TEXT:
            mention = f'"{digits}" OR "00{digits}"'
            rows = self.db.execute("SELECT rowid FROM words WHERE words MATCH ?", (mention,))
            found.update(number for (number,) in rows)
        return sorted(found)

    # --- Asking ---

    def search(self, query: HistoryQuery) -> tuple[list[Entry], str]:
        """See `search`."""
        return search(self.db, query)

    def entry(self, fork_id: str) -> Entry | None:
        """See `entry`."""
        return entry(self.db, fork_id)

    def causes(self, since: float) -> list[Cause]:
        """See `causes`."""
        return causes(self.db, since)


# --- Questions, to any connection ----------------------------------------------------------------


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file of a daemon that does not run, to read it only.

    Raises:
        HistoryUnavailable: It is not there, is no history, may not be read, or is in use.
    """
    try:
        path.lstat()  # else SQLite's own words would not say what is wrong
        with contextlib.closing(_to_read(path)) as db, telling_damage():
            check_kind(db, HistoryFile)
            yield db
    except OSError as exc:
        raise HistoryUnavailable(f"the history {path} cannot be read: {exc.strerror}") from exc
    except (Damaged, sqlite3.Error) as exc:
        raise HistoryUnavailable(f"the history {path} cannot be read: {exc}") from exc


def _to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads, also for a user who may not write beside the file."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, timeout=_LOCKED_S)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema")
    except sqlite3.OperationalError as exc:
        db.close()
        unclosed = path.with_name(path.name + "-wal").exists()
        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or unclosed:
            raise
        return sqlite3.connect(f"{uri}&immutable=1", uri=True)
    return db


def search(db: sqlite3.Connection, query: HistoryQuery) -> tuple[list[Entry], str]:
    """Return the entries that fit a query, newest first, and the cursor of the next page.

    Raises:
        ValueError: The cursor is none of ours.
        HistoryUnavailable: It takes too long.
    """
    limit = min(max(query.limit, 1), MOST_ENTRIES)
    conditions, values = _conditions(query)
    match = _match(query)
    with _in_time(db), telling_damage():
        if match:
            source = "words CROSS JOIN forks ON forks.number = words.rowid"
            order = "words.rowid DESC"
            _limit_numbers(db, query, conditions, values)
            conditions.insert(0, "words MATCH ?")
            values.insert(0, match)
        else:
            source, order = "forks", "forks.ended_at DESC, forks.number DESC"
        where = " AND ".join(conditions) or "1"
        rows = db.execute(
            f"SELECT {_LISTED}, forks.number FROM {source} WHERE {where} ORDER BY {order} LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
    entries = [entry_of(row[:-1]) for row in rows[:limit]]
    more = len(rows) > limit
    return entries, f"{entries[-1].ended_at!r}-{rows[limit - 1][-1]}" if more else ""


def entry(db: sqlite3.Connection, fork_id: str) -> Entry | None:
    """Return the entry with an id, with its timeline; None if there is none.

    The first eight characters of an id are enough, if no other begins with them.
    """
    with telling_damage():
        rows = db.execute(
            f"SELECT {_WHOLE} FROM forks WHERE fork_id >= ? AND fork_id < ? LIMIT 2",
            (fork_id, fork_id + "g"),
        ).fetchall()
    return entry_of(rows[0]) if len(rows) == 1 and len(fork_id) >= 8 else None


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


def _conditions(query: HistoryQuery) -> tuple[list[str], list[Any]]:
    """Return the conditions of a query but for its words, and their values."""
    conditions: list[str] = []
    values: list[Any] = []
    exact = _exact(query)
    indexed = "" if _match(query) else next((name for name in _INDEXED if name in exact), "")
    for name, value in exact.items():
        conditions.append(f"{'' if name == indexed else '+'}forks.{name} = ?")
        values.append(value)
    if query.failed is not None:
        conditions.append(f"forks.failed = {int(query.failed)}")
    time_free = "+" if _match(query) else ""
    for sign, at in ((">=", query.since), ("<", query.until)):
        if at is not None:
            conditions.append(f"{time_free}forks.ended_at {sign} ?")
            values.append(at)
    if query.cursor:
        ended_at, number = _position(query.cursor)
        if _match(query):
            conditions.append("words.rowid < ?")
            values.append(number)
        else:
            conditions.append("(forks.ended_at, forks.number) < (?, ?)")
            values += [ended_at, number]
    return conditions, values


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
    return re.fullmatch(r"[\d*#+() ./-]*[\d*][\d*#+() ./-]*", caller) is not None


def _match(query: HistoryQuery) -> str:
    """Return what the index of words is asked for; empty: nothing."""
    parts = [f"{{caller_number caller_name}}: {one}" for one in _phrases(query.caller)]
    if not query.caller or _is_number(query.caller):
        parts = []
    return " AND ".join([*parts, *_phrases(query.text)])


def _phrases(text: str) -> list[str]:
    """Return each word of a text as the beginning of one, so that nothing in it is an operator."""
    return [
        f'"{word.replace(chr(34), "")}"*' for word in text.split() if re.search(r"[^\W_]", word)
    ]


def _limit_numbers(
    db: sqlite3.Connection, query: HistoryQuery, conditions: list[str], values: list[Any]
) -> None:
    """Add which numbers entries of the time may have: the index of words knows no times."""
    for what, compare, sign, at in (
        ("min", ">=", ">=", query.since),
        ("max", "<", "<=", query.until),
    ):
        if at is not None:
            found = db.execute(
                f"SELECT {what}(number) FROM forks INDEXED BY by_time WHERE ended_at {compare} ?",
                (at,),
            )
            conditions.append(f"words.rowid {sign} ?")
            values.append(found.fetchone()[0])  # None if there is none: then no entry fits


def _position(cursor: str) -> tuple[float, int]:
    ended_at, dash, number = cursor.rpartition("-")
    try:
        return float(ended_at), int(number)
    except ValueError:
        raise ValueError("cursor: expected one of an earlier answer") from None
