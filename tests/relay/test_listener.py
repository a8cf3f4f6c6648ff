"""The AudioSocket server over real TCP: who gets in, and who does not."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import uuid
import weakref
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest

from audiofork.link.messages import StrangersRefused
from audiofork.relay import tcp
from audiofork.relay.listener import ACCEPT_AGAIN_S, Listener
from tests.relay.listener_stage import ListenerStage, Owner, refused, stage_with
from tests.relay.peers import HANGUP, Leg, numbered, until
from tests.relay.transports import FullEpoll

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


UNKNOWN = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


async def test_unknown_uuid_is_refused_reported_and_not_told(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg = await stage.connect()
    leg.send_uuid(UNKNOWN)
    message = await refused(stage, leg, caplog)
    assert "unknown or used UUID" in message
    assert UNKNOWN not in message
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]


async def test_wrong_uuids_are_reported_once_at_first_then_together(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.listener.REPORT_INTERVAL_S", SHORT_S)
    for _ in range(50):
        leg = await stage.connect()
        leg.send_uuid(str(uuid.uuid4()))
    await until(lambda: sum(report.count for report in stage.reports) == 50)
    assert stage.reports[0] == StrangersRefused(1, "127.0.0.1")
    assert len(stage.reports) < 25
    await stage.check_other()
    assert stage.listener.refused.total == 50


async def test_wrong_uuids_that_wait_for_their_report_are_reported_at_the_close(
    stage: ListenerStage,
) -> None:
    for count in range(1, 4):
        leg = await stage.connect()
        leg.send_uuid(UNKNOWN)
        assert await leg.read_to_end() == HANGUP
        assert stage.listener.refused.total == count
    await stage.listener.close()
    assert stage.reports == [StrangersRefused(1, "127.0.0.1"), StrangersRefused(2, "127.0.0.1")]


async def contested(stage: ListenerStage, first: Leg, second: Leg) -> Owner:
    """Let two connections present the UUID of one leg; neither may be kept."""
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner)
    first.send_uuid(leg_uuid)
    await owner.wait_attached()
    second.send_uuid(leg_uuid)
    second.send_audio(*numbered(3, 100))
    assert await second.read_to_end() == HANGUP
    assert await first.read_to_end() == HANGUP
    assert owner.frames == []
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]
    await stage.check_other()
    return owner


async def test_of_two_that_present_one_uuid_neither_is_kept(stage: ListenerStage) -> None:
    owner = await contested(stage, await stage.connect(), await stage.connect())
    assert (owner.attached, owner.closed, owner.contested) == (1, 1, 1)


async def test_uuid_that_is_presented_a_third_time_contests_nothing_more(
    stage: ListenerStage,
) -> None:
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner)
    for _ in range(3):
        leg = await stage.connect()
        leg.send_uuid(leg_uuid)
        await owner.wait_attached()
    await until(lambda: stage.listener.refused.total == 2)
    assert (owner.attached, owner.closed, owner.contested) == (1, 1, 1)


HOME = (ip_network("127.0.0.2"),)


async def test_right_uuid_from_elsewhere_is_refused_and_reported_and_stays_good(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner, HOME)
    stranger = await stage.connect()
    stranger.send_uuid(leg_uuid)
    message = await refused(stage, stranger, caplog)
    assert "comes from elsewhere ([cluster] legs_from), from 127.0.0.1" in message
    assert leg_uuid not in message
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]
    assert owner.attached == 0
    leg = await stage.connect("127.0.0.2")
    leg.send_uuid(leg_uuid)
    leg.send_audio(*numbered(3))
    await owner.wait_frames(3)


async def test_uuid_in_use_that_comes_from_elsewhere_contests_nothing(
    stage: ListenerStage,
) -> None:
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner, HOME)
    leg = await stage.connect("127.0.0.2")
    leg.send_uuid(leg_uuid)
    await owner.wait_attached()
    stranger = await stage.connect()
    stranger.send_uuid(leg_uuid)
    assert await stranger.read_to_end() == HANGUP
    leg.send_audio(*numbered(3))
    await owner.wait_frames(3)
    assert (owner.attached, owner.closed, owner.contested) == (1, 0, 0)
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]


async def test_used_uuid_is_refused_after_its_leg_is_gone(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner)
    first = await stage.connect()
    first.send_uuid(leg_uuid)
    await owner.wait_attached()
    await first.close()
    await until(lambda: owner.closed)
    second = await stage.connect()
    second.send_uuid(leg_uuid)
    await refused(stage, second, caplog)
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]
    assert (owner.attached, owner.closed, owner.contested) == (1, 1, 0)


async def test_withdrawn_uuid_is_refused_and_no_attack(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture
) -> None:
    leg_uuid, owner = str(uuid.uuid4()), Owner()
    stage.listener.issue(leg_uuid, owner)
    stage.listener.withdraw(leg_uuid)
    stage.listener.withdraw(leg_uuid)
    leg = await stage.connect()
    leg.send_uuid(leg_uuid)
    assert "wanted no more" in await refused(stage, leg, caplog)
    assert (owner.attached, stage.reports) == (0, [])
    again = await stage.connect()
    again.send_uuid(leg_uuid)
    assert await again.read_to_end() == HANGUP
    assert stage.reports == [StrangersRefused(1, "127.0.0.1")]


@pytest.mark.parametrize("wire", [b"", b"\x01\x00\x10" + bytes(8)], ids=["nothing", "half"])
async def test_no_uuid_in_time_is_refused(
    stage: ListenerStage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wire: bytes,
) -> None:
    monkeypatch.setattr("audiofork.relay.leg.UUID_TIMEOUT_S", SHORT_S)
    leg = await stage.connect()
    leg.send(wire)
    assert "no UUID within 0.05 s" in await refused(stage, leg, caplog)


async def test_leg_that_is_in_has_no_time_limit(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.relay.leg.UUID_TIMEOUT_S", SHORT_S)
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
    listener = Listener(print, (ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    assert listener.allows(peer) is allowed
    assert Listener(print).allows(peer)


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
    monkeypatch.setattr("audiofork.relay.leg.UUID_TIMEOUT_S", SHORT_S)
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


async def owner_of_closed_leg(stage: ListenerStage) -> weakref.ref[Owner]:
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(3))
    await owner.wait_frames(3)
    await leg.close()
    await until(lambda: owner.closed)
    owner.leg = None
    owner.on_audio = print  # but for what it holds itself
    return weakref.ref(owner)


async def test_closed_leg_keeps_nothing_of_its_fork_while_its_uuid_is_remembered(
    stage: ListenerStage,
) -> None:
    owner = await owner_of_closed_leg(stage)
    gc.collect()
    assert owner() is None


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EMFILE, "Too many open files"), (errno.ENFILE, "Too many open files in system")],
)
async def test_connection_waits_while_no_more_can_be_opened(
    stage: ListenerStage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    text: str,
) -> None:
    tries: list[float] = []
    accept = socket.socket.accept

    def accept_third(listening: socket.socket) -> tuple[socket.socket, Any]:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) <= 2:
            raise OSError(number, os.strerror(number))
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", accept_third)
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)
    assert f"AudioSocket connections have to wait: 1 more, last: {text}" in caplog.text
    assert tries[2] - tries[0] >= ACCEPT_AGAIN_S  # and nothing spins meanwhile


async def test_connection_that_is_gone_before_it_is_accepted_is_passed_over(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    faults = [ConnectionAbortedError()]

    def accept_second(listening: socket.socket) -> tuple[socket.socket, Any]:
        if faults:
            raise faults.pop()
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", accept_second)
    leg, owner = await stage.issued()
    leg.send_audio(*numbered(1))
    await owner.wait_frames(1)


async def test_nothing_is_accepted_any_more_when_listening_has_stopped_meanwhile(
    stage: ListenerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(listening: socket.socket) -> tuple[socket.socket, Any]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", fail)
    monkeypatch.setattr("audiofork.relay.listener.ACCEPT_AGAIN_S", SHORT_S)
    await stage.connect()
    await until(lambda: stage.listener._unaccepted.total)
    stage.listener.stop_listening()
    said = stage.listener._unaccepted.total
    await asyncio.sleep(3 * SHORT_S)
    assert stage.listener._unaccepted.total == said
    assert not stage.listener.is_listening


async def test_leg_that_cannot_be_watched_is_closed_at_once_and_counted(
    stage: ListenerStage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = tcp._pollers[asyncio.get_running_loop()]
    with monkeypatch.context() as patch:
        patch.setattr(poller, "_epoll", FullEpoll(poller._epoll))
        leg = await stage.connect()
        assert await leg.read_to_end() == b""
    assert "closed: 1 more, last: No space left on device, from 127.0.0.1" in caplog.text
    await stage.check_other()
