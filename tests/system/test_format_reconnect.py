"""A server is away during a real call, for too long to get all: formats that tell of places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from testbed.ami import AmiClient
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.faulty_server import FaultyServer
from testbed.sip import SipUser
from tests.relay.formats.reader import FRAME_BYTES, Reader
from tests.system.conftest import counts_blocks, place_call, start_fork_heard

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(400, seed=91)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(50, seed=92)
# Frames that Asterisk may add or leave out during the call, when the machine is busy.
A_FEW = 10


@pytest.fixture(scope="module")
def tap() -> str:
    return "snoop"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"websocket": "backlog = 1\n"}


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer() as one:
        yield one


@counts_blocks
@pytest.mark.parametrize("options", ["M", "x(json)", "x(twilio)"])
async def test_each_block_has_its_place_in_the_call_and_what_was_lost_leaves_its_own_empty(
    ami: AmiClient, caller: SipUser, server: FaultyServer, options: str
) -> None:
    target = await place_call(ami, caller)
    action_id = await start_fork_heard(ami, target, server.url("/"), f"D(in)R(1){options}")
    spoken = target.call.play(BLOCKS + WARM_UP)
    (recording,) = server.recordings
    wanted = len(recording.messages) + 50
    await server.wait(lambda one: len(one.messages) >= wanted)
    await server.stop()
    await asyncio.sleep(2)  # of audio, twice what the backlog holds
    await server.start()
    await ami.wait_user_event("AudioForkResumed", ActionID=action_id)
    await spoken
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    first, second = await read(server)
    dropped = int(stopped["FramesDropped"])
    assert dropped > 3 * A_FEW
    assert second.placed[0][0] == first.placed[-1][0] + 1 + dropped
    if options != "x(twilio)":
        assert (second.texts[0]["reconnects"], second.texts[0]["dropped_ms"]) == (1, dropped * 20)
        assert second.texts[-1]["dropped_ms"] == dropped * 20
    call = laid_out(first, second)
    came = find_blocks(call, HEARD)
    found = report(came, 400)
    assert abs(found.missing - dropped) <= A_FEW
    assert (found.duplicated, found.out_of_order) == (0, 0)
    begin = call.index(HEARD[0])
    shifts = [call.index(HEARD[number]) - begin - number * FRAME_BYTES for number in came]
    assert max(map(abs, shifts)) <= A_FEW * FRAME_BYTES


async def read(server: FaultyServer) -> list[Reader]:
    """Return what each connection brought, once the last one is over."""
    await server.wait(lambda one: one.close_code == 1000 and bool(one.closed))
    readers = []
    for recording in server.recordings:
        readers.append(Reader())
        readers[-1].read(recording.messages)
    return readers


def laid_out(*readers: Reader) -> bytes:
    """Return the audio of the call with each frame in its place, and silence where none came."""
    placed = {number: audio for reader in readers for number, audio in reader.placed}
    return b"".join(placed.get(number, bytes(FRAME_BYTES)) for number in range(max(placed) + 1))
