"""What a server says reaches the party bit-exact, paced, and can be cut off; by a relay alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import statistics
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from audiofork.asterisk.versions import AUDIOSOCKET_RATES, LEG_ENDS_WITH_PEER
from audiofork.config import Address, AudioSocketConfig, Config
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegPart,
    Report,
    ServerCommand,
    SinkOpened,
    Voice,
)
from audiofork.relay.formats.base import (
    Audio,
    Cleared,
    Command,
    Event,
    Mark,
    Meaning,
    Message,
    MessageFormat,
)
from audiofork.relay.worker import Worker
from testbed.ami import AmiClient
from testbed.blocks import decode, find_blocks, make_blocks, report, slin_blocks
from testbed.rtp import SLIN16, ULAW, Codec, Received, swap_bytes
from testbed.sip import SipUser
from tests.system.conftest import Target, counts_blocks, needs, no_channels, place_call, set_globals

pytestmark = pytest.mark.asterisk

WARM_UP = make_blocks(25, seed=2)
WIDE_WARM_UP = [swap_bytes(block) for block in slin_blocks(25, seed=2, sample_rate=16_000)]


class PlainFormat(MessageFormat):
    """Binary messages are audio both ways; texts are commands and events."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        return frames

    def event(self, event: Event, number: int) -> Sequence[Message]:
        if isinstance(event, Mark):
            return (f"mark {event.name}",)
        return ("cleared",) if isinstance(event, Cleared) else ()

    def meaning(self, message: Message) -> Meaning:
        if isinstance(message, bytes):
            return Audio(message, self._sample_rate)
        word, _, value = message.partition(" ")
        return Command(ServerCommand(word), value)


