"""The way of frames to real servers: messages, several frames in one, servers that are slow."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.errors import SinkLost
from audiofork.relay.outlet import encode
from testbed.recorder import Recorder
from tests.relay.peers import FickleServer, StalledServer, number, numbered, until
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


# --- Messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "82 80"),
        (125, "82 fd"),
        (126, "82 fe 00 7e"),
        (320, "82 fe 01 40"),
        (65_535, "82 fe ff ff"),
        (65_536, "82 ff 00 00 00 00 00 01 00 00"),
    ],
)
def test_message_is_final_masked_and_unmasks_to_the_payload(length: int, header: str) -> None:
    payload = (bytes(range(256)) * 256)[:length]
    frame = encode(payload)
    begin = len(bytes.fromhex(header))
    assert frame[:begin] == bytes.fromhex(header)
    mask, masked = frame[begin : begin + 4], frame[begin + 4 :]
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked)) == payload


def test_binary_message_masks_each_frame_anew() -> None:
    assert len({encode(bytes(320))[4:8] for _ in range(3000)}) > 2990


@pytest.mark.parametrize("frame_bytes", [320, 640, 65_532])
async def test_server_gets_exactly_the_payloads(
    recorder: Recorder, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(recorder.url("/a?b=c"), frame_bytes=frame_bytes)
    await opened(sink)
    frames = numbered(20, frame_bytes=frame_bytes)
    offer(sink, frames)
    recording = await recorder.wait_messages("/a?b=c", len(frames))
    assert recording.messages == frames
    assert sink.backlog.dropped == 0


async def test_largest_frame_arrives(recorder: Recorder, start: Start) -> None:
    sink, _ = start(recorder.url(), frame_bytes=65_535)
    await opened(sink)
    sink.send(b"\x5a" * 65_535)
    recording = await recorder.wait_messages("/", 1)
    assert recording.messages == [b"\x5a" * 65_535]


# --- A server that does not keep up --------------------------------------------------------------


async def test_frames_wait_while_the_server_does_not_read_and_then_arrive_in_order(
    stalled: StalledServer, start: Start
) -> None:
    sink, _ = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    sent = sink.frames_sent
    offer(sink, numbered(50, count), before=count)
    assert sink.frames_sent == sent
    assert len(sink.backlog) == 51
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= count + 50)
    offer(sink, numbered(50, count + 50), before=count + 50)
    await until(lambda: len(stalled.frames) >= count + 100)
    assert stalled.frames == numbered(count + 100)
    assert (sink.frames_sent, sink.backlog.dropped) == (count + 100, 0)


async def test_backlog_of_a_server_that_does_not_read_loses_the_oldest(
    stalled: StalledServer, start: Start
) -> None:
    sink, _ = start(stalled.url, backlog=0.2)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(29, count), before=count)
    assert (len(sink.backlog), sink.backlog.dropped) == (10, 20)
    stalled.read_on()
    await until(lambda: len(stalled.frames) >= count + 9)
    expected = [*range(count - 1), *range(count + 19, count + 29)]
    assert [number(frame) for frame in stalled.frames] == expected


@pytest.mark.parametrize("frame_bytes", [320, 640, 1280])
async def test_transport_holds_no_more_than_the_limit(
    stalled: StalledServer, soon: float, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(stalled.url, frame_bytes=frame_bytes)
    await opened(sink)
    offer_until_stalled(sink, frame_bytes)
    assert sink._connection is not None
    held = sink._connection.transport.get_write_buffer_size()
    assert held <= (10 + 1) * (8 + frame_bytes)


@pytest.mark.parametrize("full", [False, True], ids=["idle", "full"])
async def test_server_that_answers_no_ping_is_gone(
    stalled: StalledServer, start: Start, soon: float, full: bool
) -> None:
    sink, task = start(stalled.url, ping_interval=0.05)
    await opened(sink)
    if full:
        offer_until_stalled(sink)
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert "ping timeout" in str(error)


async def test_server_that_half_closes_with_frames_waiting_loses_none_uncounted(
    stalled: StalledServer, start: Start
) -> None:
    sink, task = start(stalled.url)
    await opened(sink)
    count = offer_until_stalled(sink)
    offer(sink, numbered(100, count), before=count)
    sent = sink.frames_sent
    stalled.transport.write_eof()

    def has_answered() -> bool:
        connection = sink._connection  # None: by now it is over
        return task.done() or (connection is not None and connection.protocol.eof_sent)

    await until(has_answered)
    stalled.read_on()
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert sink.frames_sent <= sent
    assert len(sink.backlog) == count + 100 - sink.frames_sent


@pytest.mark.parametrize("frame_bytes", [320, 1280])
async def test_kernel_never_holds_much_more_than_the_budget(
    stalled: StalledServer, start: Start, frame_bytes: int
) -> None:
    """Else minutes of audio would hide there: the kernel's buffers grow to megabytes."""
    sink, task = start(stalled.url, latency_budget=0.2, frame_bytes=frame_bytes)
    await opened(sink)
    for number_ in range(400):
        sink.send(numbered(1, number_, frame_bytes)[0])
        await asyncio.sleep(0.001)
    assert sink._outlet._unacked is not None
    sink._outlet._unacked.update()
    assert sink._outlet._unacked.not_sent <= (10 + 5) * (frame_bytes + 8)
    stalled.transport.abort()
    await failure(task)


