"""Runs every asynchronous test here on the event loop that the daemon runs on."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
import uvloop

from audiofork.config import WebSocketConfig
from audiofork.link.messages import (
    PLAIN_HANDSHAKE,
    Direction,
    EndReason,
    ForkEnded,
    ForkReport,
    Handshake,
)
from audiofork.relay.client_tls import client_tls
from audiofork.relay.formats.base import MessageFormat
from audiofork.relay.latencies import Latencies
from audiofork.relay.retry import Retries
from audiofork.relay.sink import Sink
from testbed.recorder import Recorder
from tests.relay.peers import FakeLoop, FickleServer, StalledServer
from tests.relay.relay_stage import RelayStage
from tests.relay.session_stage import Begin, SessionStage
from tests.relay.sinks import Running, Start


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind, or an exception that nobody retrieved."""
    loop = asyncio.get_running_loop()
    faults: list[str] = []
    loop.set_exception_handler(lambda _, context: faults.append(repr(context)))
    yield
    await asyncio.sleep(0)  # what was cancelled last ends in this turn
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not faults


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="session")
def tls(ca: trustme.CA) -> ssl.SSLContext:
    """The TLS files of a server on localhost."""
    return server_tls(ca.issue_cert("localhost"))


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    async with Recorder() as server:
        yield server


@pytest.fixture
async def stalled() -> AsyncIterator[StalledServer]:
    async with StalledServer() as server:
        yield server


@pytest.fixture(scope="session")
def system_tls() -> ssl.SSLContext:
    return client_tls("")


@pytest.fixture
async def start(system_tls: ssl.SSLContext) -> AsyncIterator[Start]:
    """Start sinks; those that still run at the end are closed."""
    running: list[Running] = []

    def start(
        url: str,
        tls: ssl.SSLContext = system_tls,
        frame_bytes: int = 320,
        format: MessageFormat | None = None,
        handshake: Handshake = PLAIN_HANDSHAKE,
        proxy_tls: ssl.SSLContext | None = None,
        latencies: Latencies | None = None,
        **options: Any,
    ) -> Running:
        config = replace(WebSocketConfig(reconnect_attempts=1), **options)
        wishes: dict[str, Any] = {"format": format, "handshake": handshake, "proxy_tls": proxy_tls}
        wishes["latencies"] = latencies
        sink = Sink(url, config, tls, frame_bytes=frame_bytes, **wishes)
        running.append((sink, asyncio.create_task(sink.run())))
        return running[-1]

    yield start
    for sink, task in running:
        if not task.done():
            await sink.close(1000, "test over")
        await asyncio.wait([task], timeout=5)
        assert task.done()
        task.exception()


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    """Replace the clock of all that is played or measured, of fillers and of the message limit."""
    loop = FakeLoop()
    faked = SimpleNamespace(get_running_loop=lambda: loop)
    modules = ("beep", "pacer", "speaker", "server_commands", "silence_filler", "shortfall")
    for module in (*modules, "levels"):
        monkeypatch.setattr(f"audiofork.relay.{module}.asyncio", faked)
    for module in ("message_limit", "session"):
        time = SimpleNamespace(monotonic=loop.time)
        monkeypatch.setattr(f"audiofork.relay.{module}.time", time)
    monkeypatch.setattr("audiofork.relay.leg_pipelines.monotonic", loop.time)
    return loop


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time that a sink may take to close; the value is that time."""
    for name in ("CLOSE_TIMEOUT_S", "LINGER_S"):
        monkeypatch.setattr(f"audiofork.relay.sink.{name}", 0.1)
    return 0.1


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begin sessions with given settings; those that still run at the end are ended."""
    stages: list[SessionStage] = []

    def begin(direction: Direction = Direction.IN, **wishes: Any) -> SessionStage:
        stages.append(SessionStage(direction, **wishes))
        stages[-1].session.start()
        return stages[-1]

    yield begin
    for stage in stages:
        stage.sink.may_close.set()
        stage.session.end(EndReason.STOPPED)
        await stage.ended()


@pytest.fixture
async def relay() -> AsyncIterator[RelayStage]:
    relay = RelayStage(WebSocketConfig(reconnect_attempts=1))
    address = await relay.worker.start()
    assert address == relay.worker.address
    yield relay
    await relay.worker.close()
    for leg in relay.legs:
        await leg.close()
    # Nothing may be left of any fork.
    assert relay.worker.sessions == {}
    assert relay.worker._listener._uuids._issued == {}
    assert relay.worker._leg_uuids == {}
    assert relay.worker._listener._legs == set()
    begun = {report.fork_id for report in relay.reports if isinstance(report, ForkReport)}
    assert all(len(relay.of(fork_id, ForkEnded)) == 1 for fork_id in begun)
    assert all(isinstance(relay.of(fork_id)[-1], ForkEnded) for fork_id in begun)