@dataclass
class Bot:
    """A relay with one fork, whose server does as the test says.

    Attributes:
        texts: What the server was told.
        opened: Set when its connection is open.
    """

    worker: Worker
    reports: list[Report]
    fork_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    leg_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    texts: list[str] = field(default_factory=list)

    async def begin(self, url: str, sample_rate: int) -> None:
        """Order the fork and its leg; return when the server is there."""
        granted = (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)
        spec = ForkSpec(
            self.fork_id,
            "PJSIP/caller",
            url,
            Direction.IN,
            legs=(LegPart.IN,),
            sample_rate=sample_rate,
            voice=Voice((LegPart.IN,), steady=True),
            commands=granted,
        )
        self.worker.handle(spec)
        self.worker.handle(ExpectLeg(self.fork_id, LegPart.IN, self.leg_uuid))
        await self.until(lambda: any(isinstance(report, SinkOpened) for report in self.reports))

    async def drain(self, connection: ServerConnection) -> None:
        """Read until the end; keep the texts."""
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, str):
                    self.texts.append(message)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (some are other processes')
                await asyncio.sleep(0.005)

    def stats(self) -> ForkStats:
        return self.worker.sessions[self.fork_id].stats()

    def end(self) -> None:
        self.worker.handle(EndFork(self.fork_id, EndReason.STOPPED))

    @property
    def ended(self) -> list[ForkEnded]:
        return [report for report in self.reports if isinstance(report, ForkEnded)]


Behave = Callable[[Bot, ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def bot(
    monkeypatch: pytest.MonkeyPatch, behave: Behave, sample_rate: int = 8000
) -> AsyncIterator[Bot]:
    """Run a relay and a server; the fork is ordered, its leg expected, the server there."""
    monkeypatch.setattr("audiofork.relay.worker.format_of", lambda *_: PlainFormat(sample_rate))
    reports: list[Report] = []
    listen = AudioSocketConfig(listen=Address("127.0.0.1", 0))
    one = Bot(Worker(Config(audiosocket=listen), reports.append), reports)
    async with serve(functools.partial(behave, one), "127.0.0.1", 0, compression=None) as server:
        await one.worker.start()
        try:
            await one.begin(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", sample_rate)
            yield one
        finally:
            await one.worker.close()


async def echo(_: Bot, connection: ServerConnection) -> None:
    """Send all back that comes."""
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def call(
    ami: AmiClient, caller: SipUser, one: Bot, extension: str = "dialled", codec: Codec = ULAW
) -> Target:
    """Call the bot."""
    coder = {ULAW: "c(slin)", SLIN16: "c(slin16)"}[codec]
    if extension == "dialled":
        leg = f"127.0.0.1:{one.worker.address.port}/{one.leg_uuid}/{coder}"
    else:
        leg = f"{one.leg_uuid},127.0.0.1:{one.worker.address.port}"
    await set_globals(ami, LEG=leg)
    target = await place_call(ami, caller, extension, codec)
    target.call.recording = True
    return target


def heard(received: Sequence[Received], codec: Codec) -> bytes:
    """Return what the caller heard, as slin."""
    audio = b"".join(payload for _, payload in received)
    return decode(audio) if codec is ULAW else swap_bytes(audio)


def gaps(received: Sequence[Received]) -> str:
    """Tell how far apart the packets came, in ms."""
    apart = [(b.at_s - a.at_s) * 1000 for a, b in zip(received, received[1:], strict=False)]
    parts = statistics.quantiles(apart, n=100)
    return f"packets {parts[0]:.1f} to {parts[98]:.1f} ms apart (p1, p99), {max(apart):.1f} at most"


# --- Both ways ------------------------------------------------------------------------------------


@needs(AUDIOSOCKET_RATES, "AudioSocket legs at 16000 Hz", codec=[SLIN16])
@pytest.mark.parametrize("codec", [ULAW, SLIN16], ids=["narrow", "wide"])
@counts_blocks
async def test_echo_of_the_server_reaches_the_party_bit_exact(
    ami: AmiClient, caller: SipUser, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    if codec is ULAW:
        spoken, blocks = make_blocks(400, seed=1), [decode(one) for one in make_blocks(400, seed=1)]
    else:
        blocks = slin_blocks(400, seed=1, sample_rate=16_000)
        spoken = [swap_bytes(block) for block in blocks]
    async with bot(monkeypatch, echo, codec.sample_rate) as one:
        target = await call(ami, caller, one, codec=codec)
        await target.call.play(spoken + (WARM_UP if codec is ULAW else WIDE_WARM_UP))
        await asyncio.sleep(0.2)
        found = find_blocks(heard(target.call.received, codec), blocks)
        stats = one.stats()
        await target.call.hangup()
    print(f"{report(found, 400)}; {gaps(target.call.received)}; {stats}")
    assert report(found, 400).intact
    assert (stats.frames_unplayed, stats.frames_cleared) == (0, 0)
    await no_channels(ami)


@counts_blocks
async def test_30_s_at_once_reach_the_party_at_the_pace_of_a_call(
    ami: AmiClient, caller: SipUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [decode(block) for block in make_blocks(1475, seed=3)]

    async def say_all(one: Bot, connection: ServerConnection) -> None:
        # What comes first is played before the caller has begun to record.
        speech = b"".join(decode(block) for block in WARM_UP) + b"".join(blocks)
        for start in range(0, len(speech), 48_001):
            await connection.send(speech[start : start + 48_001])
        await connection.send("mark end")
        await one.drain(connection)

    async with bot(monkeypatch, say_all) as one:
        target = await call(ami, caller, one)
        target.call.talk()
        await one.until(lambda: one.stats().frames_played >= 445)
        found = find_blocks(heard(target.call.received, ULAW), blocks[:400])
        await target.call.hangup()
    print(f"{report(found, 400)}; {gaps(target.call.received)}")
    assert report(found, 400).intact
    await no_channels(ami)


async def test_clear_silences_the_server_at_once(
    ami: AmiClient, caller: SipUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = b"".join(decode(block) for block in make_blocks(500, seed=4))

    async def interrupt(one: Bot, connection: ServerConnection) -> None:
        await connection.send(speech[:60_000])
        await connection.send(speech[60_000:120_000])
        await connection.send("mark end")
        await one.until(lambda: one.stats().frames_played > 50)
        await connection.send("clear")
        await one.drain(connection)

    async with bot(monkeypatch, interrupt) as one:
        target = await call(ami, caller, one)
        target.call.talk()
        await one.until(lambda: "cleared" in one.texts)
        played = one.stats().frames_played
        await asyncio.sleep(0.5)
        assert one.texts == ["mark end", "cleared"]
        assert one.stats().frames_played == played
        audio = heard(target.call.received, ULAW)
        await target.call.hangup()
    assert not any(audio[-320 * 15 :])
    assert any(audio)
    await no_channels(ami)


@needs(AUDIOSOCKET_RATES, "AudioSocket legs at 16000 Hz")
@counts_blocks
async def test_party_that_says_nothing_hears_the_server_at_16000_hz(
    ami: AmiClient, caller: SipUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = slin_blocks(100, seed=5, sample_rate=16_000)

    async def say(one: Bot, connection: ServerConnection) -> None:
        for block in [bytes(640)] * 25 + blocks:
            await connection.send(block)
        await connection.send("mark end")
        await one.drain(connection)

    async with bot(monkeypatch, say, 16_000) as one:
        target = await call(ami, caller, one, codec=SLIN16)
        await one.until(lambda: "mark end" in one.texts)
        await asyncio.sleep(0.2)
        found = find_blocks(heard(target.call.received, SLIN16), blocks)
        await target.call.hangup()
    assert report(found, 100).intact
    await no_channels(ami)


# --- The end --------------------------------------------------------------------------------------


@needs(LEG_ENDS_WITH_PEER, "AudioSocket() that lets the call go on", extension=["owned"])
@pytest.mark.parametrize("extension", ["dialled", "owned"])
async def test_call_goes_on_in_the_dialplan_when_the_fork_ends(
    ami: AmiClient, caller: SipUser, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    position = len(ami.events)
    async with bot(monkeypatch, echo) as one:
        target = await call(ami, caller, one, extension)
        target.call.talk()
        await one.until(lambda: one.stats().frames_played > 25)
        one.end()
        await ami.wait_user_event("WentOn", after=position)
        await one.until(lambda: one.ended)
    assert not target.call.ended.is_set()
    await target.call.hangup()
    await no_channels(ami)