# --- Several frames in one message ---------------------------------------------------------------


@pytest.mark.parametrize("frame_bytes", [320, 1280])
async def test_frames_are_joined_into_messages_of_so_many(
    fickle: FickleServer, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(fickle.url, frame_ms=100, frame_bytes=frame_bytes)
    await opened(sink)
    offer(sink, numbered(17, 0, frame_bytes))
    assert (sink.frames_sent, len(sink.backlog)) == (15, 2)
    await until(lambda: len(fickle.frames) == 3)
    assert fickle.frames == [b"".join(numbered(5, first, frame_bytes)) for first in (0, 5, 10)]


@pytest.mark.parametrize(("offered", "missing"), [(0, 5), (2, 3), (4, 1), (5, 5), (17, 3)])
async def test_missing_are_the_frames_that_the_next_message_lacks(
    fickle: FickleServer, start: Start, offered: int, missing: int
) -> None:
    sink, _ = start(fickle.url, frame_ms=100)
    await opened(sink)
    offer(sink, numbered(offered))
    assert sink.missing == missing


async def test_part_of_a_message_goes_when_the_time_of_a_message_is_over(
    fickle: FickleServer, start: Start
) -> None:
    sink, _ = start(fickle.url, frame_ms=60)
    await opened(sink)
    offer(sink, numbered(2))
    began = asyncio.get_running_loop().time()
    await until(lambda: fickle.frames)
    assert fickle.frames == [b"".join(numbered(2))]
    assert asyncio.get_running_loop().time() - began >= 0.055
    offer(sink, numbered(3, 2), before=2)
    await until(lambda: len(fickle.frames) == 2)
    assert fickle.frames[1] == b"".join(numbered(3, 2))


async def test_part_of_a_message_goes_before_the_close(fickle: FickleServer, start: Start) -> None:
    sink, task = start(fickle.url, frame_ms=1000)
    await opened(sink)
    offer(sink, numbered(57))
    async with asyncio.timeout(0.9):
        await sink.close(1000, "hangup")
        await task
    await until(lambda: len(fickle.frames) == 2)
    assert fickle.frames == [b"".join(numbered(50)), b"".join(numbered(7, 50))]
    assert (sink.frames_sent, sink.backlog.dropped) == (57, 0)


async def test_backlog_goes_in_whole_messages(
    fickle: FickleServer, start: Start, waits: Waits
) -> None:
    sink, _ = start(fickle.url, frame_ms=100, reconnect_attempts=0, reconnect_interval=0.02)
    await opened(sink)
    retried = retries_of(sink)
    await fickle.go()
    await until(lambda: retried)
    offer(sink, numbered(43))
    await fickle.come()
    await until(lambda: len(fickle.frames) == 9)
    assert b"".join(fickle.frames) == b"".join(numbered(43))
    assert [len(message) // 320 for message in fickle.frames] == [5] * 8 + [3]


async def test_message_longer_than_64_kib_arrives(recorder: Recorder, start: Start) -> None:
    sink, _ = start(recorder.url(), frame_bytes=192_000)
    await opened(sink)
    sink.send(b"\x5a" * 192_000)
    recording = await recorder.wait_messages("/", 1)
    assert recording.messages == [b"\x5a" * 192_000]
