"""What the check finds out of NATS servers, and of who is there; with real ones, no Asterisk."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from nats.js.errors import APIError, NoKeysError
from nats.js.kv import KeyValue

import audiofork
from audiofork import config_file, shipped
from audiofork.cluster.beats import SUBJECT, Beat, ControlBeat
from audiofork.cluster.broker import Broker, Question
from audiofork.cluster.buckets import HOSTS
from audiofork.cluster.lease import BUCKET, Holder, Lease
from audiofork.cluster.registration import key_subject
from audiofork.cluster.roster import Roster
from audiofork.commands import remedies_cluster as remedies
from audiofork.commands.check import Check, load
from audiofork.commands.check_cluster import ClusterCheck, KnownCluster
from audiofork.commands.check_nats import NatsCheck
from audiofork.commands.check_relay import RelayCheck
from audiofork.commands.findings import Finding, Findings, Mark, Outcome
from audiofork.config import ClusterConfig
from audiofork.doors.broker_door import subject_of
from audiofork.doors.http.cluster_stream import ClusterStream
from audiofork.doors.shared_events import EventHearing
from audiofork.errors import BrokerUnavailable
from audiofork.forks.cluster_journal import bucket_of
from testbed.nats import NatsServer, nats_servers
from testbed.nats_keys import new_key

pytestmark = pytest.mark.nats

BEAT = Beat("r1", "run", "192.0.2.1:9093", "north", 500, 7, 0.1, audiofork.__version__)


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with nats_servers() as (one,):
        yield one


# A busy machine may take long to renew a lease.
DEAD_AFTER_S = 2.0


@asynccontextmanager
async def connected(*urls: str, replicas: int = 1) -> AsyncIterator[Broker]:
    broker = Broker(ClusterConfig(servers=urls, replicas=replicas), "test")
    await broker.connect()
    yield broker
    await broker.close()


@asynccontextmanager
async def beating(
    server: NatsServer, *beats: Callable[[], Beat] | Beat | ControlBeat
) -> AsyncIterator[None]:
    """Have relay hosts and controllers tell that they are there."""

    async def beat(broker: Broker) -> None:
        while True:
            for one in beats:
                now = one if isinstance(one, Beat | ControlBeat) else one()
                subject = f"{SUBJECT}.{now.name}" if isinstance(now, Beat) else now.subject
                broker.publish(subject, now.encode())
            await asyncio.sleep(0.1)

    async with connected(server.url) as broker:
        task = asyncio.create_task(beat(broker))
        yield
        task.cancel()


@asynccontextmanager
async def leading(server: NatsServer, name: str = "c1") -> AsyncIterator[Lease]:
    """Have a controller that leads, and a journal."""
    async with connected(server.url) as broker:
        await broker.bucket(bucket_of("asterisk"))
        lease = await Lease.of(broker, "asterisk", Holder(name, "run"), DEAD_AFTER_S)
        await lease.take()
        keeping = asyncio.create_task(lease.keep())
        yield lease
        keeping.cancel()


async def check(*servers: str, **more: object) -> tuple[KnownCluster, list[Finding]]:
    """Return what the check finds of the cluster."""
    found: list[Finding] = []
    more = {"dead_after": DEAD_AFTER_S, **more}
    config = ClusterConfig(servers=servers, **more)  # type: ignore[arg-type]
    known = await ClusterCheck(config, Findings(found.append)).run()
    for finding in found:
        print(finding)
    return known, found


def marked(findings: Sequence[Finding], *marks: Mark) -> list[str]:
    some = [finding for finding in findings if finding.mark in marks]
    assert all(finding.remedy for finding in some if finding.mark in (Mark.FAIL, Mark.WARN))
    return [finding.text for finding in some]


def faults(findings: Sequence[Finding]) -> list[str]:
    return marked(findings, Mark.FAIL, Mark.WARN)


# --- NATS ----------------------------------------------------------------------------------------


async def test_servers_that_are_not_there_are_named_and_the_others_are_asked(
    server: NatsServer,
) -> None:
    async with beating(server, BEAT, replace(BEAT, name="r2", listen="192.0.2.2:9093")):
        known, findings = await check("nats://127.0.0.1:1", server.url, "nats://nowhere.invalid:1")
    refused, unknown = marked(findings, Mark.FAIL)
    assert refused.startswith("NATS: nats://127.0.0.1:1: Connection refused")
    assert unknown.startswith("NATS: nats://nowhere.invalid:1: no such host name")
    assert [beat.name for beat in known.hosts] == ["r1", "r2"]


async def test_nothing_else_is_asked_where_no_server_is_there() -> None:
    known, findings = await check("nats://127.0.0.1:1")
    assert known == KnownCluster()
    assert [finding.remedy for finding in findings] == [remedies.UNREACHABLE]


async def test_program_that_answers_nothing_is_a_fault_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("audiofork.commands.check_nats.CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, findings = await check(f"nats://127.0.0.1:{silent.getsockname()[1]}")
    (text,) = faults(findings)
    assert text.endswith(": no answer in time")


async def test_refused_login_is_a_fault(tmp_path: Path) -> None:
    more = f"authorization {{ users: [{{ nkey: {new_key().public} }}] }}\n"
    with nats_servers(more=more) as (server,):
        _, findings = await check(server.url, nkey=new_key().seed)
    assert [finding.remedy for finding in findings] == [remedies.LOGIN]


async def test_authority_that_cannot_be_read_is_a_fault(server: NatsServer) -> None:
    _, findings = await check(server.url, ca_file="/nowhere/ca.pem")
    assert [finding.remedy for finding in findings] == [remedies.FILES]
    assert faults(findings) == [
        "NATS: [cluster] ca_file: /nowhere/ca.pem: No such file or directory"
    ]


async def test_key_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.ini"
    path.write_text("[cluster]\nservers = nats://127.0.0.1:1\nnkey_file = /nowhere/seed\n")
    loaded, unread = load(path)
    findings: list[Finding] = []
    await Check(loaded, findings.append, unread=unread)._check_cluster()
    assert [finding.remedy for finding in findings] == [remedies.FILES]
    (text,) = faults(findings)
    assert text.endswith("a.ini:3: [cluster] nkey_file: /nowhere/seed: No such file or directory")


async def test_certificate_that_is_not_trusted_is_a_fault(tmp_path: Path) -> None:
    pem = str(tmp_path / "server.pem")
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    with nats_servers(more=f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}\n') as (server,):
        _, findings = await check(server.url.replace("nats:", "tls:"))
    (text,) = faults(findings)
    assert "[cluster] ca_file" in text
    assert findings[0].remedy == remedies.TLS


async def test_server_without_tls_is_a_fault_where_it_is_wanted(server: NatsServer) -> None:
    _, findings = await check(server.url.replace("nats:", "tls:"))
    assert [finding.remedy for finding in findings] == [remedies.TLS]


@pytest.mark.parametrize(
    ("server", "key", "told"),
    [
        (
            "nats://192.0.2.1:4222",
            "",
            ["goes over the network in the clear and lets in whoever reaches it"],
        ),
        ("nats://192.0.2.1:4222", "/a", ["goes over the network in the clear"]),
        ("tls://nats.example.org:4222", "", ["lets in whoever reaches it"]),
        ("tls://nats.example.org:4222", "/a", []),
        ("nats://127.0.0.1:4222", "", []),
    ],
)
def test_server_that_is_open_to_the_network_is_warned_of(
    server: str, key: str, told: list[str]
) -> None:
    findings: list[Finding] = []
    config = ClusterConfig(servers=(server,), nkey=key)
    NatsCheck(config, Findings(findings.append), "_INBOX")._tell_what_is_open(server)
    assert marked(findings, Mark.WARN) == [f"NATS: {server} {text}" for text in told]


async def test_account_without_jetstream_is_a_fault(tmp_path: Path) -> None:
    key = new_key()
    account = f"accounts {{ a {{ users: [{{ nkey: {key.public} }}] }} }}\n"
    with nats_servers(more=account) as (server,):
        _, findings = await check(server.url, nkey=key.seed)
    assert remedies.JETSTREAM in [finding.remedy for finding in findings]


async def test_right_that_is_missing_is_named(tmp_path: Path) -> None:
    key = new_key()
    allowed = 'permissions: { publish: "nothing", subscribe: "_INBOX.>" }'
    user = f"{{ nkey: {key.public}, {allowed} }}"
    with nats_servers(more=f"authorization {{ users: [{user}] }}\n") as (server,):
        _, findings = await check(server.url, nkey=key.seed, name="c1")
    told = [finding.text for finding in findings if finding.mark is Mark.FAIL]
    assert all(finding.remedy for finding in findings if finding.mark is Mark.FAIL)
    assert [text.rpartition("violation for ")[2] for text in told] == [
        'publish to "$js.api.stream.info.kv_audiofork-leases"',
        'subscription to "audiofork.beat.*"',
        'subscription to "audiofork.beat-control.*.*"',
        'subscription to "audiofork.control.asterisk.*"',
        'subscription to "audiofork.request.asterisk"',
        'subscription to "audiofork.history.asterisk.c1"',
        'subscription to "audiofork.forget.asterisk.c1"',
        'subscription to "audiofork.events.asterisk"',
        'publish to "audiofork.beat-control.asterisk.c1"',
        'publish to "audiofork.relay.(check).asterisk"',
        'publish to "audiofork.request.asterisk"',
        'publish to "audiofork.history.asterisk.(check)"',
        'publish to "audiofork.forget.asterisk.(check)"',
        'publish to "$kv.audiofork-leases.asterisk"',
        'publish to "audiofork.events.asterisk"',
        'publish to "$js.api.stream.msg.get.kv_audiofork-forks-asterisk"',
        "relay hosts: none is there",
    ]


def shipped_rights() -> dict[str, list[str]]:
    """Return what the shipped configuration lets the controller of asterisk do, by kind."""
    text = shipped.text(shipped.NATS_CONF)
    block = text.partition('nkey: "CHANGE-ME pbx-1"')[2].partition("allow_responses")[0]
    publish, _, subscribe = block.replace("pbx-1", "asterisk").partition("subscribe:")
    lines = {"publish": publish, "subscribe": subscribe}
    return {kind: re.findall(r'^ +"(\S+)"$', text, re.MULTILINE) for kind, text in lines.items()}


async def test_each_line_of_the_shipped_permissions_that_is_missing_is_named() -> None:
    rights = shipped_rights()
    lacks = [(kind, line) for kind, lines in rights.items() for line in lines]
    lacks.remove(("subscribe", "_INBOX.control.asterisk.>"))  # without it no answer comes
    users, keys = ["{ user: any, password: any }"], []
    lacks.append(("answer", "_INBOX.control.asterisk.*"))
    for kind, line in [("", ""), *lacks]:
        key = new_key()
        keys.append(key.seed)
        allowed: dict[str, object] = {
            one: [right for right in some if (one, right) != (kind, line)]
            for one, some in rights.items()
        }
        if kind != "answer":
            allowed["allow_responses"] = {"max": -1, "expires": "1h"}
        users.append(f"{{ nkey: {key.public}, permissions: {json.dumps(allowed)} }}")
    more = f"authorization {{ users: [{', '.join(users)}] }}\nno_auth_user: any\n"
    with nats_servers(more=more) as (server,):
        async with leading(server), connected(server.url) as broker, beating(server, BEAT):
            await register(broker, BEAT)
            found = []
            for at in range(0, len(keys), 8):  # all at once the server would answer late
                some = keys[at : at + 8]
                found += await asyncio.gather(*(check(server.url, nkey=seed) for seed in some))
    told = [[one.text for one in findings if "violation" in one.text] for _, findings in found]
    assert told[0] == []
    for (kind, line), texts in zip(lacks, told[1:], strict=True):
        named = re.escape(line.lower()).replace(r"\*", r'[^ "]+')
        assert len(texts) == 1, (kind, line, texts)
        assert re.search(f'"{named}"', texts[0]), (line, texts)


async def test_bucket_that_no_controller_has_made_yet_is_no_fault(server: NatsServer) -> None:
    async with beating(server, BEAT):
        _, findings = await check(server.url)
    (text,) = marked(findings, Mark.SKIP)
    assert text == (
        "JetStream: bucket audiofork-leases is not there yet; the first controller makes it"
    )


async def test_check_leaves_nothing_in_the_journal(server: NatsServer) -> None:
    async with leading(server):
        _, findings = await check(server.url)
    (wrote,) = [
        text for text in marked(findings, Mark.OK) if "writes to bucket audiofork-f" in text
    ]
    assert wrote.startswith("JetStream: writes to bucket audiofork-forks-asterisk, in ")
    async with connected(server.url) as broker:
        bucket = await broker.bucket(bucket_of("asterisk"))
        with pytest.raises(NoKeysError):
            await bucket.keys()


async def made(urls: Sequence[str], replicas: int) -> None:
    """Make the buckets, as soon as the servers agree on who leads them."""
    async with connected(*urls, replicas=replicas) as broker, asyncio.timeout(30):
        for name in (BUCKET, bucket_of("asterisk")):
            while True:
                try:
                    await broker.bucket(name)
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.2)


async def found(text: str, mark: Mark, urls: Sequence[str]) -> None:
    """Check until something is found: the servers take a moment to notice it."""
    async with asyncio.timeout(40):
        while True:
            _, findings = await check(*urls, replicas=3)
            if text in marked(findings, mark):
                return


async def test_bucket_that_fewer_servers_keep_than_there_could_is_warned_of() -> None:
    with nats_servers(3) as servers:
        urls = [server.url for server in servers]
        await made(urls, 1)
        _, findings = await check(*urls)
        alone = "JetStream: bucket audiofork-leases is kept by 1 server alone"
        assert alone in marked(findings, Mark.WARN)
        _, findings = await check(*urls, replicas=3)
        fewer = "JetStream: bucket audiofork-leases is kept by 1 server, and not by 3"
        assert fewer in marked(findings, Mark.WARN)
        await made(urls, 3)
        kept = "JetStream: bucket audiofork-leases is kept by 3 servers"
        await found(kept, Mark.OK, urls)


async def test_server_of_a_bucket_that_is_away_is_named() -> None:
    with nats_servers(3) as servers:
        urls = [server.url for server in servers]
        await made(urls, 3)
        servers[2].kill()
        away = "JetStream: bucket audiofork-leases is kept by 3 servers; not there: n2"
        await found(away, Mark.WARN, urls[:2])


# --- Who is there --------------------------------------------------------------------------------


C1 = ControlBeat("c1", "asterisk", "run", leads=True, version=audiofork.__version__)
C2 = replace(C1, name="c2", run_id="other", leads=False)


@pytest.mark.parametrize(
    ("beats", "mark", "text"),
    [
        ((C1, C2), Mark.OK, "controllers: c1 leads for asterisk, c2 stands by"),
        (
            (C1, C2, replace(C2, name="c3")),
            Mark.OK,
            "controllers: c1 leads for asterisk, c2 and c3 stand by",
        ),
        ((C1,), Mark.WARN, "controllers: c1 leads for asterisk, none stands by"),
        (
            (C1, replace(C2, asterisk="pbx-b")),
            Mark.WARN,
            "controllers: c1 leads for asterisk, none stands by",
        ),
        ((C1, C2, replace(C2, run_id="b")), Mark.FAIL, "controllers: two have the name c2"),
        (
            (C1, replace(C2, version="0.0.9")),
            Mark.WARN,
            f"controllers: c2 has version 0.0.9, not {audiofork.__version__} as here",
        ),
    ],
    ids=["well", "three", "alone", "of another", "name", "version"],
)
async def test_who_leads_and_stands_by_is_told(
    server: NatsServer, beats: tuple[ControlBeat, ...], mark: Mark, text: str
) -> None:
    async with leading(server), beating(server, BEAT, *beats):
        known, findings = await check(server.url)
    assert known == KnownCluster((BEAT,), has_leader=True)
    assert text in marked(findings, mark)


async def test_leader_that_is_silent_is_a_fault(server: NatsServer) -> None:
    async with leading(server):
        pass
    known, findings = await check(server.url)
    assert not known.has_leader
    assert "controllers: none leads for asterisk: c1 did, and is silent" in faults(findings)


async def test_leader_that_runs_and_does_not_renew_its_lease_is_not_to_be_started(
    server: NatsServer,
) -> None:
    async with leading(server):
        pass
    async with beating(server, ControlBeat("c1", "asterisk", "run")):
        _, findings = await check(server.url)
    (told,) = (one for one in findings if "c1 did" in one.text)
    assert told.text.endswith("c1 did, runs, and does not renew its lease")
    assert told.remedy == remedies.NOT_RENEWED


async def test_controller_that_runs_where_the_bucket_of_leases_is_gone_is_a_fault(
    server: NatsServer,
) -> None:
    async with beating(server, ControlBeat("c1", "asterisk", "run")):
        _, findings = await check(server.url)
    text = f"controllers: none leads without the bucket {BUCKET}, though c1 is there"
    assert text in faults(findings)


async def test_controller_that_runs_and_never_led_is_a_fault(server: NatsServer) -> None:
    async with leading(server) as lease:
        await lease.release()
    async with beating(server, ControlBeat("c1", "asterisk", "run")):
        _, findings = await check(server.url)
    assert "controllers: none leads for asterisk, though c1 is there" in faults(findings)


async def test_lease_that_was_given_back_is_no_fault(server: NatsServer) -> None:
    async with leading(server) as lease:
        await lease.release()
    _, findings = await check(server.url)
    assert "controllers: none leads for asterisk" in marked(findings, Mark.SKIP)


async def test_key_of_the_check_that_it_may_not_write_is_no_fault() -> None:
    key = new_key()
    denied = 'permissions: { publish: { deny: "$KV.audiofork-leases.*.check" } }'
    users = f"{{ nkey: {key.public}, {denied} }}, {{ user: any, password: any }}"
    more = f"authorization {{ users: [{users}] }}\nno_auth_user: any\n"
    with nats_servers(more=more) as (server,):
        async with leading(server):
            _, findings = await check(server.url, nkey=key.seed)
    (told,) = (one for one in findings if one.remedy == remedies.CHECK_KEY)
    assert told.mark is Mark.SKIP
    assert "violation" in told.text
    assert any(text.startswith("controllers: c1 leads") for text in marked(findings, Mark.WARN))


async def fill(bucket: KeyValue) -> None:
    for number in range(100):
        await bucket.put(str(number), bytes(1000))


async def test_nats_without_room_is_named(tmp_path: Path) -> None:
    more = f'jetstream {{ store_dir: "{tmp_path}", max_file: 4096 }}\n'
    with nats_servers(more=more) as (server,):
        async with leading(server), connected(server.url) as broker:
            full = await broker.bucket("full")
            with pytest.raises(APIError):
                await fill(full)
            _, findings = await check(server.url)
    told = [one.text for one in findings if one.remedy == remedies.STORING]
    assert f"JetStream: writing to bucket {BUCKET}: NATS cannot store it: " in "".join(told)


# --- Registrations -------------------------------------------------------------------------------


async def register(broker: Broker, *beats: Beat) -> None:
    """Have relay hosts registered."""
    await broker.bucket(HOSTS)
    for beat in beats:
        broker.publish(key_subject(beat.name), beat.encode())
    async with asyncio.timeout(30):
        while len(await broker.keys(HOSTS)) < len(beats):  # noqa: ASYNC110 (NATS is asked)
            await asyncio.sleep(0.02)


async def test_relay_hosts_that_are_registered_have_no_fault(server: NatsServer) -> None:
    last = replace(BEAT, name="r2", is_last=True)
    async with leading(server), beating(server, BEAT), connected(server.url) as broker:
        await register(broker, BEAT, last)
        _, findings = await check(server.url)
    assert f"JetStream: bucket {HOSTS} is kept by 1 server" in marked(findings, Mark.OK)
    assert not any("regist" in text or "r2" in text for text in faults(findings))


async def test_relay_host_that_is_not_registered_or_silent_is_warned_of(
    server: NatsServer,
) -> None:
    async with leading(server), beating(server, BEAT), connected(server.url) as broker:
        await register(broker, replace(BEAT, name="r2"))
        _, findings = await check(server.url)
    told = marked(findings, Mark.WARN)
    assert "relay host r1: it is not registered" in told
    assert "relay host r2: it was there within the last minute, and is silent" in told


async def test_bucket_of_registrations_that_is_not_there_is_warned_of(server: NatsServer) -> None:
    async with leading(server), beating(server, BEAT):
        _, findings = await check(server.url)
    assert f"JetStream: bucket {HOSTS} is not there" in marked(findings, Mark.WARN)


async def test_check_of_a_relay_host_leaves_its_registration_as_it_is(server: NatsServer) -> None:
    async with connected(server.url) as broker:
        await register(broker, BEAT)
        _, findings = await check_relay(relay_ini(server))
        assert f"NATS: r1 may register in the bucket {HOSTS}" in marked(findings, Mark.OK)
        assert await broker.values(await broker.bucket(HOSTS), ["r1"]) == {"r1": BEAT.encode()}


async def test_relay_host_that_may_not_register_is_warned_of(server: NatsServer) -> None:
    key = new_key()
    allowed = 'permissions: { publish: "audiofork.>", subscribe: ">" }'
    user = f"{{ nkey: {key.public}, {allowed} }}"
    with nats_servers(more=f"authorization {{ users: [{user}] }}\n") as (one,):
        _, findings = await check_relay(f"{relay_ini(one)}nkey = {key.seed}\n")
    (told,) = [finding for finding in findings if finding.remedy == remedies.REGISTERING]
    assert told.mark is Mark.WARN
    assert '"$kv.audiofork-hosts.r1"' in told.text


# --- Relay hosts ---------------------------------------------------------------------------------


async def test_no_relay_host_is_a_fault(server: NatsServer) -> None:
    _, findings = await check(server.url)
    assert faults(findings) == ["relay hosts: none is there"]


R2 = replace(BEAT, name="r2", listen="192.0.2.2:9093")


@pytest.mark.parametrize(
    ("beats", "told"),
    [
        ((BEAT, R2), []),
        (
            (BEAT, replace(R2, listen=BEAT.listen)),
            ["relay hosts: r1 and r2 have the same address 192.0.2.1:9093"],
        ),
        ((BEAT, R2, replace(BEAT, run_id="other")), ["relay host r1: two have this name"]),
        (
            (BEAT, replace(R2, version="0.0.9")),
            [
                "relay host r2: at 192.0.2.2:9093, 7 of 500 forks, zone north; version 0.0.9, not "
                f"{audiofork.__version__} as here"
            ],
        ),
        ((BEAT,), ["relay hosts: room for 493 more forks; there is no other if it dies"]),
        (
            (replace(BEAT, forks=500), replace(R2, forks=500)),
            ["relay hosts: room for 0 more forks"],
        ),
        (
            (replace(BEAT, forks=400), replace(R2, forks=300)),
            ["relay hosts: room for 300 more forks; if r1 dies, for 200 of its 400"],
        ),
        ((BEAT, R2, replace(BEAT, name="r3", is_last=True)), []),
        ((BEAT, R2, replace(BEAT, run_id="before", is_last=True)), []),
    ],
    ids=["well", "address", "name", "version", "alone", "full", "spare", "ended", "restarted"],
)
async def test_relay_hosts_are_judged(
    server: NatsServer, beats: tuple[Beat, ...], told: list[str]
) -> None:
    async with beating(server, *beats):
        _, findings = await check(server.url)
    assert faults(findings) == told


async def test_relay_host_that_is_drained_is_no_fault(server: NatsServer) -> None:
    async with beating(server, BEAT, R2, replace(R2, name="r3", listen="h:1", is_draining=True)):
        _, findings = await check(server.url)
    assert faults(findings) == []
    drained = "relay host r3: at h:1, 7 of 500 forks, zone north; it is drained, and takes no more"
    assert drained in marked(findings, Mark.SKIP)


@pytest.mark.parametrize(("ahead_s", "which"), [(-3600, "behind"), (3600, "ahead of")])
async def test_clock_of_a_relay_host_that_differs_is_told(
    server: NatsServer, ahead_s: float, which: str
) -> None:
    beat = lambda: replace(BEAT, clock=time.time() + ahead_s)  # noqa: E731
    async with beating(server, beat, R2):
        _, findings = await check(server.url)
    assert faults(findings) == [f"relay host r1: its clock is 3600 s {which} this host's"]


async def test_message_that_is_no_beat_is_told_and_the_others_are_heard(server: NatsServer) -> None:
    async with connected(server.url) as broker, beating(server, BEAT, R2):
        checking = asyncio.create_task(check(server.url))
        for _ in range(30):
            broker.publish(f"{SUBJECT}.r9", b"{}")
            await asyncio.sleep(0.1)
        known, findings = await checking
    assert faults(findings) == ["relay hosts: a message of audiofork.beat.r9: a field is missing"]
    assert len(known.hosts) == 2


# --- A relay host --------------------------------------------------------------------------------


def relay_ini(server: NatsServer, more: str = "", listen: str = "127.0.0.1:0") -> str:
    return f"[audiosocket]\nlisten = {listen}\n{more}[cluster]\nname = r1\nservers = {server.url}\n"


async def check_relay(ini: str) -> tuple[Outcome, list[Finding]]:
    findings: list[Finding] = []
    config = config_file.parse(ini, {}, source="relay.ini")
    outcome = await RelayCheck(config, findings.append).run()
    for finding in findings:
        print(finding)
    return outcome, findings


async def test_relay_host_that_does_not_run_yet_has_no_fault(server: NatsServer) -> None:
    outcome, findings = await check_relay(relay_ini(server))
    assert outcome is Outcome.FINE
    assert "NATS: we may hear what controllers order of r1" in marked(findings, Mark.OK)
    (text,) = marked(findings, Mark.SKIP)
    assert text == "relay host r1: it does not run; 127.0.0.1:0 is free for it"
    assert marked(findings, Mark.WARN) == [
        "AudioSocket: Asterisk is told to connect to 127.0.0.1:0"
    ]


async def test_relay_host_that_runs_is_heard(server: NatsServer) -> None:
    here = replace(BEAT, listen="127.0.0.1:9093")
    async with beating(server, here):
        _, findings = await check_relay(relay_ini(server, listen="127.0.0.1:9093"))
    runs = "relay host r1: runs at 127.0.0.1:9093, 7 of 500 forks"
    assert runs in marked(findings, Mark.OK)


@pytest.mark.parametrize(
    ("beats", "told"),
    [
        (
            (replace(BEAT, listen="192.0.2.7:1"),),
            "relay host r1: runs at 192.0.2.7:1, 7 of 500 forks, and not at 192.0.2.1:9093",
        ),
        (
            (replace(BEAT, version="0.0.9"),),
            "relay host r1: runs at 192.0.2.1:9093, 7 of 500 forks, version 0.0.9, not "
            f"{audiofork.__version__} as installed",
        ),
        ((BEAT, replace(BEAT, run_id="other")), "relay host r1: two have this name"),
    ],
    ids=["address", "version", "name"],
)
async def test_relay_host_that_runs_with_something_else_is_told(
    server: NatsServer, beats: tuple[Beat, ...], told: str
) -> None:
    more = "advertise = 192.0.2.1:9093\nallow = 192.0.2.9\n"
    async with beating(server, *beats):
        _, findings = await check_relay(relay_ini(server, more))
    assert faults(findings) == [told]


@pytest.mark.parametrize(
    ("listen", "more", "mark", "text"),
    [
        ("127.0.0.1:9093", "", Mark.WARN, "127.0.0.1:9093"),
        (
            "0.0.0.0:9093",
            "advertise = r1.example.org:9093\n",
            Mark.WARN,
            "r1.example.org:9093, and anybody may ([audiosocket] allow)",
        ),
        (
            "0.0.0.0:9093",
            "advertise = r1.example.org:9093\nallow = 192.0.2.9\n",
            Mark.OK,
            "r1.example.org:9093",
        ),
    ],
)
async def test_address_of_a_relay_host_is_judged(
    server: NatsServer, listen: str, more: str, mark: Mark, text: str
) -> None:
    _, findings = await check_relay(relay_ini(server, more, listen))
    assert f"AudioSocket: Asterisk is told to connect to {text}" in marked(findings, mark)


async def test_port_of_a_relay_host_that_another_program_has_is_a_fault(server: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome, findings = await check_relay(relay_ini(server, listen=listen))
    assert outcome is Outcome.FAULTS
    (text,) = marked(findings, Mark.FAIL)
    assert text.startswith(f"relay host r1: it is not heard of, and {listen}: Address already in")


async def test_orders_that_a_relay_host_may_not_hear_are_a_fault(tmp_path: Path) -> None:
    key = new_key()
    allowed = 'permissions: { publish: ">", subscribe: "audiofork.beat.>" }'
    user = f"{{ nkey: {key.public}, {allowed} }}"
    with nats_servers(more=f"authorization {{ users: [{user}] }}\n") as (server,):
        ini = f"{relay_ini(server)}nkey = {key.seed}\n"
        _, findings = await check_relay(ini)
    (text,) = [finding.text for finding in findings if finding.remedy == remedies.RIGHTS]
    assert "audiofork.relay.r1.*" in text


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audiofork", *arguments, "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_command_checks_a_relay_host_without_a_login_to_asterisk(
    server: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "relay.ini"
    path.write_text(relay_ini(server))
    done = run(path, "check", "--relay")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"ok    configuration: {path}\n")
    assert "Asterisk at" not in done.stdout
    assert '"status": "ok"' in run(path, "check", "--relay", "--json").stdout


@pytest.mark.parametrize(
    ("ini", "fault"),
    [
        ("", "[cluster] servers is empty"),
        (
            "[audiosocket]\nlisten = 0.0.0.0:9093\n",
            "{path}: [audiosocket] advertise: expected the address of this host as Asterisk's "
            "machine sees it, since the relay host listens on 0.0.0.0:9093",
        ),
        ("[audiosocket]\nlisten = [::]:9093\n", "[audiosocket] advertise: expected"),
        ("[relay]\nworkers = 2\n", "{path}:4: [relay] workers: expected 1"),
    ],
)
@pytest.mark.parametrize("command", [("check", "--relay"), ("relay",)], ids=["check", "relay"])
def test_configuration_that_is_not_for_a_relay_host_is_refused(
    tmp_path: Path, ini: str, fault: str, command: tuple[str, ...]
) -> None:
    path = tmp_path / "relay.ini"
    path.write_text(ini and f"[cluster]\nservers = nats://127.0.0.1:1\n{ini}")
    done = run(path, *command)
    assert done.returncode == 3
    assert fault.format(path=path) in done.stderr


def test_command_without_the_client_says_how_to_have_it(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nats").mkdir()
    missing = "raise ModuleNotFoundError('none', name='nats')"
    (tmp_path / "nats" / "__init__.py").write_text(missing)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    path = tmp_path / "relay.ini"
    path.write_text(relay_ini(server))
    done = run(path, "check", "--relay")
    assert done.returncode == 1
    assert "pip install 'audiofork[cluster]'" in done.stderr
    done = run(path, "check")
    assert "FAIL  cluster: the NATS client is not installed" in done.stdout


async def test_check_sends_controllers_nothing_that_they_tell_of(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with leading(server), connected(server.url) as broker:
        roster = Roster(broker, DEAD_AFTER_S)
        await roster.start()
        asked: list[Question] = []
        await broker.subscribe_questions(subject_of("asterisk"), asked.append)
        hearing = EventHearing(broker, lambda: ["asterisk"], lambda _: False, ClusterStream("run"))
        await broker.subscribe("audiofork.events.asterisk", hearing.on_message)
        await broker.flush()
        caplog.clear()
        await check(server.url, name="c1")
        await broker.flush()
        assert (caplog.messages, asked, roster.controllers) == ([], [], [])
