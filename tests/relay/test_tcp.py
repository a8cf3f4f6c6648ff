"""TCP sockets of the audio path, over real TCP."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from audiofork.relay import tcp
from audiofork.relay.tcp import READ_BYTES, TcpTransport
from tests.relay.peers import until
from tests.relay.transports import MUCH, FullEpoll, Protocol, connected_pair, read, reset

pytestmark = pytest.mark.usefixtures("nothing_left")


class Stage:
    """A transport, its protocol, and the other end, which blocks."""

    def __init__(self) -> None:
        near, self.far = connected_pair()
        self.far.settimeout(5)
        self.protocol = Protocol()
        self.transport = TcpTransport(near, self.protocol)
        self.transport.begin()

    async def read(self, count: int) -> bytes:
        """Return so many bytes that the peer gets; fewer if the stream ends."""
        return await asyncio.to_thread(read, self.far, count)

    async def lost(self) -> Exception | None:
        await until(lambda: self.protocol.lost)
        (why,) = self.protocol.lost
        return why


@pytest.fixture
async def stages() -> AsyncIterator[Callable[[], Stage]]:
    """Make stages; none of them may be watched after its end."""
    made: list[Stage] = []

    def make() -> Stage:
        made.append(Stage())
        return made[-1]

    yield make
    for one in made:
        one.transport.abort()
        one.far.close()
    await until(lambda: all(one.protocol.lost for one in made))
    await asyncio.sleep(0)
    assert asyncio.get_running_loop() not in tcp._pollers
    assert all(one.transport.get_extra_info("socket").fileno() == -1 for one in made)


@pytest.fixture
async def stage(stages: Callable[[], Stage]) -> Stage:
    return stages()


# --- Reading -------------------------------------------------------------------------------------


async def test_what_comes_is_read_in_order(stage: Stage) -> None:
    sent = MUCH[: 5 * READ_BYTES + 1]
    await asyncio.to_thread(stage.far.sendall, sent)
    await until(lambda: len(stage.protocol.received) == len(sent))
    assert stage.protocol.received == sent


async def test_socket_with_much_to_read_leaves_others_their_turn(
    stages: Callable[[], Stage],
) -> None:
    order: list[str] = []
    much, little = stages(), stages()
    much.protocol.on_data = lambda: order.append("much")
    little.protocol.on_data = lambda: order.append("little")
    much.far.sendall(bytes(2 * READ_BYTES))
    little.far.sendall(b"x")
    await until(lambda: len(order) == 3)
    assert order == ["much", "little", "much"]


async def test_nothing_is_read_while_paused_and_what_has_come_follows(stage: Stage) -> None:
    stage.transport.pause_reading()
    stage.far.sendall(b"x")
    await asyncio.sleep(0.01)
    assert not stage.protocol.received
    stage.transport.resume_reading()
    await until(lambda: stage.protocol.received == b"x")


async def test_reset_while_paused_spins_nothing_and_shows_when_it_is_read_again(
    stage: Stage,
) -> None:
    stage.transport.pause_reading()
    reset(stage.far)
    began_s = time.thread_time()
    await asyncio.sleep(0.2)
    assert time.thread_time() - began_s < 0.1
    assert not stage.protocol.lost
    stage.transport.resume_reading()
    assert isinstance(await stage.lost(), ConnectionResetError)


async def test_socket_that_another_one_closes_in_the_same_turn_is_not_read(
    stages: Callable[[], Stage],
) -> None:
    first, second = stages(), stages()
    first.protocol.on_data = second.transport.abort
    second.protocol.on_data = first.transport.abort
    first.far.sendall(b"x")
    second.far.sendall(b"x")
    await until(lambda: first.protocol.lost or second.protocol.lost)
    assert first.protocol.received + second.protocol.received == b"x"


async def test_protocol_that_raises_loses_its_connection_and_disturbs_no_other(
    stages: Callable[[], Stage],
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    fault = RuntimeError("of the protocol")

    def fail() -> None:
        raise fault

    faulty, sound = stages(), stages()
    faulty.protocol.on_data = fail
    faulty.far.sendall(b"x")
    sound.far.sendall(b"y")
    assert await faulty.lost() is fault
    await until(lambda: sound.protocol.received == b"y")
    assert [context["exception"] for context in told] == [fault]


# --- Writing -------------------------------------------------------------------------------------


async def test_write_has_gone_when_it_returns(stage: Stage) -> None:
    stage.transport.write(b"at once")
    stage.far.setblocking(False)
    assert stage.far.recv(100) == b"at once"


async def test_what_the_kernel_does_not_take_waits_and_goes_when_the_peer_reads(
    stage: Stage,
) -> None:
    stage.transport.write(MUCH)
    stage.transport.write(b"and more")
    assert stage.transport.get_write_buffer_size() > 0
    assert await stage.read(len(MUCH) + 8) == MUCH + b"and more"
    await until(lambda: stage.transport.get_write_buffer_size() == 0)
    assert stage.transport._events == select.EPOLLIN  # else it would be called for ever
    stage.transport.write(b"at once")
    assert await stage.read(7) == b"at once"


async def test_protocol_pauses_above_the_high_limit_and_resumes_at_the_low_one(
    stage: Stage,
) -> None:
    sizes: list[int] = []
    stage.protocol.on_resume = lambda: sizes.append(stage.transport.get_write_buffer_size())
    stage.transport.set_write_buffer_limits(high=1000, low=100)
    stage.transport.write(MUCH)
    assert stage.protocol.calls == ["made", "pause"]
    for size in (500, 50):
        stage.transport.write(bytes(size))
    assert await stage.read(len(MUCH) + 550) == MUCH + bytes(550)
    await until(lambda: sizes)
    assert stage.protocol.calls == ["made", "pause", "resume"]
    assert sizes[0] <= 100


async def test_what_waits_goes_while_reading_is_paused(stage: Stage) -> None:
    stage.transport.write(MUCH)
    stage.transport.pause_reading()
    assert await stage.read(len(MUCH)) == MUCH


async def test_write_to_a_peer_that_has_reset_loses_the_connection(stage: Stage) -> None:
    stage.transport.pause_reading()
    reset(stage.far)
    await asyncio.sleep(0.01)
    stage.transport.write(b"x")
    assert isinstance(await stage.lost(), OSError)
    stage.transport.write(b"y")  # no effect
    assert stage.transport.get_write_buffer_size() == 0


# --- The end -------------------------------------------------------------------------------------


async def test_close_comes_after_what_waits(stage: Stage) -> None:
    stage.transport.write(MUCH)
    stage.transport.close()
    assert stage.transport.is_closing()
    stage.transport.write(b"too late")
    assert await stage.read(len(MUCH) + 8) == MUCH
    assert await stage.lost() is None


async def test_abort_loses_what_waits(stage: Stage) -> None:
    stage.transport.write(MUCH)
    stage.transport.abort()
    assert stage.transport.get_write_buffer_size() == 0
    assert await stage.lost() is None
    assert len(await stage.read(len(MUCH))) < len(MUCH)


async def test_end_of_our_side_comes_after_what_waits_and_what_comes_is_still_read(
    stage: Stage,
) -> None:
    stage.transport.write(MUCH)
    stage.transport.write_eof()
    stage.transport.write(b"too late")
    assert await stage.read(len(MUCH) + 8) == MUCH
    stage.far.sendall(b"still heard")
    await until(lambda: stage.protocol.received == b"still heard")
    assert not stage.protocol.lost


async def test_end_of_the_peers_side_is_the_end(stage: Stage) -> None:
    stage.far.sendall(b"last")
    stage.far.shutdown(socket.SHUT_WR)
    assert await stage.lost() is None
    assert (stage.protocol.received, stage.protocol.calls) == (b"last", ["made", "eof"])


async def test_loss_is_told_once_and_never_from_within_a_call(stage: Stage) -> None:
    stage.transport.abort()
    stage.transport.abort()
    stage.transport.close()
    assert not stage.protocol.lost
    assert await stage.lost() is None


async def test_protocol_that_refuses_the_connection_leaves_nothing_open() -> None:
    near, far = connected_pair()

    class Refusing(Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise RuntimeError

    protocol = Refusing()
    with pytest.raises(RuntimeError):
        TcpTransport(near, protocol).begin()
    await until(lambda: protocol.lost)
    assert near.fileno() == -1
    far.close()


# --- What cannot be watched ----------------------------------------------------------------------


real_epoll = select.epoll


def full_epoll() -> FullEpoll:
    return FullEpoll(real_epoll())


def no_epoll() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("epoll", [full_epoll, no_epoll])
async def test_connection_that_cannot_be_watched_is_closed_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, epoll: Callable[[], object]
) -> None:
    near, far = connected_pair()
    protocol = Protocol()
    monkeypatch.setattr(select, "epoll", epoll)
    transport = TcpTransport(near, protocol)
    with pytest.raises(OSError, match=r"No space left|Too many open files"):
        transport.begin()
    await until(lambda: protocol.lost)
    assert near.fileno() == -1
    assert asyncio.get_running_loop() not in tcp._pollers
    far.close()
