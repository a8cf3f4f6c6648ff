"""The control socket: the door that the command line uses.

It is a Unix stream socket. A request is one line with a JSON object, and so is an answer; a client
may send any number of requests on a connection. A request has the fields of `requests.py`, with
strings as values, and a Command, which may also be ListAudioForks, CheckAudioFork or one of those
that are described below. An answer is one of

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
history_answers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import itertools
import json
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from audiofork.text import A_BUG, did_you_mean, printable
from audiofork.unix_sockets import MAX_PATH_BYTES as MAX_PATH_BYTES
from audiofork.unix_sockets import bind, peer_of, remove

if TYPE_CHECKING:
    from audiofork.forks.following import StartNews
    from audiofork.forks.view import ForkView

log = logging.getLogger(__name__)

LIST = "listaudioforks"
CHECK = "checkaudiofork"
COMMANDS = frozenset({START, STOP, MUTE, CONNECT, LIST, CHECK}) | OF_HISTORY

MAX_LINE_BYTES = 65_536
MAX_CONNECTIONS = 256
# Most clients that wait for a start. While a server is away, others can still ask why.
MAX_WAITING = 128
# The time limit between two requests, for a whole line, and until the client has read an answer.
PATIENCE_S = 60.0
CLOSE_TIMEOUT_S = 1.0
MAX_ERROR_CHARACTERS = 300
_BACKLOG = 128


class Code(enum.StrEnum):
    """Why a request was not granted."""

    REFUSED = "refused"
    """The request cannot be granted; `error` says why."""
    ASTERISK = "asterisk"
    """Asterisk cannot be reached, or does not answer."""
    BUSY = "busy"
    """The daemon is doing this for another client; `error` says what to do."""
    HISTORY = "history"
    """The history cannot be asked now; `error` says why."""
    FAULT = "fault"
    """A bug in the daemon; its log has a traceback."""


Answers = AsyncGenerator[dict[str, Any], None]
RunCheck = Callable[[Mapping[str, str]], Answers]


class ControlSocket:
    """The server of the control socket.

    Owned by the daemon. Connections are independent of each other; each is served one request at a
    time. A connection that sends or reads nothing for PATIENCE_S is dropped.

    Args:
        path: The path of the socket file; its folder must exist.
        ask: Grants a request and returns the ids of the forks it concerns, or raises
            RequestRefused or AmiError.
        list_forks: Returns all forks.
        legs_left: Returns how many legs of ended forks Asterisk still has.
        follow: Yields the progress of a fork's start; called with its id when `ask` has returned.
        check: Runs a check, and yields the answers to the client, without `ok`; None: checks are
            refused.
        run_id: Distinguishes this run of the daemon from other daemons of this Asterisk.
        history: Answers questions to the history; None: they are refused.
    """

    def __init__(
        self,
        path: Path,
        ask: Callable[[Request], Awaitable[list[str]]],
        list_forks: Callable[[], Awaitable[list[ForkView]]],
        legs_left: Callable[[], int] = lambda: 0,
        follow: Callable[[str], AsyncGenerator[StartNews, None]] = lambda _: _nothing(),
        check: RunCheck | None = None,
        run_id: str = "",
        history: HistoryAnswers | None = None,
    ) -> None:
        self._path = path
        self._ask = ask
        self._list = list_forks
        self._follow = follow
        self._legs_left = legs_left
        self._check = check
        self._run_id = run_id
        self._history = history
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._closed = False
        self._waiting = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        """Listen; replace the socket of a dead daemon if there is one.

        Raises:
            ConfigError: The path cannot be used, or another daemon listens there.
        """
        listening = bind(self._path, "[control] socket")
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listening, limit=MAX_LINE_BYTES, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Drop every connection and remove the socket; may be called again."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._closed = True
        server.close()
        remove(self._path, self._inode)
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    # --- Connections ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # accepted just before
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                await _send(writer, _refusal(f"{MAX_CONNECTIONS} connections are open already"))
            else:
                await self._answer_all(reader, writer)
            writer.close()
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # the client is gone, or does not read
        except asyncio.CancelledError:
            # Python 3.11's streams would log a cancelled task as an error, so this one just ends.
            if not self._closed:
                raise
        except Exception:
            log.exception("unexpected error while serving a control connection")
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        who = f"connection {next(self._numbers)}{_of_user(writer)}"
        origin = Origin("control socket", who)
        while True:
            try:
                line = await _read_line(reader)
            except RequestRefused as exc:
                await _send(writer, _refusal(str(exc)))
                return  # where the next line begins nobody knows
            if not line:
                return
            # Closed at once where the client is gone: what is still being done for it ends.
            async with contextlib.aclosing(self._answers(line, origin)) as answers:
                async for answer in answers:
                    await _send(writer, answer)

    async def _answers(self, line: bytes, origin: Origin) -> Answers:
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
            yield _refusal(str(exc))
        except HistoryUnavailable as exc:
            yield _refusal(str(exc), Code.HISTORY)
        except DaemonBusy as exc:
            yield _refusal(str(exc), Code.BUSY)
        except AmiError as exc:
            away = isinstance(exc, AmiUnavailable | AmiTimeout)
            text = f"Asterisk cannot be asked: {exc}"
            yield _refusal(text, Code.ASTERISK if away else Code.REFUSED)
        except Exception:
            log.exception("a request of the control socket could not be handled")
            yield _refusal(A_BUG, Code.FAULT)

    async def _answer(self, fields: dict[str, str], origin: Origin) -> dict[str, Any]:
        command = command_of(fields)
        if command in OF_HISTORY:
            if self._history is None:
                raise RequestRefused("this daemon has no history")
            return await self._history.answer(command, _lower(fields))
        if command == LIST:
            forks = [_plain(view) for view in await self._list()]
            return {"forks": forks, "legs_left": self._legs_left(), "run": self._run_id}
        return {"forks": await self._ask(parse_request(fields, origin))}

    def _parts_of(self, fields: dict[str, str], origin: Origin) -> Answers | None:
        """Return the answers to a request that has several; None if it has only one.

        Raises:
            RequestRefused: The request is not granted.
        """
        command = command_of(fields)
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


def _of_user(writer: asyncio.StreamWriter) -> str:
    """Return the user of a connection, for the log; empty if unknown."""
    peer: socket.socket | None = writer.get_extra_info("socket")
    if peer is None:
        return ""
    return f" of uid {peer_of(peer).uid}"


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, or nothing at the end; the last line needs no line end.

    Raises:
        RequestRefused: The line is too long.
        TimeoutError: No line came in time.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as exc:
        return exc.partial
    except asyncio.LimitOverrunError:
        raise RequestRefused(f"the request is longer than {MAX_LINE_BYTES} bytes") from None


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    """Send an answer.

    Raises:
        OSError: The client is gone.
        TimeoutError: It does not read.
    """
    if writer.is_closing():  # to write would be a RuntimeError of uvloop
        raise ConnectionResetError
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(PATIENCE_S):
        await writer.drain()


# --- From a line to fields -----------------------------------------------------------------------


def parse_line(line: bytes) -> dict[str, str]:
    """Return the fields of a request.

    Raises:
        RequestRefused: The line is not a JSON object whose values are strings.
    """
    try:
        # Decoded first, because json would guess the encoding of bytes. RecursionError: thousands
        # of brackets. ValueError includes JSONDecodeError and UnicodeDecodeError.
        fields = json.loads(line.decode())
    except (ValueError, RecursionError):
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


def _refusal(text: str, code: Code = Code.REFUSED) -> dict[str, Any]:
    return {"ok": False, "code": code.value, "error": text[:MAX_ERROR_CHARACTERS]}


def _plain(view: ForkView | StartNews) -> dict[str, Any]:
    """Return a fork, or the news of one, as types that JSON has."""
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in dataclasses.asdict(view).items()
    }
