import asyncio
import base64
import contextlib
import gc
import itertools
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import WSCloseCode, web

from audiofork.asterisk import ari as ari_module
from audiofork.asterisk import reconnecting
from audiofork.asterisk.ari import Ari, segment
from audiofork.backoff import Backoff
from audiofork.config import AriConfig
from audiofork.errors import AriError, AriLoginRefused, AriRefused, AriUnavailable

PASSWORD = "hunter2"
LOGIN = base64.b64encode(f"audiofork:{PASSWORD}".encode()).decode()
FILTER = "/ari/applications/audiofork/eventFilter"
NESTED = "[" * 100_000

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeAri:
    """Answers as ARI does, or as it is told to.

    Attributes:
        asked: Method and target of each request, as they were on the wire.
        bodies: What came with each.
        answers: What to do for a path, instead of what ARI would do.
        links: The event connections that were opened.
        answers_pings: Whether new links do.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[str] = []
        self.headers: list[str] = []
        self.peers: set[Any] = set()
        self.answers: dict[str, Answer] = {}
        self.links: list[web.WebSocketResponse] = []
        self.answers_pings = True
        self.port = 0

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        for link in self.links:
            await self.drop(link)
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.asked.append(f"{request.method} {request.raw_path}")
        self.headers.append(request.headers["Authorization"])
        self.bodies.append(await request.text())
        answer = self.answers.get(request.path)
        if answer is not None:
            return await answer(request)
        if request.path == "/ari/events":
            return await self._serve_events(request)
        return web.json_response({"asked": request.path})

    async def _serve_events(self, request: web.Request) -> web.StreamResponse:
        link = web.WebSocketResponse(autoping=self.answers_pings)
        await link.prepare(request)
        self.links.append(link)
        async for _ in link:
            pass
        return link

    async def send(self, *events: object) -> None:
        for event in events:
            await self.links[-1].send_str(json.dumps(event))

    async def drop(self, link: web.WebSocketResponse) -> None:
        """Close a link without a word."""
        request = link._req
        if request is not None and request.transport is not None:
            request.transport.abort()

    def count(self, asked: str) -> int:
        return self.asked.count(asked)

    def config(self, **settings: Any) -> AriConfig:
        url = f"http://127.0.0.1:{self.port}/ari"
        return AriConfig(**{"url": url, "password": PASSWORD, **settings})


def starts(channel_id: str) -> dict[str, object]:
    return {"type": "StasisStart", "args": [], "channel": {"id": channel_id, "name": "Snoop/1"}}


def answer(status: int, content: str, kind: str = "application/json", **more: Any) -> Answer:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=content, content_type=kind, **more)

    return respond


async def silence(request: web.Request) -> web.StreamResponse:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(ari: Ari) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(ari.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def password_in_no_log_line(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look through all that is logged, aiohttp's lines and the fake server's included."""
    caplog.set_level(logging.DEBUG)
    yield
    phases = (caplog.get_records(phase) for phase in ("setup", "call", "teardown"))
    for record in itertools.chain(*phases):
        line = logging.Formatter().format(record)  # with its traceback
        assert PASSWORD not in line
        assert LOGIN not in line


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 0.01)


@pytest.fixture
async def server() -> AsyncIterator[FakeAri]:
    fake = FakeAri()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def ari(server: FakeAri) -> AsyncIterator[Ari]:
    """One that nobody runs."""
    async with Ari(server.config()) as one:
        yield one


@pytest.fixture
async def link(ari: Ari) -> AsyncIterator[Ari]:
    """One that runs and is ready."""
    async with running(ari):
        await wait_until(lambda: ari.ready)
        yield ari


async def failure(request: Awaitable[Any], kind: type[AriError]) -> Any:
    """Return the exception a request ends with, after a look for the password in it."""
    with pytest.raises(AriError) as caught:
        await request
    assert type(caught.value) is kind
    shown = "".join(traceback.format_exception(caught.value))
    shown += repr(caught.value) + repr(caught.value.__cause__)
    assert PASSWORD not in shown
    assert LOGIN not in shown
    return caught.value


# --- Requests ------------------------------------------------------------------------------------


