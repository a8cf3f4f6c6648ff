"""The journal: the running forks on disk, so that the next start can resume them.

It uses SQLite in WAL mode, locked by one process. Written entries survive the death of the daemon,
even by SIGKILL. The last ones may be lost if the machine crashes, but then all calls are lost too.

A disk may be slow, and audio must not wait: a separate thread reads and writes. It keeps all
entries in memory, so that it can rewrite a file that was lost, damaged or full.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import queue
import sqlite3
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Protocol

from audiofork.forks.sqlite_file import Damaged, SqliteFile, is_locked, put_aside, telling_damage
from audiofork.reading_json import parsed_json
from audiofork.text import reason_of

log = logging.getLogger(__name__)

RETRY_S = 5.0
OPEN_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
_TYPES = {"str": str, "bool": bool, "float": float, "int": int, "dict[str, str]": dict}


@dataclass(frozen=True, slots=True)
class Entry:
    """One running fork: all that is needed to start it again.

    Attributes:
        url: As requested, with its query; so only the owner may read the file.
        options: The option string as requested.
        values: Values for the post-process command, by variable.
        started: When it was requested, in seconds since 1970.
        asterisk_started: Identifies the run of Asterisk; empty if unknown.
        attempts: How many runs of the daemon in a row may have died while starting it; 0 when a
            run has survived that.
        connects: Whether its server is the other party of the call. It is not started again: it
            goes on where its relay process does.
    """

    fork_id: str
    channel: str
    uniqueid: str
    url: str
    options: str
    post_process: str
    action_id: str
    values: dict[str, str]
    mute_in: bool
    mute_out: bool
    started: float
    asterisk_started: str
    attempts: int = 0  # this and the next three are missing in files of earlier versions
    call: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    connects: bool = False


class Journal(Protocol):
    """Keeps the running forks for the next start; a fault of it never affects a fork."""

    @property
    def works(self) -> bool:
        """Whether all entries are kept, as far as known."""

    async def open(self) -> list[Entry]:
        """Return the entries that an earlier run left, oldest first."""

    def put(self, entry: Entry) -> None:
        """Keep an entry; it replaces one of the same fork. Never waits."""

    def remove(self, fork_id: str) -> None:
        """Forget the entry of a fork, if there is one; never waits."""

    async def close(self) -> None:
        """Write what waits; waits for it a second at most."""


class FileJournal:
    """Implements `Journal` by a file.

    Owned by the daemon. Faults are logged when they begin and when they end.

    Args:
        path: The file; None to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._writer = None if path is None else _Writer(path)

    @property
    def works(self) -> bool:
        """Whether the last write succeeded, so that the file has all entries as far as known."""
        return self._writer is not None and self._writer.works

    async def open(self) -> list[Entry]:
        """Open the file; return the entries that an earlier run left, oldest first.

        Returns none if the file does not open within OPEN_TIMEOUT_S.
        """
        if self._writer is None:
            return []
        self._writer.start()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await asyncio.wrap_future(self._writer.opened)
        except TimeoutError:
            log.warning(
                "the journal did not open within %g s; starting without its forks", OPEN_TIMEOUT_S
            )
            return []

    def put(self, entry: Entry) -> None:
        """Write an entry; it replaces one of the same fork. Never waits."""
        if self._writer is not None:
            self._writer.changes.put((entry.fork_id, entry))

    def remove(self, fork_id: str) -> None:
        """Remove the entry of a fork, if there is one; never waits."""
        if self._writer is not None:
            self._writer.changes.put((fork_id, None))

    async def close(self) -> None:
        """Write all waiting changes and close the file; waits at most CLOSE_TIMEOUT_S."""
        if self._writer is None or not self._writer.is_alive():
            return
        self._writer.changes.put(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.wrap_future(self._writer.closed)


class _Writer(threading.Thread):
    """The thread that reads and writes the file.

    Attributes:
        changes: Queue of pairs: a fork id, and its entry or None to remove it. None alone means:
            close.
        opened: Result: the entries found at the start.
        closed: Done when the file is closed.
        works: Whether the last write succeeded.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(name="journal", daemon=True)  # a disk that hangs must not block the exit
        self.changes: queue.SimpleQueue[tuple[str, Entry | None] | None] = queue.SimpleQueue()
        self.opened: concurrent.futures.Future[list[Entry]] = concurrent.futures.Future()
        self.closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        for future in (self.opened, self.closed):
            future.set_running_or_notify_cancel()  # so that a caller's timeout cannot cancel it
        self.works = False
        self._path = path
        self._file: _File | None = None
        self._entries: dict[str, Entry] = {}
        self._locked_out = False
        self._said = False

    def run(self) -> None:
        try:
            self._open()
            self.opened.set_result(list(self._entries.values()))
            while self._step():
                pass
        except Exception:
            log.exception("the journal failed; continuing without it")
            self.works = False
        finally:
            self._close()
            if not self.opened.done():
                self.opened.set_result([])
            self.closed.set_result(None)

    def _open(self) -> None:
        """Open the file and read the entries that an earlier run left."""
        try:
            self._file = _File(self._path)
            self._entries = {entry.fork_id: entry for entry in self._file.entries()}
            self.works = True
        except Damaged as exc:
            self._rebuild(exc)
        except (sqlite3.Error, OSError) as exc:
            self._on_fault(exc)

    def _step(self) -> bool:
        """Write all waiting changes in one transaction; return False if the end was requested."""
        changes, more = self._take_changes()
        for fork_id, entry in changes.items():
            if entry is None:
                self._entries.pop(fork_id, None)
            else:
                self._entries[fork_id] = entry
        if not self._locked_out:
            self._write(changes)
        return more

    def _take_changes(self) -> tuple[dict[str, Entry | None], bool]:
        """Wait for changes, or until it is time to retry a file that does not work.

        Returns:
            The changes by fork id, and whether the thread goes on.
        """
        changes: dict[str, Entry | None] = {}
        with contextlib.suppress(queue.Empty):
            change = self.changes.get(timeout=None if self._file else RETRY_S)
            while change is not None:
                changes[change[0]] = change[1]
                change = self.changes.get_nowait()
            return changes, False
        return changes, True

    def _write(self, changes: Mapping[str, Entry | None]) -> None:
        try:
            if self._file is None:
                self._file = _File(self._path)
                self._file.fill(self._entries)
            else:
                self._file.change(changes)
        except Damaged as exc:
            self._rebuild(exc)
        except (sqlite3.Error, OSError) as exc:
            self._on_fault(exc)
        else:
            self._on_success()

    def _rebuild(self, why: Damaged) -> None:
        """Move the file aside and write a new one."""
        self._close()
        try:
            put_aside(self._path, "journal", why)
            self._file = _File(self._path)
            self._file.fill(self._entries)
            self._on_success()
        except (Damaged, sqlite3.Error, OSError) as exc:
            self._on_fault(exc)

    def _on_fault(self, exc: Exception) -> None:
        self._close()
        self.works = False
        if is_locked(exc):
            self._locked_out = True  # for ever: the entries of another daemon must stay
            log.error(
                "the journal %s is in use, probably by another daemon: running without a journal",
                self._path,
            )
        elif not self._said:
            self._said = True
            log.warning(
                "the journal %s cannot be written: %s; forks go on, but will be lost "
                "if the daemon is killed",
                self._path,
                reason_of(exc),
            )

    def _on_success(self) -> None:
        if self._said:
            self._said = False
            log.warning("the journal works again, %d forks are in it", len(self._entries))
        self.works = True

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _File(SqliteFile):
    """The file, open and locked."""

    kind = "journal"
    application_id = 0x61666F72  # "afor"
    version = 1
    schema = ("CREATE TABLE forks (number INTEGER PRIMARY KEY, id TEXT UNIQUE, entry TEXT)",)

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first."""
        with telling_damage():
            rows = self.db.execute("SELECT entry FROM forks ORDER BY number").fetchall()
        return [entry_of_text(text) for (text,) in rows]

    def change(self, changes: Mapping[str, Entry | None]) -> None:
        """Write entries, and remove those that are None."""
        with telling_damage(), self.transaction():
            for fork_id, entry in changes.items():
                if entry is None:
                    self.db.execute("DELETE FROM forks WHERE id = ?", (fork_id,))
                else:
                    self.db.execute(
                        "INSERT INTO forks (id, entry) VALUES (?, ?)"
                        " ON CONFLICT (id) DO UPDATE SET entry = excluded.entry",
                        (fork_id, json.dumps(asdict(entry))),
                    )

        if None in changes.values():
            self.wipe()

    def fill(self, entries: Mapping[str, Entry]) -> None:
        """Replace all entries by these."""
        with telling_damage():
            self.db.execute("DELETE FROM forks")
        self.change(entries)
        self.wipe()


def entry_of_text(text: object) -> Entry:
    try:
        values = parsed_json(text)  # type: ignore[arg-type]
        entry = Entry(**values)
        if any(
            type(getattr(entry, one.name)) is not _TYPES[str(one.type)] for one in fields(Entry)
        ):
            raise ValueError("a field of another type")
        uuid.UUID(entry.fork_id)
    except (TypeError, ValueError) as exc:
        raise Damaged("an entry cannot be read") from exc
    return entry
