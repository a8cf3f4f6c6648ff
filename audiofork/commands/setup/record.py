"""What setup has changed, on disk, so that all of it can be taken back.

It is written before each change. A folder that root alone may read holds `record.json` and a copy
of each file as it was before the first setup.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from audiofork.commands.setup import edits, files
from audiofork.commands.setup.conf import real
from audiofork.commands.setup.draft import Change, NewFolder
from audiofork.errors import SetupError

RECORD = "record.json"
_LOCK = "lock"


@dataclass(slots=True)
class Entry:
    """One file.

    Attributes:
        path: Of the file itself, no link.
        copy: The name of the copy of what was there; empty: nothing was.
        lines: The lines that were added; empty: the whole file is ours.
        digests: Of the contents that setup has given it.
        is_exact: Nobody else has changed it between two setups.
    """

    path: str
    copy: str = ""
    lines: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    is_exact: bool = True


@dataclass(slots=True)
class Service:
    """How the systemd service was before the first setup."""

    was_enabled: bool
    was_active: bool


class Record:
    """The record of one machine; a context manager that keeps another setup out.

    Args:
        folder: Where it is kept.

    Attributes:
        entries: By path, in the order of the first change.
        folders: That were made, the uppermost first.
        reloads: What Asterisk is told when all is taken back.
        command: What runs Asterisk's program.
        service: None: it was not touched.
        pending: Of these, what it has not been told yet.
        is_complete: Asterisk and systemd have heard of all changes.

    Raises:
        SetupError: It cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.folders: list[str] = []
        self.reloads: list[str] = []
        self.pending: list[str] = []
        self.command: list[str] = []
        self.service: Service | None = None
        self.is_complete = True
        if self.path.exists():
            self._load()

    @property
    def path(self) -> Path:
        return self.folder / RECORD

    def _load(self) -> None:
        try:
            values = json.loads(self.path.read_text())
            self.entries = {one["path"]: Entry(**one) for one in values["entries"]}
            self.folders, self.reloads = values["folders"], values["reloads"]
            self.command, self.pending = values["command"], values["pending"]
            self.service = Service(**values["service"]) if values["service"] else None
            self.is_complete = values["is_complete"]
        except OSError as exc:
            raise SetupError(f"{self.path}: {exc.strerror}: run it as root") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise SetupError(
                f"{self.path} is damaged, so what an earlier setup did is not known; the copies "
                f"of the files as they were are beside it"
            ) from exc

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep another setup out meanwhile.

        Raises:
            SetupError: There is one.
            OSError: The folder cannot be made.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(
                    "another audiofork setup is at work; nothing was changed"
                ) from None
            try:
                yield
            finally:
                if not self.entries and not self.path.exists():
                    self.forget()

    def save(self) -> None:
        """Write it to the disk."""
        values = {
            "entries": [asdict(one) for one in self.entries.values()],
            "folders": self.folders,
            "reloads": self.reloads,
            "pending": self.pending,
            "command": self.command,
            "service": asdict(self.service) if self.service else None,
            "is_complete": self.is_complete,
        }
        text = json.dumps(values, indent=1)
        files.replace(self.path, text.encode(), like=None, mode=0o600, group=os.getegid())

    def forget(self) -> None:
        """Remove it, with its folder unless something else is in it."""
        kept = {entry.copy for entry in self.entries.values()}
        copies = [path for path in self.folder.glob("*-*") if path.name not in kept]
        for path in (*copies, self.path, self.folder / _LOCK):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    # --- Changes ---

    def is_ours(self, path: Path) -> bool:
        """Return whether a file is as a setup has left it."""
        entry = self.entries.get(str(real(path)))
        return entry is not None and digest(content_of(path)) in entry.digests

    def note(self, change: Change) -> None:
        """Write down a change that is to be made now, with a copy of what is there."""
        key = str(change.path)
        entry = self.entries.get(key)
        if entry is None:
            entry = Entry(key)
            if change.before is not None:
                entry.copy = f"{digest(key.encode())[:16]}-{change.path.name}"
                files.copy(change.path, self.folder / entry.copy)
            self.entries[key] = entry
        elif digest(change.before) not in entry.digests and not self._is_as_before(entry, change):
            entry.is_exact = False
        entry.lines += [line for line in change.lines if line not in entry.lines]
        entry.digests.append(digest(change.after))
        self.save()

    def _is_as_before(self, entry: Entry, change: Change) -> bool:
        before = content_of(self.folder / entry.copy) if entry.copy else None
        return change.before == before

    def apply(self, change: Change) -> None:
        """Make a change, once it is written down.

        Raises:
            SetupError: The file is no longer what it was when the change was planned.
            OSError: It is not made.
        """
        if content_of(change.path) != change.before:
            raise SetupError(f"{change.path} has been changed meanwhile: run audiofork setup again")
        missing = files.missing_folders(change.path.parent)
        self.folders += map(str, missing)
        self.note(change)
        for folder in missing:
            files.make_folder(folder)
        like = None if change.before is None else change.path
        files.replace(change.path, change.after, like=like, mode=change.mode, group=change.group)

    def make_folder(self, new: NewFolder) -> None:
        """Make a folder, once it is written down.

        Raises:
            OSError: It is not made.
        """
        self.folders.append(str(new.path))
        self.save()
        files.make_folder(new.path, new.mode, new.group)

    def revert(self, change: Change) -> None:
        """Have a file as it was before a change of this run, made or not.

        Raises:
            OSError: It stays as it is.
        """
        if content_of(change.path) != change.after:
            return  # it was not made
        if change.before is None:
            change.path.unlink()
        else:
            files.replace(change.path, change.before, like=change.path, mode=0, group=0)

    def restore(self, earlier: bytes | None) -> None:
        """Have the record as it was before this run; None: there was none."""
        if earlier is not None:
            files.replace(self.path, earlier, like=self.path, mode=0, group=0)
            for path in self.folder.glob("*-*"):
                if path.name.encode() not in earlier:
                    path.unlink()
            return
        self.remove_folders()
        for entry in self.entries.values():
            if entry.copy:
                (self.folder / entry.copy).unlink(missing_ok=True)
        self.entries = {}
        self.path.unlink(missing_ok=True)

    # --- Taken back ---

    def take_back(self, entry: Entry) -> str:
        """Have a file as it was; return what is to be said of it.

        What somebody else has changed in it stays.

        Raises:
            OSError: Nothing was changed.
        """
        path = Path(entry.path)
        now, copied = content_of(path), self.folder / entry.copy if entry.copy else None
        before = content_of(copied) if copied else None
        if now == before:
            said = f"{path}: is as it was"
        elif now is None:
            said = f"{path}: is gone, and stays so"
        elif entry.is_exact and digest(now) in entry.digests:
            said = self._restore(path, copied)
        elif entry.lines:
            said = _without_our_lines(path, now, entry)
        else:
            aside = _free_name(path)
            files.copy(path, aside)
            said = f"{self._restore(path, copied)}; what you have changed since is in {aside}"
        del self.entries[entry.path]
        self.save()
        if copied:
            copied.unlink(missing_ok=True)
        return said

    @staticmethod
    def _restore(path: Path, copied: Path | None) -> str:
        if copied is None:
            path.unlink(missing_ok=True)
            files.sync_folder(path.parent)
            return f"{path}: removed"
        files.copy(copied, path)
        return f"{path}: restored"

    def remove_folders(self) -> list[str]:
        """Remove the folders that were made; return those that stay, since files are in them."""
        staying = []
        for name in sorted(self.folders, key=len, reverse=True):
            try:
                os.rmdir(name)
            except OSError as exc:
                if exc.errno == errno.ENOTEMPTY:
                    staying.append(name)
        self.folders = []
        return staying


def _without_our_lines(path: Path, now: bytes, entry: Entry) -> str:
    text = edits.without(now.decode("latin-1"), entry.lines)
    if not text and not entry.copy:
        path.unlink()
        return f"{path}: removed"
    files.replace(path, text.encode("latin-1"), like=path, mode=0, group=0)
    said = f"{path}: you have changed it since: only the lines of setup are taken out"
    if left := edits.marked_lines(text):
        numbers = ", ".join(map(str, left))
        said += (
            f", but not line {numbers}, which you have changed: take that out if it is not yours"
        )
    return said


def _free_name(path: Path) -> Path:
    """Return a name beside a file that nothing includes."""
    names = (path.with_name(f"{path.name}.undone{end}") for end in ("", *map(str, range(2, 100))))
    return next(name for name in names if not name.exists())


def content_of(path: Path) -> bytes | None:
    """Return the content of a file; None: it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def digest(content: bytes | None) -> str:
    """Return what a content is known by; empty: that of no file."""
    return "" if content is None else hashlib.sha256(content).hexdigest()
