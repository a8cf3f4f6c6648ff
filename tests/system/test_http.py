"""The HTTP interface of a daemon on a real Asterisk: forks of a real call, from start to end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call

pytestmark = pytest.mark.asterisk

VIEWER = "view-0123456789abcdefgh"
CONTROLLER = "control-0123456789abcd"
TOKENS = f"anna view {VIEWER}\ncarl control {CONTROLLER}\n"
SILENCE = bytes(320)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("http") / "tokens"
    path.touch(mode=0o600)
    path.write_text(TOKENS)
    return path


@pytest.fixture(scope="module")
def settings(tokens_file: Path) -> dict[str, str]:
    return {
        "http": f"listen = 127.0.0.1:0\ntokens_file = {tokens_file}\n",
        "security": "allow_urls = ws://127.0.0.1\n",
    }


class Door:
    """Asks the daemon's HTTP interface."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self, method: str, path: str, body: Any = None, token: str = CONTROLLER
    ) -> tuple[int, Any]:
        """Return the status, and the JSON or text of the answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            asyncio.timeout(60),
            self._session.request(method, self._url + path, json=body, headers=headers) as answer,
        ):
            text = await answer.text()
            is_json = answer.content_type.endswith("json")
            return answer.status, json.loads(text) if is_json else text

    @asynccontextmanager
    async def events(self, query: str = "") -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """Yield what yields the name and the data of each event."""
        headers = {"Authorization": f"Bearer {VIEWER}"}
        async with self._session.get(f"{self._url}/api/v1/events{query}", headers=headers) as got:
            assert got.status == 200
            assert await got.content.readline() == b": \n"
            yield self._read(got)

    async def _read(self, got: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
        name = ""
        while line := (await got.content.readline()).decode():
            if line.startswith("event: "):
                name = line[7:].strip()
            elif line.startswith("data: "):
                yield name, json.loads(line[6:])


@pytest.fixture
async def door(daemon: Daemon) -> AsyncIterator[Door]:
    found = re.search(r"HTTP interface on (http://\S+)", daemon.log())
    assert found is not None
    async with aiohttp.ClientSession() as session:
        yield Door(session, found[1])


async def until(events: AsyncIterator[tuple[str, Any]], name: str) -> Any:
    async with asyncio.timeout(20):
        async for found, data in events:
            if found == name:
                return data
    raise AssertionError(f"no {name} came")


async def test_fork_is_started_muted_and_stopped_and_its_events_come(
    door: Door, ami: AmiClient, caller: SipUser, recorder: Recorder, daemon: Daemon
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    async with door.events("?levels=1") as events:
        status, started = await door.ask(
            "POST",
            "/api/v1/forks",
            {
                "channel": target.channel,
                "url": recorder.url("/one?token=x"),
                "options": "D(in)",
                "wait": True,
            },
        )
        assert (status, started["result"]) == (201, "streaming")
        assert 0 <= started["ms"] < 10_000
        fork_id = started["id"]
        requested = await until(events, "fork.requested")
        assert requested["fork"]["id"] == fork_id
        assert (requested["door"], requested["who"]) == ("http", "carl")
        assert "token" not in json.dumps(requested)
        assert (await until(events, "fork.started"))["fork"]["channel"] == target.channel
        stats = await until(events, "stats")
        assert stats["forks"][fork_id]["state"] == "streaming"

        recording = await recorder.wait_messages("/one?token=x", 10)
        status, listed = await door.ask("GET", f"/api/v1/forks?channel={target.channel}")
        assert (status, listed["total"]) == (200, 1)
        (fork,) = listed["forks"]
        assert (fork["id"], fork["uniqueid"]) == (fork_id, target.uniqueid)
        assert fork["url"] == recorder.url("/one?...")

        path = f"/api/v1/forks/{fork_id}"
        status, muted = await door.ask("PATCH", path, {"mute": {"in": True}})
        assert (status, muted["muted"]) == (200, "read")
        assert (await until(events, "fork.muted"))["in"] is True
        position = len(recording.messages)
        await recorder.wait_messages("/one?token=x", position + 20)
        assert set(recording.messages[position + 3 : position + 20]) == {SILENCE}

        assert await door.ask("DELETE", path) == (204, "")
        ended = await until(events, "fork.ended")
        assert (ended["reason"], ended["failed"]) == ("stopped", False)
        assert ended["frames_in"] > 20
        await until(events, "fork.stopped")
    assert (await door.ask("GET", path))[0] == 404
    assert f"HTTP client carl has stopped fork {fork_id}" in daemon.log()
    await target.call.hangup()


async def test_what_is_refused_is_told_as_by_the_other_doors(
    door: Door, ami: AmiClient, caller: SipUser
) -> None:
    target = await place_call(ami, caller)
    for body, kind, detail in (
        ({"channel": "PJSIP/none-1", "url": "ws://127.0.0.1/"}, "no-such-channel", "No such chan"),
        ({"channel": target.channel, "url": "ws://192.0.2.1/"}, "refused", "WsServer: not among"),
    ):
        status, problem = await door.ask("POST", "/api/v1/forks", body)
        assert (status, problem["type"]) == (422, f"/problems/{kind}")
        assert problem["detail"].startswith(detail)
    body = {"channel": target.channel, "url": "ws://127.0.0.1/"}
    assert (await door.ask("POST", "/api/v1/forks", body, VIEWER))[0] == 403
    assert (await door.ask("POST", "/api/v1/forks", body, ""))[0] == 401
    await target.call.hangup()


async def test_status_and_readiness_are_those_of_this_asterisk(door: Door) -> None:
    assert await door.ask("GET", "/readyz", token="") == (
        200,
        {"ready": True, "asterisk": "up", "relay": "up"},
    )
    status, state = await door.ask("GET", "/api/v1/status", token=VIEWER)
    assert status == 200
    assert state["asterisk"]["up"]
    assert state["asterisk"]["text"].endswith(state["asterisk"]["version"])
    assert [relay["up"] for relay in state["relays"]] == [True]


async def test_check_finds_each_thing_by_its_name(door: Door) -> None:
    status, report = await door.ask("GET", "/api/v1/check", token=VIEWER)
    assert status == 200
    findings = {one["name"]: one for one in report["findings"]}
    assert findings["check"]["status"] == "ok"
    assert findings["login"]["status"] == "ok"
    assert {one["status"] for one in report["findings"]} <= {"ok", "warn", "fail", "skip"}
    assert all(one["remedy"] for one in report["findings"] if one["status"] == "fail")


async def test_new_tokens_count_after_a_reload(
    door: Door, daemon: Daemon, tokens_file: Path
) -> None:
    async def reload(tokens: str, says: str, times: int = 1) -> None:
        await asyncio.to_thread(tokens_file.write_text, tokens)
        await daemon.reload(says, times=times)

    async def status(token: str) -> int:
        return (await door.ask("GET", "/api/v1/forks", token=token))[0]

    new = "n" * 20
    try:
        await reload(TOKENS.replace(VIEWER, new), "INFO    reloaded")
        assert (await status(VIEWER), await status(new)) == (401, 200)
        await reload("anna nonsense", "not reloaded, the old configuration stays")
        assert (await status(VIEWER), await status(new)) == (401, 200)
    finally:
        await reload(TOKENS, "INFO    reloaded", 2)
    assert await status(VIEWER) == 200
