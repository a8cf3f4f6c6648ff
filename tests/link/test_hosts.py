"""Relay hosts that are cut off and come back, from the view of a controller."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from audiofork.cluster.broker import Broker
from audiofork.cluster.registration import Registered
from audiofork.cluster.roster import Roster
from audiofork.config import Config
from audiofork.link.host_worker import HostWorker
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import (
    Adopt,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    LegPart,
    RelayLost,
    Report,
)
from testbed.recorder import Recorder
from tests.link.hosted import Held, HostedRelay, be_patient
from tests.relay.peers import until

pytestmark = pytest.mark.nats

TIMEOUT_S = 30


class Later(Held):
    """The lease of a later leader."""

    epoch = 2


class Rig:
    """A controller's view of two relay hosts, and what is reported to it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.relay = HostedRelay(Config(), self.reports.append)
        self.relay.is_patient = False

    async def start(self) -> None:
        await self.relay.start()
        self.other = self.relay.start_host("r2")
        await until(lambda: len(self.relay._listening()) == 2, TIMEOUT_S)

    def order(self, fork_id: str, url: str) -> None:
        """Order a fork, without legs."""
        self.relay.send(ForkSpec(fork_id, "PJSIP/1", url, Direction.IN, legs=(LegPart.IN,)))

    def forget(self, fork_id: str) -> None:
        """Forget a fork, as if its host had been cut off, and had not come back yet."""
        host = self.relay._owners.pop(fork_id)
        assert isinstance(host, HostWorker)
        host.forks.remove(fork_id)
        host.leftovers.add(fork_id)

    def reported(self, kind: type[Report]) -> list[Report]:
        return [one for one in self.reports if isinstance(one, kind)]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    one = Rig()
    await one.start()
    yield one
    await one.relay.close()


async def test_fork_that_went_to_another_host_ends_on_the_first_that_is_back_and_lives_on(
    rig: Rig, recorder: Recorder
) -> None:
    fork_id, url = str(uuid.uuid4()), recorder.url()
    rig.other.send_signal(signal.SIGSTOP)
    await until(lambda: len(rig.relay._listening()) == 1, TIMEOUT_S)
    rig.order(fork_id, url)
    await recorder.wait(lambda one: True)
    rig.other.send_signal(signal.SIGCONT)
    await until(lambda: len(rig.relay._listening()) == 2, TIMEOUT_S)
    rig.relay.host.send_signal(signal.SIGSTOP)
    await until(lambda: rig.reported(RelayLost), TIMEOUT_S)
    rig.order(fork_id, url)
    await until(lambda: len(recorder.recordings) == 2, TIMEOUT_S)
    rig.relay.host.send_signal(signal.SIGCONT)
    await until(lambda: recorder.recordings[0].closed, TIMEOUT_S)
    assert not recorder.recordings[1].closed
    assert not rig.reported(ForkEnded)
    rig.relay.send(EndFork(fork_id, EndReason.STOPPED))
    await until(lambda: rig.reported(ForkEnded), TIMEOUT_S)
    assert recorder.recordings[1].closed


async def test_relay_host_that_obeys_a_greater_epoch_tells_it_and_obeys_who_outbids_it(
    rig: Rig,
) -> None:
    relay = rig.relay
    for epoch in (7, 1):  # NATS has lost the leases, and counts anew
        relay.lease.epoch = epoch
        for worker in relay._workers.values():
            worker.open()
        await until(lambda: len(relay._listening()) == 2, TIMEOUT_S)
    assert relay.lease.epoch == 8


