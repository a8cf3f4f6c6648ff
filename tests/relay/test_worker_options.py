"""What a fork may want of its sink in place of what is configured: attempts and TLS."""

from __future__ import annotations

import errno
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from audiofork.config import Config, WebSocketConfig
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkStats,
    SinkOpened,
    SinkRetrying,
    Tls,
)
from testbed.recorder import Recorder
from tests.relay.conftest import server_tls
from tests.relay.peers import StalledServer, numbered, until, unused_port
from tests.relay.relay_stage import RelayStage

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_attempts_of_a_fork_go_before_the_configured_ones(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 0.01)
    url = f"ws://127.0.0.1:{unused_port()}/"
    more = relay.begin(url, reconnect_attempts=3, reconnect_interval_s=0.01)
    alike = relay.begin(url)
    for fork_id, attempts in (more, [2, 3]), (alike, []):
        await relay.reported(ForkEnded, fork_id)
        assert [report.attempt for report in relay.of(fork_id, SinkRetrying)][:2] == attempts


async def test_no_limit_of_attempts_is_a_wish_too(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 0.001)
    url = f"ws://127.0.0.1:{unused_port()}/"
    fork_id = relay.begin(url, reconnect_attempts=0, reconnect_interval_s=0.001)
    await until(lambda: len(relay.of(fork_id, SinkRetrying)) >= 10)
    relay.worker.handle(EndFork(fork_id, EndReason.STOPPED))
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.STOPPED


async def test_interval_of_a_fork_limits_each_of_its_attempts(
    relay: RelayStage, stalled: StalledServer
) -> None:
    stalled.hold_handshake = True
    fork_id = relay.begin(stalled.url, reconnect_interval_s=0.05)
    ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_GONE
    assert " within 0.05 s: " in ended.detail


