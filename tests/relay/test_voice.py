"""A server that speaks over a real WebSocket, and a leg over real TCP that hears it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from websockets.asyncio.server import ServerConnection

from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkStats,
    LegLost,
    LegPart,
    ServerCommand,
    SinkOpened,
    Voice,
)
from audiofork.relay.formats.base import (
    Audio,
    BufferLevel,
    Cleared,
    Command,
    Event,
    Mark,
    Meaning,
    Message,
    MessageFormat,
)
from tests.relay.peers import HANGUP, FickleServer, Leg, numbered, until
from tests.relay.relay_stage import RelayStage

pytestmark = pytest.mark.usefixtures("nothing_left")

GRANTED = (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)
AUDIO_BYTES = 323  # on the wire


class PlainFormat(MessageFormat):
    """Binary messages are audio at 8000 Hz; texts are commands, and the names of events."""

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        return frames

    def event(self, event: Event, number: int) -> Sequence[Message]:
        match event:
            case Mark(name):
                return (f"mark {name}",)
            case Cleared():
                return ("cleared",)
            case BufferLevel(is_high):
                return ("wait" if is_high else "go on",)
        return ()

    def meaning(self, message: Message) -> Meaning:
        if isinstance(message, bytes):
            return Audio(message, 8000)
        word, _, value = message.partition(" ")
        return Command(ServerCommand(word), value)


class Stage:
    """A fork with a voice between a server and a leg.

    Attributes:
        wire: What the leg has got.
    """

    def __init__(self, relay: RelayStage, server: FickleServer, fork_id: str) -> None:
        self.relay = relay
        self.server = server
        self.fork_id = fork_id
        self.wire = b""

    async def attach(self) -> Leg:
        self.leg = await self.relay.attach(self.fork_id)
        return self.leg

    @property
    def connection(self) -> ServerConnection:
        assert self.server.connection is not None
        return self.server.connection

    @property
    def stats(self) -> ForkStats:
        return self.relay.worker.sessions[self.fork_id].stats()

    @property
    def texts(self) -> list[str]:
        return [message.decode() for message in self.server.frames]

    async def say(self, *messages: bytes | str) -> None:
        for message in messages:
            await self.connection.send(message)

    async def hear(self, frames: int) -> list[bytes]:
        """Read until so many frames have come, without those of silence; an end fails."""
        async with asyncio.timeout(5):
            while len(self.heard) < frames:
                chunk = await self.leg._reader.read(65_536)
                assert chunk, "the leg was closed"
                self.wire += chunk
        return self.heard

    @property
    def heard(self) -> list[bytes]:
        count = len(self.wire) // AUDIO_BYTES
        messages = [self.wire[n * AUDIO_BYTES :][:AUDIO_BYTES] for n in range(count)]
        assert {message[:3] for message in messages} <= {b"\x10\x01\x40"}
        return [message[3:] for message in messages if any(message[3:])]


@pytest.fixture
async def stage(
    relay: RelayStage, fickle: FickleServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """A fork whose leg is steady, and whose buffer holds a second; leg and server are there."""
    monkeypatch.setattr("audiofork.relay.worker.format_of", lambda *_: PlainFormat())
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 0.01)
    voice = Voice((LegPart.IN,), steady=True, buffer_s=1)
    fork_id = relay.begin(
        fickle.url, Direction.IN, voice=voice, commands=GRANTED, reconnect_attempts=9
    )
    stage = Stage(relay, fickle, fork_id)
    await relay.reported(SinkOpened, fork_id)
    await stage.attach()
    await until(lambda: fickle.connection)
    yield stage
    if fork_id in relay.worker.sessions:
        relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
        await stage.leg.close()
        await relay.reported(ForkEnded, fork_id)


@pytest.mark.parametrize("size", [2, 3, 319, 321, 1603])
async def test_messages_of_any_length_are_heard_bit_exact(stage: Stage, size: int) -> None:
    audio = b"".join(numbered(6, 1))
    await stage.say(*(audio[start : start + size] for start in range(0, len(audio), size)))
    assert await _speech(stage, len(audio)) == audio


async def _speech(stage: Stage, count: int) -> bytes:
    """Return so many bytes that are heard, or more, however many frames they come in."""
    frames = 1
    while len(speech := _without_silence(await stage.hear(frames))) < count:
        frames += 1
    return speech


def _without_silence(frames: list[bytes]) -> bytes:
    """Return the samples that are not silent: on a busy machine a server's audio has gaps."""
    samples = memoryview(b"".join(frames)).cast("h")
    return b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples if sample)


