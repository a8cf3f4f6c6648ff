"""Requests with several answers, over a real NATS server."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.cluster.broker import Broker, Question
from audiofork.errors import BrokerUnavailable, NobodyAnswers
from testbed.nats import NatsServer
from tests.cluster.conftest import Connect

pytestmark = pytest.mark.nats


async def answers_to(broker: Broker, silent_s: float = 2, who: str = "me") -> list[bytes]:
    asked = broker.request_many("a.question", b"what?", silent_s, who)
    async with asyncio.timeout(10):
        return [one async for one in asked]


async def test_answers_come_in_order_up_to_an_empty_one(connect: Connect) -> None:
    asker, other = await connect("asker"), await connect("other")
    heard: list[Question] = []

    def answer(question: Question) -> None:
        heard.append(question)
        for payload in (b"a", b"b", b"\n", b"", b"too late"):
            other.publish(question.reply, payload)

    await other.subscribe_questions("a.question", answer)
    await other.flush()
    assert await answers_to(asker) == [b"a", b"b", b"\n"]
    assert [(one.payload, one.who) for one in heard] == [(b"what?", "me")]


async def test_question_that_nobody_takes_is_told_at_once(connect: Connect) -> None:
    asker = await connect("asker")
    with pytest.raises(NobodyAnswers):
        await answers_to(asker)


async def test_silence_ends_a_question_also_after_an_answer(connect: Connect) -> None:
    asker, other = await connect("asker"), await connect("other")
    await other.subscribe_questions("a.question", lambda one: other.publish(one.reply, b"a"))
    await other.flush()
    with pytest.raises(BrokerUnavailable, match=r"nothing was heard for 0\.3 s") as raised:
        await answers_to(asker, silent_s=0.3)
    assert not isinstance(raised.value, NobodyAnswers)


async def test_question_is_refused_while_there_is_no_connection(
    connect: Connect, server: NatsServer
) -> None:
    asker = await connect("asker")
    lost = asyncio.Event()
    asker.on_change(lambda is_up: None if is_up else lost.set())
    server.kill()
    async with asyncio.timeout(30):
        await lost.wait()
    with pytest.raises(BrokerUnavailable, match="no connection"):
        await answers_to(asker)


async def test_message_that_nobody_gets_is_told_to_its_reply(connect: Connect) -> None:
    broker = await connect("a")
    inbox, told = broker.inbox(), asyncio.Event()
    await broker.subscribe(f"{inbox}.*", lambda subject, _: told.set())
    broker.publish("of.nobody", b"a", reply=f"{inbox}.1")
    async with asyncio.timeout(30):
        await told.wait()


async def test_bug_of_who_answers_is_logged_and_the_next_question_is_answered(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    asker, other = await connect("asker"), await connect("other")
    questions: list[Question] = []

    def answer(question: Question) -> None:
        questions.append(question)
        if len(questions) == 1:
            raise RuntimeError("a bug")
        other.publish(question.reply, b"")

    await other.subscribe_questions("a.question", answer)
    await other.flush()
    with pytest.raises(BrokerUnavailable):
        await answers_to(asker, silent_s=0.3)
    assert await answers_to(asker) == []
    assert "a bug" in caplog.text