async def test_interval_of_a_fork_limits_its_waits(
    relay: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.FIRST_WAIT_S", 3600)
    url = f"ws://127.0.0.1:{unused_port()}/"
    fork_id = relay.begin(url, reconnect_attempts=3, reconnect_interval_s=0.01)
    assert (await relay.reported(ForkEnded, fork_id)).reason is EndReason.SINK_GONE


@pytest.fixture(scope="session")
def our_cert(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return files with a client's certificate: `cert` and `key` apart, and `both` in one."""
    folder = tmp_path_factory.mktemp("client")
    issued = ca.issue_cert("client.example")
    issued.cert_chain_pems[0].write_to_path(folder / "cert")
    issued.private_key_pem.write_to_path(folder / "key")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both")
    return {name: str(folder / name) for name in ("cert", "key", "both")}


@pytest.fixture
async def strict(ca: trustme.CA) -> AsyncIterator[Recorder]:
    """Run a server that asks for a certificate."""
    context = server_tls(ca.issue_cert("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    async with Recorder(context) as server:
        yield server


async def test_authorities_of_a_fork_go_before_the_configured_ones(
    relay: RelayStage, tls: ssl.SSLContext, ca_file: Path
) -> None:
    async with Recorder(tls) as recorder:
        trusting = relay.begin(recorder.url("/a"), Direction.IN, tls=Tls(ca_file=str(ca_file)))
        doubting = relay.begin(recorder.url("/b"))
        leg = await relay.attach(trusting)
        leg.send_audio(*numbered(10))
        assert (await recorder.wait_messages("/a", 10)).messages == numbered(10)
        ended = await relay.reported(ForkEnded, doubting)
        await relay.worker.close()
    assert ended.reason is EndReason.SINK_REFUSED
    assert ": certificate not accepted: " in ended.detail


@pytest.mark.parametrize("own", [True, False], ids=["fork's own", "configured"])
@pytest.mark.parametrize("files", [("cert", "key"), ("both", "")], ids=["apart", "in one"])
async def test_certificate_is_shown_to_a_server_that_asks(
    relay: RelayStage,
    strict: Recorder,
    ca_file: Path,
    our_cert: dict[str, str],
    files: tuple[str, str],
    own: bool,
) -> None:
    cert, key = (our_cert.get(name, "") for name in files)
    if own:
        wishes = Tls(ca_file=str(ca_file), cert_file=cert, key_file=key)
    else:
        websocket = WebSocketConfig(cert_file=cert, priv_key_file=key)
        relay.worker.configure(Config(websocket=websocket, security=relay.security))
        wishes = Tls(ca_file=str(ca_file))
    fork_id = relay.begin(strict.url(), tls=wishes)
    await relay.reported(SinkOpened, fork_id)
    await relay.worker.close()


async def test_key_in_one_file_with_a_certificate_is_not_mixed_with_the_configured(
    relay: RelayStage,
    strict: Recorder,
    ca: trustme.CA,
    ca_file: Path,
    our_cert: dict[str, str],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.pem"
    ca.issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(other)
    websocket = WebSocketConfig(cert_file=our_cert["cert"], priv_key_file=our_cert["key"])
    relay.worker.configure(Config(websocket=websocket, security=relay.security))
    fork_id = relay.begin(strict.url(), tls=Tls(ca_file=str(ca_file), cert_file=str(other)))
    await relay.reported(SinkOpened, fork_id)
    await relay.worker.close()


async def test_server_that_asks_for_a_certificate_refuses_a_fork_without(
    relay: RelayStage, strict: Recorder, ca_file: Path
) -> None:
    fork_id = relay.begin(strict.url(), tls=Tls(ca_file=str(ca_file)))
    await relay.reported(ForkEnded, fork_id)
    assert not relay.of(fork_id, SinkOpened)


@pytest.mark.parametrize("host", ["localhost", "elsewhere.example"])
async def test_insecure_fork_takes_any_certificate_and_no_other_fork_does(
    relay: RelayStage, host: str
) -> None:
    async with Recorder(server_tls(trustme.CA().issue_cert(host))) as recorder:
        careless = relay.begin(recorder.url(), tls=Tls(insecure=True))
        careful = relay.begin(recorder.url())
        await relay.reported(SinkOpened, careless)
        assert (await relay.reported(ForkEnded, careful)).reason is EndReason.SINK_REFUSED
        await relay.worker.close()


@pytest.mark.parametrize("wish", ["ca_file", "cert_file"])
async def test_file_of_a_fork_that_cannot_be_used_refuses_it_naming_the_file(
    relay: RelayStage, tmp_path: Path, wish: str
) -> None:
    path = str(tmp_path / "missing.pem")
    url = f"wss://127.0.0.1:{unused_port()}/"
    fork_id = relay.begin(url, tls=Tls(**{wish: path}))  # type: ignore[arg-type]
    ended = await relay.reported(ForkEnded, fork_id)
    assert (ended.reason, ended.stats) == (EndReason.SINK_REFUSED, ForkStats())
    what = "authorities of" if wish == "ca_file" else "certificate"
    text = f"Options: T: the {what} {path} cannot be used: No such file or directory"
    assert ended.detail == text
    assert relay.worker.sessions == {}


async def test_audio_flows_on_while_files_of_a_fork_do_not_come(
    relay: RelayStage, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def read_slowly(folder: str, path: str) -> bytes:
        assert go.wait(10)
        raise OSError(errno.ESTALE, "Stale file handle", path)

    monkeypatch.setattr("audiofork.files.read_below", read_slowly)
    url = f"wss://127.0.0.1:{unused_port()}/"
    waiting = relay.begin(url, tls=Tls(ca_file="a.pem"), reconnect_interval_s=0.05)
    good = relay.begin(recorder.url("/good"), Direction.IN)
    leg = await relay.attach(good)
    leg.send_audio(*numbered(10))
    assert (await recorder.wait_messages("/good", 10)).messages == numbered(10)
    ended = await relay.reported(ForkEnded, waiting)
    assert ended.reason is EndReason.SINK_GONE
    assert ended.detail.endswith("the files of option T are still being read")
    again = relay.begin(url, tls=Tls(ca_file="a.pem"))
    go.set()
    ended = await relay.reported(ForkEnded, again)
    text = "Options: T: the authorities of /a.pem cannot be used: Stale file handle"
    assert (ended.reason, ended.detail) == (EndReason.SINK_REFUSED, text)
    await relay.worker.close()