async def test_message_by_single_bytes_is_heard_bit_exact(stage: Stage) -> None:
    audio = numbered(1, 1)[0]
    await stage.say(*(bytes((byte,)) for byte in audio))
    assert await _speech(stage, len(audio)) == audio


async def test_message_of_nothing_is_heard_as_nothing(stage: Stage) -> None:
    await stage.say(b"", *numbered(1, 1), b"", "mark end")
    assert await stage.hear(1) == numbered(1, 1)
    await until(lambda: "mark end" in stage.texts)
    assert stage.stats.commands_refused == 0


async def test_30_s_at_once_are_cut_at_the_buffer_and_the_server_is_told(stage: Stage) -> None:
    speech = b"".join(numbered(1500, 1))
    await stage.say(*(speech[start : start + 60_001] for start in range(0, len(speech), 60_001)))
    assert (await stage.hear(3))[:3] == numbered(3, 1)
    await until(lambda: stage.stats.frames_unplayed > 1400)
    assert "wait" in stage.texts
    await stage.say("clear")
    await until(lambda: "cleared" in stage.texts)
    assert stage.texts[-2:] == ["go on", "cleared"]
    stats = stage.stats
    assert stats.frames_played + stats.frames_cleared + stats.frames_unplayed == 1500


async def test_one_message_of_a_mebibyte_is_heard(stage: Stage) -> None:
    speech = b"".join(numbered(3276, 1))
    await stage.say(speech, "mark end")
    assert (await stage.hear(3))[:3] == numbered(3, 1)
    await until(lambda: stage.stats.frames_unplayed == 3226)


async def test_marks_and_clear_come_back_in_order(stage: Stage) -> None:
    await stage.say(numbered(1, 1)[0], "mark a", numbered(1, 2)[0], "mark b")
    await until(lambda: "mark b" in stage.texts)
    assert await stage.hear(2) == numbered(2, 1)
    await stage.say(b"".join(numbered(30, 1)), "mark c", "mark d", "clear", "mark e")
    await until(lambda: "mark e" in stage.texts)
    assert stage.texts == ["mark a", "mark b", "mark c", "mark d", "cleared", "mark e"]


async def test_server_that_is_lost_is_heard_to_its_end_and_the_next_after_it(
    stage: Stage,
) -> None:
    await stage.say(*numbered(5, 1))
    await until(lambda: stage.stats.frames_played >= 1)
    before = stage.connection
    stage.server.break_off()
    assert await stage.hear(5) == numbered(5, 1)
    await until(lambda: stage.server.connection is not before)
    await stage.say(*numbered(2, 6))
    assert await stage.hear(7) == numbered(7, 1)


async def test_leg_that_replaces_a_lost_one_plays_the_rest(stage: Stage) -> None:
    await stage.say(*numbered(12, 1))
    heard = len(await stage.hear(2))
    await stage.leg.close()
    await stage.relay.reported(LegLost, stage.fork_id)
    written = stage.stats.frames_played
    stage.relay.expect(stage.fork_id, LegPart.IN)
    stage.wire = b""
    await stage.attach()
    assert heard <= written < 12
    assert await stage.hear(12 - written) == numbered(12 - written, written + 1)


async def test_end_of_the_fork_ends_the_leg_without_a_reset(stage: Stage) -> None:
    await stage.say(b"".join(numbered(40, 1)))
    await stage.hear(1)
    stage.relay.worker.handle(EndFork(stage.fork_id, EndReason.STOPPED))
    stage.leg.send_audio(*numbered(100))
    stage.wire += await stage.leg.read_to_end()
    assert stage.wire.endswith(HANGUP)
    assert (len(stage.wire) - len(HANGUP)) % AUDIO_BYTES == 0
    stage.leg.send_audio(*numbered(100))
    await stage.leg.close()
    ended: ForkEnded = await stage.relay.reported(ForkEnded, stage.fork_id)
    assert ended.stats.frames_played + ended.stats.frames_unplayed == 40


async def test_command_that_is_not_granted_is_counted(stage: Stage) -> None:
    await stage.say("hangup", "pause", "mark end")
    await until(lambda: "mark end" in stage.texts)
    assert stage.stats.commands_refused == 2
