"""One WebSocket client against real servers on this machine."""

from __future__ import annotations

import asyncio
import datetime
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from audiofork import __version__
from audiofork.config import WebSocketConfig
from audiofork.errors import SinkError, SinkLost, SinkRefused, SinkUnreachable
from audiofork.relay.connection import MAX_MESSAGE_BYTES
from audiofork.relay.outlet import encode
from audiofork.relay.retry import Retries
from audiofork.relay.sink import Sink
from audiofork.relay.worker import client_tls
from testbed.recorder import Recorder
from tests.relay.conftest import server_tls
from tests.relay.peers import (
    FickleServer,
    HoldingProxy,
    StalledServer,
    answering,
    number,
    numbered,
    silent_address,
    until,
    unused_port,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

Running = tuple[Sink, asyncio.Task[None]]
Start = Callable[..., Running]


@pytest.fixture(scope="session")
def system_tls() -> ssl.SSLContext:
    return client_tls("")


@pytest.fixture
async def start(system_tls: ssl.SSLContext) -> AsyncIterator[Start]:
    """Make sinks that run; those that still do at the end are closed."""
    running: list[Running] = []

    def start(
        url: str, tls: ssl.SSLContext = system_tls, frame_bytes: int = 320, **options: float
    ) -> Running:
        config = WebSocketConfig(**{"reconnect_attempts": 1} | options)
        sink = Sink(url, config, tls, frame_bytes=frame_bytes)
        running.append((sink, asyncio.create_task(sink.run())))
        return running[-1]

    yield start
    for sink, task in running:
        if not task.done():
            await sink.close(1000, "test over")
        await asyncio.wait([task], timeout=5)
        assert task.done()
        task.exception()


class Names:
    """An event loop that finds these addresses for any name; it notes who was looked up."""

    def __init__(self, looked_up: list[str], *addresses: tuple[str, int]) -> None:
        self._looked_up = looked_up
        self._addresses = addresses
        self._loop = asyncio.get_running_loop()

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:
        self._looked_up.append(host)
        return [
            (socket.AF_INET6 if ":" in there[0] else socket.AF_INET, type, 6, "", there)
            for there in self._addresses
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let every name have these addresses, and an attempt 10 ms before the next.

    Returns the names that are looked up.
    """

    def resolve(*addresses: tuple[str, int]) -> list[str]:
        looked_up: list[str] = []
        faked = SimpleNamespace(get_running_loop=lambda: Names(looked_up, *addresses))
        monkeypatch.setattr("audiofork.relay.resolve.asyncio", faked)
        monkeypatch.setattr("audiofork.relay.resolve.ATTEMPT_DELAY_S", 0.01)
        return looked_up

    return resolve


async def opened(sink: Sink) -> None:
    """Wait until the sink is connected."""
    is_open = asyncio.Event()
    sink.on_open = is_open.set
    async with asyncio.timeout(5):
        await is_open.wait()


async def failure(task: asyncio.Task[None]) -> SinkError:
    """Return what a sink's run raises."""
    with pytest.raises(SinkError) as raised:
        async with asyncio.timeout(5):
            await task
    return raised.value


def offer(sink: Sink, frames: list[bytes], before: int = 0) -> None:
    """Send frames, checking after each that all are accounted for."""
    for count, frame in enumerate(frames, before + 1):
        sink.send(frame)
        assert sink.frames_sent + sink.backlog.dropped + len(sink.backlog) == count


def all_acknowledged(sink: Sink) -> bool:
    """Return whether the server's TCP has got all frames that were offered, and more may go."""
    if sink.backlog or sink._outlet._unacked is None or not sink._outlet._takes:
        return False
    sink._outlet._unacked.update()
    return not sink._outlet._unacked._writes


def offer_until_stalled(sink: Sink, frame_bytes: int = 320) -> int:
    """Send numbered frames until one has to wait; return how many were sent."""
    count = 0
    while not sink.backlog:
        offer(sink, numbered(1, count, frame_bytes), before=count)
        count += 1
        assert count < 100_000
    return count


# --- Frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "82 80"),
        (125, "82 fd"),
        (126, "82 fe 00 7e"),
        (320, "82 fe 01 40"),
        (65_535, "82 fe ff ff"),
        (65_536, "82 ff 00 00 00 00 00 01 00 00"),
    ],
)
def test_message_is_final_masked_and_unmasks_to_the_payload(length: int, header: str) -> None:
    payload = (bytes(range(256)) * 256)[:length]
    frame = encode(payload)
    begin = len(bytes.fromhex(header))
    assert frame[:begin] == bytes.fromhex(header)
    mask, masked = frame[begin : begin + 4], frame[begin + 4 :]
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked)) == payload


