"""A leg that is let in, over real TCP: what it brings, what it says, and how it is closed."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from typing import cast

import pytest

from audiofork.relay.leg import Leg as LegSocket
from audiofork.relay.tcp import TcpSocket
from tests.relay.listener_stage import ListenerStage, Owner, audio, refused, stage_with
from tests.relay.peers import HANGUP, Leg, numbered, until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
async def stage() -> AsyncIterator[ListenerStage]:
    async with stage_with() as stage:
        yield stage


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"\x10\x3c\x02", "message 0x10 announces 15362 bytes"),
        (b"\x10\x00\x01", "message 0x10 has 1 bytes"),
        (b"\x01\x00\x10" + bytes(16), "a second UUID"),
        (b"\x00\x00\x00", "message 0x00 from Asterisk"),
        (b"\xff\x00\x01\x01", "message 0xff from Asterisk"),
    ],
    ids=["oversized", "odd audio", "second uuid", "hangup", "error"],
)
async def test_leg_that_breaks_the_protocol_is_refused_and_its_owner_told(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture, wire: bytes, text: str
) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    leg.send(wire)
    leg.send_audio(*numbered(2, 2))
    assert text in await refused(stage, leg, caplog)
    assert (owner.frames, owner.closed) == (numbered(2), 1)


async def test_other_messages_of_a_leg_are_passed_over(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    leg.send(b"\x03\x00\x015" + b"\x19\x00\x02\x01\x02" + b"\x02\x00\x00" + b"\x77\x00\x01x")
    leg.send_audio(*numbered(1))
    await until(lambda: owner.frames)
    assert owner.frames == numbered(1)
    assert (owner.closed, stage.listener.refused.total) == (0, 0)


@pytest.mark.parametrize("kind", range(0x10, 0x19))
@pytest.mark.parametrize("size", [320, 640, 15_360])
async def test_audio_of_any_kind_and_size_arrives(
    stage: ListenerStage, kind: int, size: int
) -> None:
    leg, owner = await stage.issued()
    frames = numbered(5, frame_bytes=size)
    for count, frame in enumerate(frames, 1):
        leg.send(bytes([kind]) + size.to_bytes(2, "big") + frame)
        await owner.wait_frames(count)
    assert owner.frames == frames
    assert (owner.closed, stage.listener.refused.total) == (0, 0)


async def received(stage: ListenerStage, *chunks: bytes) -> Owner:
    """Let a leg come whose bytes are read in these chunks; return its owner."""
    owner = Owner()
    fork_id = str(uuid.uuid4())
    stage.listener.issue(fork_id, owner)
    peer = await stage.connect()
    peer.send_uuid(fork_id)
    await until(lambda: owner.attached)
    assert owner.leg is not None
    for chunk in chunks:
        cast(TcpSocket, owner.leg).received(chunk)
    return owner


async def test_chunk_that_is_one_message_like_the_last_is_usual(stage: ListenerStage) -> None:
    frames = numbered(5)
    owner = await received(stage, *(audio(0x10, frame) for frame in frames))
    assert (owner.frames, owner.usual) == (frames, 4)


AB, CD = audio(0x10, b"ab"), audio(0x10, b"cd")


@pytest.mark.parametrize(
    ("chunks", "frames", "usual"),
    [
        ([AB, audio(0x12, b"cd"), audio(0x12, b"ef")], [b"ab", b"cd", b"ef"], 1),
        ([AB, audio(0x10, b"abcd"), audio(0x10, b"efgh")], [b"ab", b"abcd", b"efgh"], 1),
        ([AB, CD[:4], CD[4:] + AB, CD], [b"ab", b"cd", b"ab", b"cd"], 1),
        ([AB, CD + b"\x10", b"\x00\x02ab\x10", CD[1:]], [b"ab", b"cd", b"ab", b"cd"], 0),
        ([AB + CD, AB], [b"ab", b"cd", b"ab"], 1),
        ([AB, b"\x03\x00\x015", CD], [b"ab", b"cd"], 1),
        ([AB, b"\x77\x00\x05", CD, AB], [b"ab", b"ab"], 1),
    ],
    ids=[
        "another kind",
        "another size",
        "cut in the payload",
        "cut in the header",
        "two at once",
        "after dtmf",
        "payload that looks like a message",
    ],
)
async def test_frames_arrive_whole_among_usual_chunks_and_others(
    stage: ListenerStage, chunks: list[bytes], frames: list[bytes], usual: int
) -> None:
    owner = await received(stage, *chunks)
    assert (owner.frames, owner.usual) == (frames, usual)
    assert stage.listener.refused.total == 0


async def test_usual_chunk_after_a_hang_up_reaches_nobody(stage: ListenerStage) -> None:
    owner = await received(stage, AB, CD)
    assert owner.leg is not None
    owner.leg.hang_up()
    cast(TcpSocket, owner.leg).received(audio(0x10, b"ef"))
    assert (owner.frames, owner.usual) == ([b"ab", b"cd"], 1)


async def test_usual_chunk_after_a_refusal_reaches_nobody(stage: ListenerStage) -> None:
    owner = await received(stage, AB, b"\x00\x00\x00")
    cast(TcpSocket, owner.leg).received(audio(0x10, b"ef"))
    assert (owner.frames, owner.closed) == ([b"ab"], 1)


async def test_usual_frame_in_which_the_owner_hangs_up_is_the_last(stage: ListenerStage) -> None:
    owner = await received(stage, audio(0x10, b"ab"))
    leg = owner.leg
    assert leg is not None

    def hang_up(frame: bytes) -> None:
        owner.frames.append(frame)
        leg.hang_up()

    leg.on_usual = hang_up
    for _ in range(3):
        cast(TcpSocket, leg).received(audio(0x10, b"cd"))
    assert owner.frames == [b"ab", b"cd"]
    assert stage.listener.refused.total == 0


async def test_way_of_usual_frames_may_change_from_one_to_the_next(stage: ListenerStage) -> None:
    owner = await received(stage, audio(0x10, b"ab"), audio(0x10, b"ab"))
    other: list[bytes] = []
    assert owner.leg is not None
    owner.leg.on_usual = other.append
    cast(TcpSocket, owner.leg).received(audio(0x10, b"cd"))
    assert (owner.usual, other) == (1, [b"cd"])


# --- What a leg says -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(0x10, 0x19))
async def test_leg_is_spoken_to_in_the_kind_that_it_brings(stage: ListenerStage, kind: int) -> None:
    leg, owner = await stage.issued()
    leg.send(audio(kind, b"ab"))
    await until(lambda: owner.frames)
    assert owner.leg is not None
    owner.leg.speak(b"tone")
    owner.leg.hang_up()
    owner.leg.speak(b"too late")
    assert await leg.read_to_end() == audio(kind, b"tone") + HANGUP


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        (0x10, 8000),
        (0x11, 12_000),
        (0x12, 16_000),
        (0x13, 24_000),
        (0x14, 32_000),
        (0x15, 44_100),
        (0x16, 48_000),
        (0x17, 96_000),
        (0x18, 192_000),
    ],
)
async def test_spoken_rate_is_that_of_the_kind_and_not_of_the_size(
    stage: ListenerStage, kind: int, rate: int
) -> None:
    leg, owner = await stage.issued()
    leg.send(audio(kind, bytes(640)))
    await until(lambda: owner.frames)
    assert owner.leg is not None
    assert owner.leg.spoken_rate == rate


async def test_spoken_rate_of_a_leg_that_has_brought_nothing_is_not_known(
    stage: ListenerStage,
) -> None:
    _, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    assert owner.leg.spoken_rate == 0


async def test_leg_is_spoken_to_in_the_kind_that_it_brought_last(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    leg.send(audio(0x10, b"ab") + audio(0x12, b"ab") + b"\x03\x00\x015")
    await until(lambda: len(owner.frames) == 2)
    assert owner.leg is not None
    owner.leg.speak(b"tone")
    owner.leg.hang_up()
    assert await leg.read_to_end() == audio(0x12, b"tone") + HANGUP


@pytest.mark.parametrize(("size", "kind"), [(320, 0x10), (640, 0x12), (1920, 0x16), (4, 0x10)])
async def test_leg_that_has_brought_nothing_is_spoken_to_in_the_kind_of_the_size(
    stage: ListenerStage, size: int, kind: int
) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.speak(bytes(size))
    owner.leg.hang_up()
    assert await leg.read_to_end() == audio(kind, bytes(size)) + HANGUP


# --- The end --------------------------------------------------------------------------------------


async def test_leg_that_asterisk_closes_is_told_once_and_not_counted(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(2))
    await leg.close()
    await until(lambda: owner.closed)
    assert (owner.frames, owner.closed) == (numbered(2), 1)
    assert stage.listener.refused.total == 0
    await stage.check_other()


async def test_hang_up_sends_the_message_closes_and_tells_nobody(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.hang_up()
    owner.leg.hang_up()
    assert await leg.read_to_end() == HANGUP
    leg.send_audio(*numbered(2))
    await stage.check_other()
    assert (owner.frames, owner.closed) == ([], 0)
    assert stage.listener.refused.total == 0


async def test_leg_whose_call_goes_on_is_closed_on_our_side_alone(stage: ListenerStage) -> None:
    """There is no reset though Asterisk goes on sending."""
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.speak(b"tone")
    owner.leg.hang_up(call_goes_on=True)
    owner.leg.hang_up()
    assert owner.leg.speak(b"too late") is False
    leg.send_audio(*numbered(200))
    assert await leg.read_to_end() == audio(0x10, b"tone") + HANGUP
    leg.send_audio(*numbered(200))
    await stage.check_other()
    assert len(stage.listener._legs) == 2
    await leg.close()
    await until(lambda: len(stage.listener._legs) == 1)
    assert (owner.frames, owner.closed) == ([], 0)


async def test_leg_that_asterisk_does_not_close_is_closed_after_a_while(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.leg.LET_GO_S", 0.02)
    _, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.hang_up(call_goes_on=True)
    await until(lambda: len(stage.listener._legs) == 1)


async def test_close_waits_for_legs_whose_calls_go_on(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.hang_up(call_goes_on=True)
    closing = asyncio.create_task(stage.listener.close())
    assert await leg.read_to_end() == HANGUP
    assert not closing.done()
    await leg.close()
    await asyncio.wait_for(closing, 5)


async def test_leg_that_asterisk_does_not_read_takes_no_more_frames(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    spoken = 0
    while owner.leg.speak(bytes(15_360)):
        spoken += 1
        assert spoken < 10_000
        await asyncio.sleep(0)
    owner.leg.hang_up(call_goes_on=True)
    assert len(await leg.read_to_end()) == spoken * 15_363 + len(HANGUP)
    await leg.close()


async def test_hang_up_during_a_chunk_of_frames_stops_them(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)

    def hang_up(frame: bytes) -> None:
        owner.frames.append(frame)
        assert owner.leg is not None
        owner.leg.hang_up()

    owner.on_audio = hang_up
    leg.send(b"\x10\x00\x02ab" * 3)
    assert await leg.read_to_end() == HANGUP
    assert owner.frames == [b"ab"]
    assert stage.listener.refused.total == 0


# --- Frames that are read as a batch --------------------------------------------------------------


FIRST = bytes(320)


async def batched(stage: ListenerStage, batch_ms: int) -> tuple[Leg, Owner]:
    """Return a leg that has brought a frame, and whose reads are batched from then on."""
    leg, owner = await stage.issued()
    leg.send_audio(FIRST)
    await until(lambda: owner.frames)
    assert owner.leg is not None
    assert owner.leg.batch_reads(320, batch_ms)
    return leg, owner


async def test_frames_are_not_read_until_a_message_is_full(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 1000)
    leg.send_audio(*numbered(49))
    await stage.check_other()
    assert owner.frames == [FIRST]
    leg.send_audio(*numbered(50)[49:])
    await until(lambda: len(owner.frames) == 51)
    assert owner.frames == [FIRST, *numbered(50)]
    assert (owner.batches, owner.usual, owner.late) == (1, 50, 0)


async def test_frames_are_not_read_until_the_rest_of_a_message_is_there(
    stage: ListenerStage,
) -> None:
    leg, owner = await batched(stage, 1000)
    owner.missing = 3
    leg.send_audio(*numbered(50))
    await until(lambda: owner.batches == 1)
    leg.send_audio(*numbered(2))
    await stage.check_other()
    assert owner.batches == 1
    owner.missing = 50
    leg.send_audio(*numbered(3)[2:])
    await until(lambda: owner.batches == 2)
    leg.send_audio(*numbered(49))
    await stage.check_other()
    assert owner.frames == [FIRST, *numbered(50), *numbered(3)]
    assert (owner.batches, owner.late) == (2, 0)


async def test_frames_that_stay_too_few_are_read_in_time(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 100)
    for times in (1, 2):
        leg.send_audio(*numbered(3))
        await until(lambda: owner.batches == times)  # noqa: B023
        assert owner.frames == [FIRST] + numbered(3) * times
        assert owner.late == times


async def test_frame_after_a_pause_is_read_at_once(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 40)
    batching = owner.leg._batching  # type: ignore[union-attr]
    await until(lambda: batching.is_late)
    leg.send_audio(*numbered(1))
    await until(lambda: owner.batches == 1)
    assert owner.frames == [FIRST, *numbered(1)]
    assert not batching.is_late
    await until(lambda: batching.is_late)


async def test_batch_is_handed_on_at_once_to_who_takes_it_so(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 100)
    assert owner.leg is not None
    heaps: list[list[bytes]] = []
    owner.leg.on_batch = heaps.append
    leg.send_audio(*numbered(5))
    await until(lambda: owner.batches == 1)
    leg.send_audio(*numbered(3))
    await stage.check_other()
    owner.leg.read_rest()
    assert heaps == [numbered(5), numbered(3)]
    assert owner.frames == [FIRST]
    leg.send_audio(bytes(640), *numbered(1))
    await until(lambda: owner.batches == 2)
    assert owner.frames == [FIRST, bytes(640), *numbered(1)]  # of unlike length


async def test_end_of_the_connection_brings_what_was_not_read_yet(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 1000)
    leg.send_audio(*numbered(3))
    await leg.close()
    await until(lambda: owner.closed == 1)
    assert owner.frames == [FIRST, *numbered(3)]


async def test_rest_of_a_batch_can_be_read_before_the_hangup(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 1000)
    assert owner.leg is not None
    owner.leg.read_rest()  # nothing is there
    leg.send_audio(*numbered(3))
    await stage.check_other()
    owner.leg.read_rest()
    assert owner.frames == [FIRST, *numbered(3)]
    owner.leg.hang_up()
    owner.leg.read_rest()
    assert await leg.read_to_end() == HANGUP
    assert owner.closed == 0


async def test_leg_that_reads_each_frame_again_reads_what_waits_at_once(
    stage: ListenerStage,
) -> None:
    leg, owner = await batched(stage, 1000)
    assert owner.leg is not None
    leg.send_audio(*numbered(3))
    await stage.check_other()
    owner.leg.read_singly()
    assert owner.frames == [FIRST, *numbered(3)]
    leg.send_audio(*numbered(4)[3:])
    await until(lambda: len(owner.frames) == 5)
    owner.leg.batch_reads(320, 40)
    leg.send_audio(*numbered(2))
    await until(lambda: owner.batches == 1)
    assert owner.frames == [FIRST, *numbered(4), *numbered(2)]


async def test_other_messages_among_batched_frames_are_passed_over(stage: ListenerStage) -> None:
    leg, owner = await batched(stage, 100)
    leg.send_audio(*numbered(2))
    leg.send(b"\x03\x00\x015")
    leg.send_audio(*numbered(4)[2:], bytes(640), *numbered(4))
    await until(lambda: len(owner.frames) == 10)
    assert owner.frames == [FIRST, *numbered(4), bytes(640), *numbered(4)]


async def test_more_than_the_kernel_may_hold_is_not_batched(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    assert not owner.leg.batch_reads(1920, 1000)  # a second of 48 kHz
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    assert owner.batches == 0


async def test_leg_whose_reads_are_not_batched_has_nothing_more_to_read(
    stage: ListenerStage,
) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.read_rest()
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    assert owner.batches == 0


async def test_garbage_among_batched_frames_closes_the_leg(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg, owner = await batched(stage, 40)
    leg.send(b"\x10\xff\xff")
    assert "announces 65535 bytes" in await refused(stage, leg, caplog)
    assert owner.closed == 1


# --- Acknowledgements ----------------------------------------------------------------------------


def socket_of(owner: Owner) -> socket.socket:
    return cast(LegSocket, owner.leg)._socket


def delays_acks(owner: Owner) -> bool:
    return not socket_of(owner).getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)


def cease(owner: Owner) -> None:
    """Let the kernel acknowledge at once, as it does by itself when it has waited in vain."""
    socket_of(owner).setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def test_acknowledgements_are_delayed_from_the_first_audio_on(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    await owner.wait_attached()
    cast(LegSocket, owner.leg).delay_acks()
    assert not delays_acks(owner)
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)
    assert delays_acks(owner)


async def test_acknowledgements_are_delayed_again_where_that_lasts_and_else_no_more(
    stage: ListenerStage,
) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)
    its_end = cast(LegSocket, owner.leg)
    for _ in range(5):  # now and then a frame is late
        cease(owner)
        its_end.delay_acks()
        assert delays_acks(owner)
        its_end.delay_acks()
    tries = 0
    while True:  # Asterisk waits for each acknowledgement
        cease(owner)
        its_end.delay_acks()
        if not delays_acks(owner):
            break
        tries += 1
    assert tries == 2  # after the one that began it


async def test_legs_are_seen_to_now_and_then_as_long_as_there_are_any(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.ACKS_INTERVAL_S", 0.02)
    async with stage_with() as quick:
        leg, owner = await quick.issued()
        leg.send_audio(*numbered(1))
        await owner.wait_frames(1)
        cease(owner)
        await until(lambda: delays_acks(owner))
        await leg.close()
        await quick.other.close()
        await until(lambda: quick.listener._acks_timer is None)


# --- The rest, and the end -----------------------------------------------------------------------


async def test_rest_of_a_leg_is_what_the_kernel_has_and_comes_in_order(
    stage: ListenerStage,
) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)
    leg.send(b"".join(audio(0x10, frame) for frame in numbered(20, 1)))  # there when it returns
    assert owner.leg is not None
    owner.leg.read_rest()
    assert owner.frames == numbered(21)
    owner.leg.read_rest()
    leg.send_audio(*numbered(1, 21))
    await owner.wait_frames(22)
    assert owner.frames == numbered(22)


async def test_leg_that_does_not_read_is_closed_soon_after_its_end(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.leg.LET_GO_S", 0.02)
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)
    assert owner.leg is not None
    socket_of(owner).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while owner.leg.speak(bytes(320)):
        pass
    descriptor = socket_of(owner)
    owner.leg.hang_up()
    await until(lambda: descriptor.fileno() == -1)
