"""The shipped configuration of NATS: each role can do what it needs, and nothing else.

Real servers with TLS and NKeys. Set AUDIOFORK_TESTBED_NATS_SERVER to try another version of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError

from audiofork import shipped
from audiofork.cluster import lease
from audiofork.cluster.beats import Beat
from audiofork.cluster.broker import Broker
from audiofork.cluster.buckets import HOSTS, values
from audiofork.cluster.lease import Holder, Lease
from audiofork.cluster.registration import Registered, key_subject
from audiofork.cluster.roster import Roster
from audiofork.commands.check_cluster import ClusterCheck
from audiofork.commands.findings import Finding, Findings
from audiofork.config import Config
from audiofork.doors.broker_door import BrokerDoor, ask_leader, subject_of
from audiofork.doors.event_stream import EventStream
from audiofork.doors.http.cluster_stream import ClusterStream
from audiofork.doors.shared_events import EventHearing, tell
from audiofork.errors import BrokerUnavailable
from audiofork.forks.cluster_journal import ClusterJournal, bucket_of
from audiofork.forks.events import ForkInfo, Muted
from audiofork.forks.journal import Entry
from audiofork.forks.requests import Origin
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    LegPart,
    Report,
    SinkRetrying,
)
from audiofork.tls_contexts import client_context
from testbed.nats import find_server
from tests.cluster.secured import ADMIN, ASTERISKS, RELAYS, REQUESTS, SEVERAL, Secured, secured
from tests.relay.peers import until

pytestmark = [
    pytest.mark.nats,
    # NATS' client lets go of connections that are closed, and of failed ones, without a word.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

R1, R2 = RELAYS
A1, A2 = ASTERISKS
LEASES, JOURNAL_1, JOURNAL_2 = lease.BUCKET, bucket_of(A1), bucket_of(A2)
DEAD_S = 0.5


def run(command: list[str], section: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    """Start a command of audiofork with a section [cluster] and others."""
    file = folder / f"{command[0]}-{time.monotonic_ns()}.ini"
    rest = {"audiosocket": "listen = 127.0.0.1:0", "log": "level = debug", **more}
    file.write_text(section + "".join(f"[{name}]\n{lines}\n" for name, lines in rest.items()))
    return subprocess.Popen(
        [sys.executable, "-m", "audiofork", command[0], "-c", str(file), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """Return what a process prints until its end."""
    out, _ = process.communicate(timeout=60)
    return out


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Run the server, and have the command make the buckets."""
    with secured() as one:
        folder = tmp_path_factory.mktemp("buckets")
        for told in ("made", "is there"):
            process = run(["buckets", A1, A2], one.section(ADMIN), folder)
            out = output_of(process)
            assert process.returncode == 0, out
            for bucket in (LEASES, HOSTS, JOURNAL_1, JOURNAL_2):
                assert f"{bucket}: {told}, 1 replicas" in out
        yield one


