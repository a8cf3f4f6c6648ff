"""Which failures are worth another try, and what is said of them."""

from __future__ import annotations

import socket
import ssl

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosedError,
    InvalidHeader,
    InvalidMessage,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
)
from websockets.frames import Close
from websockets.http11 import Response

from audiofork.errors import SinkError, SinkLost, SinkRefused, SinkUnreachable
from audiofork.relay.retry import HEALTHY_S, Retries, closure, connect_failure

TRIED = "ws://example.org:8080"
PASSING_STATUSES = [408, 425, 429, 500, 501, 502, 503, 504, 599]
FINAL_STATUSES = [200, 204, 301, 302, 307, 308, 400, 401, 403, 404, 405, 410, 426, 451, 499, 600]


def bad_status(status: int, headers: dict[str, str] | None = None) -> InvalidStatus:
    return InvalidStatus(Response(status, "", Headers(headers or {})))


@pytest.mark.parametrize("status", PASSING_STATUSES)
def test_status_that_may_pass_is_retryable(status: int) -> None:
    error = connect_failure(bad_status(status), TRIED)
    assert isinstance(error, SinkUnreachable)
    assert error.retryable
    assert str(error).startswith(f"{TRIED}: the server answered HTTP {status}")


@pytest.mark.parametrize("status", FINAL_STATUSES)
def test_other_status_is_final(status: int) -> None:
    error = connect_failure(bad_status(status), TRIED)
    assert isinstance(error, SinkRefused)
    assert not error.retryable
    assert f"HTTP {status}" in str(error)
    assert ("redirects are not followed" in str(error)) == (300 <= status <= 399)


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 10, "certificate has expired"
    return error


def tls_fault() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: ODD] odd (_ssl.c:1)")
    error.reason = "ODD"
    return error


FAILURES = {
    "refused": (ConnectionRefusedError(111, "Connection refused"), True, "Connection refused"),
    "unreachable": (OSError(113, "No route to host"), True, "No route to host"),
    "several addresses": (OSError("Multiple exceptions: a, b"), True, "Multiple exceptions: a, b"),
    "dns": (socket.gaierror(-2, "Name or service not known"), True, "no such host name"),
    "reset": (ConnectionResetError(104, "Connection reset by peer"), True, "Connection reset"),
    "timeout": (TimeoutError(), True, "no answer in time"),
    "tls fault": (tls_fault(), True, "no TLS: TLS failed"),
    "certificate": (certificate_error(), False, "certificate has expired"),
    "garbage": (InvalidMessage("did not receive a valid HTTP response"), True, "garbage"),
    "gone at once": (ConnectionClosedError(None, None), True, "closed without an HTTP answer"),
    "no upgrade": (InvalidUpgrade("Upgrade", "h2c"), False, "not a WebSocket server: invalid Up"),
    "bad accept": (InvalidHeader("Sec-WebSocket-Accept", "x"), False, "not a WebSocket server"),
    "bad url": (InvalidURI("ws://?token", "no host"), False, "not a URL"),
    "bad host name": (UnicodeError("label too long"), False, "not a host name: a part"),
}


@pytest.mark.parametrize(("exc", "retryable", "text"), FAILURES.values(), ids=FAILURES)
def test_connect_failure_is_ours_and_says_why(exc: Exception, retryable: bool, text: str) -> None:
    error = connect_failure(exc, TRIED)
    assert type(error) is (SinkUnreachable if retryable else SinkRefused)
    assert error.retryable is retryable
    assert text in str(error)


def test_connect_failure_that_is_a_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        connect_failure(ZeroDivisionError(), TRIED)


def closed(code: int, reason: str = "") -> tuple[Close, Close]:
    return Close(code, reason), Close(code, reason)


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 1014])
def test_close_code_that_may_pass_is_retryable(code: int) -> None:
    error = closure(*closed(code, "later"))
    assert isinstance(error, SinkLost)
    assert error.retryable
    assert str(error) == f"the server closed with {code} later"


@pytest.mark.parametrize("code", [1000, 1003, 1008, 4000, 4001, 4500, 4999])
def test_close_code_that_says_no_is_final(code: int) -> None:
    error = closure(*closed(code))
    assert isinstance(error, SinkRefused)
    assert not error.retryable
    assert str(error) == f"the server closed with {code}"


@pytest.mark.parametrize("code", [3000, 3999])
def test_close_code_beside_the_final_ones_is_retryable(code: int) -> None:
    assert closure(*closed(code)).retryable


def test_closure_without_a_close_frame_is_retryable() -> None:
    error = closure(None, None)
    assert isinstance(error, SinkLost)
    assert str(error) == "the connection broke"


@pytest.mark.parametrize("reason", ["", "keepalive ping timeout"])
def test_closure_by_the_client_says_so_and_is_retryable(reason: str) -> None:
    error = closure(None, Close(1011, reason))
    assert isinstance(error, SinkLost)
    assert str(error) == f"closed by us with 1011 {reason}".strip()


# --- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("9" * 5000, 999_999_999),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
    ],
)
def test_retry_after_in_seconds_is_taken_and_all_else_ignored(text: str, seconds: float) -> None:
    error = connect_failure(bad_status(503, {"Retry-After": text}), TRIED)
    assert isinstance(error, SinkUnreachable)
    assert error.retry_after_s == seconds


