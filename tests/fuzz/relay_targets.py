"""What reads from the relay's side: AudioSocket, and the names and texts of the receiver."""

from __future__ import annotations

import asyncio
import audioop
import itertools
import re
import socket
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import PurePosixPath
from random import Random
from typing import Any, cast

from audiofork.audiosocket import (
    HANGUP_MESSAGE,
    MAX_PAYLOAD_BYTES,
    SAMPLE_RATES,
    Decoder,
    Kind,
    Message,
    encode,
)
from audiofork.commands.receiver import LABEL_LENGTH, TEXT_LENGTH, channels_of, label_of, shown
from audiofork.errors import AudioSocketProtocolError
from audiofork.link.messages import (
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    LegPart,
    Report,
    SetMute,
)
from audiofork.relay.backlog import Backlog
from audiofork.relay.formats.base import Event
from audiofork.relay.leg import Leg
from audiofork.relay.listener import Listener
from audiofork.relay.pacer import Pacer
from audiofork.relay.session import Session
from audiofork.relay.sink import Sink

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


class _Connection:
    """One AudioSocket connection; what its peer sends is given to the leg."""

    def __init__(self, listener: Listener) -> None:
        near, self._far = socket.socketpair()
        near.setblocking(False)
        self._far.setblocking(False)
        self.leg = Leg(listener, near, "192.0.2.1")

    def written(self) -> bytes:
        """Return what the leg has sent."""
        with suppress(BlockingIOError):
            return self._far.recv(1000)
        return b""

    async def end(self) -> None:
        """Let the leg be lost."""
        self.leg.abort()
        await asyncio.sleep(0)  # it learns that in the next turn
        self._far.close()


class _Owner:
    """Stands for the session that a leg is let in to."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.attached = 0
        self.closed = 0

        self.on_audio: Callable[[bytes], None] = self._hear

    def attach(self, leg: Any) -> None:
        leg.on_usual = self.on_usual
        self.attached += 1

    def _hear(self, frame: bytes) -> None:
        assert self.attached
        assert not self.closed
        self.frames.append(frame)

    def on_usual(self, frame: bytes) -> None:
        assert len(frame) == len(self.frames[-1])
        self.on_audio(frame)

    def on_batch_read(self, is_late: bool) -> int:
        raise AssertionError("no reads are batched")

    def on_leg_closed(self, *, contested: bool = False) -> None:
        self.closed += 1


CheckLegs = Callable[[Listener, bytes, Random], Coroutine[Any, Any, str]]


@contextmanager
def _listening(check_legs: CheckLegs) -> Iterator[Check]:
    with asyncio.Runner() as runner:
        listener = Listener(lambda _: None)
        yield lambda data, rng: runner.run(check_legs(listener, data, rng))
        runner.run(listener.close())


def _chunks(data: bytes, rng: Random) -> list[bytes]:
    """Cut a leg's bytes anywhere; or as they mostly come: each message is a chunk."""
    if rng.random() < 0.5:
        return split(data, rng)
    chunks: list[bytes] = []
    while len(data) >= 3:
        end = 3 + int.from_bytes(data[1:3], "big") + rng.choice((0,) * 20 + (-1, 1))
        chunks.append(data[:end])
        data = data[end:]
    return [*chunks, data]


async def _check_leg(listener: Listener, data: bytes, rng: Random) -> str:
    """Whatever a peer sends, it is let in once, by its UUID, and heard until its first fault."""
    owner, refused_before = _Owner(), listener.refused.total
    fork_id = str(uuid.UUID(bytes=_UUID[3:]))
    listener.issue(fork_id, owner)
    connection = _Connection(listener)
    for chunk in [*_chunks(data, rng), b""]:  # the next read, whatever it brings
        connection.leg.received(chunk)
    is_refused = listener.refused.total - refused_before
    is_let_in, frames, is_at_fault = _expected_of_leg(data)
    assert (owner.attached, owner.frames) == (is_let_in, frames)
    assert (is_refused, connection.leg.is_closing()) == (is_at_fault, is_at_fault)
    assert connection.written() == (HANGUP_MESSAGE if is_at_fault else b"")
    await connection.end()
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
        if kind in SAMPLE_RATES:
            frames.append(payload)
    return True, frames, is_broken