class User(Client):
    """A client with the key of a user, who tries what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    async def log_in(self, nats: Secured, user: str, inbox: str) -> None:
        async def on_error(exc: Exception) -> None:
            self.errors.append(str(exc))

        await self.connect(
            nats.url,
            tls=client_context(str(nats.ca_file)),
            nkeys_seed_str=nats.keys[user].seed,
            inbox_prefix=inbox,
            error_cb=on_error,
        )

    async def sync(self) -> None:
        """Return when the server has answered what was sent."""
        for _ in range(2):  # the first ping is sent before what waits
            await self.flush()

    def is_denied(self, what: str, subject: str) -> bool:
        said = f'permissions violation for {what} to "{subject.lower()}"'
        return any(said in one for one in self.errors)


async def logged_in(nats: Secured, user: str, inbox: str) -> AsyncIterator[User]:
    client = User()
    await client.log_in(nats, user, inbox)
    yield client
    await client.close()


@pytest.fixture
async def relay(nats: Secured) -> AsyncIterator[User]:
    async for one in logged_in(nats, R1, f"_INBOX.relay.{R1}"):
        yield one


@pytest.fixture
async def controller(nats: Secured) -> AsyncIterator[User]:
    async for one in logged_in(nats, A1, f"_INBOX.control.{A1}"):
        yield one


async def check_publish(user: User, subject: str, *, allowed: bool) -> None:
    await user.publish(subject, b"x")
    await user.sync()
    assert user.is_denied("publish", subject) is not allowed


async def check_subscribe(user: User, subject: str, *, allowed: bool) -> None:
    await user.subscribe(subject)
    await user.sync()
    assert user.is_denied("subscription", subject) is not allowed


# --- The file itself -----------------------------------------------------------------------------


def test_server_does_not_start_before_the_keys_are_set() -> None:
    file = str(shipped.find(shipped.NATS_CONF))
    result = subprocess.run([find_server(), "-t", "-c", file], capture_output=True, text=True)
    assert result.returncode != 0
    assert "nkey" in (result.stdout + result.stderr).lower()


# --- A relay host --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(f"audiofork.relay.{R2}.{A1}", id="orders"),
        pytest.param(f"audiofork.relay.{R1}.{A1}", id="orders of its own"),
        pytest.param(f"audiofork.beat.{R2}", id="beat of another"),
        pytest.param(f"audiofork.control.{A1}.{R2}", id="report of another"),
        pytest.param(f"audiofork.request.{A1}", id="request"),
        pytest.param(f"audiofork.events.{A1}", id="event"),
        pytest.param(f"audiofork.history.{A1}.c1", id="history"),
        pytest.param(f"audiofork.forget.{A1}.c1", id="forget"),
        pytest.param(f"$KV.{LEASES}.{A1}", id="lease"),
        pytest.param(f"$KV.{JOURNAL_1}.x", id="journal"),
        pytest.param(key_subject(R2), id="registration of another"),
        pytest.param("$JS.API.STREAM.CREATE.KV_x", id="make a bucket"),
        pytest.param(f"$JS.API.STREAM.CREATE.KV_{HOSTS}", id="make that of the relay hosts"),
        pytest.param(f"$JS.API.STREAM.UPDATE.KV_{HOSTS}", id="change that of the relay hosts"),
        pytest.param(f"$JS.API.STREAM.PURGE.KV_{HOSTS}", id="purge that of the relay hosts"),
        pytest.param(f"$JS.API.STREAM.MSG.DELETE.KV_{HOSTS}", id="remove a registration"),
        pytest.param(f"$JS.API.STREAM.MSG.GET.KV_{HOSTS}", id="read a registration"),
        pytest.param(f"$JS.API.DIRECT.GET.KV_{HOSTS}", id="read it directly"),
        pytest.param(f"$JS.API.CONSUMER.CREATE.KV_{HOSTS}", id="consumer of registrations"),
        pytest.param(f"$JS.API.STREAM.PURGE.KV_{JOURNAL_1}", id="purge"),
        pytest.param(f"$JS.API.STREAM.DELETE.KV_{LEASES}", id="delete"),
        pytest.param(f"$JS.API.STREAM.MSG.GET.KV_{JOURNAL_1}", id="read a journal"),
        pytest.param(f"$JS.API.CONSUMER.CREATE.KV_{JOURNAL_1}", id="consumer"),
        pytest.param(f"_INBOX.control.{A1}.x.y", id="answer to another"),
    ],
)
async def test_relay_host_may_not(relay: User, subject: str) -> None:
    await check_publish(relay, subject, allowed=False)


@pytest.mark.parametrize(
    "subject",
    [
        *(">", "audiofork.>", "audiofork.relay.>", f"audiofork.relay.{R2}.*", "_INBOX.>"),
        *("audiofork.beat.*", f"audiofork.control.{A1}.*", f"$KV.{JOURNAL_1}.>", "$JS.>", "$SYS.>"),
        *(f"audiofork.events.{A1}", f"audiofork.history.{A1}.c1", f"audiofork.forget.{A1}.c1"),
    ],
)
async def test_relay_host_may_not_read(relay: User, subject: str) -> None:
    await check_subscribe(relay, subject, allowed=False)


async def test_relay_host_may_what_it_needs(relay: User) -> None:
    for subject in (f"audiofork.beat.{R1}", f"audiofork.control.{A1}.{R1}", key_subject(R1)):
        await check_publish(relay, subject, allowed=True)
    await check_subscribe(relay, f"audiofork.relay.{R1}.*", allowed=True)


async def test_relay_host_that_writes_its_key_removes_no_other_and_gets_nothing_sent_elsewhere(
    nats: Secured, relay: User, controller: User
) -> None:
    other = User()
    await other.log_in(nats, R2, f"_INBOX.relay.{R2}")
    await other.publish(key_subject(R2), b"here")
    await other.sync()
    heard: list[str] = []

    async def on_message(message: Msg) -> None:
        heard.append(message.subject)

    await controller.subscribe(f"audiofork.control.{A1}.*", cb=on_message)
    await controller.sync()
    reply = f"audiofork.control.{A1}.{R2}"
    headers: tuple[dict[str, str], ...] = (
        {},
        {"Nats-Rollup": "all"},
        {"Nats-Expected-Last-Subject-Sequence": "999999"},
    )
    for one in headers:
        await relay.publish(key_subject(R1), b"x", reply=reply, headers=one)
    await relay.publish(f"audiofork.control.{A1}.{R1}", b"last")
    await relay.sync()
    bucket = await controller.jetstream().key_value(HOSTS)
    async with asyncio.timeout(20):
        while (await values(bucket, [R1, R2])) != {R1: b"x", R2: b"here"}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await controller.sync()
    assert heard == [f"audiofork.control.{A1}.{R1}"]
    await other.close()


# --- A controller --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(f"audiofork.relay.{R1}.{A2}", id="orders in another's name"),
        pytest.param(f"audiofork.beat.{R1}", id="beat"),
        pytest.param(f"audiofork.beat-control.{A2}.c1", id="beat of another"),
        pytest.param(f"audiofork.control.{A2}.{R1}", id="report"),
        pytest.param(f"audiofork.request.{A2}", id="request"),
        pytest.param(f"audiofork.events.{A2}", id="event of another"),
        pytest.param(f"audiofork.history.{A2}.c1", id="history of another"),
        pytest.param(f"audiofork.forget.{A2}.c1", id="forget at another"),
        pytest.param(f"$KV.{LEASES}.{A2}", id="lease"),
        pytest.param(f"$KV.{JOURNAL_2}.x", id="journal"),
        pytest.param(key_subject(R1), id="registration"),
        pytest.param(f"$JS.API.STREAM.PURGE.KV_{HOSTS}", id="purge the registrations"),
        pytest.param(f"$JS.API.STREAM.UPDATE.KV_{HOSTS}", id="change their bucket"),
        pytest.param(f"$JS.API.CONSUMER.CREATE.KV_{HOSTS}", id="consumer of registrations"),
        pytest.param(f"$JS.API.STREAM.MSG.GET.KV_{JOURNAL_2}", id="read a journal"),
        pytest.param(f"$JS.API.STREAM.INFO.KV_{JOURNAL_2}", id="keys of a journal"),
        pytest.param(f"$JS.API.STREAM.PURGE.KV_{JOURNAL_2}", id="purge a journal"),
        pytest.param(f"$JS.API.STREAM.PURGE.KV_{LEASES}", id="purge the leases"),
        pytest.param(f"$JS.API.STREAM.CREATE.KV_{JOURNAL_1}", id="make"),
        pytest.param(f"$JS.API.STREAM.UPDATE.KV_{JOURNAL_1}", id="change"),
        pytest.param(f"$JS.API.STREAM.DELETE.KV_{JOURNAL_1}", id="delete"),
        pytest.param("$JS.API.STREAM.LIST", id="list"),
        pytest.param(f"$JS.API.CONSUMER.CREATE.KV_{JOURNAL_1}", id="consumer"),
        pytest.param(f"$JS.API.CONSUMER.CREATE.KV_{JOURNAL_1}.c", id="named consumer"),
        pytest.param(f"$JS.API.CONSUMER.DURABLE.CREATE.KV_{JOURNAL_1}.c", id="durable consumer"),
        pytest.param(f"$JS.API.CONSUMER.MSG.NEXT.KV_{JOURNAL_1}.c", id="pull"),
        pytest.param(f"$JS.API.DIRECT.GET.KV_{JOURNAL_1}", id="direct"),
        pytest.param(f"$JS.API.DIRECT.GET.KV_{JOURNAL_1}.$KV.x", id="direct by subject"),
        pytest.param(f"_INBOX.control.{A2}.x.y", id="answer to another"),
    ],
)
async def test_controller_may_not(controller: User, subject: str) -> None:
    await check_publish(controller, subject, allowed=False)


@pytest.mark.parametrize(
    "subject",
    [
        *(">", "audiofork.>", f"audiofork.control.{A2}.*", f"audiofork.request.{A2}"),
        *("audiofork.events.*", f"audiofork.events.{A2}", "audiofork.history.*.*"),
        *("audiofork.forget.*.*", f"audiofork.forget.{A2}.*"),
        *("audiofork.relay.>", f"audiofork.relay.{R1}.*", "_INBOX.>", f"_INBOX.control.{A2}.>"),
        *(f"$KV.{JOURNAL_1}.>", f"$KV.{JOURNAL_2}.>", "$JS.>", "$SYS.>"),
    ],
)
async def test_controller_may_not_read(controller: User, subject: str) -> None:
    await check_subscribe(controller, subject, allowed=False)


async def test_message_in_the_bucket_of_the_leases_removes_no_other_lease(
    nats: Secured, controller: User
) -> None:
    other = User()
    await other.log_in(nats, A2, f"_INBOX.control.{A2}")
    bucket = await other.jetstream().key_value(LEASES)
    await bucket.put(A2, b"here")
    with pytest.raises(APIError):
        await controller.jetstream().publish(
            f"$KV.{LEASES}.{A1}", b"x", headers={"Nats-Rollup": "all"}
        )
    assert (await bucket.get(A2)).value == b"here"
    await bucket.delete(A2)
    await other.close()


async def test_answers_of_nats_that_are_sent_elsewhere_are_neither_orders_nor_entries(
    nats: Secured, controller: User
) -> None:
    """Whoever asks NATS chooses the subject of the answer, whatever he may publish to."""
    async with (
        broker_of(nats, R1, f"_INBOX.relay.{R1}") as host,
        leading(nats, A2) as (other, held),
    ):
        heard: list[bytes] = []
        await host.subscribe(f"audiofork.relay.{R1}.*", lambda _, payload: heard.append(payload))
        await host.flush()
        journal = ClusterJournal(other, A2, lambda: True)
        await journal.open()
        await controller.jetstream().publish(f"$KV.{JOURNAL_1}.x", b'["ForkSpec",{}]')
        get = f'{{"last_by_subj":"$KV.{JOURNAL_1}.x"}}'.encode()
        for reply in (
            f"audiofork.relay.{R1}.{A2}",
            f"$KV.{LEASES}.{A2}",
            f"$KV.{JOURNAL_2}.y",
        ):
            for subject, payload in (
                (f"$JS.API.STREAM.MSG.GET.KV_{JOURNAL_1}", get),
                (f"$JS.API.STREAM.INFO.KV_{JOURNAL_1}", b""),
                (f"$KV.{JOURNAL_1}.x", b"y"),
            ):
                await controller.publish(subject, payload, reply=reply)
        await controller.sync()
        await asyncio.sleep(2 * DEAD_S)
        assert all(payload.startswith(b'{"') for payload in heard)  # which is no message
        assert held.is_held
        await journal.close()
        journal = ClusterJournal(other, A2, lambda: True)
        assert await journal.open() == []
        assert journal.works
        await journal.close()
        await other.remove(JOURNAL_2, "y")
        await controller.jetstream().purge_stream(f"KV_{JOURNAL_1}")


# --- What each role needs ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def broker_of(nats: Secured, user: str, inbox: str) -> AsyncIterator[Broker]:
    broker = Broker(nats.config(user), user, inbox)
    try:
        async with asyncio.timeout(20):
            await broker.connect()
        yield broker
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def leading(nats: Secured, asterisk: str) -> AsyncIterator[tuple[Broker, Lease]]:
    """Lead for an Asterisk, with its key."""
    async with broker_of(nats, asterisk, f"_INBOX.control.{asterisk}") as broker:
        held = await Lease.of(broker, asterisk, Holder("c", "run"), DEAD_S)
        async with asyncio.timeout(20):
            await held.take()
        keeping = asyncio.create_task(held.keep())
        try:
            yield broker, held
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await held.release()


def entry(number: int) -> Entry:
    return Entry(
        fork_id=str(uuid.UUID(int=number)),
        channel="PJSIP/a",
        uniqueid="1",
        url="ws://h/?token=x",
        options="",
        post_process="",
        action_id="",
        values={},
        mute_in=False,
        mute_out=False,
        started=float(number),
        asterisk_started="",
    )


async def test_journal_keeps_gives_back_and_forgets_entries(
    nats: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(nats, A1, f"_INBOX.control.{A1}") as broker:
        journal = ClusterJournal(broker, A1, lambda: True)
        await journal.open()
        entries = [entry(number) for number in range(150)]
        for one in entries:
            journal.put(one)
        journal.remove(entries[0].fork_id)
        await journal.close()
        journal = ClusterJournal(broker, A1, lambda: True)
        assert await journal.open() == entries[1:]
        for one in entries:
            journal.remove(one.fork_id)
        await journal.close()
        assert await broker.keys(JOURNAL_1) == []
    assert "does not allow" not in caplog.text


async def test_forks_of_two_asterisks_are_relayed_by_two_relay_hosts(
    nats: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = [run(["relay"], nats.section(name), tmp_path) for name in RELAYS]
    try:
        for asterisk in ASTERISKS:
            async with leading(nats, asterisk) as (broker, held):
                await order_a_fork(nats, asterisk, broker, held)
    finally:
        for host in hosts:
            host.send_signal(signal.SIGTERM)
    outputs = [output_of(host) for host in hosts]
    for text in (*outputs, caplog.text):
        assert "does not allow" not in text
        assert "Traceback" not in text


async def test_relay_host_is_registered_with_those_who_may_read_that(
    nats: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = run(["relay"], nats.section(R1), tmp_path)
    found: dict[str, Beat] = {}
    async with broker_of(nats, A1, f"_INBOX.control.{A1}") as broker:
        reading = Registered(broker, lambda beat: found.update({beat.name: beat}))
        async with asyncio.timeout(30):
            while R1 not in found:
                await reading._read_once()
                await asyncio.sleep(0.05)
        host.send_signal(signal.SIGTERM)
        out = await asyncio.to_thread(output_of, host)
        await reading._read_once()
        assert found[R1].is_last
    assert "does not allow" not in out + caplog.text


async def order_a_fork(nats: Secured, asterisk: str, broker: Broker, held: Lease) -> None:
    """Have a relay host begin a fork, and end it."""
    reports: list[Report] = []
    config = Config(cluster=nats.config(asterisk, name="c"))
    roster = Roster(broker, DEAD_S)
    await roster.start()
    hosts = RelayHosts(config, broker, held, roster, reports.append)
    await hosts.start()
    await until(lambda: len(hosts._listening()) == 2, 20)
    fork_id, leg = str(uuid.uuid4()), str(uuid.uuid4())
    hosts.send(ForkSpec(fork_id, "PJSIP/a", "ws://127.0.0.1:9/", Direction.IN))
    hosts.send(ExpectLeg(fork_id, LegPart.MIX, leg))
    async with asyncio.timeout(20):
        await hosts.until_expected(fork_id)
    await until(lambda: any(isinstance(one, SinkRetrying) for one in reports), 20)
    hosts.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: any(isinstance(one, ForkEnded) for one in reports), 20)
    await hosts.close()


async def test_real_controller_leads_and_looks_for_relay_hosts(
    nats: Secured, tmp_path: Path
) -> None:
    asterisk = "host = 127.0.0.1\nport = 9\nsecret = x"  # nothing listens there
    section = nats.section(A1, name="c1")
    host = run(["relay"], nats.section(R1), tmp_path)
    await lines_until(host, "connected to the NATS server")
    control = run(["control"], section, tmp_path, asterisk=asterisk, control="socket =")
    out = await lines_until(control, "relay hosts are there")
    for process in (control, host):
        process.send_signal(signal.SIGTERM)
        out += await asyncio.to_thread(output_of, process)
    assert "leading, epoch" in out
    assert "does not allow" not in out
    assert "Traceback" not in out


async def test_real_controller_of_two_asterisks_has_what_the_controller_of_each_has(
    nats: Secured, tmp_path: Path
) -> None:
    host = run(["relay"], nats.section(R1), tmp_path)
    await lines_until(host, "connected to the NATS server")
    nobody = "host = 127.0.0.1\nport = 9\nsecret = x"
    more = {
        f"asterisk {A2}": nobody.replace("9", "8"),
        "control": f"socket = {tmp_path}/control.sock",
    }
    section = nats.section(SEVERAL, name="c1", asterisk=A1)
    control = run(["control"], section, tmp_path, asterisk=nobody, **more)
    out = ""
    while out.count("relay hosts are there") < 2:
        out += await lines_until(control, "relay hosts are there")
    for name in (A1, A2):
        found: list[Finding] = []
        config = nats.config(SEVERAL, asterisk=name)
        await ClusterCheck(config, Findings(found.append)).run()
        texts = [one.text for one in found]
        assert f"controllers: c1 leads for {name}, none stands by" in texts
        assert not any("violation" in text for text in texts)
    for process in (control, host):
        process.send_signal(signal.SIGTERM)
        out += await asyncio.to_thread(output_of, process)
    assert "does not allow" not in out
    assert "Traceback" not in out


async def lines_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process prints until a text comes."""

    def read() -> str:
        assert process.stdout is not None
        out = ""
        while text not in out:
            line = process.stdout.readline()
            assert line, out
            out += line
        return out

    try:
        async with asyncio.timeout(60):
            return await asyncio.to_thread(read)
    except TimeoutError:
        process.kill()  # else the thread would read for ever
        raise


