"""What waits for the thread of the history: entries, and apart from them questions."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from audiofork.forks.history_entries import Entry
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.timelines import Moment

MOST_IN_BATCH = 200

Write = Entry | tuple[str, Sequence[Moment]]
"""An entry, or the newer timeline of one by its id."""


@dataclass(slots=True, eq=False)
class Question:
    """What is asked of the file, between two writes.

    Attributes:
        ask: Asks it.
        answer: Gets what that returns.
        is_abandoned: Whether nobody waits for the answer any more.
    """

    ask: Callable[[HistoryFile], Any]
    answer: concurrent.futures.Future[Any]
    is_abandoned: bool = False


class Works(NamedTuple):
    """What is to be done next.

    Attributes:
        writes: To be written first.
        question: To be answered then; None: none.
        is_last: Whether the thread shall end afterwards.
    """

    writes: list[Write]
    question: Question | None
    is_last: bool


class Inbox:
    """Takes what is to be done from the loop, and gives it to the thread; nobody waits for a disk.

    Entries and questions have bounds of their own, so that no number of questions keeps an entry
    out.

    Args:
        most_writes: How many entries may wait.
        most_questions: How many questions may wait or be answered at once.
    """

    def __init__(self, most_writes: int, most_questions: int) -> None:
        self._most_writes = most_writes
        self._most_questions = most_questions
        self._changed = threading.Condition()
        self._writes: deque[Write] = deque()
        self._taken = 0  # writes, so far
        self._questions: deque[tuple[int, Question]] = deque()  # with how many are written before
        self._running: Question | None = None
        self._is_closed = False

    def put(self, write: Write) -> bool:
        """Add an entry; return False if too many wait already."""
        with self._changed:
            if len(self._writes) >= self._most_writes:
                return False
            self._writes.append(write)
            self._changed.notify()
            return True

    def ask(self, question: Question) -> bool:
        """Add a question; return False if too many wait, or are being answered, already."""
        with self._changed:
            asking = len(self._questions) + (self._running is not None)
            if self._is_closed or asking >= self._most_questions:
                return False
            self._questions.append((self._taken + len(self._writes), question))
            self._changed.notify()
            return True

    def abandon(self, question: Question) -> None:
        """Nobody waits for this answer any more: if it still waits it does not count from now on.

        One that is being answered counts until the thread has given it up.
        """
        with self._changed:
            question.is_abandoned = True
            self._questions = deque(one for one in self._questions if one[1] is not question)

    def close(self) -> None:
        """Let the thread end when all entries are written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @property
    def is_closed(self) -> bool:
        """Whether it takes no question any more."""
        return self._is_closed

    @property
    def writes(self) -> int:
        """How many entries wait."""
        return len(self._writes)

    def should_give_up(self) -> bool:
        """Return whether what is being answered shall not be: nobody waits, or the end is near."""
        running = self._running
        return self._is_closed or (running is not None and running.is_abandoned)

    def take(self, timeout_s: float) -> Works:
        """Wait for something to do; the question of before is done."""
        with self._changed:
            self._running = None
            self._changed.wait_for(self._has_some, timeout_s)
            count = min(len(self._writes), MOST_IN_BATCH)
            writes = [self._writes.popleft() for _ in range(count)]
            self._taken += count
            # What was told before a question is written before it is answered.
            if self._questions and not self._is_closed and self._questions[0][0] <= self._taken:
                self._running = self._questions.popleft()[1]
            return Works(writes, self._running, self._is_closed and not self._writes)

    def take_questions(self) -> list[Question]:
        """Return the questions that are left, at the end; none is taken afterwards."""
        with self._changed:
            self._is_closed = True
            left = [question for _, question in self._questions]
            self._questions.clear()
            return [self._running, *left] if self._running is not None else left

    def _has_some(self) -> bool:
        return bool(self._writes or self._questions or self._is_closed)
