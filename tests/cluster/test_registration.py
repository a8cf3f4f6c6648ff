"""Relay hosts in a bucket of NATS, for controllers that have not heard of them yet."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.cluster.beats import Beat, beat_of
from audiofork.cluster.broker import Broker
from audiofork.cluster.buckets import HOSTS, HOSTS_TTL_S
from audiofork.cluster.registration import (
    NAMESAKE_S,
    PUT_INTERVAL_S,
    Presence,
    Registered,
    key_subject,
    registered,
)
from audiofork.cluster.roster import HostState, Roster
from audiofork.errors import BrokerUnavailable, NoMessage
from testbed.nats import NatsServer
from tests.cluster.conftest import Connect
from tests.relay.peers import until
from tests.told_clock import Clock

TIMEOUT_S = 30
BEAT = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0")


# --- What a relay host writes --------------------------------------------------------------------


class Stage:
    """What a relay host sends."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[str, bytes]] = []
        self.presence = Presence(lambda *message: self.sent.append(message), self.clock)

    def tell(self, beat: Beat = BEAT) -> list[str]:
        """Tell of a beat; return the subjects that it was sent to."""
        self.sent.clear()
        self.presence.tell(beat)
        assert all(payload == beat.encode() for _, payload in self.sent)
        return [subject for subject, _ in self.sent]


BEAT_ONLY = ["audiofork.beat.r1"]
BOTH = [*BEAT_ONLY, "$KV.audiofork-hosts.r1"]


def test_host_whose_name_another_has_says_so_when_orders_for_that_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()

    def order_for(seconds: float) -> None:
        for _ in range(int(seconds)):
            stage.presence.on_namesake()
            stage.clock.now_s += 1

    order_for(NAMESAKE_S)  # for an earlier run of this host
    stage.clock.now_s += NAMESAKE_S
    order_for(NAMESAKE_S)
    assert not caplog.records
    order_for(3)
    assert [one.message[:46] for one in caplog.records] == [
        "another relay host has the name of this one, a"
    ]


def test_host_registers_with_its_first_beat_and_then_several_times_in_the_time_to_live() -> None:
    stage = Stage()
    assert stage.tell() == BOTH
    stage.clock.now_s += PUT_INTERVAL_S - 1
    assert stage.tell() == BEAT_ONLY
    stage.clock.now_s += 1
    assert stage.tell() == BOTH
    assert stage.tell() == BEAT_ONLY
    assert PUT_INTERVAL_S < HOSTS_TTL_S / 2


def test_host_registers_at_once_when_it_is_drained_or_not_any_more() -> None:
    stage = Stage()
    stage.tell()
    draining = replace(BEAT, is_draining=True)
    assert stage.tell(draining) == BOTH
    assert stage.tell(draining) == BEAT_ONLY
    assert stage.tell() == BOTH


def test_host_registers_when_the_broker_is_back() -> None:
    stage = Stage()
    stage.tell()
    stage.presence.renew()
    assert stage.tell() == BOTH


def test_host_that_ends_takes_its_registration_back() -> None:
    stage = Stage()
    stage.tell()
    assert stage.tell(replace(BEAT, is_last=True)) == BOTH


@pytest.mark.parametrize("value", [b"", b"{}", b"x", BEAT.encode()[:-1]])
def test_entry_that_is_no_beat_is_no_registration(value: bytes) -> None:
    with pytest.raises(NoMessage):
        registered("r1", value)


def test_entry_of_another_host_is_no_registration() -> None:
    assert registered("r1", BEAT.encode()) == BEAT
    with pytest.raises(NoMessage):
        registered("r2", BEAT.encode())


# --- What NATS keeps -----------------------------------------------------------------------------


async def read(broker: Broker) -> list[Beat]:
    """Return who is registered."""
    found: list[Beat] = []
    await Registered(broker, found.append)._read_once()
    return found


