"""The history of a whole cluster, as the HTTP interface asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

from audiofork.doors.history_answers import CAUSES, HISTORY
from audiofork.forks.history import HistoryQuery
from audiofork.forks.requests import Origin

AnswerHistory = Callable[[str, Mapping[str, str], Origin], Awaitable[dict[str, Any]]]
"""Answers a command that asks the history; see `HistoryOfCluster.answer`."""


class ClusterHistory:
    """Implements `parts.Histories`; entries have `asterisk` and `controller` besides.

    Args:
        answer: Answers a search.
        name: The name of this controller, for the logs of others.
    """

    def __init__(self, answer: AnswerHistory, name: str) -> None:
        self._answer = answer
        self._origin = Origin("http", name)

    async def search(
        self, query: HistoryQuery, asterisk: str
    ) -> tuple[list[Any], str, Mapping[str, str]]:
        fields = {"asterisk": asterisk} | {
            name: value if isinstance(value, str) else repr(value)
            for name, value in dataclasses.asdict(query).items()
            if value is not None and name != "failed"
        }
        if query.failed is not None:
            fields["failed"] = "yes" if query.failed else "no"
        answer = await self._answer(HISTORY, fields, self._origin)
        entries = [_object(one) for one in answer["entries"]]
        return entries, answer["next_cursor"], answer["missing"]

    async def entry(self, fork_id: str) -> Any | None:
        answer = await self._answer(HISTORY, {"audioforkid": fork_id}, self._origin)
        return next((_object(one) for one in answer["entries"]), None)

    async def causes(self, since: float) -> tuple[list[Any], Mapping[str, str]]:
        answer = await self._answer(CAUSES, {"since": repr(since)}, self._origin)
        return [SimpleNamespace(**one) for one in answer["causes"]], answer["missing"]


def _object(fields: Mapping[str, Any]) -> Any:
    timeline = [SimpleNamespace(**one) for one in fields["timeline"]]
    return SimpleNamespace(**{**fields, "timeline": timeline})