async def test_requests_need_no_link_and_return_the_decoded_answer(
    server: FakeAri, ari: Ari
) -> None:
    assert await ari.get("/asterisk/ping") == {"asked": "/ari/asterisk/ping"}
    assert await ari.post("/channels/1.1/ring") == {"asked": "/ari/channels/1.1/ring"}
    assert await ari.put("/a", {"b": ["é"]}) == {"asked": "/ari/a"}
    assert await ari.delete("/channels/1.1") == {"asked": "/ari/channels/1.1"}
    assert server.asked == [
        "GET /ari/asterisk/ping",
        "POST /ari/channels/1.1/ring",
        "PUT /ari/a",
        "DELETE /ari/channels/1.1",
    ]
    assert [json.loads(body) if body else None for body in server.bodies] == [
        *(None, None, {"b": ["é"]}, None)
    ]


async def test_round_trip_shorter_than_a_tick_of_the_loops_clock_is_known(
    link: Ari, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    at = loop.time()
    monkeypatch.setattr(loop, "time", lambda: at)  # as uvloop's, which counts milliseconds
    await link.get("/asterisk/ping")
    assert link.rtt_s > 0


async def test_request_with_odd_texts_quotes_each_once(server: FakeAri, ari: Ari) -> None:
    await ari.post(
        f"/channels/{segment('a/b?c%41 é#')}/variable", variable="A", value="b+c d&e=%41\r\né"
    )
    assert server.asked == [
        "POST /ari/channels/a%2Fb%3Fc%2541%20%C3%A9%23/variable"
        "?variable=A&value=b%2Bc%20d%26e%3D%2541%0D%0A%C3%A9"
    ]


async def test_request_for_a_segment_of_dots_keeps_its_path(server: FakeAri, ari: Ari) -> None:
    await ari.post(f"/channels/{segment('..')}/ring")
    assert server.asked == ["POST /ari/channels/../ring"]


async def test_query_may_have_the_names_of_parameters(server: FakeAri, ari: Ari) -> None:
    await ari.get("/a", path="b", method="c", query="d", body="e")
    assert server.asked == ["GET /ari/a?path=b&method=c&query=d&body=e"]


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/é", "/\0"])
async def test_path_that_is_not_quoted_is_not_sent(server: FakeAri, ari: Ari, path: str) -> None:
    with pytest.raises(ValueError, match="not quoted"):
        await ari.get(path)
    assert server.asked == []


async def test_credentials_go_into_the_header_of_requests_and_link_alone(
    server: FakeAri, link: Ari
) -> None:
    await link.get("/asterisk/ping")
    assert server.headers == [f"Basic {LOGIN}"] * 3
    assert server.asked == [
        "GET /ari/events?app=audiofork",
        f"PUT {FILTER}",
        "GET /ari/asterisk/ping",
    ]


async def test_empty_answer_is_none(server: FakeAri, ari: Ari) -> None:
    server.answers["/ari/a"] = answer(204, "")
    assert await ari.post("/a") is None


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, '{"message": "Authentication required"}', "Authentication required"),
        (403, '{"message": "Write access denied"}', "Write access denied"),
        (403, "<html>", "Forbidden"),
    ],
)
async def test_login_refused_says_what_to_compare(
    server: FakeAri, ari: Ari, status: int, content: str, message: str
) -> None:
    server.answers["/ari/a"] = answer(status, content)
    assert str(await failure(ari.get("/a"), AriLoginRefused)) == (
        f"Asterisk's REST interface refused audiofork: {message}; check [ari] username and "
        "password against ari.conf, where read_only has to be no"
    )


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        pytest.param(
            *(404, '{"message": "Provided channel was not found"}'),
            "Provided channel was not found",
            id="ari's own",
        ),
        pytest.param(500, "<html>Oh!</html>", "Internal Server Error", id="html"),
        pytest.param(409, "[]", "Conflict", id="list"),
        pytest.param(409, '{"error": 1}', "Conflict", id="no-message"),
        pytest.param(503, "", "Service Unavailable", id="empty"),
        pytest.param(500, NESTED, "Internal Server Error", id="nested"),
        pytest.param(500, '{"message": "a\\r\\nb\\u001b[2J"}', "a  b [2J", id="two-lines"),
        pytest.param(500, json.dumps({"message": "é" * 9999}), "é" * 200, id="long"),
        pytest.param(300, "", "Multiple Choices", id="no-error-and-no-success"),
    ],
)
async def test_error_raises_with_status_and_message_in_one_line(
    server: FakeAri, ari: Ari, status: int, content: str, message: str
) -> None:
    server.answers["/ari/a"] = answer(status, content)
    exc = await failure(ari.get("/a"), AriRefused)
    assert (exc.status, exc.message, str(exc)) == (status, message, f"{status}: {message}")


