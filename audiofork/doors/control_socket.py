"""The control socket: the door that the command line uses.

It is a Unix stream socket. Requests and answers are lines, see `control_answers.py`; a client may
send any number of requests on a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
from pathlib import Path
from typing import Any

from audiofork.doors.control_answers import GiveAnswers, refusal
from audiofork.doors.control_protocol import MAX_LINE_BYTES
from audiofork.errors import RequestRefused
from audiofork.forks.requests import Origin
from audiofork.unix_sockets import bind, peer_of, remove

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
# The time limit between two requests, for a whole line, and until the client has read an answer.
PATIENCE_S = 60.0
CLOSE_TIMEOUT_S = 1.0
_BACKLOG = 128


class ControlSocket:
    """The server of the control socket.

    Owned by the daemon. Connections are independent of each other; each is served one request at a
    time. A connection that sends or reads nothing for PATIENCE_S is dropped.

    Args:
        path: The path of the socket file; its folder must exist.
        answers: Answers requests.
    """

    def __init__(self, path: Path, answers: GiveAnswers) -> None:
        self._path = path
        self._answers = answers
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._closed = False
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
                await _send(writer, refusal(f"{MAX_CONNECTIONS} connections are open already"))
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
                await _send(writer, refusal(str(exc)))
                return  # where the next line begins nobody knows
            if not line:
                return
            # Closed at once where the client is gone: what is still being done for it ends.
            async with contextlib.aclosing(self._answers(line, origin)) as answers:
                async for answer in answers:
                    await _send(writer, answer)


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
