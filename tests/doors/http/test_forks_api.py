"""The forks over HTTP: listed, looked at, started, muted, stopped."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import fields, replace

import pytest

from audiofork.asterisk.channels import Target
from audiofork.doors.http import forks_api
from audiofork.doors.http.views import AT_ONCE, Views
from audiofork.errors import AmiUnavailable, RequestRefused
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.requests import MuteFork, StartFork, StopFork
from audiofork.forks.view import ForkView
from tests.doors.http.stage import (
    CONTROLLER,
    FORK_ID,
    OTHER_ID,
    VIEW,
    Answer,
    Stage,
    request,
)
from tests.relay.peers import until

FORKS = "/api/v1/forks"
FORK = f"{FORKS}/{FORK_ID}"
START = {"channel": "PJSIP/1-1", "url": "ws://localhost/"}


def many(count: int) -> list[ForkView]:
    return [
        replace(VIEW, id=f"3f2a91c0-0000-4000-8000-{n:012}", channel=f"PJSIP/{n}-1")
        for n in range(count)
    ]


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200
    return [fork["id"] for fork in answer.json["forks"]]


# --- List ----------------------------------------------------------------------------------------


async def test_fork_has_all_fields_and_its_url_neither_query_nor_password(stage: Stage) -> None:
    answer = await stage.get(FORKS)
    assert answer.json["total"] == 1
    assert answer.json["next_cursor"] == ""
    (fork,) = answer.json["forks"]
    assert set(fork) == {one.name for one in fields(ForkView)} | {"host", "asterisk"}
    assert fork["url"] == "wss://speech.example.org:8443/live?..."
    assert fork["host"] == "speech.example.org:8443"
    for secret in (b"s3cret", b"user", b"pw@"):
        assert secret not in answer.body


async def test_pages_follow_one_another(stage: Stage) -> None:
    stage.others.views = views = many(7)
    found: list[str] = []
    cursor = ""
    for size in (3, 3, 1):
        answer = await stage.get(f"{FORKS}?limit=3&cursor={cursor}")
        assert len(ids(answer)) == size
        assert answer.json["total"] == 7
        found += ids(answer)
        cursor = answer.json["next_cursor"]
    assert cursor == ""
    assert found == [view.id for view in views]


async def test_page_goes_on_behind_the_last_fork_though_others_have_ended(stage: Stage) -> None:
    stage.others.views = views = many(6)
    answer = await stage.get(f"{FORKS}?limit=3")
    cursor = answer.json["next_cursor"]
    stage.others.views = views[1:]
    await fresh(stage)
    assert ids(await stage.get(f"{FORKS}?limit=3&cursor={cursor}")) == [v.id for v in views[3:]]
    stage.others.views = views[3:]  # the last one of the page has ended, too
    await fresh(stage)
    assert ids(await stage.get(f"{FORKS}?limit=3&cursor={cursor}")) == []


async def fresh(stage: Stage) -> None:
    """Let the door forget the forks that it has asked for a moment ago."""
    views: Views = stage.door._events._meters._views
    views._asked = None


@pytest.mark.parametrize("cursor", ["x", "-1", "1" * 10, "\u0661.a", ".a"])
async def test_cursor_that_is_none_is_refused(stage: Stage, cursor: str) -> None:
    from urllib.parse import quote

    answer = await stage.get(f"{FORKS}?cursor={quote(cursor)}")
    assert answer.status == 422
    assert answer.json["detail"] == "cursor: expected next_cursor of another answer"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1]),
        ("state=streaming", [0]),
        ("state=stream", []),
        ("channel=pjsip/2", [1]),
        ("channel=2.2", [1]),
        ("host=EXAMPLE.org", [0]),
        ("host=live", []),
        ("q=localhost", [1]),
        ("q=000000000001", [0]),
        ("q=s3cret", []),
        ("caller=100", []),
        ("channel=PJSIP&state=attaching", [1]),
    ],
)
async def test_list_is_filtered(stage: Stage, query: str, expected: list[int]) -> None:
    other = replace(
        VIEW,
        id=OTHER_ID,
        channel="PJSIP/2-2",
        uniqueid="2.2",
        url="ws://localhost/",
        state="attaching",
    )
    stage.others.views = [VIEW, other]
    answer = await stage.get(f"{FORKS}?{query}")
    assert ids(answer) == [[FORK_ID, OTHER_ID][number] for number in expected]
    assert answer.json["total"] == len(expected)


async def test_texts_of_callers_come_as_they_are_and_the_json_is_ascii(stage: Stage) -> None:
    name = 'PJSIP/<script>"\x00\x1b[31m\u2028\ud800-1'
    stage.others.views = [replace(VIEW, channel=name)]
    answer = await stage.get(FORKS)
    assert answer.body.isascii()
    assert answer.json["forks"][0]["channel"] == name


async def test_those_who_ask_at_once_ask_the_relay_once(stage: Stage) -> None:
    await asyncio.gather(*(stage.get(FORKS) for _ in range(10)))
    assert stage.others.views_asked == 1
    await stage.get(FORK)  # one fork is as it is now
    assert stage.others.views_asked == 2


async def test_a_thousand_forks_do_not_hold_the_loop(stage: Stage) -> None:
    stage.others.views = many(1000)
    loop = asyncio.get_running_loop()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    turn()
    assert len(ids(await stage.get(f"{FORKS}?limit=1000"))) == 1000
    assert turns > 1000 / AT_ONCE


async def test_relay_that_does_not_answer_is_told(stage: Stage) -> None:
    async def never() -> list[ForkView]:
        raise TimeoutError

    stage.door._events._meters._views._ask = never
    answer = await stage.get(FORKS)
    assert answer.status == 503
    assert answer.json["detail"] == "the relay does not answer in time"


# --- One -----------------------------------------------------------------------------------------


async def test_one_fork_has_its_timeline(stage: Stage) -> None:
    answer = await stage.get(FORK)
    assert answer.json["id"] == FORK_ID
    assert answer.json["timeline"] == [
        {"at": 1000.0, "kind": "requested", "text": "by http carl"},
        {"at": 1000.5, "kind": "started", "text": ""},
    ]


@pytest.mark.parametrize("fork_id", [OTHER_ID, "3f2a91c0", "3f2a91c0-------"])
async def test_fork_that_is_not_there_is_not_found(stage: Stage, fork_id: str) -> None:
    answer = await stage.get(f"{FORKS}/{fork_id}")
    assert (answer.status, answer.json["type"]) == (404, "/problems/no-such-fork")


# --- Start ---------------------------------------------------------------------------------------


async def test_start_is_asked_as_by_every_other_door(stage: Stage) -> None:
    body = {
        **{"channel": "PJSIP/1-1", "url": "wss://h/?token=x", "options": "D(in)x(json)"},
        **{"params": {"a b": "\u00e4&=", "c": ""}, "post_process": "@upload"},
    }
    answer = await stage.ask("POST", FORKS, body=body)
    assert answer.status == 201
    assert answer.headers["location"] == FORK
    assert answer.json == {
        **{"id": FORK_ID, "result": "granted", "ms": None, "reason": "", "detail": ""}
    }
    (asked,) = stage.others.requests
    assert isinstance(asked, StartFork)
    assert asked.target == Target("PJSIP/1-1", "")
    assert (asked.url, asked.options_text) == ("wss://h/?token=x", "D(in)x(json)")
    assert asked.params == {"a b": "\u00e4&=", "c": ""}
    assert asked.post_process == "@upload"
    assert not asked.connects
    assert asked.origin == ("http", "carl")


async def test_connect_is_asked_with_the_uniqueid_of_a_channel(stage: Stage) -> None:
    body = {"uniqueid": "1.1", "url": "@speech", "connect": True}
    assert (await stage.ask("POST", FORKS, body=body)).status == 201
    (asked,) = stage.others.requests
    assert isinstance(asked, StartFork)
    assert (asked.target, asked.url) == (Target("", "1.1"), "@speech")
    assert asked.connects


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"url": "ws://h/"}, "No channel specified"),
        ({"channel": "PJSIP/1", "url": ""}, "WsServer: missing"),
        ({"channel": "PJSIP/1"}, "url: missing"),
        ({"channel": "PJSIP/1\r\nAction: x", "url": "ws://h/"}, "Channel: control characters are"),
        ({**START, "options": "q"}, "Options: unknown option 'q'"),
        ({**START, "params": {"a": "x" * 9000}}, "Params: longer than 8192 bytes, all together"),
        ({**START, "params": {"": "x"}}, "Params: a parameter has no name"),
        ({**START, "url": "u" * 1001}, "url: expected 1000 characters at most"),
        ({**START, "url": "\u00e4" * 999}, "WsServer: longer than 1000 bytes"),
        ({**START, "chanel": "x"}, "chanel: no such field; did you mean channel?"),
        ({**START, "wait": "yes"}, "wait: expected true or false, got a string"),
    ],
)
async def test_start_that_cannot_be_understood_is_refused(
    stage: Stage, body: dict[str, object], detail: str
) -> None:
    answer = await stage.ask("POST", FORKS, body=body)
    assert answer.status == 422
    assert answer.json["detail"].startswith(detail)
    assert stage.others.requests == []


async def test_refusal_is_logged_with_who_has_asked_and_a_flood_is_not(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.others.error = RequestRefused("WsServer: no\nhost")
    for _ in range(3):
        await stage.ask("POST", FORKS, body=START)
    said = [record.getMessage() for record in caplog.records if "POST" in record.getMessage()]
    assert said == ["POST of HTTP client carl: WsServer: no?host"]


async def test_start_that_waits_is_answered_when_audio_flows(stage: Stage) -> None:
    stage.others.news = [
        StartNews(StartResult.WAITING, VIEW),
        StartNews(StartResult.STREAMING, VIEW, 312),
    ]
    answer = await stage.ask("POST", FORKS, body={**START, "wait": True})
    assert answer.status == 201
    assert answer.json == {
        **{"id": FORK_ID, "result": "streaming", "ms": 312, "reason": "", "detail": ""}
    }


async def test_start_that_waits_is_told_of_its_end(stage: Stage) -> None:
    news = StartNews(StartResult.ENDED, VIEW, None, "sink-gone", "Connection refused")
    stage.others.news = [news]
    answer = await stage.ask("POST", FORKS, body={**START, "wait": True})
    assert answer.json == {
        **{"id": FORK_ID, "result": "ended", "ms": None, "reason": "sink-gone"},
        **{"detail": "Connection refused"},
    }


async def test_start_waits_no_longer_than_it_may(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks_api, "WAIT_S", 0.05)
    left = asyncio.Event()

    async def follow(fork_id: str):  # type: ignore[no-untyped-def]
        try:
            while True:
                yield StartNews(StartResult.WAITING, VIEW)
                await asyncio.sleep(0.01)
        finally:
            left.set()

    api = stage.door.routes.find("POST", FORKS)[0].handler.__self__  # type: ignore[attr-defined]
    api._parts = replace(api._parts, follow=follow)
    answer = await stage.ask("POST", FORKS, body={**START, "wait": True})
    assert answer.json["result"] == "waiting"
    assert left.is_set()
    monkeypatch.setattr(forks_api, "MAX_WAITING", 0)
    answer = await stage.ask("POST", FORKS, body={**START, "wait": True})
    assert answer.status == 503
    assert (await stage.ask("POST", FORKS, body=START)).status == 201


async def test_start_is_carried_out_though_the_client_leaves(stage: Stage) -> None:
    stage.others.go_on.clear()
    api = stage.door.routes.find("POST", FORKS)[0].handler.__self__  # type: ignore[attr-defined]
    async with stage.client() as client:
        client.writer.write(request("POST", FORKS, CONTROLLER, START))
        await until(lambda: bool(stage.others.requests))
    (order,) = api._orders
    await asyncio.sleep(0.05)
    assert not order.done()
    stage.others.go_on.set()
    await until(lambda: not api._orders)
    assert not order.cancelled()


async def test_asterisk_that_is_away_is_told_with_when_to_try_again(stage: Stage) -> None:
    stage.others.error = AmiUnavailable("not connected to Asterisk yet")
    answer = await stage.ask("POST", FORKS, body=START)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json["type"] == "/problems/asterisk-away"


# --- Mute and stop -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mute", "sides", "said"),
    [
        ({"in": True}, (True, None), "in off"),
        ({"out": False}, (None, False), "out on"),
        ({"in": False, "out": True}, (False, True), "in on and out off"),
    ],
)
async def test_sides_are_muted_each_by_itself(
    stage: Stage,
    mute: dict[str, bool],
    sides: tuple[bool | None, bool | None],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    answer = await stage.ask("PATCH", FORK, body={"mute": mute})
    assert answer.status == 200
    assert answer.json["id"] == FORK_ID
    (asked,) = stage.others.requests
    assert asked == MuteFork(Target("", ""), FORK_ID, *sides)
    assert asked.origin == ("http", "carl")
    assert f"HTTP client carl has switched {said} of fork {FORK_ID}" in caplog.text


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "mute: missing"),
        ({"mute": {}}, "mute: expected in, out or both"),
        ({"mute": {"in": None}}, "mute: expected in, out or both"),
        ({"mute": True}, "mute: expected an object, got true"),
        ({"mute": {"in": "on"}}, "mute.in: expected true or false or null, got a string"),
        ({"mute": {"in": True}, "stop": True}, "stop: no such field; there are mute"),
    ],
)
async def test_change_that_cannot_be_understood_is_refused(
    stage: Stage, body: dict[str, object], detail: str
) -> None:
    answer = await stage.ask("PATCH", FORK, body=body)
    assert (answer.status, answer.json["detail"]) == (422, detail)
    assert stage.others.requests == []


async def test_fork_is_stopped_and_the_log_says_by_whom(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = await stage.ask("DELETE", FORK)
    assert (answer.status, answer.body) == (204, b"")
    assert stage.others.requests == [StopFork(Target("", ""), FORK_ID)]
    assert stage.others.requests[0].origin == ("http", "carl")
    assert f"HTTP client carl has stopped fork {FORK_ID}" in caplog.text


async def test_stop_of_a_fork_that_is_gone_is_not_found(stage: Stage) -> None:
    stage.others.error = RequestRefused("No such fork 3f2a91c0; did you mean ...?")
    answer = await stage.ask("DELETE", f"{FORKS}/3f2a91c0")
    assert answer.status == 404
    assert "did you mean" in answer.json["detail"]
    assert (await stage.ask("DELETE", f"{FORKS}/--------")).status == 404
    stage.others.views = []
    stage.others.error = None
    assert (await stage.ask("PATCH", FORK, body={"mute": {"in": True}})).status == 404


# --- Where there is no cluster -------------------------------------------------------------------


async def test_start_for_an_asterisk_is_refused_where_there_is_no_cluster(stage: Stage) -> None:
    answer = await stage.ask("POST", FORKS, CONTROLLER, START | {"asterisk": "pbx-b"})
    assert (answer.status, answer.json["type"]) == (422, "/problems/refused")
    assert answer.json["detail"] == "asterisk: this daemon is in no cluster"
    assert stage.others.requests == []


async def test_nothing_is_missing_where_there_is_no_cluster(stage: Stage) -> None:
    answer = (await stage.get(FORKS)).json
    assert answer["missing"] == {}
    assert answer["forks"][0]["asterisk"] == ""
