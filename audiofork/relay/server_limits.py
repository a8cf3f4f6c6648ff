"""What one connection's server may cost: beyond it the server is given up.

Whatever a server sends is work here, and some of it memory: a frame without payload as much as one
with, a ping also an answer that waits until the server reads it. What all may cost together is
bounded before the library takes it apart, so that no server can slow down the fork of another.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import WebSocketURI

POLICY_VIOLATION = 1008  # a close code (RFC 6455, 7.4.1)
MAX_MESSAGE_BYTES = 65_536
# Of an answer to the handshake; what follows is not waited for.
MAX_HEAD_BYTES = 16_384


class Limit(NamedTuple):
    """So much a second, and so much at once after a time of less."""

    what: str
    a_second: int
    at_once: int


# Audio of a bot, sent as fast as it is made: ten times the 50 messages a second of the call's, and
# 40 s of it in one go. Each part of a message counts as one. Taking one costs 5 us.
MESSAGES = Limit("messages", 500, 2_000)
# Servers ping every few seconds. A ping costs 15 us with its answer, and 131 bytes of memory.
CONTROL_FRAMES = Limit("control frames", 20, 100)
# Ten times the audio of 48 kHz; of 16 kHz a minute and a half, or one in base64, in one go.
BYTES = Limit("bytes", 1 << 20, 3 << 20)
# Over TLS, of all that comes: a record may carry nothing but work for OpenSSL, as one that asks
# for another key does. Some five times what MESSAGES and BYTES cost.
WORK = Limit("ms of work", 50, 200)
# What comes in drops costs by the drop: each read counts as so many bytes at least.
LEAST_BYTES = 1024


class Allowance:
    """What is left of a limit.

    Args:
        clock: As of `LimitedProtocol`.
    """

    __slots__ = ("_at_s", "_clock", "_left", "limit")

    def __init__(self, limit: Limit, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._at_s = clock()
        self._left: float = limit.at_once

    def take(self, amount: float = 1) -> bool:
        """Take an amount; return whether there was as much left."""
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.limit.a_second
        self._at_s = now_s
        self._left = min(self._left + gained, self.limit.at_once) - amount
        return self._left >= 0


class LimitedProtocol(ClientProtocol):
    """The library's, which gives up a server that costs too much, and waits for no refusal's body.

    Args:
        clock: Tells the time in seconds; never goes back.

    Attributes:
        costs_too_much: Whether it has given the server up: nothing more should be read of it.
    """

    def __init__(self, uri: WebSocketURI, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(uri, max_size=MAX_MESSAGE_BYTES)
        self.costs_too_much = False
        self._head: bytearray | None = bytearray()  # of the answer, until it is whole
        self._bytes = Allowance(BYTES, clock)
        self._messages = Allowance(MESSAGES, clock)
        self._control_frames = Allowance(CONTROL_FRAMES, clock)

    def receive_data(self, data: bytes | bytearray) -> None:
        if not self._bytes.take(max(len(data), LEAST_BYTES)):
            self.give_up(BYTES)
        elif self._head is None:
            super().receive_data(data)
        else:
            self._head += data
            if b"\r\n\r\n" in self._head or len(self._head) > MAX_HEAD_BYTES:
                self._receive_head()

    def receive_eof(self) -> None:
        self._receive_head()
        super().receive_eof()

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame, or give up. Called by the parser, for each frame that it has found."""
        is_control = frame.opcode >= Opcode.CLOSE
        allowance = self._control_frames if is_control else self._messages
        if allowance.take():
            super().recv_frame(frame)
        else:
            self.give_up(allowance.limit)

    def give_up(self, limit: Limit) -> None:
        """Close, and leave what has come and is not taken apart yet as it is.

        Args:
            limit: What the server has exceeded.
        """
        self.costs_too_much = True
        if self.state is OPEN:
            reason = f"more than {limit.a_second} {limit.what} a second"
            self.fail(POLICY_VIOLATION, reason)

    def _receive_head(self) -> None:
        if self._head is not None:
            head, self._head = bytes(self._head), None
            super().receive_data(_refusal(head) or head)


_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
_RETRY_AFTER = re.compile(rb"(?im)^retry-after:[ \t]*([0-9]+)[ \t\r]*$")


def _refusal(head: bytes) -> bytes | None:
    """Return what counts of an answer that refuses; None where it does not.

    The library reads the body, and takes one that is too long or never ends for garbage.
    """
    status = _STATUS_LINE.match(head)
    if status is None or status[1] == b"101":
        return None
    wait = _RETRY_AFTER.search(head)
    asked = b"Retry-After: %b\r\n" % wait[1] if wait else b""
    return b"HTTP/1.1 %b \r\n%bContent-Length: 0\r\n\r\n" % (status[1], asked)
