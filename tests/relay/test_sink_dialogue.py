"""What a profile has a server told, and waits for it to say: before audio, and at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from audiofork.errors import SinkLost
from audiofork.link.dialogue import Dialogue
from audiofork.relay.formats.dialogue import WithDialogue
from audiofork.relay.formats.raw import RawFormat
from audiofork.relay.sink import Sink
from audiofork.relay.sink_states import SinkState
from testbed.recorder import Recorder, Recording
from tests.relay.peers import numbered, until
from tests.relay.sinks import Start, Waits, all_acknowledged, failure, offer, opened, retries_of

pytestmark = pytest.mark.usefixtures("nothing_left")

FOREVER = 25.0


def said(**dialogue: Any) -> WithDialogue:
    return WithDialogue(RawFormat(), Dialogue(**dialogue), 20)


def texts_of(sink: Sink) -> list[str]:
    """Return the list to which a sink's texts are going to be added."""
    texts: list[str] = []
    sink.on_text = texts.append
    return texts


async def told(recorder: Recorder, text: str, number: int = 0) -> ServerConnection:
    """Wait until a connection has been sent a text; return the connection."""

    def has_it(recording: Recording) -> bool:
        return recording in recorder.recordings[number:] and text in recording.messages

    connection = (await recorder.wait(has_it)).connection
    assert connection is not None
    return connection


# --- Before audio --------------------------------------------------------------------------------


async def test_audio_waits_until_the_server_has_answered_the_opening(
    recorder: Recorder, start: Start
) -> None:
    hello = said(opening="hello", opening_answer='"Started"')
    sink, _ = start(recorder.url(), format=hello)
    texts = texts_of(sink)
    connection = await told(recorder, "hello")
    offer(sink, numbered(3))
    await connection.send('{"message": "Info"}')
    await until(lambda: texts)
    assert (sink.state, len(sink.backlog)) == (SinkState.PROVING, 3)
    await connection.send('{"message": "Started"}')
    recording = await recorder.wait_messages("/", 4)
    offer(sink, numbered(1, 3), before=3)
    await recorder.wait_messages("/", 5)
    assert recording.messages == ["hello", *numbered(4)]
    assert texts == ['{"message": "Info"}', '{"message": "Started"}']


async def test_server_that_does_not_answer_the_opening_counts_as_one_that_cannot_be_reached(
    recorder: Recorder, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.retry.HEALTHY_S", 0.01)  # less than the answer may take
    hello = said(opening="hello", opening_answer="Started")
    sink, task = start(
        recorder.url(),
        format=hello,
        connect_timeout=0.5,
        reconnect_attempts=2,
        reconnect_interval=0.01,
    )
    retried = retries_of(sink)
    offer(sink, numbered(3))
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error) == "closed by us with 1008 no answer to the opening within 0.5 s"
    assert [attempt for attempt, _ in retried] == [2]
    assert [one.messages for one in recorder.recordings] == [["hello"], ["hello"]]
    assert len(sink.backlog) == 3


@pytest.mark.parametrize("code", [None, 1000, 1011, 4001])
async def test_what_the_server_says_in_place_of_its_answer_is_told_with_the_end(
    recorder: Recorder, start: Start, code: int | None
) -> None:
    hello = said(opening="hello", opening_answer="Started")
    sink, task = start(recorder.url(), format=hello, connect_timeout=0.2, reconnect_attempts=1)
    connection = await told(recorder, "hello")
    await connection.send('{"error": "no\r\nmodel"}')
    if code is not None:
        await connection.close(code)
    expected = (
        f"the server closed with {code}" if code else "closed by us with 1008 no answer to the"
    )
    error = str(await failure(task))
    assert error.startswith(expected)
    assert error.endswith('; before that it said: {"error": "no??model"}')


async def test_what_a_server_says_after_its_answer_is_not_told_with_the_end(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=said(opening="hello", opening_answer="Started"))
    connection = await told(recorder, "hello")
    await connection.send("no")
    await connection.send("Started")
    await connection.send("what the caller says")
    await connection.close(4001, "enough")
    assert str(await failure(task)) == "the server closed with 4001 enough"


async def test_each_connection_has_to_answer_the_opening_anew(
    recorder: Recorder, start: Start, waits: Waits
) -> None:
    hello = said(opening="hello", opening_answer="Started")
    sink, _ = start(recorder.url(), format=hello, reconnect_attempts=0)
    first = await told(recorder, "hello")
    await first.send("Started")
    await until(lambda: sink.state is SinkState.OPEN)
    offer(sink, numbered(2))
    await until(lambda: all_acknowledged(sink))
    first.transport.abort()
    second = await told(recorder, "hello", number=1)
    offer(sink, numbered(2, 2), before=2)
    assert len(sink.backlog) == 2
    await second.send("Started")
    await until(lambda: len(recorder.recordings[1].messages) == 3)
    assert recorder.recordings[1].messages == ["hello", *numbered(2, 2)]
    assert sink.reconnects == 1


async def test_close_before_the_answer_still_delivers_what_waits(
    recorder: Recorder, start: Start
) -> None:
    hello = said(opening="hello", opening_answer="Started", closing="bye", closing_wait_s=0)
    sink, task = start(recorder.url(), format=hello)
    connection = await told(recorder, "hello")
    offer(sink, numbered(3))
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    await asyncio.sleep(0)
    await connection.send("Started")
    await closing
    await task
    recording = await recorder.wait_closed("/")
    assert recording.messages == ["hello", *numbered(3), "bye"]
    assert (sink.frames_sent, sink.backlog.dropped) == (3, 0)


