"""The routes of forks: list, look at one, start, stop, mute."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web

from audiofork.asterisk.channels import Target
from audiofork.doors.control_answers import NO_CLUSTER
from audiofork.doors.http.answers import (
    Change,
    Fork,
    ForkList,
    ForksQuery,
    ForkWithTimeline,
    MomentOfFork,
    StartedFork,
    StartWish,
)
from audiofork.doors.http.parts import Moment, Parts
from audiofork.doors.http.problems import NO_SUCH_FORK, Kind, Problem
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.schema import BadValue, as_json
from audiofork.doors.http.sending import answer, answer_json, answer_nothing
from audiofork.doors.http.tokens import Role
from audiofork.doors.http.views import Views, in_slices
from audiofork.doors.rendering import Fields, fork_fields, host_of
from audiofork.errors import AmiError, NobodyLeads, RequestRefused
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.requests import (
    MuteFork,
    Origin,
    Request,
    StopFork,
    is_beginning_of_id,
    parse_request,
)
from audiofork.forks.view import ForkView
from audiofork.log import Refusals
from audiofork.text import harmless

log = logging.getLogger(__name__)

DOOR = "http"
WAIT_S = 30.0
# Most clients that wait for a start.
MAX_WAITING = 64
FORKS = "/api/v1/forks"

_Result = TypeVar("_Result")


class ForksApi:
    """Answers what is asked of forks.

    Args:
        parts: The parts of the daemon.
        views: All forks.
    """

    def __init__(self, parts: Parts, views: Views) -> None:
        self._parts = parts
        self._cluster = parts.cluster
        self._views = views
        self._waiting = 0
        self._orders: set[asyncio.Future[Any]] = set()
        self._refusals = Refusals(log, "requests of HTTP clients refused")

    def routes(self) -> list[Route]:
        """Return the routes."""
        control = Role.CONTROL
        return [
            Route("GET", FORKS, self.list, query=ForksQuery, answers={200: ForkList}),
            Route(
                *("POST", FORKS, self.start, control),
                body=StartWish,
                answers={201: StartedFork},
                problems=(503,),
            ),
            Route(*("GET", f"{FORKS}/{{id}}", self.one), answers={200: ForkWithTimeline}),
            Route(
                *("PATCH", f"{FORKS}/{{id}}", self.change, control),
                body=Change,
                answers={200: Fork},
            ),
            Route("DELETE", f"{FORKS}/{{id}}", self.stop, control, answers={204: None}),
        ]

    async def list(self, call: Call) -> web.StreamResponse:
        """List the forks, oldest first."""
        query: ForksQuery = call.query
        views = await self._views.recent()
        found = [view for view in views if self._matches(view, query)]
        begin = _begin(found, query.cursor)
        page = found[begin : begin + query.limit]
        # One by one: a thousand forks at once would delay the audio.
        forks = [as_json(self._fields(view)) async for view in in_slices(page)]
        end = begin + len(page)
        cursor = f"{end}.{page[-1].id}" if page and end < len(found) else ""
        left = self._parts.legs_left()
        missing = self._cluster.missing if self._cluster is not None else {}
        rest = as_json(
            {
                "total": len(found),
                "next_cursor": cursor,
                "legs_left": left,
                "missing": missing,
            }
        )
        return answer_json(f'{{"forks":[{",".join(forks)}],{rest[1:]}')

    async def one(self, call: Call) -> web.StreamResponse:
        """Return a fork, and what has happened to it."""
        view = await self._one(_fork_id(call.part))
        moments = await self._timeline(view.id)
        timeline = [MomentOfFork(one.at, one.kind, one.text) for one in moments]
        return answer({**self._fields(view), "timeline": timeline})

    async def _one(self, fork_id: str) -> ForkView:
        view = await self._views.one(fork_id)
        if view is None:
            if self._cluster is not None:
                await self._cluster.find(fork_id)  # says what is missing, if something is
            raise Problem(404, NO_SUCH_FORK, Kind.NO_SUCH_FORK)
        return view

    async def _timeline(self, fork_id: str) -> Sequence[Moment]:
        if self._cluster is not None:
            return await self._cluster.timeline(fork_id)
        timelines = self._parts.timelines
        return timelines.of(fork_id) if timelines is not None else ()

    def _fields(self, view: ForkView) -> Fields:
        return {**fork_fields(view), "asterisk": self._asterisk_of(view)}

    def _asterisk_of(self, view: ForkView) -> str:
        return self._cluster.asterisk_of(view.id) if self._cluster is not None else ""

    def _matches(self, view: ForkView, query: ForksQuery) -> bool:
        asterisk = self._asterisk_of(view)
        caller = [view.caller_number, view.caller_name]
        host, channel = host_of(view.url), [view.channel, view.uniqueid]
        places = [asterisk, view.relay_host]
        return (
            query.state in ("", view.state)
            and _has(channel, query.channel)
            and _has(caller, query.caller)
            and _has([host], query.host)
            and _has([asterisk], query.asterisk)
            and _has([view.relay_host], query.relay_host)
            and _has([*channel, *caller, host, *places, view.id], query.q)
        )

    async def start(self, call: Call) -> web.StreamResponse:
        """Start a fork of a call, or make a server its other party."""
        wish: StartWish = call.body
        if wish.wait and self._waiting >= MAX_WAITING:
            raise Problem(503, f"{MAX_WAITING} clients wait for starts already", Kind.BUSY)
        request = parse_request(_fields_of(wish), Origin(DOOR, call.who))
        fork_id, news = await self._finished(self._start(request, wish), call)
        location = {"Location": f"{FORKS}/{fork_id}"}
        if news is None:
            return answer(StartedFork(fork_id), 201, location)
        return answer(await self._awaited(fork_id, news), 201, location)

    async def _start(
        self, request: Request, wish: StartWish
    ) -> tuple[str, AsyncGenerator[StartNews, None] | None]:
        if self._cluster is not None:
            return await self._cluster.start(request, wish.asterisk, waits=wish.wait)
        if wish.asterisk:
            raise RequestRefused(f"asterisk: {NO_CLUSTER}")
        (fork_id, *_) = await self._parts.ask(request)
        # At once: it could end in the next turn of the loop.
        return fork_id, self._parts.follow(fork_id) if wish.wait else None

    async def _awaited(
        self, fork_id: str, all_news: AsyncGenerator[StartNews, None]
    ) -> StartedFork:
        result = StartedFork(fork_id, StartResult.WAITING.value)
        self._waiting += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S), contextlib.aclosing(all_news):
                    async for news in all_news:
                        result = StartedFork(
                            fork_id, news.result.value, news.ms, news.reason, news.detail
                        )
        finally:
            self._waiting -= 1
        return result

    async def change(self, call: Call) -> web.StreamResponse:
        """Make sides of a fork silent, or let them be heard again."""
        change: Change = call.body
        mute = change.mute
        if mute.in_ is None and mute.out is None:
            raise BadValue("mute: expected in, out or both")
        fork_id, origin = _fork_id(call.part), Origin(DOOR, call.who)
        request = MuteFork(Target("", ""), fork_id, mute.in_, mute.out, origin=origin)
        await self._finished(self._parts.ask(request), call)
        sides = " and ".join(
            f"{name} {'off' if muted else 'on'}"
            for name, muted in (("in", mute.in_), ("out", mute.out))
            if muted is not None
        )
        log.info("HTTP client %s has switched %s of fork %s", call.who, sides, fork_id)
        return answer(self._fields(await self._one(fork_id)))

    async def stop(self, call: Call) -> web.StreamResponse:
        """Stop a fork."""
        fork_id = _fork_id(call.part)
        request = StopFork(Target("", ""), fork_id, origin=Origin(DOOR, call.who))
        await self._finished(self._parts.ask(request), call)
        log.info("HTTP client %s has stopped fork %s", call.who, fork_id)
        return answer_nothing()

    async def _finished(self, order: Awaitable[_Result], call: Call) -> _Result:
        """Carry an order out, even if the client leaves; log if it is refused."""
        task = asyncio.ensure_future(order)
        self._orders.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except (RequestRefused, AmiError, NobodyLeads) as exc:
            if self._refusals.count():
                text = "%s of HTTP client %s: %s"
                log.warning(text, call.request.method, call.who, harmless(str(exc)))
            raise

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._orders.discard(task)
        if not task.cancelled():
            task.exception()  # it was raised where somebody waits; else nobody asks any more


def _fields_of(wish: StartWish) -> dict[str, str]:
    """Return a request as the other doors get it; params may hold any text."""
    fields = {
        "Command": "ConnectAudioFork" if wish.connect else "StartAudioFork",
        "WsServer": wish.url,
        "Channel": wish.channel,
        "Uniqueid": wish.uniqueid,
        "Options": wish.options,
        "PostProcess": wish.post_process,
        "Params": urlencode(wish.params),
    }
    return {name: value for name, value in fields.items() if value}


def _fork_id(text: str) -> str:
    """Return the id of a fork, or the beginning of one, which a refusal completes.

    Raises:
        Problem: It is neither.
    """
    if is_beginning_of_id(text):
        return text
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise Problem(404, NO_SUCH_FORK, Kind.NO_SUCH_FORK) from None


def _begin(found: list[ForkView], cursor: str) -> int:
    """Return where a page begins: behind the fork that ended the last one, or where that was."""
    if not cursor:
        return 0
    number, _, fork_id = cursor.partition(".")
    behind = (place for place, view in enumerate(found, 1) if view.id == fork_id)
    return next(behind, min(int(number), len(found)))


def _has(texts: list[str], part: str) -> bool:
    return not part or any(part.casefold() in text.casefold() for text in texts)