def test_binary_message_masks_each_frame_anew() -> None:
    assert len({encode(bytes(320))[4:8] for _ in range(3000)}) > 2990


@pytest.mark.parametrize("frame_bytes", [320, 640, 65_532])
async def test_server_gets_exactly_the_payloads(
    recorder: Recorder, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(recorder.url("/a?b=c"), frame_bytes=frame_bytes)
    await opened(sink)
    frames = numbered(20, frame_bytes=frame_bytes)
    offer(sink, frames)
    recording = await recorder.wait_messages("/a?b=c", len(frames))
    assert recording.messages == frames
    assert sink.backlog.dropped == 0


async def test_largest_frame_arrives(recorder: Recorder, start: Start) -> None:
    sink, _ = start(recorder.url(), frame_bytes=65_535)
    await opened(sink)
    sink.send(b"\x5a" * 65_535)
    recording = await recorder.wait_messages("/", 1)
    assert recording.messages == [b"\x5a" * 65_535]


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
    assert recording.connection is not None and recording.connection.request is not None
    assert recording.connection.request.headers["Host"] == "xn--bcher-kva.example"
    assert recording.path == "/%20%C3%BC"
    assert looked_up == ["xn--bcher-kva.example"]


async def test_request_has_no_extensions(recorder: Recorder, start: Start) -> None:
    start(recorder.url())
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None and recording.connection.request is not None
    assert "Sec-WebSocket-Extensions" not in recording.connection.request.headers


async def test_request_says_who_asks(recorder: Recorder, start: Start) -> None:
    start(recorder.url())
    recording = await recorder.wait(lambda r: r.connection is not None)
    assert recording.connection is not None and recording.connection.request is not None
    agents = recording.connection.request.headers.get_all("User-Agent")
    assert agents == [f"audiofork/{__version__}"]


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
        ("localhost", False, None, "issuer certificate|self-signed|self signed"),
        ("elsewhere.example", True, None, "Hostname mismatch.*'localhost'"),
        ("localhost", True, PAST, "certificate has expired"),
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
    assert str(error).startswith("certificate not accepted: ")
    with pytest.raises(AssertionError, match=check):
        raise AssertionError(str(error))


async def test_wss_to_a_plain_server_is_retryable(start: Start) -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await failure(start(f"wss://127.0.0.1:{port}/")[1])
    assert isinstance(error, SinkUnreachable)
    assert "SSL" in str(error)


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
    error = await failure(start(f"ws://127.0.0.1:{unused_port()}/")[1])
    assert isinstance(error, SinkUnreachable)
    assert str(error) == "Connection refused"


async def test_host_that_does_not_resolve_is_retryable(start: Start) -> None:
    error = await failure(start("ws://nowhere.invalid/")[1])
    assert isinstance(error, SinkUnreachable)


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
    assert str(error) == "no answer in time"
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
        assert str(error) == "no answer in time"
        assert len(os.listdir("/proc/self/fd")) == before


async def test_addresses_that_all_refuse_are_told_of_as_one(
    start: Start, resolved: Callable[..., list[str]]
) -> None:
    resolved(("127.0.0.1", unused_port()), ("127.0.0.2", unused_port()))
    error = await failure(start("ws://example.org/")[1])
    assert isinstance(error, SinkUnreachable)
    assert str(error) == "Connection refused"


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


# --- The end that comes from the server ----------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1000, SinkRefused), (4000, SinkRefused), (1008, SinkRefused), (1001, SinkLost)],
)
async def test_server_that_closes_ends_the_sink(
    recorder: Recorder, start: Start, code: int, kind: type[SinkError]
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(2))
    connection = (await recorder.wait_messages("/", 2)).connection
    assert connection is not None
    await connection.close(code, "had enough")
    error = await failure(task)
    assert type(error) is kind
    assert str(error) == f"the server closed with {code} had enough"
    offer(sink, numbered(3, 2), before=2)
    assert len(sink.backlog) == 3
    await sink.close(1000, "late")
    assert (sink.frames_sent, sink.backlog.dropped) == (2, 3)


async def test_server_that_breaks_off_is_lost(recorder: Recorder, start: Start) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    connection.transport.abort()
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error) == "the connection broke"


