"""The connection to NATS: logins, TLS, refusals and hostile messages, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import nats.errors
import pytest
import trustme
import uvloop
from nats.aio.client import Client
from nats.js.kv import KeyValue

from audiofork.cluster.broker import Broker, Question
from audiofork.cluster.complaints import Complaints
from audiofork.config import ClusterConfig
from audiofork.config_cluster import _credentials
from audiofork.errors import BrokerUnavailable
from testbed.nats import NatsServer, nats_servers
from testbed.nats_keys import Operator, new_key
from tests.cluster.conftest import Connect
from tests.relay.peers import until
from tests.told_clock import Clock

pytestmark = [
    pytest.mark.nats,
    # NATS' client lets go of connections that are closed, and of failed ones, without a word.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextlib.asynccontextmanager
async def connecting(config: ClusterConfig) -> AsyncIterator[Broker]:
    """Run a broker that may connect, or may not."""
    broker = Broker(config, "test")
    task = asyncio.create_task(broker.connect())
    try:
        yield broker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await broker.close()


async def says(caplog: pytest.LogCaptureFixture, text: str) -> None:
    await until(lambda: text in caplog.text, 10)


# --- TLS -----------------------------------------------------------------------------------------


class Plain:
    """A server, or somebody in between, that offers no TLS.

    Attributes:
        heard: What was sent to it.
        connections: How many there were.
    """

    def __init__(self, says: bytes = b"") -> None:
        self.heard = b""
        self.connections = 0
        self._says = says  # after each login

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1000, "nonce": "abc"}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1000):
                self.heard += chunk
                if b"PING" in chunk:
                    writer.write(b"PONG\r\n" + self._says)
        writer.close()


@pytest.mark.parametrize("nkey", ["", new_key().seed], ids=["no login", "nkey"])
async def test_nothing_is_sent_to_a_server_that_offers_no_tls(
    nkey: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Plain()
    server = await asyncio.start_server(plain.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with connecting(ClusterConfig(servers=(f"tls://127.0.0.1:{port}",), nkey=nkey)):
            await says(caplog, "the NATS server offers no TLS")
            await until(lambda: plain.connections >= 3, 10)
        assert plain.heard == b""
        assert caplog.text.count("offers no TLS") == 1
        async with connecting(ClusterConfig(servers=(f"nats://127.0.0.1:{port}",))):
            await until(lambda: b"CONNECT" in plain.heard, 10)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    one = trustme.CA()
    one.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return one


def tls(authority: trustme.CA, folder: Path, name: str = "localhost") -> str:
    certificate = authority.issue_cert(name)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return f'tls {{ cert_file: "{folder}/server.pem", key_file: "{folder}/server.pem" }}\n'


@pytest.mark.parametrize(
    ("host", "name", "other_authority", "told"),
    [
        ("localhost", "localhost", True, "from an authority that is not trusted here"),
        ("127.0.0.1", "localhost", False, "its certificate is for other names than 127.0.0.1"),
        ("localhost", "b.example.org", False, "is for other names than localhost"),
    ],
)
async def test_wrong_certificate_is_refused_and_told(
    host: str,
    name: str,
    other_authority: bool,
    told: str,
    authority: trustme.CA,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    signer = trustme.CA() if other_authority else authority
    with nats_servers(more=tls(signer, tmp_path, name)) as (server,):
        url = f"tls://{host}:{server.port}"
        async with connecting(
            ClusterConfig(servers=(url,), ca_file=str(tmp_path / "ca.pem"))
        ) as broker:
            await says(caplog, told)
            assert not broker.is_up
    if other_authority:
        assert "add that authority to [cluster] ca_file" in caplog.text


@pytest.fixture
def tls_lines(authority: trustme.CA, tmp_path: Path) -> str:
    """Lines of a server's configuration, by which clients come over TLS."""
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    return f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}\n'


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(path)
    return path


def tls_url(server: NatsServer) -> str:
    return server.url.replace("nats:", "tls:")


async def test_certificate_is_verified_and_a_server_with_another_does_not_keep_us_from_the_next(
    caplog: pytest.LogCaptureFixture, tls_lines: str, ca_file: str, tmp_path: Path
) -> None:
    pem = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    other_lines = f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}\n'
    with nats_servers(more=other_lines) as (other,), nats_servers(more=tls_lines) as (server,):
        for _ in range(4):  # which is tried first is chance
            config = ClusterConfig(servers=(tls_url(other), tls_url(server)), ca_file=ca_file)
            async with connecting(config) as broker:
                await until(lambda broker=broker: broker.is_up, 10)  # type: ignore[misc]
                assert broker.server == f"127.0.0.1:{server.port}"
        async with connecting(ClusterConfig(servers=(tls_url(server),))):
            await says(caplog, "an authority that is not trusted here")