@pytest.mark.parametrize("content", ["<html>", NESTED, '{"a":'], ids=["html", "nested", "cut"])
async def test_success_that_is_no_json_is_refused(server: FakeAri, ari: Ari, content: str) -> None:
    server.answers["/ari/a"] = answer(200, content)
    exc = await failure(ari.get("/a"), AriRefused)
    assert str(exc) == "200: an answer that is not JSON; check [ari] url"


async def test_answer_up_to_the_limit_is_read_and_a_bigger_one_refused(
    server: FakeAri, ari: Ari
) -> None:
    server.answers["/ari/a"] = answer(200, json.dumps("a" * (262_144 - 2)))
    assert len(await ari.get("/a")) == 262_142
    server.answers["/ari/a"] = answer(200, json.dumps("a" * (262_144 - 1)))
    exc = await failure(ari.get("/a"), AriRefused)
    assert str(exc) == "200: an answer of more than 262144 bytes"
    del server.answers["/ari/a"]
    assert await ari.get("/a")


async def test_redirect_is_not_followed(server: FakeAri, ari: Ari) -> None:
    server.answers["/ari/a"] = answer(302, "", headers={"Location": "/ari/b"})
    for request in (ari.get, ari.post):
        exc = await failure(request("/a"), AriRefused)
        assert str(exc) == "302: a redirect; check [ari] url"
    assert server.asked == ["GET /ari/a", "POST /ari/a"]


