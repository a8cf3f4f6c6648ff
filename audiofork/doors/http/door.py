"""The HTTP door: all of its routes."""

from __future__ import annotations

from audiofork.config import HttpConfig
from audiofork.doors.http.access import Access
from audiofork.doors.http.events_api import EventsApi
from audiofork.doors.http.forks_api import ForksApi
from audiofork.doors.http.history_api import HistoryApi
from audiofork.doors.http.listen_api import ListenApi
from audiofork.doors.http.openapi import OpenApi
from audiofork.doors.http.page import Page
from audiofork.doors.http.parts import Parts
from audiofork.doors.http.routes import Route
from audiofork.doors.http.server import HttpServer
from audiofork.doors.http.session_api import SessionApi
from audiofork.doors.http.status_api import StatusApi
from audiofork.doors.http.views import Views


class HttpDoor(HttpServer):
    """Serves the HTTP interface; owned by the daemon, which calls `start` once and then `close`.

    Args:
        config: Where to listen, and who may ask.
        parts: What it asks.

    Raises:
        ConfigError: A file that the configuration names cannot be used.
    """

    def __init__(self, config: HttpConfig, parts: Parts) -> None:
        self._parts = parts
        super().__init__(config, self._routes)

    def _routes(self, access: Access) -> list[Route]:
        parts, views = self._parts, Views(self._parts.views)
        self._events = EventsApi(parts, views, access)
        self._listen = ListenApi(parts, access)
        apis = (
            StatusApi(parts, lambda: len(self._events)),
            ForksApi(parts, views),
            self._listen,
            self._events,
            HistoryApi(parts),
            SessionApi(access),
            Page(),
        )
        routes = [route for api in apis for route in api.routes()]
        return [*routes, OpenApi(routes).route]

    def end_streams(self) -> None:
        self._events.close()
        self._listen.close()
