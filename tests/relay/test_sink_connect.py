"""What a sink asks of a server, what it makes of the answer, and of texts that follow."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, basic_auth, serve
from websockets.typing import Subprotocol

from audiofork import __version__
from audiofork.errors import SinkError, SinkRefused, SinkUnreachable
from audiofork.forks.options import parse_options
from audiofork.link.messages import Format, Handshake
from audiofork.relay.client_tls import client_tls
from audiofork.relay.formats.base import Audio
from audiofork.relay.lookup import lookups
from audiofork.relay.server_limits import MAX_MESSAGE_BYTES
from testbed.recorder import Recorder
from tests.relay.conftest import server_tls
from tests.relay.formats.formats import ONE_WAY, make
from tests.relay.peers import (
    FickleServer,
    StalledServer,
    answering,
    numbered,
    silent_address,
    until,
    unused_port,
)
from tests.relay.sinks import Start, Waits, failure, offer, opened, retries_of

pytestmark = pytest.mark.usefixtures("nothing_left")


async def swallow(connection: ServerConnection) -> None:
    """Serve a connection: read all that comes."""
    async for _ in connection:
        pass


class Names:
    """Look-ups that find these addresses for any name, and note who was looked up."""

    def __init__(self, looked_up: list[str], *addresses: tuple[str, int]) -> None:
        self._looked_up = looked_up
        self._addresses = addresses

    async def find(self, host: str) -> list[Any]:
        self._looked_up.append(host)
        return [
            (socket.AF_INET6 if ":" in there[0] else socket.AF_INET, 1, 6, "", there)
            for there in self._addresses
        ]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let every name have these addresses, and an attempt 10 ms before the next.

    Returns the names that are looked up.
    """

    def resolve(*addresses: tuple[str, int]) -> list[str]:
        looked_up: list[str] = []
        names = Names(looked_up, *addresses)
        monkeypatch.setattr("audiofork.relay.resolve.lookups", lambda: names)
        # Each of the addresses has a port of its own here.
        monkeypatch.setattr("audiofork.relay.resolve._at_port", lambda there, port: there)
        monkeypatch.setattr("audiofork.relay.resolve.ATTEMPT_DELAY_S", 0.01)
        return looked_up

    return resolve


# --- The request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("/live?name=Jürgen&to=a%20b%2Fc", "/live?name=J%C3%BCrgen&to=a%20b%2Fc"),
        ("/live?name=J%C3%BCrgen&to=a%20b%2Fc", "/live?name=J%C3%BCrgen&to=a%20b%2Fc"),
        ("/Jürgen/%c3%bc?100%&a[]=\\'\"", "/J%C3%BCrgen/%c3%bc?100%25&a%5B%5D=%5C'%22"),
        ("?ü=+", "/?%C3%BC=+"),
    ],
)
async def test_server_gets_the_path_with_each_escape_once(
    recorder: Recorder, start: Start, asked: str, got: str
) -> None:
    await opened(start(recorder.url(asked))[0])
    assert (await recorder.wait(lambda _: True)).path == got


async def test_host_beyond_ascii_is_looked_up_and_asked_in_its_idna_form(
    recorder: Recorder, start: Start, resolved: Callable[..., list[str]]
) -> None:
    looked_up = resolved(("127.0.0.1", recorder.port))
    await opened(start("ws://bücher.example/%20ü")[0])
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None
    assert recording.connection.request is not None
    assert recording.connection.request.headers["Host"] == "xn--bcher-kva.example"
    assert recording.path == "/%20%C3%BC"
    assert looked_up == ["xn--bcher-kva.example"]


async def test_request_has_no_extensions(recorder: Recorder, start: Start) -> None:
    start(recorder.url())
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None
    assert recording.connection.request is not None
    assert "Sec-WebSocket-Extensions" not in recording.connection.request.headers


async def test_request_says_who_asks(recorder: Recorder, start: Start) -> None:
    start(recorder.url())
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None
    assert recording.connection.request is not None
    agents = recording.connection.request.headers.get_all("User-Agent")
    assert agents == [f"audiofork/{__version__}"]


async def test_request_has_the_headers_of_the_fork(recorder: Recorder, start: Start) -> None:
    own = (("Authorization", "Bearer t0ken"), ("X-Call", "a;b"), ("x-call", "c"))
    start(recorder.url(), handshake=Handshake(own))
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None
    assert recording.connection.request is not None
    headers = recording.connection.request.headers
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers.get_all("X-Call") == ["a;b", "c"]
    assert headers["User-Agent"] == f"audiofork/{__version__}"


async def test_headers_are_not_kept_once_the_connection_is_open(
    recorder: Recorder, start: Start
) -> None:
    sink, _ = start(recorder.url())
    await opened(sink)
    connection = sink._connection
    assert connection is not None
    assert connection.request is not None
    assert connection.response is not None
    assert (len(connection.request.headers), len(connection.response.headers)) == (0, 0)