async def begin_and_stop(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"a":')
    return await silence(request)


@pytest.mark.parametrize("respond", [silence, begin_and_stop])
async def test_no_answer_in_time_is_unavailable(
    server: FakeAri, ari: Ari, monkeypatch: pytest.MonkeyPatch, respond: Answer
) -> None:
    monkeypatch.setattr(ari_module, "REQUEST_TIMEOUT_S", 0.1)
    server.answers["/ari/a"] = respond
    exc = await failure(ari.post("/a"), AriUnavailable)
    assert str(exc) == "no answer within 0.1 s"
    assert server.count("POST /ari/a") == 1


async def test_connection_lost_before_the_answer_is_unavailable_and_no_post_is_sent_again(
    server: FakeAri, ari: Ari
) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    await ari.get("/kept")
    server.answers["/ari/a"] = hang_up
    await failure(ari.post("/a"), AriUnavailable)
    assert server.count("POST /ari/a") == 1
    assert await ari.post("/b")


async def test_connection_refused_is_unavailable(server: FakeAri, ari: Ari) -> None:
    await server.stop()
    exc = await failure(ari.get("/a"), AriUnavailable)
    assert str(exc) == "Connection refused (no program listens there)"


@pytest.mark.parametrize(
    ("babbled", "why"),
    [
        pytest.param(
            b"Asterisk Call Manager/2.8.0\r\n\x1b[2J\r\n\r\n", ari_module.NOT_HTTP, id="ami"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nX: a\x1b\nb" + 500 * b"." + b"\r\n\r\n",
            ari_module.NOT_HTTP,
            id="header",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "the answer broke off", id="cut"
        ),
        pytest.param(b"", "the other side closed the connection without an answer", id="nothing"),
    ],
)
async def test_peer_that_speaks_no_http_is_unavailable_in_plain_words(
    babbled: bytes, why: str
) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(babbled)
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as peer:
        port = peer.sockets[0].getsockname()[1]
        async with Ari(AriConfig(url=f"http://127.0.0.1:{port}", password=PASSWORD)) as ari:
            exc = await failure(ari.get("/a"), AriUnavailable)
            assert str(exc) == why


async def test_peer_that_speaks_first_is_said_to_be_no_http_server() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Asterisk Call Manager/2.8.0\r\n")
        await reader.read(65536)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as peer:
        port = peer.sockets[0].getsockname()[1]
        async with Ari(AriConfig(url=f"http://127.0.0.1:{port}", password=PASSWORD)) as ari:
            for _ in range(20):  # the greeting may come before the request, or after it
                exc = await failure(ari.get("/a"), AriUnavailable)
                assert str(exc).endswith(ari_module.NOT_HTTP)


async def test_connection_that_breaks_off_while_a_request_is_sent_is_told_in_plain_words(
    server: FakeAri, ari: Ari, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object, **__: object) -> None:
        url = "http://127.0.0.1:8088/ari/applications/audiofork/eventFilter"
        raise aiohttp.ClientOSError(None, f"Can not write request body for {url}")

    monkeypatch.setattr(aiohttp.ClientSession, "_request", break_off)
    exc = await failure(ari.get("/a"), AriUnavailable)
    assert str(exc) == "the connection broke off while the request was sent"


async def test_proxy_of_the_environment_is_not_used(
    server: FakeAri, ari: Ari, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await ari.get("/a")


async def test_requests_in_turn_share_a_connection(server: FakeAri, ari: Ari) -> None:
    for _ in range(5):
        await ari.post("/a")
    assert len(server.peers) == 1


@pytest.mark.slow
async def test_requests_at_once_have_no_more_than_32_connections(server: FakeAri, ari: Ari) -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response(request.query["n"])

    server.answers["/ari/a"] = wait
    pending = [asyncio.create_task(ari.get("/a", n=str(n))) for n in range(100)]
    await wait_until(lambda: len(server.asked) == 32)
    await asyncio.sleep(0.05)
    assert len(server.asked) == 32
    release.set()
    assert await asyncio.gather(*pending) == [str(n) for n in range(100)]
    assert len(server.peers) == 32


async def test_request_cancelled_leaves_the_others_working(server: FakeAri, ari: Ari) -> None:
    server.answers["/ari/a"] = silence
    pending = asyncio.create_task(ari.get("/a"))
    await wait_until(lambda: server.asked)
    pending.cancel()
    assert isinstance(
        (await asyncio.gather(pending, return_exceptions=True))[0], asyncio.CancelledError
    )
    assert await ari.get("/b")


async def test_closed_twice_refuses_requests(server: FakeAri, ari: Ari) -> None:
    await ari.get("/a")
    await ari.close()
    await ari.close()
    exc = await failure(ari.get("/a"), AriUnavailable)
    assert str(exc) == "the connection to ARI is closed"


async def test_rights_are_those_of_a_user_that_may_write(server: FakeAri, ari: Ari) -> None:
    path = "/ari/channels/audiofork-check"
    server.answers[path] = answer(404, '{"message": "Channel not found"}')
    await ari.check_rights()
    server.answers[path] = answer(403, '{"message": "Write access denied"}')
    await failure(ari.check_rights(), AriLoginRefused)
    server.answers[path] = answer(404, "<html>", "text/html")
    exc = await failure(ari.check_rights(), AriRefused)
    assert str(exc) == "404: Not Found"
    assert set(server.asked) == {f"DELETE {path}"}


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
async def tls_server() -> AsyncIterator[tuple[FakeAri, trustme.CA]]:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    fake = FakeAri()
    await fake.start(tls=tls)
    yield fake, authority
    await fake.stop()


async def test_https_with_the_authority_of_ca_file_serves_requests_and_link(
    tls_server: tuple[FakeAri, trustme.CA], tmp_path: Path
) -> None:
    server, authority = tls_server
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    url = f"https://127.0.0.1:{server.port}/ari"
    async with Ari(server.config(url=url, ca_file=str(tmp_path / "ca.pem"))) as ari:
        assert await ari.get("/a")
        async with running(ari):
            await wait_until(lambda: ari.ready)


async def test_https_with_an_unknown_authority_is_unavailable(
    tls_server: tuple[FakeAri, trustme.CA],
) -> None:
    server, _ = tls_server
    async with Ari(server.config(url=f"https://127.0.0.1:{server.port}/ari")) as ari:
        exc = await failure(ari.get("/a"), AriUnavailable)
        assert str(exc).endswith("if it is right, add that authority to [ari] ca_file")
    assert server.asked == []


async def test_ca_file_that_is_missing_is_said(server: FakeAri, tmp_path: Path) -> None:
    url = server.config().url.replace("http:", "https:")
    config = server.config(url=url, ca_file=str(tmp_path / "missing"))
    async with Ari(config) as ari, running(ari):
        text = f"[ari] ca_file: {tmp_path}/missing: No such file or directory"
        await wait_until(lambda: ari.status.endswith(text))


async def test_missing_password_is_said_and_asterisk_not_bothered(server: FakeAri) -> None:
    async with Ari(server.config(password="")) as ari, running(ari):
        await wait_until(lambda: "no password" in ari.status)
        assert ari.status == (
            "no password for ARI: set [ari] password_file (`audiofork setup` does all of it), "
            "then systemctl restart audiofork; next try in 60 s"
        )
    assert server.asked == []


# --- The link comes up ---------------------------------------------------------------------------


async def test_link_opens_for_our_application_and_lets_only_wanted_events_through(
    server: FakeAri,
) -> None:
    async with Ari(server.config(app="fork-2")) as ari:
        assert (ari.ready, ari.status) == (False, "not connected to ARI yet")
        async with running(ari):
            await wait_until(lambda: ari.ready)
            assert ari.status == f"connected to ARI at http://127.0.0.1:{server.port}/ari"
    assert server.asked == [
        "GET /ari/events?app=fork-2",
        "PUT /ari/applications/fork-2/eventFilter",
    ]
    assert json.loads(server.bodies[1]) == {
        "allowed": [{"type": "StasisStart"}, {"type": "ApplicationReplaced"}]
    }


async def test_link_is_not_ready_before_the_filter_is_set(server: FakeAri, ari: Ari) -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({})

    server.answers[FILTER] = wait
    async with running(ari):
        await wait_until(lambda: server.count(f"PUT {FILTER}"))
        assert not ari.ready
        release.set()
        await wait_until(lambda: ari.ready)


# --- Channels that come to us --------------------------------------------------------------------


async def test_starting_is_done_when_its_channel_has_come_and_not_before(
    server: FakeAri, link: Ari
) -> None:
    with link.starting("a") as a, link.starting("b") as b, link.starting("c") as c:
        await server.send(starts("b"), starts("d"))
        async with asyncio.timeout(5):
            await b
        assert not a.done()
        await server.send(starts("a"), starts("a"), starts("c"))
        async with asyncio.timeout(5):
            await c
        assert a.result() is None


async def test_starting_without_a_link_is_refused_with_the_status(ari: Ari) -> None:
    with pytest.raises(AriUnavailable, match="^not connected to ARI yet$"), ari.starting("a"):
        pytest.fail("entered")


async def test_link_lost_while_channels_start_fails_each_and_is_no_link_for_others(
    server: FakeAri, link: Ari
) -> None:
    with link.starting("a") as a, link.starting("b") as b:
        await server.drop(server.links[-1])
        async with asyncio.timeout(5):
            results = await asyncio.gather(a, b, return_exceptions=True)
    assert [type(result) for result in results] == [AriUnavailable, AriUnavailable]
    assert str(results[0]) == "the connection to ARI was lost"


async def test_channel_that_came_before_the_link_was_lost_has_come(
    server: FakeAri, link: Ari
) -> None:
    with link.starting("a") as a:
        await server.send(starts("a"))
        await wait_until(a.done)
        await server.drop(server.links[-1])
        await wait_until(lambda: not link.ready)
        await wait_until(lambda: link.ready)
        assert a.exception() is None


async def test_round_trip_is_that_of_the_latest_request_and_unknown_while_the_link_is_away(
    server: FakeAri, ari: Ari
) -> None:
    assert (ari.is_up, ari.rtt_s, ari.connects) == (False, 0.0, 0)
    async with running(ari):
        await wait_until(lambda: ari.ready)
        assert (ari.is_up, ari.rtt_s > 0, ari.connects) == (True, True, 1)
        await server.drop(server.links[-1])
        await wait_until(lambda: not ari.is_up)
        assert ari.rtt_s == 0.0
        await wait_until(lambda: ari.is_up)
        assert ari.connects == 2


@pytest.mark.parametrize("ending", ["left", "lost", "cancelled"])
async def test_starting_leaves_nothing_behind(
    server: FakeAri, link: Ari, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    with contextlib.suppress(TimeoutError), link.starting("a") as a:
        if ending == "lost":
            await server.drop(server.links[-1])
            await wait_until(a.done)
        elif ending == "cancelled":
            async with asyncio.timeout(0):
                await a
    await wait_until(lambda: link.ready)
    await server.send(starts("a"))
    with link.starting("b") as b:
        await server.send(starts("b"))
        await wait_until(b.done)
    del a
    gc.collect()
    await asyncio.sleep(0)
    assert not link._starting
    assert "never retrieved" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- Events that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("hello", id="no-json"),
        pytest.param(NESTED, id="nested"),
        pytest.param("[]", id="list"),
        pytest.param('"StasisStart"', id="text"),
        pytest.param("{}", id="no-type"),
        pytest.param('{"type": 1}', id="type-is-a-number"),
        pytest.param(b"\xff\xfe", id="binary"),
    ],
)
async def test_garbage_is_said_and_passed_over(
    server: FakeAri, link: Ari, caplog: pytest.LogCaptureFixture, data: str | bytes
) -> None:
    with link.starting("a") as a:
        if isinstance(data, bytes):
            await server.links[-1].send_bytes(data)
        else:
            await server.links[-1].send_str(data)
        await server.send(starts("a"))
        await wait_until(a.done)
        assert a.exception() is None
    assert caplog.text.count("ARI sent a message that is not an event") == 1
    assert len(server.links) == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "StasisEnd", "channel": {"id": "a"}},
        {"type": "StasisStart"},
        {"type": "StasisStart", "channel": None},
        {"type": "StasisStart", "channel": {"id": None}},
        {"type": "StasisStart", "channel": {"id": ["a"]}},
        {"type": "StasisStart", "channel": {"id": ""}},
    ],
)
async def test_event_that_tells_of_no_channel_s_start_is_passed_over(
    server: FakeAri, link: Ari, event: object
) -> None:
    with link.starting("a") as a, link.starting("b") as b:
        await server.send(event, starts("b"))
        await wait_until(b.done)
        assert not a.done()
        assert link.ready


