"""The end of a sink, whoever begins it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from audiofork.errors import SinkClosed, SinkError, SinkLost, SinkRefused, SinkUnreachable
from audiofork.relay.connection import Connection
from audiofork.relay.server_limits import MAX_MESSAGE_BYTES
from audiofork.relay.sink import Sink
from testbed.recorder import Recorder
from tests.relay.peers import (
    FickleServer,
    StalledServer,
    answering,
    numbered,
    until,
    unused_port,
)
from tests.relay.sinks import (
    Start,
    Waits,
    failure,
    offer,
    offer_until_stalled,
    opened,
    retries_of,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


# --- The end that comes from the server ----------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1000, SinkClosed), (4000, SinkRefused), (1008, SinkRefused), (1001, SinkLost)],
)
async def test_server_that_closes_ends_the_sink(
    recorder: Recorder, start: Start, code: int, kind: type[SinkError]
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(2))
    connection = (await recorder.wait_messages("/", 2)).connection
    assert connection is not None
    await connection.close(code, "had enough")
    error = await failure(task)
    assert type(error) is kind
    assert str(error) == f"the server closed with {code} had enough"
    offer(sink, numbered(3, 2), before=2)
    assert len(sink.backlog) == 3
    await sink.close(1000, "late")
    assert (sink.frames_sent, sink.backlog.dropped) == (2, 3)


async def test_server_that_breaks_off_is_lost(recorder: Recorder, start: Start) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    connection.transport.abort()
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error) == "the connection broke"


@pytest.mark.parametrize("message", ["x" * 65_537, b"x" * 65_537], ids=["text", "binary"])
async def test_oversized_message_is_closed_with_1009_and_retryable(
    recorder: Recorder, start: Start, message: str | bytes
) -> None:
    assert len(message) == MAX_MESSAGE_BYTES + 1
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    await connection.send(message)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error).startswith("closed by us with 1009")
    assert (await recorder.wait_closed("/")).close_code == 1009


async def test_messages_up_to_the_limit_and_many_are_taken(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    connection = (await recorder.wait(lambda r: r.connection is not None)).connection
    assert connection is not None
    for _ in range(40):  # more than the library keeps for a reader that does not come
        await connection.send("x" * MAX_MESSAGE_BYTES)
    await asyncio.wait_for(await connection.ping(), 5)
    assert not task.done()


# --- The end that comes from here ----------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, "hangup"), (1001, "shutdown"), (1011, "x")])
async def test_close_tells_the_server_code_and_reason(
    recorder: Recorder, start: Start, code: int, reason: str
) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(3))
    await sink.close(code, reason)
    await task
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (code, reason)
    assert recording.messages == numbered(3)


async def test_close_while_connecting_without_frames_gives_up_at_once(start: Start) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await sink.close(1000, "stopped")
            await task
    assert sink.frames_sent == 0


async def test_close_while_connecting_with_frames_delivers_them(
    stalled: StalledServer, start: Start
) -> None:
    stalled.hold_handshake = True
    sink, task = start(stalled.url)
    offer(sink, numbered(30))
    await until(lambda: stalled.asked)
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    await asyncio.sleep(0)
    stalled.answer()
    stalled.read_on()
    await closing
    await task
    assert stalled.frames == numbered(30)
    assert (stalled.close_code, stalled.close_reason) == (1000, "hangup")
    assert (sink.frames_sent, sink.backlog.dropped) == (30, 0)


async def test_close_while_connecting_in_vain_with_frames_ends_in_time(
    start: Start, soon: float
) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        offer(sink, numbered(30))
        await asyncio.sleep(0)
        async with asyncio.timeout(soon + 1):
            await sink.close(1000, "hangup")
            await task
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 30, 0)


async def test_close_at_the_moment_the_connect_times_out_ends(start: Start) -> None:
    async with answering(None) as port:
        sink, task = start(f"ws://127.0.0.1:{port}/", connect_timeout=60)
        await until(lambda: sink._connector._timeout)
        timeout = sink._connector._timeout
        assert timeout is not None
        timeout.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        assert timeout.expired()
        assert not task.done()
        await sink.close(1000, "hangup")
        await asyncio.wait([task], timeout=1)
    assert task.done()


async def test_close_after_the_connect_failed_ends_at_once(start: Start) -> None:
    sink, task = start(f"ws://127.0.0.1:{unused_port()}/")
    offer(sink, numbered(4))
    await failure(task)
    async with asyncio.timeout(1):
        await sink.close(1011, "sink-gone")
    assert sink.backlog.dropped == 4


async def test_close_sends_what_waits_before_it_closes(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    closing = asyncio.create_task(sink.close(1001, "shutdown"))
    await asyncio.sleep(0)
    stalled.read_on()
    await closing
    await task
    assert stalled.frames == numbered(count + 100)
    assert (stalled.close_code, stalled.close_reason) == (1001, "shutdown")
    assert (sink.frames_sent, sink.backlog.dropped) == (count + 100, 0)


async def test_close_towards_a_stalled_server_ends_in_time_and_counts_what_is_lost(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    sent = sink.frames_sent
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await failure(task)
    assert sink.frames_sent <= sent
    assert (sink.backlog.dropped, len(sink.backlog)) == (count + 100 - sink.frames_sent, 0)


async def test_close_towards_a_stalled_server_with_nothing_waiting_ends_in_time(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await task


async def test_close_when_the_server_breaks_off_with_frames_waiting_ends_at_once(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    closing = asyncio.create_task(sink.close(1000, "stopped"))
    await asyncio.sleep(0)
    stalled.transport.abort()
    async with asyncio.timeout(1):
        await closing
        assert isinstance(await failure(task), SinkLost)
    assert (sink.backlog.dropped, len(sink.backlog)) == (count - sink.frames_sent, 0)


async def test_close_after_a_close_frame_without_an_end_of_tcp_ends_in_time(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url, ping_interval=60)
    await opened(sink)
    stalled.send_close(1000)
    await until(lambda: sink._connection is not None and sink._connection.protocol.close_rcvd)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "stopped")
        await task


async def test_close_at_the_moment_of_the_servers_close_frame_counts_what_has_not_arrived(
    stalled: StalledServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    closing: list[asyncio.Task[None]] = []
    on_closing = Sink._on_closing

    def close_as_well(sink: Sink, connection: Connection) -> None:
        on_closing(sink, connection)
        closing.append(asyncio.create_task(sink.close(1000, "stopped")))

    monkeypatch.setattr(Sink, "_on_closing", close_as_well)
    sink, task = start(stalled.url, ping_interval=60)
    await opened(sink)
    offer(sink, numbered(3))
    stalled.send_close(1001)
    await until(lambda: closing)
    stalled.transport.abort()
    async with asyncio.timeout(5):
        await asyncio.gather(task, *closing, return_exceptions=True)
    assert sink._connection is None
    assert sink.frames_sent + sink.backlog.dropped == 3
    assert faults == []


async def test_frames_after_close_are_counted(recorder: Recorder, start: Start) -> None:
    sink, task = start(recorder.url())
    await opened(sink)
    offer(sink, numbered(2))
    await sink.close(1000, "stopped")
    await task
    offer(sink, numbered(2, 2), before=2)
    assert sink.frames_sent == 2


# --- The end while the server is away ------------------------------------------------------------


async def test_close_between_attempts_with_nothing_waiting_ends_at_once(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    await until(lambda: retried)
    async with asyncio.timeout(1):
        await sink.close(1000, "stopped")
        await task
    assert len(fickle.asked) == 1


async def test_close_while_the_server_is_away_goes_on_trying_until_what_waits_is_delivered(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    fickle.refusals = [(503, "")] * 5
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    async with asyncio.timeout(5):
        await sink.close(1000, "hangup")
        await task
    assert len(fickle.asked) == 6
    assert fickle.frames == numbered(20)
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (20, 0, 0)


async def test_close_while_the_server_is_away_ends_in_time(
    fickle: FickleServer, start: Start, waits: Waits, soon: float
) -> None:
    fickle.refusals = [(503, "")] * 10_000
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=0.02)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    async with asyncio.timeout(soon + 1):
        await sink.close(1000, "hangup")
    await asyncio.wait([task], timeout=1)
    assert task.done()
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


@pytest.mark.parametrize("hurried_first", [False, True])
async def test_hurried_close_between_attempts_with_frames_waiting_tries_once_more(
    fickle: FickleServer, start: Start, waits: Waits, hurried_first: bool
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    if hurried_first:
        sink.hurry()
    closing = asyncio.create_task(sink.close(1001, "shutdown"))
    await asyncio.sleep(0)
    sink.hurry()
    async with asyncio.timeout(1):
        await closing
        await task
    assert len(fickle.asked) == 2
    assert fickle.frames == numbered(20)
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (20, 0, 0)


async def test_hurried_close_between_attempts_with_frames_waiting_gives_up_when_that_fails(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")] * 9
    sink, task = start(fickle.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    offer(sink, numbered(20))
    await until(lambda: retried)
    sink.hurry()
    async with asyncio.timeout(1):
        await sink.close(1001, "shutdown")
    assert isinstance(await failure(task), SinkUnreachable)
    assert len(fickle.asked) == 2
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


@pytest.mark.parametrize("was_open", [False, True])
async def test_close_between_attempts_ends_in_time_when_the_last_one_hangs(
    fickle: FickleServer,
    stalled: StalledServer,
    start: Start,
    waits: Waits,
    soon: float,
    was_open: bool,
) -> None:
    waits(3600)
    fickle.refusals = [] if was_open else [(503, "")]
    sink, task = start(
        fickle.url, reconnect_interval=3600, reconnect_attempts=0, connect_timeout=60
    )
    retried = retries_of(sink)
    if was_open:
        await opened(sink)
        fickle.break_off()
    await until(lambda: retried)
    offer(sink, numbered(20))
    stalled.hold_handshake = True
    sink._connector._url = stalled.url
    sink.hurry()
    async with asyncio.timeout(soon + 1):
        await sink.close(1001, "shutdown")
        await asyncio.wait([task])
    assert stalled.asked
    assert (sink.frames_sent, sink.backlog.dropped, len(sink.backlog)) == (0, 20, 0)


async def test_close_when_the_server_came_back_with_a_backlog_too_large_for_it_ends_in_time(
    fickle: FickleServer, stalled: StalledServer, start: Start, waits: Waits, soon: float
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")]
    sink, task = start(fickle.url, reconnect_interval=3600, reconnect_attempts=0, backlog=600)
    retried = retries_of(sink)
    offer(sink, numbered(25_000))
    await until(lambda: retried)
    sink._connector._url = stalled.url
    sink.hurry()
    async with asyncio.timeout(soon + 2):
        await sink.close(1001, "shutdown")
        await asyncio.wait([task])
    assert 0 < sink.frames_sent < 25_000
    assert sink.frames_sent + sink.backlog.dropped == 25_000
