"""Requests at any door of any controller of a cluster, and what its commands show of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest
from prometheus_client import parser

from audiofork.doors.control_client import Client
from audiofork.errors import DaemonUnreachable
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, manager_conf
from testbed.daemon import dialplan as shipped_dialplan
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import DIALPLAN, place_call
from tests.system.scene import Scene, staged
from tests.system.test_cli import command, told
from tests.system.test_front import HOST, front_port
from tests.system.test_front import Client as FrontClient

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]

# Longer than by default: these tests start programs again and again, which keep others waiting.
SETTINGS = {"cluster": "dead_after = 2\n"}
OTHER = {"cluster": "asterisk = pbx-b\n"}


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk, SETTINGS) as one:
        yield one


@pytest.fixture
async def scene(asterisk: Asterisk, recorder: Recorder) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, {}) as one:
        yield one


@pytest.fixture
def pair(cluster: Cluster) -> tuple[Daemon, Daemon]:
    """A controller that leads, and one that stands by, beside a relay host."""
    cluster.relay("r1")
    return cluster.controller("c1"), cluster.controller("c2")


async def leads(controller: Daemon) -> None:
    await controller.says("connected to Asterisk")


async def asked(controller: Daemon) -> str:
    """Ask for the list; return the channels, or why there is none."""

    def ask() -> str:
        try:
            with Client(controller.socket) as client:
                return " ".join(fork["channel"] for fork in client.forks())
        except DaemonUnreachable as exc:
            return str(exc)

    return await asyncio.to_thread(ask)


async def listed(controller: Daemon, *options: str) -> list[dict[str, Any]]:
    code, output = await command(controller, "list", "--json", *options)
    assert code == 0, output
    forks: list[dict[str, Any]] = json.loads(output)
    return forks


async def test_standby_passes_requests_on_to_the_controller_that_leads(
    scene: Scene[Recorder], pair: tuple[Daemon, Daemon]
) -> None:
    first, second = pair
    await leads(first)
    target = await scene.call()
    target.call.talk()
    url = scene.server.url("/one")
    code, output, errors = await told(second, "start", target.channel, url, "--options", "D(in)")
    assert code == 0, errors
    fork_id = output.strip()
    assert "streams, " in errors
    await scene.server.wait_messages("/one", 10)
    for controller in pair:
        (fork,) = await listed(controller)
        assert (fork["id"], fork["relay_host"]) == (fork_id, "r1")
    code, table = await command(second, "list")
    assert " r1 " in table
    assert await command(second, "mute", fork_id, "on") == (0, f"{fork_id}\n")
    assert (await listed(first))[0]["muted"] == "both"
    code, error = await command(second, "start", "PJSIP/nobody-1", url)
    assert code == 1
    assert "No such channel: PJSIP/nobody-1" in error
    assert await command(second, "stop", target.channel) == (0, f"{fork_id}\n")
    await first.says("ended: stopped")
    code, history = await command(second, "history", "--json", "--channel", target.channel)
    assert code == 0
    assert [(one["fork_id"], one["reason"]) for one in json.loads(history)] == [
        (fork_id, "stopped")
    ]
    await target.call.hangup()
    await scene.legs(0)
    assert "Traceback" not in first.log() + second.log()


async def test_check_through_a_standby_is_done_by_the_controller_that_leads(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    cluster.relay("r1")
    first, second = cluster.controller("c1"), cluster.controller("c2")
    await leads(first)
    # As where both have the same path, each on a host of its own.
    code, output, _ = await told(first, "check", "--socket", str(second.socket))
    assert "by the running daemon" in output
    assert code in (0, 1)


async def test_socket_goes_on_while_the_other_controller_takes_the_lead(
    scene: Scene[Recorder], pair: tuple[Daemon, Daemon]
) -> None:
    first, second = pair
    await leads(first)
    fork = await scene.talking_fork("/one", "D(in)")
    answers: list[str] = []
    is_over = False

    async def ask() -> None:
        while not is_over:
            answers.append(await asked(second))
            await asyncio.sleep(0.02)

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    await asyncio.sleep(1)
    first.kill()
    await leads(second)
    await asyncio.sleep(1)
    is_over = True
    await asyncio.gather(*asking)
    print({answer: answers.count(answer) for answer in answers})
    channel = fork.target.channel
    refusals = {*answers} - {channel}
    assert all("leads" in one for one in refusals)
    assert answers[0] == answers[-1] == channel
    await fork.hang_up()
    await scene.legs(0)
    assert "Traceback" not in second.log()


async def test_standby_refuses_where_nobody_leads_or_the_broker_is_away(
    cluster: Cluster, pair: tuple[Daemon, Daemon]
) -> None:
    first, second = pair
    await leads(first)
    (server,) = cluster.servers
    server.kill()
    await second.says("the connection to the NATS server is lost")
    answer = await asked(second)
    assert "there is no connection to a NATS server" in answer
    code, error = await command(second, "list")
    assert (code, answer) == (4, error.removeprefix("audiofork: ").strip())
    await asyncio.to_thread(server.start)


async def test_standby_refuses_where_the_controller_that_leads_is_silent(
    asterisk: Asterisk,
) -> None:
    """It is stopped, and the other may not take the lead yet."""
    with clustered(asterisk, {"cluster": "dead_after = 20\n"}) as cluster:
        cluster.relay("r1")
        first, second = cluster.controller("c1"), cluster.controller("c2")
        await leads(first)
        assert await asked(second) == ""
        first.signal(signal.SIGSTOP)
        answer = await asked(second)
        first.signal(signal.SIGCONT)
    why = "nothing was heard for 2 s"
    assert answer == f"the controller that leads for asterisk cannot be asked: {why}"


async def test_request_over_the_broker_is_answered_with_the_words_of_the_socket(
    scene: Scene[Recorder], cluster: Cluster, pair: tuple[Daemon, Daemon]
) -> None:
    await leads(pair[0])
    target = await scene.call()
    target.call.talk()
    client = await nats.connect(cluster.servers[0].url)
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    request = {
        "Command": "StartAudioFork",
        "Channel": target.channel,
        "WsServer": scene.server.url("/one"),
        "Options": "D(in)",
        "Wait": "yes",
    }
    payload = json.dumps(request).encode()
    await client.publish("audiofork.request.asterisk", payload, reply=inbox)
    told: list[dict[str, Any]] = []
    while data := (await answers.next_msg(5)).data:
        told += [json.loads(line) for line in data.splitlines() if line]
    assert told[0]["waits"] is True
    assert told[-1]["result"] == "streaming"
    await client.close()
    await target.call.hangup()
    await scene.legs(0)


async def test_request_for_another_asterisk_goes_to_its_controller(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    config = {"manager.conf": manager_conf()}
    with Asterisk(dialplan=DIALPLAN + shipped_dialplan(), config=config) as asterisk:
        cluster.relay("r1")
        ours, others = cluster.controller("a1"), cluster.controller("b1", asterisk, **OTHER)
        for controller in (ours, others):
            await leads(controller)
        own = await scene.talking_fork("/a", "D(in)")
        async with (
            AmiClient(asterisk) as ami,
            SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user,
        ):
            target = await place_call(ami, user)
            target.call.talk()
            there = ("--asterisk", "pbx-b")
            url = scene.server.url("/b")
            code, output = await command(ours, "start", target.channel, url, *there)
            assert code == 0, output
            fork_id = output.strip()
            await scene.server.wait_messages("/b", 10)
            assert [one["id"] for one in await listed(ours, *there)] == [fork_id]
            assert [one["channel"] for one in await listed(ours)] == [own.target.channel]
            everywhere = await listed(ours, "--all")
            found = [(one["asterisk"], one["relay_host"], one["channel"]) for one in everywhere]
            assert found == [
                ("asterisk", "r1", own.target.channel),
                ("pbx-b", "r1", target.channel),
            ]
            assert await command(ours, "mute", fork_id, "on", *there) == (0, f"{fork_id}\n")
            assert await command(ours, "stop", fork_id, *there) == (0, f"{fork_id}\n")
            code, error = await command(ours, "list", "--asterisk", "pbx-c")
            assert code == 1
            assert "the cluster has no Asterisk pbx-c; did you mean pbx-b?" in error
            others.stop()
            code, error = await command(ours, "list", *there)
            assert code == 4
            assert "no controller of pbx-b leads at the moment" in error
            code, output, error = await told(ours, "list", "--all", "--json")
            assert code == 1
            assert [one["asterisk"] for one in json.loads(output)] == ["asterisk"]
            assert "the forks of pbx-b are missing: no controller of pbx-b leads" in error
            await target.call.hangup()
        await own.hang_up()
    await scene.legs(0)


async def test_metrics_name_the_relay_hosts_and_a_relay_host_has_its_own(
    scene: Scene[Recorder], cluster: Cluster, tmp_path: Path
) -> None:
    doors = {name: tmp_path / f"{name}.sock" for name in ("r1", "c1")}
    relay = cluster.relay("r1", http=f"socket = {doors['r1']}\n", cluster="capacity = 20\n")
    controller = cluster.controller("c1", http=f"socket = {doors['c1']}\n")
    await leads(controller)
    fork = await scene.talking_fork("/one", "D(in)")
    await scene.server.wait_messages("/one", 50)
    of_leader, of_host = await metrics(doors["c1"]), await metrics(doors["r1"])
    assert of_leader["audiofork_leads",] == 1
    assert of_leader["audiofork_epoch",] >= 1
    assert of_leader["audiofork_relay_hosts", "open"] == 1
    assert of_leader["audiofork_relay_host_capacity", "r1"] == 20
    assert of_leader["audiofork_relay_forks", "r1"] == 1
    assert of_host["audiofork_host_forks", "asterisk"] == 1
    assert of_host["audiofork_host_controller_up", "asterisk"] == 1
    assert of_host["audiofork_host_broker_up",] == 1
    assert of_host["audiofork_host_frames_in_total",] >= 50
    stopped = await fork.hang_up()
    after = await metrics(doors["r1"])
    assert after["audiofork_host_frames_sent_total",] == int(stopped["FramesSent"])
    assert after["audiofork_host_forks", "asterisk"] == 0
    await scene.legs(0)
    assert "Traceback" not in relay.log() + controller.log()


async def test_http_interface_of_a_standby_starts_shows_mutes_and_stops_forks(
    scene: Scene[Recorder], cluster: Cluster, tmp_path: Path
) -> None:
    cluster.relay("r1")
    door = tmp_path / "c2.sock"
    first = cluster.controller("c1")
    second = cluster.controller("c2", http=f"socket = {door}\n")
    await leads(first)
    client = await nats.connect(cluster.servers[0].url)
    events = await client.subscribe("audiofork.events.*")
    await client.flush()
    target = await scene.call()
    target.call.talk()
    connector = aiohttp.UnixConnector(path=str(door))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        wish = {"channel": target.channel, "url": scene.server.url("/one"), "wait": True}
        async with session.post("/api/v1/forks", json=wish) as answer:
            assert answer.status == 201
            started = await answer.json()
        assert started["result"] == "streaming"
        path = f"/api/v1/forks/{started['id']}"
        async with session.get(path) as answer:
            fork = await answer.json()
        assert (fork["asterisk"], fork["relay_host"]) == ("asterisk", "r1")
        assert [one["kind"] for one in fork["timeline"]][:2] == ["requested", "started"]
        async with session.patch(path, json={"mute": {"in": True, "out": True}}) as answer:
            assert (await answer.json())["muted"] == "both"
        async with session.delete(path) as answer:
            assert answer.status == 204
        await first.says("ended: stopped")
        names = [json.loads((await events.next_msg(10)).data)["name"] for _ in range(5)]
        assert names == [
            f"fork.{what}" for what in ("requested", "started", "muted", "ended", "stopped")
        ]
        await client.close()
        for path in ("/api/v1/history", f"/api/v1/history/{started['id']}"):
            async with session.get(path) as answer:
                found = await answer.json()
            assert not found.get("missing")
            (entry,) = found.get("entries", [found])
            assert (entry["fork_id"], entry["reason"]) == (started["id"], "stopped")
            assert (entry["asterisk"], entry["controller"]) == ("asterisk", "c1")
        first.kill()
        await leads(second)
        async with session.get("/api/v1/status") as answer:
            assert (await answer.json())["asterisk"]["up"]
        async with session.get("/api/v1/history") as answer:  # which the dead one has kept
            found = await answer.json()
        assert (found["entries"], list(found["missing"])) == ([], ["asterisk/c1"])
        _, _, errors = await told(second, "history")
        assert "the history of asterisk/c1 is missing: nobody answers" in errors
    await target.call.hangup()
    assert "Traceback" not in first.log() + second.log()


async def test_ami_front_of_a_standby_has_the_leader_grant_its_actions_and_stays_open(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    """Over a change of the lead, too: its sessions with Asterisk are its own."""
    cluster.relay("r1")
    first, second = cluster.controller("c1"), cluster.controller("c2", front=f"listen = {HOST}:0\n")
    await leads(first)
    target = await scene.call()
    target.call.talk()
    start = {"Action": "StartAudioFork", "Channel": target.channel}
    async with FrontClient(front_port(second)) as client:
        login = {"Username": cluster.asterisk.ami_username, "Secret": cluster.asterisk.ami_secret}
        login = {"Action": "Login", **login, "Events": "off"}
        assert (await client.ask(login))["Response"] == "Success"
        for path in ("/one", "/two"):
            answer = await client.ask({**start, "WsServer": scene.server.url(path)})
            assert answer["Response"] == "Success", answer
            await scene.server.wait_messages(path, 5)
            if path == "/one":
                answer = await client.ask({**start, "Options": "D(sideways)"})
                assert answer["Response"] == "Error"
                first.kill()
                await leads(second)
        stop = {"Action": "StopAudioFork", "Channel": target.channel}
        assert (await client.ask(stop))["Response"] == "Success"
    await second.says("ended: stopped", times=2)
    await target.call.hangup()
    assert "Traceback" not in first.log() + second.log()


async def metrics(door: Path) -> dict[tuple[str, ...], float]:
    """Return the metrics of a daemon or a relay host, as in test_metrics.py."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(door))) as session,
        session.get("http://localhost/metrics") as answer,
    ):
        assert answer.status == 200
        families = parser.text_string_to_metric_families(await answer.text())
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


