"""How answers are sent: the headers that each of them has, JSON, and streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from audiofork.doors.http.schema import as_json

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    # Else it would tell the versions of Python and of aiohttp.
    "Server": "audiofork",
}
"""The headers of every answer, errors and streams among them."""


def harden(response: web.StreamResponse) -> None:
    """Give an answer the headers that every answer has; those that it has already stay."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer with a value as JSON."""
    return answer_json(as_json(value), status, headers)


def answer_json(
    text: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an answer with a text that is JSON already."""
    return web.Response(
        status=status, body=text.encode(), content_type="application/json", headers=headers
    )


def answer_nothing() -> web.Response:
    """Return an answer without content."""
    return web.Response(status=204)