async def test_event_above_the_limit_ends_the_link_and_the_next_one_serves(
    server: FakeAri, link: Ari, caplog: pytest.LogCaptureFixture
) -> None:
    with link.starting("a") as a:
        await server.send({**starts("a"), "more": "x" * 262_144})
        await wait_until(a.done)
        assert isinstance(a.exception(), AriUnavailable)
    await wait_until(lambda: link.ready)
    assert "no connection to ARI at" in caplog.text
    assert "exceeds limit" in caplog.text


async def test_name_taken_by_another_program_is_said_once_and_pauses_long(
    server: FakeAri,
    ari: Ari,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pause = asyncio.Event()
    delays_s = record_pauses(monkeypatch, pause)
    async with running(ari):
        await wait_until(lambda: ari.ready)
        with ari.starting("a") as a:
            await server.send({"type": "ApplicationReplaced", "application": "audiofork"})
            await wait_until(lambda: delays_s)
            assert isinstance(a.exception(), AriUnavailable)
        assert not ari.ready
        assert ari.status == (
            "another program took the ARI application audiofork: a controller that leads by now, "
            "or a daemon beside the same Asterisk, which needs an [ari] app of its own; "
            "next try in 60 s"
        )
        pause.set()
        await wait_until(lambda: ari.ready)
    assert delays_s == [60]
    assert levels(caplog) == [logging.INFO, logging.ERROR, logging.INFO]


# --- The link is lost ----------------------------------------------------------------------------


def record_pauses(monkeypatch: pytest.MonkeyPatch, *gates: asyncio.Event) -> list[float]:
    """Make the pauses between attempts wait for these events, one each; return their lengths."""
    delays_s: list[float] = []

    async def pause(ari: Ari, delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) <= len(gates):
            await gates[len(delays_s) - 1].wait()
        else:
            await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Ari, "_pause", pause)
    return delays_s


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Return the levels of our lines in the log."""
    return [record.levelno for record in caplog.records if record.name == "audiofork.asterisk.ari"]


@pytest.mark.parametrize("code", [None, WSCloseCode.OK, WSCloseCode.GOING_AWAY])
async def test_link_lost_comes_back_with_its_filter_and_each_state_is_said_once(
    server: FakeAri, link: Ari, caplog: pytest.LogCaptureFixture, code: int | None
) -> None:
    if code is None:
        await server.drop(server.links[-1])
    else:
        await server.links[-1].close(code=code)
    await wait_until(lambda: len(server.links) == 2 and link.ready)
    assert server.count(f"PUT {FILTER}") == 2
    with link.starting("a") as a:
        await server.send(starts("a"))
        await wait_until(a.done)
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    assert (
        f"no connection to ARI at http://127.0.0.1:{server.port}/ari: Asterisk closed"
        in caplog.text
    )


async def test_pauses_grow_to_10_s_begin_anew_after_a_success_and_a_state_is_said_once(
    server: FakeAri,
    ari: Ari,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 0.5)
    ari._waits = Backoff(0.5, 10)
    gates = [asyncio.Event() for _ in range(8)]
    delays_s = record_pauses(monkeypatch, *gates)
    await server.stop()
    async with running(ari):
        for number, gate in enumerate(gates[:-1], 1):
            await wait_until(lambda: len(delays_s) == number)  # noqa: B023
            gate.set()
        await wait_until(lambda: len(delays_s) == 8)
        assert delays_s == [0.5, 1, 2, 4, 8, 10, 10, 10]
        assert levels(caplog) == [logging.WARNING]
        assert ari.status.startswith(
            f"no connection to ARI at http://127.0.0.1:{server.port}/ari: "
        )
        await server.start(server.port)
        gates[7].set()
        await wait_until(lambda: ari.ready)
        await server.drop(server.links[-1])
        await wait_until(lambda: len(delays_s) == 9)
        assert delays_s[8] == 0.5


@pytest.mark.parametrize(
    ("path", "status"), [("/ari/events", 401), ("/ari/events", 403), (FILTER, 403)]
)
async def test_login_refused_is_said_once_and_pauses_long(
    server: FakeAri,
    ari: Ari,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    status: int,
) -> None:
    pauses = [asyncio.Event(), asyncio.Event()]
    delays_s = record_pauses(monkeypatch, *pauses)
    server.answers[path] = answer(status, "{}")
    async with running(ari):
        await wait_until(lambda: len(delays_s) == 1)
        assert ari.status.startswith("Asterisk's REST interface refused audiofork: ")
        assert ari.status.endswith("read_only has to be no; next try in 60 s")
        assert not ari.ready
        pauses[0].set()
        await wait_until(lambda: len(delays_s) == 2)
        assert levels(caplog) == [logging.ERROR]
        del server.answers[path]
        pauses[1].set()
        await wait_until(lambda: ari.ready)
    assert delays_s == [60, 60]


async def test_password_that_is_rotated_counts_from_the_next_request_and_event_link_on(
    server: FakeAri, link: Ari
) -> None:
    link.take_password("rotated")
    assert link.ready, "the event connection goes on"
    rotated = "Basic " + base64.b64encode(b"audiofork:rotated").decode()
    assert rotated not in server.headers
    await link.get("/asterisk/info")
    assert server.headers[-1] == rotated
    await server.drop(server.links[-1])
    await wait_until(lambda: len(server.links) == 2 and link.ready)
    assert set(server.headers[-2:]) == {rotated}


@pytest.mark.parametrize(("status", "kind"), [(401, AriLoginRefused), (500, AriRefused)])
async def test_link_refused_raises_without_the_password(
    server: FakeAri, ari: Ari, status: int, kind: type[AriError]
) -> None:
    server.answers["/ari/events"] = answer(status, "{}")
    await failure(ari._open_events(), kind)


@pytest.mark.parametrize(
    ("path", "respond", "said"),
    [
        pytest.param(
            "/ari/events",
            answer(404, "<html>"),
            "404: Not Found; check [ari] url, and [general] enabled in ari.conf",
            id="link-unknown",
        ),
        pytest.param(
            "/ari/events", answer(500, "{}"), "500: Internal Server Error", id="link-fault"
        ),
        pytest.param(
            "/ari/events",
            answer(200, "{}"),
            "200: no event connection; check [ari] url",
            id="link-is-none",
        ),
        pytest.param(
            "/ari/events",
            answer(302, "", headers={"Location": "/ari/elsewhere"}),
            "302: a redirect; check [ari] url",
            id="link-redirected",
        ),
        pytest.param("/ari/events", silence, "no answer within 0.2 s", id="link-unanswered"),
        pytest.param(
            FILTER,
            answer(404, '{"message": "Application not found"}'),
            "404: Application not found",
            id="filter-refused",
        ),
        pytest.param(FILTER, silence, "no answer within 0.2 s", id="filter-unanswered"),
    ],
)
async def test_link_that_fails_to_come_up_says_why_once_and_is_tried_again(
    server: FakeAri,
    ari: Ari,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    respond: Answer,
    said: str,
) -> None:
    monkeypatch.setattr(ari_module, "REQUEST_TIMEOUT_S", 0.2)
    server.answers[path] = respond
    async with running(ari):
        await wait_until(lambda: server.count("GET /ari/events?app=audiofork") == 3)
        assert ari.status == f"no connection to ARI at http://127.0.0.1:{server.port}/ari: {said}"
        assert not ari.ready
        assert levels(caplog) == [logging.WARNING]
        del server.answers[path]
        await wait_until(lambda: ari.ready)
    assert not [asked for asked in server.asked if "elsewhere" in asked]


async def test_half_open_link_is_noticed_and_made_anew(server: FakeAri) -> None:
    server.answers_pings = False
    async with Ari(server.config(ping_interval=0.1)) as ari, running(ari):
        await wait_until(lambda: ari.ready)
        server.answers_pings = True
        with ari.starting("a") as a:
            await wait_until(a.done)
            assert isinstance(a.exception(), AriUnavailable)
        await wait_until(lambda: ari.ready)
        await asyncio.sleep(0.3)
        assert len(server.links) == 2


async def test_retry_now_ends_the_pause_and_says_again_what_is_wrong(
    server: FakeAri, ari: Ari, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/ari/events"] = answer(401, "{}")
    async with running(ari):
        await wait_until(lambda: "next try in 60 s" in ari.status)
        ari.retry_now()
        await wait_until(lambda: len(levels(caplog)) == 2)
        await asyncio.sleep(0.05)
        assert server.count("GET /ari/events?app=audiofork") == 2
        assert levels(caplog) == [logging.ERROR, logging.ERROR]
        del server.answers["/ari/events"]
        ari.retry_now()
        await wait_until(lambda: ari.ready)


async def test_retry_now_during_an_attempt_that_fails_makes_another_at_once(
    server: FakeAri, ari: Ari
) -> None:
    release = asyncio.Event()

    async def refuse_later(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response(status=401)

    server.answers["/ari/events"] = refuse_later
    async with running(ari):
        await wait_until(lambda: server.asked)
        ari.retry_now()
        del server.answers["/ari/events"]
        release.set()
        await wait_until(lambda: ari.ready)


async def test_retry_now_of_a_link_that_is_up_is_not_kept_for_later(
    server: FakeAri, link: Ari
) -> None:
    link._waits = Backoff(60, 60)
    link.retry_now()
    await server.drop(server.links[-1])
    await wait_until(lambda: not link.ready)
    await asyncio.sleep(0.05)
    assert len(server.links) == 1


async def test_cancelled_closes_the_link_properly(server: FakeAri, ari: Ari) -> None:
    async with running(ari):
        await wait_until(lambda: ari.ready)
    await wait_until(lambda: server.links[-1].closed)
    assert server.links[-1].close_code == WSCloseCode.OK
    assert not ari.ready


async def test_link_given_up_does_not_wait_long_for_a_peer_that_says_no_goodbye(
    server: FakeAri, ari: Ari, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ari_module, "CLOSE_TIMEOUT_S", 0.1)

    async def read_nothing(request: web.Request) -> web.StreamResponse:
        await web.WebSocketResponse().prepare(request)
        return await silence(request)

    server.answers["/ari/events"] = read_nothing
    server.answers[FILTER] = answer(500, "{}")
    async with running(ari):
        await wait_until(lambda: server.count("GET /ari/events?app=audiofork") == 2)
