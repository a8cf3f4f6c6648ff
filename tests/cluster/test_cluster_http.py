"""The HTTP interface of controllers that lead or stand by, with a real NATS server between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiofork.cluster.beats import Beat, ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import Address, ClusterConfig, Config, ControlConfig, HttpConfig
from audiofork.doors.cluster_doors import ClusterDoors
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.detail_answers import DetailAnswers
from audiofork.doors.event_stream import EventStream
from audiofork.doors.http.answers import AsteriskStatus
from audiofork.doors.http.cluster_parts import _of_all
from audiofork.doors.http.cluster_stream import ClusterStream
from audiofork.doors.shared_events import EventHearing
from audiofork.errors import AmiUnavailable, NoMessage, NoSuchChannel, RequestRefused
from audiofork.forks.events import ForkInfo, Muted, Requested
from audiofork.forks.following import StartNews, StartResult
from audiofork.forks.requests import MuteFork, Request, StartFork, StopFork, parse_request
from audiofork.forks.series import Series
from audiofork.forks.timelines import Timelines
from audiofork.forks.view import ForkView
from testbed.nats import NatsServer
from tests.cluster.conftest import Connect, controllers
from tests.doors.http.stage import CONTROLLER, LISTENER, Others, Stage, write_tokens
from tests.relay.peers import until

pytestmark = pytest.mark.nats

FORKS = "/api/v1/forks"
HOST = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0")


def fork_id(number: int) -> str:
    return f"3f2a91c{number}-0000-4000-8000-00000000000{number}"


class Control:
    """A controller with the HTTP interface, whose daemon is a stand-in.

    Attributes:
        views: The forks of its daemon.
        asked: What its daemon was asked.
        error: What its daemon refuses requests with.
    """

    def __init__(self, name: str, asterisk: str, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.asterisk = asterisk
        self.roster = Roster(broker, 60)
        self.beat = ControlBeat(name, asterisk, "run", server=broker.server)
        tokens = folder / name
        tokens.mkdir()
        listen = Address("127.0.0.1", 0)
        config = Config(
            control=ControlConfig(socket=""),
            cluster=ClusterConfig(name=name, asterisk=asterisk),
            http=HttpConfig(listen=listen, tokens_file=str(write_tokens(tokens))),
        )
        self.doors = ClusterDoors(config, broker, self.roster, f"run of {name}")
        self.own = self.doors.of(asterisk, lambda: True, lambda _name, _is_on: False)
        self.views: list[ForkView] = []
        self.asked: list[Request] = []
        self.error: Exception | None = None
        self.others = Others()
        self.timelines = Timelines()

    @property
    def stage(self) -> Stage:
        assert self.doors._http.door is not None
        return Stage(self.others, self.doors._http.door)

    def has(self, number: int, age_s: float) -> None:
        """Give its daemon a fork."""
        view = replace(self.others.views[0], id=fork_id(number), channel=f"PJSIP/{number}-1")
        self.views.append(replace(view, age_s=age_s, relay_host="r1"))

    async def _ask(self, request: Request) -> list[str]:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return [fork_id(9) if isinstance(request, StartFork) else request.fork_id]

    async def _list(self) -> list[ForkView]:
        return self.views

    async def _follow(self, fork: str) -> AsyncGenerator[StartNews, None]:
        view = replace(self.others.views[0], id=fork)
        yield StartNews(StartResult.WAITING, view)
        yield StartNews(StartResult.STREAMING, view, 312)

    async def lead(self) -> None:
        self.beat = replace(self.beat, leads=True, epoch=1)
        self.broker.publish(self.beat.subject, self.beat.encode())
        answers = ControlAnswers(
            self._ask,
            self._list,
            lambda: 2,
            self._follow,
            details=DetailAnswers(self.timelines, Series()),
        )
        self.own.share(self.others.stream)
        self.own.serve_http(self.others.parts())
        await self.own.serve(answers)
        await self.broker.flush()

    async def listed(self, query: str = "") -> Any:
        answer = await self.stage.get(FORKS + query)
        assert answer.status == 200, answer.body
        return answer.json


Begin = Callable[..., Awaitable[Control]]


@pytest.fixture
async def begin(connect: Connect, tmp_path: Path) -> AsyncIterator[Begin]:
    """Return a function that begins one more controller, which stands by."""

    def make(name: str, asterisk: str, broker: Broker) -> Control:
        return Control(name, asterisk, broker, tmp_path)

    async with controllers(connect, make) as one:
        yield one


async def known(leader: Control, *others: Control) -> None:
    """Wait until all have heard that one leads."""
    for one in others:
        await until(
            lambda one=one: any(  # type: ignore[misc]
                other.beat.name == leader.beat.name and other.beat.leads
                for other in one.roster.controllers
            ),
            30,
        )


async def test_forks_of_all_are_listed_at_each_controller_oldest_first_with_their_place(
    begin: Begin,
) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    for one in (first, other):
        await one.lead()
    first.has(1, 10)
    first.has(2, 30)
    other.has(3, 20)
    for one in (first, second, other):
        found = await one.listed()
        assert [(fork["id"], fork["asterisk"], fork["relay_host"]) for fork in found["forks"]] == [
            (fork_id(2), "pbx", "r1"),
            (fork_id(3), "pbx-b", "r1"),
            (fork_id(1), "pbx", "r1"),
        ]
        assert "s3cret" not in found["forks"][0]["url"]
        assert (found["total"], found["legs_left"], found["missing"]) == (3, 4, {})
    found = await second.listed("?asterisk=pbx-b")
    assert [fork["id"] for fork in found["forks"]] == [fork_id(3)]
    assert (await second.listed("?relay_host=r2"))["total"] == 0


async def test_list_says_which_asterisk_is_missing_and_why(begin: Begin) -> None:
    first, other = await begin("c1"), await begin("b1", "pbx-b")
    await first.lead()
    first.has(1, 10)
    for one in (first, other):
        found = await one.listed()
        assert [fork["id"] for fork in found["forks"]] == [fork_id(1)]
        assert found["missing"] == {"pbx-b": "no controller of pbx-b leads at the moment"}


async def test_own_daemon_is_asked_while_the_broker_is_away(
    begin: Begin, server: NatsServer
) -> None:
    one, other = await begin("c1"), await begin("b1", "pbx-b")
    await one.lead()
    await other.lead()
    one.has(1, 10)
    server.kill()
    found = await one.listed()
    assert [fork["id"] for fork in found["forks"]] == [fork_id(1)]
    assert list(found["missing"]) == ["pbx-b"]
    answer = await one.stage.ask("DELETE", f"{FORKS}/{fork_id(1)}")
    assert answer.status == 204
    missing = await one.stage.get(f"{FORKS}/{fork_id(3)}")
    assert (missing.status, missing.json["type"]) == (503, "/problems/controller-away")
    assert "those of pbx-b: " in missing.json["detail"]


async def test_fork_is_stopped_and_muted_by_the_controller_that_has_it(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    for one in (first, other):
        await one.lead()
    other.has(3, 20)
    path = f"{FORKS}/{fork_id(3)}"
    body = {"mute": {"in": True, "out": False}}
    answer = await second.stage.ask("PATCH", path, CONTROLLER, body)
    assert (answer.status, answer.json["asterisk"]) == (200, "pbx-b")
    assert (await second.stage.ask("DELETE", path)).status == 204
    sides = [
        (one.mute_in, one.mute_out) if isinstance(one, MuteFork) else "" for one in other.asked
    ]
    assert sides == [(True, None), (None, False), ""]
    assert isinstance(other.asked[-1], StopFork)
    assert other.asked[-1].fork_id == fork_id(3)
    assert other.asked[-1].origin.who == "c2, http carl"
    assert first.asked == []
    answer = await second.stage.ask("DELETE", f"{FORKS}/{fork_id(4)}")
    assert (answer.status, answer.json["detail"]) == (404, "No such fork")


async def test_start_goes_to_the_asterisk_that_is_named_and_its_progress_comes_back(
    begin: Begin,
) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    for one in (first, other):
        await one.lead()
    wish = {"channel": "PJSIP/1-1", "url": "ws://h/", "params": {"a": "b&c"}, "options": "M"}
    answer = await second.stage.ask("POST", FORKS, CONTROLLER, wish | {"asterisk": "pbx-b"})
    assert (answer.status, answer.json["result"]) == (201, "granted")
    (request,) = other.asked
    assert isinstance(request, StartFork)
    assert (request.target.channel, request.url, request.params) == (
        *("PJSIP/1-1", "ws://h/"),
        {"a": "b&c"},
    )
    for one in (first, second):
        answer = await one.stage.ask("POST", FORKS, CONTROLLER, wish | {"wait": True})
        assert (answer.json["id"], answer.json["result"], answer.json["ms"]) == (
            *(fork_id(9), "streaming"),
            312,
        )
    assert len(first.asked) == 2
    answer = await second.stage.ask("POST", FORKS, CONTROLLER, wish | {"asterisk": "pbx-c"})
    assert (answer.status, answer.json["type"]) == (422, "/problems/refused")
    assert answer.json["detail"].startswith("the cluster has no Asterisk pbx-c")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RequestRefused("WsServer: no host"), 422, "refused"),
        (NoSuchChannel(), 422, "no-such-channel"),
        (AmiUnavailable("no connection"), 503, "asterisk-away"),
        (RuntimeError("a bug"), 500, ""),
    ],
)
async def test_refusal_is_the_same_at_a_standby(
    begin: Begin, error: Exception, status: int, kind: str
) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    first.error = error
    wish = {"channel": "PJSIP/1-1", "url": "ws://h/"}
    answers = [await one.stage.ask("POST", FORKS, CONTROLLER, wish) for one in (first, second)]
    for answer in answers:
        assert answer.status == status
        assert answer.json["type"] == (f"/problems/{kind}" if kind else "about:blank")
    assert answers[0].json["detail"] == answers[1].json["detail"]


async def test_timeline_and_series_come_from_the_controllers_that_lead(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    await first.lead()
    first.has(1, 10)
    fork = ForkInfo(fork_id(1), "PJSIP/1-1", "1.1", "")
    request = parse_request({"Channel": fork.channel, "WsServer": "ws://h/"})
    assert isinstance(request, StartFork)
    for event in (Requested(fork, request), Muted(fork, True, False)):
        first.timelines.on_event(event)
    for one in (first, second):
        answer = await one.stage.get(f"{FORKS}/{fork_id(1)}")
        assert answer.json["asterisk"] == "pbx"
        assert [moment["kind"] for moment in answer.json["timeline"]] == ["requested", "muted"]
    answer = await other.stage.get("/api/v1/series?hours=1")
    assert len(answer.json["minutes"]) == 60
    assert list(answer.json["missing"]) == ["pbx-b"]


async def test_audio_of_anothers_fork_is_refused_with_the_name_of_whom_to_ask(
    begin: Begin,
) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    await known(first, second)
    first.has(1, 10)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    answer = await second.stage.get(
        f"{FORKS}/{fork_id(1)}/listen", LISTENER, **upgrade, Sec_WebSocket_Key="eA" * 11 + "=="
    )
    assert (answer.status, answer.json["type"]) == (421, "/problems/other-controller")
    assert "ask the controller c1, which leads for that" in answer.json["detail"]


async def test_standby_is_ready_while_another_leads_and_a_relay_host_is_there(
    begin: Begin,
) -> None:
    first, second = await begin("c1"), await begin("c2")
    assert (await second.stage.get("/readyz")).status == 503
    assert (await second.stage.get("/healthz")).status == 200
    await first.lead()
    await known(first, second)
    first.broker.publish("audiofork.beat.r1", HOST.encode())
    await until(lambda: second.roster.hosts, 30)
    answer = await second.stage.get("/readyz")
    assert (answer.status, answer.json) == (200, {"ready": True, "asterisk": "up", "relay": "up"})
    status = (await second.stage.get("/api/v1/status")).json
    assert status["asterisk"]["text"] == "c1 leads for pbx, this controller stands by"
    assert (status["controller"], status["forks"]) == ("c2", 12)
    assert status["controllers"] == [
        {"name": "c1", "asterisk": "pbx", "state": "leads"},
        {"name": "c2", "asterisk": "pbx", "state": "stands by"},
    ]
    metrics = (await second.stage.get("/metrics")).body.decode()
    assert "audiofork_leads 0" in metrics
    assert 'audiofork_controller_info{controller="c2",asterisk="pbx"} 1' in metrics
    assert "audiofork_forks" not in metrics  # else the sum over all would have them twice


# --- Events --------------------------------------------------------------------------------------


class Events:
    """The events that a controller tells a client.

    Attributes:
        fields: Those of each, but for levels and the like, and `name`.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(30):
            await self._reader.readuntil(b"event: ")
            name = (await self._reader.readline()).decode().strip()
            await self._reader.readuntil(b"data: ")
            return name, json.loads(await self._reader.readline())


