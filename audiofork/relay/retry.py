"""When to try a WebSocket server again, and which of its failures are worth another try."""

from __future__ import annotations

import os
import random
import socket
import ssl
from collections.abc import Callable

from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.frames import Close
from websockets.http11 import Response

from audiofork.errors import SinkError, SinkLost, SinkRefused, SinkUnreachable

# 408 Request Timeout, 425 Too Early, 429 Too Many Requests; and all of 5xx.
_PASSING_STATUSES = frozenset({408, 425, 429})
# 1000 done, 1003 does not take this data, 1008 against its policy; 4000 to 4999 are the server's
# own codes. By all of these a server says that it wants no more.
_FINAL_CLOSE_CODES = frozenset({1000, 1003, 1008, *range(4000, 5000)})


FIRST_WAIT_S = 0.25
# A server that accepts and closes at once is no better than one that refuses.
HEALTHY_S = 5.0


class NotInTime(TimeoutError):
    """A connect took too long; the text says what it was still waiting for."""


class Retries:
    """Counts failed attempts in a row, and says how long to wait before the next.

    Waits grow by factors of two up to the longest, with full jitter: each is drawn between
    nothing and its limit, so that many forks do not come back to a server all at once. After a
    connection that was accepted and did not last it is drawn from the limit's upper half.

    Args:
        attempts: So many failures in a row are the end, though not before as much time has passed
            as these attempts take when `longest_wait_s` apart; 0: go on for ever.
        longest_wait_s: The highest limit of a wait.
        draw: Draws a number between two; random.uniform but for tests.
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
        self._failures = 0
        self._first_failed_s = 0.0

    @property
    def attempt(self) -> int:
        """The number of the next attempt; 1 when the last one was good."""
        return self._failures + 1

    def next_wait_s(self, error: SinkError, open_s: float | None, now_s: float) -> float | None:
        """Return how long to wait, or None to give up.

        Args:
            error: What went wrong.
            open_s: How long the connection had been open; None if it never was.
            now_s: The time, by a clock that never goes back.
        """
        was_good = open_s is not None and open_s >= HEALTHY_S
        self._failures = 0 if was_good else self._failures + 1
        if self._failures <= 1:
            self._first_failed_s = now_s
        if not error.retryable or self._is_enough(now_s):
            return None
        doublings = min(max(self._failures - 1, 0), 16)
        limit_s = min(FIRST_WAIT_S * 2**doublings, self._longest_wait_s)
        wait_s = self._draw(0 if open_s is None else limit_s / 2, limit_s)
        return max(wait_s, min(error.retry_after_s, self._longest_wait_s))

    def _is_enough(self, now_s: float) -> bool:
        patience_s = self._longest_wait_s * (self._attempts - 1)
        tried_s = now_s - self._first_failed_s
        return 0 < self._attempts <= self._failures and tried_s >= patience_s


def connect_failure(exc: Exception) -> SinkError:
    """Turn what a connect or handshake raised into an error of ours."""
    if isinstance(exc, SinkError):
        return exc
    if isinstance(exc, InvalidStatus):
        return _bad_status(exc.response)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return SinkRefused(f"certificate not accepted: {exc.verify_message}")
    if isinstance(exc, NotInTime):
        return SinkUnreachable(str(exc))
    if isinstance(exc, TimeoutError):
        return SinkUnreachable("no answer in time")
    if isinstance(exc, InvalidMessage):
        return SinkUnreachable("the server closed without an HTTP answer, or sent garbage")
    if isinstance(exc, ConnectionClosed):
        return SinkUnreachable("the server closed before the handshake")
    if isinstance(exc, InvalidURI):  # its own text holds the URL, and so perhaps a token
        return SinkRefused("not a URL that can be connected to")
    if isinstance(exc, UnicodeError):  # from IDNA, before any look-up
        return SinkRefused(f"not a host name: {exc}")
    if isinstance(exc, ssl.SSLError | socket.gaierror):  # their numbers are not the system's
        return SinkUnreachable(exc.strerror or str(exc))
    if isinstance(exc, OSError):  # event loops put the address in place of the reason
        return SinkUnreachable(os.strerror(exc.errno) if exc.errno else str(exc))
    if isinstance(exc, WebSocketException):
        return SinkRefused(f"not a WebSocket server: {exc}")
    raise exc


def _bad_status(response: Response) -> SinkError:
    status = response.status_code
    if status in _PASSING_STATUSES or 500 <= status <= 599:
        error = SinkUnreachable(f"the server answered HTTP {status}")
        asked = response.headers.get("Retry-After", "").strip()
        if asked.isascii() and asked.isdigit():
            error.retry_after_s = float(asked[:9])
        return error
    # A redirect could lead to where allow_urls forbids to go.
    hint = "; redirects are not followed" if 300 <= status <= 399 else ""
    return SinkRefused(f"the server answered HTTP {status}{hint}")


def closure(received: Close | None, sent: Close | None) -> SinkError:
    """Turn the end of an open connection into an error of ours.

    Args:
        received: What the server has closed with, and `sent` what we have; None: nothing.
    """
    if received is None:
        if sent is not None:
            return SinkLost(f"closed by us with {sent.code} {sent.reason}".rstrip())
        return SinkLost("the connection broke")
    text = f"the server closed with {received.code} {received.reason}".rstrip()
    return SinkRefused(text) if received.code in _FINAL_CLOSE_CODES else SinkLost(text)
