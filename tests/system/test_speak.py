"""Who in a call hears what goes over a leg, by each way that a fork with option k may take.

The legs are asked for by the daemon's own taps, and come to a server of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from audiofork.asterisk.ami import connected
from audiofork.asterisk.ari import Ari
from audiofork.asterisk.taps.base import LegOrder, Tap
from audiofork.asterisk.taps.chanspy import ChanSpyTap
from audiofork.asterisk.taps.snoop import SnoopTap
from audiofork.asterisk.taps.ways import Audience, Site, Wish, best_way
from audiofork.asterisk.versions import AUDIOSOCKET_RATES, WHISPER_LEAKS, Version
from audiofork.audiosocket import Kind
from audiofork.commands.probe import OneAddress
from audiofork.config import Address, AriConfig, AsteriskConfig
from audiofork.link.messages import Direction
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, slin_blocks
from testbed.daemon import SECRET
from testbed.rtp import SLIN16, ULAW, Codec, swap_bytes
from testbed.sip import Call, SipUser
from tests.system.conftest import Target, counts_blocks, needs, only_channels, place_call

pytestmark = [pytest.mark.asterisk, counts_blocks]

COUNT = 200
BLOCKS = [decode(block) for block in make_blocks(COUNT, seed=31)]
WIDE_BLOCKS = slin_blocks(COUNT, seed=32, sample_rate=16000)
QUIET = [b"\xff" * 160] * 50
WIDE_QUIET = [bytes(640)] * 50
PARTY, PEER, BOTH = Audience
# ChanSpy drops what waits in Asterisk when that is more than 100 ms, as on a busy machine.
LEAST = {"snoop": COUNT, "chanspy": COUNT * 3 // 4}


class Line:
    """The far end of a fork's legs; what they bring is thrown away.

    Attributes:
        taps: What makes legs that come here, by name.
        version: The version of Asterisk.
    """

    def __init__(self, version: Version) -> None:
        self.taps: dict[str, Tap] = {}
        self.version = version
        self._writers: list[asyncio.StreamWriter] = []
        self._attached = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(19 + 3)  # its UUID, and the header of the first frame
        self._writers.append(writer)
        self._attached.set()
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):
                pass
        writer.close()

    async def attach(self, target: Target, tap: str, wish: Wish) -> None:
        """Ask for the legs of a fork; return when each has brought a frame."""
        if self.version.has(WHISPER_LEAKS):
            pytest.skip(f"option k is refused on Asterisk {self.version}")
        way = best_way(wish, Site(self.version, no_ari="" if tap == "snoop" else "not tried"))
        assert way is not None
        assert way.tap == tap
        heard = {way.leg_heard_by(side, wish.direction): side for side in wish.hearers}
        parts = way.parts[wish.direction]
        for part in parts:
            leg_id = self.taps[tap].name_leg(str(uuid.uuid4()), part, anew=False)
            order = LegOrder(
                *(leg_id, str(uuid.uuid4()), str(uuid.uuid4()), part, target.uniqueid),
                *(way.connects, wish.sample_rate),
                heard.get(part),
            )
            await self.taps[tap].start(order)
        async with asyncio.timeout(20):
            while len(self._writers) < len(parts):
                self._attached.clear()
                await self._attached.wait()

    async def say(self, blocks: Sequence[bytes]) -> None:
        """Send a block every 20 ms over each leg."""
        kind = Kind.SLIN16 if len(blocks[0]) > 320 else Kind.SLIN
        header = bytes((kind,)) + len(blocks[0]).to_bytes(2, "big")
        clock = asyncio.get_running_loop().time
        due = clock()
        for block in blocks:
            due += 0.02
            await asyncio.sleep(max(0.0, due - clock()))
            for writer in self._writers:
                writer.write(header + block)


@pytest.fixture
async def line(asterisk: Asterisk, ami: AmiClient) -> AsyncIterator[Line]:
    one = Line(Version.parse(asterisk.installation.version))
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    where = OneAddress(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
    url = f"http://127.0.0.1:{asterisk.http_port}/ari"
    by_ari = AriConfig(url=url, password=SECRET, app="speak")
    by_ami = AsteriskConfig(port=asterisk.ami_port, secret=SECRET)
    async with Ari(by_ari) as ari, connected(by_ami, lambda _event: None) as link:
        running = asyncio.create_task(ari.run())
        await ari.wait_ready(5)
        one.taps = {
            "snoop": SnoopTap(ari, by_ari, where),
            "chanspy": ChanSpyTap(link, where),
        }
        yield one
        server.close()
        await only_channels(ami)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def talk(
    asterisk: Asterisk, ami: AmiClient, codec: Codec, quiet: Sequence[bytes]
) -> AsyncIterator[tuple[Target, Call]]:
    """A call between two phones that send silence."""
    server = ("127.0.0.1", asterisk.sip_port)
    async with (
        SipUser("caller", server) as caller,
        SipUser("callee", server, answer=True) as callee,
    ):
        await callee.register()
        target = await place_call(ami, caller, "callee", codec)
        other = await callee.incoming()
        target.call.play(quiet, loop=True)
        other.play(QUIET, loop=True)
        for call in (target.call, other):
            await call.wait_received(25)
            call.recording = True
        yield target, other
        await target.call.hangup()
        await other.wait_ended()


async def heard_by(call: Call, blocks: Sequence[bytes], of_wire: Callable[[bytes], bytes]) -> int:
    """Return how many of the blocks a phone has got, bit-exact, once the last has had its time."""
    await call.wait_received(call.rtp.packets_received + 25)
    return blocks_in(call, blocks, of_wire)


def blocks_in(call: Call, blocks: Sequence[bytes], of_wire: Callable[[bytes], bytes]) -> int:
    """Return how many of the blocks a phone has got so far."""
    return len(set(find_blocks(of_wire(call.received_audio()), blocks)))


@pytest.mark.parametrize(
    ("tap", "audience", "to_party", "to_peer"),
    [
        ("snoop", PARTY, COUNT, 0),
        ("snoop", PEER, 0, COUNT),
        ("snoop", BOTH, COUNT, COUNT),
        ("chanspy", PARTY, COUNT, 0),
    ],
)
async def test_voice_is_heard_whole_by_those_that_option_k_names_and_by_nobody_else(
    asterisk: Asterisk,
    ami: AmiClient,
    line: Line,
    tap: str,
    audience: Audience,
    to_party: int,
    to_peer: int,
) -> None:
    async with talk(asterisk, ami, ULAW, QUIET) as (target, other):
        await line.attach(target, tap, Wish(Direction.BOTH, audience=audience))
        await line.say(BLOCKS)
        heard = await heard_by(target.call, BLOCKS, decode)
        assert min(to_party, LEAST[tap]) <= heard <= to_party
        assert await heard_by(other, BLOCKS, decode) == to_peer


@pytest.mark.parametrize("direction", [Direction.IN, Direction.OUT])
@pytest.mark.parametrize("audience", [PARTY, PEER])
async def test_one_leg_of_snoop_speaks_to_either_side_whichever_it_spies_on(
    asterisk: Asterisk, ami: AmiClient, line: Line, direction: Direction, audience: Audience
) -> None:
    async with talk(asterisk, ami, ULAW, QUIET) as (target, other):
        await line.attach(target, "snoop", Wish(direction, audience=audience))
        await line.say(BLOCKS)
        hears, silent = (target.call, other) if audience is PARTY else (other, target.call)
        assert await heard_by(hears, BLOCKS, decode) == COUNT
        assert await heard_by(silent, BLOCKS, decode) == 0


@needs(AUDIOSOCKET_RATES, "kind of message for audio at 16000 Hz to a leg")
async def test_wideband_voice_is_heard_whole_by_a_wideband_phone(
    asterisk: Asterisk, ami: AmiClient, line: Line
) -> None:
    async with talk(asterisk, ami, SLIN16, WIDE_QUIET) as (target, _):
        await line.attach(target, "snoop", Wish(Direction.IN, 16000, audience=PARTY))
        await line.say(WIDE_BLOCKS)
        assert await heard_by(target.call, WIDE_BLOCKS, swap_bytes) == COUNT
