"""The thread that writes the history, and answers questions to it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path

from audiofork.config import HistoryConfig
from audiofork.errors import HistoryUnavailable
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.history_inbox import Inbox, Question, Works, Write
from audiofork.forks.sqlite_file import Damaged, is_locked, put_aside
from audiofork.text import reason_of

log = logging.getLogger(__name__)

MOST_WAITING = 2000  # entries: more than forks that may end at once
MOST_ASKING = 16  # questions that wait or are being answered
RETRY_S = 5.0
LOOK_S = 60.0  # between two looks for entries that are too old
STEP_PAUSE_S = 0.02  # between two steps of that: they may be thousands
MERGE_S = 21_600.0  # from the first removal to a merge of the index
DAY_S = 86_400.0


class HistoryWriter(threading.Thread):
    """Writes entries in batches; between them answers questions and removes what is too old.

    Args:
        path: The file.
        config: How long entries are kept; may be replaced.

    Attributes:
        inbox: Takes what is to be done.
        closed: Done when the file is closed.
        config: As the argument.
    """

    def __init__(self, path: Path, config: HistoryConfig) -> None:
        super().__init__(name="history", daemon=True)  # a disk that hangs must not block the exit
        self.inbox = Inbox(MOST_WAITING, MOST_ASKING)
        self.closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.closed.set_running_or_notify_cancel()  # so that a caller's timeout cannot cancel it
        self.config = config
        self._path = path
        self._file: HistoryFile | None = None
        self._unwritten: deque[Write] = deque()
        self._lost = 0
        self._fault = "it is not open yet"
        self._said = False
        self._locked_out = False
        self._next_look = self._next_merge = 0.0

    def run(self) -> None:
        try:
            self._write()  # opens it
            while self._step():
                pass
        except Exception:
            log.exception("the history failed; continuing without it")
        finally:
            self._close()
            self._fault = "it is closed"
            self.closed.set_result(None)
            self._refuse_all()

    def _step(self) -> bool:
        """Do what waits; return False if the end was requested."""
        works: Works = self.inbox.take(self._pause_s())
        self._unwritten.extend(works.writes)
        self._look_at_place()
        self._write()
        if works.question is not None:
            self._answer(works.question)
        if not works.is_last:
            self._keep_in_bounds()
        return not works.is_last

    def _pause_s(self) -> float:
        if self._file is None:
            return RETRY_S
        return max(STEP_PAUSE_S, self._next_look - time.monotonic())

    # --- Writing ---

    def _write(self) -> None:
        """Write what waits; what cannot be written waits on, up to MOST_WAITING entries."""
        if self._locked_out:
            self._unwritten.clear()
            return
        try:
            if self._file is None:
                self._file = HistoryFile(self._path)
            if self._unwritten:
                self._file.write(self._unwritten)
                self._unwritten.clear()
        except Damaged as exc:
            self._rebuild(exc)
        except (sqlite3.Error, OSError) as exc:
            self._on_fault(exc)
        else:
            self._on_success()

    def _rebuild(self, why: Damaged) -> None:
        """Move the file aside and begin a new one."""
        self._close()
        try:
            put_aside(self._path, "history", why)
            self._file = HistoryFile(self._path)
            self._file.write(self._unwritten)
            self._unwritten.clear()
            self._on_success()
        except (Damaged, sqlite3.Error, OSError) as exc:
            self._on_fault(exc)

    def _on_fault(self, exc: Exception) -> None:
        self._close()
        self._fault = reason_of(exc)
        while len(self._unwritten) > MOST_WAITING:
            self._unwritten.popleft()
            self._lost += 1
        if is_locked(exc):
            self._locked_out = True  # for ever: it is the file of another daemon
            self._fault = "it is in use, probably by another daemon"
            log.error("the history %s: %s: running without a history", self._path, self._fault)
        elif not self._said:
            self._said = True
            log.warning(
                "the history %s cannot be written: %s; forks go on, and as soon as it can be, the "
                "last %d entries will be",
                *(self._path, self._fault, MOST_WAITING),
            )

    def _on_success(self) -> None:
        if self._said:
            log.warning("the history works again, %d entries were lost", self._lost)
        self._fault, self._lost, self._said = "", 0, False

    def _look_at_place(self) -> None:
        """Begin a new file if somebody has removed this one, or put another in its place."""
        if self._file is None or self._file.is_in_place():
            return
        with contextlib.suppress(Damaged, sqlite3.Error, OSError):
            # SQLite closes a file that was moved without this, and would then apply what is left in
            # the write-ahead log to the file that is there now.
            self._file.wipe()
        self._close()
        log.warning(
            "the history %s was removed, or replaced, by another program: going on with the file "
            "that is there, or a new one; what the other one had is no longer found",
            self._path,
        )

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- Answering ---

    def _answer(self, question: Question) -> None:
        if question.is_abandoned or self._file is None:
            self._refuse(question)
            return
        self._file.give_up = self.inbox.should_give_up
        try:
            question.answer.set_result(question.ask(self._file))
        except Damaged as exc:
            self._refuse(question, str(exc))
            self._rebuild(exc)
        except (sqlite3.Error, OSError) as exc:
            self._refuse(question, reason_of(exc))
        except Exception as exc:  # noqa: BLE001 (the future passes it on)
            question.answer.set_exception(exc)

    def _refuse(self, question: Question, why: str = "") -> None:
        text = f"the history cannot be asked: {why or self._fault}"
        question.answer.set_exception(HistoryUnavailable(text))

    def _refuse_all(self) -> None:
        """Refuse the questions that are left; nobody asks any more when the thread has ended."""
        for question in self.inbox.take_questions():
            if not question.answer.done():
                self._refuse(question)

    # --- Removing ---

    def _keep_in_bounds(self) -> None:
        """Do one step of removing what is too old or too many, if one is due."""
        now = time.monotonic()
        if self._file is None or now < self._next_look:
            return
        try:
            if self._remove_some(self._file):
                return  # the next step follows what waits
            self._next_look = now + LOOK_S
        except Damaged as exc:
            self._rebuild(exc)
        except (sqlite3.Error, OSError) as exc:
            self._on_fault(exc)

    def _remove_some(self, file: HistoryFile) -> bool:
        """Do one step; return whether another has to follow."""
        before = time.time() - self.config.keep_days * DAY_S
        if file.remove_some(before, self.config.max_rows):
            self._next_merge = self._next_merge or time.monotonic() + MERGE_S
            return True
        if not self._next_merge or time.monotonic() < self._next_merge:
            return False
        if file.merge():
            return True
        file.wipe()
        self._next_merge = 0.0
        return False