async def test_request_is_answered_by_the_controller_that_it_is_for(nats: Secured) -> None:
    async with (
        broker_of(nats, A1, f"_INBOX.control.{A1}") as broker,
        broker_of(nats, REQUESTS, f"_INBOX.{REQUESTS}") as asker,
        broker_of(nats, A1, f"_INBOX.control.{A1}") as standby,
    ):

        async def answers(line: bytes, _origin: Origin) -> AsyncGenerator[dict[str, Any], None]:
            for number in range(20):
                yield {"ok": True, "line": line.decode(), "number": number}

        door = BrokerDoor(broker, subject_of(A1), lambda: True, answers)
        await door.open()
        await broker.flush()
        for one in (asker, standby):
            async with asyncio.timeout(20):
                told = [answer async for answer in ask_leader(one, A1, b"a", "me")]
            assert [answer["number"] for answer in told] == list(range(20))
        with pytest.raises(BrokerUnavailable):
            async for _ in ask_leader(asker, A2, b"a", "me"):
                pass
        await door.close()


async def test_checks_of_both_roles_find_all_that_they_need(nats: Secured, tmp_path: Path) -> None:
    out = await asyncio.to_thread(output_of, run(["check", "--relay"], nats.section(R1), tmp_path))
    assert f"NATS: we may hear what controllers order of {R1}" in out
    assert "violation" not in out
    found: list[Finding] = []
    async with leading(nats, A1):
        await ClusterCheck(nats.config(A1), Findings(found.append)).run()
    texts = [one.text for one in found]
    assert f"controllers: c leads for {A1}, none stands by" in texts
    assert any(text.startswith(f"JetStream: writes to bucket {JOURNAL_1}") for text in texts)
    assert f"JetStream: writes to bucket {LEASES}" in texts
    assert not any("violation" in text for text in texts)