async def test_request_with_a_user_agent_of_the_fork_has_no_other(
    recorder: Recorder, start: Start
) -> None:
    start(recorder.url(), handshake=Handshake((("user-agent", "PBX 9"),)))
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None
    assert recording.connection.request is not None
    assert recording.connection.request.headers.get_all("User-Agent") == ["PBX 9"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A(bot:s3cret)", ""),
        ("A(bot:wrong)", "HTTP 401 Unauthorized; it wants a token or a login: option A"),
        ("", "HTTP 401 Unauthorized; it wants a token or a login: option A"),
    ],
)
async def test_server_that_demands_a_password_accepts_the_right_one_alone(
    start: Start, text: str, said: str
) -> None:
    check = basic_auth(realm="calls", credentials=("bot", "s3cret"))
    async with serve(swallow, "127.0.0.1", 0, process_request=check) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        sink, task = start(url, handshake=parse_options(text).handshake)
        if said:
            assert said in str(await failure(task))
        else:
            await opened(sink)


@pytest.mark.parametrize(
    ("offered", "spoken", "chosen"),
    [(("echo",), "echo", "echo"), (("v2", "v1"), "v1", "v1"), (("echo",), "", ""), ((), "", "")],
)
async def test_subprotocol_that_the_server_chooses_is_known(
    start: Start, offered: tuple[str, ...], spoken: str, chosen: str
) -> None:
    known = [Subprotocol(spoken)] if spoken else None
    async with serve(swallow, "127.0.0.1", 0, subprotocols=known) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        sink, _ = start(url, handshake=Handshake(subprotocols=offered))
        await opened(sink)
        assert sink.subprotocol == chosen


async def test_server_that_insists_on_a_subprotocol_refuses_with_a_hint(start: Start) -> None:
    async with serve(swallow, "127.0.0.1", 0, subprotocols=[Subprotocol("echo")]) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        error = await failure(start(url)[1])
    assert isinstance(error, SinkRefused)
    assert "HTTP 400 Bad Request; it may insist on a subprotocol (option s)" in str(error)


@pytest.mark.parametrize("offered", [("echo",), ()])
async def test_server_that_chooses_a_subprotocol_not_offered_is_refused(
    start: Start, offered: tuple[str, ...]
) -> None:
    def choose(connection: ServerConnection, _offered: object) -> Subprotocol:
        return Subprotocol("other")

    async with serve(swallow, "127.0.0.1", 0, select_subprotocol=choose) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        error = await failure(start(url, handshake=Handshake(subprotocols=offered))[1])
    assert isinstance(error, SinkRefused)
    assert "a subprotocol that was not offered" in str(error)


async def test_proxies_of_the_environment_are_not_used(
    recorder: Recorder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    sink, _ = start(recorder.url())
    await opened(sink)


# --- The connect ---------------------------------------------------------------------------------


async def test_wss_with_the_given_authority_is_accepted(
    tls: ssl.SSLContext, ca_file: Path, start: Start
) -> None:
    async with Recorder(tls) as recorder:
        sink, _ = start(recorder.url(), client_tls(str(ca_file)))
        await opened(sink)
        offer(sink, numbered(5))
        recording = await recorder.wait_messages("/", 5)
        assert recording.messages == numbered(5)
        await sink.close(1000, "stopped")


PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("host", "trusted", "not_after", "check"),
    [
        ("localhost", False, None, "an authority that is not trusted here"),
        ("elsewhere.example", True, None, "for other names than localhost"),
        ("localhost", True, PAST, "its certificate has expired"),
    ],
    ids=["wrong authority", "wrong host", "expired"],
)
async def test_wss_with_a_bad_certificate_is_refused_naming_the_check(
    ca: trustme.CA,
    start: Start,
    host: str,
    trusted: bool,
    not_after: datetime.datetime | None,
    check: str,
) -> None:
    context = ssl.create_default_context()
    (ca if trusted else trustme.CA()).configure_trust(context)
    async with Recorder(server_tls(ca.issue_cert(host, not_after=not_after))) as recorder:
        error = await failure(start(recorder.url(), context)[1])
        assert not recorder.recordings
    assert isinstance(error, SinkRefused)
    assert ": certificate not accepted: its certificate " in str(error)
    with pytest.raises(AssertionError, match=check):
        raise AssertionError(str(error))


async def test_wss_to_a_plain_server_is_retryable(start: Start) -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await failure(start(f"wss://127.0.0.1:{port}/")[1])
    assert isinstance(error, SinkUnreachable)
    assert "does not speak TLS on this port; use ws://" in str(error)


