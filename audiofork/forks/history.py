"""The history: what became of forks that have ended, and which starts were refused.

It is an SQLite file, written by a thread of its own (history_writer.py): neither audio nor a
request ever waits for the disk. Whoever asks waits for what that thread answers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from audiofork.config import HistoryConfig
from audiofork.errors import HistoryUnavailable
from audiofork.forks.events import (
    FAILURES,
    DomainEvent,
    Ended,
    Failed,
    ForkInfo,
    Refused,
    Started,
    Stopped,
)
from audiofork.forks.fairness import Allowance
from audiofork.forks.history_entries import REFUSED
from audiofork.forks.history_entries import Cause as Cause
from audiofork.forks.history_entries import Entry as Entry
from audiofork.forks.history_entries import HistoryQuery as HistoryQuery
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.history_forgetting import Forgotten as Forgotten
from audiofork.forks.history_inbox import Question, Write
from audiofork.forks.history_writer import HistoryWriter
from audiofork.forks.masking import Masking, masked, masked_channel, masked_name
from audiofork.forks.requests import StartFork
from audiofork.forks.timelines import Moment, Timelines
from audiofork.log import CounterLine, host_of, without_credentials, without_query
from audiofork.text import printable

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT_S = 10.0
FORGET_TIMEOUT_S = 300.0
CLOSE_TIMEOUT_S = 1.0
# Refused starts that are kept in a second, of one requester and of one door: each may come as a
# flood. docs/usage.md says so.
REFUSED_OF_ORIGIN = 5
REFUSED_OF_DOOR = 20

TOTALS = (
    *("frames_in", "frames_sent", "frames_dropped", "frames_missing", "reconnects"),
    *("messages_ignored", "messages_unused", "commands_refused"),
    *("frames_played", "frames_cleared", "frames_unplayed", "underruns"),
)
"""The fields of ForkStats that are among the totals of an entry."""


class History:
    """Keeps ended forks and refused starts; a fault of the file never affects a fork.

    Owned by the daemon, which subscribes `on_event` to the events of forks, after `timelines`.
    Faults are logged when they begin and when they end.

    Args:
        config: The options. Without a file nothing is kept.
        timelines: What has happened to running forks.
        clock: Returns the time in seconds since 1970.
    """

    def __init__(
        self, config: HistoryConfig, timelines: Timelines, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._timelines = timelines
        self._clock = clock
        self._writer = HistoryWriter(Path(config.file), config) if config.file else None
        self._started: dict[str, float] = {}  # when audio began to flow, by fork id
        self._allowance = Allowance(REFUSED_OF_ORIGIN, REFUSED_OF_DOOR)
        self._dropped = CounterLine(log, "entries of the history dropped, the disk is too slow")
        self._beyond = CounterLine(log, "refused starts not kept in the history, too many")

    @property
    def is_kept(self) -> bool:
        """Whether there is a history: the configuration names a file."""
        return self._writer is not None

    def configure(self, config: HistoryConfig) -> None:
        """Apply other options to what ends from now on; another file takes a restart."""
        self._config = config
        if self._writer is not None:
            self._writer.config = config

    async def open(self) -> None:
        """Begin to open the file; does not wait for that."""
        if self._writer is not None:
            self._writer.start()

    async def close(self) -> None:
        """Write all waiting entries and close the file; waits at most CLOSE_TIMEOUT_S."""
        if self._writer is None or not self._writer.is_alive():
            return
        self._writer.inbox.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.wrap_future(self._writer.closed)
        self._dropped.say_rest()
        self._beyond.say_rest()

    # --- What happens ---

    def on_event(self, event: DomainEvent) -> None:
        """Keep what an event tells; never waits."""
        if self._writer is None:
            return
        if isinstance(event, Started):
            self._started[event.fork.id] = self._clock()
        elif isinstance(event, Ended):
            self._put(self._ended(event))
        elif isinstance(event, Stopped | Failed) and event.post_process_status:
            self._put((event.fork.id, self._timeline(event.fork)))
        elif isinstance(event, Refused) and isinstance(event.request, StartFork):
            if self._allowance.take(event.request.origin):
                self._put(self._refused(event, event.request))
            else:
                self._beyond.count(printable(event.why, "?"))

    def _put(self, work: Write) -> None:
        assert self._writer is not None
        if not self._writer.inbox.put(work):
            self._dropped.count(work.fork_id if isinstance(work, Entry) else work[0])

    def _ended(self, event: Ended) -> Entry:
        fork, about, now = event.fork, event.fork.about, self._clock()
        requested_at = about.requested_at or now
        entry = Entry(
            fork_id=fork.id,
            channel=fork.channel,
            uniqueid=fork.uniqueid,
            caller_number=fork.caller_number,
            caller_name=fork.caller_name,
            url=self._kept_url(fork.url),
            host=host_of(fork.url),
            direction=about.direction,
            profile=about.profile,
            format=about.format,
            tap=about.tap,
            sample_rate=fork.sample_rate,
            requested_at=requested_at,
            started_at=self._started.pop(fork.id, None),
            ended_at=now,
            reason=event.reason.value,
            failed=event.reason in FAILURES,
            detail=event.detail,
            totals=_totals(event, now - requested_at),
            timeline=self._timeline(fork),
        )
        return self._safe(entry)

    def _refused(self, event: Refused, request: StartFork) -> Entry:
        now, url = self._clock(), without_credentials(request.server)
        asked = " ".join(filter(None, request.origin))
        text = f"by {asked}: {event.why}" if asked else event.why
        entry = Entry(
            fork_id=str(uuid.uuid4()),
            channel=request.target.channel,
            uniqueid=request.target.uniqueid,
            caller_number="",
            caller_name="",
            url=self._kept_url(url),
            host=host_of(url),
            direction=request.options.direction.value,
            profile=request.profile,
            format=request.options.format.value,
            tap="",
            sample_rate=0,
            requested_at=now,
            started_at=None,
            ended_at=now,
            reason=REFUSED,
            failed=True,
            detail=event.why,
            timeline=(Moment(now, REFUSED, printable(text, "?")),),
        )
        return self._safe(entry)

    def _timeline(self, fork: ForkInfo) -> Sequence[Moment]:
        moments = self._timelines.of(fork.id)
        if not self._config.texts:
            moments = [
                one._replace(text="a text") if one.kind == "message" else one for one in moments
            ]
        if not self._config.mask_numbers:
            return moments
        masking = Masking(fork.caller_number, printable(fork.channel, "?"))
        # What servers say is theirs: nobody knows what in it is a number of the call.
        return [
            one if one.kind == "message" else one._replace(text=masking.of(one.text))
            for one in moments
        ]

    def _kept_url(self, url: str) -> str:
        return url if self._config.queries else without_query(url)

    def _safe(self, entry: Entry) -> Entry:
        """Return an entry with texts that are harmless, and masked where that is configured."""
        texts = ("channel", "uniqueid", "caller_number", "caller_name", "url", "host", "detail")
        clean = {name: printable(getattr(entry, name), "?") for name in texts}
        if self._config.mask_numbers:
            masking = Masking(clean["caller_number"], clean["channel"])
            clean |= {name: masking.of(clean[name]) for name in ("url", "detail")}
            clean["caller_number"] = masked(clean["caller_number"])
            clean["caller_name"] = masked_name(clean["caller_name"])
            clean["channel"] = masked_channel(clean["channel"])
        return replace(entry, **clean)  # type: ignore[arg-type]

    # --- Questions ---

    async def search(self, query: HistoryQuery) -> tuple[list[Entry], str]:
        """Return the entries that fit, newest first, without timelines, and the next cursor.

        The cursor is empty at the end. Entries that end meanwhile do not move the pages.

        Raises:
            HistoryUnavailable: The file cannot be asked now, or it takes too long.
            ValueError: The cursor is none of ours.
        """
        return await self._ask(lambda file: file.search(query))

    async def entry(self, fork_id: str) -> Entry | None:
        """Return the entry of a fork with its timeline; None if there is none.

        Args:
            fork_id: The whole id, or its first eight characters or more, if no other has them.

        Raises:
            HistoryUnavailable: The file cannot be asked now.
        """
        return await self._ask(lambda file: file.entry(fork_id))

    async def causes(self, since: float) -> list[Cause]:
        """Return the causes of failures since a time, the most frequent first.

        Raises:
            HistoryUnavailable: The file cannot be asked now, or it takes too long.
        """
        return await self._ask(lambda file: file.causes(since))

    async def forget(self, number: str) -> Forgotten:
        """Remove a caller: all entries of this number, for good; see HistoryFile.forget.

        Entries whose number is masked are not found: nobody can know whose they are. Of a fork that
        still runs there will be an entry when it has ended.

        Raises:
            HistoryUnavailable: The file cannot be asked now; some entries may be removed.
        """
        return await self._ask(lambda file: file.forget(number), FORGET_TIMEOUT_S)

    async def _ask(self, ask: Callable[[HistoryFile], T], timeout_s: float = 0.0) -> T:
        timeout_s = timeout_s or ANSWER_TIMEOUT_S
        if self._writer is None:
            raise HistoryUnavailable("there is no history: [history] file is empty")
        if not self._writer.is_alive() or self._writer.inbox.is_closed:
            raise HistoryUnavailable("the history cannot be asked: it is closed")
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()
        question = Question(ask, answer)
        if not self._writer.inbox.ask(question):
            raise HistoryUnavailable("too many ask the history at once: try again")
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            text = f"the history cannot be asked: no answer of the disk within {timeout_s:g} s"
            raise HistoryUnavailable(text) from None
        finally:
            self._writer.inbox.abandon(question)


def _totals(event: Ended, duration_s: float) -> dict[str, int | float]:
    return {
        **{name: getattr(event.stats, name) for name in TOTALS},
        "gaps": event.gaps,
        "gap_s": round(event.gap_s, 3),
        "relays_lost": event.relays_lost,
        "duration_s": round(max(0.0, duration_s), 3),
    }
