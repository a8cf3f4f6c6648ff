"""What people are told of real servers that cannot be used, and what to do about it."""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from audiofork.relay import handshake_turns
from audiofork.relay.client_tls import client_tls
from audiofork.text import MAX_REASON_CHARACTERS
from tests.relay.conftest import server_tls
from tests.relay.peers import answering, until, unused_port
from tests.relay.sinks import Start, failure
from tests.test_text import is_for_people

pytestmark = pytest.mark.usefixtures("nothing_left")

PAST = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
TOKEN = "/live?token=hunter2"


@asynccontextmanager
async def websocket_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a WebSocket server of the usual library; yield its port."""

    async def handle(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0, ssl=tls) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def told(start: Start, url: str, tls: ssl.SSLContext | None = None) -> str:
    """Return what is told of a server at a URL, after what was tried."""
    _, task = start(url + TOKEN, tls) if tls else start(url + TOKEN)
    text = str(await failure(task))
    assert text.startswith(f"{url}: ")
    assert is_for_people(text)
    assert "hunter2" not in text
    assert len(text) + len("speech.eu-central-1.example.org") < MAX_REASON_CHARACTERS, "not cut"
    return text.removeprefix(f"{url}: ")


async def test_wss_to_a_websocket_server_without_tls_tells_to_use_ws(start: Start) -> None:
    async with websocket_server() as port:
        text = await told(start, f"wss://127.0.0.1:{port}")
    assert text == (
        "no TLS: the other side closed the connection during TLS; if it does not speak TLS there, "
        "use ws:// without option T, or the server's port for TLS"
    )


async def test_wss_to_a_server_that_resets_tells_to_use_ws(start: Start) -> None:
    async with answering(b"") as port:
        text = await told(start, f"wss://127.0.0.1:{port}")
    assert "if it does not speak TLS there, use ws:// without option T" in text


async def test_wss_to_a_server_that_answers_in_plain_tells_to_use_ws(start: Start) -> None:
    async with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        text = await told(start, f"wss://127.0.0.1:{port}")
    assert text == (
        "no TLS: the other side does not speak TLS on this port; use ws:// without option T, or "
        "the server's port for TLS"
    )


async def test_ws_to_a_server_with_tls_tells_to_use_wss(start: Start, tls: ssl.SSLContext) -> None:
    async with websocket_server(tls) as port:
        text = await told(start, f"ws://127.0.0.1:{port}")
    assert text.endswith("; if it speaks TLS there, use wss://")


@pytest.mark.parametrize(
    ("host", "expires", "says"),
    [
        ("localhost", PAST, "has expired: the server needs a new one"),
        (
            "example.org",
            None,
            "is for other names than localhost: address it by one of those",
        ),
    ],
    ids=["expired", "wrong name"],
)
async def test_certificate_that_is_not_accepted_tells_why(
    start: Start,
    ca: trustme.CA,
    ca_file: Path,
    host: str,
    expires: datetime.datetime | None,
    says: str,
) -> None:
    certificate = ca.issue_cert(host, not_after=expires)
    async with websocket_server(server_tls(certificate)) as port:
        text = await told(start, f"wss://localhost:{port}", client_tls(str(ca_file)))
    assert text == f"certificate not accepted: its certificate {says}"


async def test_certificate_of_an_authority_that_is_not_known_tells_where_to_add_it(
    start: Start, tls: ssl.SSLContext
) -> None:
    async with websocket_server(tls) as port:
        text = await told(start, f"wss://localhost:{port}", client_tls(""))
    assert text.endswith(
        "comes from an authority that is not trusted here; if it is right, add that authority to "
        "[websocket] ca_list_file or T(ca=NAME)"
    )


async def test_server_that_wants_a_certificate_of_ours_is_said_to(
    start: Start, ca: trustme.CA, ca_file: Path
) -> None:
    demanding = server_tls(ca.issue_cert("localhost"))
    demanding.maximum_version = ssl.TLSVersion.TLSv1_2
    demanding.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(demanding)
    async with websocket_server(demanding) as port:
        text = await told(start, f"wss://localhost:{port}", client_tls(str(ca_file)))
    assert text.startswith("no TLS: ")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (200, "200 OK; a web server, with no WebSocket at this path"),
        (302, "302 Found; redirects are not followed"),
        (400, "400 Bad Request; it may insist on a subprotocol (option s)"),
        (401, "401 Unauthorized; it wants a token or a login: option A"),
        (404, "404 Not Found; it has nothing at this path"),
        (500, "500 Internal Server Error"),
        (503, "503 Service Unavailable; it takes no more now, or a proxy has no server behind it"),
        (599, "599"),
    ],
)
async def test_http_status_in_place_of_a_websocket_is_explained(
    start: Start, status: int, says: str
) -> None:
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
    async with answering(answer) as port:
        text = await told(start, f"ws://127.0.0.1:{port}")
    assert text.startswith(f"the server answered HTTP {says}")


async def test_port_where_nobody_listens_is_said_to_be_that(start: Start) -> None:
    text = await told(start, f"ws://127.0.0.1:{unused_port()}")
    assert text == "Connection refused (no program listens there)"


async def test_address_without_a_route_is_said_to_have_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(*_: object) -> object:
        raise OSError(113, "[Errno 113] Connect call failed ('192.0.2.1', 80)")

    monkeypatch.setattr("audiofork.relay.connection.open_socket", lambda *_, **__: find())
    text = await told(start, "ws://192.0.2.1")
    assert text.startswith("No route to host (the machine is off, or a router ")


async def test_name_that_nobody_knows_is_said_to_be_that(start: Start) -> None:
    text = await told(start, "ws://nowhere.invalid")
    assert text.startswith(("no such host name: ", "the host name cannot be looked up"))


async def test_server_that_hangs_is_said_to_and_after_how_long(start: Start) -> None:
    async with answering(None) as port:
        _, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=0.5)
        async with asyncio.timeout(5):
            text = str(await failure(task))
    assert text == (
        f"ws://127.0.0.1:{port}: connected, but no answer to the WebSocket handshake within "
        "0.5 s: the server hangs, or does not speak HTTP there"
    )


async def test_server_that_says_nothing_of_tls_is_said_to(start: Start) -> None:
    async with answering(None) as port:
        text = str(await failure(start(f"wss://127.0.0.1:{port}/", connect_timeout=0.05)[1]))
    assert text.endswith(
        "TCP connected, but no TLS within 0.05 s: the server hangs, or does not speak TLS there"
    )


async def test_time_that_ends_before_its_turn_for_tls_is_not_blamed_on_the_server(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake_turns, "MOST_AT_ONCE", 0)
    monkeypatch.setattr(handshake_turns, "PATIENCE_S", 3600.0)
    async with answering(None) as port:
        before = len(os.listdir("/proc/self/fd"))
        text = str(await failure(start(f"wss://127.0.0.1:{port}/", connect_timeout=0.05)[1]))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert text.endswith(
        "TCP connected, but no turn for TLS within 0.05 s: too many other servers do not answer, "
        "or this machine is too busy"
    )
