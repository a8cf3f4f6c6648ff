"""The check of a cluster, on a real Asterisk."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

import audiofork
from audiofork import config_file
from audiofork.commands import check_audio, probe
from audiofork.commands.check import Check
from audiofork.commands.findings import Finding, Mark, Outcome
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, free_port
from testbed.daemon import Daemon, asterisk_settings
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import no_channels
from tests.system.test_cluster import leads

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let audio come at any pace: the check of a daemon judges it."""
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 10.0)
    monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", 1.0)


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk) as one:
        yield one


async def findings_of(cluster: Cluster) -> tuple[Outcome, list[Finding]]:
    """Check as on a host whose controller does not lead; no channel is left."""
    (server,) = cluster.servers
    ini = (
        f"[asterisk]\n{asterisk_settings(cluster.asterisk)}"
        "[audiosocket]\nlisten = 127.0.0.1:0\n[control]\nsocket =\n"
        f"[cluster]\nname = c9\nservers = {server.url}\n"
    )
    findings: list[Finding] = []
    check = Check(config_file.parse(ini, {}, source="audiofork.ini"), findings.append)
    outcome = await check.run()
    for finding in findings:
        print(finding)
    async with AmiClient(cluster.asterisk) as ami:
        await no_channels(ami)
    return outcome, findings


def failures(findings: list[Finding]) -> list[str]:
    failed = [finding for finding in findings if finding.mark is Mark.FAIL]
    assert all(finding.remedy for finding in failed)
    return [finding.text for finding in failed]


def address_of(relay: Daemon) -> str:
    return f"127.0.0.1:{relay.audiosocket_port}"


async def test_cluster_as_it_should_be_has_no_fault(cluster: Cluster) -> None:
    relays = {name: address_of(cluster.relay(name)) for name in ("r1", "r2")}
    await leads(cluster.controller("c1"))
    cluster.controller("c2")
    outcome, findings = await findings_of(cluster)
    assert (outcome, failures(findings)) == (Outcome.FINE, [])
    texts = [finding.text for finding in findings]
    (server,) = cluster.servers
    assert any(text.startswith(f"NATS: {server.url} answers in ") for text in texts)
    assert "JetStream: bucket audiofork-leases is kept by 1 server" in texts
    assert "controllers: c1 leads for asterisk, c2 stands by" in texts
    assert "relay hosts: room for 1000 more forks" in texts
    for name, address in relays.items():
        version = audiofork.__version__
        assert f"relay host {name}: at {address}, 0 of 500 forks, version {version}" in texts
        assert f"relay host {name}: Asterisk reaches it at {address}" in texts
    assert any(text.endswith("in and out mixed by ChanSpy") for text in texts)


async def test_command_asks_the_controller_that_leads(cluster: Cluster) -> None:
    relay = cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    command = [sys.executable, "-m", "audiofork", "check", "-c", str(controller.config)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    print(done.stdout, done.stderr)
    assert "by the running daemon, with its secrets" in done.stdout
    assert f"relay host r1: Asterisk reaches it at {address_of(relay)}" in done.stdout


async def test_relay_host_that_asterisk_does_not_reach_is_a_fault(cluster: Cluster) -> None:
    cluster.relay("r1")
    cluster.relay("r2", audiosocket="listen = 127.0.0.1:0\nadvertise = 127.0.0.1:9\n")
    await leads(cluster.controller("c1"))
    outcome, findings = await findings_of(cluster)
    assert outcome is Outcome.FAULTS
    assert failures(findings) == ["relay host r2: Asterisk and 127.0.0.1:9: cannot connect"]


async def test_relay_host_may_be_reached_by_its_name(cluster: Cluster) -> None:
    port = free_port(socket.SOCK_STREAM)
    settings = f"listen = 127.0.0.1:{port}\nadvertise = localhost:{port}\n"
    cluster.relay("r1", audiosocket=settings)
    await leads(cluster.controller("c1"))
    outcome, findings = await findings_of(cluster)
    assert (outcome, failures(findings)) == (Outcome.FINE, [])
    texts = [finding.text for finding in findings]
    assert f"relay host r1: Asterisk reaches it at localhost:{port}" in texts


async def test_relay_host_that_refuses_asterisk_is_a_fault(cluster: Cluster) -> None:
    relay = cluster.relay("r1", audiosocket="listen = 127.0.0.1:0\nallow = 192.0.2.1\n")
    await leads(cluster.controller("c1"))
    _, findings = await findings_of(cluster)
    reached = f"what Asterisk reaches at {address_of(relay)} is not it, or refuses Asterisk"
    assert failures(findings) == [f"relay host r1: {reached}"]


async def test_others_are_tried_when_a_relay_host_has_died(cluster: Cluster) -> None:
    first, second = cluster.relay("r1"), cluster.relay("r2")
    await leads(cluster.controller("c1"))
    first.kill()
    outcome, findings = await findings_of(cluster)
    assert (outcome, failures(findings)) == (Outcome.FINE, [])
    texts = [finding.text for finding in findings]
    assert f"relay host r2: Asterisk reaches it at {address_of(second)}" in texts
    assert [text for text in texts if text.startswith("relay host r1")] == [
        "relay host r1: it was there within the last minute, and is silent"
    ]


async def test_without_a_controller_relay_hosts_are_not_tried(cluster: Cluster) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    controller.stop()
    _, findings = await findings_of(cluster)
    skipped = [finding.text for finding in findings if finding.mark is Mark.SKIP]
    assert "controllers: none leads for asterisk" in skipped
    assert (
        "relay hosts: whether Asterisk reaches them can be asked while a controller leads"
        in skipped
    )
    assert failures(findings) == []


async def test_daemon_beside_a_controller_is_a_fault(cluster: Cluster) -> None:
    cluster.relay("r1")
    await leads(cluster.controller("c1"))
    with Daemon(cluster.asterisk):
        _, findings = await findings_of(cluster)
    # And perhaps that r1 does not expect a leg yet, of which the other daemon has said it does.
    assert "controllers: 2 daemons look after this Asterisk" in failures(findings)


async def test_audio_is_left_out_where_asterisk_does_not_reach_this_host(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.relay("r1")
    await leads(cluster.controller("c1"))

    async def not_started(self: probe.Probe, listen: object) -> object:
        raise OSError("none")

    monkeypatch.setattr(probe.Probe, "start", not_started)
    outcome, findings = await findings_of(cluster)
    assert (outcome, failures(findings)) == (Outcome.FINE, [])
    assert "audio: needs a port here, at [audiosocket] listen: none" in [
        finding.text for finding in findings if finding.mark is Mark.SKIP
    ]
