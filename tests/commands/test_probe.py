"""The probe, which takes the check's own legs."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.audiosocket import HANGUP_MESSAGE, Kind, encode
from audiofork.commands import probe
from audiofork.commands.probe import Events, LegFailed, Probe, ProbeLeg, ProbeLegs
from audiofork.config import Address
from tests.commands.checked import PAIRS

# --- The probe -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def probing() -> AsyncIterator[tuple[Probe, Address]]:
    one = Probe()
    yield one, await one.start(Address("127.0.0.1", 0))
    await one.close()


async def test_probe_closes_what_it_did_not_expect() -> None:
    async with probing() as (one, address):
        for data in (b"GET / HTTP/1.1\r\n\r\n", encode(Kind.UUID, bytes(16))):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(data)
            async with asyncio.timeout(2):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()


async def test_probe_keeps_the_frames_of_an_expected_leg_until_it_is_closed() -> None:
    leg_id = str(uuid.uuid4())
    async with probing() as (one, address):
        expected = one.expect(leg_id)
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(encode(Kind.UUID, uuid.UUID(leg_id).bytes) + PAIRS * 3)
        leg: ProbeLeg = await expected
        await leg.wait_frames(3, 2)
        assert (len(leg.frames), leg.closed) == (3, False)
        writer.close()
        await leg.wait_frames(4, 2)
        assert (len(leg.frames), leg.closed) == (3, True)


async def test_close_hangs_up_the_legs_that_are_still_there() -> None:
    """An older Asterisk does not end a silent leg for the end of its connection alone."""
    leg_id = str(uuid.uuid4())
    async with probing() as (one, address):
        expected = one.expect(leg_id)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(encode(Kind.UUID, uuid.UUID(leg_id).bytes))
        await expected
        await one.close()
        async with asyncio.timeout(2):
            assert await reader.read() == HANGUP_MESSAGE
        writer.close()


async def test_leg_whose_end_overtakes_its_connection_has_come() -> None:
    """The event and the connection come by two sockets: on a busy machine either may be first."""
    events = Events()
    legs = ProbeLegs(cast(Any, None), cast(Any, None), events)
    arrival: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    waits = asyncio.create_task(legs._arrived(arrival, "1.1", "it ended elsewhere"))
    await asyncio.sleep(0)
    events.hear(ChannelHangup("1.1"))
    for _ in range(5):
        await asyncio.sleep(0)
    arrival.set_result("the leg")
    assert await waits == cast(Any, "the leg")


async def test_leg_that_ends_and_does_not_come_has_ended_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "OVERTAKEN_S", 0.01)
    events = Events()
    legs = ProbeLegs(cast(Any, None), cast(Any, None), events)
    arrival: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    waits = asyncio.create_task(legs._arrived(arrival, "1.1", "it ended elsewhere"))
    await asyncio.sleep(0)
    events.hear(ChannelHangup("1.1"))
    with pytest.raises(LegFailed, match="it ended elsewhere"):
        await waits