@asynccontextmanager
async def events_of(one: Control) -> AsyncIterator[Events]:
    reader, writer = await asyncio.open_connection("127.0.0.1", one.stage.port)
    head = f"Host: localhost\r\nAuthorization: Bearer {CONTROLLER}\r\n"
    writer.write(f"GET /api/v1/events HTTP/1.1\r\n{head}\r\n".encode())
    async with asyncio.timeout(30):
        await reader.readuntil(b": \n\n")
    try:
        yield Events(reader)
    finally:
        writer.transport.abort()


def muted(number: int) -> Muted:
    return Muted(ForkInfo(fork_id(number), "c", "1", "ws://h/"), True, False)


async def hears(one: Control, count: int) -> None:
    """Wait until a controller has subscribed to the events of so many."""
    await until(
        lambda: one.doors._http.hearing and len(one.doors._http.hearing._heard) == count, 30
    )


async def test_events_of_the_own_daemon_name_the_asterisk_and_a_new_lead_is_a_gap(
    begin: Begin,
) -> None:
    one = await begin("c1")
    await hears(one, 1)
    async with events_of(one) as events:
        await one.lead()
        assert await events.next() == ("reset", {})
        one.others.stream.on_event(muted(1))
        name, fields = await events.next()
        assert (name, fields["asterisk"], fields["fork"]["id"]) == ("fork.muted", "pbx", fork_id(1))
        await one.broker.flush()  # NATS has given it back: it comes once all the same
        one.others.stream.on_event(muted(2))
        assert (await events.next())[1]["fork"]["id"] == fork_id(2)
        await one.own.stop_serving()
        assert (await events.next())[0] == "reset"
        one.others.stream.on_event(muted(3))  # which concerns nobody any more
        await one.lead()
        assert (await events.next())[0] == "reset"