async def test_events_reach_another_controller_of_the_same_asterisk(
    nats: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = f"_INBOX.control.{A1}"
    async with (
        broker_of(nats, A1, inbox) as leader,
        broker_of(nats, A1, inbox) as standby,
    ):
        merged, own = ClusterStream("standby"), EventStream("leader")
        hearing = EventHearing(standby, lambda: [A1], lambda _: False, merged)
        hearing.start()
        await until(lambda: merged.last == 1, 20)  # the gap before
        end = tell(leader, A1, own)
        own.on_event(Muted(ForkInfo(str(uuid.UUID(int=1)), "c", "1", "ws://h/"), True, False))
        await until(lambda: merged.last == 2, 20)
        assert merged.after(1, 9)[0].name == "fork.muted"
        end()
        await hearing.close()
    assert "does not allow" not in caplog.text


# --- Faults of the administrator -----------------------------------------------------------------


async def test_buckets_cannot_be_made_by_a_controller_and_the_command_says_so(
    nats: Secured, tmp_path: Path
) -> None:
    process = run(["buckets", A1], nats.section(A1), tmp_path)
    out = await asyncio.to_thread(output_of, process)
    assert process.returncode == 4
    assert "NATS does not allow us" in out


async def test_missing_bucket_is_told_with_what_makes_it(
    nats: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(nats, ADMIN, "_INBOX.buckets") as broker:
        with pytest.raises(BrokerUnavailable):
            await broker.remove(JOURNAL_1, "x")
    assert "compare the permissions" in caplog.text


async def test_relay_host_with_the_name_of_another_is_told_what_is_wrong(
    nats: Secured, tmp_path: Path
) -> None:
    host = run(["relay"], nats.section(R1, name=R2), tmp_path)
    out = await lines_until(host, f'NATS does not allow us to publish to "audiofork.beat.{R2}"')
    host.send_signal(signal.SIGTERM)
    out += await asyncio.to_thread(output_of, host)
    assert f'subscribe to "audiofork.relay.{R2}.*"' in out
    assert out.count("publish to") == 1


# --- Secrets -------------------------------------------------------------------------------------


async def test_key_stands_in_no_log_and_no_list_of_processes(nats: Secured, tmp_path: Path) -> None:
    section = nats.section(R1)
    file = section.partition("nkey_file = ")[2].partition("\n")[0]
    os.environ["CREDENTIALS_DIRECTORY"] = str(Path(file).parent)
    section = section.replace(str(Path(file).parent) + "/relay", "${CREDENTIALS_DIRECTORY}/relay")
    assert "${CREDENTIALS_DIRECTORY}" in section
    try:
        host = run(["relay"], section, tmp_path)
    finally:
        del os.environ["CREDENTIALS_DIRECTORY"]
    out = await lines_until(host, "connected to the NATS server")
    seed = nats.keys[R1].seed
    told = await asyncio.to_thread(Path(f"/proc/{host.pid}/cmdline").read_bytes)
    assert b"relay" in told
    assert seed.encode() not in told
    host.send_signal(signal.SIGTERM)
    out += await asyncio.to_thread(output_of, host)
    assert seed not in out
    assert all(key.seed not in nats.server.log for key in nats.keys.values())


def test_key_file_that_cannot_be_read_is_an_error_with_its_line(
    nats: Secured, tmp_path: Path
) -> None:
    section = nats.section(R1, nkey_file="/none/a")
    process = run(["relay"], section, tmp_path)
    out = output_of(process)
    assert process.returncode == 3
    assert "[cluster] nkey_file: /none/a: No such file or directory" in out
    assert ".ini:6: " in out
