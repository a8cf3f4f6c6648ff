"""The stand-in for the Realtime API notices what the API would refuse."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from testbed.realtime_api import Call, RealtimeApi, Turn
from testbed.speech_services import KEY

ULAW = {"type": "audio/pcmu"}
SESSION: dict[str, Any] = {
    "type": "realtime",
    "audio": {"input": {"format": ULAW}, "output": {"format": ULAW}},
}
UPDATE = {"type": "session.update", "session": SESSION}
LOUD, QUIET = b"\x00" * 160, b"\xff" * 160 * 10
TRUNCATE = {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0}


def append(audio: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}


def answer(call_id: str) -> dict[str, Any]:
    item = {"type": "function_call_output", "call_id": call_id, "output": ""}
    return {"type": "conversation.item.create", "item": item}


@pytest.fixture
async def api() -> AsyncIterator[RealtimeApi]:
    async with RealtimeApi(Turn(bytes(320), "hello", (Call("order"),))) as one:
        yield one


def client(api: RealtimeApi, key: str = KEY) -> connect:
    url = f"ws://127.0.0.1:{api.port}/v1/realtime?model=gpt-realtime"
    headers = {"Authorization": f"Bearer {key}"}
    return connect(url, additional_headers=headers, compression=None, proxy=None)


async def heard(connection: ClientConnection, kind: str) -> dict[str, Any]:
    """Return the next event of a kind."""
    while True:
        event: dict[str, Any] = json.loads(await connection.recv())
        if event["type"] == kind:
            return event


async def test_client_that_does_all_right_is_told_what_it_has_asked_for(api: RealtimeApi) -> None:
    async with client(api) as connection:
        for event in (UPDATE, append(LOUD), append(QUIET)):
            await connection.send(json.dumps(event))
        delta = await heard(connection, "response.output_audio.delta")
        item = await heard(connection, "response.output_item.done")
        call = await heard(connection, "response.output_item.done")
        assert item["item"]["id"] == delta["item_id"]
        cut = {**TRUNCATE, "item_id": delta["item_id"], "audio_end_ms": 20}
        for event in (cut, answer(call["item"]["call_id"])):
            await connection.send(json.dumps(event))
        await heard(connection, "response.done")
    assert api.faults == []
    assert len(api.truncations) == len(api.outputs) == 1


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([append(LOUD)], "input_audio_buffer.append before the session was accepted"),
        ([{"type": "session.end"}], "type: 'session.end'"),
        ([{**UPDATE, "session": {**SESSION, "voice": "alloy"}}], "unknown ['voice']"),
        ([{**UPDATE, "session": {"type": "live"}}], "session.type: 'live', expected one of"),
        ([{"type": "session.update"}], "session.update: no session"),
        ([UPDATE, append(b"")], "0 bytes of audio/pcmu"),
        ([UPDATE, append(b"\xff" * 161)], "161 bytes of audio/pcmu"),
        ([UPDATE, {**append(b""), "audio": "?"}], "audio that is not base64"),
        ([UPDATE, {**append(LOUD), "audio": 7}], "append.audio: 7 is no str"),
        ([UPDATE, {**TRUNCATE, "audio_end_ms": 5}], "truncated what was not said: item_1"),
        ([UPDATE, {**TRUNCATE, "audio_end_ms": 5.5}], "audio_end_ms: 5.5 is no int"),
        ([UPDATE, {**TRUNCATE, "audio_end_ms": True}], "audio_end_ms: True is no int"),
        ([UPDATE, TRUNCATE], "conversation.item.truncate: no audio_end_ms"),
        ([UPDATE, answer("call_9")], "an answer to call_9"),
        (
            [UPDATE, {"type": "response.create"}, {"type": "response.create"}],
            "response.create while there is a response",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_message_that_the_api_would_refuse_is_a_fault(
    api: RealtimeApi, events: list[object], fault: str
) -> None:
    async with client(api) as connection:
        for event in events:
            await connection.send(json.dumps(event))
        await connection.wait_closed()
    assert len(api.faults) == 1
    assert fault in api.faults[0]


async def test_binary_message_is_a_fault(api: RealtimeApi) -> None:
    async with client(api) as connection:
        await connection.send(LOUD)
        await connection.wait_closed()
    assert api.faults == ["a binary message"]


async def test_cut_beyond_what_was_said_is_a_fault(api: RealtimeApi) -> None:
    async with client(api) as connection:
        for event in (UPDATE, append(LOUD), append(QUIET)):
            await connection.send(json.dumps(event))
        delta = await heard(connection, "response.output_audio.delta")
        cut = {**TRUNCATE, "item_id": delta["item_id"], "audio_end_ms": 21}
        await connection.send(json.dumps(cut))
        await connection.wait_closed()
    assert api.faults == ["20.0 ms are shorter than 21"]


async def test_wrong_key_is_refused(api: RealtimeApi) -> None:
    with pytest.raises(InvalidStatus, match="401"):
        async with client(api, "other"):
            pass
