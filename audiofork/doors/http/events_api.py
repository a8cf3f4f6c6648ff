"""The route of the events: Server-Sent Events, for any number of viewers at the price of one.

An event is rendered once and written to the connection of each viewer who wants it: no task or
queue stands between. A viewer who does not keep up is dropped, and comes back with the id of the
last event that it got; levels and statistics, which the next ones replace, are left out instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from aiohttp import HttpVersion11, web

from audiofork.doors.event_stream import RESET, StreamEvent
from audiofork.doors.http.access import Access
from audiofork.doors.http.answers import EventsQuery
from audiofork.doors.http.parts import Levels, Parts
from audiofork.doors.http.problems import Kind, Problem
from audiofork.doors.http.routes import EVENTS, Call, Route
from audiofork.doors.http.schema import BadValue, as_json
from audiofork.doors.http.sending import harden
from audiofork.doors.http.views import Views, in_slices
from audiofork.doors.rendering import NAMES
from audiofork.forks.view import ForkView
from audiofork.log import CounterLine
from audiofork.text import did_you_mean

log = logging.getLogger(__name__)

MAX_VIEWERS = 100
COMMENT_S = 15.0
STATS_S = 1.0
# What may wait for a viewer; the kernel keeps some more (see connections.py), 256 KiB in all.
MAX_WAITING_BYTES = 160 * 1024
# Beyond this, what the next one replaces is left out.
CROWDED_BYTES = 32 * 1024
REPLAY_AT_ONCE = 50
PIECE_BYTES = 16 * 1024
_COMMENT = b": \n\n"
LEVELS, STATS = "levels", "stats"


class Viewer:
    """A client that reads the events.

    Args:
        call: Its request.

    Attributes:
        over: Set when its stream is to end.
        is_live: Whether it gets each event as it comes; not while it catches up.
        is_slow: Whether it was dropped because it does not keep up.
    """

    def __init__(self, call: Call) -> None:
        query: EventsQuery = call.query
        self.who = call.who
        self.fork_id = query.fork
        self.wants_levels = query.levels
        self.over = asyncio.Event()
        self.is_live = False
        self.is_slow = False
        self._types = _types_of(query.types)
        self._transport = call.request.transport
        # One of HTTP/1.0, such as an nginx that nobody has told otherwise, knows no chunks.
        self._takes_chunks = call.request.version >= HttpVersion11

    def wants(self, event: StreamEvent) -> bool:
        """Return whether it wants an event."""
        if event.name == RESET:
            return True
        return (not self._types or event.name in self._types) and (
            not self.fork_id or event.fork_id == self.fork_id
        )

    def send(self, chunk: bytes, *, may_be_left_out: bool = False) -> None:
        """Send something now, or drop the viewer.

        Args:
            chunk: What is sent, as `_chunk` returns it.
            may_be_left_out: Whether the next one replaces it.
        """
        if self.over.is_set():  # the end may wait for a client that reads slowly
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            self.over.set()
            return
        waiting = transport.get_write_buffer_size()
        is_too_much = waiting > 0 and waiting + len(chunk) > MAX_WAITING_BYTES
        if may_be_left_out and (is_too_much or waiting > CROWDED_BYTES):
            return
        if is_too_much:
            self.is_slow = True
            self.over.set()
            transport.abort()
            return
        transport.write(chunk if self._takes_chunks else _payload(chunk))


class EventsApi:
    """Sends the events to all viewers; while nobody views, nothing is asked or rendered.

    Args:
        parts: The parts of the daemon.
        views: All forks.
        access: Says when a viewer may no longer view.
    """

    def __init__(self, parts: Parts, views: Views, access: Access) -> None:
        self._stream = parts.stream
        self._access = access
        self._meters = Meters(parts, views, self._meter_readers)
        self._viewers: dict[Viewer, None] = {}
        self._end_events: Callable[[], None] | None = None
        self._slow = CounterLine(log, "HTTP viewers dropped")
        self._closed = False

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                *("GET", "/api/v1/events", self.events),
                query=EventsQuery,
                answers={200: str},
                media_type=EVENTS,
                problems=(503,),
                is_stream=True,
            )
        ]

    def __len__(self) -> int:
        return len(self._viewers)

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        for viewer in self._viewers:
            viewer.over.set()

    # --- One viewer ---

    async def events(self, call: Call) -> web.StreamResponse:
        """Send what happens to forks as Server-Sent Events, until the client leaves."""
        viewer = Viewer(call)
        if len(self._viewers) >= MAX_VIEWERS or self._closed:
            raise Problem(503, f"{MAX_VIEWERS} clients read the events already", Kind.BUSY)
        last_id = call.request.headers.get("Last-Event-ID", "") or call.query.last_event_id
        response = web.StreamResponse()
        response.content_type = EVENTS
        response.headers["X-Accel-Buffering"] = "no"  # else nginx would keep the events back
        harden(response)
        self._viewers[viewer] = None
        assert call.identity is not None
        try:
            with self._access.stream(call.identity, viewer.over.set):
                await response.prepare(call.request)
                await self._catch_up(viewer, response, last_id)
                self._on_live(viewer)
                await self._until_over(viewer)
            if not viewer.is_slow:
                await response.write_eof()
        finally:
            del self._viewers[viewer]
            self._on_leave()
        return response

    async def _catch_up(self, viewer: Viewer, response: web.StreamResponse, last_id: str) -> None:
        """Send what happened since the viewer was here last, at the pace at which it reads.

        When this returns, the viewer has everything: nothing is awaited after the last look.
        """
        stream = self._stream
        number = stream.number_of(last_id) if last_id else stream.last
        if number is None:
            number = stream.last
            await response.write(_lines(RESET, "{}", stream.id_of(number)))
        else:
            await response.write(_COMMENT)
        while not viewer.over.is_set() and (events := stream.after(number, REPLAY_AT_ONCE)):
            if events[0].number != number + 1:  # it reads slowly, and some are gone meanwhile
                await response.write(_lines(RESET, "{}", stream.id_of(events[0].number - 1)))
            number = events[-1].number
            parts = (self._rendered(one) for one in events if viewer.wants(one))
            for piece in _pieces(parts):
                await response.write(piece)
            await asyncio.sleep(0)

    async def _until_over(self, viewer: Viewer) -> None:
        while not viewer.over.is_set():
            try:
                async with asyncio.timeout(COMMENT_S):
                    await viewer.over.wait()
            except TimeoutError:
                viewer.send(_chunk(_COMMENT))
        if viewer.is_slow:
            self._slow.count(f"{viewer.who} does not keep up")

    # --- All of them ---

    def _on_live(self, viewer: Viewer) -> None:
        viewer.is_live = True
        if self._end_events is None:
            self._end_events = self._stream.subscribe(self._on_event)
        self._meters.look()

    def _on_leave(self) -> None:
        if self._end_events is not None and not any(one.is_live for one in self._viewers):
            self._end_events()
            self._end_events = None
        self._meters.look()

    def _meter_readers(self) -> list[Viewer]:
        return [one for one in self._viewers if one.is_live and one.wants_levels]

    def _on_event(self, event: StreamEvent) -> None:
        readers = [one for one in self._viewers if one.is_live and one.wants(event)]
        if readers:
            chunk = _chunk(self._rendered(event))
            for viewer in readers:
                viewer.send(chunk)

    def _rendered(self, event: StreamEvent) -> bytes:
        return _lines(event.name, event.json, self._stream.id_of(event.number))


class Meters:
    """Sends levels and statistics to the viewers that want them; asks for none while nobody does.

    Args:
        parts: The parts of the daemon.
        views: All forks.
        readers: Returns the viewers that want them.
    """

    def __init__(self, parts: Parts, views: Views, readers: Callable[[], list[Viewer]]) -> None:
        self._watching = parts.watching
        self._views = views
        self._readers = readers
        self._end_levels: Callable[[], None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begin or end, as the viewers want it now."""
        if self._readers():
            if self._telling is None:
                self._telling = asyncio.create_task(self._tell_all())
                if self._watching is not None:
                    self._end_levels = self._watching.subscribe_levels(self._on_levels)
            return
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._end_levels is not None:
            self._end_levels()
            self._end_levels = None

    def _on_levels(self, levels: Mapping[str, Levels]) -> None:
        items = {
            fork_id: f"[{one.in_peak},{one.in_rms},{one.out_peak},{one.out_rms}]"
            for fork_id, one in levels.items()
        }
        self._send(LEVELS, "levels", items)

    async def _tell_all(self) -> None:
        """Send statistics once a second."""
        while True:
            try:
                items = {
                    view.id: _stats(view) async for view in in_slices(await self._views.recent())
                }
            except TimeoutError:
                pass  # the relay is busy; list says so, too
            else:
                self._send(STATS, "forks", items)
            await asyncio.sleep(STATS_S)

    def _send(self, name: str, what: str, items: Mapping[str, str]) -> None:
        """Send something of each fork: of all to most viewers, of their own fork to the others."""
        of_all = b""
        for viewer in self._readers():
            if viewer.fork_id:
                own = {viewer.fork_id: items[viewer.fork_id]} if viewer.fork_id in items else {}
                chunk = _chunk(_of_forks(name, what, own))
            else:
                of_all = of_all or _chunk(_of_forks(name, what, items))
                chunk = of_all
            viewer.send(chunk, may_be_left_out=True)


