"""The file of the history: what is written and removed, in SQL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audiofork.errors import HistoryUnavailable
from audiofork.forks import history_forgetting, history_search
from audiofork.forks.history_entries import (
    COLUMNS,
    REFUSED,
    Cause,
    Entry,
    HistoryQuery,
    row_of,
    timeline_row,
)
from audiofork.forks.history_forgetting import Forgotten
from audiofork.forks.masking import MASK, digits_of
from audiofork.forks.sqlite_file import Damaged, SqliteFile, check_kind, telling_damage
from audiofork.forks.timelines import Moment
from audiofork.text import reason_of

_LOCKED_S = 0.5  # how long to wait for a daemon that has the file
_CACHE_KIB = 8192
FORGET_S = 240.0  # the longest that forgetting a caller may take
STEP_ROWS = 200  # removed in one transaction
_MERGE_PAGES = 300  # of the index of words, in one step

_SEARCHED = ("channel", "caller_number", "caller_name", "url", "detail", "texts")
_TYPES = {
    **dict.fromkeys(("sample_rate", "failed"), "INTEGER"),
    **dict.fromkeys(("requested_at", "started_at", "ended_at"), "REAL"),
    "fork_id": "TEXT UNIQUE",
}
_COLUMN_LIST = ", ".join(f"{name} {_TYPES.get(name, 'TEXT')}" for name in COLUMNS)
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
        give_up: Asked again and again while something is asked, whether nobody waits any more.
    """

    kind = "history"
    application_id = 0x61666873  # "afhs"
    version = 1
    schema = (
        f"CREATE TABLE forks (number INTEGER PRIMARY KEY, {_COLUMN_LIST})",
        "CREATE INDEX by_time ON forks (ended_at)",
        "CREATE INDEX failures ON forks (ended_at, reason, cause) WHERE failed = 1",
        *(f"CREATE INDEX by_{name} ON forks ({name}, ended_at)" for name in history_search.INDEXED),
        f"CREATE VIRTUAL TABLE words USING fts5 ({_WORDS}, content = 'forks',"
        " content_rowid = 'number', columnsize = 0)",
    )
    checkpoint_pages = 1000

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._merging = self._to_wipe = False
        # Whether no word of what was forgotten is in the index; an earlier run may have been broken
        # off before it was.
        self._is_clean = False
        self.give_up: Callable[[], bool] = history_search.never
        try:
            with telling_damage():
                self.db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
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

    def forget(self, number: str) -> Forgotten:
        """Remove all entries of a caller, and blank the number where other calls mention it.

        See history_forgetting. Nothing of it is left in the file afterwards, as far as it is found.

        Returns:
            How many entries were removed, and in how many others the number was blanked.

        Raises:
            HistoryUnavailable: It takes too long, or was given up; it is done in part.
        """
        digits = digits_of(number)
        if not digits or MASK in number:
            return Forgotten(0, 0)
        try:
            with history_search.in_time(self.db, FORGET_S, self.give_up), telling_damage():
                return self._forget(digits)
        except HistoryUnavailable as exc:
            raise HistoryUnavailable("it was broken off, and is done in part: ask again") from exc

    def _forget(self, digits: str) -> Forgotten:
        numbers = self._numbers("caller_key = ?", digits)
        self._is_clean = self._is_clean and not numbers
        for begin in range(0, len(numbers), STEP_ROWS):
            self._remove(numbers[begin : begin + STEP_ROWS])
        blanked = self._change(history_forgetting.mentions(self.db, digits))
        if not self._is_clean:
            self.db.execute("INSERT INTO words (words) VALUES ('optimize')")
            self.wipe()
            self._is_clean = True
        return Forgotten(len(numbers), blanked)

    def _change(self, changes: Iterable[history_forgetting.Change]) -> int:
        """Give entries other values of some columns; return how many."""
        count = 0
        for number, values in changes:
            self._is_clean = False
            columns = ", ".join(f"{name} = ?" for name in values)
            with self.transaction():
                self.db.execute(_FORGET_WORDS, (number,))
                changed = f"UPDATE forks SET {columns} WHERE number = ?"
                self.db.execute(changed, (*values.values(), number))
                self.db.execute(_INDEX_WORDS, (number,))
            count += 1
        return count

    # --- Asking ---

    def search(self, query: HistoryQuery) -> tuple[list[Entry], str]:
        """See history_search."""
        return history_search.search(self.db, query, self.give_up)

    def entry(self, fork_id: str) -> Entry | None:
        """See history_search."""
        return history_search.entry(self.db, fork_id)

    def causes(self, since: float) -> list[Cause]:
        """See history_search."""
        return history_search.causes(self.db, since, self.give_up)


def forget(
    path: Path, number: str, give_up: Callable[[], bool] = history_search.never
) -> Forgotten:
    """Remove a caller from the file of a daemon that does not run; see HistoryFile.forget.

    Raises:
        HistoryUnavailable: It is not there, is no history, may not be changed, or is in use; or it
            was given up, and is done in part.
    """
    with reading(path):  # else a file that is none would be made one
        pass
    try:
        with contextlib.closing(HistoryFile(path)) as file:
            file.give_up = give_up
            return file.forget(number)
    except (Damaged, OSError, sqlite3.Error) as exc:
        text = f"the history {path} cannot be changed: {reason_of(exc)}"
        raise HistoryUnavailable(text) from exc


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
    except sqlite3.Error as exc:
        db.close()
        if not isinstance(exc, sqlite3.OperationalError):
            raise
        unclosed = False
        with contextlib.suppress(FileNotFoundError):
            unclosed = path.with_name(path.name + "-wal").stat().st_size > 0
        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or unclosed:
            raise
        return sqlite3.connect(f"{uri}&immutable=1", uri=True)
    return db
