"""Limits what one server may cost: a server that exceeds a limit is given up.

All that a server sends costs CPU time, and some of it memory. A frame without payload costs as much
as one with payload; the answer to a ping also waits in memory until the server reads it. The limits
apply before the library parses the data, so that no server can slow down the forks of others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from audiofork.rate_limit import Allowance, Limit

POLICY_VIOLATION = 1008  # a close code (RFC 6455, 7.4.1)
MAX_MESSAGE_BYTES = 65_536
# The same of a server whose audio is played: 20 s at 24 kHz, or 90 s of mu-law in base64, since
# many send what they say in one piece.
MAX_SPOKEN_BYTES = 1 << 20
# Longest head of an HTTP answer to the handshake.
MAX_HEAD_BYTES = 16_384


# Enough for audio of a bot that sends faster than real time: ten times the 50 messages a second of
# a call, and 40 s of audio in one burst. Each fragment of a message counts. One costs 5 us.
MESSAGES = Limit("messages", 500, 2_000)
# Servers ping every few seconds. A ping costs 15 us with its answer, and 131 bytes of memory.
CONTROL_FRAMES = Limit("control frames", 20, 100)
# Ten times the rate of 48-kHz audio. The burst is 90 s of 16-kHz audio, or 60 s in base64.
BYTES = Limit("bytes", 1 << 20, 3 << 20)
# CPU time for all that comes over TLS: a record may carry no data and still cost work in OpenSSL,
# for example a request for a new key. About five times the cost of MESSAGES and BYTES.
WORK = Limit("ms of work", 50, 200)
# Many small reads cost more than one large one: each read counts as at least this many bytes.
LEAST_BYTES = 1024
# So many messages of the usual kind are counted together: to ask the clock costs more than to read
# one of them.
COUNTED_TOGETHER = 32


class LimitedProtocol(ClientProtocol):
    """The library's protocol with limits; it also does not wait for the body of an HTTP refusal.

    Args:
        uri: The server's URI.
        clock: Returns the time in seconds; never goes back.
        subprotocols: The offered subprotocols, the preferred one first; the handshake fails if the
            server chooses another one.
        max_message_bytes: Longest message.

    Attributes:
        costs_too_much: Whether the server was given up, so that nothing more should be read.
        take: Called with each message at once, in place of an event for each of its frames, which
            would cost a queue and a turn of a task; None: there are events.
    """

    # A dictionary of more than 30 attributes shares no keys with others, and takes a kB more.
    __slots__ = (
        *("_bytes", "_control_frames", "_head", "_messages", "_parts", "_uncounted"),
        *("_uncounted_bytes", "costs_too_much", "take"),
    )

    def __init__(
        self,
        uri: WebSocketURI,
        clock: Callable[[], float] = time.monotonic,
        *,
        subprotocols: Sequence[str] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        offered = [Subprotocol(name) for name in subprotocols] or None
        super().__init__(uri, subprotocols=offered, max_size=max_message_bytes)
        self.costs_too_much = False
        self.take: Callable[[bytes | str], None] | None = None
        self._parts: list[bytes] = []  # of a message that has several frames
        self._head: bytearray | None = bytearray()  # of the HTTP answer, until it is complete
        self._bytes = Allowance(BYTES, clock)
        self._messages = Allowance(MESSAGES, clock)
        self._control_frames = Allowance(CONTROL_FRAMES, clock)
        self._uncounted = 0  # messages that neither allowance knows of yet
        self._uncounted_bytes = 0

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
        """Handle a frame, or give up the server. The library calls it for each parsed frame."""
        is_control = frame.opcode >= Opcode.CLOSE
        allowance = self._control_frames if is_control else self._messages
        if not allowance.take():
            self.give_up(allowance.limit)
            return
        super().recv_frame(frame)
        if not is_control and self.take is not None:
            self.events.pop()
            self._on_part(frame, self.take)

    def _on_part(self, frame: Frame, take: Callable[[bytes | str], None]) -> None:
        """Hand on the message that a frame completes.

        Raises:
            UnicodeDecodeError: It is no text; the library, which has called this, closes then.
        """
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            self._parts.clear()
            take(whole.decode() if self._is_text else whole)

    def takes_at_once(self, data: bytes) -> bool:
        """Hand on what was read if it is one whole message, as nearly all of audio is.

        Returns:
            Whether it was; else `receive_data` has to be called, which does all of this and more.
        """
        take = self.take
        if take is None or self.reader.buffer or self.current_size is not None:
            return False
        start = _only_message(data)
        if not start or self.state is not OPEN:
            return False
        message: bytes | str = data[start:]
        if data[0] == _WHOLE_TEXT:
            try:
                message = data[start:].decode()
            except UnicodeDecodeError:
                return False
        self._uncounted += 1
        self._uncounted_bytes += max(len(data), LEAST_BYTES)
        if self._uncounted >= COUNTED_TOGETHER and not self._count():
            return False  # nor is anything left in `receive_data`, which gives the server up
        take(message)
        return True

    def _count(self) -> bool:
        """Count what came by `takes_at_once`; return whether so much was allowed."""
        messages, self._uncounted = self._uncounted, 0
        size, self._uncounted_bytes = self._uncounted_bytes, 0
        return self._bytes.take(size) and self._messages.take(messages)

    def give_up(self, limit: Limit) -> None:
        """Close the connection; data that is not parsed yet is not parsed any more.

        Args:
            limit: The limit that the server has exceeded.
        """
        self.costs_too_much = True
        if self.state is OPEN:
            reason = f"more than {limit.a_second} {limit.what} a second"
            self.fail(POLICY_VIOLATION, reason)

    def _receive_head(self) -> None:
        if self._head is not None:
            head, self._head = bytes(self._head), None
            super().receive_data(_refusal(head) or head)


_WHOLE_TEXT = 0x81  # the first byte of a message that is one frame
_WHOLE = (0x82, _WHOLE_TEXT)
_LONG = 126  # in place of the length, if two bytes of length follow; more is longer, or masked


def _only_message(data: bytes) -> int:
    """Return where the payload begins if the data is one message of one frame.

    0: it is not such a message, or is one of less than two bytes or more than 65,535.
    """
    if len(data) < 4 or data[0] not in _WHOLE or data[1] > _LONG:
        return 0
    start, length = 2, data[1]
    if length == _LONG:
        start, length = 4, data[2] << 8 | data[3]
    return start if start + length == len(data) else 0


_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
_RETRY_AFTER = re.compile(rb"(?im)^retry-after:[ \t]*([0-9]+)[ \t\r]*$")


def _refusal(head: bytes) -> bytes | None:
    """Return a short form of an HTTP answer that refuses; None if it does not refuse.

    It keeps the status and Retry-After only. The library would read the body, and would treat one
    that is too long or never ends as an invalid answer.
    """
    status = _STATUS_LINE.match(head)
    if status is None or status[1] == b"101":
        return None
    wait = _RETRY_AFTER.search(head)
    asked = b"Retry-After: %b\r\n" % wait[1] if wait else b""
    return b"HTTP/1.1 %b \r\n%bContent-Length: 0\r\n\r\n" % (status[1], asked)
