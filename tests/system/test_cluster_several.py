"""One controller for two Asterisks, and a second one that stands by for both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest

from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, asterisk_settings, manager_conf
from testbed.daemon import dialplan as shipped_dialplan
from testbed.recorder import Recorder
from tests.relay.peers import until
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import DIALPLAN, counts_blocks
from tests.system.scene import WARM_UP, Scene, staged
from tests.system.test_cli import command, told

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]

BLOCKS = make_blocks(400, seed=182)  # 8 s
HEARD = [decode(block) for block in BLOCKS]
# Longer than by default: a busy machine is no reason to take a host for dead.
SETTINGS = {"cluster": "dead_after = 2\n"}


@pytest.fixture(scope="module")
def second_asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf()}
    with Asterisk(dialplan=DIALPLAN + shipped_dialplan(), config=config) as one:
        yield one


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk, SETTINGS) as one:
        yield one


class Both(NamedTuple):
    """What happens at each of the two Asterisks."""

    a: Scene[Recorder]
    b: Scene[Recorder]


@pytest.fixture
async def both(
    asterisk: Asterisk, second_asterisk: Asterisk, recorder: Recorder
) -> AsyncIterator[Both]:
    async with contextlib.AsyncExitStack() as stack:
        scenes = [
            await stack.enter_async_context(staged(one, recorder, {}))
            for one in (asterisk, second_asterisk)
        ]
        yield Both(*scenes)


def controller(cluster: Cluster, name: str, second: Asterisk, secret: str = "") -> Daemon:
    """Start a controller of both: pbx-a, which has no name in its file, and pbx-b."""
    of_second = asterisk_settings(second)
    if secret:
        of_second = f"port = {second.ami_port}\nsecret = {secret}\n"
    settings = {"cluster": "asterisk = pbx-a\n", "asterisk pbx-b": of_second}
    return cluster.controller(name, None, **settings)


async def leads_both(one: Daemon) -> None:
    await one.says("connected to Asterisk", times=2)


@counts_blocks
async def test_no_frame_of_either_asterisk_is_lost_when_the_controller_of_both_is_killed(
    both: Both, cluster: Cluster, second_asterisk: Asterisk
) -> None:
    for name in ("r1", "r2"):
        cluster.relay(name)
    first = controller(cluster, "c1", second_asterisk)
    await leads_both(first)
    second = controller(cluster, "c2", second_asterisk)
    targets = [await scene.call() for scene in both]
    talks = [target.call.talk() for target in targets]
    forks = [
        scene.fork(target, f"/{number}-{again}", "D(in)")
        for number, (scene, target) in enumerate(zip(both, targets, strict=True))
        for again in range(2)
    ]
    ids = [(await fork.started())["AudioForkID"] for fork in forks]
    for talk in talks:
        talk.cancel()
    spoken = [asyncio.ensure_future(target.call.play(BLOCKS)) for target in targets]
    await asyncio.sleep(2)
    positions = {id(scene.ami): len(scene.ami.events) for scene in both}
    first.kill()
    killed_at = time.monotonic()
    await leads_both(second)
    print(f"the second leads for both after {time.monotonic() - killed_at:.2f} s")
    for fork, fork_id in zip(forks, ids, strict=True):
        again = await fork.started(after=positions[id(fork.ami)])
        assert (again["AudioForkID"], again["TakenUp"]) == (fork_id, "yes")
    await asyncio.gather(*spoken)
    for target in targets:
        await target.call.play(WARM_UP)
        await target.call.hangup()
    for fork in forks:
        stopped = await fork.stopped(after=positions[id(fork.ami)])
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    for scene in both:
        await scene.legs(0)
    recordings = both.a.server.recordings
    assert sorted(one.path for one in recordings) == ["/0-0", "/0-1", "/1-0", "/1-1"]
    for recording in recordings:
        assert report(find_blocks(recording.audio, HEARD), len(HEARD)).intact
    assert "Traceback" not in second.log()


async def test_requests_at_the_socket_name_the_asterisk_but_those_that_are_for_all(
    both: Both, cluster: Cluster, second_asterisk: Asterisk
) -> None:
    cluster.relay("r1")
    one = controller(cluster, "c1", second_asterisk)
    await leads_both(one)
    forks = [await scene.talking_fork(f"/{n}", "D(in)") for n, scene in enumerate(both)]
    target = forks[1].target
    code, listed = await command(one, "list", "--json")
    assert code == 0, listed
    found = {(fork["asterisk"], fork["channel"]) for fork in json.loads(listed)}
    assert found == {("pbx-a", forks[0].target.channel), ("pbx-b", target.channel)}
    code, listed = await command(one, "list", "--json", "--asterisk", "pbx-b")
    (fork,) = json.loads(listed)
    assert (fork["channel"], fork.get("asterisk")) == (target.channel, None)
    code, error = await command(one, "stop", fork["id"])
    assert code == 1
    assert "say which one is meant (--asterisk): this controller serves pbx-a, pbx-b" in error
    there = ("--asterisk", "pbx-b")
    assert await command(one, "stop", fork["id"], *there) == (0, f"{fork['id']}\n")
    await forks[1].stopped()
    code, history = await command(one, "history", "--json", *there)
    assert [entry["fork_id"] for entry in json.loads(history)] == [fork["id"]]
    code, history = await command(one, "history", "--json", "--asterisk", "pbx-a")
    assert json.loads(history) == []
    code, history = await command(one, "history", "--json")
    assert [(entry["fork_id"], entry["asterisk"]) for entry in json.loads(history)] == [
        (fork["id"], "pbx-b")
    ]
    code, table = await command(one, "cluster")
    rows = [line.split()[:3] for line in table.splitlines()]
    assert ["c1", "pbx-a", "leads"] in rows
    assert ["c1", "pbx-b", "leads"] in rows
    code, output, errors = await told(one, "check")
    assert "by the running daemon" in output
    for name in ("pbx-a", "pbx-b"):
        assert f"ok    {name}: daemon: runs, " in output
        assert f"{name}: relay host r1: Asterisk reaches it" in output
        assert f"warn  {name}: controllers: c1 leads for {name}, none stands by" in output
    assert code == 0, output + errors
    await forks[0].target.call.hangup()
    await forks[0].stopped()
    one.stop()
    code, history = await command(one, "history", "--json", *there)
    assert fork["id"] in history
    code, error = await command(one, "history", "--json")
    assert "say which Asterisk is meant (--asterisk)" in error
    await target.call.hangup()
    await forks[0].target.call.hangup()


async def test_asterisk_that_refuses_the_login_leaves_the_other_alone(
    both: Both, cluster: Cluster, second_asterisk: Asterisk
) -> None:
    cluster.relay("r1")
    one = controller(cluster, "c1", second_asterisk, secret="wrong")
    await one.says("connected to Asterisk")
    await one.says("pbx-b: Asterisk refused the login")
    fork = await both.a.talking_fork("/one", "D(in)")
    await both.a.server.wait_messages("/one", 25)
    content = one.config.read_text()
    one.config.write_text(
        content.replace("secret = wrong", asterisk_settings(second_asterisk).split("\n")[1])
    )
    await one.reload("reloaded", times=2)
    await leads_both(one)
    other = await both.b.talking_fork("/two", "D(in)")
    for each in (fork, other):
        stopped = await each.hang_up()
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    assert "Traceback" not in one.log()


async def test_asterisk_that_could_not_be_served_is_as_soon_as_it_can(
    both: Both, cluster: Cluster, second_asterisk: Asterisk
) -> None:
    """Its front has no port at first; what the first attempt has opened is closed by then."""
    cluster.relay("r1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {
            "cluster": "asterisk = pbx-a\n",
            "asterisk pbx-b": asterisk_settings(second_asterisk),
            "front pbx-b": f"listen = 127.0.0.1:{port}\n",
        }
        one = cluster.controller("c1", None, **settings)
        await one.says("pbx-b: cannot be served here: ")
    await until(lambda: "pbx-b: connected to Asterisk" in one.log(), 40)
    fork = await both.b.talking_fork("/one", "D(in)")
    await fork.hang_up()
    code, history = await command(one, "history", "--json", "--asterisk", "pbx-b")
    assert code == 0, history
    assert len(json.loads(history)) == 1
    assert f"AMI front on 127.0.0.1:{port}" in one.log()
    assert "locked" not in one.log()
    assert "Traceback" not in one.log()


async def test_one_asterisk_that_is_led_elsewhere_leaves_the_other_here(
    both: Both, cluster: Cluster, second_asterisk: Asterisk
) -> None:
    """Its front cannot listen here, so the other controller has it."""
    cluster.relay("r1")
    settings = {
        "cluster": "asterisk = pbx-a\n",
        "asterisk pbx-b": asterisk_settings(second_asterisk),
        "front pbx-b": f"listen = 127.0.0.1:{second_asterisk.ami_port}\n",
    }
    first = cluster.controller("c1", None, **settings)
    await first.says("pbx-b: cannot be served here: ")
    assert f"{first.config}:" in first.log().partition("cannot be served here: ")[2].split("\n")[0]
    second = controller(cluster, "c2", second_asterisk)
    await second.says("pbx-b: leading")
    await second.says("connected to Asterisk")
    assert "pbx-a: leading" not in second.log()
    own = await both.a.talking_fork("/a", "D(in)")
    other = await both.b.talking_fork("/b", "D(in)")
    code, listed = await command(first, "list", "--json")
    assert code == 0, listed
    assert {one["asterisk"] for one in json.loads(listed)} == {"pbx-a", "pbx-b"}
    first.stop()
    await second.says("pbx-a: leading")
    await leads_both(second)
    for fork in (own, other):
        stopped = await fork.hang_up()
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    await until(lambda: first.exit_code == 0, 30)
    assert "Traceback" not in first.log() + second.log()