async def test_events_of_each_asterisk_come_at_each_controller_in_order(begin: Begin) -> None:
    first, second, other = await begin("c1"), await begin("c2"), await begin("b1", "pbx-b")
    for one in (first, other):
        await one.lead()
    for one in (first, second, other):
        await hears(one, 2)
    async with events_of(second) as events:
        for number in range(5):
            first.others.stream.on_event(muted(number))
        found = [(await events.next())[1] for _ in range(5)]
        assert [one["fork"]["id"] for one in found] == [fork_id(number) for number in range(5)]
        assert found[0] == {
            **{"asterisk": "pbx", "at": 1700000000.25, "in": True, "out": False},
            "fork": {
                **{"id": fork_id(0), "channel": "c", "uniqueid": "1", "url": "ws://h/"},
                "host": "h",
            },
        }
        other.others.stream.on_event(muted(7))
        assert (await events.next())[1]["asterisk"] == "pbx-b"


async def test_event_that_is_lost_is_a_gap(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    await hears(second, 1)
    async with events_of(second) as events:
        first.others.stream.on_event(muted(1))
        assert (await events.next())[0] == "fork.muted"
        first.others.stream.last += 1
        first.others.stream.on_event(muted(2))
        assert [(await events.next())[0] for _ in range(2)] == ["reset", "fork.muted"]


async def test_another_controller_that_leads_is_a_gap(begin: Begin) -> None:
    first, second, third = await begin("c1"), await begin("c2"), await begin("c3")
    await first.lead()
    await hears(third, 1)
    async with events_of(third) as events:
        first.others.stream.on_event(muted(1))
        assert (await events.next())[0] == "fork.muted"
        await first.own.stop_serving()
        second.others.stream = EventStream("another run")
        await second.lead()
        first.others.stream.on_event(muted(2))  # which nobody is told of any more
        second.others.stream.on_event(muted(3))
        assert [(await events.next())[0] for _ in range(2)] == ["reset", "fork.muted"]


async def test_loss_of_the_broker_is_a_gap_also_for_who_comes_back_later(
    begin: Begin, server: NatsServer
) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    await hears(second, 1)
    async with events_of(second) as events:
        first.others.stream.on_event(muted(1))
        assert (await events.next())[0] == "fork.muted"
        server.kill()
        assert (await events.next())[0] == "reset"
    server.start()
    assert second.doors._http.parts is not None
    stream = second.doors._http.parts.stream
    before = stream.id_of(stream.last - 1)
    assert stream.number_of(before) == stream.last - 1  # all that it misses is the reset
    await until(lambda: second.broker.is_up, 30)
    await until(lambda: stream.number_of(before) is None, 30)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"run":"r","number":1,"name":"x"}'),
        b'{"run":"r","number":1,"name":"reset","event":{"at":1,"fork":null}}',
        b'{"run":"r","number":"1","name":"attack","event":{"at":1,"fork":null}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":"1","fork":null}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":1,"fork":[]}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":1,"fork":{"id":7}}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":1,"x":{"y":1}}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":1,"x":NaN}}',
        b'{"run":"r","number":1,"name":"attack","event":{"at":1,"x":"' + b"x" * 140_000 + b'"}}',
    ],
)
def test_message_that_is_no_event_has_no_effect(payload: bytes) -> None:
    stream = ClusterStream("run")
    broker = Broker(ClusterConfig(name="c"), "c")
    hearing = EventHearing(broker, lambda: ["pbx"], lambda _: False, stream)
    with pytest.raises(NoMessage):
        hearing.on_message("audiofork.events.pbx", payload)
    assert stream.last == 0


