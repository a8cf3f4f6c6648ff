"""Serves the page: its files are read once, at the start, so no path of a request opens one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from audiofork.doors.http.problems import EXPLAINED, Kind, Problem
from audiofork.doors.http.routes import Call, Route

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
_TEXTS = frozenset({".html", ".js", ".css", ".svg"})


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: str
    charset: str | None
    tag: str

    def response(self, request: web.BaseRequest) -> web.Response:
        headers = {"ETag": self.tag, "Cache-Control": "no-cache"}
        if self.tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=self.content,
            content_type=self.content_type,
            charset=self.charset,
            headers=headers,
        )


def _read(folder: Path) -> Mapping[str, _File]:
    """Return the files of a folder by name, those of known types alone."""
    if not folder.is_dir():
        return {}
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _TYPES and path.is_file():
            content = path.read_bytes()
            charset = "utf-8" if path.suffix in _TEXTS else None
            tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            files[path.name] = _File(content, _TYPES[path.suffix], charset, tag)
    return files


class Page:
    """The page, which needs no token itself: it asks for one.

    Args:
        folder: Where its files are.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = _read(folder)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/", self.index, None, is_listed=False),
            Route("GET", "/page/{name}", self.file, None, is_listed=False),
            Route("GET", "/favicon.ico", self.icon, None, is_listed=False),
            Route("GET", "/problems/{name}", self.problem, None, is_listed=False),
        ]

    async def index(self, call: Call) -> web.StreamResponse:
        """Return the page."""
        return self._response("index.html", call)

    async def file(self, call: Call) -> web.StreamResponse:
        """Return one of its other files."""
        return self._response(call.part, call)

    async def icon(self, call: Call) -> web.StreamResponse:
        """Return the icon, which browsers ask for here."""
        return self._response("favicon.ico", call)

    async def problem(self, call: Call) -> web.StreamResponse:
        """Explain a kind of problem."""
        if call.part not in list(Kind):
            raise Problem(404, "there is no such problem")
        return web.Response(text=f"{EXPLAINED[Kind(call.part)]}\n")

    def _response(self, name: str, call: Call) -> web.Response:
        found = self._files.get(name)
        if found is None:
            raise Problem(404, "there is nothing at this path")
        return found.response(call.request)
