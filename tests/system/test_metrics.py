"""Metrics of a daemon beside a real Asterisk, over the life of a call and of its fork."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from prometheus_client import parser

from audiofork import config_file
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, ari_settings, asterisk_settings
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import no_forks
from tests.system.scene import Scene

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module", params=[1, 2], ids=["inline", "processes"])
def workers(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


@pytest.fixture(scope="module")
def measured(
    asterisk: Asterisk, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    settings = {
        "http": f"socket = {tmp_path_factory.mktemp('http')}/http.sock\n",
        "asterisk": asterisk_settings(asterisk) + "ping_interval = 1\n",
        "ari": ari_settings(asterisk),
        "relay": f"workers = {workers}\n",
    }
    with Daemon(asterisk, settings) as one:
        yield one


@pytest.fixture
async def scene(
    asterisk: Asterisk, measured: Daemon, recorder: Recorder
) -> AsyncIterator[Scene[Recorder]]:
    async with (
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
    ):
        yield Scene(asterisk, ami, caller, recorder, {})


async def scrape(daemon: Daemon) -> dict[tuple[str, ...], float]:
    """Return the daemon's metrics: by their names, and the values of the labels in their order."""
    socket = config_file.load(daemon.config).http.socket
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
        session.get("http://localhost/metrics") as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_show_a_fork_while_it_runs_and_keep_its_counts_when_it_has_ended(
    scene: Scene[Recorder], measured: Daemon, workers: int
) -> None:
    before = await scrape(measured)
    assert before["audiofork_ami_up",] == 1
    assert before["audiofork_relays", "up"] == workers
    assert before["audiofork_relays", "down"] == 0
    fork = await scene.talking_fork("/a", "D(in)")
    await scene.server.wait_messages("/a", 100)
    during = await scrape(measured)
    assert during["audiofork_forks", "streaming", "in"] == 1
    assert during["audiofork_forks_started_total",] == before["audiofork_forks_started_total",] + 1
    assert during["audiofork_frames_in_total",] >= before["audiofork_frames_in_total",] + 100
    assert during["audiofork_latency_seconds_count",] >= 4
    assert 0 < during["audiofork_latency_seconds_sum",] < during["audiofork_latency_seconds_count",]
    assert 0 < during["audiofork_server_rtt_max_seconds",] < 1
    assert during["audiofork_start_seconds_count",] == before["audiofork_start_seconds_count",] + 1
    assert sum(during["audiofork_relay_forks", str(n)] for n in range(1, workers + 1)) == 1
    stopped = await fork.hang_up()
    await no_forks(measured)
    after = await scrape(measured)
    assert after["audiofork_forks", "streaming", "in"] == 0
    for name, header in (("in", "In"), ("sent", "Sent"), ("dropped", "Dropped")):
        total = f"audiofork_frames_{name}_total"
        assert after[total,] - before[total,] == int(stopped[f"Frames{header}"])
    hangups = ("audiofork_forks_ended_total", "hangup")
    assert after[hangups] == before[hangups] + 1
    assert after["audiofork_latency_seconds_count",] >= during["audiofork_latency_seconds_count",]


async def test_asterisk_answers_its_pings_and_the_processes_use_cpu(
    scene: Scene[Recorder], measured: Daemon, workers: int
) -> None:
    # Each connection has its round trip by the first ping that was answered.
    pinged = {("audiofork_ami_rtt_seconds",), ("audiofork_ari_rtt_seconds",)}
    found = await scrape(measured)
    for _ in range(100):
        if pinged <= found.keys():
            break
        await asyncio.sleep(0.1)
        found = await scrape(measured)
    assert 0 < found["audiofork_ami_rtt_seconds",] < 1
    assert found["audiofork_ari_up",] == 1
    assert 0 < found["audiofork_ari_rtt_seconds",] < 3
    assert found["process_cpu_seconds_total",] > 0
    assert found["audiofork_loop_lag_seconds_count",] > 0
    named = [key for key in found if key[0] == "audiofork_relay_cpu_seconds_total"]
    assert len(named) == (workers if workers > 1 else 0)
