"""The AudioSocket server: accepts legs from Asterisk and gives each to its session.

Reading is never paused: Asterisk treats a short write as a failure and drops the leg.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, cast

from audiofork.addresses import IPNetwork, is_among
from audiofork.audiosocket import (
    HANGUP_MESSAGE,
    HEADER_BYTES,
    SAMPLE_RATES,
    Decoder,
    Kind,
    encode,
    frame_bytes,
)
from audiofork.config import Address
from audiofork.errors import AudioSocketProtocolError
from audiofork.link.messages import StrangersRefused
from audiofork.log import CounterLine
from audiofork.relay.leg_uuids import LegUuids
from audiofork.relay.pipeline import LegHandle
from audiofork.relay.read_batching import MOST_BATCHED_BYTES, Patience, ReadBatching, wire_bytes

log = logging.getLogger(__name__)

# Asterisk sends the UUID as soon as it is connected. As a server it grants clients 2 s itself.
UUID_TIMEOUT_S = 2.0
# Most connections without a UUID. Asterisk sends its UUID within milliseconds.
MAX_STRANGERS = 1000
# How long Asterisk may take to close a leg whose call goes on.
LET_GO_S = 2.0
# Time between two reports of wrong UUIDs: a flood of them must not become a flood of reports. It
# is a little more than the 1 s between two log lines, so that each report gets its line.
REPORT_INTERVAL_S = 1.05


class LegOwner(Protocol):
    """The calls that a leg makes to its fork: see `audiofork.relay.session.Inlet`.

    The fork's pipeline sets `on_usual` of the leg in `attach`.
    """

    on_audio: Callable[[bytes], None]

    @property
    def on_batch_read(self) -> Callable[[bool], int]: ...

    def attach(self, leg: LegHandle) -> None: ...
    def on_leg_closed(self, *, contested: bool = False) -> None: ...


class Listener:
    """Accepts connections that present an issued UUID: each UUID once, in time.

    A UUID that is presented twice has leaked: both connections are closed then.

    Args:
        report: Called with the number of wrong UUIDs, at most once in REPORT_INTERVAL_S.
        allow: The networks that connections may come from; empty for any.

    Attributes:
        refused: Counts and logs the connections that were refused.
    """

    def __init__(
        self, report: Callable[[StrangersRefused], None], allow: tuple[IPNetwork, ...] = ()
    ) -> None:
        self.refused = CounterLine(log, "AudioSocket connections closed")
        self._allow = allow
        self._uuids: LegUuids[LegOwner, _Leg] = LegUuids()
        self._wrong_uuids = _WrongUuids(report)
        self._legs: set[_Leg] = set()
        self._all_gone = asyncio.Event()  # no connection is left
        self._all_gone.set()
        self._strangers: dict[_Leg, None] = {}  # legs that have sent no UUID yet, oldest first
        self._patiences: dict[int, Patience] = {}  # by the milliseconds of a batch
        self._server: asyncio.Server | None = None

    async def start(self, listen: Address) -> Address:
        """Listen; return the address. The kernel chooses the port if that of `listen` is 0.

        Raises:
            OSError: The address cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Leg(self), listen.host, listen.port, backlog=1024
        )
        server: Any = self._server  # its sockets are a tuple, but uvloop's are a list
        return Address(listen.host, server.sockets[0].getsockname()[1])

    @property
    def is_listening(self) -> bool:
        """Whether legs can connect."""
        return self._server is not None and self._server.is_serving()

    def stop_listening(self) -> None:
        """Accept no more connections; existing ones stay."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self.stop_listening()
        for leg in list(self._legs):
            leg.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                await self._all_gone.wait()
        self._wrong_uuids.close()
        if self._server is not None:
            await self._server.wait_closed()

    def issue(self, leg_uuid: str, owner: LegOwner, legs_from: tuple[IPNetwork, ...] = ()) -> None:
        """Accept the leg that presents this UUID, once, from these networks; empty: from any."""
        self._uuids.issue(leg_uuid, owner, legs_from)

    def withdraw(self, leg_uuid: str) -> None:
        """Stop accepting this UUID; no effect if its leg has connected already."""
        self._uuids.withdraw(leg_uuid)

    # --- For the connections ---

    def allows(self, peer: str) -> bool:
        """Return whether connections from an address are allowed."""
        return not self._allow or is_among(peer, self._allow)

    def add(self, leg: _Leg) -> None:
        """Keep a connection until `remove`; if there are too many strangers, refuse the oldest.

        The oldest is no real leg: Asterisk sends the UUID long before its leg is the oldest.
        """
        self._legs.add(leg)
        self._all_gone.clear()
        self._strangers[leg] = None
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            oldest.refuse(f"no UUID yet, and {MAX_STRANGERS} more connections without one")

    def claim(self, leg: _Leg, presented: bytes) -> LegOwner | None:
        """Return the owner of an issued UUID; refuse the leg and return None if it is wrong."""
        if self._uuids.is_from_elsewhere(presented, leg.peer):
            self._wrong_uuids.count(leg.peer)
            leg.refuse("the UUID of a leg that comes from elsewhere ([cluster] legs_from)")
            return None
        owner = self._uuids.use(presented, leg)
        if owner is not None:
            self._strangers.pop(leg, None)
        else:
            self._refuse_wrong(leg, presented)
        return owner

    def _refuse_wrong(self, leg: _Leg, presented: bytes) -> None:
        """Refuse a leg with a wrong UUID; no log line or report shows the UUID itself."""
        void = self._uuids.void(presented)
        if void is not None and void.holder is None:
            leg.refuse("the UUID of a leg that is wanted no more")  # Asterisk was late
            return
        self._wrong_uuids.count(leg.peer)
        leg.refuse("unknown or used UUID")
        if void is not None and void.holder is not None:
            void.holder.contest()

    def patience_for(self, batch_ms: int) -> Patience:
        """Return what sees that no frame of batches of this length waits too long."""
        if batch_ms not in self._patiences:
            self._patiences[batch_ms] = Patience(batch_ms)
        return self._patiences[batch_ms]

    def forget_stranger(self, leg: _Leg) -> None:
        """Count a connection no longer among the strangers: it is being closed."""
        self._strangers.pop(leg, None)

    def remove(self, leg: _Leg) -> None:
        """Forget a connection that is gone."""
        self._legs.discard(leg)
        if not self._legs:
            self._all_gone.set()
        self._strangers.pop(leg, None)


class _WrongUuids:
    """Counts connections with a wrong UUID; reports the first at once, later ones together."""

    def __init__(self, report: Callable[[StrangersRefused], None]) -> None:
        self._report = report
        self._count = 0  # not reported yet
        self._address = ""
        self._timer: asyncio.TimerHandle | None = None

    def count(self, address: str) -> None:
        self._count += 1
        self._address = address
        if self._timer is None:
            self._say()

    def _say(self) -> None:
        self._timer = None
        if self._count:
            self._say_now()
            self._timer = asyncio.get_running_loop().call_later(REPORT_INTERVAL_S, self._say)

    def _say_now(self) -> None:
        self._report(StrangersRefused(self._count, self._address))
        self._count = 0

    def close(self) -> None:
        """Report those that are not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._count:
            self._say_now()


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