@pytest.mark.parametrize("message", ["x" * 65_537, b"x" * 65_537], ids=["text", "binary"])
async def test_oversized_message_is_closed_with_1009_and_retryable(
    recorder: Recorder, start: Start, message: str | bytes
) -> None:
    assert len(message) == MAX_MESSAGE_BYTES + 1
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    await connection.send(message)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error).startswith("closed by us with 1009")
    assert (await recorder.wait_closed("/")).close_code == 1009


async def test_messages_up_to_the_limit_and_many_are_taken(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    for _ in range(40):  # more than the library keeps for a reader that does not come
        await connection.send("x" * MAX_MESSAGE_BYTES)
    await asyncio.wait_for(await connection.ping(), 5)
    assert not task.done()


# --- A server that does not keep up --------------------------------------------------------------


async def test_frames_wait_while_the_server_does_not_read_and_then_arrive_in_order(
    stalled: StalledServer, start: Start
) -> None:
    sink, _ = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    sent = sink.frames_sent
    offer(sink, numbered(50, count), before=count)
    assert sink.frames_sent == sent
    assert len(sink.backlog) == 51
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= count + 50)
    offer(sink, numbered(50, count + 50), before=count + 50)
    await until(lambda: len(stalled.frames) >= count + 100)
    assert stalled.frames == numbered(count + 100)
    assert (sink.frames_sent, sink.backlog.dropped) == (count + 100, 0)


async def test_backlog_of_a_server_that_does_not_read_loses_the_oldest(
    stalled: StalledServer, start: Start
) -> None:
    sink, _ = start(stalled.url, backlog=0.2)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(29, count), before=count)
    assert (len(sink.backlog), sink.backlog.dropped) == (10, 20)
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= count + 9)
    expected = [*range(count - 1), *range(count + 19, count + 29)]
    assert [number(frame) for frame in stalled.frames] == expected


