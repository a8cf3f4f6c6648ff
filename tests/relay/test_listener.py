"""The AudioSocket server over real TCP: who gets in, and who does not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from audiofork.link.messages import LegPart, leg_uuid
from audiofork.relay.listener import Listener
from tests.relay.listener_stage import ListenerStage, Owner, refused, stage_with
from tests.relay.peers import HANGUP, Leg, numbered, until

pytestmark = pytest.mark.usefixtures("nothing_left")

SHORT_S = 0.05


@pytest.fixture
async def stage() -> AsyncIterator[ListenerStage]:
    async with stage_with() as stage:
        yield stage


async def test_port_that_was_chosen_is_returned(stage: ListenerStage) -> None:
    assert stage.address.host == "127.0.0.1"
    assert stage.address.port > 0


async def test_issued_uuid_is_let_in_and_its_frames_arrive(stage: ListenerStage) -> None:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(5))
    await until(lambda: len(owner.frames) == 5)
    assert owner.frames == numbered(5)
    assert (owner.attached, owner.closed, stage.listener.refused.total) == (1, 0, 0)


async def test_uuid_and_frames_byte_by_byte_arrive(stage: ListenerStage) -> None:
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


async def test_unknown_uuid_is_refused(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg = await stage.connect()
    leg.send_uuid("3f2a91c0-d1e8-4c52-9a7b-0123456789ab")
    assert "unknown or used UUID 3f2a91c0-d1e8" in await refused(stage, leg, caplog)


async def test_used_uuid_is_refused_and_the_first_leg_stays(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
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


async def test_used_uuid_is_refused_after_its_leg_is_gone(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
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


async def test_withdrawn_uuid_is_refused(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
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
    stage: ListenerStage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wire: bytes,
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.UUID_TIMEOUT_S", SHORT_S)
    leg = await stage.connect()
    leg.send(wire)
    assert "no UUID within 0.05 s" in await refused(stage, leg, caplog)


async def test_leg_that_is_in_has_no_time_limit(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
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
async def test_what_is_no_leg_is_refused(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture, wire: bytes, text: str
) -> None:
    leg = await stage.connect()
    leg.send(wire)
    assert text in await refused(stage, leg, caplog)


# --- Two legs of a fork --------------------------------------------------------------------------

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


def test_uuid_of_a_leg_is_the_forks_own_but_for_out() -> None:
    assert {leg_uuid(FORK_ID, part) for part in LegPart if part != LegPart.OUT} == {FORK_ID}
    of_out = leg_uuid(FORK_ID, LegPart.OUT)
    assert of_out == "3b698384-1c43-5bfe-8457-46c0c2c6c454"
    assert of_out != leg_uuid("3f2a91c0-d1e8-4c52-9a7b-0123456789ac", LegPart.OUT)


async def test_two_legs_of_a_fork_are_let_in_each_once(stage: ListenerStage) -> None:
    owners = {part: Owner() for part in (LegPart.IN, LegPart.OUT)}
    for part, owner in owners.items():
        stage.listener.issue(leg_uuid(FORK_ID, part), owner)
    for n, (part, owner) in enumerate(owners.items(), 1):
        leg = await stage.connect()
        leg.send_uuid(leg_uuid(FORK_ID, part))
        leg.send_audio(*numbered(2, 10 * n))
        await owner.wait_frames(2)
        assert owner.frames == numbered(2, 10 * n)
        again = await stage.connect()
        again.send_uuid(leg_uuid(FORK_ID, part))
        assert await again.read_to_end() == HANGUP
        assert stage.listener.refused.total == n
    assert [owner.attached for owner in owners.values()] == [1, 1]
    assert [owner.closed for owner in owners.values()] == [0, 0]


@pytest.mark.parametrize("withdrawn", [LegPart.IN, LegPart.OUT])
async def test_withdrawn_uuid_of_one_part_leaves_the_other(
    stage: ListenerStage, withdrawn: LegPart
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
            await owner.wait_attached()
        assert owner.attached == (part is not withdrawn)


async def test_many_refused_are_counted_and_logged_once_a_second(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        leg = await stage.connect()
        leg.send(b"\x00\x00\x00")
        assert await leg.read_to_end() == HANGUP
    assert stage.listener.refused.total == 20
    assert len(caplog.records) == 1
    await stage.check_other()


@pytest.mark.parametrize("allow", ["127.0.0.1", "127.0.0.0/8"])
async def test_leg_from_an_allowed_network_is_let_in(allow: str) -> None:
    async with stage_with("192.0.2.0/24", allow, "::1/128") as stage:
        await stage.check_other()
        assert stage.listener.refused.total == 0


async def test_leg_from_elsewhere_is_closed_at_once_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.MAX_STRANGERS", 1)
    for _ in range(3):
        _, owner = await stage.issued()
        await owner.wait_attached()
        refused = stage.listener.refused.total
        wrong = await stage.connect()
        wrong.send_uuid(str(uuid.uuid4()))
        await until(lambda: stage.listener.refused.total > refused)  # noqa: B023
        gone = await stage.connect()
        await gone.close()
        await until(lambda: not stage.listener._strangers)
    await stage.check_other()
    assert stage.listener.refused.total == 3


async def test_500_idle_connections_do_no_harm(stage: ListenerStage) -> None:
    for _ in range(500):
        await stage.connect()
    await stage.check_other()
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(3))
    await until(lambda: owner.frames == numbered(3))
    assert owner.closed == 0


async def test_connection_that_is_gone_before_its_uuid_is_not_counted(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.UUID_TIMEOUT_S", SHORT_S)
    leg = await stage.connect()
    await leg.close()
    await asyncio.sleep(2 * SHORT_S)  # nothing is to happen, so there is nothing to wait for
    await stage.check_other()
    assert stage.listener.refused.total == 0


async def test_close_hangs_up_all_and_listens_no_more(stage: ListenerStage) -> None:
    quiet = await stage.connect()
    await stage.check_other()
    await stage.listener.close()
    assert await quiet.read_to_end() == HANGUP
    assert await stage.other.read_to_end() == HANGUP
    with pytest.raises(ConnectionRefusedError):
        await Leg.connect(stage.address)
