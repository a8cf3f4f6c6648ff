"""What a sink does with a format that is not raw: all its hooks, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from audiofork.link.messages import ServerCommand
from audiofork.relay import outlet
from audiofork.relay.formats.base import (
    Audio,
    Command,
    Dtmf,
    Mark,
    Meaning,
    Message,
    MessageFormat,
    Reply,
    Several,
    Text,
)
from audiofork.relay.sink_states import SinkState
from testbed.recorder import Recorder
from tests.relay.peers import FickleServer, StalledServer, number, numbered, until
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

PADDING = "." * 500  # that a frame takes more on the wire than it is long


class TellingFormat(MessageFormat):
    """Texts that say what they stand for; audio is told by the numbers that frames bear.

    Attributes:
        openings: How many it has made.
    """

    def __init__(self) -> None:
        self.openings = 0

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        self.openings += 1
        return f"start {self.openings}", b"\xff" * 4

    def audio(self, frames: Sequence[bytes], number_: int) -> Sequence[Message]:
        told = " ".join(str(number(frame)) for frame in frames)
        return (f"audio {number_}: {told} {PADDING}",)

    def dtmf(self, key: Dtmf, number_: int) -> Sequence[Message]:
        return f"press {key.digit} {number_}", f"release {key.digit}"

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:
        return (f"stop {reason}",)

    def meaning(self, message: Message) -> Meaning:
        if isinstance(message, bytes):
            return Audio(message, 8000)
        kind, _, rest = message.partition(" ")
        meanings: dict[str, Meaning] = {
            "say": Text(rest),
            "clear": Command(ServerCommand.CLEAR),
            "mark": Command(ServerCommand.MARK, rest),
            "ask": Several((Text(rest), Reply((f"about {rest}", b"\xff" * 4)))),
        }
        return meanings.get(kind)

    def payload_bytes(self, frame_bytes: int) -> int:
        return len(PADDING) + 12


def audio(*numbers: int, at: int | None = None) -> str:
    """Return the message of these frames."""
    first = numbers[0] if at is None else at
    return f"audio {first}: {' '.join(map(str, numbers))} {PADDING}"


def texts(messages: Sequence[Message]) -> list[str]:
    """Return what a server has got, without the padding; a binary message is "binary"."""
    shown = []
    for message in messages:
        if isinstance(message, bytes) and message.startswith(b"\xff"):
            shown.append("binary")
        else:
            text = message.decode() if isinstance(message, bytes) else message
            shown.append(text.removesuffix(PADDING).strip())
    return shown


def frames_in(messages: Sequence[Message]) -> list[int]:
    """Return the numbers of the frames that a server has got."""
    audio = [text.partition(": ")[2] for text in texts(messages) if text.startswith("audio")]
    return [int(one) for numbers in audio for one in numbers.split()]


async def test_opening_goes_first_and_closing_last(recorder: Recorder, start: Start) -> None:
    sink, task = start(recorder.url(), format=TellingFormat())
    offer(sink, numbered(2))
    await opened(sink)
    offer(sink, numbered(1, 2), before=2)
    await sink.close(1000, "hangup")
    await task
    recording = await recorder.wait_closed("/")
    assert recording.messages == [
        "start 1",
        b"\xff" * 4,
        audio(0),
        audio(1),
        audio(2),
        "stop hangup",
    ]
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    assert (sink.frames_sent, sink.backlog.dropped) == (3, 0)


async def test_each_connection_gets_an_opening_of_its_own_before_what_waited(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, format=TellingFormat(), reconnect_attempts=0)
    await opened(sink)
    offer(sink, numbered(3))
    await until(lambda: len(fickle.frames) == 5 and all_acknowledged(sink))
    retried = retries_of(sink)
    fickle.break_off()
    await until(lambda: retried)
    offer(sink, numbered(2, 3), before=3)
    await until(lambda: len(fickle.frames_of) == 2 and len(fickle.frames_of[1]) == 4)
    first, second = map(texts, fickle.frames_of)
    assert first == ["start 1", "binary", "audio 0: 0", "audio 1: 1", "audio 2: 2"]
    assert second == ["start 2", "binary", "audio 3: 3", "audio 4: 4"]


async def test_server_that_is_back_gets_no_opening_before_it_is_proved(
    fickle: FickleServer, start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.sink.PROOF_TIMEOUT_S", 0.05)
    telling = TellingFormat()
    sink, _ = start(fickle.url, format=telling, reconnect_attempts=0)
    await opened(sink)
    fickle.answers_pings = False
    fickle.break_off()
    await until(lambda: sink.state is SinkState.PROVING)
    assert telling.openings == 1
    await until(lambda: telling.openings == 2)
    assert sink.state is SinkState.OPEN


async def test_several_frames_are_asked_for_as_one_message(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=TellingFormat(), frame_ms=60)
    await opened(sink)
    offer(sink, numbered(8))
    assert (sink.frames_sent, len(sink.backlog)) == (6, 2)
    await sink.close(1000, "stopped")
    await task
    recording = await recorder.wait_closed("/")
    assert recording.messages[2:] == [audio(0, 1, 2), audio(3, 4, 5), audio(6, 7), "stop stopped"]


# --- Events --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_ms", [20, 60])
async def test_event_goes_between_the_frames_that_it_came_between(
    recorder: Recorder, start: Start, frame_ms: int
) -> None:
    sink, task = start(recorder.url(), format=TellingFormat(), frame_ms=frame_ms)
    await opened(sink)
    offer(sink, numbered(4))
    sink.send_event(Dtmf("5"))
    assert sink.frames_sent == 4
    offer(sink, numbered(3, 4), before=4)
    await sink.close(1000, "hangup")
    await task
    got = texts((await recorder.wait_closed("/")).messages)
    event = got.index("press 5 4")
    assert got[event + 1] == "release 5"
    assert frames_in(got[:event]) == [0, 1, 2, 3]
    assert frames_in(got[event:]) == [4, 5, 6]


async def test_events_and_frames_before_the_connection_go_in_their_order(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=TellingFormat(), frame_ms=100)
    sink.send_event(Dtmf("1"))
    offer(sink, numbered(2))
    sink.send_event(Dtmf("2"))
    sink.send_event(Mark("of which the format knows nothing"))
    sink.send_event(Dtmf("3"))
    offer(sink, numbered(7, 2), before=2)
    await sink.close(1000, "hangup")
    await task
    assert texts((await recorder.wait_closed("/")).messages) == [
        *("start 1", "binary", "press 1 0", "release 1", "audio 0: 0 1"),
        *("press 2 2", "release 2", "press 3 2", "release 3"),
        *("audio 2: 2 3 4 5 6", "audio 7: 7 8", "stop hangup"),
    ]


async def test_event_keeps_its_place_when_the_frames_before_it_are_dropped(
    recorder: Recorder, start: Start
) -> None:
    sink, task = start(recorder.url(), format=TellingFormat(), backlog=0.1)
    offer(sink, numbered(3))
    sink.send_event(Dtmf("9"))
    offer(sink, numbered(6, 3), before=3)
    assert sink.backlog.dropped == 4
    await sink.close(1000, "hangup")
    await task
    got = texts((await recorder.wait_closed("/")).messages)
    assert got[2:5] == ["press 9 3", "release 9", "audio 4: 4"]


async def test_events_beyond_the_limit_lose_the_oldest(
    recorder: Recorder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "MOST_EVENTS", 3)
    sink, task = start(recorder.url(), format=TellingFormat())
    for digit in "12345":
        sink.send_event(Dtmf(digit))
    offer(sink, numbered(1))
    await sink.close(1000, "hangup")
    await task
    got = texts((await recorder.wait_closed("/")).messages)
    assert [text for text in got if text.startswith("press")] == [
        "press 3 0",
        "press 4 0",
        "press 5 0",
    ]


async def test_event_alone_does_not_keep_a_fork_alive(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    waits(3600)
    fickle.refusals = [(503, "")] * 9
    sink, task = start(
        fickle.url, format=TellingFormat(), reconnect_attempts=0, reconnect_interval=3600
    )
    retried = retries_of(sink)
    await until(lambda: retried)
    sink.send_event(Dtmf("1"))
    async with asyncio.timeout(1):
        await sink.close(1000, "hangup")
        await task
    assert len(fickle.asked) == 1


# --- What is lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_ms", [20, 60])
async def test_frames_and_events_of_a_broken_connection_go_over_the_next_in_order(
    fickle: FickleServer, start: Start, waits: Waits, frame_ms: int
) -> None:
    sink, _ = start(
        fickle.url,
        format=TellingFormat(),
        frame_ms=frame_ms,
        reconnect_attempts=0,
        backlog=600,
        latency_budget=1,
    )
    await opened(sink)
    await until(lambda: fickle.connection)
    fickle.stop_reading()
    count = 0
    while len(sink.backlog) < 10:
        if count % 3 == 0:
            sink.send_event(Dtmf(str(count % 10)))
        offer(sink, numbered(1, count), before=count)
        count += 1
    written = sink.frames_sent
    fickle.break_off()
    await until(lambda: sink._connection is None)
    assert sink.frames_sent < written
    assert sink.frames_sent + len(sink.backlog) == count
    given_back = sink.frames_sent
    await until(lambda: frames_in(fickle.frames[-1:])[-1:] == [count - 1])
    assert frames_in(fickle.frames_of[1]) == list(range(given_back, count))
    got = texts(fickle.frames_of[1])
    assert got[:2] == ["start 2", "binary"]
    presses = [int(text.split()[2]) for text in got if text.startswith("press")]
    assert presses[-1] == (count - 1) // 3 * 3
    assert presses == list(range(presses[0], count, 3))
    assert given_back <= presses[0] <= given_back + 3
    for press in presses:
        place = got.index(f"press {press % 10} {press}")
        assert all(one < press for one in frames_in(got[:place]))
        assert all(one >= press for one in frames_in(got[place:]))
    assert (sink.frames_sent, sink.backlog.dropped) == (count, 0)


async def test_frames_that_a_stalled_server_never_got_are_counted_as_dropped(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url, format=TellingFormat())
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(20, count), before=count)
    await sink.close(1000, "stopped")
    await failure(task)
    assert len(sink.backlog) == 0
    assert sink.frames_sent + sink.backlog.dropped == count + 20


async def test_budget_follows_from_what_a_frame_takes_on_the_wire(
    stalled: StalledServer, soon: float, start: Start
) -> None:
    sink, _ = start(stalled.url, format=TellingFormat(), latency_budget=0.2)
    await opened(sink)
    offer_until_stalled(sink)
    assert sink._connection is not None
    held = sink._connection.transport.get_write_buffer_size()
    assert held <= (10 + 1) * (len(PADDING) + 30)


# --- What the server sends -----------------------------------------------------------------------


async def test_message_of_the_server_is_told_as_what_it_means(
    fickle: FickleServer, start: Start
) -> None:
    sink, task = start(fickle.url, format=TellingFormat())
    told: list[object] = []
    sink.on_text = sink.on_audio = sink.on_command = told.append
    await until(lambda: fickle.connection)
    assert fickle.connection is not None
    for message in "say hello", b"\1\2", "mark 7", "nonsense", "", "clear", "say bye":
        await fickle.connection.send(message)
    await until(lambda: "bye" in told)
    assert told == [
        "hello",
        Audio(b"\1\2", 8000),
        Command(ServerCommand.MARK, "7"),
        Command(ServerCommand.CLEAR),
        "bye",
    ]
    assert not task.done()


async def test_message_that_the_format_answers_is_told_and_answered_before_what_waits(
    recorder: Recorder, start: Start
) -> None:
    sink, _ = start(recorder.url(), format=TellingFormat(), frame_ms=100)
    told: list[object] = []
    sink.on_text = told.append
    await opened(sink)
    offer(sink, numbered(1))
    recording = await recorder.wait_messages("/", 2)
    assert recording.connection is not None
    await recording.connection.send("ask tea")
    recording = await recorder.wait_messages("/", 4)
    assert told == ["tea"]
    assert recording.messages[2:4] == ["about tea", b"\xff" * 4]


async def test_server_that_asks_and_does_not_read_gets_no_more_answers(
    stalled: StalledServer, start: Start
) -> None:
    sink, _ = start(stalled.url, format=TellingFormat())
    await opened(sink)
    assert sink._connection is not None
    transport = sink._connection.transport
    for _ in range(10_000):
        sink._take("ask " + PADDING)
        if transport.get_write_buffer_size() > 1_000_000:
            break
    assert 0 < transport.get_write_buffer_size() < 1_000_000


async def test_answer_of_the_format_is_left_out_while_the_connection_closes(
    recorder: Recorder, start: Start
) -> None:
    sink, _ = start(recorder.url(), format=TellingFormat())
    await opened(sink)
    sink._outlet.shut()
    sink._take("ask tea")
    await sink.close(1000, "bye")
    recording = await recorder.wait_closed("/")
    assert "about tea" not in recording.messages
