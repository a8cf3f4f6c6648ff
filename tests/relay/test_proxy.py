"""Servers that are reached through a proxy, and what is said of a proxy that does not help."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from audiofork.config import WebSocketConfig
from audiofork.config_values import hosts, proxy
from audiofork.errors import SinkError, SinkRefused, SinkUnreachable
from audiofork.link.messages import EndFork, EndReason, ForkEnded, SinkOpened
from audiofork.relay.client_tls import client_tls
from audiofork.relay.proxy import proxy_for
from audiofork.relay.sink import Sink
from testbed.recorder import Recorder
from testbed.tunnels import Tunnels
from tests.relay.conftest import server_tls
from tests.relay.peers import FickleServer, answering, numbered, silent_address, until, unused_port
from tests.relay.relay_stage import RelayStage
from tests.relay.sinks import Start, Waits, all_acknowledged, failure, offer, opened, retries_of

pytestmark = pytest.mark.usefixtures("nothing_left")

Begin = Callable[..., object]
LOGIN = "pbx:s3cret/ü"
IN_URL = "pbx:s3cret%2F%C3%BC"


@pytest.fixture(params=["http", "https", "socks5"])
async def tunnels(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> AsyncIterator[Tunnels]:
    """Each kind of proxy; none of them wants a login."""
    async with Tunnels(request.param, tls=tls if request.param == "https" else None) as one:
        yield one


@pytest.fixture
def context(ca_file: Path) -> ssl.SSLContext:
    return client_tls(str(ca_file))


# --- What comes through it -----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_frames_come_through_whole_and_the_proxy_resolves_the_name(
    tunnels: Tunnels, tls: ssl.SSLContext, context: ssl.SSLContext, start: Start, scheme: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with Recorder(tls if scheme == "wss" else None) as recorder:
        url = f"{scheme}://localhost:{recorder.port}/live"
        sink, task = start(url, context, proxy=proxy(tunnels.url()), no_proxy=(), proxy_tls=context)
        await opened(sink)
        offer(sink, numbered(50))
        recording = await recorder.wait_messages("/live", 50)
        assert recording.messages == numbered(50)
        await until(lambda: all_acknowledged(sink))
        await sink.close(1000, "stopped")
        await task
        assert (sink.frames_sent, sink.backlog.dropped) == (50, 0)
    assert tunnels.asked == [f"localhost:{recorder.port}"]
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)  # the recorder's is closed


@pytest.mark.parametrize("tls_to_server", [False, True])
async def test_frames_that_a_broken_tunnel_lost_come_again(
    tunnels: Tunnels,
    tls: ssl.SSLContext,
    context: ssl.SSLContext,
    start: Start,
    waits: Waits,
    tls_to_server: bool,
) -> None:
    async with FickleServer(tls if tls_to_server else None) as server:
        wanted = {"proxy": proxy(tunnels.url()), "no_proxy": (), "proxy_tls": context}
        sink, _ = start(server.url, context, reconnect_attempts=0, **wanted)
        await opened(sink)
        offer(sink, numbered(10))
        await until(lambda: len(server.frames) == 10)
        await until(lambda: all_acknowledged(sink))
        server.break_off()
        await until(lambda: len(tunnels.asked) == 2)
        offer(sink, numbered(10, 10), before=10)
        await until(lambda: len(server.frames) == 20)
        assert server.frames == numbered(20)


@pytest.mark.parametrize("tunnels", ["http", "socks5"], indirect=True)
async def test_address_is_asked_for_as_an_address(
    tunnels: Tunnels, recorder: Recorder, start: Start
) -> None:
    await opened(start(recorder.url(), proxy=proxy(tunnels.url()), no_proxy=())[0])
    assert tunnels.asked == [f"127.0.0.1:{recorder.port}"]


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("way", ["url", "login"])
async def test_login_reaches_the_proxy_by_its_url_or_its_option(
    recorder: Recorder, start: Start, scheme: str, way: str
) -> None:
    async with Tunnels(scheme, LOGIN) as tunnels:
        wanted = (
            {"proxy": proxy(tunnels.url(IN_URL))}
            if way == "url"
            else {"proxy": proxy(tunnels.url("other:wrong")), "proxy_login": LOGIN}
        )
        await opened(start(recorder.url(), no_proxy=(), **wanted)[0])


async def test_certificate_of_the_server_has_to_be_for_its_name_through_a_proxy_too(
    tunnels: Tunnels, ca: trustme.CA, context: ssl.SSLContext, start: Start
) -> None:
    tunnels.addresses["bank.example"] = "127.0.0.1"
    async with Recorder(server_tls(ca.issue_cert("elsewhere.example"))) as recorder:
        url = f"wss://bank.example:{recorder.port}/"
        wanted = {"proxy": proxy(tunnels.url()), "proxy_tls": context}
        error = await failure(start(url, context, **wanted)[1])
    assert isinstance(error, SinkRefused)
    assert "certificate not accepted: its certificate is for other names than bank" in str(error)
    assert f"(by the proxy {tunnels.url()})" in str(error)


# --- What goes directly --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("localhost", "localhost", True),
        ("LocalHost.", "localhost", True),
        ("127.0.0.9", "127.0.0.0/8", True),
        ("::ffff:127.0.0.9", "127.0.0.0/8", True),
        ("127.1", "127.0.0.1", True),
        ("128.0.0.1", "127.0.0.0/8", False),
        ("::1", "[::1]", True),
        ("a.b.example.org", "*.example.org", True),
        ("example.org", "*.example.org", False),
        ("example.org.net", "example.org", False),
        ("10.0.0.1", "*", True),
        ("10.0.0.1", "10.0.*", True),
        ("10.1.0.1", "10.0.*", False),
        ("any.example", "*", True),
        ("any.example", "", False),
        ("example.org", "example.org.", True),
        ("xn--jrgen-kva.example.org", "J\u00fcrgen.example.org", True),
        ("xn--jrgen-kva.example.org", "xn--jrgen-kva.example.org", True),
        ("a.xn--jrgen-kva.de", "*.j\u00fcrgen.de", True),
        ("a.xn--jrgen-kva.de", "*.xn--jrgen-kva.de", True),
    ],
)
def test_host_of_no_proxy_is_connected_to_directly(
    host: str, no_proxy: str, is_direct: bool
) -> None:
    config = WebSocketConfig(proxy=proxy("http://h:1"), no_proxy=hosts(no_proxy))
    assert bool(proxy_for(host, config)) is not is_direct


async def test_server_of_this_machine_is_connected_to_directly_by_default(
    recorder: Recorder, start: Start
) -> None:
    dead = proxy(f"http://127.0.0.1:{unused_port()}")
    await opened(start(recorder.url(), proxy=dead)[0])


async def test_proxy_of_a_fork_goes_before_the_configured_one_and_before_no_proxy(
    recorder: Recorder, relay: RelayStage
) -> None:
    async with Tunnels("http") as tunnels:
        fork_id = relay.begin(recorder.url(), proxy=proxy(tunnels.url()))
        await relay.reported(SinkOpened, fork_id)
        assert tunnels.asked == [f"127.0.0.1:{recorder.port}"]
        relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
        await relay.reported(ForkEnded, fork_id)


async def test_authorities_of_an_https_proxy_are_the_configured_ones(
    recorder: Recorder, ca_file: Path, tls: ssl.SSLContext
) -> None:
    async with Tunnels("https", tls=tls) as tunnels:
        relay = RelayStage(
            WebSocketConfig(ca_list_file=str(ca_file), proxy=proxy(tunnels.url()), no_proxy=())
        )
        await relay.worker.start()
        await relay.reported(SinkOpened, relay.begin(recorder.url()))
        await relay.worker.close()


# --- Where it may not lead -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["10.0.0.1", "[::1]", "127.1", "localhost", "a.localhost."])
async def test_private_address_is_refused_where_it_can_be_seen_before_a_proxy_is_asked(
    system_tls: ssl.SSLContext, host: str
) -> None:
    async with Tunnels("http") as tunnels:
        config = WebSocketConfig(proxy=proxy(tunnels.url()), no_proxy=())
        sink = Sink(f"ws://{host}:1/", config, system_tls, allow_private=False)
        error = await failure(asyncio.create_task(sink.run()))
        assert not tunnels.asked
    assert isinstance(error, SinkRefused)
    assert "a private address, which [security] allow_private forbids" in str(error)


async def test_proxy_itself_may_have_a_private_address(system_tls: ssl.SSLContext) -> None:
    async with Tunnels("http") as tunnels:
        config = WebSocketConfig(proxy=proxy(tunnels.url()), reconnect_attempts=1)
        sink = Sink("ws://name.invalid:1/", config, system_tls, allow_private=False)
        error = await failure(asyncio.create_task(sink.run()))
        assert tunnels.asked == ["name.invalid:1"]
    assert "the proxy answered HTTP 502" in str(error)


# --- Its faults ----------------------------------------------------------------------------------


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode()


MUCH = (SinkUnreachable, "the proxy sent 16384 bytes and no answer")
FAULTS: dict[str, tuple[str, bytes | None, type[SinkError], str]] = {
    "403": ("http", http("403 No"), SinkRefused, "answered HTTP 403 Forbidden; it does not let us"),
    "407": ("http", http("407 No"), SinkRefused, "wants a login, or another one: proxy_login"),
    "407 Basic": (
        "http",
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM, Basic realm=a\r\n\r\n",
        SinkRefused,
        "wants a login, or another one: proxy_login",
    ),
    "407 NTLM": (
        "http",
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
        SinkRefused,
        "it wants a login, but not a Basic one, as audiofork has: negotiate, ntlm",
    ),
    "502": ("http", http("502 No"), SinkUnreachable, "HTTP 502 Bad Gateway; it does not reach"),
    "302": ("http", http("302 No"), SinkRefused, "it is a web server, not a proxy"),
    "garbage": ("http", b"220 mail.example ESMTP\r\n\r\n", SinkUnreachable, "speaks no HTTP"),
    "binary": ("http", bytes(range(256)), SinkUnreachable, "speaks no HTTP"),
    "half": ("http", b"HTTP/1.1 200 O", SinkUnreachable, "the proxy closed without an answer"),
    "reset": ("http", b"", SinkUnreachable, "the proxy"),
    "no end": ("http", b"HTTP/1.1 200 " + b"x" * 99_999, SinkUnreachable, "speaks no HTTP"),
    "much": ("http", b"HTTP/1.1 200 a\r\n" + b"a: %b\r\n" % (b"x" * 4000) * 9, *MUCH),
    "many lines": (
        "http",
        b"HTTP/1.1 200 a\r\n" + b"a: b\r\n" * 9999,
        SinkUnreachable,
        "the proxy",
    ),
    "talkative": ("http", b"HTTP/1.1 200 OK\r\n\r\nhello", SinkUnreachable, "more than its answer"),
    "no socks": ("socks5", http("400 Bad"), SinkUnreachable, "the proxy speaks no SOCKS5"),
    "socks talkative": (
        "socks5",
        b"\5\0" + b"\5\0\0\1\0\0\0\0\0\0hello",
        SinkUnreachable,
        "more than its answer",
    ),
    "socks half": ("socks5", b"\5", SinkUnreachable, "the proxy closed without an answer"),
    "socks kind": ("socks5", b"\5\0\5\0\0\7", SinkUnreachable, "the proxy speaks no SOCKS5"),
    "socks login": ("socks5", b"\5\xff", SinkRefused, "the proxy wants a login: proxy_login"),
    "socks no login": ("socks5", b"\5\2", SinkRefused, "the proxy wants a login: proxy_login"),
    **{
        f"socks {code}": ("socks5", struct.pack("BBBB", 5, 0, 5, code), kind, text)
        for code, kind, text in (
            (1, SinkUnreachable, "it has failed"),
            (2, SinkRefused, "it does not let us connect"),
            (4, SinkUnreachable, "does not find its name"),
            (5, SinkUnreachable, "the server refused its connection"),
            (8, SinkRefused, "this kind of address"),
            (99, SinkUnreachable, "the unknown reply 99"),
        )
    },
}


@pytest.mark.parametrize(("scheme", "answer", "kind", "text"), FAULTS.values(), ids=FAULTS)
async def test_proxy_that_does_not_connect_is_told_by_its_name_without_its_login(
    start: Start, scheme: str, answer: bytes | None, kind: type[SinkError], text: str
) -> None:
    async with answering(answer) as port:
        before = len(os.listdir("/proc/self/fd"))
        wanted = proxy(f"{scheme}://127.0.0.1:{port}")
        error = await failure(start("ws://server.example/?token=x", proxy=wanted)[1])
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert type(error) is kind
    told = str(error)
    assert told.startswith(f"ws://server.example (by the proxy {scheme}://127.0.0.1:{port}): ")
    assert text in told


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_login_that_the_proxy_does_not_accept_is_final_and_not_told(
    start: Start, scheme: str
) -> None:
    async with Tunnels(scheme, LOGIN) as tunnels:
        wanted = proxy(tunnels.url("pbx:hunter2"))
        error = await failure(start("ws://server.example/", proxy=wanted)[1])
    assert isinstance(error, SinkRefused)
    assert "proxy_login" in str(error)
    assert "hunter2" not in str(error)
    assert "hunter2" not in repr(wanted) + str(wanted)


async def test_login_that_a_socks_proxy_wants_none_of_is_not_sent(
    start: Start, recorder: Recorder
) -> None:
    async with Tunnels("socks5") as tunnels:
        await opened(start(recorder.url(), proxy=proxy(tunnels.url("pbx:hunter2")), no_proxy=())[0])


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_proxy_that_nobody_listens_at_is_told_and_tried_again(
    start: Start, waits: Waits, scheme: str
) -> None:
    dead = f"{scheme}://127.0.0.1:{unused_port()}"
    sink, _ = start("ws://server.example/", proxy=proxy(dead), reconnect_attempts=0)
    retried = retries_of(sink)
    await until(lambda: len(retried) >= 2)
    text = f"ws://server.example (by the proxy {dead}): the proxy: Connection refused"
    assert [attempt for attempt, _ in retried[:2]] == [2, 3]
    assert retried[0][1].startswith(text)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_proxy_that_never_answers_ends_the_attempt_in_time_and_leaves_nothing(
    start: Start, system_tls: ssl.SSLContext, scheme: str
) -> None:
    async with answering(None) as port:
        before = len(os.listdir("/proc/self/fd"))
        wanted = {"proxy": proxy(f"{scheme}://127.0.0.1:{port}"), "proxy_tls": system_tls}
        sink, task = start("ws://server.example/", connect_timeout=0.05, **wanted)
        error = await failure(task)
        assert isinstance(error, SinkUnreachable)
        assert ": no answer of the proxy within 0.05 s: it hangs, " in str(error)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_proxy_that_drops_what_comes_ends_the_attempt_in_time(start: Start) -> None:
    with silent_address() as (host, port):
        wanted = proxy(f"http://{host}:{port}")
        error = await failure(start("ws://server.example/", proxy=wanted, connect_timeout=0.05)[1])
    assert ": no TCP connection to the proxy within 0.05 s: a firewall" in str(error)


async def test_proxy_whose_name_is_not_found_is_told(start: Start) -> None:
    wanted = proxy("http://nowhere.invalid:3128")
    error = await failure(start("ws://server.example/", proxy=wanted)[1])
    assert isinstance(error, SinkUnreachable)
    assert "(by the proxy http://nowhere.invalid:3128): the proxy: " in str(error)


async def test_certificate_of_a_proxy_is_verified_whatever_option_t_has(
    ca: trustme.CA, system_tls: ssl.SSLContext, start: Start
) -> None:
    insecure = client_tls("", insecure=True)
    async with Tunnels("https", tls=server_tls(ca.issue_cert("localhost"))) as tunnels:
        wanted = {"proxy": proxy(tunnels.url()), "proxy_tls": system_tls}
        error = await failure(start("wss://server.example/", insecure, **wanted)[1])
        assert not tunnels.asked
    assert isinstance(error, SinkRefused)
    assert "the proxy's certificate is not accepted" in str(error)


async def test_https_proxy_that_speaks_no_tls_is_told(
    start: Start, system_tls: ssl.SSLContext
) -> None:
    async with answering(http("400 Bad Request")) as port:
        wanted = {"proxy": proxy(f"https://127.0.0.1:{port}"), "proxy_tls": system_tls}
        error = await failure(start("ws://server.example/", **wanted)[1])
    assert isinstance(error, SinkUnreachable)
    assert "the proxy: " in str(error)
    assert "TLS" in str(error)