@pytest.mark.parametrize("frame_bytes", [320, 640, 1280])
async def test_transport_holds_no_more_than_the_limit(
    stalled: StalledServer, soon: float, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(stalled.url, frame_bytes=frame_bytes)
    await opened(sink)
    offer_until_stalled(sink, frame_bytes)
    assert sink._connection is not None
    held = sink._connection.transport.get_write_buffer_size()
    assert held <= (10 + 1) * (8 + frame_bytes)


@pytest.mark.parametrize("full", [False, True], ids=["idle", "full"])
async def test_server_that_answers_no_ping_is_gone(
    stalled: StalledServer, start: Start, soon: float, full: bool
) -> None:
    sink, task = start(stalled.url, ping_interval=0.05)
    await opened(sink)
    if full:
        offer_until_stalled(sink)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert "ping timeout" in str(error)


async def test_server_that_half_closes_with_frames_waiting_loses_none_uncounted(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    sent = sink.frames_sent
    stalled.transport.write_eof()
    await until(lambda: sink._connection is not None and sink._connection.protocol.eof_sent)
    stalled.read_on()
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert sink.frames_sent <= sent
    assert len(sink.backlog) == count + 100 - sink.frames_sent


# --- The end that comes from here ----------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, "hangup"), (1001, "shutdown"), (1011, "x")])
async def test_close_tells_the_server_code_and_reason(
    recorder: Recorder, start: Start, code: int, reason: str
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(3))
    await sink.close(code, reason)
    await task
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (code, reason)
    assert recording.messages == numbered(3)


async def test_close_while_connecting_without_frames_gives_up_at_once(start: Start) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await sink.close(1000, "stopped")
            await task
    assert sink.frames_sent == 0


async def test_close_while_connecting_with_frames_delivers_them(
    stalled: StalledServer, start: Start
) -> None:
    stalled.hold_handshake = True
    sink, task = start(stalled.url)
    offer(sink, numbered(30))
    await until(lambda: stalled.asked)
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    await asyncio.sleep(0)
    stalled.answer()
    stalled.read_on()
    await closing
    await task
    assert stalled.frames == numbered(30)
    assert (stalled.close_code, stalled.close_reason) == (1000, "hangup")
    assert (sink.frames_sent, sink.backlog.dropped) == (30, 0)


async def test_close_while_connecting_in_vain_with_frames_ends_in_time(
    start: Start, soon: float
) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        offer(sink, numbered(30))
        await asyncio.sleep(0)
        async with asyncio.timeout(soon + 1):
            await sink.close(1000, "hangup")
            await task
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 30, 0)


async def test_close_at_the_moment_the_connect_times_out_ends(start: Start) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        await until(lambda: sink._connector._timeout)
        timeout = sink._connector._timeout
        assert timeout is not None
        timeout.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        assert timeout.expired()
        assert not task.done()
        await sink.close(1000, "hangup")
        await asyncio.wait([task], timeout=1)
    assert task.done()


async def test_close_after_the_connect_failed_ends_at_once(start: Start) -> None:
    sink, task = start(f"ws://127.0.0.1:{unused_port()}/")
    offer(sink, numbered(4))
    await failure(task)
    async with asyncio.timeout(1):
        await sink.close(1011, "sink-gone")
    assert sink.backlog.dropped == 4


async def test_close_sends_what_waits_before_it_closes(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    closing = asyncio.create_task(sink.close(1001, "shutdown"))
    await asyncio.sleep(0)
    stalled.read_on()
    await closing
    await task
    assert stalled.frames == numbered(count + 100)
    assert (stalled.close_code, stalled.close_reason) == (1001, "shutdown")
    assert (sink.frames_sent, sink.backlog.dropped) == (count + 100, 0)


async def test_close_towards_a_stalled_server_ends_in_time_and_counts_what_is_lost(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    sent = sink.frames_sent
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await failure(task)
    assert sink.frames_sent <= sent
    assert (sink.backlog.dropped, len(sink.backlog)) == (count + 100 - sink.frames_sent, 0)


async def test_close_towards_a_stalled_server_with_nothing_waiting_ends_in_time(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await task


async def test_close_when_the_server_breaks_off_with_frames_waiting_ends_at_once(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    closing = asyncio.create_task(sink.close(1000, "stopped"))
    await asyncio.sleep(0)
    stalled.transport.abort()
    async with asyncio.timeout(1):
        await closing
        assert isinstance(await failure(task), SinkLost)
    assert (sink.backlog.dropped, len(sink.backlog)) == (count - sink.frames_sent, 0)


async def test_close_after_a_close_frame_without_an_end_of_tcp_ends_in_time(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url, ping_interval=60)
    await opened(sink)
    stalled.send_close(1000)
    await until(lambda: sink._connection is not None and sink._connection.protocol.close_rcvd)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await task


async def test_frames_after_close_are_counted(recorder: Recorder, start: Start) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(2))
    await sink.close(1000, "stopped")
    await task
    offer(sink, numbered(2, 2), before=2)
    assert sink.frames_sent == 2


# --- What a broken connection held ---------------------------------------------------------------


@pytest.mark.parametrize("frame_on_wire", [8 + 320, 8 + 320 + 22])
async def test_frames_of_a_broken_connection_that_were_not_acknowledged_wait_again(
    ca: trustme.CA, system_tls: ssl.SSLContext, start: Start, waits: Waits, frame_on_wire: int
) -> None:
    tls = server_tls(ca.issue_cert("localhost")) if frame_on_wire > 328 else None
    async with FickleServer(tls) as server, HoldingProxy(server.port) as proxy:
        trusting = ssl.create_default_context()
        ca.configure_trust(trusting)
        url = f"wss://localhost:{proxy.port}/" if tls else f"ws://127.0.0.1:{proxy.port}/"
        sink, task = start(url, trusting if tls else system_tls)
        await opened(sink)
        offer(sink, numbered(50))
        await until(lambda: len(server.frames) == 50 and all_acknowledged(sink))
        await proxy.hold()
        count = 50
        while not sink.backlog:
            offer(sink, numbered(1, count), before=count)
            count += 1
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # for the last acknowledgement, which may be delayed by 40 ms
        taken = proxy.held_bytes() // frame_on_wire
        proxy.break_off()
        assert isinstance(await failure(task), SinkLost)
        assert sink.frames_sent == 50 + taken < count - 1
        assert len(sink.backlog) == count - 50 - taken
        waiting = [number(sink.backlog.take()) for _ in range(len(sink.backlog))]
        assert waiting == list(range(50 + taken, count))


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_server_that_stalls_again_and_again_gets_each_frame_once_in_order(
    tls: ssl.SSLContext, ca_file: Path, start: Start, secure: bool
) -> None:
    async with FickleServer(tls if secure else None) as server:
        sink, _ = start(server.url, client_tls(str(ca_file)), backlog=30, latency_budget=5)
        await opened(sink)
        await until(lambda: server.connection)
        count = 0
        for _ in range(5):
            server.stop_reading()
            while not sink.backlog:  # the kernel and the transport are full
                offer(sink, numbered(1, count), before=count)
                count += 1
            offer(sink, numbered(20, count), before=count)
            count += 20
            server.read_on()
            await until(lambda total=count: len(server.frames) == total)
        assert server.frames == numbered(count)
        assert (sink.frames_sent, sink.backlog.dropped) == (count, 0)


async def test_message_of_several_tls_records_is_acknowledged_when_its_last_byte_is(
    tls: ssl.SSLContext, ca_file: Path, start: Start
) -> None:
    async with FickleServer(tls) as server:
        wishes = {"frame_ms": 1000, "frame_bytes": 1280}
        sink, _ = start(server.url, client_tls(str(ca_file)), **wishes)
        await opened(sink)
        offer(sink, numbered(250, 0, 1280))
        await until(lambda: len(server.frames) == 5 and all_acknowledged(sink))
        unacked = sink._outlet._unacked
        assert unacked is not None
        assert unacked._position == unacked._acked() > 5 * 64_000


@pytest.mark.parametrize("frame_bytes", [100, 125, 126, 65_535, 65_536, 192_000])
async def test_message_with_a_header_of_any_length_is_acknowledged_when_its_last_byte_is(
    fickle: FickleServer, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(fickle.url, frame_bytes=frame_bytes)
    await opened(sink)
    offer(sink, [bytes(frame_bytes)] * 7)
    await until(lambda: len(fickle.frames) == 7 and all_acknowledged(sink))
    unacked = sink._outlet._unacked
    assert unacked is not None
    assert unacked._position == unacked._acked()


@pytest.mark.parametrize("frame_bytes", [320, 1280])
async def test_kernel_never_holds_much_more_than_the_budget(
    stalled: StalledServer, start: Start, frame_bytes: int
) -> None:
    """Else minutes of audio would hide there: the kernel's buffers grow to megabytes."""
    sink, task = start(stalled.url, latency_budget=0.2, frame_bytes=frame_bytes)
    await opened(sink)
    for number_ in range(400):
        sink.send(numbered(1, number_, frame_bytes)[0])
        await asyncio.sleep(0.001)
    assert sink._outlet._unacked is not None
    sink._outlet._unacked.update()
    assert sink._outlet._unacked.not_sent <= (10 + 5) * (frame_bytes + 8)
    stalled.transport.abort()
    await failure(task)


async def test_server_that_closes_before_it_answers_a_ping_swallows_nothing(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    fickle.close_code = 1011
    retried = retries_of(sink)
    fickle.break_off()
    await until(lambda: retried)
    offer(sink, numbered(40))
    await until(lambda: len(retried) >= 5)
    assert (sink.frames_sent, len(sink.backlog)) == (0, 40)
    fickle.close_code = None
    await until(lambda: len(fickle.frames) == 40)
    assert fickle.frames == numbered(40)


async def test_server_that_answers_no_ping_gets_what_waited_all_the_same(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.sink.PROOF_TIMEOUT_S", 0.05)
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    fickle.answers_pings = False
    fickle.break_off()
    await until(lambda: sink._connection is None)
    offer(sink, numbered(5))
    await until(lambda: len(fickle.frames) == 5)
    assert fickle.frames == numbered(5)


# --- Several frames in one message ---------------------------------------------------------------


@pytest.mark.parametrize("frame_bytes", [320, 1280])
async def test_frames_are_joined_into_messages_of_so_many(
    fickle: FickleServer, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(fickle.url, frame_ms=100, frame_bytes=frame_bytes)
    await opened(sink)
    offer(sink, numbered(17, 0, frame_bytes))
    assert (sink.frames_sent, len(sink.backlog)) == (15, 2)
    await until(lambda: len(fickle.frames) == 3)
    assert fickle.frames == [b"".join(numbered(5, first, frame_bytes)) for first in (0, 5, 10)]


@pytest.mark.parametrize(("offered", "missing"), [(0, 5), (2, 3), (4, 1), (5, 5), (17, 3)])
async def test_missing_are_the_frames_that_the_next_message_lacks(
    fickle: FickleServer, start: Start, offered: int, missing: int
) -> None:
    sink, _ = start(fickle.url, frame_ms=100)
    await opened(sink)
    offer(sink, numbered(offered))
    assert sink.missing == missing


async def test_part_of_a_message_goes_when_the_time_of_a_message_is_over(
    fickle: FickleServer, start: Start
) -> None:
    sink, _ = start(fickle.url, frame_ms=60)
    await opened(sink)
    offer(sink, numbered(2))
    began = asyncio.get_running_loop().time()
    await until(lambda: fickle.frames)
    assert fickle.frames == [b"".join(numbered(2))]
    assert asyncio.get_running_loop().time() - began >= 0.055
    offer(sink, numbered(3, 2), before=2)
    await until(lambda: len(fickle.frames) == 2)
    assert fickle.frames[1] == b"".join(numbered(3, 2))


async def test_part_of_a_message_goes_before_the_close(fickle: FickleServer, start: Start) -> None:
    sink, task = start(fickle.url, frame_ms=1000)
    await opened(sink)
    offer(sink, numbered(57))
    async with asyncio.timeout(0.9):
        await sink.close(1000, "hangup")
        await task
    await until(lambda: len(fickle.frames) == 2)
    assert fickle.frames == [b"".join(numbered(50)), b"".join(numbered(7, 50))]
    assert (sink.frames_sent, sink.backlog.dropped) == (57, 0)


async def test_backlog_goes_in_whole_messages(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, frame_ms=100, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    retried = retries_of(sink)
    await fickle.go()
    await until(lambda: retried)
    offer(sink, numbered(43))
    await fickle.come()
    await until(lambda: len(fickle.frames) == 9)
    assert b"".join(fickle.frames) == b"".join(numbered(43))
    assert [len(message) // 320 for message in fickle.frames] == [5] * 8 + [3]


@pytest.mark.parametrize("frame_bytes", [20, 320, 640, 1280])
async def test_messages_of_a_broken_connection_wait_again_frame_by_frame(
    stalled: StalledServer, start: Start, frame_bytes: int
) -> None:
    sink, task = start(stalled.url, frame_ms=100, latency_budget=1, frame_bytes=frame_bytes)
    await opened(sink)
    count = 0
    while sink._outlet._takes:
        offer(sink, numbered(1, count, frame_bytes), before=count)
        count += 1
        await asyncio.sleep(0)
    stalled.transport.abort()
    await failure(task)
    waiting = [number(sink.backlog.take()) for _ in range(len(sink.backlog))]
    assert waiting == list(range(sink.frames_sent, count))
    assert 0 < len(waiting)


async def test_message_longer_than_64_kib_arrives(recorder: Recorder, start: Start) -> None:
    sink, _ = start(recorder.url(), frame_bytes=192_000)
    await opened(sink)
    sink.send(b"\x5a" * 192_000)
    recording = await recorder.wait_messages("/", 1)
    assert recording.messages == [b"\x5a" * 192_000]


# --- A server that goes and comes back -----------------------------------------------------------


@pytest.fixture
async def fickle() -> AsyncIterator[FickleServer]:
    async with FickleServer() as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Choose the limit of the first wait, and which part of the limit is drawn."""

    def choose(first_s: float, part: float = 1.0) -> None:
        monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", first_s)
        drawn = functools.partial(Retries, draw=lambda low, high: low + part * (high - low))
        monkeypatch.setattr("audiofork.relay.retry.Retries", drawn)

    choose(0.01)
    return choose


Waits = Callable[..., None]


def retries_of(sink: Sink) -> list[tuple[int, str]]:
    """Return the list to which a sink's retries are going to be added."""
    retried: list[tuple[int, str]] = []
    sink.on_retry = lambda attempt, why: retried.append((attempt, why))
    return retried


async def test_frames_that_waited_for_a_server_arrive_first_in_order_and_once(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    retried = retries_of(sink)
    offer(sink, numbered(30))
    await until(lambda: len(fickle.frames) == 30 and all_acknowledged(sink))
    await fickle.go()
    await until(lambda: retried)
    offer(sink, numbered(30, 30), before=30)
    assert (sink.frames_sent, len(sink.backlog), sink.reconnects) == (30, 30, 0)
    await until(lambda: len(retried) >= 3)
    await fickle.come()
    await opened(sink)
    assert sink.reconnects == 1
    offer(sink, numbered(30, 60), before=60)
    await until(lambda: len(fickle.frames) >= 90)
    assert fickle.frames_of == [numbered(30), numbered(60, 30)]
    assert (sink.backlog.dropped, sink.dropped_in_gap) == (0, 0)


async def test_server_that_is_away_at_first_is_tried_again(start: Start, waits: Waits) -> None:
    server = FickleServer()
    sink, _ = start(server.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: len(retried) >= 2)
    async with server:
        await opened(sink)
        await until(lambda: len(server.frames) >= 20)
        assert server.frames == numbered(20)
        assert (sink.reconnects, sink.frames_sent) == (0, 20)


async def test_each_return_of_a_server_is_counted(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    for count in range(1, 4):
        fickle.break_off()
        await opened(sink)
        assert sink.reconnects == count


async def test_gap_counts_what_was_dropped_while_the_server_was_away(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02, backlog=0.2)
    await opened(sink)
    for gap, dropped in (17, 7), (3, 0), (12, 2):
        await until(lambda: all_acknowledged(sink))
        retried = retries_of(sink)
        await fickle.go()
        await until(lambda: retried)  # noqa: B023
        for frame in numbered(gap):
            sink.send(frame)
        await fickle.come()
        await opened(sink)
        assert sink.dropped_in_gap == dropped
    assert sink.backlog.dropped == 9


async def test_gap_begins_when_the_server_takes_no_more(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02, backlog=0.2)
    await opened(sink)
    await until(lambda: fickle.connection)
    fickle.stop_reading()
    count = offer_until_stalled(sink)
    offer(sink, numbered(29, count), before=count)
    assert sink.backlog.dropped == 20
    fickle.read_on()  # a stall that ends is none of the gap
    await until(lambda: all_acknowledged(sink))
    fickle.stop_reading()
    stalled_at = sink.backlog.dropped
    while sink.backlog.dropped < stalled_at + 6:
        sink.send(numbered(1)[0])
    sent = sink.frames_sent
    fickle.break_off()
    await until(lambda: sink._connection is None)
    lost = sent - sink.frames_sent  # older than all that waits, and so the first to be dropped
    await opened(sink)
    assert lost > 0
    assert (sink.dropped_in_gap, sink.backlog.dropped) == (6 + lost, 26 + lost)


async def test_server_that_accepts_and_closes_is_backed_off(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    fickle.close_code = 1011
    sink, task = start(fickle.url, reconnect_attempts=6, reconnect_interval=0.05)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    gaps = [after - before for before, after in zip(fickle.asked, fickle.asked[1:], strict=False)]
    assert len(gaps) >= 5
    # uvloop's clock has steps of a millisecond.
    for gap, least in zip(gaps, [0.01, 0.02, 0.04, 0.05, 0.05], strict=False):
        assert gap >= least - 0.002
    assert [attempt for attempt, _ in retried][:5] == [2, 3, 4, 5, 6]
    assert sum(gaps) >= 5 * 0.05 - 0.01


async def test_loss_after_a_healthy_time_begins_the_count_anew(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 0.02)
    sink, task = start(fickle.url, reconnect_attempts=1)
    retried = retries_of(sink)
    for _ in range(3):
        await opened(sink)
        await asyncio.sleep(0.03)
        fickle.break_off()
    await opened(sink)
    assert [attempt for attempt, _ in retried] == [1, 1, 1]
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 3600)
    fickle.break_off()
    assert isinstance(await failure(task), SinkLost)


async def test_attempts_after_a_healthy_time_are_limited_too(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 0.02)
    sink, task = start(fickle.url, reconnect_attempts=3, reconnect_interval=0.02)
    retried = retries_of(sink)
    await opened(sink)
    await asyncio.sleep(0.03)
    fickle.refusals = [(503, "")] * 100
    fickle.break_off()
    assert isinstance(await failure(task), SinkUnreachable)
    assert [attempt for attempt, _ in retried][:3] == [1, 2, 3]


async def test_attempts_are_told_with_the_reason_and_end_with_the_last(
    start: Start, waits: Waits
) -> None:
    url = f"ws://127.0.0.1:{unused_port()}/"
    sink, task = start(url, reconnect_attempts=4, reconnect_interval=0.01)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkUnreachable)
    assert retried[:3] == [(2, str(error)), (3, str(error)), (4, str(error))]


async def test_retry_after_of_a_busy_server_is_obeyed_up_to_the_longest_wait(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(0.01, part=0)
    fickle.refusals = [(503, ""), (503, "60"), (429, "60")]
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.08)
    offer(sink, numbered(5))
    await until(lambda: len(fickle.frames) >= 5)
    gaps = [after - before for before, after in zip(fickle.asked, fickle.asked[1:], strict=False)]
    assert len(gaps) == 3
    assert gaps[0] < min(gaps[1:])
    assert all(0.078 <= gap < 5 for gap in gaps[1:])
    assert fickle.frames == numbered(5)


@pytest.mark.parametrize("status", [400, 404])
async def test_final_refusal_among_the_retries_ends_at_once(
    fickle: FickleServer, start: Start, waits: Waits, status: int
) -> None:
    fickle.refusals = [(503, ""), (502, ""), (status, "")]
    sink, task = start(fickle.url, reconnect_attempts=0)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkRefused)
    assert str(error) == f"the server answered HTTP {status}"
    assert [attempt for attempt, _ in retried] == [2, 3]


async def test_close_between_attempts_with_nothing_waiting_ends_at_once(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    await until(lambda: retried)
    async with asyncio.timeout(1):
        await sink.close(1000, "stopped")
        await task
    assert len(fickle.asked) == 1


async def test_close_while_the_server_is_away_goes_on_trying_until_what_waits_is_delivered(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    fickle.refusals = [(503, "")] * 5
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    async with asyncio.timeout(5):
        await sink.close(1000, "hangup")
        await task
    assert len(fickle.asked) == 6
    assert fickle.frames == numbered(20)
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (20, 0, 0)


async def test_close_while_the_server_is_away_ends_in_time(
    fickle: FickleServer, start: Start, waits: Waits, soon: float
) -> None:
    fickle.refusals = [(503, "")] * 10_000
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "hangup")
    await asyncio.wait([task], timeout=1)
    assert task.done()
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


@pytest.mark.parametrize("hurried_first", [False, True])
async def test_hurried_close_between_attempts_with_frames_waiting_tries_once_more(
    fickle: FickleServer, start: Start, waits: Waits, hurried_first: bool
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    if hurried_first:
        sink.hurry()
    closing = asyncio.create_task(sink.close(1001, "shutdown"))
    await asyncio.sleep(0)
    sink.hurry()
    async with asyncio.timeout(1):
        await closing
        await task
    assert len(fickle.asked) == 2
    assert fickle.frames == numbered(20)
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (20, 0, 0)


async def test_hurried_close_between_attempts_with_frames_waiting_gives_up_when_that_fails(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")] * 9
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    sink.hurry()
    async with asyncio.timeout(1):
        await sink.close(1001, "shutdown")
    assert isinstance(await failure(task), SinkUnreachable)
    assert len(fickle.asked) == 2
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


@pytest.mark.parametrize("was_open", [False, True])
async def test_close_between_attempts_ends_in_time_when_the_last_one_hangs(
    fickle: FickleServer,
    stalled: StalledServer,
    start: Start,
    waits: Waits,
    soon: float,
    was_open: bool,
) -> None:
    waits(3600)
    fickle.refusals = [] if was_open else [(503, "")]
    sink, task = start(
        fickle.url, reconnect_interval=3600, reconnect_attempts=0, connect_timeout=60
    )
    retried = retries_of(sink)
    if was_open:
        await opened(sink)
        fickle.break_off()
    await until(lambda: retried)
    offer(sink, numbered(20))
    stalled.hold_handshake = True
    sink._connector._url = stalled.url
    sink.hurry()
    async with asyncio.timeout(soon + 1):
        await sink.close(1001, "shutdown")
        await asyncio.wait([task])
    assert stalled.asked
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


async def test_close_when_the_server_came_back_with_a_backlog_too_large_for_it_ends_in_time(
    fickle: FickleServer, stalled: StalledServer, start: Start, waits: Waits, soon: float
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_interval=3600, reconnect_attempts=0, backlog=600)
    retried = retries_of(sink)
    offer(sink, numbered(25_000))
    await until(lambda: retried)
    sink._connector._url = stalled.url
    sink.hurry()
    async with asyncio.timeout(soon + 2):
        await sink.close(1001, "shutdown")
        await asyncio.wait([task])
    assert 0 < sink.frames_sent < 25_000
    assert sink.frames_sent + sink.backlog.dropped == 25_000


# --- Text from the server ------------------------------------------------------------------------


async def test_text_messages_are_told_in_order_and_binary_ones_are_not(
    fickle: FickleServer, start: Start
) -> None:
    sink, task = start(fickle.url)
    texts: list[str] = []
    sink.on_text = texts.append
    await until(lambda: fickle.connection)
    assert fickle.connection is not None
    for message in "one", b"two", "", "zw\u00f6lf\r\n\0", "x" * MAX_MESSAGE_BYTES:
        await fickle.connection.send(message)
    await until(lambda: len(texts) >= 4)
    assert texts == ["one", "", "zw\u00f6lf\r\n\0", "x" * MAX_MESSAGE_BYTES]
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
