"""What reads from the relay's side: AudioSocket, and the names and texts of the receiver."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import PurePosixPath
from random import Random
from typing import Any
from unittest.mock import AsyncMock, MagicMock

from audiofork.config import Address
from audiofork.errors import AudioSocketProtocolError
from audiofork.receiver import LABEL_LENGTH, TEXT_LENGTH, channels_of, label_of, shown
from audiofork.relay.audiosocket import (
    HANGUP_MESSAGE,
    MAX_PAYLOAD_BYTES,
    SAMPLE_RATES,
    Decoder,
    Kind,
    Message,
    encode,
)
from audiofork.relay.listener import Listener

from .fuzzing import Check, Target, split

_UUID = encode(Kind.UUID, bytes(range(16)))
_FRAME = encode(Kind.SLIN, bytes(320))
_DTMF = encode(Kind.DTMF, b"5")
_MOST_HELD_BYTES = 3 + MAX_PAYLOAD_BYTES


def decode(chunks: list[bytes]) -> tuple[list[Message], str]:
    """Return the messages of a connection, and the error that ended it if one did."""
    decoder = Decoder()
    messages: list[Message] = []
    try:
        for chunk in chunks:
            messages += decoder.feed(chunk)
            assert len(decoder._rest) < _MOST_HELD_BYTES
        messages += decoder.feed(b"")
    except AudioSocketProtocolError as exc:
        return messages, str(exc)
    return messages, ""


def expected_messages(data: bytes) -> tuple[list[Message], bool]:
    """Return the messages before the first header that is not allowed, and whether one came."""
    messages: list[Message] = []
    while len(data) >= 3:
        kind, length = data[0], int.from_bytes(data[1:3], "big")
        fixed = {0: 0, 1: 16, 3: 1}.get(kind, length)
        is_odd_audio = kind in SAMPLE_RATES and (length == 0 or length % 2 == 1)
        if length > 15_360 or length != fixed or is_odd_audio:
            return messages, True
        if len(data) < 3 + length:
            break
        messages.append(Message(kind, data[3 : 3 + length]))
        data = data[3 + length :]
    return messages, False


def check_audiosocket(data: bytes, rng: Random) -> str:
    messages, is_broken = expected_messages(data)
    for chunks in ([data], split(data, rng)):
        decoded, error = decode(chunks)
        assert decoded == messages
        assert bool(error) == is_broken
        assert error.isprintable()
    assert data.startswith(b"".join(encode(*message) for message in messages))
    return "broken" if is_broken else "messages" if messages else "nothing whole"


# --- A leg ---------------------------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """Stands for one AudioSocket connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


