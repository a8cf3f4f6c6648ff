"""What a route is: its method and path, who may ask it, what it takes and gives."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from audiofork.doors.http.access import Identity
from audiofork.doors.http.problems import Problem
from audiofork.doors.http.tokens import Role

JSON = "application/json"
EVENTS = "text/event-stream"

# What a part of a path in braces may be. Nothing of it is ever decoded: a percent sign fits none.
PARTS = {
    "id": r"[0-9a-f][0-9a-f-]{7,35}",
    "name": r"[a-z0-9][a-z0-9_.-]{0,80}",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was looked at, for the handler of its route.

    Attributes:
        request: The request itself.
        identity: Who asks; None: nobody needs to say so.
        query: The query, as the route's `query`.
        body: The body, as the route's `body`.
        part: The part of the path that the route leaves open.
    """

    request: web.BaseRequest
    identity: Identity | None
    query: Any
    body: Any
    part: str

    @property
    def who(self) -> str:
        """Who asks, for the log."""
        return self.identity.client.name if self.identity is not None else ""


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """A route.

    Attributes:
        method: GET, POST, PATCH or DELETE.
        path: The path; {id} stands for the id of a fork, {name} for a name.
        handler: Answers; its first docstring line says in the OpenAPI document what it does.
        role: Who may ask; None: everybody.
        query: The dataclass of the query; None: it has none.
        body: The dataclass of the body; None: it has none.
        answers: The type of each answer that is no error, by status; None: it has no content.
        media_type: What the answers are.
        problems: The statuses of errors that only this route has.
        is_stream: Whether it goes on until the client leaves.
        is_websocket: Whether it is a WebSocket, which a page of any site could open.
        is_listed: Whether it stands in the OpenAPI document.
    """

    method: str
    path: str
    handler: Handler
    role: Role | None = Role.VIEW
    query: type | None = None
    body: type | None = None
    answers: Mapping[int, Any] = field(default_factory=lambda: {200: None})
    media_type: str = JSON
    problems: tuple[int, ...] = ()
    is_stream: bool = False
    is_websocket: bool = False
    is_listed: bool = True


class RouteTable:
    """Finds the route of a request.

    Args:
        routes: All routes.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._by_path: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            self._patterns.setdefault(route.path, _pattern_of(route.path))
            self._by_path.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """Return the route of a request, and what its path has in the place of {id} or {name}.

        Args:
            method: As in the request; HEAD is answered as GET, without content.
            path: As in the request, not decoded.

        Raises:
            Problem: There is none.
        """
        for known, pattern in self._patterns.items():
            if found := pattern.fullmatch(path):
                methods = self._by_path[known]
                wanted = methods.get(method)
                if method == "HEAD" and "GET" in methods and not methods["GET"].is_stream:
                    wanted = methods["GET"]
                if wanted is None:
                    allowed = ", ".join(methods)
                    raise Problem(405, f"expected {allowed}", headers={"Allow": allowed})
                return wanted, found[1] if found.groups() else ""
        raise Problem(404, "there is nothing at this path")


def _pattern_of(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    texts = [
        re.escape(part) if number % 2 == 0 else f"({PARTS[part]})"
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(texts))
