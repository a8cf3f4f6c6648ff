"""A cluster on hosts of its own, whose network drops packets: what its failures cost calls.

Each program of the cluster has a network namespace, and so have the three NATS servers. Asterisk,
the callers and the server of the forks share one. The callers speak numbered blocks, so that each
one that the server lacks is counted. What is measured is printed: `pytest -s`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from testbed.asterisk import Asterisk
from testbed.crowd import LISTEN
from testbed.daemon import asterisk_settings, dialplan, manager_conf
from testbed.namespaces import Host, NamespacesUnavailable, Network
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import counts_blocks
from tests.system.parted import (
    CONTROLLERS,
    JOURNAL,
    LEASES,
    NATS,
    RELAYS,
    SERVER,
    Parted,
    longest_gap_s,
    lost,
    parted,
    twice,
    until,
)

pytestmark = [pytest.mark.asterisk, pytest.mark.cluster]

# The promises, and half as much again for a busy machine.
LEADS_S = 1.5  # after the leader is gone
MOVED_S = 3.0  # after a relay host is cut off
ELECTED_S = 15.0  # NATS elects another leader of a stream after 4 to 9 s
HOUR_S = 3600


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        network = Network()
    except NamespacesUnavailable as exc:
        pytest.skip(f"no network namespaces can be made: {exc}")
    with network:
        yield network


@pytest.fixture(scope="module")
def hosts(network: Network) -> Iterator[dict[str, Host]]:
    """The hosts by name; this process is on that of Asterisk."""
    made = {name: network.host(name) for name in ("pbx", *NATS, *CONTROLLERS, *RELAYS)}
    with made["pbx"].entered():
        yield made


@pytest.fixture(scope="module")
def asterisk(hosts: dict[str, Host]) -> Iterator[Asterisk]:
    """An Asterisk whose manager interface the other hosts may use."""
    network = hosts["pbx"].address.rsplit(".", 2)[0] + ".0.0/16"
    users = manager_conf().replace("permit = 127.0.0.1/255.255.255.255", f"permit = {network}")
    config = {"manager.conf": f"[general](+)\nbindaddr = 0.0.0.0\n{users}"}
    with Asterisk(dialplan=LISTEN + dialplan(), config=config) as one:
        yield one


@pytest.fixture
def cluster(asterisk: Asterisk, hosts: dict[str, Host], network: Network) -> Iterator[Cluster]:
    pbx = hosts["pbx"].address
    settings = {
        "asterisk": f"host = {pbx}\n{asterisk_settings(asterisk)}",
        "relay": "orphan_timeout = 30\n",
        "security": f"allow_urls = ws://{pbx}\n",
    }
    try:
        with clustered(asterisk, settings, len(NATS), hosts) as one:
            yield one
    finally:
        network.heal()


@pytest.fixture
async def stage(
    network: Network, hosts: dict[str, Host], cluster: Cluster
) -> AsyncIterator[Parted]:
    async with parted(network, hosts, cluster) as one:
        yield one


# --- Controllers ---


@counts_blocks
@pytest.mark.parametrize("how", ["killed", "cut off", "cut off from NATS"])
async def test_no_frame_is_lost_when_the_leader_is_gone_and_the_standby_leads(
    stage: Parted, how: str
) -> None:
    await stage.begin()
    gone_at = time.monotonic()
    if how == "killed":
        stage.daemon("c1").kill()
    else:
        stage.cut("c1", only_nats=how == "cut off from NATS")
    taken_s = await stage.taken_up(gone_at)
    print(f"\nthe leader is {how}: the standby has all forks after {taken_s:.2f} s")
    assert taken_s < LEADS_S
    more = await stage.call_more()
    await until(lambda: more.told == ["AudioForkStarted"], 30)
    await more.call.hangup()
    await until(lambda: more.told == ["AudioForkStarted", "AudioForkStopped"], 30)
    await asyncio.sleep(3)
    await stage.settle()
    if how != "killed":
        await stage.daemon("c1").says("standing by", times=2)
    all_of_it = await stage.end()
    assert lost(all_of_it) == twice(all_of_it) == 0
    assert more.told == ["AudioForkStarted", "AudioForkStopped"]


@counts_blocks
async def test_leader_that_is_cut_off_from_nats_alone_leaves_to_the_other_what_happens(
    stage: Parted,
) -> None:
    """It still hears what Asterisk tells, and could act on that."""
    await stage.begin()
    cut_at = time.monotonic()
    stage.cut("c1", only_nats=True)
    await stage.taken_up(cut_at)
    await until(lambda: "another controller leads" in stage.daemon("c1").log(), 30)
    moving = stage.at("r1")
    stage.daemon("r1").kill()
    await until(lambda: stage.at("r2") >= moving, 30)
    await asyncio.sleep(4)  # longer than the time limits of its forks' legs
    assert await stage.legs() == len(stage.crowd.forks)
    await stage.settle()
    all_of_it = await stage.end()
    assert twice(all_of_it) == 0
    for fork in stage.crowd.forks:
        names = [one.name for one in stage.told(fork.action_id, cut_at)]
        moved = ["AudioForkReconnecting", "AudioForkResumed"] if fork.path in moving else []
        assert names == ["AudioForkStarted", *moved, "AudioForkStopped"]


@counts_blocks
async def test_leader_that_was_stopped_for_a_while_leaves_all_as_it_is_and_stands_by(
    stage: Parted,
) -> None:
    await stage.begin()
    ending = await stage.call_more()
    await until(lambda: ending.told == ["AudioForkStarted"], 30)
    stopped_at = time.monotonic()
    stage.daemon("c1").signal(signal.SIGSTOP)
    taken_s = await stage.taken_up(stopped_at)
    print(f"\nthe leader is stopped: the standby has all forks after {taken_s:.2f} s")
    beginning = await stage.call_more()
    await ending.call.hangup()
    await asyncio.sleep(max(0.0, 3 - (time.monotonic() - stopped_at)))
    stage.daemon("c1").signal(signal.SIGCONT)
    await stage.daemon("c1").says("standing by", times=2)
    await asyncio.sleep(2)
    assert ending.told == ["AudioForkStarted", "AudioForkStarted", "AudioForkStopped"]
    assert beginning.told == ["AudioForkStarted"]
    assert await stage.legs() == len(stage.crowd.forks) + 1
    await beginning.call.hangup()
    await until(lambda: beginning.told == ["AudioForkStarted", "AudioForkStopped"], 30)
    all_of_it = await stage.end()
    assert lost(all_of_it) == twice(all_of_it) == 0


# --- Relay hosts ---


@pytest.mark.parametrize("how", ["killed", "cut off", "cut off from NATS"])
async def test_forks_of_a_relay_host_that_is_gone_live_on_another_and_end_where_they_were(
    stage: Parted, how: str
) -> None:
    await stage.begin()
    moving = stage.at("r1")
    assert moving
    gone_at = time.monotonic()
    if how == "killed":
        stage.daemon("r1").kill()
    else:
        stage.cut("r1", only_nats=how == "cut off from NATS")
    await until(lambda: stage.at("r2") >= moving, 30)
    again = [one for one in stage.recorder.recordings if one.opened > gone_at]
    await until(lambda: all(one.times for one in again), 30)
    moved_s = max(one.times[0] for one in again) - gone_at
    await asyncio.sleep(4)
    settled_s = await stage.settle()
    all_of_it = await stage.end()
    print(
        f"\na relay host with {len(moving)} forks is {how}: audio flows from another after "
        f"{moved_s:.2f} s, {lost(all_of_it) / len(moving):.0f} blocks lost a fork, the longest gap "
        f"{longest_gap_s(all_of_it):.2f} s; all in line {settled_s:.2f} s after the end of it"
    )
    assert moved_s < MOVED_S
    # What the server got last and could not acknowledge is sent again once the link is healed.
    assert twice(all_of_it) <= (5 * len(moving) if how == "cut off" else 0)
    assert not any(one.report.missing for path, one in all_of_it.items() if path not in moving)


# --- NATS ---


@counts_blocks
@pytest.mark.parametrize("how", ["killed", "cut off"])
async def test_no_frame_is_lost_when_the_nats_leader_of_the_leases_is_gone(
    stage: Parted, how: str
) -> None:
    await stage.begin()
    server = await stage.broker_leader(LEASES)
    gone_at = time.monotonic()
    if how == "killed":
        server.kill()
    else:
        stage.cut(server.name)
    await asyncio.sleep(2)
    refused = await stage.call_more()
    granted_s = await granted(stage, gone_at)
    print(f"\nthe NATS leader of the leases is {how}: starts are granted after {granted_s:.2f} s")
    assert granted_s < ELECTED_S
    assert refused.told in (["AudioForkFailed"], ["AudioForkStarted"], [])
    await refused.call.hangup()
    await asyncio.sleep(3)
    await stage.settle()
    all_of_it = await stage.end()
    assert lost(all_of_it) == twice(all_of_it) == 0


@counts_blocks
async def test_no_frame_is_lost_when_the_leader_and_the_nats_leader_of_the_journal_are_gone(
    stage: Parted,
) -> None:
    """A host may run both; the standby must not take the forks for unknown."""
    await stage.begin()
    gone_at = time.monotonic()
    (await stage.broker_leader(JOURNAL)).kill()
    stage.daemon("c1").kill()
    taken_s = await stage.taken_up(gone_at, ELECTED_S)
    print(f"\na host with both is killed: the standby has all forks after {taken_s:.2f} s")
    await stage.settle()
    all_of_it = await stage.end()
    assert lost(all_of_it) == twice(all_of_it) == 0


@counts_blocks
@pytest.mark.parametrize("broker", ["leader of the leases", "follower"])
@pytest.mark.parametrize("asterisk_is", ["beyond", "reached"])
async def test_partition_with_the_leader_on_the_smaller_side_has_never_two_act(
    stage: Parted, broker: str, asterisk_is: str
) -> None:
    await stage.begin()
    island = stage.server_of("c1")
    others = [name for name in NATS if name != island]
    wanted = island if broker == "leader of the leases" else others[0]
    await stage.move_broker_leader(LEASES, wanted)
    await stage.move_broker_leader(JOURNAL, others[0])
    silent = [name for name in RELAYS if stage.server_of(name) == island]
    moving = set().union(*map(stage.at, silent))
    await asyncio.sleep(1)
    doomed = await stage.call_more()
    await until(lambda: doomed.told == ["AudioForkStarted"], 30)
    parted_at = time.monotonic()
    stage.network.part(stage.hosts["c1"], stage.hosts[island])
    if asterisk_is == "reached":
        stage.network.join(stage.hosts["c1"], stage.hosts["pbx"])
    taken_s = await stage.taken_up(parted_at, ELECTED_S)
    await asyncio.sleep(3)
    assert await stage.legs() == len(stage.crowd.forks) + 1
    settled_s = await stage.settle(20, others=1)
    print(
        f"\nthe leader is parted with one NATS server, a {broker}, Asterisk is {asterisk_is}: the "
        f"standby has all forks after {taken_s:.2f} s; all in line {settled_s:.2f} s after the end"
    )
    await asyncio.sleep(2)
    await doomed.call.hangup()
    all_of_it = await stage.end()
    kept = {path: one for path, one in all_of_it.items() if path not in moving}
    print(
        f"{lost(kept)} blocks lost of {len(kept)} forks; relay hosts of the same server: {silent}"
    )
    assert lost(kept) == twice(all_of_it) == 0
    assert "standing by" in stage.daemon("c1").log().split("suspended")[-1]


async def test_relay_host_whose_nats_server_is_cut_off_from_the_others_goes_to_another(
    stage: Parted,
) -> None:
    """The server answers it still, so that nothing seems wrong from there."""
    await stage.begin()
    island = stage.server_of("r1")
    async with asyncio.timeout(60):
        while stage.server_of("r2") == island:  # each takes any of them
            await asyncio.to_thread(stage.daemon("r2").stop)
            await asyncio.to_thread(stage.daemon("r2").start)
    await asyncio.sleep(3)
    moving = stage.at("r1")
    cut_at = time.monotonic()
    others = [stage.hosts[name] for name in (*NATS, *CONTROLLERS) if name != island]
    stage.network.cut(stage.hosts[island], *others)
    await until(lambda: stage.at("r2") >= moving, 20)  # the leader may be at that server, too
    there = [f"{SERVER} {stage.hosts[name].address}:" for name in NATS if name != island]
    await until(lambda: any(one in stage.daemon("r1").log() for one in there), 30)
    back_s = time.monotonic() - cut_at
    await asyncio.sleep(2)
    settled_s = await stage.settle(20)
    all_of_it = await stage.end()
    print(
        f"\na relay host's NATS server is cut off from the others: longest gap of "
        f"{len(moving)} forks {longest_gap_s(all_of_it):.2f} s, the host is at another server "
        f"after {back_s:.1f} s, all in line {settled_s:.2f} s after the end"
    )
    assert twice(all_of_it) == 0


async def test_controller_whose_nats_server_is_cut_off_from_the_others_goes_to_another(
    stage: Parted,
) -> None:
    """It answers still, but nobody there can lead; the other controller does."""
    await stage.begin()
    island = stage.server_of("c1")
    cut_at = time.monotonic()
    others = [stage.hosts[name] for name in (*NATS, "c2", *RELAYS) if name != island]
    stage.network.cut(stage.hosts[island], *others)
    await stage.taken_up(cut_at, ELECTED_S)
    there = [f"{SERVER} {stage.hosts[name].address}:" for name in NATS if name != island]
    await until(lambda: any(one in stage.daemon("c1").log() for one in there), 60)
    back_s = time.monotonic() - cut_at
    print(f"\na controller's NATS server is cut off: it is at another after {back_s:.1f} s")
    await stage.daemon("c1").says("standing by", times=2)
    await stage.settle(20)
    all_of_it = await stage.end()
    assert twice(all_of_it) == 0


async def granted(stage: Parted, since: float) -> float:
    """Ask for forks until one is started; return when that was asked for."""
    while True:
        asked_at = time.monotonic()
        assert asked_at - since < 2 * ELECTED_S
        one = await stage.call_more()
        told = await one.first(3)
        await one.call.hangup()
        if told == "AudioForkStarted":
            return asked_at - since
        await asyncio.sleep(0.2)


# --- Clocks ---


@counts_blocks
async def test_clocks_that_differ_by_two_hours_change_nothing(stage: Parted) -> None:
    stage.cluster.ahead = {"c1": HOUR_S, "c2": -HOUR_S, "r1": HOUR_S, "r2": -HOUR_S}
    began = time.monotonic()
    await stage.begin()
    gone_at = time.monotonic()
    stage.daemon("c1").kill()
    taken_s = await stage.taken_up(gone_at)
    print(f"\nclocks differ by two hours: the standby has all forks after {taken_s:.2f} s")
    assert taken_s < LEADS_S
    moving = stage.at("r1")
    gone_at = time.monotonic()
    stage.daemon("r1").kill()
    await until(lambda: stage.at("r2") >= moving, 30)
    moved_s = time.monotonic() - gone_at
    print(f"and another relay host has the forks of a killed one after {moved_s:.2f} s")
    assert moved_s < MOVED_S
    await stage.settle()
    age_s = time.monotonic() - began
    all_of_it = await stage.end()
    assert twice(all_of_it) == 0
    for fork in stage.crowd.forks:
        (stopped,) = [one for one in stage.told(fork.action_id) if "Stopped" in one.name]
        assert 0 < float(stopped.headers["Duration"]) < age_s + 5
