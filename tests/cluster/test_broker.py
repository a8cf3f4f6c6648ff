"""The connection to NATS: how it begins, and what is told while it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import nkeys
import pytest
import trustme
from nats.js.kv import KeyValue

from audiofork.cluster.broker import Broker, login_of
from audiofork.config import ClusterConfig
from audiofork.errors import BrokerUnavailable, ConfigError
from testbed.nats import NatsServer, nats_servers
from tests.relay.peers import until

pytestmark = pytest.mark.slow


def key() -> tuple[bytes, str]:
    """Return a new NKey of a user: its seed, and its public part."""
    seed = bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
    return seed, nkeys.from_seed(bytearray(seed)).public_key.decode()


@asynccontextmanager
async def connecting(config: ClusterConfig) -> AsyncIterator[Broker]:
    """Begin to connect."""
    broker = Broker(config, "a")
    task = asyncio.create_task(broker.connect())
    try:
        yield broker
    finally:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await broker.close()


async def told(caplog: pytest.LogCaptureFixture, text: str, **config: str) -> None:
    """Begin to connect, and wait until the log has a text."""
    servers = tuple(config.pop("servers").split())
    async with connecting(ClusterConfig(servers=servers, **config)):  # type: ignore[arg-type]
        await until(lambda: text in caplog.text, 10)


async def test_server_that_is_not_there_is_told_once_and_is_tried_again(
    caplog: pytest.LogCaptureFixture, server: NatsServer
) -> None:
    server.kill()
    async with connecting(ClusterConfig(servers=(server.url,))) as broker:
        await until(lambda: "no NATS server can be reached yet" in caplog.text, 10)
        await asyncio.sleep(1)
        assert caplog.text.count("no NATS server can be reached yet: Connection refused") == 1
        server.start()
        await until(lambda: broker.is_up, 10)
        server.kill()
        await until(lambda: caplog.text.count("no NATS server can be reached yet") == 2, 10)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[NatsServer, Path]]:
    """A server that lets one key in, and the file with its seed."""
    seed, public = key()
    file = tmp_path / "seed"
    file.write_bytes(seed + b"\n")
    with nats_servers(more=f"authorization {{ users: [{{ nkey: {public} }}] }}\n") as (one,):
        yield one, file


async def test_server_that_refuses_the_login_is_told(
    caplog: pytest.LogCaptureFixture, guarded: tuple[NatsServer, Path], tmp_path: Path
) -> None:
    server, file = guarded
    async with connecting(ClusterConfig(servers=(server.url,), nkey_file=str(file))) as broker:
        await until(lambda: broker.is_up, 10)
    (tmp_path / "other").write_bytes(key()[0])
    refused = "can be reached yet: nats: 'Authorization Violation'"
    await told(caplog, refused, servers=server.url, nkey_file=str(tmp_path / "other"))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


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
        await told(caplog, "an authority that is not trusted here", servers=tls_url(server))


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


async def test_server_without_tls_is_refused_where_the_url_has_tls(
    caplog: pytest.LogCaptureFixture, server: NatsServer
) -> None:
    async with connecting(ClusterConfig(servers=(tls_url(server),))) as broker:
        await until(lambda: "it does not demand TLS" in caplog.text, 10)
        assert not broker.is_up


class Feigned:
    """A NATS server that says what it is told to after each login.

    Attributes:
        logins: How many there were.
    """

    def __init__(self, says: bytes) -> None:
        self.logins = 0
        self._says = says

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1000}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line.startswith(b"CONNECT"):
                    self.logins += 1
                elif line.startswith(b"PING"):
                    writer.write(b"PONG\r\n" + self._says)
        writer.close()


async def test_connection_that_the_server_ends_with_an_error_is_opened_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    feigned = Feigned(b"-ERR 'User Authentication Expired'\r\n")
    async with await asyncio.start_server(feigned.serve, "127.0.0.1", 0) as listening:
        url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with connecting(ClusterConfig(servers=(url,))):
            await until(lambda: feigned.logins >= 3, 10)
    assert "NATS: user authentication expired" in caplog.text


async def test_what_the_server_does_not_allow_is_told(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    seed, public = key()
    (tmp_path / "seed").write_bytes(seed)
    user = f'{{ nkey: {public}, permissions: {{ publish: "a", subscribe: "b" }} }}'
    with nats_servers(more=f"authorization {{ users: [{user}] }}\n") as (server,):
        config = ClusterConfig(servers=(server.url,), nkey_file=str(tmp_path / "seed"))
        async with connecting(config) as broker:
            await until(lambda: broker.is_up, 10)
            await broker.subscribe("c", lambda subject, payload: None)
            broker.publish("d", b"")
            for text in ('violation for subscription to "c"', 'violation for publish to "d"'):
                await until(lambda text=text: text in caplog.text, 10)  # type: ignore[misc]
            assert broker.is_up


@asynccontextmanager
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


@pytest.mark.parametrize(
    ("option", "content", "fault"),
    [
        ("nkey_file", b"SUNOSEED", "{path}: no seed of an NKey"),
        ("nkey_file", b"\xff" * 60, "{path}: no seed of an NKey"),
        ("credentials_file", b"-----BEGIN USER NKEY SEED-----", "{path}: no credentials of NATS"),
        ("credentials_file", None, "{path}: No such file"),
        ("ca_file", b"no certificate", "ca_file"),
    ],
)
def test_file_that_cannot_be_used_is_named(
    option: str, content: bytes | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    config = ClusterConfig(servers=("tls://127.0.0.1:4222",), **{option: str(path)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as raised:
        login_of(config)
    assert str(raised.value).startswith(f"[cluster] {option}: ")
    assert fault.format(path=path) in str(raised.value)
    assert "SUNOSEED" not in str(raised.value)