def test_empty_message_by_which_a_check_tries_what_it_may_is_passed_over() -> None:
    stream = ClusterStream("run")
    broker = Broker(ClusterConfig(name="c"), "c")
    EventHearing(broker, lambda: ["pbx"], lambda _: False, stream).on_message("a.pbx", b"")
    assert stream.last == 0


def test_event_of_another_has_its_own_asterisk_and_texts_without_control_characters() -> None:
    stream = ClusterStream("run")
    broker = Broker(ClusterConfig(name="c"), "c")
    hearing = EventHearing(broker, lambda: ["pbx"], lambda _: False, stream)
    fork = {"id": "../x", "channel": "a\x1b"}
    event = {"at": 1, "asterisk": "another", "fork": fork, "detail": "b\n", "text": "c\n"}
    message = {"run": "r", "number": 1, "name": "fork.message", "event": event}
    hearing.on_message("audiofork.events.pbx", json.dumps(message).encode())
    (one,) = stream.after(0, 9)
    assert one.fork_id == ""
    assert json.loads(one.json) == {
        **{"asterisk": "pbx", "at": 1, "detail": "b?", "text": "c\n"},
        "fork": {"id": "", "channel": "a?"},
    }


# --- What comes over the broker ------------------------------------------------------------------


async def test_forks_that_are_none_are_left_out_and_told(begin: Begin) -> None:
    first, second = await begin("c1"), await begin("c2")
    await first.lead()
    first.has(1, 10)
    first.has(2, 10)
    first.views[0] = replace(first.views[0], id="<script>")
    first.has(3, 20)
    first.views[2] = replace(first.views[2], channel="PJSIP/\x1b[31m3")
    found = await second.listed()
    assert [fork["channel"] for fork in found["forks"]] == ["PJSIP/?[31m3", "PJSIP/2-1"]
    assert found["missing"] == {"pbx": "1 of its forks cannot be understood"}


def test_state_of_a_controller_of_several_is_that_of_all() -> None:
    fine = Others().parts().status()
    worse = replace(
        fine,
        asterisk=AsteriskStatus(False, "", "no connection"),
        forks=5,
        counters={"started": 2, "ended": {"hangup": 1, "stopped": 2}},
    )
    fine = replace(fine, forks=2, counters={"started": 1, "ended": {"hangup": 4}})
    whole = _of_all({"pbx-a": fine, "pbx-b": worse})
    assert (whole.forks, whole.asterisk.up) == (7, False)
    assert whole.asterisk.text == f"pbx-a: {fine.asterisk.text}; pbx-b: no connection"
    assert whole.counters == {"started": 3, "ended": {"hangup": 5, "stopped": 2}}
