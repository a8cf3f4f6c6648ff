"""Controllers and relays of a cluster that die, or lose the broker, in the midst of calls.

The callers speak numbered blocks, so that each one that the server lacks is counted.
"""

from __future__ import annotations

import asyncio
import audioop
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from audiofork.cluster.beats import BEATS_IN_DEAD_TIME
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from tests.relay.peers import until
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import counts_blocks, settings_of
from tests.system.scene import WARM_UP, Fork, Scene, staged
from tests.system.test_cli import forks as listed

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]

BLOCKS = make_blocks(600, seed=181)  # 12 s
HEARD = [decode(block) for block in BLOCKS]
CALLS, FORKS_EACH = 3, 4
ORPHAN_TIMEOUT_S = 20
# Longer than by default: a busy machine is no reason to take a host for dead.
SETTINGS = {
    "cluster": "dead_after = 2\n",
    "relay": f"orphan_timeout = {ORPHAN_TIMEOUT_S}\n",
    "security": "max_forks_per_channel = 20\n",
}


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk, SETTINGS) as one:
        yield one


@pytest.fixture
async def scene(asterisk: Asterisk, recorder: Recorder) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, {}) as one:
        yield one


async def leads(controller: Daemon) -> None:
    """Wait until a controller leads, and is connected to Asterisk."""
    await controller.says("connected to Asterisk")


async def spoken_fork(scene: Scene[Recorder]) -> tuple[Fork, asyncio.Future[int]]:
    """Return a fork whose party has said the first second of `BLOCKS`, and what ends with all."""
    target = await scene.call()
    talk = target.call.talk()
    fork = scene.fork(target, "/fork", "D(in)")
    await fork.started()
    talk.cancel()
    spoken = asyncio.ensure_future(target.call.play(BLOCKS))
    await asyncio.sleep(1)
    return fork, spoken


async def test_fork_is_relayed_by_a_relay_host(scene: Scene[Recorder], cluster: Cluster) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    fork = await scene.talking_fork("/fork", "D(in)")
    await scene.server.wait_messages("/fork", 50)
    stopped = await fork.hang_up()
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) >= 50
    await scene.legs(0)


async def test_start_without_a_relay_host_is_told(scene: Scene[Recorder], cluster: Cluster) -> None:
    await leads(cluster.controller("c1"))
    fork = scene.fork(await scene.call(), "/fork", "D(in)")
    failed = await fork.event("AudioForkFailed")
    assert "no relay host" in failed["Detail"]
    await scene.legs(0)


