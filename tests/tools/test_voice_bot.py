"""The voice-bot example, with ears and a voice that need no speech."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

pytest.importorskip("pocketsphinx", reason="there is no wheel of it for this Python")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples/voice-bot"))

import bot  # noqa: E402

SPOKEN_HZ, SPOKEN_S = 22_050, 3
QUESTION, VOICE = b"asks", b"speaks"


class Namer:
    """Ears for texts in place of audio: `speaks`, or `asks` and the question."""

    def hear(self, samples: bytes) -> tuple[bool, list[str]]:
        if samples == VOICE:
            return True, []
        return False, [samples.removeprefix(QUESTION).decode()]


class Caller:
    """The other end of a bot.

    Attributes:
        said: What the bot was to say, a file that the voice writes to.
    """

    def __init__(self, connection: ClientConnection, said: Path) -> None:
        self.connection = connection
        self.said = said

    async def hears(self) -> bytes:
        """Return one utterance of the bot."""
        message = await self._next()
        assert isinstance(message, bytes), message
        return message

    async def told(self) -> Any:
        message = await self._next()
        assert isinstance(message, str)
        return json.loads(message)

    async def _next(self) -> str | bytes:
        async with asyncio.timeout(10):
            return await self.connection.recv()


@pytest.fixture
async def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    """A caller of a bot, whose fork has told nothing yet."""
    with wave.open(str(tmp_path / "spoken.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPOKEN_HZ)
        file.writeframes(bytes(2 * SPOKEN_HZ * SPOKEN_S))
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_said(text: str) -> None:
        if not listening.done():
            listening.set_result(text.split()[-1])

    monkeypatch.setattr(bot, "say", on_said)
    monkeypatch.setattr(bot, "Ears", Namer)
    script = 'cat > "$1/said"; cat "$1/spoken.wav"'
    espeak = ["sh", "-c", script, "espeak", str(tmp_path)]
    serving = asyncio.create_task(bot.main("127.0.0.1", 0, espeak))
    async with connect(await listening, compression=None) as connection:
        yield Caller(connection, tmp_path / "said")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def begin(caller: Caller, rate: int = bot.RATE) -> None:
    start = {"event": "start", "audio": {"sample_rate": rate}}
    await caller.connection.send(json.dumps(start))


async def test_bot_greets_at_the_rate_of_the_call(caller: Caller) -> None:
    await begin(caller)
    assert len(await caller.hears()) == pytest.approx(SPOKEN_S * bot.RATE * 2, abs=10)
    assert caller.said.read_text() == bot.GREETING


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("how are you today", "You said: how are you today. I am fine, thank you."),
        ("", "Please say that again."),
    ],
)
async def test_question_is_answered_with_what_was_understood(
    caller: Caller, question: str, said: str
) -> None:
    await begin(caller)
    await caller.hears()
    await caller.connection.send(QUESTION + question.encode())
    await caller.hears()
    assert caller.said.read_text() == said


async def test_time_is_told_as_it_is(caller: Caller) -> None:
    before = time.strftime("%H %M")
    await begin(caller)
    await caller.hears()
    await caller.connection.send(QUESTION + b"what is the time")
    await caller.hears()
    times = {before, time.strftime("%H %M")}
    assert caller.said.read_text() in {f"You said: what is the time. It is {one}." for one in times}


async def test_caller_who_speaks_silences_the_bot(caller: Caller) -> None:
    await begin(caller)
    await caller.hears()
    await caller.connection.send(VOICE)
    assert await caller.told() == {"command": "clear"}


async def test_goodbye_is_heard_before_the_bot_closes(caller: Caller) -> None:
    await begin(caller)
    await caller.hears()
    await caller.connection.send(QUESTION + bot.GOODBYE.encode())
    await caller.hears()
    assert await caller.told() == {"command": "mark", "name": "goodbye"}
    await caller.connection.send('{"event": "cleared"}')
    await caller.connection.send(VOICE)
    assert await caller.told() == {"command": "clear"}, "it is still there"
    await caller.connection.send('{"event": "mark", "name": "goodbye"}')
    with pytest.raises(ConnectionClosed) as caught:
        await caller.told()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1000


async def test_call_of_another_rate_is_closed_with_the_reason(caller: Caller) -> None:
    await begin(caller, 16_000)
    with pytest.raises(ConnectionClosed) as caught:
        await caller.told()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "this bot is for 8000 Hz")


def test_readme_of_the_example_says_how_many_lines_there_are() -> None:
    readme = (Path(bot.__file__).parent / "README.md").read_text()
    assert "of less than 150 lines" in readme
    assert len(Path(bot.__file__).read_text().splitlines()) < 150


def test_make_demo_bot_runs_the_demo() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    shown = subprocess.run(
        [make, "--dry-run", "demo-bot"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-m testbed.demo_bot" in shown.stdout