async def test_command_cluster_shows_hosts_and_controllers_at_any_controller(
    cluster: Cluster, pair: tuple[Daemon, Daemon]
) -> None:
    relays = [cluster.relay(name, cluster="zone = north\n") for name in ("r2", "r3")]
    first, second = pair
    await leads(first)
    north = {"r2": ("north", "open"), "r3": ("north", "open")}
    await shown(second, hosts={"r1": ("", "open"), **north})
    relays[0].kill()
    relays[1].stop()
    found = await shown(second, hosts={"r1": ("", "open"), "r2": ("north", "dead")})
    assert found["name"] == "c2"
    states = {one["name"]: (one["state"], one["epoch"] > 0) for one in found["controllers"]}
    assert states == {"c1": ("leads", True), "c2": ("stands by", False)}
    assert {one["server"] for one in found["controllers"]} == {
        cluster.servers[0].url.removeprefix("nats://")
    }
    first.kill()
    await leads(second)
    await shown(second, controllers={"c1": "dead", "c2": "leads"})
    code, table = await command(second, "cluster")
    assert code == 0
    rows = [line.split() for line in table.splitlines()]
    assert ["c1", "asterisk", "dead"] in [row[:3] for row in rows]
    assert ["c2", "asterisk", "leads"] in [row[:3] for row in rows]