# --- A fork with its legs ------------------------------------------------------------------------

_FORK_ID = str(uuid.UUID(bytes=_UUID[3:]))
_LOW_RATE = 100  # frames of 20 ms have 4 bytes, so that many fit into an input
_LOW_FRAME_BYTES = 4
_NEXT_LEG = b"/leg/"
_FORKS: tuple[tuple[Direction, tuple[LegPart, ...]], ...] = (
    (Direction.STEREO, (LegPart.IN, LegPart.OUT)),
    (Direction.STEREO, (LegPart.IN, LegPart.OUT)),
    (Direction.OUT, (LegPart.OUT,)),
    (Direction.BOTH, (LegPart.MIX,)),
    (Direction.STEREO, (LegPart.PAIRS,)),
)


class _Sink:
    """Stands for the sink of a fork."""

    def __init__(self, frame_bytes: int) -> None:
        self.subprotocol = ""
        self.on_open: Callable[[], None] = lambda: None
        self.frames: list[bytes] = []
        self.frames_sent = 0
        self.backlog = Backlog(0.5)
        self.reconnects = 0
        self.messages_unused = 0
        self.frame_ms = 20
        self.is_open = False
        self._frame_bytes = frame_bytes
        self._closed = asyncio.Event()

    def on_the_way(self) -> tuple[float, int]:
        return 0.0, 0

    def send(self, frame: bytes) -> None:
        assert len(frame) == self._frame_bytes
        self.frames.append(frame)
        if self.is_open:
            self.frames_sent += 1
        else:
            self.backlog.put(frame)

    def turn(self) -> None:
        """Open, or lose the connection."""
        self.is_open = not self.is_open
        if self.is_open:
            self.frames_sent += len(self.backlog)
            while self.backlog:
                self.backlog.take()
            self.on_open()

    def send_batch(self, frames: list[bytes]) -> None:
        raise AssertionError("no reads are batched")

    def send_event(self, event: Event) -> None:
        raise AssertionError("nothing happens that the server is told of")

    async def run(self) -> None:
        await self._closed.wait()

    async def close(self, code: int, reason: str) -> None:
        self._closed.set()


class _Fork:
    """A fork whose legs are let in."""

    def __init__(self, listener: Listener, rng: Random) -> None:
        direction, parts = rng.choice(_FORKS)
        rate = _LOW_RATE // 2 if LegPart.PAIRS in parts else _LOW_RATE
        spec = ForkSpec(_FORK_ID, "", "", direction, legs=parts, sample_rate=rate)
        self.sink = _Sink(_LOW_FRAME_BYTES * len(parts))
        self.reports: list[Report] = []
        self.session = Session(spec, cast(Sink, self.sink), self.reports.append, Pacer())
        self.session.start()
        self.gate_open = True
        self.legs: dict[LegPart, _Connection] = {}
        self.read = dict.fromkeys(parts, b"")  # what each leg has brought
        for part in parts:
            uuid_of_leg = str(uuid.uuid4())
            listener.issue(uuid_of_leg, self.session.inlets[part])
            self.legs[part] = connection = _Connection(listener)
            connection.leg.received(encode(Kind.UUID, uuid.UUID(uuid_of_leg).bytes))

    def disturb(self, rng: Random) -> None:
        """Give a command, of those that may put silence in place of audio."""
        if rng.random() < 0.5:
            flags = [rng.choice((None, True, False)) for _ in range(2)]
            if LegPart.PAIRS in self.legs:  # or half a frame would be left
                flags = [bool(flags[0])] * 2
            self.session.set_mute(SetMute(_FORK_ID, *flags))
        else:
            self.gate_open = rng.random() < 0.7
            self.session.set_gate(self.gate_open)

    def bring(self, part: LegPart, chunk: bytes) -> None:
        """Let a leg bring a chunk."""
        before = len(self.sink.frames)
        self.read[part] += chunk
        self.legs[part].leg.received(chunk)
        assert self.gate_open or len(self.sink.frames) == before

    def sent(self, part: LegPart) -> list[bytes]:
        """Return the frames of a part that the sink was given, without silence."""
        frames = self.sink.frames
        if len(self.legs) > 1:
            sides = (1, 0) if part is LegPart.IN else (0, 1)
            frames = [audioop.tomono(frame, 2, *sides) for frame in frames]
        return [frame for frame in frames if any(frame)]

    def expected(self, part: LegPart) -> tuple[list[bytes], int]:
        """Return the frames that a leg has brought, without silence, and the number of others."""
        _, frames, _ = _expected_of_leg(_UUID + self.read[part])
        good = [frame for frame in frames if len(frame) == _LOW_FRAME_BYTES]
        return [frame for frame in good if any(frame)], len(frames) - len(good)


