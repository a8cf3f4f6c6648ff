"""The events over HTTP: what comes, resumed by id, levels, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import uvloop
from aiohttp import HttpVersion11

from audiofork.asterisk.channels import Target
from audiofork.config import Address, HttpConfig
from audiofork.doors.http import connections, events_api
from audiofork.doors.http.answers import EventsQuery
from audiofork.doors.http.events_api import Viewer
from audiofork.doors.http.sending import HEADERS
from audiofork.forks.events import MessageReceived, Muted, Refused, Started, Stopped
from audiofork.forks.options import parse_options
from audiofork.forks.requests import StartFork
from audiofork.link.messages import EndReason, ForkStats
from tests.doors.http.stage import (
    CONTROLLER,
    FORK_ID,
    INFO,
    OTHER_ID,
    OTHER_INFO,
    RUN,
    TOKENS,
    VIEW,
    VIEWER,
    Client,
    FakeLevels,
    Others,
    Stage,
    request,
    staged,
    write_tokens,
)
from tests.relay.peers import until

EVENTS = "/api/v1/events"


class Sent(NamedTuple):
    """An event as it was sent; `data` is None for a comment."""

    id: str
    name: str
    data: Any


class Reader:
    """Reads the events from a connection."""

    def __init__(self, client: Client, *, chunked: bool = True) -> None:
        self._client = client
        self._chunked = chunked
        self._rest = b""

    async def next(self) -> Sent:
        """Return the next event or comment."""
        async with asyncio.timeout(5):
            while b"\n\n" not in self._rest:
                self._rest += await self._more()
        text, _, self._rest = self._rest.partition(b"\n\n")
        lines = dict(
            re.split(r":\s?", line, maxsplit=1) for line in text.decode("ascii").split("\n")
        )
        data = json.loads(lines["data"]) if "data" in lines else None
        return Sent(lines.get("id", ""), lines.get("event", ""), data)

    async def _more(self) -> bytes:
        reader = self._client.reader
        if not self._chunked:
            return await reader.readline()
        size = int(await reader.readuntil(b"\r\n"), 16)
        if size == 0:
            raise EOFError
        return (await reader.readexactly(size + 2))[:-2]

    async def event(self) -> Sent:
        """Return the next event; pass over comments."""
        while (sent := await self.next()).data is None:
            pass
        return sent


@contextlib.asynccontextmanager
async def viewed(
    stage: Stage, query: str = "", token: str = VIEWER, **headers: str
) -> AsyncIterator[Reader]:
    """Yield a reader whose connection has caught up."""
    async with stage.client() as client:
        before = set(stage.door._events._viewers)
        client.writer.write(request("GET", EVENTS + query, token, **headers))
        head = await client.head()
        assert head.status == 200, head
        reader = Reader(client, chunked=headers.get("version") != "1.0")
        viewers = stage.door._events._viewers
        await until(lambda: any(one.is_live for one in viewers if one not in before))
        yield reader


async def test_events_come_with_ids_names_and_fields(stage: Stage) -> None:
    async with viewed(stage) as reader:
        stage.others.stream.on_event(Started(INFO, "chat"))
        stage.others.stream.on_event(Muted(INFO, True, False))
        sent = await reader.event()
        assert (sent.id, sent.name) == (f"{RUN}-1", "fork.started")
        assert sent.data == {
            "at": 1700000000.25,
            "fork": {
                **{"id": FORK_ID, "channel": "PJSIP/1-1", "uniqueid": "1.1"},
                **{"url": "wss://speech.example.org:8443/live?..."},
                **{"host": "speech.example.org:8443"},
            },
            **{"sample_rate": 0, "subprotocol": "chat"},
        }
        sent = await reader.event()
        assert (sent.id, sent.name, sent.data["in"]) == (f"{RUN}-2", "fork.muted", True)


async def test_stream_has_the_headers_of_every_answer(stage: Stage) -> None:
    async with stage.client() as client:
        client.writer.write(request("GET", EVENTS, VIEWER))
        head = await client.head()
        assert head.headers["content-type"] == "text/event-stream"
        for name, value in HEADERS.items():
            assert head.headers[name.lower()] == value


async def test_text_of_a_server_cannot_end_its_event(stage: Stage) -> None:
    text = "a\n\nevent: fork.ended\ndata: {}\r\n\r\u2028</script>\x00\ud800"
    async with viewed(stage) as reader:
        stage.others.stream.on_event(MessageReceived(INFO, text))
        sent = await reader.event()
        assert (sent.name, sent.data["text"]) == ("fork.message", text)


async def test_reader_who_was_away_gets_what_it_has_missed(stage: Stage) -> None:
    stream = stage.others.stream
    for _ in range(130):
        stream.on_event(Started(INFO))
    for headers, query in (
        ({"Last_Event_ID": f"{RUN}-5"}, ""),
        ({}, f"?last_event_id={RUN}-5"),
    ):
        async with viewed(stage, query, **headers) as reader:
            stream.on_event(Stopped(INFO, EndReason.STOPPED, "", 1.0, ForkStats()))
            last = stream.last
            ids = [(await reader.event()).id for _ in range(last - 5)]
            assert ids == [f"{RUN}-{number}" for number in range(6, last + 1)]


async def test_reader_without_an_id_gets_what_happens_from_now_on(stage: Stage) -> None:
    stage.others.stream.on_event(Started(INFO))
    async with viewed(stage) as reader:
        stage.others.stream.on_event(Muted(INFO, True, True))
        assert (await reader.event()).id == f"{RUN}-2"


@pytest.mark.parametrize("last_id", ["other-run-1", f"{RUN}-99", "nonsense"])
async def test_reader_whose_id_is_not_known_is_told_to_begin_anew(
    stage: Stage, last_id: str
) -> None:
    stage.others.stream.on_event(Started(INFO))
    async with viewed(stage, Last_Event_ID=last_id) as reader:
        assert await reader.event() == Sent(f"{RUN}-1", "reset", {})
        stage.others.stream.on_event(Started(INFO))
        assert (await reader.event()).id == f"{RUN}-2"


async def test_events_are_filtered_by_fork_and_name(stage: Stage) -> None:
    stream = stage.others.stream
    async with (
        viewed(stage, f"?fork={OTHER_ID}") as of_fork,
        viewed(stage, "?types=fork.muted,fork.refused") as of_types,
    ):
        refused = StartFork(Target("PJSIP/9", ""), "ws://h/", parse_options(""))
        stream.on_event(Started(INFO))
        stream.on_event(Started(OTHER_INFO))
        stream.on_event(Muted(INFO, True, True))
        stream.on_event(Refused(refused, "no"))
        stream.on_event(Started(OTHER_INFO))
        assert [(await of_fork.event()).id[-1] for _ in range(2)] == ["2", "5"]
        assert [(await of_types.event()).id[-1] for _ in range(2)] == ["3", "4"]


async def test_name_of_no_event_is_refused(stage: Stage) -> None:
    answer = await stage.get(f"{EVENTS}?types=fork.start")
    assert answer.status == 422
    assert answer.json["detail"] == "types: no such event; did you mean fork.started?"


async def test_client_of_http_1_0_gets_no_chunks(stage: Stage) -> None:
    async with viewed(stage, version="1.0") as reader:
        stage.others.stream.on_event(Started(INFO))
        assert (await reader.event()).name == "fork.started"


async def test_comment_comes_while_nothing_happens(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "COMMENT_S", 0.02)
    async with viewed(stage) as reader:
        assert [(await reader.next()).data for _ in range(4)] == [None] * 4


# --- Levels --------------------------------------------------------------------------------------


async def test_levels_and_statistics_come_to_those_who_want_them(stage: Stage) -> None:
    others = stage.others
    others.views = [VIEW, replace(VIEW, id=OTHER_ID, frames_in=7, frames_sent=7, frames_dropped=0)]
    async with viewed(stage, "?levels=1") as all_forks:
        assert others.on_levels is not None
        others.on_levels({FORK_ID: FakeLevels(5, 4, -1, -1), OTHER_ID: FakeLevels(0, 0, 9, 8)})
        found = [await all_forks.event() for _ in range(2)]
        events = {sent.name: sent.data for sent in found}
        assert {sent.id for sent in found} == {""}
        assert events["levels"] == {"levels": {FORK_ID: [5, 4, -1, -1], OTHER_ID: [0, 0, 9, 8]}}
        assert events["stats"]["forks"][FORK_ID] == {
            **{"frames_in": 30, "frames_sent": 20, "frames_dropped": 1, "backlog": 9},
            **{"rtt_ms": 0.0, "state": "streaming"},
        }
        assert set(events["stats"]["forks"]) == {FORK_ID, OTHER_ID}


async def test_levels_are_those_of_the_fork_that_is_looked_at(stage: Stage) -> None:
    async with viewed(stage, f"?levels=1&fork={OTHER_ID}") as reader:
        assert stage.others.on_levels is not None
        stage.others.on_levels(
            {FORK_ID: FakeLevels(5, 4, -1, -1), OTHER_ID: FakeLevels(0, 0, 9, 8)}
        )
        events = {sent.name: sent.data for sent in [await reader.event() for _ in range(2)]}
        assert events["levels"] == {"levels": {OTHER_ID: [0, 0, 9, 8]}}
        assert events["stats"] == {"forks": {}}


async def test_nothing_is_asked_while_nobody_looks(stage: Stage) -> None:
    others, meters = stage.others, stage.door._events._meters
    async with viewed(stage) as reader:
        others.stream.on_event(Started(INFO))
        await reader.event()
        assert (others.on_levels, others.views_asked) == (None, 0)
        async with viewed(stage, "?levels=1"), viewed(stage, "?levels=yes"):
            await until(lambda: others.on_levels is not None)
            await until(lambda: others.views_asked == 1)
        await until(lambda: others.on_levels is None)
        assert meters._telling is None
    await until(lambda: len(stage.door._events) == 0)
    assert others.stream._readers == {}


async def test_statistics_come_again_and_outlive_a_relay_that_is_busy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "STATS_S", 0.01)
    views = stage.door._events._meters._views
    failed = 0

    async def fail_once() -> list[Any]:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise TimeoutError
        return [VIEW]

    views._ask = fail_once
    async with viewed(stage, "?levels=1") as reader:
        assert [(await reader.event()).name for _ in range(3)] == ["stats"] * 3


# --- How many, how slow --------------------------------------------------------------------------


async def test_viewers_are_counted_and_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "MAX_VIEWERS", 2)
    async with viewed(stage), viewed(stage):
        assert (await stage.get("/api/v1/status")).json["viewers"] == 2
        answer = await stage.get(EVENTS)
        assert (answer.status, answer.json["type"]) == (503, "/problems/busy")
    await until(lambda: len(stage.door._events) == 0)


@contextlib.asynccontextmanager
async def deaf_viewer(
    stage: Stage, query: str = "", **headers: str
) -> AsyncIterator[tuple[socket.socket, Viewer]]:
    """Yield the socket of a client that reads nothing, and how the door sees it."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(peer, ("127.0.0.1", stage.port))
        await loop.sock_sendall(peer, request("GET", EVENTS + query, VIEWER, **headers))
        await until(lambda: len(stage.door._events._viewers) == 1)
        (viewer,) = stage.door._events._viewers
        yield peer, viewer
    finally:
        peer.close()


