"""The HTTP door of a relay host: whether it runs, and its metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from audiofork.cluster.figures import HostFigures
from audiofork.config import HttpConfig
from audiofork.doors.exposition import wants_open_metrics
from audiofork.doors.host_metrics import HostMetrics
from audiofork.doors.http.access import Access
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.server import HttpServer
from audiofork.doors.http.status_api import TEXT, answer_health, answer_metrics


class HostDoor(HttpServer):
    """Serves two routes; owned by the relay host, which calls `start` once and then `close`.

    Args:
        config: Where to listen, and who may ask.
        figures: Returns how the host is.

    Raises:
        ConfigError: A file that the configuration names cannot be used.
    """

    def __init__(self, config: HttpConfig, figures: Callable[[], Awaitable[HostFigures]]) -> None:
        self._figures = figures
        self._metrics = HostMetrics()
        super().__init__(config, self._routes)

    def _routes(self, _access: Access) -> list[Route]:
        return [
            Route("GET", "/healthz", self.health, None, answers={200: str}, media_type=TEXT),
            Route("GET", "/metrics", self.metrics, answers={200: str}, media_type=TEXT),
        ]

    async def health(self, _call: Call) -> web.StreamResponse:
        """Say ok: the relay host runs."""
        return answer_health()

    async def metrics(self, call: Call) -> web.StreamResponse:
        """Return all metrics, in Prometheus' text format, or as OpenMetrics if that is accepted."""
        is_open = wants_open_metrics(call.request.headers.get("Accept", ""))
        text = self._metrics.render(await self._figures(), open_metrics=is_open)
        return answer_metrics(text, open_metrics=is_open)
