"""Answers requests that come over the broker, with the same words as the control socket.

A message to `audiofork.request.ASTERISK` is one line of JSON, see `control_answers.py`, and goes to
the controller that leads for that Asterisk. Its answers are lines, too, sent to the subject that
the message names for its reply: each in a message, or in several if it is long, the last of which
ends with a line feed. An empty message ends them. While an answer is not ready, an empty line comes
some times within two seconds: who hears nothing for that long need not wait any more.

Who asks may say for whom, in the header Audiofork-Who; it is told in the log, and requests of
different ones take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from nats.aio.subscription import Subscription

from audiofork.cluster.broker import FAULTS, Broker, Question
from audiofork.doors.control_answers import GiveAnswers, refusal
from audiofork.doors.control_protocol import MAX_LINE_BYTES, Code
from audiofork.errors import BrokerUnavailable, RequestRefused
from audiofork.forks.requests import Origin
from audiofork.reading_json import parsed_json
from audiofork.text import did_you_mean, printable

log = logging.getLogger(__name__)

SUBJECT = "audiofork.request"
# Most requests that are answered at a time.
MAX_REQUESTS = 256
BEAT_S = 0.5
SILENT_S = 2.0
# Of one message; a server takes 1 MiB if nothing else is configured.
PIECE_BYTES = 256 * 1024
MAX_WHO = 100
STOPPED = "this controller does not lead any more: ask again"


class BrokerDoor:
    """Answers the requests on one subject, such as those for an Asterisk while we lead for it.

    Owned by the controller, which calls `open` once and then `close`.

    Args:
        broker: The connection to the broker.
        subject: What requests are sent to.
        leads: Returns whether they are for us; if not, another controller answers.
        answers: Answers requests.
    """

    def __init__(
        self, broker: Broker, subject: str, leads: Callable[[], bool], answers: GiveAnswers
    ) -> None:
        self._broker = broker
        self._subject = subject
        self._leads = leads
        self._answers = answers
        self._inbox = ""
        self._numbers = itertools.count(1)
        self._askers: dict[str, _Asker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._forget_broker: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            BrokerUnavailable: The connection is lost.
        """
        self._forget_broker = self._broker.on_change(self._on_broker)
        self._inbox = self._broker.inbox()
        absent = await self._broker.subscribe(f"{self._inbox}.*", self._on_absent)
        asked = await self._broker.subscribe_questions(self._subject, self._on_question)
        self._subscriptions += (absent, asked)

    async def close(self) -> None:
        """End all answers; whoever waits for one is told. May be called again."""
        self._forget_broker()
        self._forget_broker = lambda: None
        while self._subscriptions:
            with contextlib.suppress(*FAULTS):
                await self._subscriptions.pop().unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_question(self, question: Question) -> None:
        if not question.reply or not self._leads():
            return
        number = str(next(self._numbers))
        asker = _Asker(self._broker, question.reply, f"{self._inbox}.{number}")
        if len(self._askers) >= MAX_REQUESTS:
            asker.send(refusal(f"{MAX_REQUESTS} requests are being answered already", Code.BUSY))
            asker.end()
            return
        self._askers[number] = asker
        task = asyncio.create_task(self._serve(asker, question))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._on_served(number, done))

    def _on_served(self, number: str, task: asyncio.Task[None]) -> None:
        del self._askers[number]
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a request over NATS could not be answered", exc_info=exc)

    async def _serve(self, asker: _Asker, question: Question) -> None:
        origin = Origin("broker", printable(question.who, "?")[:MAX_WHO] or "somebody")
        try:
            if len(question.payload) > MAX_LINE_BYTES:
                asker.send(refusal(f"the request is longer than {MAX_LINE_BYTES} bytes"))
                return
            async with contextlib.aclosing(self._answers(question.payload, origin)) as answers:
                async for answer in answers:
                    asker.send(answer)
                    if asker.is_gone:
                        return
        except asyncio.CancelledError:
            asker.send(refusal(STOPPED, Code.CLUSTER))
            raise
        finally:
            asker.end()

    def _on_absent(self, subject: str, _payload: bytes) -> None:
        """Note what NATS says of a message that nobody has got: whoever asked has left."""
        asker = self._askers.get(subject.rpartition(".")[2])
        if asker is not None:
            asker.is_gone = True

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 (of `Broker.on_change`)
        if not is_up:  # some answers are lost, so the rest is of no use
            for asker in self._askers.values():
                asker.is_gone = True


class _Asker:
    """Who waits for answers.

    Args:
        broker: The connection to the broker.
        reply: What they are sent to.
        absent: Where NATS says that nobody gets them.

    Attributes:
        is_gone: Whether nobody waits any more.
    """

    def __init__(self, broker: Broker, reply: str, absent: str) -> None:
        self._broker = broker
        self._reply = reply
        self._absent = absent
        self.is_gone = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        self._publish(b"\n")
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _publish(self, payload: bytes) -> None:
        if not self.is_gone:
            self._broker.publish(self._reply, payload, self._absent)

    def send(self, answer: dict[str, Any]) -> None:
        """Send an answer."""
        line = json.dumps(answer).encode() + b"\n"
        for begin in range(0, len(line), PIECE_BYTES):
            self._publish(line[begin : begin + PIECE_BYTES])

    def end(self) -> None:
        """Say that this was the last one."""
        self._timer.cancel()
        self._publish(b"")


def subject_of(asterisk: str) -> str:
    """Return what requests for an Asterisk are sent to."""
    return f"{SUBJECT}.{asterisk}"


def no_such_asterisk(asterisk: str, known: Collection[str]) -> RequestRefused:
    """Return the refusal of a request for an Asterisk that the cluster does not have.

    Args:
        asterisk: Its name.
        known: The names of those that it has.
    """
    hint = did_you_mean(asterisk, known) or f"; it has {', '.join(known)}"
    return RequestRefused(f"the cluster has no Asterisk {printable(asterisk, '?')}{hint}")


def ask_leader(
    broker: Broker, asterisk: str, line: bytes, who: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answers of the controller that leads for an Asterisk; see `ask_subject`."""
    return ask_subject(broker, subject_of(asterisk), line, who)


async def ask_subject(
    broker: Broker, subject: str, line: bytes, who: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answers of the controller that hears a subject. Close it to hear no more.

    Args:
        broker: The connection to the broker.
        subject: The subject.
        line: The request.
        who: For whom it is asked.

    Raises:
        NobodyAnswers: No controller hears it, so nobody has heard the request.
        BrokerUnavailable: It is silent, there is no broker, or it answers in an unknown way.
    """
    asked = broker.request_many(subject, line, SILENT_S, who)
    waiting = b""
    async with contextlib.aclosing(asked) as pieces:
        async for piece in pieces:
            *lines, waiting = (waiting + piece).split(b"\n")
            for one in filter(None, lines):
                yield _answer_in(one)


def _answer_in(line: bytes) -> dict[str, Any]:
    try:
        answer = parsed_json(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "ok" not in answer:
        raise BrokerUnavailable("what answers is no controller")
    return answer
