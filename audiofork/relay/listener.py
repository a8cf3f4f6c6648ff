"""The AudioSocket server: takes the legs that Asterisk brings, each to its session.

Reading is never paused: Asterisk takes a short write for a failure and drops the leg.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Protocol, cast

from audiofork.config import Address
from audiofork.errors import AudioSocketProtocolError
from audiofork.log import CounterLine
from audiofork.relay.audiosocket import HANGUP_MESSAGE, Decoder, Kind, encode
from audiofork.relay.session import LegHandle

log = logging.getLogger(__name__)

# Asterisk sends the UUID as soon as it is connected; 2 s is what it grants others itself.
UUID_TIMEOUT_S = 2.0


class LegOwner(Protocol):
    """What a leg tells its session."""

    def attach(self, leg: LegHandle) -> None: ...
    def on_audio(self, frame: bytes) -> None: ...
    def on_leg_closed(self) -> None: ...


class Listener:
    """Accepts connections that present an issued UUID: each UUID once, in time.

    Attributes:
        refused: Counts the connections that were closed, and logs them.
    """

    def __init__(self) -> None:
        self.refused = CounterLine(log, "AudioSocket connections closed")
        self._issued: dict[bytes, LegOwner] = {}
        self._legs: set[_Leg] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listen: Address) -> Address:
        """Listen; return the address, with the port that was chosen if `listen` has none."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Leg(self), listen.host, listen.port, backlog=1024
        )
        return Address(listen.host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        for leg in list(self._legs):
            leg.hang_up()
        if self._server is not None:
            await self._server.wait_closed()

    def issue(self, fork_id: str, owner: LegOwner) -> None:
        """Let the leg with this UUID in, once."""
        self._issued[uuid.UUID(fork_id).bytes] = owner

    def withdraw(self, fork_id: str) -> None:
        """Let it in no more; does nothing if it has come already."""
        self._issued.pop(uuid.UUID(fork_id).bytes, None)

    def claim(self, uuid_bytes: bytes) -> LegOwner | None:
        """Return whom a UUID was issued to, once."""
        return self._issued.pop(uuid_bytes, None)

    def add(self, leg: _Leg) -> None:
        self._legs.add(leg)

    def remove(self, leg: _Leg) -> None:
        self._legs.discard(leg)


class _Leg(asyncio.Protocol):
    """One AudioSocket connection."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._decoder = Decoder()
        self._owner: LegOwner | None = None
        self._hung_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._listener.add(self)
        self._deadline = asyncio.get_running_loop().call_later(
            UUID_TIMEOUT_S, self._refuse, f"no UUID within {UUID_TIMEOUT_S:g} s"
        )

    def data_received(self, chunk: bytes) -> None:
        if self._hung_up:
            return
        try:
            messages = self._decoder.feed(chunk)
        except AudioSocketProtocolError as exc:
            self._refuse(str(exc))
            return
        for kind, payload in messages:
            if self._owner is None:
                self._identify(kind, payload)
            elif kind == Kind.SLIN:
                self._owner.on_audio(payload)
            else:
                self._on_other(kind)

    def _identify(self, kind: int, payload: bytes) -> None:
        if self._hung_up:
            return
        if kind != Kind.UUID:
            self._refuse(f"message 0x{kind:02x} before the UUID")
            return
        owner = self._listener.claim(payload)
        if owner is None:
            self._refuse(f"unknown or used UUID {uuid.UUID(bytes=payload)}")
            return
        self._deadline.cancel()
        self._owner = owner
        owner.attach(self)

    def _on_other(self, kind: int) -> None:
        """Pass over what needs no action: DTMF comes by AMI, and newer kinds may appear."""
        if kind == Kind.UUID:
            self._refuse("a second UUID")
        elif kind in (Kind.HANGUP, Kind.ERROR):
            self._refuse(f"message 0x{kind:02x} from Asterisk")

    def _refuse(self, why: str) -> None:
        peer = self._transport.get_extra_info("peername")
        self._listener.refused.count(f"{why}, from {peer[0] if peer else 'nobody'}")
        owner, self._owner = self._owner, None
        self.hang_up()
        if owner is not None:
            owner.on_leg_closed()

    def hang_up(self) -> None:
        """End the leg: Asterisk closes it on the message or on the close, whichever it sees."""
        if self._hung_up:
            return
        self._hung_up = True
        self._deadline.cancel()
        self._owner = None
        self._transport.write(HANGUP_MESSAGE)
        self._transport.close()

    def speak(self, frame: bytes) -> None:
        """Let the target's party hear a frame of 320 bytes; each in a write of its own."""
        if not self._hung_up:
            self._transport.write(encode(Kind.SLIN, frame))

    def connection_lost(self, exc: Exception | None) -> None:
        self._hung_up = True
        self._deadline.cancel()
        self._listener.remove(self)
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_leg_closed()