async def read_all(broker: Broker, *names: str) -> list[Beat]:
    """Return who is registered, when these are: NATS keeps what it gets a moment later."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await read(broker)
            if [beat.name for beat in found if not beat.is_last] == list(names):
                return found
            await asyncio.sleep(0.02)


@pytest.mark.nats
async def test_registrations_are_kept_for_a_while_and_others_are_not_removed(
    connect: Connect,
) -> None:
    broker = await connect()
    assert await read(broker) == []
    for number in (1, 2, 3):
        beat = replace(BEAT, name=f"r{number}")
        broker.publish(key_subject(beat.name), replace(beat, forks=1).encode())
        broker.publish(key_subject(beat.name), beat.encode())
    assert BEAT in await read_all(broker, "r1", "r2", "r3")
    config = (await (await broker.bucket(HOSTS)).status()).stream_info.config
    assert (config.storage, config.max_age, config.no_ack) == ("file", HOSTS_TTL_S, True)


@pytest.mark.nats
async def test_nats_answers_nobody_who_writes_there(connect: Connect) -> None:
    """Whoever writes chooses where the answer goes, whatever he may publish to."""
    broker = await connect()
    await read(broker)
    answers: list[bytes] = []
    await broker.subscribe("somewhere", lambda _, payload: answers.append(payload))
    broker.publish(key_subject("r1"), BEAT.encode(), "somewhere")
    assert await read_all(broker, "r1") == [BEAT]  # which NATS answers later
    assert answers == []


@pytest.mark.nats
async def test_what_is_no_registration_is_told_and_the_others_are_read(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await connect()
    await read(broker)
    for key, value in (
        ("r0", b'{"stream": "KV_audiofork-hosts", "seq": 1}'),
        ("r1", BEAT.encode()),
        ("r2", BEAT.encode()),
        ("a.b", BEAT.encode()),
    ):
        broker.publish(key_subject(key), value)
    assert await read_all(broker, "r1") == [BEAT]
    assert f"entries of the bucket {HOSTS} without effect" in caplog.text


@pytest.mark.nats
async def test_bucket_is_read_again_when_the_broker_is_back(
    connect: Connect, server: NatsServer
) -> None:
    broker = await connect()
    found: list[Beat] = []
    reading = Registered(broker, found.append)
    reading.start()
    await until(lambda: reading._was_there, TIMEOUT_S)
    assert found == []
    broker.publish(key_subject("r1"), BEAT.encode())
    assert await read_all(broker, "r1") == [BEAT]
    server.kill()
    await until(lambda: not broker.is_up, TIMEOUT_S)
    found.clear()  # the first reading may still have found it
    server.start()
    await until(lambda: broker.is_up, TIMEOUT_S)
    await until(lambda: found, TIMEOUT_S)
    assert found == [BEAT]
    await reading.close()


async def test_broker_that_cannot_be_asked_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("audiofork.cluster.registration._READ_WAITS_S", (0.0,) * 5)

    class Silent:
        asked = 0

        async def bucket(self, _name: str, **_more: bool) -> None:
            self.asked += 1
            raise BrokerUnavailable("NATS: no answer")

    broker = Silent()
    await Registered(broker, lambda _: None)._read()  # type: ignore[arg-type]
    assert broker.asked == 5
    (line,) = caplog.messages
    assert line == f"who is registered in the bucket {HOSTS} is not known: NATS: no answer"


# --- Real relay hosts ----------------------------------------------------------------------------


@contextmanager
def relay_host(server: NatsServer, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    file = folder / f"{name}.ini"
    file.write_text(
        "[audiosocket]\nlisten = 127.0.0.1:0\n"
        f"[cluster]\nname = {name}\nservers = {server.url}\ndead_after = 0.7\n"
    )
    command = [sys.executable, "-m", "audiofork", "relay", "-c", str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.nats
async def test_relay_host_is_registered_until_it_ends_and_one_that_died_is_told_as_dead_later(
    connect: Connect, server: NatsServer, tmp_path: Path
) -> None:
    broker = await connect()
    await read(broker)
    with relay_host(server, tmp_path, "r1") as first, relay_host(server, tmp_path, "r2") as second:
        await read_all(broker, "r1", "r2")
        second.kill()
        await asyncio.to_thread(second.wait)
        roster = Roster(broker, 0.7)
        reading = Registered(broker, roster.on_registered)
        await roster.start()  # of a controller that comes only now
        reading.start()
        states = {"r1": HostState.OPEN, "r2": HostState.DEAD}
        await until(lambda: {one.beat.name: one.state for one in roster.hosts} == states, TIMEOUT_S)
        assert roster.missing == {"r2"}
        first.send_signal(signal.SIGTERM)
        await asyncio.to_thread(first.wait)
        await read_all(broker, "r2")
        await until(lambda: [one.beat.name for one in roster.hosts] == ["r2"], TIMEOUT_S)
        await reading.close()


@pytest.mark.nats
async def test_relay_host_that_cannot_register_is_heard_of_by_its_beats(
    connect: Connect, server: NatsServer, tmp_path: Path
) -> None:
    """Beside controllers of an earlier version, which make no such bucket."""
    broker = await connect()
    beats: list[Beat] = []
    await broker.subscribe("audiofork.beat.*", lambda *one: beats.append(beat_of(*one)))
    with relay_host(server, tmp_path, "r1") as host:
        await until(lambda: len(beats) > 3, TIMEOUT_S)
        host.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(host.wait) == 0
    await until(lambda: beats[-1].is_last, TIMEOUT_S)  # it may still be on its way


@pytest.mark.nats
async def test_relay_host_of_an_earlier_version_is_heard_of_by_its_beats(connect: Connect) -> None:
    broker, old = await connect("c"), await connect("r")
    roster = Roster(broker, 60)
    reading = Registered(broker, roster.on_registered)
    await roster.start()
    reading.start()
    await until(lambda: reading._was_there, TIMEOUT_S)
    await broker.flush()
    old.publish("audiofork.beat.r1", BEAT.encode())
    await until(lambda: [one.state for one in roster.hosts] == [HostState.OPEN], TIMEOUT_S)
    assert roster.missing == set()
    await reading.close()


@pytest.mark.nats
async def test_bucket_that_is_removed_is_made_anew_after_a_while(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.cluster.registration.HOSTS_TTL_S", 0.2)
    broker = await connect()
    reading = Registered(broker, lambda _: None)
    reading.start()
    await until(lambda: reading._was_there, TIMEOUT_S)
    assert broker._stream is not None
    await broker._stream.delete_key_value(HOSTS)
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with suppress(BrokerUnavailable):
                assert await broker.keys(HOSTS) == []
                break
            await asyncio.sleep(0.05)
    await reading.close()
