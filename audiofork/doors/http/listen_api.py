"""The route that lets a client hear a fork: a WebSocket with the fork's audio, as slin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator

from aiohttp import WSMsgType, web

from audiofork.doors.event_stream import EventStream, StreamEvent
from audiofork.doors.http.access import Access
from audiofork.doors.http.parts import Heard, Parts, Watching
from audiofork.doors.http.problems import NO_SUCH_FORK, Kind, Problem
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.sending import harden
from audiofork.doors.http.tokens import Role
from audiofork.doors.http.views import Views
from audiofork.link.messages import Direction
from audiofork.log import CounterLine

log = logging.getLogger(__name__)

MAX_LISTENERS = 20
# What may wait here for a listener, beside 64 KiB in the transport and as much in the kernel.
MAX_WAITING_BYTES = 96 * 1024
HEARTBEAT_S = 20.0
LOOK_S = 15.0
_SIDES = {Direction.IN: ["in"], Direction.OUT: ["out"]}
TOO_SLOW, NOT_EXPECTED, GOING_AWAY = 1013, 1008, 1001


class Listener:
    """A client that hears a fork: what waits for it, up to a limit.

    Attributes:
        ended: Why the fork has ended, once it has; empty: it has not.
        is_slow: Whether more waited than may.
        is_over: Whether the client is to be left alone, for another reason.
    """

    def __init__(self, direction: str) -> None:
        self._direction = direction
        self._waiting: list[Heard] = []
        self._size = 0
        self._news = asyncio.Event()
        self.ended = ""
        self.is_slow = False
        self.is_over = False

    def on_heard(self, heard: Heard) -> None:
        """Keep some audio until it is sent."""
        self._size += len(heard.samples)
        if self._size > MAX_WAITING_BYTES:
            self.is_slow = True
        else:
            self._waiting.append(heard)
        self._news.set()

    def on_ended(self, reason: str) -> None:
        """Take note that the fork has ended; what waits is sent first."""
        self.ended = reason
        self._news.set()

    def leave(self) -> None:
        """Take note that the daemon has nothing more to say."""
        self.is_over = True
        self._news.set()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Yield what is sent: a text before the first audio and at each change of it, then audio.

        Ends when the fork has ended, the listener is too slow, or has to leave.
        """
        told: tuple[int, int] | None = None
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting, self._size = self._waiting, [], 0
            if self.is_slow or self.is_over:
                return
            for heard in waiting:
                if told != (form := (heard.sample_rate, heard.channels)):
                    told = form
                    yield json.dumps(self._described(heard))
                yield heard.samples
            if self.ended:
                yield json.dumps({"ended": self.ended})
                return

    def _described(self, heard: Heard) -> dict[str, object]:
        sides = ["in", "out"]
        if heard.channels == 1:
            sides = _SIDES.get(Direction(self._direction), ["mix"])
        return {"sample_rate": heard.sample_rate, "channels": heard.channels, "sides": sides}


class ListenApi:
    """Lets clients hear forks.

    Args:
        parts: The parts of the daemon.
        views: All forks.
        access: Says whether a listener may still listen.
    """

    def __init__(self, parts: Parts, views: Views, access: Access) -> None:
        self._watching = parts.watching
        self._stream: EventStream = parts.stream
        self._views = views
        self._access = access
        self._listeners: dict[Listener, Call] = {}
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

    def drop_strangers(self) -> None:
        """Drop the listeners whose token is no longer known."""
        for listener, call in self._listeners.items():
            if call.identity is None or not self._access.is_current(call.identity):
                listener.leave()

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
        view = await self._views.one(call.part)
        if view is None:
            raise Problem(404, NO_SUCH_FORK, Kind.NO_SUCH_FORK)
        response = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=1024, compress=False, timeout=2.0
        )
        if not response.can_prepare(call.request):
            raise Problem(400, "expected the handshake of a WebSocket")
        harden(response)
        listener = Listener(view.direction)
        with self._heard_by(listener, call, self._watching):
            await response.prepare(call.request)
            log.info("HTTP client %s listens to fork %s %s", call.who, view.id, view.channel)
            await self._serve(listener, response, call)
            log.info("HTTP client %s listens no more to fork %s", call.who, view.id)
        return response

    @contextlib.contextmanager
    def _heard_by(self, listener: Listener, call: Call, watching: Watching) -> Iterator[None]:
        """Let a listener hear a fork meanwhile; raises RequestRefused."""

        def on_event(event: StreamEvent) -> None:
            if event.fork_id == call.part and event.name == "fork.ended":
                listener.on_ended(str(json.loads(event.json)["reason"]))

        end_events = self._stream.subscribe(on_event)
        try:
            end = watching.listen(call.part, listener.on_heard)
            self._listeners[listener] = call
            try:
                yield
            finally:
                del self._listeners[listener]
                end()
        finally:
            end_events()

    async def _serve(self, listener: Listener, response: web.WebSocketResponse, call: Call) -> None:
        """Send until either side has enough."""
        receiving = asyncio.create_task(_receive(response, listener))
        try:
            async for message in listener.messages():
                if isinstance(message, str):
                    await response.send_str(message)
                else:
                    await response.send_bytes(message)
            if listener.is_slow:
                self._slow.count(f"{call.who} does not keep up")
                if call.request.transport is not None:
                    call.request.transport.abort()
            elif not response.closed:
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
