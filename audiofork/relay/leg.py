"""One AudioSocket connection, from its UUID to its end.

Reading is never paused: Asterisk treats a short write as a failure and drops the leg.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from audiofork.audiosocket import (
    HANGUP_MESSAGE,
    HEADER_BYTES,
    SAMPLE_RATES,
    Decoder,
    Kind,
    encode,
    frame_bytes,
)
from audiofork.errors import AudioSocketProtocolError
from audiofork.relay.pipeline import LegHandle
from audiofork.relay.read_batching import MOST_BATCHED_BYTES, ReadBatching, wire_bytes
from audiofork.relay.tcp import TcpSocket

if TYPE_CHECKING:
    from audiofork.relay.listener import Listener

# Asterisk sends the UUID as soon as it is connected. As a server it grants clients 2 s itself.
UUID_TIMEOUT_S = 2.0
# How long Asterisk may take to close a leg whose call goes on, or to read what was spoken to it.
LET_GO_S = 2.0
# Most that is read at once, in messages: most of the time just one has come.
MESSAGES_PER_READ: Final = 3
# The same where reads are batched, and of all that waits.
MOST_READ_BYTES: Final = 65_536
# How often in a row acknowledgements are delayed again, where the kernel has ceased to.
_MOST_TRIES: Final = 3


class LegOwner(Protocol):
    """The calls that a leg makes to its fork: see `audiofork.relay.session.Inlet`.

    The fork's pipeline sets `on_usual` of the leg in `attach`.
    """

    on_audio: Callable[[bytes], None]

    @property
    def on_batch_read(self) -> Callable[[bool], int]: ...

    def attach(self, leg: LegHandle) -> None: ...
    def on_leg_closed(self, *, contested: bool = False) -> None: ...


@lru_cache(maxsize=16)
def _shared(size: int, header: bytes) -> tuple[int, bytes]:
    """Return the same two objects for all legs, so that they stay in the processor's caches."""
    return size, header


_RATES: dict[int, int] = {int(kind): rate for kind, rate in SAMPLE_RATES.items()}
_KINDS: dict[int, int] = {frame_bytes(rate): kind for kind, rate in _RATES.items()}


@lru_cache(maxsize=16)
def _spoken_header(kind: int, size: int) -> bytes:
    """Return the header of a message of audio."""
    return encode(kind, bytes(size))[:HEADER_BYTES]


def _to_nobody(_frame: bytes) -> None:
    """Discard a frame of a leg that has no owner any more."""


