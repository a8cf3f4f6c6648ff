"""The routes of the forks that have ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from audiofork.doors.http.answers import MomentOfFork
from audiofork.doors.http.answers_history import (
    CauseOfFailures,
    Causes,
    CausesQuery,
    HistoryEntry,
    HistoryPage,
    HistoryQuery,
)
from audiofork.doors.http.parts import Histories, History, Parts
from audiofork.doors.http.problems import Kind, Problem
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.schema import BadValue
from audiofork.doors.http.sending import answer
from audiofork.forks import history

HISTORY = "/api/v1/history"
_OF_CLUSTER = ("asterisk", "controller")
_PLAIN = tuple(
    one.name
    for one in dataclasses.fields(HistoryEntry)
    if one.name not in (*_OF_CLUSTER, "timeline")
)


class HistoryApi:
    """Answers what is asked of ended forks.

    Args:
        parts: The parts of the daemon.
    """

    def __init__(self, parts: Parts) -> None:
        alone = _Alone(parts.history) if parts.history is not None else None
        self._histories: Histories | None = parts.histories or alone

    def routes(self) -> list[Route]:
        """Return the routes; the fixed path comes before the one with an id."""
        away = (404, 503)
        return [
            Route(
                *("GET", HISTORY, self.search),
                query=HistoryQuery,
                answers={200: HistoryPage},
                problems=away,
            ),
            Route(
                *("GET", f"{HISTORY}/causes", self.causes),
                query=CausesQuery,
                answers={200: Causes},
                problems=away,
            ),
            Route(
                *("GET", f"{HISTORY}/{{id}}", self.one),
                answers={200: HistoryEntry},
                problems=away,
            ),
        ]

    async def search(self, call: Call) -> web.StreamResponse:
        """Search the ended forks, the latest first."""
        try:
            query = _query(call.query)
            entries, cursor, missing = await self._there().search(query, call.query.asterisk)
        except ValueError as exc:
            raise BadValue(str(exc)) from None
        return answer(HistoryPage([_entry(one) for one in entries], cursor, missing))

    async def one(self, call: Call) -> web.StreamResponse:
        """Return an ended fork, with what has happened to it."""
        entry = await self._there().entry(call.part)
        if entry is None:
            raise Problem(404, "No such fork in the history", Kind.NO_SUCH_FORK)
        return answer(_entry(entry))

    async def causes(self, call: Call) -> web.StreamResponse:
        """Return why forks have failed, the most frequent cause first."""
        found, missing = await self._there().causes(call.query.since)
        causes = [
            CauseOfFailures(one.reason, one.detail, one.count, one.latest_at, one.fork_id)
            for one in found
        ]
        return answer(Causes(causes, missing))

    def _there(self) -> Histories:
        if self._histories is None:
            text = "this daemon keeps no history: [history] file is empty"
            raise Problem(404, text, Kind.NOT_AVAILABLE)
        return self._histories


class _Alone:
    """The history of one daemon, as if it were those of a cluster. Implements `Histories`."""

    def __init__(self, one: History) -> None:
        self._one = one

    async def search(
        self, query: history.HistoryQuery, asterisk: str
    ) -> tuple[Sequence[Any], str, Mapping[str, str]]:
        if asterisk:  # it has no name here: as in the list of forks, nothing fits
            return [], "", {}
        return *await self._one.search(query), {}

    async def entry(self, fork_id: str) -> Any | None:
        return await self._one.entry(fork_id)

    async def causes(self, since: float) -> tuple[Sequence[Any], Mapping[str, str]]:
        return await self._one.causes(since), {}


def _query(query: HistoryQuery) -> history.HistoryQuery:
    fields = dataclasses.asdict(query)
    del fields["asterisk"]  # it says whom to ask
    return history.HistoryQuery(**fields)


def _entry(entry: Any) -> HistoryEntry:
    timeline = [MomentOfFork(one.at, one.kind, one.text) for one in entry.timeline]
    values: dict[str, Any] = {name: getattr(entry, name) for name in _PLAIN}
    place: dict[str, Any] = {name: getattr(entry, name, "") for name in _OF_CLUSTER}
    return HistoryEntry(**(values | place), timeline=timeline)
