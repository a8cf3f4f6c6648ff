"""The live-transcription example with real speech: Asterisk's own prompts."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.sip import SipUser
from tests.system.conftest import counts_blocks, needs_pairs, place_call, set_globals

pytestmark = pytest.mark.asterisk

EXAMPLE = Path(__file__).parents[2] / "examples/live-transcription"
sys.path.insert(0, str(EXAMPLE))

import transcribe  # noqa: E402

# Whole sentences of asterisk-core-sounds-en, of different lengths; not chosen by how well they go.
PROMPTS = {
    "cannot-complete-as-dialed": "your call cannot be completed as dialed",
    "conf-kicked": "you have been kicked from this conference",
    "do-not-disturb": "do not disturb",
    "hello-world": "hello world",
    "one-moment-please": "one moment please",
    "please-try-again": "please try again",
    "please-try-call-later": "please try your call later",
    "queue-thankyou": "thank you for your patience",
    "tt-somethingwrong": "something is terribly wrong",
    "vm-msgsaved": "your message has been saved",
}


# Where there is no wheel yet, Python may lack it; elsewhere a test without it fails.
needs_pocketsphinx = pytest.mark.skipif(
    sys.version_info >= (3, 14) and importlib.util.find_spec("pocketsphinx") is None,
    reason="there is no wheel of pocketsphinx for this Python; pip install .[stt] compiles it",
)


def sounds(asterisk: Asterisk) -> Path:
    return asterisk.installation.prompts


def audio(folder: Path, name: str) -> bytes:
    """Return a prompt with silence around it, as in a call."""
    with wave.open(str(folder / f"{name}.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        samples: bytes = file.readframes(file.getnframes())
    return bytes(8000) + samples + bytes(16000)


def errors(said: list[str], understood: list[str]) -> int:
    """Return how many words are wrong, missing or too many."""
    row = list(range(len(understood) + 1))
    for count, word in enumerate(said, 1):
        above, row = row, [count]
        for place, other in enumerate(understood):
            row.append(min(above[place] + (word != other), above[place + 1] + 1, row[place] + 1))
    return row[-1]


def test_errors() -> None:
    assert errors("a b c".split(), "a b c".split()) == 0
    assert errors("a b c".split(), "a x c d".split()) == 2
    assert errors("a b c".split(), []) == 3


@needs_pocketsphinx
def test_pocketsphinx_understands_prompts(asterisk: Asterisk) -> None:
    """About every second word: its model was not made for telephone speech."""
    engine = transcribe.PocketSphinx()
    understood, wrong = {}, 0
    for name, words in PROMPTS.items():
        text = " ".join(engine.feed(audio(sounds(asterisk), name)) + engine.finish())
        understood[name] = text.replace("good bye", "goodbye")
        wrong += errors(words.split(), understood[name].split())
    said = sum(len(words.split()) for words in PROMPTS.values())
    assert wrong / said < 0.6
    exact = {name for name, words in PROMPTS.items() if understood[name] == words}
    print(
        f"{wrong} of {said} words wrong ({100 * wrong / said:.0f} %), {len(exact)} sentences exact"
    )
    assert {"one-moment-please", "please-try-again", "queue-thankyou"} <= exact


@needs_pocketsphinx
def test_pocketsphinx_silence_and_any_chunks(asterisk: Asterisk) -> None:
    """No text from silence; and it does not matter how the audio is cut."""
    engine = transcribe.PocketSphinx()
    assert engine.feed(bytes(3 * 16000)) + engine.finish() == []
    speech = audio(sounds(asterisk), "please-try-again")
    texts = [
        text for at in range(0, len(speech), 642) for text in engine.feed(speech[at : at + 642])
    ]
    assert texts == transcribe.PocketSphinx().feed(speech) == ["please try again"]


@needs_pocketsphinx
def test_pocketsphinx_long_speech_is_cut(
    asterisk: Asterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes no pause is understood before the end, too."""
    monkeypatch.setattr(transcribe, "MAX_UTTERANCE_S", 1.0)
    engine = transcribe.PocketSphinx()
    assert len(engine.feed(audio(sounds(asterisk), "queue-youarenext"))) >= 3


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[str]]]:
    """The program; its URL, and the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, EXAMPLE / "transcribe.py", "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    found = re.search(r"ws://\S+:\d+", (await process.stdout.readline()).decode())
    assert found is not None
    lines: list[str] = []
    reading = asyncio.create_task(collect(process.stdout, lines))
    yield found[0], lines
    process.terminate()
    assert await process.wait() == 0
    await reading


async def collect(output: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await output.readline():
        lines.append(line.decode().rstrip())


@needs_pocketsphinx
@needs_pairs()
@counts_blocks  # a word that lacks some is another word
async def test_prompt_of_a_call_comes_back_as_text(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    asterisk: Asterisk,
    server: tuple[str, list[str]],
) -> None:
    """From the prompt over the fork and the recogniser to the variable of the channel."""
    url, lines = server
    file = str(sounds(asterisk) / "please-try-again")
    await set_globals(ami, FILE=file, WSSERVER=f"{url}/ivr", OPTIONS="D(out)", LEAD="1.5")
    position = len(ami.events)
    target = await place_call(ami, caller, "play")
    target.call.play(make_blocks(25, seed=1), loop=True)
    event = await ami.wait_user_event("AudioForkMessage", after=position, timeout_s=15)
    response = await ami.variable(target.channel, "AUDIOFORK_RESPONSE")
    await target.call.hangup()
    assert event["Message"] == response == "please try again"
    assert event["Channel"] == target.channel
    assert any(line.endswith("/ivr please try again") for line in lines)