@pytest.mark.parametrize("over_tls", [False, True])
async def test_server_that_is_frozen_is_left_for_another(
    caplog: pytest.LogCaptureFixture, tls_lines: str, ca_file: str, over_tls: bool
) -> None:
    with nats_servers(2, more=tls_lines if over_tls else "") as servers:
        urls = tuple(tls_url(one) if over_tls else one.url for one in servers)
        async with connecting(ClusterConfig(servers=urls, ca_file=ca_file)) as broker:
            await until(lambda: broker.is_up, 10)
            first = broker.server
            (frozen,) = [one for one in servers if first.endswith(f":{one.port}")]
            frozen.signal(signal.SIGSTOP)
            await until(lambda: broker.is_up and broker.server != first, 15)
            frozen.signal(signal.SIGCONT)


# --- Logins --------------------------------------------------------------------------------------


def users(*publics: str) -> str:
    return "authorization { users: [" + " ".join(f"{{ nkey: {one} }}" for one in publics) + "] }\n"


@pytest.mark.parametrize(
    ("has_key", "told"),
    [
        (True, "its user needs the public key of the seed in [cluster] nkey_file"),
        (False, "it wants one: set [cluster] nkey_file"),
    ],
    ids=["unknown key", "no key"],
)
async def test_refused_login_is_told_once_and_tried_again_until_it_is_known(
    has_key: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key()
    with nats_servers(more=users(new_key().public)) as (server,):
        config = ClusterConfig(servers=(server.url,), nkey=key.seed if has_key else "")
        async with connecting(config) as broker:
            await says(caplog, told)
            await asyncio.sleep(1)
            assert caplog.text.count("NATS refuses the login") == 1
            server.reconfigure(users(key.public) if has_key else "")
            await until(lambda: broker.is_up, 10)
            await broker.flush()
        assert key.seed not in caplog.text + server.log


async def test_user_that_is_removed_and_comes_back_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key, heard = new_key(), []
    with nats_servers(more=users(key.public)) as (server,):
        async with connecting(ClusterConfig(servers=(server.url,), nkey=key.seed)) as broker:
            await until(lambda: broker.is_up, 10)
            await broker.subscribe("a", lambda _subject, payload: heard.append(payload))
            bucket = await broker.bucket("b")
            server.reconfigure(users(new_key().public))
            await says(caplog, "NATS refuses the login")
            await until(lambda: not broker.is_up, 10)
            server.reconfigure(users(key.public))
            await says(caplog, "connected to the NATS server")
            await until(lambda: broker.is_up, 10)
            await broker.flush()
            broker.publish("a", b"x")
            await until(lambda: heard == [b"x"], 10)
            assert await bucket.put("k", b"v")


async def test_credentials_log_in_and_expired_ones_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    operator = Operator()
    with nats_servers(more=operator.config) as (server,):
        config = ClusterConfig(
            servers=(server.url,), credentials=_credentials(operator.credentials(lives_s=2))
        )
        async with connecting(config) as broker:
            await until(lambda: broker.is_up, 10)
            await broker.flush()
            await says(caplog, "are the credentials of [cluster] credentials_file")


async def test_connection_that_the_server_ends_with_an_error_is_opened_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    feigned = Plain(b"-ERR 'User Authentication Expired'\r\n")
    async with await asyncio.start_server(feigned.serve, "127.0.0.1", 0) as listening:
        url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with connecting(ClusterConfig(servers=(url,))):
            await until(lambda: feigned.heard.count(b"CONNECT") >= 3, 10)
    assert "NATS refuses the login" in caplog.text


async def test_server_that_is_not_there_is_told_once_until_it_is(
    caplog: pytest.LogCaptureFixture, server: NatsServer
) -> None:
    server.kill()
    told = "no NATS server can be reached: Connection refused"
    async with connecting(ClusterConfig(servers=(server.url,))) as broker:
        await says(caplog, told)
        await asyncio.sleep(1)
        assert caplog.text.count(told) == 1
        server.start()
        await until(lambda: broker.is_up, 10)
        server.kill()
        await until(lambda: caplog.text.count(told) == 2, 10)


async def test_attempt_to_connect_can_be_given_up_at_any_time() -> None:
    """NATS' client swallows the cancellation where it closes a connection."""
    plain, rng = Plain(), Random(1)
    async with await asyncio.start_server(plain.serve, "127.0.0.1", 0) as listening:
        url = f"tls://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for _ in range(60):
            async with asyncio.timeout(20), connecting(ClusterConfig(servers=(url,))):
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)


# --- What is not allowed -------------------------------------------------------------------------


@pytest.fixture
def permitted() -> tuple[str, str]:
    """Return the configuration of a user with few permissions, and his seed."""
    key = new_key()
    allowed = 'permissions: { publish: ["ours.>"], subscribe: ["ours.>", "_INBOX.client.>"] }'
    return f"authorization {{ users: [{{ nkey: {key.public}, {allowed} }}] }}\n", key.seed