def _stats(view: ForkView) -> str:
    return as_json(
        {
            "frames_in": view.frames_in,
            "frames_sent": view.frames_sent,
            "frames_dropped": view.frames_dropped,
            "backlog": view.backlog,
            "rtt_ms": view.rtt_ms,
            "state": view.state,
        }
    )


# --- How it is written ---------------------------------------------------------------------------


def _of_forks(name: str, what: str, items: Mapping[str, str]) -> bytes:
    """Return an event with a JSON text for each fork."""
    texts = ",".join(f'"{fork_id}":{text}' for fork_id, text in items.items())
    return _lines(name, f'{{"{what}":{{{texts}}}}}')


def _lines(name: str, data: str, event_id: str = "") -> bytes:
    """Return an event; the data is JSON in one line, and ASCII."""
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"{id_line}event: {name}\ndata: {data}\n\n".encode()


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer pieces, none much longer than PIECE_BYTES."""
    piece = b""
    for part in parts:
        piece += part
        if len(piece) > PIECE_BYTES:
            yield piece
            piece = b""
    if piece:
        yield piece


def _chunk(payload: bytes) -> bytes:
    """Return bytes as a chunk of HTTP/1.1 (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _payload(chunk: bytes) -> bytes:
    return chunk[chunk.index(b"\r\n") + 2 : -2]


_TYPES = frozenset(NAMES.values())


def _types_of(text: str) -> frozenset[str]:
    """Return the names of events in a text.

    Raises:
        BadValue: One of them is no event's.
    """
    names = frozenset(filter(None, text.split(",")))
    for name in sorted(names):
        if name not in _TYPES:
            hint = did_you_mean(name, _TYPES) or f"; there are {', '.join(sorted(_TYPES))}"
            raise BadValue(f"types: no such event{hint}")
    return names