ANSWERS = {
    "404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", SinkRefused, "HTTP 404"),
    "401": (b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno", SinkRefused, "HTTP 401"),
    "200": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", SinkRefused, "HTTP 200"),
    "503": (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", SinkUnreachable, "HTTP 503"),
    "429": (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", SinkUnreachable, "HTTP 429"),
    "no upgrade": (
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        SinkRefused,
        "not a WebSocket server",
    ),
    "bad accept": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
        SinkRefused,
        "not a WebSocket server",
    ),
    "garbage": (b"220 mail.example ESMTP\r\n\r\n", SinkUnreachable, "sent garbage"),
    "binary garbage": (bytes(range(256)), SinkUnreachable, "sent garbage"),
    "half an answer": (b"HTTP/1.1 101 Swit", SinkUnreachable, "closed without an HTTP answer"),
}


@pytest.mark.parametrize(("answer", "kind", "text"), ANSWERS.values(), ids=ANSWERS)
async def test_answer_that_is_no_handshake_ends_the_sink(
    start: Start, answer: bytes, kind: type[SinkError], text: str
) -> None:
    async with answering(answer) as port:
        error = await failure(start(f"ws://127.0.0.1:{port}/")[1])
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_refused_and_not_followed(
    recorder: Recorder, start: Start, status: int
) -> None:
    answer = f"HTTP/1.1 {status} Go\r\nLocation: {recorder.url()}\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer.encode()) as port:
        error = await failure(start(f"ws://127.0.0.1:{port}/")[1])
    assert isinstance(error, SinkRefused)
    assert "redirects are not followed" in str(error)
    assert not recorder.recordings


async def test_refused_port_is_retryable(start: Start) -> None:
    port = unused_port()
    error = await failure(start(f"ws://127.0.0.1:{port}/a?token=x")[1])
    assert isinstance(error, SinkUnreachable)
    text = f"ws://127.0.0.1:{port}: Connection refused (no program listens there)"
    assert str(error) == text


async def test_host_that_does_not_resolve_is_retryable(start: Start) -> None:
    error = await failure(start("ws://nowhere.invalid/")[1])
    assert isinstance(error, SinkUnreachable)


@pytest.mark.parametrize("limit_s", [0.05, 60])
async def test_name_without_an_answer_is_retryable_and_told_and_its_fork_ends_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    given_up, asked = threading.Event(), threading.Event()

    def ask(host: str, flags: int = 0) -> list[Any]:
        if not flags:
            asked.set()
            given_up.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr("audiofork.relay.lookup._ask", ask)
    sink, task = start("ws://dead.example/", connect_timeout=limit_s)
    await until(asked.is_set)
    if limit_s < 1:
        error = await failure(task)
        assert isinstance(error, SinkUnreachable)
        assert str(error).endswith("the name dead.example is still being looked up")
    else:
        async with asyncio.timeout(20):
            await sink.close(1000, "stopped")
            await task
    given_up.set()
    await until(lambda: not lookups()._threads.running)


async def test_host_that_cannot_be_a_name_is_refused(start: Start) -> None:
    error = await failure(start(f"ws://{'a' * 64}.example/")[1])
    assert isinstance(error, SinkRefused)
    assert str(error).startswith("not a host name: ")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_server_that_closes_at_once_is_retryable(start: Start, scheme: str) -> None:
    async with answering(b"") as port:
        error = await failure(start(f"{scheme}://127.0.0.1:{port}/")[1])
    assert isinstance(error, SinkUnreachable)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_server_that_never_answers_times_out(start: Start, scheme: str) -> None:
    async with answering(None) as port:
        sink, task = start(f"{scheme}://127.0.0.1:{port}/", connect_timeout=0.05)
        error = await failure(task)
    assert isinstance(error, SinkUnreachable)
    assert " within 0.05 s: " in str(error)
    offer(sink, numbered(1))


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_second_address_is_connected_to_when_the_first_drops_what_comes(
    tls: ssl.SSLContext,
    ca_file: Path,
    start: Start,
    resolved: Callable[..., list[str]],
    scheme: str,
) -> None:
    with silent_address() as silent:
        async with Recorder(tls if scheme == "wss" else None) as recorder:
            resolved(silent, ("127.0.0.1", recorder.port))
            before = len(os.listdir("/proc/self/fd"))
            sink, _ = start(recorder.url(), client_tls(str(ca_file)))
            offer(sink, numbered(10))
            await opened(sink)
            recording = await recorder.wait_messages("/", 10)
            assert recording.messages == numbered(10)
            assert sink.backlog.dropped == 0
            await sink.close(1000, "stopped")
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_other_family_is_connected_to_when_the_first_refuses(
    recorder: Recorder, start: Start, resolved: Callable[..., list[str]]
) -> None:
    resolved(("::1", unused_port()), ("127.0.0.1", recorder.port))
    await opened(start("ws://example.org/")[0])


async def test_addresses_that_drop_what_comes_time_out_and_leave_nothing(
    start: Start, resolved: Callable[..., list[str]]
) -> None:
    with silent_address() as silent, silent_address() as other:
        resolved(silent, other)
        before = len(os.listdir("/proc/self/fd"))
        error = await failure(start("ws://example.org/", connect_timeout=0.05)[1])
        assert str(error).startswith(
            "ws://example.org: no TCP connection within 0.05 s: a firewall"
        )
        assert len(os.listdir("/proc/self/fd")) == before


async def test_addresses_that_all_refuse_are_told_of_as_one(
    start: Start, resolved: Callable[..., list[str]]
) -> None:
    resolved(("127.0.0.1", unused_port()), ("127.0.0.2", unused_port()))
    error = await failure(start("ws://example.org/")[1])
    assert isinstance(error, SinkUnreachable)
    text = "ws://example.org: Connection refused (no program listens there)"
    assert str(error) == text


async def test_frames_before_open_wait_and_go_first_in_order(
    stalled: StalledServer, start: Start
) -> None:
    stalled.hold_handshake = True
    sink, _ = start(stalled.url)
    offer(sink, numbered(10))
    await until(lambda: stalled.asked)
    offer(sink, numbered(10, 10), before=10)
    assert (sink.frames_sent, len(sink.backlog)) == (0, 20)
    stalled.answer()
    await opened(sink)
    assert (sink.frames_sent, len(sink.backlog)) == (20, 0)
    offer(sink, numbered(10, 20), before=20)
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= 30)
    assert stalled.frames == numbered(30)


