"""The routes of a browser's session."""

from __future__ import annotations

import logging

from aiohttp import web

from audiofork.doors.http.access import COOKIE, SESSION_S, Access, Identity
from audiofork.doors.http.answers import SessionAnswer, TokenWish
from audiofork.doors.http.routes import Call, Route
from audiofork.doors.http.sending import answer, answer_nothing

log = logging.getLogger(__name__)

SESSION = "/api/v1/session"


class SessionApi:
    """Begins and ends sessions.

    Args:
        access: Knows the tokens, and has the sessions.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                *("POST", SESSION, self.begin, None),
                body=TokenWish,
                answers={200: SessionAnswer},
                problems=(401, 429),
            ),
            Route("GET", SESSION, self.show, answers={200: SessionAnswer}),
            Route("DELETE", SESSION, self.end, answers={204: None}),
        ]

    async def begin(self, call: Call) -> web.StreamResponse:
        """Begin a session by a token; its cookie stands for the token from then on."""
        request, wish = call.request, call.body
        assert isinstance(wish, TokenWish)
        identity = self._access.by_token(wish.token, request.remote or "")
        response = answer(_session(identity))
        # Behind a proxy, only the page's own address tells that TLS is spoken.
        is_https = request.headers.get("Origin", "").lower().startswith("https://")
        response.set_cookie(
            COOKIE,
            self._access.sessions.begin(identity.token),
            max_age=int(SESSION_S),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=self._access.is_tls or is_https,
        )
        log.info("HTTP session of %s, from %s", identity.client.name, request.remote or "a socket")
        return response

    async def show(self, call: Call) -> web.StreamResponse:
        """Return who asks, and what it may do."""
        assert call.identity is not None
        return answer(_session(call.identity))

    async def end(self, call: Call) -> web.StreamResponse:
        """End the session of this request, if it has one."""
        assert call.identity is not None
        self._access.sessions.end(call.identity.session)
        response = answer_nothing()
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict")
        return response


def _session(identity: Identity) -> SessionAnswer:
    return SessionAnswer(identity.client.name, sorted(identity.client.roles))