class Leg(TcpSocket):
    """One AudioSocket connection.

    Args:
        listener: Has accepted it.
        accepted: Its socket, which does not block.
        peer: The address that it comes from.

    Raises:
        OSError: The kernel watches no more sockets.
    """

    __slots__ = (
        *("_deadline", "_decoder", "_batching", "_hung_up", "_listener", "_owner"),
        *("_tries", "_usual_bytes", "_usual_header", "on_batch", "on_usual", "peer"),
    )
    on_usual: Callable[[bytes], None]  # set by the owner's pipeline, as is `on_batch`

    def __init__(self, listener: Listener, accepted: socket.socket, peer: str) -> None:
        super().__init__(accepted)
        self._listener = listener
        self._decoder = Decoder()
        self._batching: ReadBatching | None = None
        self._owner: LegOwner | None = None
        self._hung_up = False
        self._tries = 0  # to delay acknowledgements, since it was seen to work
        self.on_batch: Callable[[list[bytes]], None] | None = None
        self._usual_bytes = -1  # as in the decoder while the fast path is used; else no length
        self._usual_header = b""
        self.peer = peer
        self.resume_reading()  # first: it may fail
        self._deadline = asyncio.get_running_loop().call_later(
            UUID_TIMEOUT_S, self.refuse, f"no UUID within {UUID_TIMEOUT_S:g} s"
        )
        listener.add(self)
        if not listener.allows(peer):
            self.refuse("not allowed ([audiosocket] allow)")

    def received(self, chunk: bytes) -> None:
        """Take what was read; see `TcpSocket.received`."""
        if len(chunk) == self._usual_bytes and chunk.startswith(self._usual_header):
            on_usual = self.on_usual
            on_usual(chunk[HEADER_BYTES:])
        elif self._batching is not None:
            self._take_batch(chunk)
        else:
            self._feed(chunk)

    def _take_batch(self, chunk: bytes) -> None:
        self._hand_on(chunk)
        if self._batching is not None and self._owner is not None:
            missing = self._owner.on_batch_read(self._batching.is_late)
            self._batching.on_read(missing)

    def _hand_on(self, chunk: bytes) -> None:
        """Hand on what was read at once: together, if the pipeline takes it so."""
        frames = self._decoder.usual_frames(chunk) if self._owner is not None else []
        if not frames:
            self._feed(chunk)
        elif self.on_batch is not None:
            self.on_batch(frames)
        else:
            for frame in frames:
                self.on_usual(frame)

    def _feed(self, chunk: bytes) -> None:
        if self._hung_up:
            return
        try:
            messages = self._decoder.feed(chunk)
        except AudioSocketProtocolError as exc:
            self.refuse(str(exc))
            return
        for kind, payload in messages:
            if self._owner is None:
                self._identify(kind, payload)
            elif kind in SAMPLE_RATES:
                self._owner.on_audio(payload)
            else:
                self._on_other(kind)
        if self._owner is not None and self._batching is None:
            self._usual_bytes, self._usual_header = _shared(
                self._decoder.usual_bytes, self._decoder.usual_header
            )
            if self._usual_bytes > 0:
                self.most_bytes = MESSAGES_PER_READ * self._usual_bytes
                if not self._tries:
                    self.delay_acks()
        if self._decoder.error is not None and not self._hung_up:
            self.refuse(str(self._decoder.error))

    def _identify(self, kind: int, payload: bytes) -> None:
        if self._hung_up:
            return
        if kind != Kind.UUID:
            self.refuse(f"message 0x{kind:02x} before the UUID")
            return
        owner = self._listener.claim(self, payload)
        if owner is None:
            return
        self._deadline.cancel()
        self._owner = owner
        owner.attach(self)

    def delay_acks(self) -> None:
        """Let TCP acknowledge every second frame in place of each; to be called now and then.

        By itself it acknowledges what is read at once, unless we send about as often as we receive
        (TCP_QUICKACK, tcp(7)). That is a packet for each frame, and a sixth of what a frame costs.
        The kernel ceases to wait as soon as it has waited 40 ms in vain: where a frame is late, and
        where Asterisk sends none before the last one is acknowledged. The latter is the case before
        20.15, 21.10 and 22.5, which leave Nagle's algorithm on: there each try delays a frame, so
        there are few.
        """
        if not self._decoder.usual_header:
            return  # no audio yet
        with contextlib.suppress(OSError):  # raised if the connection is being closed
            if not self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK):
                self._tries = 1
            elif self._tries < _MOST_TRIES:
                self._tries += 1
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def _on_other(self, kind: int) -> None:
        """Refuse the leg on hangup, error or a second UUID; ignore other kinds.

        DTMF comes over AMI, and later versions of Asterisk may send new kinds.
        """
        if kind == Kind.UUID:
            self.refuse("a second UUID")
        elif kind in (Kind.HANGUP, Kind.ERROR):
            self.refuse(f"message 0x{kind:02x} from Asterisk")

    def refuse(self, why: str) -> None:
        """Close the connection, and count it."""
        self._listener.refused.count(f"{why}, from {self.peer or 'nobody'}")
        owner = self._forget_owner()
        self.hang_up()
        if owner is not None:
            owner.on_leg_closed()

    def contest(self) -> None:
        """End the leg, because another connection presented the same UUID."""
        owner = self._forget_owner()
        self.hang_up()
        if owner is not None:
            owner.on_leg_closed(contested=True)

    def hang_up(self, *, call_goes_on: bool = False) -> None:
        """End the leg: Asterisk hangs up when it sees the hangup message or the close.

        Args:
            call_goes_on: A channel waits for the end of the leg, and then goes on in the dialplan.
                On a reset, which unread audio causes, AudioSocket() hangs that channel up. So our
                side alone is closed, and what comes is read until Asterisk closes, too: for
                LET_GO_S at most.
        """
        if self._hung_up:
            return
        self._hung_up = True
        self._deadline.cancel()
        self._forget_owner()
        self._stop_batching()
        self._listener.forget_stranger(self)
        self.write(HANGUP_MESSAGE)
        if call_goes_on:
            self.write_eof()
        else:
            self.close()  # now, but where Asterisk has not read what was spoken
        self._deadline = asyncio.get_running_loop().call_later(LET_GO_S, self.abort)

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> bool:
        """Read `batch_ms` of audio at once from now on, unless that is too much for the kernel.

        A frame then waits little longer than `batch_ms` milliseconds to be read.

        Returns:
            Whether it reads so.
        """
        is_much = wire_bytes(frame_bytes, batch_ms) > MOST_BATCHED_BYTES
        if self._batching is None and not self._hung_up and not is_much:
            patience = self._listener.patience_for(batch_ms)
            self._batching = ReadBatching(self._socket, frame_bytes, batch_ms, patience)
            self.most_bytes = MOST_READ_BYTES
            self._usual_bytes = -1  # turns the fast path off: a read has several messages now
        return self._batching is not None

    def read_rest(self) -> None:
        """Read at once what waits in the kernel, and hand it on."""
        if self._owner is None:
            return
        try:
            chunk = self._socket.recv(MOST_READ_BYTES)
        except OSError:  # nothing is there, or the connection is being closed
            return
        if chunk and self._batching is not None:
            self._hand_on(chunk)
        elif chunk:  # the end is seen at the next read
            self.received(chunk)

    def await_frames(self, count: int) -> None:
        """Read this many frames at once next, if reads are batched; `read_rest` was before."""
        if self._batching is not None:
            self._batching.on_read(count)

    def read_singly(self) -> None:
        """Read each frame as it comes from now on, and at once what waits."""
        self.read_rest()
        self._stop_batching()

    def _stop_batching(self) -> None:
        if self._batching is not None:
            self._batching.stop()
            self._batching = None

    def _forget_owner(self) -> LegOwner | None:
        owner, self._owner = self._owner, None
        self._usual_bytes = -1
        # LegUuids keeps the leg for a while; through `on_usual` it would keep the whole fork.
        self.on_usual = _to_nobody
        self.on_batch = None
        return owner

    @property
    def spoken_rate(self) -> int:
        """See `LegHandle.spoken_rate`.

        Versions that send all rates as one kind also play all that they get at 8000 Hz.
        """
        header = self._decoder.usual_header
        return _RATES[header[0]] if header else 0

    def speak(self, frame: bytes) -> bool:
        """Play a frame, at `spoken_rate`, to the target's party; return whether it was written.

        Each frame is one write: Asterisk treats half a message as a failure. It accepts no other
        kind than that of the leg's own audio; before that has come, the frame's size decides. None
        is written while 64 KiB wait that Asterisk has not read.
        """
        if self._hung_up or self._is_full:
            return False
        if self._usual_bytes == HEADER_BYTES + len(frame):
            self.write(self._usual_header + frame)
            return True
        header = self._decoder.usual_header
        kind = header[0] if header else _KINDS.get(len(frame), Kind.SLIN)
        self.write(_spoken_header(kind, len(frame)) + frame)
        return True

    def on_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (of the base)
        """Learn that the connection is over; see `TcpSocket.on_lost`."""
        self._hung_up = True
        self._deadline.cancel()
        self._stop_batching()
        self._listener.remove(self)
        owner = self._forget_owner()
        if owner is not None:
            owner.on_leg_closed()
