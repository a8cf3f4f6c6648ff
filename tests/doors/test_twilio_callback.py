"""What a real web server is told of streams in Twilio's format, and what becomes of its faults."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from audiofork.asterisk.channels import Target
from audiofork.config import Config, TwilioConfig, WebSocketConfig
from audiofork.doors import form_posts, twilio_callback
from audiofork.doors.twilio_callback import LANES, MAX_WAITING, TwilioCallback
from audiofork.forks.events import Ended, ForkInfo, Requested, Started
from audiofork.forks.options import parse_options
from audiofork.forks.requests import StartFork
from audiofork.link.messages import Direction, EndReason, ForkSpec, ForkStats, Format, Metadata
from audiofork.relay.formats.choice import format_of
from tests.relay.peers import answering, until, unused_port

FORK = ForkInfo("3f2a91c0-d1e8-4c52-9a7b-0123456789ab", "PJSIP/100-0000002a", "17.1", "ws://h/")
CALL = {"uniqueid": "17.1", "system_name": "pbx"}
STREAM = "MZ3f2a91c0d1e84c529a7b0123456789ab"


class WebServer:
    """A web server that keeps the forms it gets.

    Attributes:
        forms: What it got, in order.
        statuses: Of its next answers; then 200.
        may_answer: Whether it answers now.
        url: Where it is asked.
    """

    def __init__(self) -> None:
        self.forms: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.url = ""
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        await self.may_answer.wait()
        self.asked.append(request.path_qs)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.forms.append(dict(await request.post()))
        headers = {"Location": "/other"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)


@asynccontextmanager
async def served(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[WebServer]:
    one = WebServer()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", one.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    (socket,) = site._server.sockets  # type: ignore[union-attr]
    scheme, host = ("http", "127.0.0.1") if tls is None else ("https", "localhost")
    one.url = f"{scheme}://{host}:{socket.getsockname()[1]}/status?key=hunter2"
    try:
        yield one
    finally:
        one.may_answer.set()
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    async with served() as one:
        yield one


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twilio_callback, "FIRST_WAIT_S", 0.001)


def config(url: str, ca_file: str = "") -> Config:
    websocket = WebSocketConfig(ca_list_file=ca_file)
    return Config(twilio=TwilioConfig(status_callback=url), websocket=websocket)


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of an authority that no server here has; it is read faster than the system's."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
async def door(other_ca: str) -> AsyncIterator[Callable[..., TwilioCallback]]:
    """Make doors, which are closed at the end."""
    doors: list[TwilioCallback] = []

    def make(url: str, ca_file: str = other_ca) -> TwilioCallback:
        doors.append(TwilioCallback(config(url, ca_file)))
        return doors[-1]

    yield make
    for one in doors:
        await one.close()


Make = Callable[..., TwilioCallback]


def requested(fork: ForkInfo = FORK, options: str = "x(twilio)", **more: Any) -> Requested:
    start = StartFork(Target(fork.channel), fork.url, parse_options(options), **more)
    return Requested(fork, start, CALL)


def ended(
    reason: EndReason = EndReason.HANGUP, detail: str = "", *, has_failed: bool = False
) -> Ended:
    return Ended(FORK, reason, ForkStats(), has_failed, detail)


def events_of(server: WebServer) -> list[str]:
    return [form["StreamEvent"] for form in server.forms]


async def test_start_and_end_of_a_stream_are_posted_with_the_sids_of_its_messages(
    server: WebServer, door: Make
) -> None:
    one = door(server.url)
    for event in requested(), Started(FORK), ended():
        one.on_event(event)
    await one.finish()
    assert one.delivered == 2
    assert server.asked == ["/status?key=hunter2"] * 2
    started, stopped = server.forms
    assert started.keys() == {
        *("AccountSid", "CallSid", "StreamSid", "StreamName", "StreamEvent", "Timestamp")
    }
    assert (started["StreamEvent"], stopped["StreamEvent"]) == ("stream-started", "stream-stopped")
    said = datetime.fromisoformat(started["Timestamp"])
    assert abs((datetime.now(UTC) - said).total_seconds()) < 3600
    spec = ForkSpec(
        FORK.id, "", "", Direction.IN, format=Format.TWILIO, metadata=Metadata(call=CALL)
    )
    _, start = format_of(spec, 20).opening(0, 0)
    assert isinstance(start, str)
    for form in started, stopped:
        assert all(f'"{form[name]}"' in start for name in ("AccountSid", "CallSid", "StreamSid"))
        assert form["StreamName"] == form["StreamSid"] == STREAM


async def test_error_is_posted_with_its_reason_before_the_end(
    server: WebServer, door: Make
) -> None:
    one = door(server.url)
    for event in requested(), Started(FORK), ended(EndReason.SINK_GONE, "why\r\nnot"):
        one.on_event(event)
    await one.finish()
    assert events_of(server) == ["stream-started", "stream-error", "stream-stopped"]
    assert server.forms[1]["StreamError"] == "sink-gone: why??not"


async def test_stream_that_never_started_has_an_error_and_no_end(
    server: WebServer, door: Make
) -> None:
    one = door(server.url)
    one.on_event(requested())
    one.on_event(ended(EndReason.SINK_REFUSED, has_failed=True))
    one.on_event(requested())
    one.on_event(ended(EndReason.HANGUP))
    await one.finish()
    assert events_of(server) == ["stream-error"]
    assert server.forms[0]["StreamError"] == "sink-refused"


@pytest.mark.parametrize(("options", "url"), [("x(json)", True), ("", True), ("x(twilio)", False)])
async def test_other_formats_and_no_url_cost_nothing(
    server: WebServer, door: Make, options: str, url: bool
) -> None:
    one = door(server.url if url else "")
    for event in requested(options=options), Started(FORK), ended():
        one.on_event(event)
    await one.finish()
    assert not server.asked
    assert not one._tasks
    assert not one._streams


async def test_callback_of_a_profile_goes_first_and_its_name_is_the_streams(
    server: WebServer, door: Make
) -> None:
    one = door(f"http://127.0.0.1:{unused_port()}/")
    one.on_event(requested(profile="bot", status_callback=server.url))
    one.on_event(Started(FORK))
    await one.finish()
    assert [form["StreamName"] for form in server.forms] == ["bot"]


async def test_reload_counts_for_streams_that_begin_later(server: WebServer, door: Make) -> None:
    one = door(server.url)
    one.on_event(requested())
    one.configure(config(""))
    later = replace(FORK, id="4f2a91c0-d1e8-4c52-9a7b-0123456789ab")
    for event in requested(later), Started(later), Started(FORK):
        one.on_event(event)
    await one.finish()
    assert [form["StreamSid"] for form in server.forms] == [STREAM]
    assert not one._streams.keys() - {FORK.id}


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_post_that_is_refused_for_the_moment_is_tried_again(
    server: WebServer, door: Make, status: int
) -> None:
    server.statuses = [status, status]
    one = door(server.url)
    for event in requested(), Started(FORK), ended():
        one.on_event(event)
    await one.finish()
    assert events_of(server) == ["stream-started", "stream-stopped"]
    assert (one.delivered, one.lost.total) == (2, 0)


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (302, 1), (500, 3)])
async def test_post_that_is_refused_is_counted_and_told_without_the_query(
    server: WebServer,
    door: Make,
    caplog: pytest.LogCaptureFixture,
    status: int,
    attempts: int,
) -> None:
    server.statuses = [status] * attempts
    one = door(server.url)
    one.on_event(requested())
    one.on_event(Started(FORK))
    await one.finish()
    assert (len(server.asked), one.delivered, one.lost.total) == (attempts, 0, 1)
    url = server.url.partition("?")[0]
    assert caplog.messages == [
        f"status callbacks not delivered: 1 more, last: stream-started of {STREAM} to {url}?...: "
        f"the server answered HTTP {status}"
    ]
    one.on_event(ended())
    await one.finish()
    assert events_of(server) == ["stream-stopped"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"220 mail.example ESMTP\r\n\r\n", "the server sent something that is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "the server sent something that is no"),
        (b"\n", "the other side closed the connection without an answer"),
    ],
)
async def test_server_that_speaks_no_http_is_told(
    door: Make, caplog: pytest.LogCaptureFixture, answer: bytes, why: str
) -> None:
    async with answering(answer) as port:
        one = door(f"http://127.0.0.1:{port}/?hunter2")
        one.on_event(requested())
        one.on_event(Started(FORK))
        await one.finish()
    assert one.lost.total == 1
    assert why in caplog.text
    assert "hunter2" not in caplog.text


async def test_server_that_is_not_there_is_told(
    door: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one = door(f"http://127.0.0.1:{unused_port()}/?hunter2")
    one.on_event(requested())
    one.on_event(Started(FORK))
    await one.finish()
    assert one.lost.total == 1
    assert "Connection refused (no program listens there)" in caplog.text
    assert "hunter2" not in caplog.text


async def test_server_that_does_not_answer_is_given_up_in_time(
    server: WebServer, door: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(form_posts, "TIMEOUT_S", 0.02)
    server.may_answer.clear()
    one = door(server.url)
    one.on_event(requested())
    one.on_event(Started(FORK))
    await one.finish()
    assert one.lost.total == 1
    assert "no answer within 0.02 s" in caplog.text


async def test_posts_beyond_the_limit_are_counted_and_nobody_waits(
    server: WebServer, door: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.may_answer.clear()
    one = door(server.url)
    for _ in range(MAX_WAITING + 7):
        one.on_event(requested())
        one.on_event(Started(FORK))
    assert one.lost.total == 7
    assert f"{MAX_WAITING} others wait" in caplog.text
    await one.close()
    assert one.lost.total >= MAX_WAITING + 6, "what waited at the end is counted, too"


async def test_post_that_is_under_way_at_the_end_is_counted_and_no_loss_stays_untold(
    server: WebServer, door: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.may_answer.clear()
    one = door(server.url)
    for _ in range(3):
        one.on_event(requested())
        one.on_event(Started(FORK))
    await until(lambda: sum(lane.qsize() for lane in one._lanes.values()) == 2)
    await one.close()
    assert one.lost.total == 3
    told = re.findall(r"not delivered: (\d+) more", caplog.text)
    assert sum(map(int, told)) == 3


async def test_server_that_hangs_does_not_hold_up_the_posts_to_another(
    server: WebServer, door: Make
) -> None:
    async with served() as hanging:
        hanging.may_answer.clear()
        one = door(server.url)
        for number in range(2 * LANES):  # each lane, and each connection
            fork = replace(FORK, id=f"{FORK.id[:-4]}{number:04x}")
            one.on_event(requested(fork, status_callback=hanging.url))
            one.on_event(Started(fork))
        for number in range(LANES):
            fork = replace(FORK, id=f"{FORK.id[:-5]}f{number:04x}")
            one.on_event(requested(fork))
            one.on_event(Started(fork))
        await until(lambda: len(server.forms) == LANES)
        assert not hanging.forms
        await one.close()


async def test_slow_posts_of_one_stream_do_not_hold_up_those_of_another(
    server: WebServer, door: Make
) -> None:
    one = door(server.url)
    server.may_answer.clear()
    forks = [replace(FORK, id=f"{FORK.id[:-1]}{number}") for number in range(LANES)]
    for fork in forks:
        one.on_event(requested(fork))
        one.on_event(Started(fork))
    await until(lambda: all(lane.empty() for lane in one._lanes.values()))  # each is under way
    server.may_answer.set()
    await one.finish()
    assert one.delivered == LANES


async def test_certificate_is_verified_against_the_configured_authorities(
    door: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)
    async with served(tls) as server:
        trusting, other = door(server.url, str(tmp_path / "ca.pem")), door(server.url)
        for one in trusting, other:
            one.on_event(requested())
            one.on_event(Started(FORK))
            await one.finish()
    assert (trusting.delivered, other.delivered) == (1, 0)
    assert "an authority that is not trusted here" in caplog.text


async def test_authorities_that_cannot_be_used_are_told_and_read_again_for_the_next_post(
    server: WebServer, door: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    one = door(server.url, str(path))
    one.on_event(requested())
    one.on_event(Started(FORK))
    await one.finish()
    assert f"[websocket] ca_list_file: {path}: No such file" in caplog.text
    trustme.CA().cert_pem.write_to_path(str(path))
    one.on_event(ended())
    await one.finish()
    assert events_of(server) == ["stream-stopped"]


async def test_proxies_of_the_environment_are_not_used(
    server: WebServer, door: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    one = door(server.url)
    one.on_event(requested())
    one.on_event(Started(FORK))
    await one.finish()
    assert one.delivered == 1


async def test_bug_of_ours_is_logged_and_the_next_post_is_delivered(
    server: WebServer, door: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = door(server.url)
    with monkeypatch.context() as broken:
        broken.setattr(twilio_callback, "Backoff", None)
        one.on_event(requested())
        one.on_event(Started(FORK))
        await one.finish()
    assert one.lost.total == 1
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    one.on_event(ended())
    await one.finish()
    assert events_of(server) == ["stream-stopped"]