def waiting(viewer: Viewer) -> int:
    """Return how many bytes wait for a viewer in the door."""
    assert viewer._transport is not None
    return viewer._transport.get_write_buffer_size()


def is_dropped(viewer: Viewer) -> bool:
    assert viewer._transport is not None
    return viewer._transport.is_closing()


async def test_viewer_that_reads_nothing_costs_little_and_is_dropped_and_reported(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with deaf_viewer(stage) as (_, viewer):
        await until(lambda: viewer.is_live)
        assert viewer._transport is not None
        own = viewer._transport.get_extra_info("socket")
        kernel = own.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        most = 0
        for _ in range(200):
            stage.others.stream.on_event(MessageReceived(INFO, "x" * 7000))
            most = max(most, waiting(viewer))
            await asyncio.sleep(0)
            if is_dropped(viewer):
                break
        assert is_dropped(viewer)
        assert most > 64 * 1024  # it had its chance
        assert most + kernel <= 256 * 1024
        await until(lambda: len(stage.door._events) == 0)
        assert "HTTP viewers dropped: 1 more, last: anna does not keep up" in caplog.text


async def test_viewer_that_stalls_is_dropped_even_if_little_happens(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.1)
    async with deaf_viewer(stage) as (_, viewer):
        await until(lambda: viewer.is_live)
        while waiting(viewer) < 70_000:
            stage.others.stream.on_event(MessageReceived(INFO, "x" * 7000))
        await until(lambda: is_dropped(viewer))
        await until(lambda: "HTTP clients dropped" in caplog.text)
        assert "127.0.0.1: it reads nothing for 0.1 s" in caplog.text


async def test_levels_that_a_slow_viewer_cannot_take_are_left_out(stage: Stage) -> None:
    levels = {f"fork-{number}": FakeLevels(1, 2, 3, 4) for number in range(1000)}
    async with deaf_viewer(stage, "?levels=1") as (_, viewer):
        await until(lambda: stage.others.on_levels is not None)
        assert stage.others.on_levels is not None
        for _ in range(100):
            stage.others.on_levels(levels)
            await asyncio.sleep(0)
        assert not is_dropped(viewer)
        assert waiting(viewer) < 128 * 1024


async def test_viewer_that_catches_up_slowly_gets_everything_and_costs_little(
    stage: Stage,
) -> None:
    stream = stage.others.stream
    for _ in range(250):
        stream.on_event(MessageReceived(INFO, "x" * 7900))
    async with deaf_viewer(stage, Last_Event_ID=f"{RUN}-0") as (peer, viewer):
        await asyncio.sleep(0.05)
        assert not viewer.is_live  # it waits for the client
        assert waiting(viewer) < 128 * 1024
        stream.on_event(Started(INFO))
        reader, writer = await asyncio.open_connection(sock=peer)
        client = Client(reader, writer)
        await client.head()
        events = Reader(client)
        ids = [(await events.event()).id for _ in range(251)]
        assert ids == [f"{RUN}-{number}" for number in range(1, 252)]
        writer.close()


async def test_viewer_whose_token_is_gone_is_dropped(stage: Stage, tmp_path: Path) -> None:
    async with viewed(stage) as gone, viewed(stage, token=CONTROLLER) as stays:
        write_tokens(tmp_path, TOKENS.replace(VIEWER, "n" * 20))
        config = HttpConfig(listen=Address("h", 1), tokens_file=str(tmp_path / "tokens"))
        stage.door.reading_tokens(config)()
        with pytest.raises(EOFError):
            await gone.event()
        stage.others.stream.on_event(Started(INFO))
        assert (await stays.event()).name == "fork.started"


async def test_viewer_who_signs_out_is_dropped_at_once(stage: Stage) -> None:
    answer = await stage.ask("POST", "/api/v1/session", "", {"token": VIEWER})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    host = f"localhost:{stage.port}"
    own = {"host": host, "Origin": f"http://{host}", "Cookie": cookie}
    async with viewed(stage, token="", Cookie=cookie) as reader, viewed(stage) as stays:
        assert (await stage.ask("DELETE", "/api/v1/session", "", **own)).status == 204
        stage.others.stream.on_event(Started(INFO))
        async with asyncio.timeout(5):
            with pytest.raises(EOFError):
                await reader.event()
        assert (await stays.event()).name == "fork.started"


async def test_viewer_whose_end_waits_gets_no_event_any_more() -> None:
    transport = mock.Mock(asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    call = mock.Mock(query=EventsQuery())
    call.request.transport = transport
    call.request.version = HttpVersion11
    viewer = events_api.Viewer(call)
    viewer.send(b"2\r\nab\r\n")
    viewer.over.set()
    viewer.send(b"2\r\ncd\r\n")
    transport.write.assert_called_once_with(b"2\r\nab\r\n")


async def test_viewer_whose_session_ends_while_it_catches_up_gets_no_more(stage: Stage) -> None:
    for _ in range(events_api.REPLAY_AT_ONCE + 5):
        stage.others.stream.on_event(Started(INFO))
    viewer = mock.Mock(wants=mock.Mock(return_value=True))
    viewer.over.is_set.side_effect = [False, True]
    response = mock.AsyncMock()
    await stage.door._events._catch_up(viewer, response, stage.others.stream.id_of(0))
    sent = b"".join(one.args[0] for one in response.write.await_args_list)
    assert sent.count(b"event: fork.started") == events_api.REPLAY_AT_ONCE


def test_events_are_sent_on_uvloop_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with staged(tmp_path, Others()) as stage, viewed(stage, "?levels=1") as reader:
            stage.others.stream.on_event(Started(INFO))
            names = {(await reader.event()).name for _ in range(2)}
            assert names == {"fork.started", "stats"}

    uvloop.run(run())