async def test_what_is_not_permitted_is_told_with_the_subject_and_what_to_do(
    permitted: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    more, seed = permitted
    with nats_servers(more=more) as (server,):
        async with connecting(ClusterConfig(servers=(server.url,), nkey=seed)) as broker:
            await until(lambda: broker.is_up, 10)
            for _ in range(20):
                broker.publish("theirs.A", b"")
            await broker.subscribe("theirs.*", lambda *_: None)
            await says(caplog, 'NATS does not allow us to subscribe to "theirs.*"')
            await says(caplog, 'NATS does not allow us to publish to "theirs.a"')
            await broker.flush()
            assert caplog.text.count('NATS does not allow us to publish to "theirs.a"') == 1
            assert "compare the permissions" in caplog.text
            with pytest.raises(BrokerUnavailable):
                await broker.bucket("b")


def test_host_that_may_not_register_tells_that_once_for_each_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    complaints = Complaints(ClusterConfig(), clock)
    refused = nats.errors.Error('permissions violation for publish to "$kv.audiofork-hosts.r1"')
    for _ in range(100):
        complaints.say(refused)
        clock.now_s += 20.0
    (line,) = caplog.messages
    assert line.startswith("NATS does not allow this relay host to register in the bucket audio")
    complaints.forget()  # it has connected anew
    complaints.say(refused)
    assert len(caplog.messages) == 2


async def test_message_that_is_longer_than_the_server_takes_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[bytes] = []
    with nats_servers(more="max_payload: 1000\n") as (server,):
        async with connecting(ClusterConfig(servers=(server.url,))) as broker:
            await until(lambda: broker.is_up, 10)
            await broker.subscribe("a", lambda _subject, payload: heard.append(payload))
            broker.publish("a", bytes(1001))
            broker.publish("a", bytes(1000))
            await until(lambda: bool(heard), 10)
    assert [len(one) for one in heard] == [1000]
    assert "a message of 1001 bytes to a is not sent: the NATS server takes 1000" in caplog.text


# --- Buckets -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bucket_of(urls: tuple[str, ...], replicas: int) -> AsyncIterator[KeyValue]:
    """Have a bucket, as soon as the servers agree on who leads them."""
    async with connecting(ClusterConfig(servers=urls, replicas=replicas)) as broker:
        await until(lambda: broker._stream is not None, 10)
        async with asyncio.timeout(30):
            while True:
                try:
                    bucket = await broker.bucket("b")
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.2)
        yield bucket