class _Owner:
    """Stands for the session that a leg is let in to."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.attached = 0
        self.closed = 0

    def attach(self, leg: Any) -> None:
        self.attached += 1

    def on_audio(self, frame: bytes) -> None:
        assert self.attached
        assert not self.closed
        self.frames.append(frame)

    def on_leg_closed(self) -> None:
        self.closed += 1


@contextmanager
def _listening() -> Iterator[Check]:
    factories: list[Callable[[], Any]] = []

    async def create_server(factory: Callable[[], Any], *_: Any, **__: Any) -> Any:
        factories.append(factory)
        listening = MagicMock()
        listening.getsockname.return_value = ("127.0.0.1", 9092)
        server = MagicMock(sockets=[listening])
        server.wait_closed = AsyncMock()
        return server

    async def check(data: bytes, rng: Random) -> str:
        return _check_leg(listener, factories[0], data, rng)

    with asyncio.Runner() as runner:
        setattr(runner.get_loop(), "create_server", create_server)  # noqa: B010
        listener = Listener()
        runner.run(listener.start(Address("127.0.0.1", 9092)))
        yield lambda data, rng: runner.run(check(data, rng))
        runner.run(listener.close())


def _check_leg(listener: Listener, factory: Callable[[], Any], data: bytes, rng: Random) -> str:
    """Whatever a peer sends, it is let in once, by its UUID, and heard until its first fault."""
    owner, transport, refused_before = _Owner(), _Transport(), listener.refused.total
    fork_id = str(uuid.UUID(bytes=_UUID[3:]))
    listener.issue(fork_id, owner)
    leg = factory()
    leg.connection_made(transport)
    for chunk in [*split(data, rng), b""]:  # the next read, whatever it brings
        leg.data_received(chunk)
    is_refused = listener.refused.total - refused_before
    is_let_in, frames, is_at_fault = _expected_of_leg(data)
    assert (owner.attached, owner.frames) == (is_let_in, frames)
    assert (is_refused, transport.is_closed) == (is_at_fault, is_at_fault)
    assert transport.written == (HANGUP_MESSAGE if is_at_fault else b"")
    leg.connection_lost(None)
    assert owner.closed == is_let_in
    listener.withdraw(fork_id)
    return "refused" if is_at_fault else "let in" if is_let_in else "waiting"


def _expected_of_leg(data: bytes) -> tuple[bool, list[bytes], bool]:
    """Return whether a leg is let in, its frames, and whether it is refused then."""
    messages, is_broken = expected_messages(data)
    if not messages:
        return False, [], is_broken
    if messages[0] != Message(Kind.UUID, _UUID[3:]):
        return False, [], True
    frames: list[bytes] = []
    for kind, payload in messages[1:]:
        if kind in (Kind.UUID, Kind.HANGUP, Kind.ERROR):
            return True, frames, True
        if kind == Kind.SLIN:
            frames.append(payload)
    return True, frames, is_broken


# --- The receiver --------------------------------------------------------------------------------


def check_receiver(data: bytes, rng: Random) -> str:
    target = data.decode("utf-8", "surrogateescape")
    label = label_of(target)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", label)
    assert len(label) <= LABEL_LENGTH
    assert PurePosixPath("/a", f"{label}.wav").parent == PurePosixPath("/a")
    assert channels_of(target) in (0, 1, 2)
    line = shown(target)
    assert line.isprintable()
    assert len(line) <= TEXT_LENGTH + len("...")
    return "no name" if label == "fork" else "named"


_AUDIOSOCKET_TOKENS = (
    *(_UUID, _FRAME, _DTMF, _UUID[:3], _FRAME[:3], b"\x00\x00\x00", b"\x10\x00\x02ab"),
    *(b"\x10\x3c\x00", b"\x10\x3c\x02", b"\x18\x3c\x00", b"\x42\x3c\x00", b"\x10\x00\x00"),
    *(b"\xff\xff\xff", b"\xff\x00\x00", b"\x10", b"\x10\x01", b"GET / HTTP/1.1\r\n\r\n"),
)

TARGETS = (
    Target(
        "audiosocket-leg",
        corpus=(
            _UUID + _FRAME * 3,
            _UUID + _DTMF + _FRAME + _DTMF + encode(0x77, b"abc") + _FRAME,
            _UUID + encode(Kind.SLIN, bytes(640)) + encode(Kind.SLIN16, bytes(640)),
        ),
        tokens=_AUDIOSOCKET_TOKENS,
        share=80,
        opened=_listening,
    ),
    Target(
        "audiosocket",
        corpus=(
            _UUID + _FRAME * 3,
            _UUID + _DTMF + _FRAME + _DTMF,
            _FRAME * 2 + b"\x00\x00\x00",
            encode(Kind.SLIN192, bytes(MAX_PAYLOAD_BYTES)) + _DTMF,
            b"".join(encode(kind, b"\x01\x02") for kind in range(0x10, 0x20)),
            encode(Kind.ERROR, b"\x01") + encode(0x77, b"abc") + encode(Kind.SILENCE),
        ),
        tokens=_AUDIOSOCKET_TOKENS,
        share=120,
        opened=lambda: nullcontext(check_audiosocket),
    ),
    Target(
        "receiver",
        corpus=(
            b"/",
            b"/live/in?channel=PJSIP/100-0000002a&channels=2",
            b"/a%2Fb%00c?channel=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            "/bücher/ö?channel=Z\u00fcrich&channels=1".encode(),
        ),
        tokens=(
            *(b"/", b"..", b"../", b"%2e%2e%2f", b"?", b"&", b"channel=", b"channels=2", b"%00"),
            *(b"\0", b"\r\n", b"[", b"]", b"//", b"\\", b"#", b";", b"@", b"%", b".", b"-", b"~"),
            *("\u202e".encode(), "\u2028".encode(), b"\xff", b"\x1b[2J", b"a" * 90, b"+", b"=="),
        ),
        share=20,
        opened=lambda: nullcontext(check_receiver),
    ),
)