def test_retry_after_is_nothing_where_the_server_gave_none() -> None:
    assert connect_failure(bad_status(503), TRIED).retry_after_s == 0


# --- Retries -------------------------------------------------------------------------------------


def asking(seconds: float) -> SinkError:
    error = SinkUnreachable("busy")
    error.retry_after_s = seconds
    return error


AWAY = SinkUnreachable("refused")
LOST = SinkLost("it broke")


class Draws:
    """Draws a part of what there is, and keeps the limits."""

    def __init__(self, part: float = 1.0) -> None:
        self.part = part
        self.limits: list[float] = []

    def __call__(self, low: float, high: float) -> float:
        self.limits.append(high)
        return low + self.part * (high - low)


def test_retries_give_up_after_so_many_failures_in_a_row() -> None:
    retries = Retries(5, 60, Draws())
    waits = [retries.next_wait_s(AWAY, None, now) for now in (0, 60, 120, 180, 240)]
    assert waits == [0.25, 0.5, 1, 2, None]


def test_retries_do_not_give_up_before_the_attempts_would_take_so_long_when_far_apart() -> None:
    """5 attempts with full jitter are over in 2 s on average: too soon for a server's restart."""
    retries = Retries(5, 5, Draws())
    waits = [retries.next_wait_s(AWAY, None, 1000 + now) for now in (0, 1, 2, 3, 4, 19.9, 20)]
    assert waits == [0.25, 0.5, 1, 2, 4, 5, None]


def test_retries_of_one_attempt_make_no_other() -> None:
    assert Retries(1, 60, Draws()).next_wait_s(AWAY, None, 0) is None


def test_retries_without_a_limit_go_on_for_ever() -> None:
    retries = Retries(0, 5, Draws())
    waits = [retries.next_wait_s(AWAY, None, 0) for _ in range(10_000)]
    assert waits[:7] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert set(waits[7:]) == {5}


@pytest.mark.parametrize("longest_s", [0.25, 1, 3, 600])
def test_limit_of_a_wait_doubles_up_to_the_longest(longest_s: float) -> None:
    draws = Draws(0.5)
    retries = Retries(0, longest_s, draws)
    waits = [retries.next_wait_s(AWAY, None, 0) for _ in range(15)]
    assert draws.limits == [min(0.25 * 2**n, longest_s) for n in range(15)]
    assert waits == [limit / 2 for limit in draws.limits]


def test_longest_wait_below_the_first_limits_that_too() -> None:
    assert Retries(0, 0.1, Draws()).next_wait_s(AWAY, None, 0) == 0.1


def test_waits_are_drawn_from_the_whole_span_when_nobody_says_otherwise() -> None:
    waits = [Retries(0, 5).next_wait_s(AWAY, None, 0) for _ in range(1000)]
    drawn = [wait for wait in waits if wait is not None]
    assert len(set(drawn)) > 900
    assert 0 <= min(drawn) < 0.05
    assert 0.2 < max(drawn) <= 0.25


def test_loss_after_a_healthy_time_starts_anew() -> None:
    retries = Retries(3, 60, Draws())
    assert [retries.next_wait_s(AWAY, None, now) for now in (0, 60)] == [0.25, 0.5]
    assert retries.next_wait_s(LOST, HEALTHY_S, 1000) == 0.25
    assert retries.attempt == 1
    assert [retries.next_wait_s(AWAY, None, now) for now in (1060, 1120, 1180)] == [0.25, 0.5, None]


def test_loss_after_a_healthy_time_is_no_failed_attempt() -> None:
    retries = Retries(1, 60, Draws())
    assert [retries.next_wait_s(LOST, 3600, 0) for _ in range(10)] == [0.25] * 10


def test_loss_soon_after_the_handshake_counts_as_a_failure() -> None:
    retries = Retries(4, 60, Draws())
    waits = [retries.next_wait_s(LOST, HEALTHY_S - 0.1, now) for now in (0, 60, 120, 180)]
    assert waits == [0.25, 0.5, 1, None]


def test_wait_after_a_connection_that_did_not_last_is_drawn_from_the_upper_half() -> None:
    """A server that accepts and closes gets 10 connects in 10 s at most, whatever is drawn."""
    retries = Retries(0, 5, Draws(0))
    waits = [retries.next_wait_s(LOST, 0, 0) for _ in range(11)]
    assert waits == [0.125, 0.25, 0.5, 1, 2, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5]


def test_healthy_time_is_five_seconds() -> None:
    assert HEALTHY_S == 5


def test_attempt_counts_from_the_first() -> None:
    retries = Retries(0, 5, Draws())
    attempts = []
    for _ in range(3):
        retries.next_wait_s(AWAY, None, 0)
        attempts.append(retries.attempt)
    assert attempts == [2, 3, 4]


@pytest.mark.parametrize(("asked_s", "wait_s"), [(0, 0.25), (0.1, 0.25), (2, 2), (5, 5), (3600, 5)])
def test_wait_that_the_server_asked_for_is_kept_up_to_the_longest(
    asked_s: float, wait_s: float
) -> None:
    assert Retries(0, 5, Draws()).next_wait_s(asking(asked_s), None, 0) == wait_s


@pytest.mark.parametrize("open_s", [None, 0, 3600])
def test_final_error_is_the_end_at_once(open_s: float | None) -> None:
    assert Retries(0, 5, Draws()).next_wait_s(SinkRefused("no"), open_s, 0) is None