async def _check_fork(listener: Listener, data: bytes, rng: Random) -> str:
    """Whatever its legs bring in whatever chunks, each frame is sent once, or counted."""
    fork = _Fork(listener, rng)
    turning, disturbing = rng.choice(((0.0, 0.0), (0.2, 0.0), (0.2, 0.2)))
    if rng.random() < 0.8:
        fork.sink.turn()
    parts = itertools.cycle(fork.legs)
    for piece in data.split(_NEXT_LEG):
        part = next(parts)
        for chunk in _chunks(piece, rng):
            fork.bring(part, chunk)
            if rng.random() < turning:
                fork.sink.turn()
            if rng.random() < disturbing:
                fork.disturb(rng)
    is_failed = fork.session._end is not None
    fork.session.end(EndReason.STOPPED)
    await fork.session.done.wait()
    for connection in fork.legs.values():
        await connection.end()
    return _judge(fork, is_whole=not disturbing and not is_failed)


def _judge(fork: _Fork, *, is_whole: bool) -> str:
    stats = fork.session.stats()
    dropped = stats.frames_in - len(fork.sink.frames)
    unexpected = 0
    for part in fork.legs:
        brought, unexpected_of_part = fork.expected(part)
        unexpected += unexpected_of_part
        if is_whole:
            assert fork.sent(part) == brought
        else:
            rest = iter(brought)
            assert all(frame in rest for frame in fork.sent(part)), "out of order, or doubled"
    assert dropped == unexpected if is_whole else 0 <= dropped <= unexpected
    assert stats.frames_in == (stats.frames_sent + stats.frames_dropped + len(fork.sink.backlog))
    ends = [report for report in fork.reports if isinstance(report, ForkEnded)]
    assert ends == [fork.reports[-1]]
    if ends[0].reason is EndReason.LEG_FAILED:
        assert dropped == 1
        return "leg failed"
    return "sent" if fork.sink.frames else "nothing sent"


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


def _low(*numbers: int) -> bytes:
    """Return messages of frames at the low rate that can be told apart; of 0: silence."""
    return b"".join(
        encode(Kind.SLIN, number.to_bytes(_LOW_FRAME_BYTES, "little")) for number in numbers
    )


_LONG, _SHORT = encode(Kind.SLIN, b"abcdef"), encode(Kind.SLIN, b"ab")
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
        opened=lambda: _listening(_check_leg),
    ),
    Target(
        "audiosocket-fork",
        corpus=(
            _NEXT_LEG.join(_low(n) for n in range(1, 9)),
            _NEXT_LEG.join((_low(*range(1, 40)), _low(*range(41, 80)), _low(*range(81, 120)))),
            _low(1, 2, 3) + _LONG * 3 + _low(4, 5) + _SHORT * 2 + _low(6, 7),
            _NEXT_LEG.join((_low(1, 2), _low(1), _low(0, 3) + _DTMF, _low(2, 3), _low(4, 5) * 20)),
        ),
        tokens=(
            *(_NEXT_LEG, _low(1), _low(0), _low(*range(1, 30)), _LONG, _SHORT, _LONG * 2, _DTMF),
            *(_low(7)[:3], b"\x10\x00\x04", b"\x12\x00\x04abcd", b"\x10\x00\x05", _FRAME),
            *(b"\x00\x00\x00", _UUID, encode(0x77, _low(5)), _low(8) + _NEXT_LEG + _low(9)),
        ),
        share=40,
        opened=lambda: _listening(_check_fork),
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