async def test_frames_before_open_beyond_the_limit_lose_the_oldest(
    stalled: StalledServer, start: Start
) -> None:
    stalled.hold_handshake = True
    sink, _ = start(stalled.url, backlog=0.1)
    offer(sink, numbered(12))
    assert (len(sink.backlog), sink.backlog.dropped) == (5, 7)
    await until(lambda: stalled.asked)
    stalled.answer()
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= 5)
    assert stalled.frames == numbered(5, 7)


async def test_on_open_is_told_once_and_after_the_waiting_frames_went(
    recorder: Recorder, start: Start
) -> None:
    sink, _ = start(recorder.url())
    sent: list[int] = []
    sink.on_open = lambda: sent.append(sink.frames_sent)
    offer(sink, numbered(3))
    await recorder.wait_messages("/", 3)
    assert sent == [3]


# --- Text from the server ------------------------------------------------------------------------


async def test_text_messages_and_binary_ones_are_told_in_order(
    fickle: FickleServer, start: Start
) -> None:
    sink, task = start(fickle.url)
    texts: list[str] = []
    audio: list[Audio] = []
    sink.on_text, sink.on_audio = texts.append, audio.append
    await until(lambda: fickle.connection)
    assert fickle.connection is not None
    for message in "one", b"two", "", "zw\u00f6lf\r\n\0", "x" * MAX_MESSAGE_BYTES:
        await fickle.connection.send(message)
    await until(lambda: len(texts) >= 4)
    assert texts == ["one", "", "zw\u00f6lf\r\n\0", "x" * MAX_MESSAGE_BYTES]
    assert audio == [Audio(b"two", 8000)]
    assert sink.messages_unused == 0
    assert not task.done()


@pytest.mark.parametrize("name", ONE_WAY)
async def test_message_that_the_format_does_not_know_is_told_or_counted_and_never_fatal(
    fickle: FickleServer, start: Start, name: Format
) -> None:
    sink, task = start(fickle.url, format=make(name))
    texts: list[str] = []
    audio: list[Audio] = []
    sink.on_text, sink.on_audio = texts.append, audio.append
    await until(lambda: fickle.connection)
    assert fickle.connection is not None
    strange = ["no JSON", '{"event": ["media"]}', "[" * 50_000, '"\\ud800"', "{", "7"]
    messages: list[str | bytes] = [b"\0\1\2", *strange, b""]
    for message in messages:
        await fickle.connection.send(message)
    await until(lambda: len(texts) + len(audio) + sink.messages_unused == 8)
    assert texts == strange
    assert not task.done()


async def test_text_that_is_not_utf_8_is_closed_with_1007_and_retried(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0)
    texts: list[str] = []
    sink.on_text = texts.append
    retried = retries_of(sink)
    await opened(sink)
    await until(lambda: fickle.connection)
    assert fickle.connection is not None
    await fickle.connection.send(b"caf\xe9", text=True)
    await opened(sink)
    assert sink.reconnects == 1
    assert retried[0][1].startswith("closed by us with 1007")
    assert texts == []