async def test_of_two_hosts_that_hold_a_fork_the_next_controller_has_that_which_it_went_to_last(
    rig: Rig, recorder: Recorder
) -> None:
    fork_ids = [str(uuid.uuid4()) for _ in range(6)]
    for fork_id in fork_ids:
        rig.order(fork_id, recorder.url())
    await until(lambda: len(recorder.recordings) == 6, TIMEOUT_S)
    first = {fork_id: rig.relay.address_of(fork_id) for fork_id in fork_ids}
    assert len(set(first.values())) == 2
    for fork_id in fork_ids:
        rig.forget(fork_id)
        rig.order(fork_id, recorder.url())
    await until(lambda: len(recorder.recordings) == 12, TIMEOUT_S)
    await rig.relay.client.close()  # the controller has died
    async with next_controller(rig) as following:
        assert sorted(following.held or ()) == sorted(fork_ids)
        assert all(following.address_of(fork_id) != first[fork_id] for fork_id in fork_ids)
        await until(lambda: sum(bool(one.closed) for one in recorder.recordings) >= 6, TIMEOUT_S)
        assert [bool(one.closed) for one in recorder.recordings] == [True] * 6 + [False] * 6


async def test_fork_goes_on_where_it_is_when_the_next_controller_hears_of_its_host_only_later(
    rig: Rig, recorder: Recorder
) -> None:
    fork_id = str(uuid.uuid4())
    rig.order(fork_id, recorder.url())
    await until(lambda: recorder.recordings, TIMEOUT_S)
    hosts = (rig.relay.host, rig.other)
    for host in hosts:
        host.send_signal(signal.SIGSTOP)
    await rig.relay.client.close()  # the controller has died
    async with next_controller(rig) as following:
        assert following.held is None
        for host in hosts:
            host.send_signal(signal.SIGCONT)
        await until(lambda: following.held is not None, TIMEOUT_S)
        assert list(following.held or ()) == [fork_id]
        following.send(Adopt(fork_id))
        assert await following.until_expected(fork_id)
        (only,) = recorder.recordings
        assert not only.closed


async def test_host_refuses_servers_that_its_own_file_does_not_allow(recorder: Recorder) -> None:
    rig = Rig()
    rig.relay.settings = f"[security]\nallow_urls = {recorder.url('/allowed')}\n"
    await rig.relay.start()
    refused = str(uuid.uuid4())
    rig.order(str(uuid.uuid4()), recorder.url("/allowed"))
    rig.order(refused, recorder.url("/other"))
    await until(lambda: recorder.recordings and rig.reported(ForkEnded), TIMEOUT_S)
    (end,) = rig.reported(ForkEnded)
    assert isinstance(end, ForkEnded)
    assert (end.fork_id, end.reason) == (refused, EndReason.SINK_REFUSED)
    assert end.detail == "[security] allow_urls of the relay host r1 does not name its server"
    assert [one.path for one in recorder.recordings] == ["/allowed"]
    await rig.relay.close()


async def test_forks_of_the_first_of_two_hosts_with_one_name_go_on_and_the_second_gets_none(
    rig: Rig, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        rig.order(str(uuid.uuid4()), recorder.url(f"/{number}"))
    await until(lambda: len(recorder.recordings) == 4, TIMEOUT_S)
    sessions = [one.numbers.session for one in rig.relay._all_workers()]
    rig.relay.start_host("r1")
    await until(lambda: "two relay hosts have the name r1" in caplog.text, TIMEOUT_S)
    for number in range(4, 8):
        rig.order(str(uuid.uuid4()), recorder.url(f"/{number}"))
    await until(lambda: len(recorder.recordings) == 8, TIMEOUT_S)
    await asyncio.sleep(2)  # of beats and pings
    assert [one.numbers.session for one in rig.relay._all_workers()] == sessions
    assert not rig.reported(ForkEnded)
    assert not rig.reported(RelayLost)
    assert not any(one.closed for one in recorder.recordings)
    assert len([one for one in caplog.records if one.levelname != "INFO"]) == 1


@asynccontextmanager
async def next_controller(rig: Rig) -> AsyncIterator[RelayHosts]:
    """Run the view of a controller that leads after the first."""
    config = replace(Config(), cluster=rig.relay.cluster)
    broker = Broker(config.cluster, "c2")
    await broker.connect()
    roster = Roster(broker, config.cluster.dead_after)
    await roster.start()
    registered = Registered(broker, roster.on_registered)
    await registered._read_once()
    following = RelayHosts(config, broker, Later(), roster, [].append)  # type: ignore[arg-type]
    await following.start()
    be_patient(following, roster)
    yield following
    await following.close()
    await broker.close()