async def value_of(bucket: KeyValue, key: str) -> bytes | None:
    """Return a value; in the moment of a change the servers may not answer."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await bucket.get(key)).value
            except nats.errors.TimeoutError:
                continue


async def count_replicas(bucket: KeyValue) -> int | None:
    return (await bucket.status()).stream_info.config.num_replicas


async def test_bucket_of_one_server_is_kept_by_more_when_more_are_configured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with nats_servers(3) as servers:
        urls = tuple(server.url for server in servers)
        async with bucket_of(urls, 1) as bucket:
            await bucket.put("key", b"value")
        async with bucket_of(urls, 3) as bucket:
            assert await count_replicas(bucket) == 3
            assert await value_of(bucket, "key") == b"value"
        assert "bucket b is kept by 3 servers from now on" in caplog.text
        async with bucket_of(urls, 1) as bucket:
            assert await count_replicas(bucket) == 3


async def test_bucket_that_cannot_be_kept_by_more_servers_is_used_as_it_is(
    caplog: pytest.LogCaptureFixture, server: NatsServer
) -> None:
    async with bucket_of((server.url,), 1), bucket_of((server.url,), 3) as bucket:
        await bucket.put("key", b"value")
    assert "bucket b is kept by fewer than 3 servers" in caplog.text


# --- Messages that harm --------------------------------------------------------------------------


class Raw:
    """A client that writes what it likes."""

    def __init__(self, server: NatsServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')

    def publish(self, subject: bytes, headers: bytes, payload: bytes, reply: bytes = b"") -> None:
        sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
        line = b" ".join(filter(None, (b"HPUB", subject, reply, sizes)))
        self._socket.sendall(line + b"\r\n" + headers + payload + b"\r\nPING\r\n")
        self._socket.recv(1000)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def heard_by(connect: Connect) -> tuple[Broker, list[tuple[str, bytes]]]:
    broker = await connect()
    heard: list[tuple[str, bytes]] = []
    await broker.subscribe("ours.*", lambda subject, payload: heard.append((subject, payload)))
    await broker.flush()
    return broker, heard


@pytest.mark.parametrize(
    ("subject", "headers"),
    [
        (b"ours.a", b"x"),
        (b"ours.a", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        (b"ours.a", b"NATS/1.0\r\nA: b\r\n\r\n"),
        (b"ours.\xff", b"NATS/1.0\r\n\r\n"),
    ],
    ids=["no headers", "binary status", "headers", "binary subject"],
)
async def test_damaged_message_is_counted_and_the_next_one_comes(
    subject: bytes,
    headers: bytes,
    heard_by: tuple[Broker, list[tuple[str, bytes]]],
    server: NatsServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, heard = heard_by
    changes: list[bool] = []
    broker.on_change(changes.append)
    raw = Raw(server)
    for _ in range(50):
        raw.publish(subject, headers, b"evil")
    raw.close()
    broker.publish("ours.a", b"good")
    await until(lambda: bool(heard), 10)
    assert heard == [("ours.a", b"good")]
    await asyncio.sleep(1.5)  # a client that reads no more would be found out by its pings
    broker.publish("ours.a", b"good")
    await until(lambda: len(heard) == 2, 10)
    assert changes == []
    assert 1 <= caplog.text.count("messages over NATS without effect") <= 3


async def test_what_jetstream_delivers_to_our_subject_is_no_message(
    heard_by: tuple[Broker, list[tuple[str, bytes]]], server: NatsServer
) -> None:
    """Whoever may have a consumer, or read directly, can make it answer to any subject."""
    broker, heard = heard_by
    client = Client()
    await client.connect(server.url)
    stream = client.jetstream()
    bucket = await stream.create_key_value(bucket="theirs", direct=True)
    await bucket.put("a", b"evil")
    direct = "$JS.API.DIRECT.GET.KV_theirs.$KV.theirs.a"
    await client.publish(direct, b"", reply="ours.a")
    await stream.add_consumer("KV_theirs", name="c", ack_policy="none")
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.KV_theirs.c", b"1", reply="ours.a")
    await client.flush()
    await until(lambda: broker._strange.total == 2, 10)
    assert heard == []
    await client.close()


async def test_fault_of_a_handler_is_logged_once_a_second(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await connect()
    count = 0

    def fails(_subject: str, _payload: bytes) -> None:
        nonlocal count
        count += 1
        raise KeyError("bug")

    await broker.subscribe("a", fails)
    for _ in range(500):
        broker.publish("a", b"")
    await until(lambda: count == 500, 10)
    assert 1 <= caplog.text.count("Traceback") <= 2


# --- Requests ------------------------------------------------------------------------------------


async def test_request_whose_answer_would_go_elsewhere_is_not_heard(
    connect: Connect, server: NatsServer
) -> None:
    """Our answer might be taken for an order, or for an entry of a bucket."""
    broker, other = await connect(), await connect("b")
    asked: list[bytes] = []

    def answer(question: Question) -> None:
        asked.append(question.payload)
        broker.publish(question.reply, question.payload.upper())
        broker.publish(question.reply, b"")

    await broker.subscribe_questions("ours.request", answer)
    await broker.flush()
    raw = Raw(server)
    raw.publish(b"ours.request", b"NATS/1.0\r\n\r\n", b"evil", reply=b"$KV.b.k")
    raw.publish(b"ours.request", b"NATS/1.0\r\n\r\n", b"none")
    raw.close()
    assert [one async for one in other.request_many("ours.request", b"a", 5, "me")] == [b"A"]
    assert asked == [b"a"]


# --- Another server ------------------------------------------------------------------------------


async def test_it_moves_to_the_next_server_and_hears_there_what_it_has_subscribed_to() -> None:
    with nats_servers(3) as servers:
        broker = Broker(ClusterConfig(servers=tuple(one.url for one in servers)), "test")
        await broker.connect()
        heard: list[bytes] = []
        await broker.subscribe("audiofork.beat.*", lambda _, payload: heard.append(payload))
        seen = {broker.server}
        for _ in range(2):
            await broker.move()
            await until(lambda: broker.is_up and broker.server not in seen, 10)
            seen.add(broker.server)
        await broker.flush()
        broker.publish("audiofork.beat.r1", b"{}")
        await until(lambda: heard == [b"{}"], 10)
        await broker.close()


async def test_it_stays_where_there_is_no_other(connect: Connect) -> None:
    broker = await connect()
    await broker.move()
    assert broker.is_up


# --- The end -------------------------------------------------------------------------------------


def test_client_that_has_something_left_to_say_closes_while_the_server_is_away(
    server: NatsServer,
) -> None:
    async def close() -> None:
        broker = Broker(ClusterConfig(servers=(server.url,)), "test")
        await broker.connect()
        subscription = await broker.subscribe("a", lambda *_: None)
        server.kill()
        await until(lambda: not broker.is_up, 30)
        await subscription.unsubscribe()  # waits to be sent
        await broker.close()

    uvloop.run(close())  # it raises where asyncio drops what is written too late
