"""Decides when to try a WebSocket server again, and after which failures."""

from __future__ import annotations

import http
import random
import ssl
from collections.abc import Callable

from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    WebSocketException,
)
from websockets.frames import Close, CloseCode
from websockets.http11 import Response

from audiofork.backoff import Backoff, is_passing
from audiofork.errors import SinkClosed, SinkError, SinkLost, SinkRefused, SinkUnreachable
from audiofork.text import NOT_TLS, harmless, plain, reason_of

# 1000 done, 1003 unsupported data, 1008 policy violation; 4000 to 4999 are the server's own codes.
# A server that closes with one of these wants no more connections.
_FINAL_CLOSE_CODES = frozenset({1000, 1003, 1008, *range(4000, 5000)})

FIRST_WAIT_S = 0.25
# A connection that was open for less counts as a failure, like one that was refused.
HEALTHY_S = 5.0


class NotInTime(TimeoutError):
    """A connect took too long; the text says what it was still waiting for."""


class Retries:
    """Counts failed attempts in a row, and computes how long to wait before the next.

    The limit of a wait doubles with each failure, up to `longest_wait_s`. The wait is random
    between 0 and its limit (full jitter), so that many forks do not return to a server at once.
    After a connection that was accepted and did not last, it is in the upper half of that range.

    Args:
        attempts: Give up after this many failures in a row, but not before these attempts would
            have taken if they were `longest_wait_s` apart; 0: never give up.
        longest_wait_s: The highest limit of a wait, in seconds.
        draw: Returns a random number between two numbers; tests replace it.
    """

    def __init__(
        self,
        attempts: int,
        longest_wait_s: float,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._attempts = attempts
        self._longest_wait_s = longest_wait_s
        self._draw = draw
        self._limits = Backoff(FIRST_WAIT_S, longest_wait_s)
        self._failures = 0
        self._first_failed_s = 0.0

    @property
    def attempt(self) -> int:
        """The number of the next attempt; 1 if the last connection was good."""
        return self._failures + 1

    def next_wait_s(self, error: SinkError, open_s: float | None, now_s: float) -> float | None:
        """Return how many seconds to wait, or None to give up.

        Args:
            error: Why the last attempt or connection failed.
            open_s: How many seconds the connection was open; None if it never was.
            now_s: The time in seconds, by a clock that never goes back.
        """
        was_good = open_s is not None and open_s >= HEALTHY_S
        self._failures = 0 if was_good else self._failures + 1
        if self._failures <= 1:
            self._first_failed_s = now_s
            self._limits.reset()
        if not error.retryable or self._is_enough(now_s):
            return None
        limit_s = self._limits.next_s()
        wait_s = self._draw(0 if open_s is None else limit_s / 2, limit_s)
        return max(wait_s, min(error.retry_after_s, self._longest_wait_s))

    def _is_enough(self, now_s: float) -> bool:
        patience_s = self._longest_wait_s * (self._attempts - 1)
        tried_s = now_s - self._first_failed_s
        return 0 < self._attempts <= self._failures and tried_s >= patience_s


def connect_failure(exc: Exception, tried: str) -> SinkError:
    """Return the SinkError for an exception of a connect or handshake; raise others again.

    Args:
        tried: What was tried, scheme://host:port; it begins the text.
    """
    if isinstance(exc, SinkError):
        return exc
    if isinstance(exc, InvalidStatus):
        hint = _hint(exc.response.status_code)
        return bad_status(exc.response, f"{tried}: the server", hint)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return SinkRefused(f"{tried}: certificate not accepted: {reason_of(exc, _AUTHORITIES)}")
    if isinstance(exc, ssl.SSLError):
        return SinkUnreachable(f"{tried}: no TLS: {reason_of(exc)}{_if_plain(exc)}")
    if isinstance(exc, ConnectionResetError) and tried.startswith("wss:"):
        return SinkUnreachable(f"{tried}: {reason_of(exc)}{_PERHAPS_PLAIN}")
    if isinstance(exc, InvalidMessage | ConnectionClosed):
        text = "the server closed without an HTTP answer, or sent garbage"
        return SinkUnreachable(f"{tried}: {text}{_if_tls(tried)}")
    if isinstance(exc, InvalidURI):  # its own text has the URL, which may hold a token
        return SinkRefused("not a URL that can be connected to")
    if isinstance(exc, UnicodeError):  # from IDNA, before any look-up
        return SinkRefused(f"not a host name: {reason_of(exc)}")
    if isinstance(exc, OSError):
        return SinkUnreachable(f"{tried}: {reason_of(exc)}")
    if isinstance(exc, NegotiationError):  # we offer no extensions, so it is about these
        why = f"chose a subprotocol that was not offered (option s): {plain(str(exc))}"
        return SinkRefused(f"{tried}: the server {why}")
    if isinstance(exc, WebSocketException):
        return SinkRefused(f"{tried}: not a WebSocket server: {plain(str(exc))}")
    raise exc


_AUTHORITIES = "[websocket] ca_list_file or T(ca=NAME)"


def _if_plain(exc: ssl.SSLError) -> str:
    """Return what to do about a server that speaks no TLS."""
    if exc.reason in NOT_TLS:
        return f"; {_USE_PLAIN}"
    return _PERHAPS_PLAIN if isinstance(exc, ssl.SSLEOFError) else ""


_USE_PLAIN = "use ws:// without option T, or the server's port for TLS"
_PERHAPS_PLAIN = f"; if it does not speak TLS there, {_USE_PLAIN}"


def _if_tls(tried: str) -> str:
    """Return what to do if a server that was greeted without TLS expects it."""
    return "; if it speaks TLS there, use wss://" if tried.startswith("ws:") else ""


_HINTS = {
    400: "it may insist on a subprotocol (option s), or the port is one for TLS, which wants wss://",
    401: "it wants a token or a login: option A",
    403: "it wants another token or login (option A), or forbids this address",
    404: "it has nothing at this path",
    426: "it wants another protocol at this path",
    502: "a proxy does not reach the server behind it",
    503: "it takes no more now, or a proxy has no server behind it",
    504: "a proxy waits for the server behind it",
}


def bad_status(response: Response, who: str, hint: str) -> SinkError:
    """Return the SinkError for an answer other than the one that was wanted.

    Args:
        response: The answer.
        who: Who has answered; begins the text.
        hint: What to do about it; empty: nothing is known.
    """
    status = response.status_code
    text = f"{who} answered HTTP {status}{_phrase(status)}"
    if hint:
        text += f"; {hint}"
    if is_passing(status):
        error = SinkUnreachable(text)
        asked = response.headers.get("Retry-After", "").strip()
        if asked.isascii() and asked.isdigit():
            error.retry_after_s = float(asked[:9])
        return error
    return SinkRefused(text)


def _hint(status: int) -> str:
    if 200 <= status <= 299:
        return "a web server, with no WebSocket at this path"
    # Redirects are not followed: they could lead to a server that allow_urls forbids.
    return "redirects are not followed" if 300 <= status <= 399 else _HINTS.get(status, "")


def _phrase(status: int) -> str:
    try:
        return f" {http.HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def closure(received: Close | None, sent: Close | None, said: str = "") -> SinkError:
    """Return the SinkError for the end of an open connection.

    Args:
        received: The server's close frame; None if there was none.
        sent: Our close frame; None if there was none.
        said: What the server said before that and in place of what was waited for, if it did.
    """
    before = f"; before that it said: {harmless(said)}" if said else ""
    if received is None:
        if sent is not None:
            return SinkLost(f"closed by us with {sent.code} {sent.reason}".rstrip() + before)
        return SinkLost(f"the connection broke{before}")
    text = f"the server closed with {received.code} {received.reason}".rstrip() + before
    if received.code == CloseCode.NORMAL_CLOSURE:
        return SinkClosed(text)
    return SinkRefused(text) if received.code in _FINAL_CLOSE_CODES else SinkLost(text)
