"""Answers lines of JSON, as they come over the control socket.

A request is one line with a JSON object, and so is an answer. A request has the fields of
`requests.py`, with strings as values, and a Command, which may also be ListAudioForks,
CheckAudioFork or one of those that are described below. An answer is one of

    {"ok": true, "forks": [...]}        ids; for ListAudioForks objects with the fields of ForkView
    {"ok": false, "code": "refused", "error": "No such channel"}

where `code` is one of the values of `Code`. A granted StartAudioFork with the field `Wait: yes` has
further answers, with the fields of StartNews: one immediately, one at each change, and one each
second:

    {"ok": true, "forks": ["3f2a..."], "waits": true}
    {"ok": true, "result": "waiting", "fork": {...}, "ms": null, "reason": "", "detail": ""}
    {"ok": true, "result": "streaming", "fork": {...}, "ms": 312, "reason": "", "detail": ""}

The last of them has the result streaming or ended; then the next request is read. If too many
clients wait already, there is only the first answer, without `waits`.

CheckAudioFork runs a check in a process of its own. It has one answer for each line of the check,
and one for its end:

    {"ok": true, "line": "ok    login: ..."}
    {"ok": true, "exit_code": 0}

ListAudioForkHistory, ListAudioForkCauses and ForgetAudioForkCaller ask the history; see
history_answers.py. ListAudioForkCluster and the field Asterisk are for controllers of a cluster;
see cluster_answers.py. So is

    {"Command": "DrainAudioForkRelay", "Relay": "r1"}

which has the forks of a relay host move to others; with the field `Undo: yes` it takes some again.
Controllers ask each other by ListAudioForkMoments and ListAudioForkMinutes; see detail_answers.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from audiofork.doors.control_protocol import ASTERISK_AWAY
from audiofork.doors.control_protocol import MAX_LINE_BYTES as MAX_LINE_BYTES
from audiofork.doors.control_protocol import Code as Code
from audiofork.doors.history_answers import COMMANDS as OF_HISTORY
from audiofork.doors.history_answers import HistoryAnswers
from audiofork.errors import (
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    DaemonBusy,
    HistoryUnavailable,
    RequestRefused,
)
from audiofork.forks.requests import (
    CONNECT,
    MUTE,
    START,
    STOP,
    VERBS,
    Origin,
    Request,
    flag_of,
    parse_request,
)

# Named here too, for all who answer.
from audiofork.reading_json import parsed_json
from audiofork.text import A_BUG, did_you_mean, printable

if TYPE_CHECKING:
    from audiofork.doors.detail_answers import DetailAnswers
    from audiofork.forks.following import StartNews
    from audiofork.forks.view import ForkView

log = logging.getLogger(__name__)

LIST = "listaudioforks"
CHECK = "checkaudiofork"
CLUSTER = "listaudioforkcluster"  # see cluster_answers.py
DRAIN = "drainaudioforkrelay"
MOMENTS, MINUTES = "listaudioforkmoments", "listaudioforkminutes"
OF_DETAILS = frozenset({MOMENTS, MINUTES})
COMMANDS = frozenset({START, STOP, MUTE, CONNECT, LIST, CHECK, CLUSTER, DRAIN})
COMMANDS |= OF_HISTORY | OF_DETAILS
NO_CLUSTER = "this daemon is in no cluster"

# Most clients that wait for a start. While a server is away, others can still ask why.
MAX_WAITING = 128
MAX_ERROR_CHARACTERS = 300


Answers = AsyncGenerator[dict[str, Any], None]
GiveAnswers = Callable[[bytes, Origin], Answers]
"""Yields the answers to a line; close it where nobody wants them any more."""
RunCheck = Callable[[Mapping[str, str]], Answers]


class ControlAnswers:
    """Answers requests to the daemon.

    Owned by the daemon. May be called for several requests at a time.

    Args:
        ask: Grants a request and returns the ids of the forks it concerns, or raises
            RequestRefused or AmiError.
        list_forks: Returns all forks.
        legs_left: Returns how many legs of ended forks Asterisk still has.
        follow: Yields the progress of a fork's start; called with its id when `ask` has returned.
        check: Runs a check, and yields the answers to the client, without `ok`; None: checks are
            refused.
        run_id: Distinguishes this run of the daemon from other daemons of this Asterisk.
        history: Answers questions to the history; None: they are refused.
        drain: Has a relay host drained, or not any more, by its name; returns whether it is there.
            None: there is no cluster.
        details: Answers what only controllers ask; None: there is no cluster.
    """

    def __init__(
        self,
        ask: Callable[[Request], Awaitable[list[str]]],
        list_forks: Callable[[], Awaitable[list[ForkView]]],
        legs_left: Callable[[], int] = lambda: 0,
        follow: Callable[[str], AsyncGenerator[StartNews, None]] = lambda _: _nothing(),
        check: RunCheck | None = None,
        run_id: str = "",
        history: HistoryAnswers | None = None,
        drain: Callable[[str, bool], bool] | None = None,
        details: DetailAnswers | None = None,
    ) -> None:
        self._ask = ask
        self._list = list_forks
        self._follow = follow
        self._legs_left = legs_left
        self._check = check
        self._run_id = run_id
        self._history = history
        self._drain = drain
        self._details = details
        self._waiting = 0

    async def __call__(self, line: bytes, origin: Origin) -> Answers:
        """Yield the answers to a line: only documented ones, whatever the line contains."""
        try:
            fields = parse_line(line)
            parts = self._parts_of(fields, origin)
            if parts is not None:
                async with contextlib.aclosing(parts):
                    async for part in parts:
                        yield {"ok": True, **part}
            else:
                yield {"ok": True, **await self._answer(fields, origin)}
        except RequestRefused as exc:
            yield refusal(str(exc))
        except HistoryUnavailable as exc:
            yield refusal(str(exc), Code.HISTORY)
        except DaemonBusy as exc:
            yield refusal(str(exc), Code.BUSY)
        except AmiError as exc:
            away = isinstance(exc, AmiUnavailable | AmiTimeout)
            text = f"{ASTERISK_AWAY}{exc}"
            yield refusal(text, Code.ASTERISK if away else Code.REFUSED)
        except Exception:
            log.exception("a request of the control socket could not be handled")
            yield refusal(A_BUG, Code.FAULT)

    async def _answer(self, fields: dict[str, str], origin: Origin) -> dict[str, Any]:
        command = command_of(fields)
        if command == CLUSTER:
            raise RequestRefused(NO_CLUSTER)
        if command == DRAIN:
            return self._drain_host(_lower(fields))
        if command in OF_HISTORY:
            if self._history is None:
                raise RequestRefused("this daemon has no history")
            return await self._history.answer(command, _lower(fields))
        if command in OF_DETAILS:
            if self._details is None:
                raise RequestRefused(NO_CLUSTER)
            return self._details.answer(command, _lower(fields))
        if command == LIST:
            forks = [_plain(view) for view in await self._list()]
            return {"forks": forks, "legs_left": self._legs_left(), "run": self._run_id}
        return {"forks": await self._ask(parse_request(fields, origin))}

    def _drain_host(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """Have the relay host drained that a request names.

        Raises:
            RequestRefused: It is not there.
        """
        name = fields.get("relay", "")
        if self._drain is None:
            raise RequestRefused(NO_CLUSTER)
        if not self._drain(name, not flag_of(fields, "undo")):
            raise RequestRefused(f"there is no relay host {printable(name[:63], '?')}")
        return {}

    def _parts_of(self, fields: dict[str, str], origin: Origin) -> Answers | None:
        """Return the answers to a request that has several; None if it has only one.

        Raises:
            RequestRefused: The request is not granted.
        """
        command = command_of(fields)
        if _lower(fields).get("asterisk"):
            raise RequestRefused(f"Asterisk: {NO_CLUSTER}")
        if command == CHECK:
            if self._check is None:
                raise RequestRefused("this daemon runs no checks")
            return self._check(_lower(fields))
        if command in (START, CONNECT) and flag_of(fields, "Wait") and self._waiting < MAX_WAITING:
            return self._start(fields, origin)
        return None

    async def _start(self, fields: dict[str, str], origin: Origin) -> Answers:
        """Start a fork, and yield the progress of its start."""
        self._waiting += 1
        try:
            ids = await self._ask(parse_request(fields, origin))
            # Follow the fork at once: it could end in the next turn of the loop.
            async with contextlib.aclosing(self._follow(ids[0])) as all_news:
                yield {"forks": ids, "waits": True}
                async for news in all_news:
                    yield _plain(news)
        finally:
            self._waiting -= 1


async def _nothing() -> AsyncGenerator[StartNews, None]:
    """Yield nothing."""
    none: tuple[StartNews, ...] = ()
    for news in none:
        yield news


# --- From a line to fields -----------------------------------------------------------------------


def parse_line(line: bytes) -> dict[str, str]:
    """Return the fields of a request.

    Raises:
        RequestRefused: The line is not a JSON object whose values are strings.
    """
    try:
        # Decoded first, because json would guess the encoding of bytes.
        fields = parsed_json(line.decode())
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise RequestRefused("expected a JSON object in one line of UTF-8")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise RequestRefused(f"{printable(name, '?')}: expected a string")
    return fields


def command_of(fields: dict[str, str]) -> str:
    """Return the Command, in lower case.

    Raises:
        RequestRefused: It is missing or unknown; parse_request would treat that as a start.
    """
    command = _lower(fields).get("command", "").strip(" \t").lower()
    if command not in COMMANDS:
        raise RequestRefused(
            f"Command: expected {', '.join(VERBS)}, ListAudioForks, CheckAudioFork or one of the "
            "history" + did_you_mean(command, VERBS)
        )
    return command


def _lower(fields: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in fields.items()}


def refusal(text: str, code: Code = Code.REFUSED) -> dict[str, Any]:
    """Return the answer to a request that is not granted."""
    return {"ok": False, "code": code.value, "error": text[:MAX_ERROR_CHARACTERS]}


def _plain(view: ForkView | StartNews) -> dict[str, Any]:
    """Return a fork, or the news of one, as types that JSON has."""
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in dataclasses.asdict(view).items()
    }