async def shown(
    controller: Daemon,
    hosts: dict[str, tuple[str, str]] | None = None,
    controllers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the command cluster shows when it shows these: beats take their time.

    Args:
        controller: Who is asked.
        hosts: The zone and the state of each relay host.
        controllers: The state of each controller.
    """
    async with asyncio.timeout(30):
        while True:
            code, output = await command(controller, "cluster", "--json")
            assert code == 0, output
            found: dict[str, Any] = json.loads(output)
            print(output)  # of a failure
            are_hosts = {one["name"]: (one["zone"], one["state"]) for one in found["hosts"]}
            are_controllers = {one["name"]: one["state"] for one in found["controllers"]}
            if hosts in (None, are_hosts) and controllers in (None, are_controllers):
                return found
            await asyncio.sleep(0.2)


async def test_relay_host_is_drained_through_a_standby_and_takes_forks_again(
    scene: Scene[Recorder], pair: tuple[Daemon, Daemon], cluster: Cluster
) -> None:
    first, second = pair
    await leads(first)
    fork = await scene.talking_fork("/one", "D(in)")
    other = cluster.relay("r2")
    code, error = await command(second, "drain", "r9")
    assert (code, error) == (1, "audiofork: there is no relay host r9\n")
    assert await command(second, "drain", "r1") == (0, "")
    await first.says("the relay host r2 has it now")
    assert [one["relay_host"] for one in await listed(first)] == ["r2"]
    code, table = await command(first, "cluster")
    assert " draining " in table
    assert await command(first, "drain", "r1", "--undo") == (0, "")
    assert await command(first, "drain", "r2") == (0, "")
    await first.says("the relay host r1 has it now")
    assert other.exit_code is None
    stopped = await fork.hang_up()
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    await scene.legs(0)
