"""What a failure of the WebSocket connection means: worth another try, or final."""

from __future__ import annotations

import ssl

from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)

from audiofork.errors import SinkError, SinkLost, SinkRefused, SinkUnreachable

# 408 Request Timeout, 425 Too Early, 429 Too Many Requests; and all of 5xx.
_PASSING_STATUSES = frozenset({408, 425, 429})
# 1000 done, 1003 does not take this data, 1008 against its policy; 4000 to 4999 are the server's
# own codes. By all of these a server says that it wants no more.
_FINAL_CLOSE_CODES = frozenset({1000, 1003, 1008, *range(4000, 5000)})


def connect_failure(exc: Exception) -> SinkError:
    """Turn what a connect or handshake raised into an error of ours."""
    if isinstance(exc, InvalidStatus):
        return _bad_status(exc.response.status_code)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return SinkRefused(f"certificate not accepted: {exc.verify_message}")
    if isinstance(exc, TimeoutError):
        return SinkUnreachable("no answer in time")
    if isinstance(exc, InvalidMessage):
        return SinkUnreachable("the server closed without an HTTP answer, or sent garbage")
    if isinstance(exc, ConnectionClosed):
        return SinkUnreachable("the server closed before the handshake")
    if isinstance(exc, UnicodeError):  # from IDNA, before any look-up
        return SinkRefused(f"not a host name: {exc}")
    if isinstance(exc, OSError):
        return SinkUnreachable(exc.strerror or str(exc))
    if isinstance(exc, WebSocketException):
        return SinkRefused(f"not a WebSocket server: {exc}")
    raise exc


def _bad_status(status: int) -> SinkError:
    if status in _PASSING_STATUSES or 500 <= status <= 599:
        return SinkUnreachable(f"the server answered HTTP {status}")
    # A redirect could lead to where allow_urls forbids to go.
    hint = "; redirects are not followed" if 300 <= status <= 399 else ""
    return SinkRefused(f"the server answered HTTP {status}{hint}")


def closure(exc: ConnectionClosed) -> SinkError:
    """Turn the end of an open connection into an error of ours."""
    if exc.rcvd is None:
        if exc.sent is not None:
            return SinkLost(f"closed by us with {exc.sent.code} {exc.sent.reason}".rstrip())
        return SinkLost("the connection broke")
    text = f"the server closed with {exc.rcvd.code} {exc.rcvd.reason}".rstrip()
    return SinkRefused(text) if exc.rcvd.code in _FINAL_CLOSE_CODES else SinkLost(text)
