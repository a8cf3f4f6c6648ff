"""A fork that is listened to: what a WebSocket gets, who may, and listeners that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvloop

from audiofork.config import Address, HttpConfig
from audiofork.doors.http import listen_api
from audiofork.doors.http.sending import HEADERS
from audiofork.errors import RequestRefused
from audiofork.link.messages import EndReason
from tests.doors.http.stage import (
    FORK_ID,
    LISTENER,
    OTHER_ID,
    TOKENS,
    Others,
    Sound,
    Stage,
    staged,
    write_tokens,
)
from tests.relay.peers import until

LISTEN = f"/api/v1/forks/{FORK_ID}/listen"


@contextlib.asynccontextmanager
async def listening(
    stage: Stage, path: str = LISTEN, token: str = LISTENER, **headers: str
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Yield the WebSocket of a listener whose handshake is done."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{stage.port}{path}"
        async with session.ws_connect(url, headers=headers) as websocket:
            yield websocket


async def refused(stage: Stage, path: str = LISTEN, token: str = LISTENER, **headers: str) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with listening(stage, path, token, **headers):
            pass
    return caught.value.status


def say(stage: Stage, sound: Sound) -> None:
    for listener in list(stage.others.listeners):
        listener(sound)


async def text(websocket: aiohttp.ClientWebSocketResponse) -> object:
    async with asyncio.timeout(5):
        return json.loads(await websocket.receive_str())


async def audio(websocket: aiohttp.ClientWebSocketResponse) -> bytes:
    async with asyncio.timeout(5):
        return await websocket.receive_bytes()


async def closed(websocket: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(5):
        message = await websocket.receive()
        while message.type is aiohttp.WSMsgType.BINARY:
            message = await websocket.receive()
    assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    return websocket.close_code


async def test_listener_gets_a_description_then_audio_then_the_end(stage: Stage) -> None:
    async with listening(stage) as websocket:
        say(stage, Sound(8000, ("in", "out"), b"\1\0\2\0" * 400))
        say(stage, Sound(8000, ("in", "out"), b"\3\0\4\0" * 400))
        assert await text(websocket) == {
            **{"sample_rate": 8000, "channels": 2, "sides": ["in", "out"]}
        }
        assert await audio(websocket) == b"\1\0\2\0" * 400
        assert await audio(websocket) == b"\3\0\4\0" * 400
        say(stage, Sound(16000, ("mix",), b"\5\0"))
        stage.others.on_ends[0](EndReason.HANGUP)
        assert await text(websocket) == {"sample_rate": 16000, "channels": 1, "sides": ["mix"]}
        assert await audio(websocket) == b"\5\0"
        assert await text(websocket) == {"ended": "hangup"}
        assert await closed(websocket) == 1000
    await until(lambda: stage.others.listeners == [])


async def test_who_listens_is_told_to_what_logs_it(stage: Stage) -> None:
    async with listening(stage):
        assert stage.others.who_listened == ["HTTP client lars"]
    await until(lambda: stage.others.listeners == [])


async def test_handshake_has_the_headers_of_every_answer(stage: Stage) -> None:
    async with listening(stage) as websocket:
        for name in HEADERS:
            if name != "Server":
                assert websocket._response.headers[name] == HEADERS[name]


async def test_page_of_another_site_cannot_listen(stage: Stage) -> None:
    assert await refused(stage, Origin="http://evil.example") == 403
    assert await refused(stage, Host="evil.example") == 421
    answer = await stage.ask("POST", "/api/v1/session", "", {"token": LISTENER})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    origin = f"http://127.0.0.1:{stage.port}"
    assert await refused(stage, token="", Cookie=cookie) == 403  # says not from which page
    assert await refused(stage, token="", Cookie=cookie, Origin="null") == 403
    async with listening(stage, token="", Cookie=cookie, Origin=origin):
        pass


async def test_fork_that_cannot_be_heard_is_told(stage: Stage, tmp_path: Path) -> None:
    assert await refused(stage, LISTEN.replace(FORK_ID, OTHER_ID)) == 404
    assert await refused(stage, token="wrong") == 401
    stage.others.error = RequestRefused("too many listen to this fork")
    assert await refused(stage) == 422
    async with staged(tmp_path, whole=False) as other:
        assert await refused(other) == 404
    answer = await stage.get(LISTEN, LISTENER)
    assert (answer.status, answer.json["detail"]) == (400, "expected the handshake of a WebSocket")


async def test_listeners_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_api, "MAX_LISTENERS", 2)
    async with listening(stage), listening(stage):
        assert await refused(stage) == 503
    await until(lambda: stage.others.listeners == [])
    async with listening(stage):
        pass


async def test_listener_that_does_not_keep_up_is_dropped_and_reported(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(stage):  # reads nothing, and aiohttp keeps 64 KiB for it
        (listener,) = stage.door._listen._listeners
        most = 0
        for _ in range(20_000):
            say(stage, Sound(48000, ("in", "out"), bytes(19200)))
            most = max(most, listener._size)
            await asyncio.sleep(0)
            if not stage.others.listeners:
                break
        assert stage.others.listeners == []
        assert most <= listen_api.MAX_WAITING_BYTES + 19200
    await until(lambda: "HTTP listeners dropped: 1 more, last: lars does not keep" in caplog.text)


async def test_listener_that_talks_is_sent_away(stage: Stage) -> None:
    async with listening(stage) as websocket:
        await websocket.send_str("hello")
        assert await closed(websocket) == 1008
    async with listening(stage) as websocket:
        await websocket.send_bytes(bytes(100_000))
        assert await closed(websocket) in (1006, 1009)
    await until(lambda: stage.others.listeners == [])


async def test_listener_whose_token_is_gone_is_sent_away(stage: Stage, tmp_path: Path) -> None:
    async with listening(stage) as websocket:
        write_tokens(tmp_path, TOKENS.replace(LISTENER, "n" * 20))
        config = HttpConfig(listen=Address("h", 1), tokens_file=str(tmp_path / "tokens"))
        stage.door.reading_tokens(config)()
        assert await closed(websocket) == 1001
    await until(lambda: stage.others.listeners == [])


async def test_listener_who_signs_out_is_sent_away_at_once(stage: Stage) -> None:
    answer = await stage.ask("POST", "/api/v1/session", "", {"token": LISTENER})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    host = f"127.0.0.1:{stage.port}"
    own = {"Origin": f"http://{host}", "Cookie": cookie}
    async with listening(stage, token="", **own) as websocket, listening(stage) as stays:
        gone = await stage.ask("DELETE", "/api/v1/session", "", host=host, **own)
        assert gone.status == 204
        say(stage, Sound(8000, ("in",), b"\1\0"))
        async with asyncio.timeout(5):
            assert (await websocket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert websocket.close_code == 1001
        await text(stays)
        assert await audio(stays) == b"\1\0"


async def test_audio_that_waits_is_not_sent_to_a_listener_who_has_to_leave() -> None:
    listener = listen_api.Listener(lambda: None)
    for _ in range(3):
        listener.on_heard(Sound(8000, ("in",), b"\1\0"))
    messages = listener.messages()
    assert isinstance(await anext(messages), str)
    assert await anext(messages) == b"\1\0"
    listener.leave()
    assert [one async for one in messages] == []


async def test_door_that_closes_sends_listeners_away(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, listening(stage) as websocket:
        closing = asyncio.create_task(stage.door.close())
        assert await closed(websocket) == 1001
        await closing
        assert stage.others.listeners == []


def test_listening_works_on_uvloop_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with staged(tmp_path, Others()) as stage, listening(stage) as websocket:
            say(stage, Sound(8000, ("in",), b"\1\0"))
            await text(websocket)
            assert await audio(websocket) == b"\1\0"

    uvloop.run(run())
