"""Which failures are worth another try, and what is said of them."""

from __future__ import annotations

import socket
import ssl

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHeader,
    InvalidMessage,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
)
from websockets.frames import Close
from websockets.http11 import Response

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.relay.retry import closure, connect_failure

PASSING_STATUSES = [408, 425, 429, 500, 501, 502, 503, 504, 599]
FINAL_STATUSES = [200, 204, 301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 426, 451, 499, 600]


def bad_status(status: int) -> InvalidStatus:
    return InvalidStatus(Response(status, "", Headers()))


@pytest.mark.parametrize("status", PASSING_STATUSES)
def test_status_that_may_pass_is_retryable(status: int) -> None:
    error = connect_failure(bad_status(status))
    assert isinstance(error, SinkUnreachable) and error.retryable
    assert str(error) == f"the server answered HTTP {status}"


@pytest.mark.parametrize("status", FINAL_STATUSES)
def test_other_status_is_final(status: int) -> None:
    error = connect_failure(bad_status(status))
    assert isinstance(error, SinkRefused) and not error.retryable
    assert f"HTTP {status}" in str(error)
    assert ("redirects are not followed" in str(error)) == (300 <= status <= 399)


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "certificate has expired"
    return error


FAILURES = {
    "refused": (ConnectionRefusedError(111, "Connection refused"), True, "Connection refused"),
    "unreachable": (OSError(113, "No route to host"), True, "No route to host"),
    "several addresses": (OSError("Multiple exceptions: a, b"), True, "Multiple exceptions: a, b"),
    "dns": (socket.gaierror(-2, "Name or service not known"), True, "Name or service not known"),
    "reset": (ConnectionResetError(104, "Connection reset by peer"), True, "Connection reset"),
    "timeout": (TimeoutError(), True, "no answer in time"),
    "tls fault": (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), True, "WRONG_VERSION_NUMBER"),
    "certificate": (certificate_error(), False, "certificate has expired"),
    "garbage": (InvalidMessage("did not receive a valid HTTP response"), True, "garbage"),
    "gone at once": (ConnectionClosedError(None, None), True, "closed before the handshake"),
    "no upgrade": (InvalidUpgrade("Upgrade", "h2c"), False, "not a WebSocket server: invalid Up"),
    "bad accept": (InvalidHeader("Sec-WebSocket-Accept", "x"), False, "not a WebSocket server"),
    "bad url": (InvalidURI("ws://", "no host"), False, "ws://"),
    "bad host name": (UnicodeError("label too long"), False, "not a host name: label too long"),
}


@pytest.mark.parametrize(("exc", "retryable", "text"), FAILURES.values(), ids=FAILURES)
def test_connect_failure_is_ours_and_says_why(exc: Exception, retryable: bool, text: str) -> None:
    error = connect_failure(exc)
    assert type(error) is (SinkUnreachable if retryable else SinkRefused)
    assert error.retryable is retryable
    assert text in str(error)


def test_connect_failure_that_is_a_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        connect_failure(ZeroDivisionError())


def closed(code: int, reason: str = "") -> ConnectionClosed:
    kind = ConnectionClosedOK if code in (1000, 1001) else ConnectionClosedError
    return kind(Close(code, reason), Close(code, reason), True)


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 1014])
def test_close_code_that_may_pass_is_retryable(code: int) -> None:
    error = closure(closed(code, "later"))
    assert isinstance(error, SinkLost) and error.retryable
    assert str(error) == f"the server closed with {code} later"


@pytest.mark.parametrize("code", [1000, 1003, 1008, 4000, 4001, 4500, 4999])
def test_close_code_that_says_no_is_final(code: int) -> None:
    error = closure(closed(code))
    assert isinstance(error, SinkRefused) and not error.retryable
    assert str(error) == f"the server closed with {code}"


@pytest.mark.parametrize("code", [3000, 3999])
def test_close_code_beside_the_final_ones_is_retryable(code: int) -> None:
    assert closure(closed(code)).retryable


def test_closure_without_a_close_frame_is_retryable() -> None:
    error = closure(ConnectionClosedError(None, None))
    assert isinstance(error, SinkLost)
    assert str(error) == "the connection broke"


@pytest.mark.parametrize("reason", ["", "keepalive ping timeout"])
def test_closure_by_the_client_says_so_and_is_retryable(reason: str) -> None:
    error = closure(ConnectionClosedError(None, Close(1011, reason)))
    assert isinstance(error, SinkLost)
    assert str(error) == f"closed by us with 1011 {reason}".strip()
