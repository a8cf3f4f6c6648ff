"""The AudioSocket wire format, without I/O.

     0               1               2               3
    +---------------+-------------------------------+----------------
    | kind          | length (big-endian)           | payload ...
    +---------------+-------------------------------+----------------

Samples inside an audio payload are little-endian. Asterisk speaks first: one UUID message, then
audio and DTMF. The server may send audio, and a hangup to end the leg; anything else kills it.

Source: include/asterisk/res_audiosocket.h, res/res_audiosocket.c of Asterisk 22.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from audiofork.errors import AudioSocketProtocolError, BadLength, MessageTooBig


class Kind(enum.IntEnum):
    """The kinds of message that are known; others are passed on as plain numbers."""

    HANGUP = 0x00
    UUID = 0x01
    SILENCE = 0x02
    DTMF = 0x03
    SLIN = 0x10
    SLIN12 = 0x11
    SLIN16 = 0x12
    SLIN24 = 0x13
    SLIN32 = 0x14
    SLIN44 = 0x15
    SLIN48 = 0x16
    SLIN96 = 0x17
    SLIN192 = 0x18
    ERROR = 0xFF


SAMPLE_RATES: Final = {
    Kind.SLIN: 8000,
    Kind.SLIN12: 12000,
    Kind.SLIN16: 16000,
    Kind.SLIN24: 24000,
    Kind.SLIN32: 32000,
    Kind.SLIN44: 44100,
    Kind.SLIN48: 48000,
    Kind.SLIN96: 96000,
    Kind.SLIN192: 192000,
}
"""Sample rate in Hz of each kind of audio."""

PTIME_MS: Final = 20
PTIME_S: Final = PTIME_MS / 1000
SAMPLE_BYTES: Final = 2
FRAME_BYTES: Final = 320  # 8000 Hz * 0.020 s * 2 bytes
MAX_PAYLOAD_BYTES: Final = 15_360  # 192000 Hz * 0.020 s * 2 bytes * 2 channels: the largest frame
HANGUP_MESSAGE: Final = b"\x00\x00\x00"

HEADER_BYTES: Final = 3
_HEADER: Final = struct.Struct("!BH")
_UUID_BYTES = 16
_FIXED_LENGTHS: Final = {Kind.HANGUP: 0, Kind.UUID: _UUID_BYTES, Kind.DTMF: 1}


def frame_bytes(sample_rate: int) -> int:
    """Return the size of a mono frame of 20 ms: 320 at 8000 Hz."""
    return sample_rate * PTIME_MS // 1000 * SAMPLE_BYTES


class Message(NamedTuple):
    """One unit of the protocol."""

    kind: int
    payload: bytes


def encode(kind: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one message.

    Raises:
        AudioSocketProtocolError: The kind does not allow this payload.
    """
    _check(kind, len(payload))
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Splits the byte stream of one connection into messages.

    After an error it refuses all further input, because message boundaries are unknown then.

    Nearly every chunk is just one audio message like the one before. Such a chunk is `usual_bytes`
    long and begins with `usual_header`. It need not be fed: the bytes after the header are its
    payload.

    Attributes:
        usual_header: Header of the latest audio message.
        usual_bytes: Length of the latest audio message with its header; -1 if the next chunk does
            not begin with a header.
        error: How the peer broke the protocol; None if it has not.
    """

    __slots__ = ("_rest", "error", "usual_bytes", "usual_header")

    def __init__(self) -> None:
        self._rest = b""
        self.usual_header = b""
        self.usual_bytes = -1  # no chunk is as long
        self.error: AudioSocketProtocolError | None = None

    def usual_frames(self, chunk: bytes) -> list[bytes]:
        """Return the payloads of a chunk that consists of messages like the usual one.

        If the list is empty, the chunk consists of others, and must be fed.
        """
        size, header = self.usual_bytes, self.usual_header
        if size < 0 or len(chunk) % size:
            return []
        count = len(chunk) // size
        for place in range(HEADER_BYTES):
            if chunk[place::size] != header[place : place + 1] * count:
                return []
        return [chunk[at + HEADER_BYTES : at + size] for at in range(0, len(chunk), size)]

    def feed(self, chunk: bytes) -> list[Message]:
        """Decode the complete messages in a chunk read from the connection.

        Args:
            chunk: Any bytes, split anywhere; what is incomplete waits for the next call.

        Returns:
            Messages in wire order. An audio payload is slin: int16 little-endian; normally
            320 bytes = 160 samples = 20 ms at 8000 Hz.

        Raises:
            AudioSocketProtocolError: The peer broke the protocol; close the connection. Messages
                that came whole before that are returned first: then `error` is set, and the next
                call raises it.
        """
        if self.error is not None:
            raise self.error
        stream = self._rest + chunk if self._rest else chunk
        messages: list[Message] = []
        start = 0
        end = len(stream)
        while end - start >= HEADER_BYTES:
            kind, length = _HEADER.unpack_from(stream, start)
            try:
                _check(kind, length)
            except AudioSocketProtocolError as exc:
                self.error, self._rest, self.usual_bytes = exc, b"", -1
                if messages:
                    return messages
                raise
            payload_start = start + HEADER_BYTES
            payload_end = payload_start + length
            if payload_end > end:
                break
            messages.append(Message(kind, stream[payload_start:payload_end]))
            if kind in SAMPLE_RATES:
                self.usual_header = stream[start:payload_start]
            start = payload_end
        self._rest = stream[start:]
        self.usual_bytes = -1 if self._rest else self._usual_length()
        return messages

    def _usual_length(self) -> int:
        if not self.usual_header:
            return -1
        return HEADER_BYTES + int.from_bytes(self.usual_header[1:], "big")


def _check(kind: int, length: int) -> None:
    """Raise unless a message of this kind may have this length."""
    if length > MAX_PAYLOAD_BYTES:
        raise MessageTooBig(kind, length, MAX_PAYLOAD_BYTES)
    fixed = _FIXED_LENGTHS.get(kind)  # type: ignore[call-overload]
    if fixed is not None and length != fixed:
        raise BadLength(kind, length, str(fixed))
    if kind in SAMPLE_RATES and (length == 0 or length % 2):
        raise BadLength(kind, length, "a positive even number")
