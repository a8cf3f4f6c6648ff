"""A listener over real TCP, and owners of legs that keep what they are told."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from audiofork.config import Address
from audiofork.link.messages import StrangersRefused
from audiofork.relay.listener import Listener
from audiofork.relay.pipeline import LegHandle
from tests.relay.peers import HANGUP, Leg, numbered, until


class Owner:
    """Keeps what its leg reports."""

    def __init__(self) -> None:
        self.leg: LegHandle | None = None
        self.attached = 0
        self.frames: list[bytes] = []
        self.on_audio: Callable[[bytes], None] = self.frames.append
        self.usual = 0  # how many of them were as long as the one before
        self.batches = self.late = 0
        self.missing = 5  # frames, of the next message
        self.closed = self.contested = 0

    def attach(self, leg: LegHandle) -> None:
        self.leg = leg
        leg.on_usual = self.on_usual
        self.attached += 1

    def on_usual(self, frame: bytes) -> None:
        assert len(frame) == len(self.frames[-1])
        self.usual += 1
        self.frames.append(frame)

    def on_batch_read(self, is_late: bool) -> int:
        self.batches += 1
        self.late += is_late
        return self.missing

    def on_leg_closed(self, *, contested: bool = False) -> None:
        self.closed += 1
        self.contested += contested

    async def wait_attached(self) -> None:
        await until(lambda: self.attached)

    async def wait_frames(self, count: int) -> None:
        await until(lambda: len(self.frames) == count)


class ListenerStage:
    """A listener, with a good leg whose frames must pass whatever others do."""

    def __init__(self, *allow: str) -> None:
        self.reports: list[StrangersRefused] = []
        networks = tuple(ip_network(network) for network in allow)
        self.listener = Listener(self.reports.append, networks)
        self.legs: list[Leg] = []

    async def connect(self, source: str = "") -> Leg:
        """Connect, from an address of this machine if one is given."""
        local = (source, 0) if source else None
        ends = await asyncio.open_connection(self.address.host, self.address.port, local_addr=local)
        self.legs.append(Leg(*ends))
        return self.legs[-1]

    async def start(self) -> None:
        self.address = await self.listener.start(Address("127.0.0.1", 0))
        self.other, self.other_owner = await self.issued()
        await until(lambda: self.other_owner.attached)

    async def issued(self) -> tuple[Leg, Owner]:
        """Connect a leg whose UUID is issued, and present it."""
        owner = Owner()
        leg_uuid = str(uuid.uuid4())
        self.listener.issue(leg_uuid, owner)
        leg = await self.connect()
        leg.send_uuid(leg_uuid)
        return leg, owner

    async def check_other(self) -> None:
        """Check that the good leg still works."""
        self.other_owner.frames.clear()
        self.other.send_audio(*numbered(3))
        await until(lambda: len(self.other_owner.frames) == 3)
        assert self.other_owner.frames == numbered(3)
        assert (self.other_owner.attached, self.other_owner.closed) == (1, 0)

    async def stop(self) -> None:
        await self.listener.close()
        for leg in self.legs:
            await leg.close()


@asynccontextmanager
async def stage_with(*allow: str) -> AsyncIterator[ListenerStage]:
    """Yield a stage whose good leg comes from an allowed address."""
    stage = ListenerStage(*allow)
    try:
        await stage.start()
        yield stage
    finally:
        await stage.stop()


async def refused(stage: ListenerStage, leg: Leg, caplog: pytest.LogCaptureFixture) -> str:
    """Check that a leg is closed and counted, once; return what was logged."""
    assert await leg.read_to_end() == HANGUP
    assert stage.listener.refused.total == 1
    await stage.check_other()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("AudioSocket connections closed: 1 more, last: ")
    assert message.endswith(", from 127.0.0.1")
    return message


def audio(kind: int, frame: bytes) -> bytes:
    return bytes([kind]) + len(frame).to_bytes(2, "big") + frame
