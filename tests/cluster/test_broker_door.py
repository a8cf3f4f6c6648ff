"""Requests over a real NATS server: what is answered, to whom, for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from audiofork.cluster.broker import Broker
from audiofork.doors import broker_door
from audiofork.doors.broker_door import BrokerDoor, ask_leader, subject_of
from audiofork.doors.control_answers import Answers, ControlAnswers
from audiofork.doors.control_protocol import MAX_LINE_BYTES
from audiofork.errors import BrokerUnavailable, NobodyAnswers
from audiofork.forks.requests import Origin, Request
from tests.cluster.conftest import Connect

pytestmark = pytest.mark.nats

LIST = b'{"Command": "ListAudioForks"}'


class Stage:
    """Who asks, and a door that answers as it is told to.

    Attributes:
        asked: The lines that came, and for whom.
        answered: How many answers were given.
        closed: Set when the answers to a line are at their end.
        go_on: Clear it, and the second answer waits.
        leads: Whether the door's controller does.
    """

    def __init__(self, asker: Broker, broker: Broker) -> None:
        self.asker = asker
        self.broker = broker
        self.asked: list[tuple[bytes, Origin]] = []
        self.given: list[dict[str, Any]] = [{"ok": True, "n": 1}, {"ok": True, "n": 2}]
        self.answered = 0
        self.closed = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.leads = True
        self.door = BrokerDoor(broker, subject_of("pbx"), lambda: self.leads, self._answers)

    async def _answers(self, line: bytes, origin: Origin) -> Answers:
        self.asked.append((line, origin))
        try:
            for number, answer in enumerate(self.given):
                if number:
                    await self.go_on.wait()
                self.answered += 1
                yield answer
        finally:
            self.closed.set()

    async def ask(self, line: bytes = LIST, who: str = "me") -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            return [one async for one in ask_leader(self.asker, "pbx", line, who)]


@pytest.fixture
async def stage(connect: Connect) -> AsyncIterator[Stage]:
    asker, broker = await connect("asker"), await connect("broker")
    one = Stage(asker, broker)
    await one.door.open()
    await broker.flush()
    yield one
    await one.door.close()


async def test_each_answer_is_passed_on_and_the_origin_names_the_door_and_who(stage: Stage) -> None:
    assert await stage.ask(who="c2, connection 1") == stage.given
    assert stage.asked == [(LIST, Origin("broker", "c2, connection 1"))]


async def test_who_is_made_harmless_and_somebody_where_nothing_is_said(stage: Stage) -> None:
    await stage.ask(who="a\x1b[2J" + "x" * 1000)
    await stage.ask(who="")
    (_, first), (_, second) = stage.asked
    assert first.who == ("a?[2J" + "x" * 1000)[: broker_door.MAX_WHO]
    assert second.who == "somebody"


async def test_requests_are_answered_in_the_words_of_the_control_socket(connect: Connect) -> None:
    async def ask(request: Request) -> list[str]:
        return ["an id"]

    async def views() -> list[Any]:
        return []

    asker, broker = await connect("asker"), await connect("broker")
    door = BrokerDoor(
        broker, subject_of("pbx"), lambda: True, ControlAnswers(ask, views, run_id="run")
    )
    await door.open()
    await broker.flush()
    for line, expected in (
        (LIST, {"ok": True, "forks": [], "legs_left": 0, "run": "run"}),
        (b'{"Command": "StopAudioFork", "Channel": "SIP/1"}', {"ok": True, "forks": ["an id"]}),
        (b"{}", None),
        (b"\xff\x00", None),
    ):
        (answer,) = [one async for one in ask_leader(asker, "pbx", line, "me")]
        assert answer == expected or (answer["code"] == "refused" and expected is None)
    await door.close()


async def test_long_answer_comes_whole(stage: Stage) -> None:
    stage.given = [{"ok": True, "long": "x" * 3_000_000}, {"ok": True}]
    assert await stage.ask() == stage.given


async def test_answer_that_takes_long_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_door, "SILENT_S", 0.5)
    monkeypatch.setattr(broker_door, "BEAT_S", 0.1)
    stage.go_on.clear()
    asked = asyncio.create_task(stage.ask())
    await asyncio.sleep(1.5)
    assert not asked.done()
    stage.go_on.set()
    assert await asked == stage.given


async def test_answers_end_where_whoever_asked_has_left(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_door, "BEAT_S", 0.05)
    stage.given *= 1000
    stage.go_on.clear()
    async with aclosing(ask_leader(stage.asker, "pbx", LIST, "me")) as answers:
        await anext(answers)
    (asker,) = stage.door._askers.values()
    async with asyncio.timeout(30):
        while not asker.is_gone:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    assert not stage.closed.is_set()
    stage.go_on.set()  # as at a socket, what was begun is done, and then it ends
    async with asyncio.timeout(30):
        await stage.closed.wait()
    assert stage.answered == 2


async def test_controller_that_does_not_lead_any_more_is_silent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_door, "SILENT_S", 0.3)
    stage.leads = False
    with pytest.raises(BrokerUnavailable, match="nothing was heard"):
        await stage.ask()
    assert stage.asked == []


async def test_request_that_is_too_long_is_refused(stage: Stage) -> None:
    (answer,) = await stage.ask(b"x" * (MAX_LINE_BYTES + 1))
    error = f"the request is longer than {MAX_LINE_BYTES} bytes"
    assert answer == {"ok": False, "code": "refused", "error": error}
    assert stage.asked == []


async def test_requests_beyond_the_limit_are_refused_and_others_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_door, "MAX_REQUESTS", 2)
    stage.go_on.clear()
    asking = [asyncio.create_task(stage.ask()) for _ in range(2)]
    async with asyncio.timeout(30):
        while len(stage.asked) < 2:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    (answer,) = await stage.ask()
    assert (answer["ok"], answer["code"]) == (False, "busy")
    stage.go_on.set()
    assert [await one for one in asking] == [stage.given] * 2
    assert await stage.ask() == stage.given


async def test_close_tells_whoever_waits_and_later_requests_are_not_heard(stage: Stage) -> None:
    stage.go_on.clear()
    asked = asyncio.create_task(stage.ask())
    async with asyncio.timeout(30):
        while not stage.answered:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
    await stage.door.close()
    await stage.broker.flush()  # so that NATS knows of it
    first, second = await asked
    assert first == stage.given[0]
    assert (second["code"], second["error"]) == ("cluster", broker_door.STOPPED)
    assert stage.closed.is_set()
    with pytest.raises(NobodyAnswers):
        await stage.ask()


@pytest.mark.parametrize("said", [b"no JSON\n", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n"])
async def test_whoever_answers_otherwise_is_taken_for_no_controller(
    connect: Connect, said: bytes
) -> None:
    asker, other = await connect("asker"), await connect("other")
    subject = f"{broker_door.SUBJECT}.pbx"
    await other.subscribe_questions(subject, lambda one: other.publish(one.reply, said))
    await other.flush()
    with pytest.raises(BrokerUnavailable, match="what answers is no controller"):
        await anext(ask_leader(asker, "pbx", LIST, "me"))


async def test_message_without_a_reply_is_passed_over(stage: Stage) -> None:
    stage.asker.publish(f"{broker_door.SUBJECT}.pbx", LIST)
    await stage.ask()
    assert len(stage.asked) == 1
