"""The forks of a whole cluster: asks the controller that leads for each Asterisk.

Where that is our own, its daemon is asked without the broker; see `cluster_answers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from audiofork.doors import told
from audiofork.doors.control_answers import Answers
from audiofork.doors.http.problems import NO_SUCH_FORK
from audiofork.errors import AudioForkError, NobodyLeads, NoMessage, RequestRefused
from audiofork.forks.following import StartNews
from audiofork.forks.requests import Origin, Request, StartFork, fields_of
from audiofork.forks.series import Minute
from audiofork.forks.timelines import Moment
from audiofork.forks.view import ForkView
from audiofork.text import printable

log = logging.getLogger(__name__)

# Most forks of one Asterisk, and most other items of one answer.
MOST_FORKS = 50_000
MOST_ITEMS = 5000
_COUNTS = ("started", "ended", "failed", "refused", "reconnects", "frames_dropped")


class Ask(Protocol):
    """Asks the controller that leads for an Asterisk; see `ClusterAnswers.ask`."""

    def __call__(
        self,
        asterisk: str,
        fields: Mapping[str, str],
        origin: Origin,
        find_s: float | None = None,
    ) -> Answers: ...


class WholeCluster:
    """All forks of a cluster. Implements `parts.Cluster`.

    Args:
        ask: Asks the controller that leads for an Asterisk.
        served: The names of each Asterisk that this controller serves.
        known: Returns the names of all in the cluster.
        name: The name of this controller, for the logs of others.

    Attributes:
        missing: Each Asterisk whose forks were not told of when they were asked for last, and why.
        legs_left: How many legs of ended forks there were then.
    """

    def __init__(
        self, ask: Ask, served: Sequence[str], known: Callable[[], Sequence[str]], name: str
    ) -> None:
        self._ask = ask
        self._served = served
        self._known = known
        self._origin = Origin("http", name)
        self._asterisk_of: dict[str, str] = {}
        self.missing: Mapping[str, str] = {}
        self.legs_left = 0

    # --- All forks ---

    async def views(self) -> list[ForkView]:
        """Return all forks that can be told of, oldest first."""
        fields = {"Command": "ListAudioForks"}
        answers, missing = await self._of_all(fields)
        views: list[ForkView] = []
        places: dict[str, str] = {}
        for asterisk, answer in answers.items():
            items = _items(answer, "forks", MOST_FORKS)
            found = [view for item in items if (view := _view_in(item)) is not None]
            if len(found) < len(items):
                missing[asterisk] = f"{len(items) - len(found)} of its forks cannot be understood"
            places |= dict.fromkeys((view.id for view in found), asterisk)
            views += found
        self.legs_left = sum(_count_in(answer, "legs_left") for answer in answers.values())
        self._asterisk_of, self.missing = places, missing
        # By age, not by the times at which they were requested: clocks differ.
        return sorted(views, key=lambda view: -view.age_s)

    async def _of_all(
        self, fields: Mapping[str, str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Return the answer of each Asterisk, and why there is none of others."""
        names = sorted({*self._served, *self._known()})
        answers: dict[str, dict[str, Any]] = {}
        missing: dict[str, str] = {}

        async def ask(name: str) -> None:
            # Who was not there is not waited for each time.
            find_s = 0.0 if name in self.missing else None
            try:
                answers[name] = await self._answer(name, fields, self._origin, find_s)
            except AudioForkError as exc:
                missing[name] = printable(str(exc), "?")

        await asyncio.gather(*(ask(name) for name in names))
        return {name: answers[name] for name in names if name in answers}, missing

    async def minutes(self, hours: int) -> tuple[list[Minute], Mapping[str, str]]:
        """Return what has happened in each minute, of all, and what is missing in that."""
        answers, missing = await self._of_all(
            {"Command": "ListAudioForkMinutes", "Hours": str(hours)}
        )
        sums: dict[int, Minute] = {}
        for asterisk, answer in answers.items():
            try:
                minutes = [told.minute_in(one) for one in _items(answer, "minutes", MOST_ITEMS)]
            except NoMessage as exc:
                missing[asterisk] = str(exc)
                continue
            for one in minutes:
                into = sums.setdefault(one.at, Minute(one.at))
                for name in _COUNTS:
                    setattr(into, name, getattr(into, name) + getattr(one, name))
        return [sums[at] for at in sorted(sums)], missing

    # --- One fork ---

    def asterisk_of(self, fork_id: str) -> str:
        """Return the Asterisk of a fork that was listed last; empty: unknown."""
        return self._asterisk_of.get(fork_id, "")

    async def find(self, fork_id: str) -> str:
        """Return the Asterisk that has a fork, by its id or the beginning of that.

        Raises:
            RequestRefused: There is none.
            NobodyLeads: It may be among those that are missing.
        """
        if found := self.asterisk_of(fork_id):
            return found
        await self.views()
        names = {name for one, name in self._asterisk_of.items() if one.startswith(fork_id)}
        if names:
            return min(names)
        if self.missing:
            why = "; ".join(f"those of {name}: {text}" for name, text in self.missing.items())
            raise NobodyLeads(f"the fork is not among those that are known. Missing are {why}")
        raise RequestRefused(NO_SUCH_FORK)

    async def ask(self, request: Request) -> list[str]:
        """Have a fork stopped or muted, and return its id; raises as `find`, or why it was not."""
        assert not isinstance(request, StartFork), "see start"
        asterisk = await self.find(request.fork_id)
        ids: list[Any] = []
        for fields in fields_of(request):
            ids = (await self._answer(asterisk, fields, request.origin)).get("forks", [])
        return [told.text_in(one) for one in ids]

    async def start(
        self, request: Request, asterisk: str, *, waits: bool
    ) -> tuple[str, AsyncGenerator[StartNews, None] | None]:
        """Start a fork.

        Args:
            request: The request.
            asterisk: Which Asterisk has the call; empty: the one that this controller serves.
            waits: Whether its progress is wanted, too.

        Returns:
            Its id; and its progress, if that is wanted, and not too many wait already.

        Raises: what says that it was not granted.
        """
        (fields,) = fields_of(request)
        name = asterisk or self._only_one()
        answers = self._ask(name, fields | ({"Wait": "yes"} if waits else {}), request.origin)
        is_followed = False
        try:
            first = told.granted(await _next(answers, name))
            (fork_id, *_) = [*_items(first, "forks", 1), ""]
            if not told.is_id(fork_id):
                raise NobodyLeads(f"what answers for {name} is no controller")
            self._asterisk_of[fork_id] = name
            is_followed = bool(first.get("waits"))
        finally:
            if not is_followed:
                await answers.aclose()
        return fork_id, _news(answers) if is_followed else None

    def _only_one(self) -> str:
        if len(self._served) == 1:
            return self._served[0]
        raise RequestRefused(f"asterisk: missing; expected one of {', '.join(self._known())}")

    async def timeline(self, fork_id: str) -> list[Moment]:
        """Return what has happened to a fork; raises as `find`."""
        fields = {"Command": "ListAudioForkMoments", "AudioForkID": fork_id}
        answer = await self._answer(await self.find(fork_id), fields, self._origin)
        try:
            return [told.moment_in(one) for one in _items(answer, "moments", MOST_ITEMS)]
        except NoMessage as exc:
            raise NobodyLeads(f"the timeline cannot be understood: {exc}") from None

    async def all_answers(
        self, asterisk: str, fields: Mapping[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield all answers to a request; raises why it was not granted."""
        async with contextlib.aclosing(self._ask(asterisk, fields, self._origin)) as answers:
            async for answer in answers:
                yield told.granted(answer)

    async def _answer(
        self,
        asterisk: str,
        fields: Mapping[str, str],
        origin: Origin,
        find_s: float | None = None,
    ) -> dict[str, Any]:
        answers = self._ask(asterisk, fields, origin, find_s)
        async with contextlib.aclosing(answers):
            return told.granted(await _next(answers, asterisk))


async def _next(answers: Answers, asterisk: str) -> dict[str, Any]:
    try:
        return await anext(answers)
    except StopAsyncIteration:
        raise NobodyLeads(f"the controller that leads for {asterisk} has not answered") from None


async def _news(answers: Answers) -> AsyncGenerator[StartNews, None]:
    """Yield the progress of a start, as far as somebody tells it: the fork itself goes on."""
    try:
        async with contextlib.aclosing(answers):
            async for answer in answers:
                yield told.news_in(told.granted(answer))
    except (NobodyLeads, NoMessage) as exc:
        log.warning("the progress of a start is not told any more: %s", exc)


def _view_in(fields: object) -> ForkView | None:
    try:
        return told.view_in(fields)
    except NoMessage:
        return None


def _items(answer: Mapping[str, Any], name: str, most: int) -> list[Any]:
    items = answer.get(name)
    return items[:most] if isinstance(items, list) else []


def _count_in(answer: Mapping[str, Any], name: str) -> int:
    count = answer.get(name)
    return count if type(count) is int else 0
