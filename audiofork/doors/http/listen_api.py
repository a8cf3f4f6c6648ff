"""The route that lets a client hear a fork: a WebSocket with the fork's audio, as slin."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

from aiohttp import WSMsgType, web

from audiofork.doors.http.access import Access
from audiofork.doors.http.parts import Heard, Parts
from audiofork.doors.http.problems import Kind, Problem
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.sending import harden
from audiofork.doors.http.tokens import Role
from audiofork.link.messages import EndReason
from audiofork.log import CounterLine

log = logging.getLogger(__name__)

MAX_LISTENERS = 20
# What may wait here for a listener, beside 128 KiB in the transport and 64 KiB in the kernel.
MAX_WAITING_BYTES = 64 * 1024
HEARTBEAT_S = 20.0
NOT_EXPECTED, GOING_AWAY = 1008, 1001


class Listener:
    """A client that hears a fork: what waits for it, up to a limit.

    Args:
        drop: Closes the connection of a client that does not keep up.

    Attributes:
        ended: Why the fork has ended, once it has; empty: it has not.
        is_over: Whether the client is to be left alone, for another reason.
    """

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop = drop
        self._waiting: list[Heard] = []
        self._size = 0
        self._news = asyncio.Event()
        self.ended = ""
        self.is_over = False

    def on_heard(self, heard: Heard) -> None:
        """Keep some audio until it is sent."""
        if self.is_over:
            return
        self._size += len(heard.samples)
        self._waiting.append(heard)
        if self._size > MAX_WAITING_BYTES:
            self.leave()
            self._drop()
        self._news.set()

    def on_ended(self, reason: EndReason) -> None:
        """Take note that the fork has ended; what waits is sent first."""
        self.ended = reason.value
        self._news.set()

    def leave(self) -> None:
        """Take note that the daemon has nothing more to say."""
        self.is_over = True
        self._news.set()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Yield what is sent: a text before the first audio and at each change of it, then audio.

        Ends when the fork has ended, or the listener has to leave.
        """
        told = ""
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting, self._size = self._waiting, [], 0
            for heard in waiting:
                if self.is_over:
                    return
                if told != (description := _described(heard)):
                    yield description
                    told = description
                yield heard.samples
            if self.is_over:
                return
            if self.ended:
                yield json.dumps({"ended": self.ended})
                return


def _described(heard: Heard) -> str:
    sides = [str(side) for side in heard.sides]
    fields = {"sample_rate": heard.sample_rate, "channels": len(sides), "sides": sides}
    return json.dumps(fields)


class ListenApi:
    """Lets clients hear forks.

    Args:
        parts: The parts of the daemon.
        access: Says when a listener may no longer listen.
    """

    def __init__(self, parts: Parts, access: Access) -> None:
        self._watching = parts.watching
        self._cluster = parts.cluster
        self._access = access
        self._listeners: dict[Listener, None] = {}
        self._slow = CounterLine(log, "HTTP listeners dropped")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                *("GET", "/api/v1/forks/{id}/listen", self.listen, Role.LISTEN),
                answers={101: None},
                problems=(400, 404, 503),
                is_stream=True,
                is_websocket=True,
            )
        ]

    def close(self) -> None:
        """End all of them."""
        for listener in self._listeners:
            listener.leave()

    async def listen(self, call: Call) -> web.StreamResponse:
        """Let the client hear a fork, by a WebSocket: texts that describe the audio, and slin."""
        if self._watching is None:
            raise Problem(404, "this daemon lets nobody listen", Kind.NOT_AVAILABLE)
        if len(self._listeners) >= MAX_LISTENERS:
            raise Problem(503, f"{MAX_LISTENERS} clients listen already", Kind.BUSY)
        response = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=1024, compress=False, timeout=2.0
        )
        if not response.can_prepare(call.request):
            raise Problem(400, "expected the handshake of a WebSocket")
        harden(response)
        if self._cluster is not None:
            await self._cluster.find(call.part)  # which lets the next line say who has it
        listener = Listener(lambda: self._drop(call))
        end = self._watching.listen(
            call.part,
            listener.on_heard,
            who=f"HTTP client {call.who}",
            on_end=listener.on_ended,
        )
        self._listeners[listener] = None
        assert call.identity is not None
        try:
            with self._access.stream(call.identity, listener.leave):
                await response.prepare(call.request)
                await _serve(listener, response)
        finally:
            del self._listeners[listener]
            end()
        return response

    def _drop(self, call: Call) -> None:
        self._slow.count(f"{call.who} does not keep up")
        if call.request.transport is not None:
            call.request.transport.abort()


async def _serve(listener: Listener, response: web.WebSocketResponse) -> None:
    """Send until either side has enough."""
    receiving = asyncio.create_task(_receive(response, listener))
    try:
        async for message in listener.messages():
            if isinstance(message, str):
                await response.send_str(message)
            else:
                await response.send_bytes(message)
        if not response.closed:
            code = 1000 if listener.ended else GOING_AWAY
            await response.close(code=code, message=listener.ended.encode())
    except ConnectionError:
        pass  # it has left
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


async def _receive(response: web.WebSocketResponse, listener: Listener) -> None:
    """Read until the client leaves; it has nothing to say but pings."""
    async for message in response:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            await response.close(code=NOT_EXPECTED, message=b"nothing is expected here")
            break
    listener.leave()