class _Leg(asyncio.Protocol):
    """One AudioSocket connection."""

    __slots__ = (
        *("_deadline", "_decoder", "_batching", "_hung_up", "_listener", "_owner", "_transport"),
        *("_is_full", "_usual_bytes", "_usual_header", "on_batch", "on_usual", "peer"),
    )
    on_usual: Callable[[bytes], None]  # set by the owner's pipeline, as is `on_batch`

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._decoder = Decoder()
        self._batching: ReadBatching | None = None
        self._owner: LegOwner | None = None
        self._hung_up = False
        self._is_full = False
        self.on_batch: Callable[[list[bytes]], None] | None = None
        self._usual_bytes = -1  # as in the decoder while the fast path is used; else no length
        self._usual_header = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer: str = peer[0] if peer else ""
        self._deadline = asyncio.get_running_loop().call_later(
            UUID_TIMEOUT_S, self.refuse, f"no UUID within {UUID_TIMEOUT_S:g} s"
        )
        self._listener.add(self)
        if self.peer and not self._listener.allows(self.peer):
            self.refuse("not allowed ([audiosocket] allow)")

    def data_received(self, chunk: bytes) -> None:
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
        self._transport.write(HANGUP_MESSAGE)
        if call_goes_on:
            with contextlib.suppress(OSError):  # Asterisk was faster: `connection_lost` follows
                self._transport.write_eof()
            self._deadline = asyncio.get_running_loop().call_later(LET_GO_S, self._transport.abort)
        else:
            self._transport.close()

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> bool:
        """Read `batch_ms` of audio at once from now on, unless that is too much for the kernel.

        A frame then waits little longer than `batch_ms` milliseconds to be read.

        Returns:
            Whether it reads so.
        """
        is_much = wire_bytes(frame_bytes, batch_ms) > MOST_BATCHED_BYTES
        if self._batching is None and not self._hung_up and not is_much:
            patience = self._listener.patience_for(batch_ms)
            self._batching = ReadBatching(self._transport, frame_bytes, batch_ms, patience)
            self._usual_bytes = -1  # turns the fast path off: a read has several messages now
        return self._batching is not None

    def read_rest(self) -> None:
        """Read at once what waits in the kernel for a full batch, and hand it on."""
        if self._batching is not None and (chunk := self._batching.read_rest()):
            self._hand_on(chunk)

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
        kind than that of the leg's own audio; before that has come, the frame's size decides.
        """
        if self._hung_up or self._is_full:
            return False
        if self._usual_bytes == HEADER_BYTES + len(frame):
            self._transport.write(self._usual_header + frame)
            return True
        header = self._decoder.usual_header
        kind = header[0] if header else _KINDS.get(len(frame), Kind.SLIN)
        self._transport.write(_spoken_header(kind, len(frame)) + frame)
        return True

    def pause_writing(self) -> None:
        """Speak no more for now: Asterisk does not read, and 64 KiB wait."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Speak again."""
        self._is_full = False

    def connection_lost(self, _exc: Exception | None) -> None:
        self._hung_up = True
        self._deadline.cancel()
        self._stop_batching()
        self._listener.remove(self)
        owner = self._forget_owner()
        if owner is not None:
            owner.on_leg_closed()
