"""The AudioSocket server over real TCP: who gets in, and who does not."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import cast

import pytest

from audiofork.config import Address
from audiofork.link.messages import LegPart, leg_uuid
from audiofork.relay.listener import Listener
from audiofork.relay.pipeline import LegHandle
from tests.relay.peers import HANGUP, Leg, numbered, until

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT_S = 0.05


class Owner:
    """Keeps what its leg tells."""

    def __init__(self) -> None:
        self.leg: LegHandle | None = None
        self.attached = 0
        self.frames: list[bytes] = []
        self.usual = 0  # how many of them were as long as the one before
        self.batches = self.late = 0
        self.missing = 5  # frames, of the next message
        self.closed = 0

    def attach(self, leg: LegHandle) -> None:
        self.leg = leg
        leg.on_usual = self.on_usual
        self.attached += 1

    def on_audio(self, frame: bytes) -> None:
        self.frames.append(frame)

    def on_usual(self, frame: bytes) -> None:
        assert len(frame) == len(self.frames[-1])
        self.usual += 1
        self.frames.append(frame)

    def on_batch_read(self, *, is_late: bool) -> int:
        self.batches += 1
        self.late += is_late
        return self.missing

    def on_leg_closed(self) -> None:
        self.closed += 1


class Stage:
    """A listener, with a good leg whose frames must pass whatever others do."""

    def __init__(self, *allow: str) -> None:
        self.listener = Listener(tuple(ip_network(network) for network in allow))
        self.legs: list[Leg] = []

    async def connect(self, source: str = "") -> Leg:
        """Connect, from an address of this machine if one is given."""
        local = (source, 0) if source else None
        ends = await asyncio.open_connection(self.address.host, self.address.port, local_addr=local)
        self.legs.append(Leg(*ends))
        return self.legs[-1]

    async def start(self) -> None:
        self.address = await self.listener.start(Address("127.0.0.1", 0))
        self.other, self.other_owner = await self.issued()
        await until(lambda: self.other_owner.attached)

    async def issued(self) -> tuple[Leg, Owner]:
        """Connect a leg whose UUID is issued, and present it."""
        owner = Owner()
        fork_id = str(uuid.uuid4())
        self.listener.issue(fork_id, owner)
        leg = await self.connect()
        leg.send_uuid(fork_id)
        return leg, owner

    async def check_other(self) -> None:
        """Check that the good leg still works."""
        self.other_owner.frames.clear()
        self.other.send_audio(*numbered(3))
        await until(lambda: len(self.other_owner.frames) == 3)
        assert self.other_owner.frames == numbered(3)
        assert (self.other_owner.attached, self.other_owner.closed) == (1, 0)

    async def stop(self) -> None:
        await self.listener.close()
        for leg in self.legs:
            await leg.close()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.start()
    yield stage
    await stage.stop()


async def refused(stage: Stage, leg: Leg, caplog: pytest.LogCaptureFixture) -> str:
    """Check that a leg is closed and counted, once; return what was logged."""
    assert await leg.read_to_end() == HANGUP
    assert stage.listener.refused.total == 1
    await stage.check_other()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("AudioSocket connections closed: 1 more, last: ")
    assert message.endswith(", from 127.0.0.1")
    return message


async def test_port_that_was_chosen_is_returned(stage: Stage) -> None:
    assert stage.address.host == "127.0.0.1"
    assert stage.address.port > 0


async def test_issued_uuid_is_let_in_and_its_frames_arrive(stage: Stage) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(5))
    await until(lambda: len(owner.frames) == 5)
    assert owner.frames == numbered(5)
    assert (owner.attached, owner.closed, stage.listener.refused.total) == (1, 0, 0)


async def test_uuid_and_frames_byte_by_byte_arrive(stage: Stage) -> None:
    fork_id = str(uuid.uuid4())
    owner = Owner()
    stage.listener.issue(fork_id, owner)
    leg = await stage.connect()
    frames = numbered(2, frame_bytes=40)
    wire = b"\x01\x00\x10" + uuid.UUID(fork_id).bytes
    for byte in wire + b"".join(b"\x10\x00\x28" + frame for frame in frames):
        leg.send(bytes([byte]))
        await asyncio.sleep(0)
    await until(lambda: len(owner.frames) == 2)
    assert owner.frames == frames


async def test_unknown_uuid_is_refused(stage: Stage, caplog) -> None:
    leg = await stage.connect()
    leg.send_uuid("3f2a91c0-d1e8-4c52-9a7b-0123456789ab")
    assert "unknown or used UUID 3f2a91c0-d1e8" in await refused(stage, leg, caplog)


async def test_used_uuid_is_refused_and_the_first_leg_stays(stage: Stage, caplog) -> None:
    fork_id = str(uuid.uuid4())
    owner = Owner()
    stage.listener.issue(fork_id, owner)
    first, second = await stage.connect(), await stage.connect()
    first.send_uuid(fork_id)
    await until(lambda: owner.attached)
    second.send_uuid(fork_id)
    second.send_audio(*numbered(3, 100))
    assert f"unknown or used UUID {fork_id}" in await refused(stage, second, caplog)
    first.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    assert owner.frames == numbered(2)
    assert (owner.attached, owner.closed) == (1, 0)


async def test_used_uuid_is_refused_after_its_leg_is_gone(stage: Stage, caplog) -> None:
    fork_id = str(uuid.uuid4())
    owner = Owner()
    stage.listener.issue(fork_id, owner)
    first = await stage.connect()
    first.send_uuid(fork_id)
    await until(lambda: owner.attached)
    await first.close()
    await until(lambda: owner.closed)
    second = await stage.connect()
    second.send_uuid(fork_id)
    await refused(stage, second, caplog)
    assert (owner.attached, owner.closed) == (1, 1)


async def test_withdrawn_uuid_is_refused(stage: Stage, caplog) -> None:
    fork_id = str(uuid.uuid4())
    owner = Owner()
    stage.listener.issue(fork_id, owner)
    stage.listener.withdraw(fork_id)
    stage.listener.withdraw(fork_id)
    leg = await stage.connect()
    leg.send_uuid(fork_id)
    await refused(stage, leg, caplog)
    assert owner.attached == 0


@pytest.mark.parametrize("wire", [b"", b"\x01\x00\x10" + bytes(8)], ids=["nothing", "half"])
async def test_no_uuid_in_time_is_refused(
    stage: Stage, caplog, monkeypatch: pytest.MonkeyPatch, wire: bytes
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.UUID_TIMEOUT_S", SHORT_S)
    leg = await stage.connect()
    leg.send(wire)
    assert "no UUID within 0.05 s" in await refused(stage, leg, caplog)


async def test_leg_that_is_in_has_no_time_limit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.UUID_TIMEOUT_S", SHORT_S)
    leg, owner = await stage.issued()
    leg.send(b"\x10\x01\x40" + bytes(100))
    await until(lambda: owner.attached)
    await asyncio.sleep(2 * SHORT_S)  # nothing is to happen, so there is nothing to wait for
    leg.send(bytes(220))
    await until(lambda: owner.frames)
    assert owner.frames == [bytes(320)]
    assert (owner.closed, stage.listener.refused.total) == (0, 0)


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "message 0x47 announces 17748 bytes"),
        (bytes(range(255, 0, -1)), "message 0xff announces 65277 bytes"),
        (b"\x10\x01\x40" + bytes(320), "message 0x10 before the UUID"),
        (b"\x03\x00\x015", "message 0x03 before the UUID"),
        (b"\x00\x00\x00", "message 0x00 before the UUID"),
        (b"\x42\x00\x00" * 50, "message 0x42 before the UUID"),
        (b"\x10\x3c\x02", "message 0x10 announces 15362 bytes"),
        (b"\x01\x00\x0f", "message 0x01 has 15 bytes, expected 16"),
    ],
    ids=[
        "http",
        "garbage",
        "audio first",
        "dtmf first",
        "hangup first",
        "unknown kinds",
        "oversized",
        "short uuid",
    ],
)
async def test_what_is_no_leg_is_refused(stage: Stage, caplog, wire: bytes, text: str) -> None:
    leg = await stage.connect()
    leg.send(wire)
    assert text in await refused(stage, leg, caplog)


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
    stage: Stage, caplog, wire: bytes, text: str
) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    leg.send(wire)
    leg.send_audio(*numbered(2, 2))
    assert text in await refused(stage, leg, caplog)
    assert (owner.frames, owner.closed) == (numbered(2), 1)


async def test_other_messages_of_a_leg_are_passed_over(stage: Stage) -> None:
    leg, owner = await stage.issued()
    leg.send(b"\x03\x00\x015" + b"\x19\x00\x02\x01\x02" + b"\x02\x00\x00" + b"\x77\x00\x01x")
    leg.send_audio(*numbered(1))
    await until(lambda: owner.frames)
    assert owner.frames == numbered(1)
    assert (owner.closed, stage.listener.refused.total) == (0, 0)


@pytest.mark.parametrize("kind", range(0x10, 0x19))
@pytest.mark.parametrize("size", [320, 640, 15_360])
async def test_audio_of_any_kind_and_size_arrives(stage: Stage, kind: int, size: int) -> None:
    leg, owner = await stage.issued()
    frames = numbered(5, frame_bytes=size)
    for count, frame in enumerate(frames, 1):
        leg.send(bytes([kind]) + size.to_bytes(2, "big") + frame)
        await until(lambda count=count: len(owner.frames) == count)
    assert owner.frames == frames
    assert (owner.closed, stage.listener.refused.total) == (0, 0)


def audio(kind: int, frame: bytes) -> bytes:
    return bytes([kind]) + len(frame).to_bytes(2, "big") + frame


async def received(stage: Stage, *chunks: bytes) -> Owner:
    """Let a leg come whose bytes are read in these chunks; return its owner."""
    owner = Owner()
    fork_id = str(uuid.uuid4())
    stage.listener.issue(fork_id, owner)
    peer = await stage.connect()
    peer.send_uuid(fork_id)
    await until(lambda: owner.attached)
    assert owner.leg is not None
    for chunk in chunks:
        cast(asyncio.Protocol, owner.leg).data_received(chunk)
    return owner


async def test_chunk_that_is_one_message_like_the_last_is_usual(stage: Stage) -> None:
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
    stage: Stage, chunks: list[bytes], frames: list[bytes], usual: int
) -> None:
    owner = await received(stage, *chunks)
    assert (owner.frames, owner.usual) == (frames, usual)
    assert stage.listener.refused.total == 0


async def test_usual_chunk_after_a_hang_up_reaches_nobody(stage: Stage) -> None:
    owner = await received(stage, AB, CD)
    assert owner.leg is not None
    owner.leg.hang_up()
    cast(asyncio.Protocol, owner.leg).data_received(audio(0x10, b"ef"))
    assert (owner.frames, owner.usual) == ([b"ab", b"cd"], 1)


async def test_usual_chunk_after_a_refusal_reaches_nobody(stage: Stage) -> None:
    owner = await received(stage, AB, b"\x00\x00\x00")
    cast(asyncio.Protocol, owner.leg).data_received(audio(0x10, b"ef"))
    assert (owner.frames, owner.closed) == ([b"ab"], 1)


async def test_usual_frame_in_which_the_owner_hangs_up_is_the_last(stage: Stage) -> None:
    owner = await received(stage, audio(0x10, b"ab"))
    leg = owner.leg
    assert leg is not None

    def hang_up(frame: bytes) -> None:
        owner.frames.append(frame)
        leg.hang_up()

    leg.on_usual = hang_up
    for _ in range(3):
        cast(asyncio.Protocol, leg).data_received(audio(0x10, b"cd"))
    assert owner.frames == [b"ab", b"cd"]
    assert stage.listener.refused.total == 0


async def test_way_of_usual_frames_may_change_from_one_to_the_next(stage: Stage) -> None:
    owner = await received(stage, audio(0x10, b"ab"), audio(0x10, b"ab"))
    other: list[bytes] = []
    assert owner.leg is not None
    owner.leg.on_usual = other.append
    cast(asyncio.Protocol, owner.leg).data_received(audio(0x10, b"cd"))
    assert (owner.usual, other) == (1, [b"cd"])


# --- What a leg says -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(0x10, 0x19))
async def test_leg_is_spoken_to_in_the_kind_that_it_brings(stage: Stage, kind: int) -> None:
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
    stage: Stage, kind: int, rate: int
) -> None:
    leg, owner = await stage.issued()
    leg.send(audio(kind, bytes(640)))
    await until(lambda: owner.frames)
    assert owner.leg is not None
    assert owner.leg.spoken_rate == rate


async def test_spoken_rate_of_a_leg_that_has_brought_nothing_is_8000_hz(stage: Stage) -> None:
    _, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    assert owner.leg.spoken_rate == 8000


async def test_leg_is_spoken_to_in_the_kind_that_it_brought_last(stage: Stage) -> None:
    leg, owner = await stage.issued()
    leg.send(audio(0x10, b"ab") + audio(0x12, b"ab") + b"\x03\x00\x015")
    await until(lambda: len(owner.frames) == 2)
    assert owner.leg is not None
    owner.leg.speak(b"tone")
    owner.leg.hang_up()
    assert await leg.read_to_end() == audio(0x12, b"tone") + HANGUP


async def test_leg_that_has_brought_nothing_is_spoken_to_at_8000_hz(stage: Stage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.speak(b"tone")
    owner.leg.hang_up()
    assert await leg.read_to_end() == audio(0x10, b"tone") + HANGUP


# --- Two legs of a fork --------------------------------------------------------------------------

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


def test_uuid_of_a_leg_is_the_forks_own_but_for_out() -> None:
    assert {leg_uuid(FORK_ID, part) for part in LegPart if part != LegPart.OUT} == {FORK_ID}
    of_out = leg_uuid(FORK_ID, LegPart.OUT)
    assert of_out == "3b698384-1c43-5bfe-8457-46c0c2c6c454"
    assert of_out != leg_uuid("3f2a91c0-d1e8-4c52-9a7b-0123456789ac", LegPart.OUT)


async def test_two_legs_of_a_fork_are_let_in_each_once(stage: Stage) -> None:
    owners = {part: Owner() for part in (LegPart.IN, LegPart.OUT)}
    for part, owner in owners.items():
        stage.listener.issue(leg_uuid(FORK_ID, part), owner)
    for n, (part, owner) in enumerate(owners.items(), 1):
        leg = await stage.connect()
        leg.send_uuid(leg_uuid(FORK_ID, part))
        leg.send_audio(*numbered(2, 10 * n))
        await until(lambda owner=owner: len(owner.frames) == 2)
        assert owner.frames == numbered(2, 10 * n)
        again = await stage.connect()
        again.send_uuid(leg_uuid(FORK_ID, part))
        assert await again.read_to_end() == HANGUP
        assert stage.listener.refused.total == n
    assert [owner.attached for owner in owners.values()] == [1, 1]
    assert [owner.closed for owner in owners.values()] == [0, 0]


@pytest.mark.parametrize("withdrawn", [LegPart.IN, LegPart.OUT])
async def test_withdrawn_uuid_of_one_part_leaves_the_other(
    stage: Stage, withdrawn: LegPart
) -> None:
    owners = {part: Owner() for part in (LegPart.IN, LegPart.OUT)}
    for part, owner in owners.items():
        stage.listener.issue(leg_uuid(FORK_ID, part), owner)
    stage.listener.withdraw(leg_uuid(FORK_ID, withdrawn))
    for part, owner in owners.items():
        leg = await stage.connect()
        leg.send_uuid(leg_uuid(FORK_ID, part))
        if part is withdrawn:
            assert await leg.read_to_end() == HANGUP
        else:
            await until(lambda owner=owner: owner.attached)
        assert owner.attached == (part is not withdrawn)


async def test_leg_that_asterisk_closes_is_told_once_and_not_counted(stage: Stage) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(2))
    await leg.close()
    await until(lambda: owner.closed)
    assert (owner.frames, owner.closed) == (numbered(2), 1)
    assert stage.listener.refused.total == 0
    await stage.check_other()


async def test_hang_up_sends_the_message_closes_and_tells_nobody(stage: Stage) -> None:
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


async def test_hang_up_during_a_chunk_of_frames_stops_them(stage: Stage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)

    def hang_up(frame: bytes) -> None:
        owner.frames.append(frame)
        assert owner.leg is not None
        owner.leg.hang_up()

    owner.on_audio = hang_up  # type: ignore[method-assign]
    leg.send(b"\x10\x00\x02ab" * 3)
    assert await leg.read_to_end() == HANGUP
    assert owner.frames == [b"ab"]
    assert stage.listener.refused.total == 0


async def test_many_refused_are_counted_and_logged_once_a_second(stage: Stage, caplog) -> None:
    for _ in range(20):
        leg = await stage.connect()
        leg.send(b"\x00\x00\x00")
        assert await leg.read_to_end() == HANGUP
    assert stage.listener.refused.total == 20
    assert len(caplog.records) == 1
    await stage.check_other()


@asynccontextmanager
async def stage_with(*allow: str) -> AsyncIterator[Stage]:
    """Give a stage whose good leg comes from an address that is allowed."""
    stage = Stage(*allow)
    try:
        await stage.start()
        yield stage
    finally:
        await stage.stop()


@pytest.mark.parametrize("allow", ["127.0.0.1", "127.0.0.0/8"])
async def test_leg_from_an_allowed_network_is_let_in(allow: str) -> None:
    async with stage_with("192.0.2.0/24", allow, "::1/128") as stage:
        await stage.check_other()
        assert stage.listener.refused.total == 0


async def test_leg_from_elsewhere_is_closed_at_once_and_counted(caplog) -> None:
    async with stage_with("127.0.0.1") as stage:
        owner = Owner()
        fork_id = str(uuid.uuid4())
        stage.listener.issue(fork_id, owner)
        stranger = await stage.connect("127.0.0.2")
        stranger.send_uuid(fork_id)
        assert await stranger.read_to_end() == HANGUP
        await stage.check_other()
        (message,) = caplog.messages
        assert message.endswith("last: not allowed ([audiosocket] allow), from 127.0.0.2")
        assert (owner.attached, stage.listener.refused.total) == (0, 1)
        leg = await stage.connect()  # the UUID is still good for the one it was issued to
        leg.send_uuid(fork_id)
        await until(lambda: owner.attached)


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("fd00::1", True),
        ("fe80::1%lo", False),
    ],
)
def test_peer_is_allowed_by_its_address_in_either_form(peer: str, allowed: bool) -> None:
    listener = Listener((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    assert listener.allows(peer) is allowed
    assert Listener().allows(peer)


async def test_of_too_many_without_a_uuid_the_oldest_are_closed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.MAX_STRANGERS", 3)
    idle = [await stage.connect() for _ in range(5)]
    assert [await leg.read_to_end() for leg in idle[:2]] == [HANGUP] * 2
    assert stage.listener.refused.total == 2
    assert "no UUID yet, and 3 more connections without one" in caplog.messages[0]
    await stage.check_other()
    _, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert await idle[2].read_to_end() == HANGUP
    assert stage.listener.refused.total == 3


async def test_those_that_are_in_or_gone_are_not_counted_as_strangers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.MAX_STRANGERS", 1)
    for _ in range(3):
        _, owner = await stage.issued()
        await until(lambda owner=owner: owner.attached)
        refused = stage.listener.refused.total
        wrong = await stage.connect()
        wrong.send_uuid(str(uuid.uuid4()))
        await until(lambda refused=refused: stage.listener.refused.total > refused)
        gone = await stage.connect()
        await gone.close()
        await until(lambda: not stage.listener._strangers)
    await stage.check_other()
    assert stage.listener.refused.total == 3


async def test_500_idle_connections_do_no_harm(stage: Stage) -> None:
    for _ in range(500):
        await stage.connect()
    await stage.check_other()
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(3))
    await until(lambda: owner.frames == numbered(3))
    assert owner.closed == 0


async def test_connection_that_is_gone_before_its_uuid_is_not_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.UUID_TIMEOUT_S", SHORT_S)
    leg = await stage.connect()
    await leg.close()
    await asyncio.sleep(2 * SHORT_S)  # nothing is to happen, so there is nothing to wait for
    await stage.check_other()
    assert stage.listener.refused.total == 0


async def test_close_hangs_up_all_and_listens_no_more(stage: Stage) -> None:
    quiet = await stage.connect()
    await stage.check_other()
    await stage.listener.close()
    assert await quiet.read_to_end() == HANGUP
    assert await stage.other.read_to_end() == HANGUP
    with pytest.raises(OSError):
        await Leg.connect(stage.address)


# --- Frames that are read as a batch --------------------------------------------------------------


FIRST = bytes(320)


async def batched(stage: Stage, batch_ms: int) -> tuple[Leg, Owner]:
    """Return a leg that has brought a frame, and whose reads are batched from then on."""
    leg, owner = await stage.issued()
    leg.send_audio(FIRST)
    await until(lambda: owner.frames)
    assert owner.leg is not None
    owner.leg.batch_reads(320, batch_ms)
    return leg, owner


async def test_frames_are_not_read_until_a_message_is_full(stage: Stage) -> None:
    leg, owner = await batched(stage, 1000)
    leg.send_audio(*numbered(49))
    await stage.check_other()
    assert owner.frames == [FIRST]
    leg.send_audio(*numbered(50)[49:])
    await until(lambda: len(owner.frames) == 51)
    assert owner.frames == [FIRST, *numbered(50)]
    assert (owner.batches, owner.usual, owner.late) == (1, 50, 0)


async def test_frames_are_not_read_until_the_rest_of_a_message_is_there(stage: Stage) -> None:
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


async def test_frames_that_stay_too_few_are_read_in_time(stage: Stage) -> None:
    leg, owner = await batched(stage, 100)
    for times in (1, 2):
        leg.send_audio(*numbered(3))
        await until(lambda times=times: owner.batches == times)  # type: ignore[misc]
        assert owner.frames == [FIRST] + numbered(3) * times
        assert owner.late == times


async def test_frame_after_a_pause_is_read_at_once(stage: Stage) -> None:
    leg, owner = await batched(stage, 40)
    batching = owner.leg._batching  # type: ignore[union-attr]
    await until(lambda: batching.is_late)
    assert batching._timer is None
    leg.send_audio(*numbered(1))
    await until(lambda: owner.batches == 1)
    assert owner.frames == [FIRST, *numbered(1)]
    assert batching._timer is not None


async def test_end_of_the_connection_brings_what_was_not_read_yet(stage: Stage) -> None:
    leg, owner = await batched(stage, 1000)
    leg.send_audio(*numbered(3))
    await leg.close()
    await until(lambda: owner.closed == 1)
    assert owner.frames == [FIRST, *numbered(3)]


async def test_rest_of_a_batch_can_be_read_before_the_hangup(stage: Stage) -> None:
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


async def test_other_messages_among_batched_frames_are_passed_over(stage: Stage) -> None:
    leg, owner = await batched(stage, 100)
    leg.send_audio(*numbered(2))
    leg.send(b"\x03\x00\x015")
    leg.send_audio(*numbered(4)[2:], bytes(640), *numbered(4))
    await until(lambda: len(owner.frames) == 10)
    assert owner.frames == [FIRST, *numbered(4), bytes(640), *numbered(4)]


async def test_more_than_the_kernel_may_hold_is_not_batched(stage: Stage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.batch_reads(1920, 1000)  # a second of 48 kHz
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    assert owner.batches == 0


async def test_leg_whose_reads_are_not_batched_has_nothing_more_to_read(stage: Stage) -> None:
    leg, owner = await stage.issued()
    await until(lambda: owner.attached)
    assert owner.leg is not None
    owner.leg.read_rest()
    leg.send_audio(*numbered(2))
    await until(lambda: len(owner.frames) == 2)
    assert owner.batches == 0


async def test_garbage_among_batched_frames_closes_the_leg(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    leg, owner = await batched(stage, 40)
    leg.send(b"\x10\xff\xff")
    assert "announces 65535 bytes" in await refused(stage, leg, caplog)
    assert owner.closed == 1