async def test_server_that_does_not_answer_at_the_end_is_tried_again_for_what_waits(
    recorder: Recorder, start: Start, waits: Waits
) -> None:
    hello = said(opening="hello", opening_answer="Started")
    sink, task = start(recorder.url(), format=hello, connect_timeout=0.1, reconnect_attempts=0)
    await told(recorder, "hello")
    offer(sink, numbered(3))
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    second = await told(recorder, "hello", number=1)
    await second.send("Started")
    async with asyncio.timeout(5):
        await closing
        await task
    assert recorder.recordings[0].messages == ["hello"]
    assert recorder.recordings[1].messages == ["hello", *numbered(3)]
    assert (sink.frames_sent, sink.backlog.dropped) == (3, 0)


# --- At the end ----------------------------------------------------------------------------------


async def test_results_that_follow_the_closing_text_are_taken_until_the_server_closes(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=said(closing="bye", closing_wait_s=FOREVER))
    texts = texts_of(sink)
    await opened(sink)
    offer(sink, numbered(2))
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    connection = await told(recorder, "bye")
    for number in range(3):
        await connection.send(f"result {number}")
    await connection.close(1000, "done")
    async with asyncio.timeout(5):
        await closing
        await task
    assert texts == ["result 0", "result 1", "result 2"]
    assert recorder.recordings[0].messages == [*numbered(2), "bye"]
    assert len(recorder.recordings) == 1


async def test_server_that_leaves_the_close_to_us_is_closed_after_its_last_text(
    recorder: Recorder, start: Start
) -> None:
    dialogue = said(closing="bye", closing_answer="EndOf", closing_wait_s=FOREVER)
    sink, task = start(recorder.url(), format=dialogue)
    texts = texts_of(sink)
    await opened(sink)
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    connection = await told(recorder, "bye")
    await connection.send("result")
    await until(lambda: texts)
    assert not closing.done()
    await connection.send("EndOfTranscript")
    async with asyncio.timeout(5):
        await closing
        await task
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    assert texts == ["result", "EndOfTranscript"]


@pytest.mark.parametrize("wait_s", [0.0, 0.02])
async def test_server_that_says_no_more_is_closed_when_its_time_is_over(
    recorder: Recorder, start: Start, wait_s: float
) -> None:
    sink, task = start(recorder.url(), format=said(closing="bye", closing_wait_s=wait_s))
    await opened(sink)
    async with asyncio.timeout(5):
        await sink.close(1000, "hangup")
        await task
    recording = await recorder.wait_closed("/")
    assert (recording.messages, recording.close_code) == (["bye"], 1000)


async def test_shutdown_cuts_the_wait_for_results_short_and_still_closes_in_order(
    recorder: Recorder, start: Start, soon: float
) -> None:
    sink, task = start(recorder.url(), format=said(closing="bye", closing_wait_s=FOREVER))
    await opened(sink)
    sink.hurry()
    async with asyncio.timeout(5):
        await sink.close(1001, "shutdown")
        await task
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1001, "shutdown")


async def test_shutdown_amid_the_wait_for_results_cuts_it_short(
    recorder: Recorder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, task = start(recorder.url(), format=said(closing="bye", closing_wait_s=FOREVER))
    await opened(sink)
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    await told(recorder, "bye")
    monkeypatch.setattr("audiofork.relay.sink.CLOSE_TIMEOUT_S", 0.1)
    sink.hurry()
    async with asyncio.timeout(5):
        await closing
        await task
    assert (await recorder.wait_closed("/")).close_code == 1000


async def test_server_that_breaks_off_after_the_closing_text_is_not_waited_for(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=said(closing="bye", closing_wait_s=FOREVER))
    await opened(sink)
    offer(sink, numbered(2))
    closing = asyncio.create_task(sink.close(1000, "hangup"))
    connection = await told(recorder, "bye")
    await until(lambda: all_acknowledged(sink))
    connection.transport.abort()
    async with asyncio.timeout(5):
        await closing
        await task
    assert (sink.frames_sent, sink.backlog.dropped) == (2, 0)


async def test_no_message_is_too_short_where_the_server_takes_none(
    recorder: Recorder, start: Start
) -> None:
    full = WithDialogue(RawFormat(), Dialogue(full_messages=True), 100)
    sink, task = start(recorder.url(), format=full, frame_ms=100)
    await opened(sink)
    offer(sink, numbered(6))
    await sink.close(1000, "hangup")
    await task
    recording = await recorder.wait_closed("/")
    assert [len(message) for message in recording.messages] == [1600, 1600]
    assert recording.audio == b"".join(numbered(6)) + bytes(4 * 320)
    assert sink.frames_sent == 6


# --- What the format makes of it -----------------------------------------------------------------


def test_messages_of_audio_are_counted_for_each_connection() -> None:
    one = said(closing='{"last": {messages}}')
    assert not one.is_verbatim
    for count in (3, 1):
        one.opening(0, 0)
        for number in range(count):
            one.audio((b"\1" * 320,), number)
        assert one.closing("hangup", count, 0) == (f'{{"last": {count}}}',)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_short_message_is_filled_up_with_silence_where_that_is_wished(count: int) -> None:
    frames = numbered(count)
    plain = WithDialogue(RawFormat(), Dialogue(closing="bye"), 100)
    full = WithDialogue(RawFormat(), Dialogue(full_messages=True), 100)
    assert plain.audio(frames, 0) == (b"".join(frames),)
    assert full.audio(frames, 0) == (b"".join(frames) + bytes(320 * (5 - count)),)
