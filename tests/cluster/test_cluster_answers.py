"""Requests at the doors of controllers that lead or stand by, with a real NATS server between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiofork.cluster.beats import Beat, ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import ClusterConfig, Config, ControlConfig, NamedAsterisk
from audiofork.doors import cluster_answers
from audiofork.doors.cluster_doors import ClusterDoors
from audiofork.doors.control_answers import Answers
from audiofork.doors.control_client import Client
from audiofork.errors import DaemonUnreachable, RequestRefused
from audiofork.forks.requests import Origin
from testbed.nats import NatsServer
from tests.cluster.conftest import Connect, controllers

pytestmark = pytest.mark.nats

HOST = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0")
LIST = {"Command": "ListAudioForks"}


class Controller:
    """The doors of a controller, without the rest of it.

    Attributes:
        asked: The lines that its daemon was asked, and by whom.
        go_on: Clear it, and its daemon takes its time.
    """

    def __init__(self, name: str, asterisk: str, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.roster = Roster(broker, 60)
        self.socket = folder / f"{name}.sock"
        config = Config(
            control=ControlConfig(socket=str(self.socket)),
            cluster=ClusterConfig(name=name, asterisk=asterisk),
        )
        self.beat = ControlBeat(name, asterisk, "run", server=broker.server)
        self.doors = ClusterDoors(config, broker, self.roster)
        self.own = self.doors.of(asterisk, lambda: True, self._drain)
        self.asked: list[tuple[dict[str, str], Origin]] = []
        self.drained: list[tuple[str, bool]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def _answers(self, line: bytes, origin: Origin) -> Answers:
        self.asked.append((json.loads(line), origin))
        await self.go_on.wait()
        yield {"ok": True, "forks": [{"id": f"of {self.beat.name}"}], "legs_left": 1}

    def _drain(self, name: str, is_on: bool) -> bool:
        self.drained.append((name, is_on))
        return name == "r1"

    async def lead(self) -> None:
        await self.own.serve(self._answers)
        await self.broker.flush()

    async def listing(self, asterisk: str = "") -> Any:
        """Ask for the list at the socket, and close; raises what the client does."""

        def ask() -> Any:
            with Client(self.socket, asterisk) as client:
                return client.listing()

        return await asyncio.to_thread(ask)

    async def ids(self, asterisk: str = "") -> list[str]:
        return [fork["id"] for fork in (await self.listing(asterisk)).forks]


Begin = Callable[..., Awaitable[Controller]]


@pytest.fixture
async def begin(connect: Connect, tmp_path: Path) -> AsyncIterator[Begin]:
    """Return a function that begins one more controller, which stands by."""

    def make(name: str, asterisk: str, broker: Broker) -> Controller:
        return Controller(name, asterisk, broker, tmp_path)

    async with controllers(connect, make) as one:
        yield one


async def test_controller_that_leads_is_asked_at_its_own_socket_and_at_that_of_the_standby(
    begin: Begin,
) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    assert await first.ids() == ["of c1"]
    assert await second.ids() == ["of c1"]
    (own, door), (passed_on, other_door) = first.asked
    assert own == passed_on == LIST
    assert door.door == "control socket"
    assert other_door.door == "broker"
    assert other_door.who.startswith("c2, control socket connection 1 of uid ")


async def test_standby_waits_a_moment_for_one_that_is_about_to_lead(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    asked = asyncio.create_task(second.ids())
    await asyncio.sleep(0.5)
    await first.lead()
    assert await asked == ["of c1"]


async def test_standby_that_begins_to_lead_answers_what_it_was_asked_before(begin: Begin) -> None:
    one = await begin("c1")
    asked = asyncio.create_task(one.ids())
    await asyncio.sleep(0.5)
    await one.lead()
    assert await asked == ["of c1"]
    assert one.asked[0][1].door == "control socket"


async def test_request_is_refused_in_time_where_nobody_leads(begin: Begin) -> None:
    one = await begin("c1")
    async with asyncio.timeout(30):
        with pytest.raises(DaemonUnreachable, match="^no controller of pbx leads at the moment$"):
            await one.listing()


async def test_request_is_refused_while_the_broker_is_away(
    begin: Begin, server: NatsServer
) -> None:
    one = await begin("c1")
    lost = asyncio.Event()
    one.broker.on_change(lambda is_up: None if is_up else lost.set())
    server.kill()
    async with asyncio.timeout(30):
        await lost.wait()
    with pytest.raises(DaemonUnreachable, match="there is no connection to a NATS server$"):
        await one.listing()


async def test_daemon_of_a_controller_answers_while_the_broker_is_away(
    begin: Begin, server: NatsServer
) -> None:
    one = await begin("c1")
    await one.lead()
    server.kill()
    assert await one.ids() == ["of c1"]


async def test_socket_goes_on_when_the_controller_ends_to_lead_and_who_waits_is_told(
    begin: Begin,
) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    first.go_on.clear()
    asked = [asyncio.create_task(one.listing()) for one in (first, second)]
    async with asyncio.timeout(30):
        while len(first.asked) < 2:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    await first.own.stop_serving()
    for one in asked:
        with pytest.raises(DaemonUnreachable, match="does not lead any more: ask again"):
            await one
    await second.lead()
    assert await first.ids() == await second.ids() == ["of c2"]


async def test_connection_goes_on_after_the_controller_has_ended_to_lead(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    first.go_on.clear()
    reader, writer = await asyncio.open_unix_connection(first.socket)
    writer.write(json.dumps(LIST).encode() + b"\n")
    async with asyncio.timeout(30):
        while not first.asked:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    await first.own.stop_serving()
    assert json.loads(await reader.readline())["code"] == "cluster"
    await second.lead()
    writer.write(json.dumps(LIST).encode() + b"\n")
    assert json.loads(await reader.readline())["forks"] == [{"id": "of c2"}]
    writer.close()


async def test_who_is_told_that_the_lead_is_lost_may_wait_for_more(begin: Begin) -> None:
    """It was interrupted, and is not any more."""
    one = await begin("c1")
    await one.lead()
    one.go_on.clear()

    async def ask() -> tuple[Any, int]:
        task = asyncio.current_task()
        assert task is not None
        async with aclosing(one.doors._answers(json.dumps(LIST).encode(), Origin("test"))) as given:
            (answer,) = [answer async for answer in given]
        return answer["code"], task.cancelling()

    asked = asyncio.create_task(ask())
    async with asyncio.timeout(30):
        while not one.asked:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    await one.own.stop_serving()
    assert await asked == ("cluster", 0)


async def test_request_that_is_not_one_is_refused_without_asking_anybody(begin: Begin) -> None:
    one = await begin("c1")
    await one.lead()
    answers = one.doors._answers
    for line, error in (
        (b"garbage", "expected a JSON object in one line of UTF-8"),
        (b'{"Command": "Nothing"}', "Command: expected StartAudioFork"),
        (b'{"Command": "StopAudioFork", "Asterisk": "*"}', "Asterisk: * stands for all"),
        (b'{"Command": "ListAudioForks", "Asterisk": "a.b"}', "Asterisk: expected the name"),
        (b'{"Command": "ListAudioForks", "Asterisk": ">"}', "Asterisk: expected the name"),
    ):
        async with aclosing(answers(line, Origin("test"))) as given:
            (answer,) = [answer async for answer in given]
        assert (answer["ok"], answer["code"]) == (False, "refused")
        assert answer["error"].startswith(error)
    assert one.asked == []


async def test_bug_is_answered_and_logged(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    one = await begin("c1")

    def bug(line: bytes, origin: Origin) -> Answers:
        raise RuntimeError("a bug")

    await one.own.serve(bug)
    async with aclosing(one.doors._answers(json.dumps(LIST).encode(), Origin("test"))) as given:
        (answer,) = [answer async for answer in given]
    assert answer["code"] == "fault"
    assert "a bug" in caplog.text


# --- Another Asterisk, and all of them -----------------------------------------------------------


async def test_request_for_another_asterisk_goes_to_its_controller_from_any_other(
    begin: Begin,
) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    await first.lead()
    await other.lead()
    assert await first.ids("pbx-b") == await second.ids("pbx-b") == ["of b1"]
    assert await other.ids("pbx") == ["of c1"]
    assert await first.ids("pbx") == ["of c1"]
    assert [fields for fields, _ in other.asked] == [LIST, LIST]


async def test_asterisk_that_the_cluster_lacks_is_refused_at_once_with_those_that_it_has(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await begin("c1")
    await begin("b1", "berlin")
    monkeypatch.setattr(cluster_answers, "FIND_S", 600.0)
    for asterisk, hint in (("berlinn", "; did you mean berlin?"), ("x1", "; it has berlin, pbx")):
        with pytest.raises(RequestRefused) as refused:
            await one.listing(asterisk)
        assert str(refused.value) == f"the cluster has no Asterisk {asterisk}{hint}"
    monkeypatch.setattr(cluster_answers, "FIND_S", 0.2)
    with pytest.raises(DaemonUnreachable, match="no controller of berlin leads at the moment"):
        await one.listing("berlin")


async def test_list_of_all_names_each_asterisk_and_says_which_is_missing(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    other = await begin("b1", "pbx-b")
    await begin("d1", "pbx-d")
    await first.lead()
    await other.lead()
    for one in (first, second):
        listing = await one.listing("*")
        assert listing.forks == [
            {"asterisk": "pbx", "id": "of c1"},
            {"asterisk": "pbx-b", "id": "of b1"},
        ]
        assert listing.legs_left == 2
        assert listing.missing == {"pbx-d": "no controller of pbx-d leads at the moment"}


# --- A controller of several Asterisks -----------------------------------------------------------


class Several:
    """The doors of a controller of pbx-a and pbx-b, as one that leads for both has them."""

    def __init__(self, broker: Broker, roster: Roster) -> None:
        cluster = ClusterConfig(name="c1", asterisk="pbx-a")
        config = Config(cluster=cluster, asterisks={"pbx-b": NamedAsterisk()})
        self._doors = ClusterDoors(config, broker, roster)
        self.asked: list[tuple[str, str]] = []
        self.of = {
            name: self._doors.of(name, lambda: True, lambda _name, _is_on: True)
            for name in config.asterisk_names
        }

    async def lead(self, asterisk: str) -> None:
        async def answers(line: bytes, origin: Origin) -> Answers:
            command = json.loads(line)["Command"]
            self.asked.append((asterisk, command))
            yield {"ok": True, "forks": [{"id": f"of {asterisk}"}], "legs_left": 1}

        await self.of[asterisk].serve(answers)

    async def ask(self, command: str, **fields: str) -> dict[str, Any]:
        line = json.dumps({"Command": command, **fields}).encode()
        async with aclosing(self._doors._answers(line, Origin("test"))) as given:
            (answer,) = [answer async for answer in given]
        return answer


@pytest.fixture
async def several(connect: Connect) -> AsyncIterator[Several]:
    broker = await connect("c1")
    roster = Roster(broker, 60)
    await roster.start()
    one = Several(broker, roster)
    yield one
    for door in one.of.values():
        await door.stop_serving()


async def test_request_to_a_controller_of_several_names_the_asterisk(several: Several) -> None:
    for name in several.of:
        await several.lead(name)
    assert (await several.ask("StopAudioFork", Asterisk="pbx-b"))["ok"]
    for command in ("StopAudioFork", "StartAudioFork", "AudioForkMute"):
        assert (await several.ask(command)) == {
            "ok": False,
            "code": "refused",
            "error": "Asterisk: say which one is meant (--asterisk): this controller serves pbx-a, "
            "pbx-b",
        }
    assert several.asked == [("pbx-b", "StopAudioFork")]


async def test_list_of_a_controller_of_several_is_of_all_and_says_which_is_missing(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_answers, "FIND_S", 0.2)
    await several.lead("pbx-b")
    assert await several.ask("ListAudioForks") == {
        "ok": True,
        "forks": [{"asterisk": "pbx-b", "id": "of pbx-b"}],
        "legs_left": 1,
        "missing": {"pbx-a": "no controller of pbx-a leads at the moment"},
    }
    await several.lead("pbx-a")
    found = await several.ask("ListAudioForks")
    assert [one["asterisk"] for one in found["forks"]] == ["pbx-a", "pbx-b"]
    assert (await several.ask("ListAudioForkCluster"))["asterisks"] == ["pbx-a", "pbx-b"]


async def test_check_and_drain_go_to_whichever_asterisk_is_led_here(several: Several) -> None:
    await several.lead("pbx-b")
    for command in ("CheckAudioFork", "DrainAudioForkRelay"):
        await several.ask(command, Relay="r1")
    assert several.asked == [("pbx-b", "CheckAudioFork"), ("pbx-b", "DrainAudioForkRelay")]


async def test_request_over_the_broker_is_for_the_asterisk_of_its_subject(
    several: Several, begin: Begin
) -> None:
    for name in several.of:
        await several.lead(name)
    other = await begin("d1", "pbx-d")
    assert await other.ids("pbx-a") == ["of pbx-a"]
    assert await other.ids("pbx-b") == ["of pbx-b"]
    await several.of["pbx-a"].stop_serving()
    assert await other.ids("pbx-b") == ["of pbx-b"]


async def test_one_that_ends_to_lead_interrupts_its_own_requests_alone(
    several: Several,
) -> None:
    go_on = asyncio.Event()
    asked: list[bytes] = []

    async def answers(line: bytes, origin: Origin) -> Answers:
        asked.append(line)
        await go_on.wait()
        yield {"ok": True}

    for door in several.of.values():
        await door.serve(answers)
    first, second = (
        asyncio.create_task(several.ask("StopAudioFork", Asterisk=name)) for name in several.of
    )
    async with asyncio.timeout(30):
        while len(asked) < 2:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    await several.of["pbx-a"].stop_serving()
    assert (await first)["code"] == "cluster"
    go_on.set()
    assert await second == {"ok": True}


# --- The cluster ---------------------------------------------------------------------------------


async def test_cluster_is_told_at_any_controller(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    first.beat = replace(first.beat, leads=True, since_s=3.5, epoch=4, version="1.0")
    for payload in (HOST.encode(), replace(HOST, name="r2", is_draining=True).encode()):
        first.broker.publish(f"audiofork.beat.{json.loads(payload)['name']}", payload)
    first.broker.publish(first.beat.subject, first.beat.encode())
    async with asyncio.timeout(30):
        while len(second.roster.hosts) < 2 or not second.roster.controllers[0].beat.leads:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def ask() -> dict[str, Any]:
        with Client(second.socket) as client:
            return client.cluster()

    found = await asyncio.to_thread(ask)
    server = first.broker.server
    assert (found["name"], found["asterisks"], found["server"]) == ("c2", ["pbx"], server)
    host = {
        **{"name": "r1", "zone": "north", "address": "192.0.2.1:9092", "forks": 12},
        **{"capacity": 500, "cpu": 0.25, "version": "1.0", "state": "open"},
    }
    assert found["hosts"] == [host, {**host, "name": "r2", "state": "draining"}]
    assert [(one["name"], one["state"], one["epoch"]) for one in found["controllers"]] == [
        ("c1", "leads", 4),
        ("c2", "stands by", 0),
    ]
    assert found["controllers"][0]["since_s"] == 3.5
