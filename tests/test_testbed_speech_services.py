"""The stand-ins for speech services notice what the services would refuse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from testbed import speech_services
from testbed.speech_services import (
    LAST,
    SERVICES,
    AssemblyAI,
    Deepgram,
    Speechmatics,
    SpeechService,
    Vosk,
)

FRAME = b"\1\0" * 160
CONFIG = '{"config": {"sample_rate": 8000}}'
START = json.dumps(
    {
        "message": "StartRecognition",
        "audio_format": {"type": "raw", "encoding": "pcm_s16le", "sample_rate": 8000},
        "transcription_config": {"language": "en"},
    }
)
END = '{"message": "EndOfStream", "last_seq_no": %d}'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_services, "WORK_S", 0.02)


@asynccontextmanager
async def connected(server: SpeechService) -> AsyncIterator[ClientConnection]:
    """Connect as the document demands; the time for it all is limited."""
    url = f"ws://127.0.0.1:{server.port}{server.path}?{urlencode(server.query)}"
    opening = connect(url.rstrip("?"), additional_headers=server.headers, proxy=None)
    async with asyncio.timeout(5), opening as client:
        yield client


async def answers(server: SpeechService, messages: list[str | bytes]) -> list[str]:
    """Return what a stand-in sends to a client that sends these messages, until it closes."""
    texts: list[str] = []
    async with connected(server) as client:
        try:
            for message in messages:
                await client.send(message)
            async for text in client:
                texts.append(str(text))
                if "EndOfTranscript" in text:
                    await client.close()
        except ConnectionClosed:
            pass
    return texts


@pytest.mark.parametrize(
    ("service", "messages"),
    [
        (Vosk, [CONFIG, FRAME, '{"eof" : 1}']),
        (Deepgram, [FRAME, FRAME, '{"type": "CloseStream"}']),
        (AssemblyAI, [FRAME * 5, FRAME * 3, '{"type": "Terminate"}']),
    ],
)
async def test_client_that_does_as_the_document_says_gets_its_last_result(
    service: type[SpeechService], messages: list[str | bytes]
) -> None:
    async with service() as server:
        texts = await answers(server, messages)
    assert server.faults == []
    assert any(LAST in text for text in texts)


async def test_speechmatics_starts_before_it_takes_audio_and_leaves_the_close_to_the_client() -> (
    None
):
    async with Speechmatics() as server, connected(server) as client:
        await client.send(START)
        assert "RecognitionStarted" in str(await client.recv())
        for message in (FRAME, FRAME, END % 2):
            await client.send(message)
        texts = [str(await client.recv()) for _ in range(4)]
        await client.close()
    assert server.faults == []
    assert "AudioAdded" in texts[0]
    assert "EndOfTranscript" in texts[-1]


@pytest.mark.parametrize(
    ("service", "messages", "fault"),
    [
        (Vosk, ['{"config": {"sample_rate": 16000}}'], "expected"),
        (Vosk, [CONFIG, FRAME, '{"eof": 1}'], "expected"),
        (Vosk, [FRAME], "no JSON"),
        (Deepgram, [FRAME, "hello"], "no JSON"),
        (Deepgram, [FRAME[:-1]], "319 bytes of audio"),
        (AssemblyAI, [FRAME * 2], "a message of 40 ms"),
        (AssemblyAI, [FRAME * 51], "a message of 1020 ms"),
        (Speechmatics, [START, FRAME], "before RecognitionStarted"),
        (Speechmatics, [START.replace("8000", "16000")], "expected"),
    ],
)
async def test_client_that_does_something_else_is_at_fault(
    service: type[SpeechService], messages: list[str | bytes], fault: str
) -> None:
    async with service() as server:
        texts = await answers(server, messages)
    (told,) = server.faults
    assert fault in told
    assert not any(LAST in text for text in texts)


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: one.name)
async def test_client_that_closes_without_a_goodbye_is_at_fault(
    service: type[SpeechService],
) -> None:
    async with service() as server:
        async with connected(server):
            pass
        await server.heard(1)
    (told,) = server.faults
    assert told.startswith("connection closed too early")


@pytest.mark.parametrize("service", [Deepgram, AssemblyAI, Speechmatics])
async def test_client_with_another_key_is_refused(service: type[SpeechService]) -> None:
    async with service() as server:
        url = f"ws://127.0.0.1:{server.port}{server.path}?{urlencode(server.query)}"
        wrong = {"Authorization": "Bearer other"}
        with pytest.raises(InvalidStatus, match="401"):
            await connect(url, additional_headers=wrong, proxy=None)
    assert server.faults == ["header Authorization"]


@pytest.mark.parametrize("service", [Deepgram, AssemblyAI])
async def test_client_with_another_query_is_refused(service: type[SpeechService]) -> None:
    async with service() as server:
        url = f"ws://127.0.0.1:{server.port}{server.path}?sample_rate=16000"
        with pytest.raises(InvalidStatus, match="400"):
            await connect(url, additional_headers=server.headers, proxy=None)
    (told,) = server.faults
    assert told.startswith("request /")
