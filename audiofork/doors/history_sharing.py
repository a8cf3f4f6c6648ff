"""The history of a whole cluster: each controller keeps its own, and all are asked.

A controller answers for its own file on `audiofork.history.ASTERISK.CONTROLLER`, with the words of
`history_answers.py`, whether it leads or stands by. Whoever is asked for the history asks all, and
merges what they say by time. A cursor is a place in time, so a page goes on wherever the last one
ended, whoever answers then:

    {"ok": true, "entries": [{"asterisk": "pbx-a", "controller": "c1", ...}], "next_cursor": "...",
     "missing": {"pbx-a/c2": "nothing was heard for 2 s"}}

With the field Asterisk, those of that Asterisk alone are asked. Callers are forgotten in the same
way, on `audiofork.forget.ASTERISK.CONTROLLER`, so that whoever may search may not remove:

    {"ok": true, "removed": 3, "blanked": 1, "missing": {},
     "controllers": {"pbx-a/c1": {"removed": 2, "blanked": 1}, "pbx-a/c2": {...}}}
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from audiofork.cluster.broker import Broker
from audiofork.doors import told
from audiofork.doors.broker_door import ask_subject, no_such_asterisk
from audiofork.doors.control_answers import Answers, GiveAnswers, command_of, parse_line, refusal
from audiofork.doors.control_protocol import Code
from audiofork.doors.history_answers import (
    CAUSES,
    FORGET,
    HISTORY,
    as_dict,
    number_of,
    query_of,
)
from audiofork.errors import BrokerUnavailable, HistoryUnavailable, NoMessage, RequestRefused
from audiofork.forks import history_file, history_search
from audiofork.forks.history_entries import MOST_ENTRIES, Cause, Entry
from audiofork.forks.history_forgetting import Forgotten
from audiofork.forks.requests import Origin
from audiofork.forks.timelines import Moment
from audiofork.text import A_BUG

log = logging.getLogger(__name__)

SUBJECT = "audiofork.history"
FORGET_SUBJECT = "audiofork.forget"
# Asked for beyond a page: entries of the very moment at which the last page ended.
BEYOND = 20
MOST_IN_PAGE = MOST_ENTRIES - BEYOND - 1
MOST_MOMENTS = 1000
MOST_TOTALS = 100
_CURSOR = re.compile(r"([0-9]{1,16}\.[0-9]{1,24})-([0-9a-f-]{36})")
NO_HISTORY = "this controller keeps no history: [history] file is empty"


class Keeper(NamedTuple):
    """A controller, which may keep a history."""

    asterisk: str
    name: str

    @property
    def subject(self) -> str:
        """Where it is asked."""
        return f"{SUBJECT}.{self.asterisk}.{self.name}"

    @property
    def forget_subject(self) -> str:
        """Where it is told to forget a caller."""
        return f"{FORGET_SUBJECT}.{self.asterisk}.{self.name}"

    def __str__(self) -> str:
        return f"{self.asterisk}/{self.name}"


class OwnHistory:
    """Answers for the history of this controller: by its daemon while it leads, else by the file.

    The daemon locks the file, so nobody reads it any more when it begins.

    Args:
        file: The file; empty: there is none.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._daemon: GiveAnswers | None = None
        self._is_closed = False
        self._gives_up = threading.Event()
        self._changing = asyncio.Lock()
        self._at_file: set[asyncio.Task[dict[str, Any]]] = set()

    async def leave_to_daemon(self) -> None:
        """Use the file no more; returns when nobody uses it."""
        self._is_closed = True
        self._gives_up.set()
        await asyncio.gather(*self._at_file, return_exceptions=True)

    def begin_to_lead(self, daemon: GiveAnswers) -> None:
        """Have the daemon answer, which has the file from now on."""
        self._daemon = daemon

    def end_to_lead(self) -> None:
        """Answer no more by the daemon."""
        self._daemon = None

    def take_back(self) -> None:
        """Read the file again: no daemon has it."""
        self._is_closed = False
        self._gives_up.clear()

    def __call__(self, line: bytes, origin: Origin) -> Answers:
        """Yield the answer to a line: nothing but a search is granted here."""
        return self._answers(line, origin, (HISTORY, CAUSES), "a search of the history")

    def forget(self, line: bytes, origin: Origin) -> Answers:
        """Yield the answer to a line: nothing but to forget a caller is granted here."""
        return self._answers(line, origin, (FORGET,), "a caller to be forgotten")

    async def _answers(
        self, line: bytes, origin: Origin, commands: Collection[str], expected: str
    ) -> Answers:
        try:
            fields = parse_line(line)
            command = command_of(fields)
            if command not in commands:
                raise RequestRefused(f"expected {expected}")
            if not self._file:
                raise RequestRefused(NO_HISTORY)
            if self._daemon is not None:
                async with contextlib.aclosing(self._daemon(line, origin)) as answers:
                    async for answer in answers:
                        yield answer
                return
            lower = {name.lower(): value for name, value in fields.items()}
            if command == FORGET:
                yield {"ok": True, **await self._forget(number_of(lower))}
            else:
                yield {"ok": True, **await self._read(command, lower)}
        except RequestRefused as exc:
            yield refusal(str(exc))
        except HistoryUnavailable as exc:
            yield refusal(str(exc), Code.HISTORY)
        except Exception:
            log.exception("a request to the history could not be handled")
            yield refusal(A_BUG, Code.FAULT)

    async def _read(self, command: str, fields: Mapping[str, str]) -> dict[str, Any]:
        async with self._changing:  # SQLite lets nobody read while a caller is forgotten
            pass
        return await self._in_thread(self._answer, command, fields)

    async def _forget(self, number: str) -> dict[str, Any]:
        async with self._changing:
            await asyncio.gather(*self._at_file, return_exceptions=True)
            return await self._in_thread(self._forget_in_file, number)

    async def _in_thread(self, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        if self._is_closed:
            raise HistoryUnavailable("this controller begins to lead: ask again")
        task = asyncio.create_task(asyncio.to_thread(work, *given))
        self._at_file.add(task)
        task.add_done_callback(self._at_file.discard)
        return await asyncio.shield(task)

    def _forget_in_file(self, number: str) -> dict[str, Any]:
        path = Path(self._file)
        if not path.exists():  # it has never led
            return Forgotten(0, 0)._asdict()
        return history_file.forget(path, number, self._gives_up.is_set)._asdict()

    def _answer(self, command: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer of the file; called in a thread."""
        path, give_up = Path(self._file), self._gives_up.is_set
        if not path.exists():  # it has never led
            return {"causes": []} if command == CAUSES else {"entries": [], "next_cursor": ""}
        with history_file.reading(path) as db:
            if command == CAUSES:
                since = query_of({"since": fields.get("since", "")}).since or 0.0
                causes = history_search.causes(db, since, give_up)
                return {"causes": [dataclasses.asdict(one) for one in causes]}
            if fork_id := fields.get("audioforkid", "").strip().lower():
                entry = history_search.entry(db, fork_id)
                return {"entries": [as_dict(entry)] if entry else [], "next_cursor": ""}
            try:
                entries, cursor = history_search.search(db, query_of(fields), give_up)
            except ValueError as exc:
                raise RequestRefused(f"Cursor: {exc}") from None
            return {"entries": [as_dict(one) for one in entries], "next_cursor": cursor}


class HistoryOfCluster:
    """Asks all controllers for their histories, or has them forget a caller.

    Args:
        broker: The connection to the broker.
        name: That of this controller.
        own: Our own histories, which are asked without the broker.
        others: Returns the other controllers that are known.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        own: Mapping[Keeper, OwnHistory],
        others: Callable[[], Sequence[Keeper]],
    ) -> None:
        self._broker = broker
        self._name = name
        self._own = own
        self._others = others

    async def answer(
        self, command: str, fields: Mapping[str, str], origin: Origin
    ) -> dict[str, Any]:
        """Return the answer of all to a search, or to a caller that is to be forgotten.

        Args:
            command: Which one, in lower case.
            fields: The fields of the request, by name in lower case.
            origin: Who asks.

        Raises:
            RequestRefused: A field is wrong.
            HistoryUnavailable: Nobody keeps a history.
        """
        fields = {name: text for name, text in fields.items() if name != "command"}
        if command == FORGET:
            return await self._forget({"Command": command, **fields}, origin)
        if command == CAUSES:
            answers, missing = await self._ask({"Command": command, **fields}, origin)
            return {"causes": _merged_causes(answers, missing), "missing": missing}
        if fields.get("audioforkid", "").strip():
            answers, missing = await self._ask({"Command": command, **fields}, origin)
            found = _merged(answers, missing)
            return {"entries": found[:1], "next_cursor": "", "missing": missing}
        return await self._search(command, fields, origin)

    async def _forget(self, fields: dict[str, str], origin: Origin) -> dict[str, Any]:
        number_of(fields)  # raises before anybody has begun
        answers, missing = await self._ask(fields, origin)
        each: dict[str, Forgotten] = {}
        for keeper, answer in answers.items():
            try:
                each[str(keeper)] = _forgotten_in(answer)
            except NoMessage as exc:
                missing[str(keeper)] = f"what it has answered cannot be understood: {exc}"
        return {
            "removed": sum(one.removed for one in each.values()),
            "blanked": sum(one.blanked for one in each.values()),
            "controllers": {name: one._asdict() for name, one in each.items()},
            "missing": missing,
        }

    async def _search(self, command: str, fields: dict[str, str], origin: Origin) -> dict[str, Any]:
        query = query_of(fields)
        limit = min(max(query.limit, 1), MOST_IN_PAGE)
        until, after = query.until, None
        if query.cursor:
            at, fork_id = _position(query.cursor)
            after = -at, fork_id
            beyond = math.nextafter(at, math.inf)
            until = beyond if until is None else min(until, beyond)
        asked = {name: value for name, value in fields.items() if name != "cursor"}
        asked |= {"Command": command, "limit": str(limit + 1 + BEYOND)}
        if until is not None:
            asked["until"] = repr(until)
        answers, missing = await self._ask(asked, origin)
        found = [one for one in _merged(answers, missing) if after is None or _place(one) > after]
        more = len(found) > limit
        page = found[:limit]
        cursor = f"{page[-1]['ended_at']!r}-{page[-1]['fork_id']}" if more else ""
        return {"entries": page, "next_cursor": cursor, "missing": missing}

    async def _ask(
        self, fields: Mapping[str, str], origin: Origin
    ) -> tuple[dict[Keeper, dict[str, Any]], dict[str, str]]:
        """Return the answers of those who keep a history, and why others have not answered.

        Raises:
            RequestRefused: A field is wrong.
            HistoryUnavailable: Nobody keeps one.
        """
        keepers = self._keepers(fields.get("asterisk", ""))
        rest = {name: text for name, text in fields.items() if name != "asterisk"}
        line, forgets = json.dumps(rest).encode(), fields["Command"] == FORGET
        answers: dict[Keeper, dict[str, Any]] = {}
        missing: dict[str, str] = {}
        refused = ""

        async def ask(keeper: Keeper) -> None:
            nonlocal refused
            own = self._own.get(keeper)
            if own is not None:
                asked = own.forget(line, origin) if forgets else own(line, origin)
            else:
                who = f"{self._name}, {origin.door} {origin.who}"
                subject = keeper.forget_subject if forgets else keeper.subject
                asked = ask_subject(self._broker, subject, line, who)
            try:
                async with contextlib.aclosing(asked):
                    answer = await anext(asked)
            except StopAsyncIteration:
                missing[str(keeper)] = "it has not answered"
            except BrokerUnavailable as exc:
                missing[str(keeper)] = str(exc)
            else:
                if answer.get("ok") is True:
                    answers[keeper] = answer
                elif answer.get("code") == Code.REFUSED:
                    error = told.text_in(answer.get("error", ""))
                    if error != NO_HISTORY:
                        refused = error
                        missing[str(keeper)] = error
                else:
                    missing[str(keeper)] = told.text_in(answer.get("error", ""))

        await asyncio.gather(*(ask(one) for one in keepers))
        if not answers and not missing:
            raise HistoryUnavailable("no controller of the cluster keeps a history")
        if not answers and refused:
            raise RequestRefused(refused)
        return {one: answers[one] for one in keepers if one in answers}, missing

    def _keepers(self, asterisk: str) -> list[Keeper]:
        """Return who may keep a history of an Asterisk; empty: of any.

        Raises:
            RequestRefused: The cluster has no such Asterisk.
        """
        keepers = list(dict.fromkeys((*self._own, *self._others())))
        found = [one for one in keepers if asterisk in ("", one.asterisk)]
        if not found:
            raise no_such_asterisk(asterisk, sorted({one.asterisk for one in keepers}))
        return found


# --- What comes back -----------------------------------------------------------------------------


def _place(entry: Mapping[str, Any]) -> tuple[float, str]:
    """Return what entries are sorted by: the latest first."""
    return -entry["ended_at"], entry["fork_id"]


def _position(cursor: str) -> tuple[float, str]:
    """Return the time and the fork of the last entry of a page.

    Raises:
        RequestRefused: It is no cursor.
    """
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise RequestRefused("Cursor: expected one of an earlier answer")
    return float(found[1]), found[2]


def _merged(
    answers: Mapping[Keeper, Mapping[str, Any]], missing: dict[str, str]
) -> list[dict[str, Any]]:
    """Return all entries, the latest first, each fork once."""
    found: dict[str, dict[str, Any]] = {}
    for keeper, answer in answers.items():
        try:
            for item in _items(answer, "entries"):
                entry = entry_in(item)
                place = {"asterisk": keeper.asterisk, "controller": keeper.name}
                found.setdefault(entry.fork_id, {**as_dict(entry), **place})
        except NoMessage as exc:
            missing[str(keeper)] = f"what it has answered cannot be understood: {exc}"
    return sorted(found.values(), key=_place)


def _merged_causes(
    answers: Mapping[Keeper, Mapping[str, Any]], missing: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the causes of all, the most frequent first."""
    sums: dict[tuple[str, str], Cause] = {}
    for keeper, answer in answers.items():
        try:
            causes = [told.object_in(one, Cause) for one in _items(answer, "causes")]
        except NoMessage as exc:
            missing[str(keeper)] = f"what it has answered cannot be understood: {exc}"
            continue
        for one in causes:
            key = one.reason, one.detail
            known = sums.get(key)
            if known is not None:
                latest = max(known, one, key=lambda cause: cause.latest_at)
                one = dataclasses.replace(latest, count=known.count + one.count)
            sums[key] = one
    causes = sorted(sums.values(), key=lambda one: (-one.count, -one.latest_at))
    return [dataclasses.asdict(one) for one in causes[: history_search.MOST_CAUSES]]


def _forgotten_in(answer: Mapping[str, Any]) -> Forgotten:
    removed, blanked = answer.get("removed"), answer.get("blanked")
    if type(removed) is not int or type(blanked) is not int:
        raise NoMessage("no counts")
    return Forgotten(removed, blanked)


def _items(answer: Mapping[str, Any], name: str) -> list[Any]:
    items = answer.get(name)
    if not isinstance(items, list) or len(items) > MOST_ENTRIES:
        raise NoMessage(f"no {name}")
    return items


def entry_in(fields: object) -> Entry:
    """Return an entry that another controller tells.

    Raises:
        NoMessage: It is none.
    """
    entry = told.object_in(fields, Entry)
    assert isinstance(fields, dict), "else it were none"
    totals, timeline = fields.get("totals", {}), fields.get("timeline", [])
    if not told.is_id(entry.fork_id):
        raise NoMessage("its id cannot be one")
    if not isinstance(totals, dict) or len(totals) > MOST_TOTALS:
        raise NoMessage("no totals")
    if not all(type(one) in (int, float) and math.isfinite(one) for one in totals.values()):
        raise NoMessage("no totals")
    if not isinstance(timeline, list) or len(timeline) > MOST_MOMENTS:
        raise NoMessage("no timeline")
    moments: tuple[Moment, ...] = tuple(told.moment_in(one) for one in timeline)
    counts = {told.text_in(name): count for name, count in totals.items()}
    return dataclasses.replace(entry, totals=counts, timeline=moments)
