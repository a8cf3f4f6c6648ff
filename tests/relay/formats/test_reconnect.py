"""Each format over real connections that break and stall: what is lost is told where it lay.

A frame is placed as a server of the format does it: by the positions of our own texts, by Twilio's
time stamps. The other formats have no way to tell; there the order alone is held against what went.
"""

from __future__ import annotations

import pytest

from audiofork.link.messages import Format
from audiofork.relay.formats.base import Dtmf, Mute
from testbed.blocks import decode, make_blocks
from tests.relay.formats.formats import ONE_WAY, make
from tests.relay.formats.reader import Reader
from tests.relay.peers import FickleServer, until
from tests.relay.sinks import Start, Waits, all_acknowledged, opened, retries_of

pytestmark = pytest.mark.usefixtures("nothing_left")

FRAMES = [decode(block) for block in make_blocks(1000, seed=81)]
NUMBER_OF = {frame: number for number, frame in enumerate(FRAMES)}
PLACING = [Format.RAW, Format.JSON, Format.TWILIO]  # raw with option M
OTHERS = [one for one in ONE_WAY if one not in PLACING]


def read(server: FickleServer) -> list[Reader]:
    """Return what each connection brought."""
    readers = []
    for messages in server.frames_of:
        readers.append(Reader())
        readers[-1].read(messages)
    return readers


def numbers(reader: Reader) -> list[int]:
    """Return which frames came."""
    return [NUMBER_OF[audio] for _, audio in reader.placed]


def places(reader: Reader) -> list[int]:
    """Return where they belong."""
    return [number for number, _ in reader.placed]


@pytest.mark.parametrize("frame_ms", [20, 60])
@pytest.mark.parametrize("format_", ONE_WAY)
async def test_next_connection_says_where_it_begins_and_what_was_dropped(
    fickle: FickleServer, start: Start, waits: Waits, format_: Format, frame_ms: int
) -> None:
    wishes = {"backlog": 0.24, "frame_ms": frame_ms, "reconnect_attempts": 0}
    sink, _ = start(fickle.url, format=make(format_), **wishes)
    await opened(sink)
    for frame in FRAMES[:6]:
        sink.send(frame)
    await until(lambda: len(fickle.frames_of) == 1 and all_acknowledged(sink))
    await until(lambda: sum(len(one.placed) for one in read(fickle)) == 6)  # and not TCP alone
    retried = retries_of(sink)
    fickle.break_off()
    await until(lambda: retried)
    for frame in FRAMES[6:36]:
        sink.send(frame)
    assert sink.backlog.dropped == 18
    await opened(sink)
    await until(lambda: len(fickle.frames_of) == 2 and all_acknowledged(sink))
    await until(lambda: sum(len(one.placed) for one in read(fickle)) == 18)
    first, second = read(fickle)
    if format_ in PLACING:
        assert (places(first), places(second)) == (numbers(first), numbers(second))
    assert (numbers(first), numbers(second)) == (list(range(6)), list(range(24, 36)))
    assert (first.lost_ms, second.lost_ms) == (0, 0)
    told = second.texts[0] if second.texts else {}
    if format_ in (Format.RAW, Format.JSON):
        assert (told["reconnects"], told["position_ms"], told["dropped_ms"]) == (1, 480, 360)
    else:
        assert second.texts == first.texts


@pytest.mark.parametrize("format_", ONE_WAY)
async def test_frames_that_a_stalled_connection_lost_leave_a_gap_that_is_told(
    fickle: FickleServer, start: Start, waits: Waits, format_: Format
) -> None:
    sink, _ = start(fickle.url, format=make(format_), backlog=0.1, reconnect_attempts=0)
    await opened(sink)
    await until(lambda: fickle.connection)
    fickle.stop_reading()
    count = 0
    while sink.backlog.dropped < 7:
        sink.send(FRAMES[count])
        count += 1
    fickle.read_on()
    await until(lambda: all_acknowledged(sink))
    sink.send(FRAMES[count])
    await until(lambda: len(read(fickle)[0].placed) == count + 1 - 7)
    (reader,) = read(fickle)
    came = [*range(count - 12), *range(count - 5, count + 1)]
    assert numbers(reader) == came
    if format_ is Format.RAW:
        return  # its texts come at the begin and at the end alone
    if format_ in PLACING:
        assert places(reader) == came
    assert reader.lost_ms == (140 if format_ is Format.JSON else 0)


@pytest.mark.parametrize("format_", ONE_WAY)
async def test_what_a_broken_connection_held_comes_again_at_its_own_place(
    fickle: FickleServer, start: Start, waits: Waits, format_: Format
) -> None:
    wishes = {"backlog": 60, "latency_budget": 1, "reconnect_attempts": 0}
    sink, _ = start(fickle.url, format=make(format_), **wishes)
    await opened(sink)
    count = 0

    def offer() -> None:
        nonlocal count
        if count % 10 == 0:
            sink.send_event(Dtmf("5"))
            sink.send_event(Mute(is_in=count % 20 == 10, is_out=False))
        sink.send(FRAMES[count])
        count += 1

    while count < 15:
        offer()
    await until(lambda: fickle.connection and all_acknowledged(sink))
    fickle.stop_reading()
    while len(sink.backlog) < 10:
        offer()
    fickle.break_off()
    await until(lambda: sink._connection is None)
    begin = sink.frames_sent
    await until(lambda: len(fickle.frames_of) == 2)
    await until(lambda: len(read(fickle)[1].placed) == count - begin)
    _, second = read(fickle)
    assert 0 < begin < count - 10
    assert numbers(second) == list(range(begin, count))
    if format_ in PLACING:
        assert places(second) == list(range(begin, count))
    if format_ is Format.JSON:
        wanted = [["in"] if number // 10 % 2 else [] for number in range(begin, count)]
        assert second.muted == wanted
