"""A server that goes and comes back."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.relay.sink_states import SinkState
from tests.relay.peers import FickleServer, numbered, until, unused_port
from tests.relay.sinks import (
    Start,
    Waits,
    all_acknowledged,
    failure,
    offer,
    offer_until_stalled,
    opened,
    retries_of,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


# --- The proof -----------------------------------------------------------------------------------


async def test_server_that_closes_before_it_answers_a_ping_swallows_nothing(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    fickle.close_code = 1011
    retried = retries_of(sink)
    fickle.break_off()
    await until(lambda: retried)
    offer(sink, numbered(40))
    await until(lambda: len(retried) >= 5)
    assert (sink.frames_sent, len(sink.backlog)) == (0, 40)
    fickle.close_code = None
    await until(lambda: len(fickle.frames) == 40)
    assert fickle.frames == numbered(40)


async def test_server_that_answers_no_ping_gets_what_waited_all_the_same(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.sink.PROOF_TIMEOUT_S", 0.05)
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    fickle.answers_pings = False
    fickle.break_off()
    await until(lambda: sink._connection is None)
    offer(sink, numbered(5))
    await until(lambda: len(fickle.frames) == 5)
    assert fickle.frames == numbered(5)


# --- A server that goes and comes back -----------------------------------------------------------


async def test_each_retry_is_told_with_the_wait_before_it(start: Start, waits: Waits) -> None:
    told: list[float] = []
    sink, _ = start(
        f"ws://127.0.0.1:{unused_port()}/", reconnect_attempts=0, reconnect_interval=0.04
    )
    sink.on_retry = lambda _attempt, _why, wait_s: told.append(wait_s)
    await until(lambda: len(told) >= 4)
    assert told[:4] == [0.01, 0.02, 0.04, 0.04]


async def test_frames_that_waited_for_a_server_arrive_first_in_order_and_once(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    retried = retries_of(sink)
    offer(sink, numbered(30))
    await until(lambda: len(fickle.frames) == 30 and all_acknowledged(sink))
    await fickle.go()
    await until(lambda: retried)
    offer(sink, numbered(30, 30), before=30)
    assert (sink.frames_sent, len(sink.backlog), sink.reconnects) == (30, 30, 0)
    await until(lambda: len(retried) >= 3)
    await fickle.come()
    await opened(sink)
    assert sink.reconnects == 1
    offer(sink, numbered(30, 60), before=60)
    await until(lambda: len(fickle.frames) >= 90)
    assert fickle.frames_of == [numbered(30), numbered(60, 30)]
    assert (sink.backlog.dropped, sink.dropped_in_gap) == (0, 0)


async def test_server_that_is_away_at_first_is_tried_again(start: Start, waits: Waits) -> None:
    server = FickleServer()
    sink, _ = start(server.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: len(retried) >= 2)
    async with server:
        await opened(sink)
        await until(lambda: len(server.frames) >= 20)
        assert server.frames == numbered(20)
        assert (sink.reconnects, sink.frames_sent) == (0, 20)


async def test_each_return_of_a_server_is_counted(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    for count in range(1, 4):
        fickle.break_off()
        await opened(sink)
        assert sink.reconnects == count


async def test_gap_counts_what_was_dropped_while_the_server_was_away(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02, backlog=0.2)
    await opened(sink)
    for gap, dropped in (17, 7), (3, 0), (12, 2):
        await until(lambda: all_acknowledged(sink))
        retried = retries_of(sink)
        await fickle.go()
        await until(lambda: retried)  # noqa: B023
        for frame in numbered(gap):
            sink.send(frame)
        await fickle.come()
        await opened(sink)
        assert sink.dropped_in_gap == dropped
    assert sink.backlog.dropped == 9


async def test_gap_begins_when_the_server_takes_no_more(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02, backlog=0.2)
    await opened(sink)
    await until(lambda: fickle.connection)
    fickle.stop_reading()
    count = offer_until_stalled(sink)
    offer(sink, numbered(29, count), before=count)
    assert sink.backlog.dropped == 20
    fickle.read_on()  # a stall that ends is none of the gap
    await until(lambda: all_acknowledged(sink))
    fickle.stop_reading()
    stalled_at = sink.backlog.dropped
    while sink.backlog.dropped < stalled_at + 6:
        sink.send(numbered(1)[0])
    sent = sink.frames_sent
    fickle.break_off()
    await until(lambda: sink._connection is None)
    lost = sent - sink.frames_sent  # older than all that waits, and so the first to be dropped
    await opened(sink)
    assert lost > 0
    assert (sink.dropped_in_gap, sink.backlog.dropped) == (6 + lost, 26 + lost)


async def test_server_that_accepts_and_closes_is_backed_off(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    fickle.close_code = 1011
    sink, task = start(fickle.url, reconnect_attempts=6, reconnect_interval=0.05)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    gaps = [after - before for before, after in zip(fickle.asked, fickle.asked[1:], strict=False)]
    assert len(gaps) >= 5
    # uvloop's clock has steps of a millisecond.
    for gap, least in zip(gaps, [0.01, 0.02, 0.04, 0.05, 0.05], strict=False):
        assert gap >= least - 0.002
    assert [attempt for attempt, _ in retried][:5] == [2, 3, 4, 5, 6]
    assert sum(gaps) >= 5 * 0.05 - 0.01


async def test_loss_after_a_healthy_time_begins_the_count_anew(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 0.02)
    sink, task = start(fickle.url, reconnect_attempts=1)
    retried = retries_of(sink)
    for _ in range(3):
        await opened(sink)
        await asyncio.sleep(0.03)
        fickle.break_off()
    await opened(sink)
    assert [attempt for attempt, _ in retried] == [1, 1, 1]
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 3600)
    fickle.break_off()
    assert isinstance(await failure(task), SinkLost)


async def test_attempts_after_a_healthy_time_are_limited_too(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 0.02)
    sink, task = start(fickle.url, reconnect_attempts=3, reconnect_interval=0.02)
    retried = retries_of(sink)
    await opened(sink)
    await asyncio.sleep(0.03)
    fickle.refusals = [(503, "")] * 100
    fickle.break_off()
    assert isinstance(await failure(task), SinkUnreachable)
    assert [attempt for attempt, _ in retried][:3] == [1, 2, 3]


async def test_attempts_are_told_with_the_reason_and_end_with_the_last(
    start: Start, waits: Waits
) -> None:
    url = f"ws://127.0.0.1:{unused_port()}/"
    sink, task = start(url, reconnect_attempts=4, reconnect_interval=0.01)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkUnreachable)
    assert retried[:3] == [(2, str(error)), (3, str(error)), (4, str(error))]


async def test_retry_after_of_a_busy_server_is_obeyed_up_to_the_longest_wait(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(0.01, part=0)
    fickle.refusals = [(503, ""), (503, "60"), (429, "60")]
    sink, _ = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.08)
    offer(sink, numbered(5))
    await until(lambda: len(fickle.frames) >= 5)
    gaps = [after - before for before, after in zip(fickle.asked, fickle.asked[1:], strict=False)]
    assert len(gaps) == 3
    assert gaps[0] < min(gaps[1:])
    assert all(0.078 <= gap < 5 for gap in gaps[1:])
    assert fickle.frames == numbered(5)


@pytest.mark.parametrize("status", [400, 404])
async def test_final_refusal_among_the_retries_ends_at_once(
    fickle: FickleServer, start: Start, waits: Waits, status: int
) -> None:
    fickle.refusals = [(503, ""), (502, ""), (status, "")]
    sink, task = start(fickle.url, reconnect_attempts=0)
    retried = retries_of(sink)
    error = await failure(task)
    assert isinstance(error, SinkRefused)
    assert f": the server answered HTTP {status} " in str(error)
    assert [attempt for attempt, _ in retried] == [2, 3]


async def test_server_that_is_lost_in_the_turn_of_its_proof_is_tried_again(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=0)
    await opened(sink)
    fickle.answers_pings = False
    fickle.break_off()
    await until(lambda: sink.state is SinkState.PROVING)
    assert sink._connection is not None
    await until(lambda: sink._connection and sink._connection.pending_pings)
    ((pong, _),) = sink._connection.pending_pings.values()
    sink._connection.transport.abort()
    pong.set_result(0.0)
    fickle.answers_pings = True
    await opened(sink)
    assert sink.reconnects == 1


# --- What the server says -------------------------------------------------------------------------


class Said:
    """Keeps what a server says; fails at the text that it is told to.

    Attributes:
        texts: What was said.
    """

    def __init__(self, fails_at: int = -1) -> None:
        self.texts: list[str] = []
        self._fails_at = fails_at

    def take(self, text: str) -> None:
        if len(self.texts) == self._fails_at:
            raise RuntimeError("a bug")
        self.texts.append(text)

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.texts) == count)


async def say(server: FickleServer, text: str) -> None:
    await until(lambda: server.connection)
    assert server.connection is not None
    await server.connection.send(text)


async def test_what_the_server_says_comes_in_order_over_each_connection(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, reconnect_attempts=9)
    said = Said()
    sink.on_text = said.take
    for number in range(60):
        await say(fickle, str(number))
        if number % 7 == 0:
            await said.wait(number + 1)
        if number % 20 == 19:
            await said.wait(number + 1)
            fickle.connection = None
            fickle.break_off()
    assert said.texts == [str(number) for number in range(60)]


@pytest.mark.parametrize("before", [0, 1, 5])
async def test_failure_to_take_what_the_server_says_is_raised(
    fickle: FickleServer, start: Start, before: int
) -> None:
    sink, task = start(fickle.url)
    said = Said(fails_at=before)
    sink.on_text = said.take
    for number in range(before):
        await say(fickle, str(number))
        await said.wait(number + 1)
    await say(fickle, "one too many")
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(task, 5)