@counts_blocks
async def test_no_frame_is_lost_when_the_controller_is_killed_and_the_other_leads(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    for name in ("r1", "r2"):
        cluster.relay(name)
    first = cluster.controller("c1")
    await leads(first)
    second = cluster.controller("c2")
    targets = [await scene.call() for _ in range(CALLS)]
    talks = [target.call.talk() for target in targets]
    forks = {
        f"/{number}-{again}": scene.fork(target, f"/{number}-{again}", "D(in)")
        for number, target in enumerate(targets)
        for again in range(FORKS_EACH)
    }
    ids = {path: (await fork.started())["AudioForkID"] for path, fork in forks.items()}
    for talk in talks:
        talk.cancel()
    spoken = [asyncio.ensure_future(target.call.play(BLOCKS)) for target in targets]
    await asyncio.sleep(2)
    position = len(scene.ami.events)
    first.kill()
    killed_at = time.monotonic()
    await leads(second)
    print(f"the second leads after {time.monotonic() - killed_at:.2f} s")
    for path, fork in forks.items():
        again = await fork.started(after=position)
        assert (again["AudioForkID"], again["TakenUp"]) == (ids[path], "yes")
    await asyncio.gather(*spoken)
    for target in targets:
        await target.call.play(WARM_UP)
        await target.call.hangup()
    for fork in forks.values():
        stopped = await fork.stopped(after=position)
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    await scene.legs(0)
    assert sorted(one.path for one in scene.server.recordings) == sorted(forks)
    for one in scene.server.recordings:
        assert report(find_blocks(one.audio, HEARD), len(HEARD)).intact
    assert "Traceback" not in second.log()


async def test_call_that_ends_without_a_controller_is_ended_by_the_next(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    first = cluster.controller("c1")
    await leads(first)
    fork = await scene.talking_fork("/fork", "D(in)")
    await scene.server.wait_messages("/fork", 50)
    first.kill()
    position = len(scene.ami.events)
    await fork.target.call.hangup()
    await asyncio.sleep(0.5)
    await leads(cluster.controller("c2"))
    stopped = await fork.stopped(after=position)
    assert stopped["Reason"] == "hangup"
    assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) >= 50
    await scene.legs(0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_forks_of_a_relay_host_that_is_gone_live_on_another(
    scene: Scene[Recorder], cluster: Cluster, how: signal.Signals
) -> None:
    relays = {name: cluster.relay(name) for name in ("r1", "r2")}
    controller = cluster.controller("c1")
    await leads(controller)
    forks = [await scene.talking_fork(f"/{number}", "D(in)") for number in range(4)]
    for number in range(4):
        await scene.server.wait_messages(f"/{number}", 25)
    hosts = [one["relay_host"] for one in await listed(controller)]
    gone = max(relays, key=hosts.count)  # those that begin at once may not be spread evenly
    position = len(scene.ami.events)
    relays[gone].signal(how)
    gone_at = time.monotonic()
    await until(lambda: len(scene.server.recordings) == 4 + hosts.count(gone), 20)
    print(f"all forks live on after {time.monotonic() - gone_at:.2f} s")
    resumed = await scene.ami.wait_user_event("AudioForkResumed", after=position)
    assert int(resumed["GapMs"]) > 400  # since its last sign of life
    for fork in forks:
        stopped = await fork.hang_up()
        assert stopped["Reason"] == "hangup"
    if how is signal.SIGSTOP:
        relays[gone].signal(signal.SIGCONT)
    await scene.legs(0)
    assert f"{gone} at" in controller.log()


@counts_blocks
async def test_running_forks_go_on_while_the_broker_is_away_and_all_is_in_line_again(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    fork, spoken = await spoken_fork(scene)
    target = fork.target
    (server,) = cluster.servers
    server.kill()
    await controller.says("suspended")
    refused = scene.fork(target, "/refused", "D(in)")
    failed = await refused.event("AudioForkFailed")
    assert "NATS" in failed["Reason"]
    await asyncio.sleep(3)
    position = len(scene.ami.events)
    await asyncio.to_thread(server.start)
    back_at = time.monotonic()
    await controller.says("forks may start again")
    late = scene.fork(target, "/late", "D(in)")
    await late.started()
    print(f"starts are granted again after {time.monotonic() - back_at:.2f} s")
    await spoken
    await target.call.play(WARM_UP)
    await target.call.hangup()
    stopped = await fork.stopped(after=position)
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    (recording,) = [one for one in scene.server.recordings if one.path == "/fork"]
    assert report(find_blocks(recording.audio, HEARD), len(HEARD)).intact
    await late.stopped()
    await scene.legs(0)
    assert "Traceback" not in controller.log()


@counts_blocks
async def test_no_frame_is_lost_when_nats_has_lost_its_store_and_the_leader_dies_then(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    first = cluster.controller("c1")
    await leads(first)
    second = cluster.controller("c2")
    fork, spoken = await spoken_fork(scene)
    target = fork.target
    (server,) = cluster.servers
    server.kill()
    server.empty()
    await asyncio.to_thread(server.start)
    await first.says("has lost 1 running forks")
    await asyncio.sleep(0.5)  # until it is written
    position = len(scene.ami.events)
    first.kill()
    await leads(second)
    assert (await fork.started(after=position))["TakenUp"] == "yes"
    await spoken
    await target.call.play(WARM_UP)
    await target.call.hangup()
    stopped = await fork.stopped(after=position)
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    (recording,) = scene.server.recordings
    assert report(find_blocks(recording.audio, HEARD), len(HEARD)).intact
    logs = first.log() + second.log()
    assert "bucket audiofork-leases was gone" in logs
    assert "obeys another controller" not in logs


async def test_relay_host_obeys_a_controller_that_has_come_after_nats_has_lost_its_store(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    relay = cluster.relay("r1")
    for name in ("c1", "c2"):
        controller = cluster.controller(name)
        await leads(controller)
        controller.kill()
    (server,) = cluster.servers
    server.kill()
    server.empty()
    await asyncio.to_thread(server.start)
    controller = cluster.controller("c3")
    await leads(controller)
    fork = await scene.talking_fork("/fork", "D(in)")
    await scene.server.wait_messages("/fork", 50)
    assert (await fork.hang_up())["Reason"] == "hangup"
    assert controller.log().count("relay hosts obeyed a greater epoch") == 1
    assert relay.log().count("not obeyed") <= 3


async def test_call_that_ends_while_the_broker_is_away_ends_its_fork_when_it_is_back(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    fork = await scene.talking_fork("/fork", "D(in)")
    await scene.server.wait_messages("/fork", 50)
    (server,) = cluster.servers
    server.kill()
    await controller.says("suspended")
    await fork.target.call.hangup()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)
    stopped = await fork.stopped()
    assert stopped["Reason"] == "hangup"
    assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) >= 50
    await scene.legs(0)


async def test_start_waits_for_the_broker_where_it_is_configured(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    controller = cluster.controller("c1", cluster="start_wait = 20\n")
    await leads(controller)
    target = await scene.call()
    target.call.talk()
    (server,) = cluster.servers
    server.kill()
    await controller.says("suspended")
    fork = scene.fork(target, "/fork", "D(in)")
    await asyncio.sleep(1)
    await asyncio.to_thread(server.start)
    await fork.started()
    await target.call.hangup()
    await fork.stopped()


def not_once(audio: bytes, options: str) -> list[str]:
    """Return what did not come once of what the party spoke, and its call sent back at once."""
    sides = [audio]
    if "stereo" in options:
        sides = [audioop.tomono(audio, 2, 1, 0), audioop.tomono(audio, 2, 0, 1)]
    if "both" not in options:
        every = [report(find_blocks(one, HEARD), len(HEARD)) for one in sides]
        return [str(one) for one in every if not one.intact]
    # In and out are paired with a few frames between them; a silence may change how many.
    count = len(HEARD)
    pairs = [(one, two) for one in range(count) for two in range(one, min(one + 4, count))]
    mixes = [audioop.add(HEARD[one], HEARD[two], 2) for one, two in pairs]
    found = find_blocks(audio, [*mixes, *HEARD])
    heard = Counter(
        number for at in found for number in (pairs[at] if at < len(pairs) else (at - len(pairs),))
    )
    # The first and the last ones may be mixed with what is spoken before and after.
    return [f"block {one}: {heard[one]} sides" for one in range(4, count - 4) if heard[one] != 2]


@counts_blocks
@pytest.mark.parametrize(
    ("tap", "options"),
    [
        ("chanspy", ("D(in)", "D(in)F(100)", "D(stereo)")),
        ("snoop", ("D(out)", "D(both)", "D(stereo)")),
    ],
    ids=["chanspy", "snoop"],
)
async def test_forks_of_a_relay_host_that_is_drained_move_without_a_gap(
    scene: Scene[Recorder], tap: str, options: Sequence[str]
) -> None:
    settings = {**SETTINGS, **settings_of(tap, scene.asterisk)}
    with clustered(scene.asterisk, settings) as cluster:
        await drain(scene, cluster, options)


async def drain(scene: Scene[Recorder], cluster: Cluster, options: Sequence[str]) -> None:
    """Drain a relay host whose forks have these options, two each, and see that all blocks come."""
    first = cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    targets = [await scene.call() for _ in (*options, *options)]
    talks = [target.call.talk() for target in targets]
    options_of = {f"/{number}": one for number, one in enumerate((*options, *options))}
    forks = {
        path: scene.fork(target, path, options_of[path])
        for path, target in zip(options_of, targets, strict=True)
    }
    for fork in forks.values():
        await fork.started()
    cluster.relay("r2")
    for talk in talks:
        talk.cancel()
    # ChanSpy drops up to one frame of in at the moment when out begins.
    blocks = [*WARM_UP, *BLOCKS]
    spoken = [asyncio.ensure_future(target.call.play(blocks)) for target in targets]
    await asyncio.sleep(2)
    first.signal(signal.SIGTERM)
    drained_at = time.monotonic()
    await until(lambda: first.exit_code is not None, 20)
    print(f"drained after {time.monotonic() - drained_at:.2f} s")
    assert first.exit_code == 0
    await asyncio.gather(*spoken)
    for target in targets:
        await target.call.play(WARM_UP)
        await target.call.hangup()
    for fork in forks.values():
        stopped = await fork.stopped()
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
        assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) > len(BLOCKS)
    for path in forks:
        before, after = [one for one in scene.server.recordings if one.path == path]
        assert (before.close_code, before.close_reason) == (1001, "moved")
        assert len(after.audio) > len(before.audio) > 0
        assert not_once(before.audio + after.audio, options_of[path]) == []
    assert "some frames may be missing" not in controller.log()
    await scene.legs(0)
    assert "Traceback" not in controller.log()


@counts_blocks
async def test_relay_host_that_is_killed_while_its_fork_moves_takes_nothing_with_it(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    first = cluster.relay("r1")
    controller = cluster.controller("c1")
    await leads(controller)
    target = await scene.call()
    talk = target.call.talk()
    fork = scene.fork(target, "/fork", "D(in)")
    await fork.started()
    cluster.relay("r2")
    talk.cancel()
    spoken = asyncio.ensure_future(target.call.play(BLOCKS))
    await asyncio.sleep(2)
    first.signal(signal.SIGTERM)
    await until(lambda: len(scene.server.recordings) == 2, 20)
    await scene.legs(2)
    await asyncio.sleep(0.2)
    first.kill()  # while both have it
    await spoken
    await target.call.play(WARM_UP)
    await target.call.hangup()
    assert (await fork.stopped())["Reason"] == "hangup"
    before, after = scene.server.recordings
    found = report(find_blocks(before.audio + after.audio, HEARD), len(HEARD))
    # Of the time since its last beat it is not known whether it has sent what came.
    beat_blocks = 50 * 2 // BEATS_IN_DEAD_TIME
    assert found.missing == 0
    assert found.duplicated <= beat_blocks + 5
    assert controller.log().count("some frames may be missing, or come twice") == 1
    await scene.legs(0)
