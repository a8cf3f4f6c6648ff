"""A private SQLite file of one process: what the journal and the history have in common.

It is in WAL mode and locked. What is committed survives the death of the daemon, even by SIGKILL;
the last of it may be lost if the machine crashes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

log = logging.getLogger(__name__)

_BUSY_S = 0.5  # how long to wait for the lock: another program may be reading the file
# Moved aside with one ending: a disk that damages each file must not be filled with them.
MOST_ASIDE = 20
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Damaged(Exception):
    """The file cannot be read as one of this kind and version.

    Attributes:
        ending: What its name gets when it is moved aside.
    """

    ending: str = "damaged"


class OtherVersion(Damaged):
    """The file is sound, but of another version of audiofork.

    Args:
        version: The version that it has.
        expected: The one that it should have.
    """

    def __init__(self, version: int, expected: int) -> None:
        super().__init__(f"of version {version}, expected {expected}")
        self.ending = f"version-{version}"


class SqliteFile:
    """The file, open and locked; for one thread.

    Every method raises Damaged, sqlite3.Error or OSError.

    Attributes:
        kind: What the file is, for people.
        application_id, version: In the header of each file of this kind.
        schema: The statements that make an empty file one of this kind.
        checkpoint_pages: How many pages may be in the write-ahead log.
    """

    kind: ClassVar[str]
    application_id: ClassVar[int]
    version: ClassVar[int]
    schema: ClassVar[tuple[str, ...]]
    checkpoint_pages: ClassVar[int] = 100

    def __init__(self, path: Path) -> None:
        make_private(path)
        self.db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        self._path = path.absolute()
        self._identity = _identity_of(path)
        try:
            with telling_damage():
                self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        # With an exclusive lock, WAL needs no shared memory, and another daemon notices the lock.
        self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute(f"PRAGMA wal_autocheckpoint = {self.checkpoint_pages}")
        self.db.execute("PRAGMA secure_delete = ON")  # it may contain tokens, or numbers of callers
        with self.transaction():  # takes the lock
            if not self.pragma("schema_version"):
                self.db.execute(f"PRAGMA application_id = {self.application_id}")
                self.db.execute(f"PRAGMA user_version = {self.version}")
                for statement in self.schema:
                    self.db.execute(statement)
        check_kind(self.db, type(self))
        self.wipe()

    def pragma(self, name: str) -> Any:
        """Return the value of a pragma."""
        return self.db.execute(f"PRAGMA {name}").fetchone()[0]

    def is_in_place(self) -> bool:
        """Return whether the file is still the one of its name."""
        return self._identity is not None and self._identity == _identity_of(self._path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all that is done within, or nothing of it."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # after some errors SQLite has rolled back
                self.db.execute("ROLLBACK")
            raise

    def wipe(self) -> None:
        """Empty the WAL: it contains earlier states of pages, and so deleted entries."""
        with telling_damage():
            busy = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:  # should not happen under the lock; but deleted tokens would stay in the WAL
            raise sqlite3.OperationalError("the write-ahead log cannot be emptied")

    def close(self) -> None:
        """Close the file, and unlock it."""
        with contextlib.suppress(sqlite3.Error):
            self.db.close()


def check_kind(db: sqlite3.Connection, kind: type[SqliteFile]) -> None:
    """Raise Damaged unless a file is of this kind and version."""
    if db.execute("PRAGMA application_id").fetchone()[0] != kind.application_id:
        raise Damaged(f"not a {kind.kind} of audiofork")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != kind.version:
        raise OtherVersion(version, kind.version)


@contextlib.contextmanager
def telling_damage() -> Iterator[None]:
    """Raise Damaged in place of an error of SQLite that means it."""
    try:
        yield
    except sqlite3.Error as exc:
        if _code_of(exc) in _DAMAGED:
            raise Damaged(str(exc)) from exc
        raise


def is_locked(exc: Exception) -> bool:
    """Return whether an error means that another process uses the file."""
    return _code_of(exc) == sqlite3.SQLITE_BUSY


def _code_of(exc: Exception) -> int:
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others; None: there is none of that name."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def make_private(path: Path) -> None:
    """Create the file if needed, readable by its owner only.

    SQLite gives the files beside it, such as the WAL, the same mode.

    Raises:
        OSError: It cannot be created, or is not a regular file; links are not followed.
    """
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        os.fchmod(descriptor, 0o600)
    finally:
        # Closed before SQLite opens it: close() drops all locks that the process has on the file.
        os.close(descriptor)


def put_aside(path: Path, kind: str, why: Damaged) -> None:
    """Move a file that cannot be used aside, and log it; there is none of that name then.

    No file that was moved aside earlier is overwritten.

    Raises:
        OSError: It cannot be moved, or MOST_ASIDE were moved aside already.
    """
    aside = _free_name(path, why.ending)
    log.warning("the %s %s cannot be used (%s); moved aside as %s", kind, path, why, aside.name)
    path.replace(aside)
    for end in ("-wal", "-shm", "-journal"):  # else SQLite would apply them to the new file
        path.with_name(path.name + end).unlink(missing_ok=True)


def _free_name(path: Path, ending: str) -> Path:
    for number in range(1, MOST_ASIDE + 1):
        count = f".{number}" if number > 1 else ""
        aside = path.with_name(f"{path.name}.{ending}{count}")
        if not os.path.lexists(aside):
            return aside
    raise OSError(f"{MOST_ASIDE} files were moved aside as .{ending} already: remove some")
