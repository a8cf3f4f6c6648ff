"""A NATS server, connections to it, and the doors of controllers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, TypeVar

import pytest

from audiofork.cluster.beats import ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import ClusterConfig
from audiofork.doors.cluster_doors import AsteriskDoors, ClusterDoors
from testbed.nats import NatsServer, nats_servers
from tests.relay.peers import until

Connect = Callable[..., Awaitable[Broker]]


class WithDoors(Protocol):
    """The doors of a controller, and what they need; its own are those of its Asterisk."""

    broker: Broker
    roster: Roster
    beat: ControlBeat
    doors: ClusterDoors
    own: AsteriskDoors


_Controller = TypeVar("_Controller", bound=WithDoors)


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with nats_servers() as (one,):
        yield one


@pytest.fixture
async def connect(server: NatsServer) -> AsyncIterator[Connect]:
    """Return a function that connects one more client."""
    async with AsyncExitStack() as stack:

        async def one(name: str = "a") -> Broker:
            broker = Broker(ClusterConfig(servers=(server.url,), name=name), name)
            await broker.connect()
            stack.push_async_callback(broker.close)
            return broker

        yield one


@asynccontextmanager
async def controllers(
    connect: Connect, make: Callable[[str, str, Broker], _Controller]
) -> AsyncIterator[Callable[..., Awaitable[_Controller]]]:
    """Yield a function that begins one more controller, which stands by and knows all others.

    Args:
        connect: The fixture.
        make: Makes it of its name, that of its Asterisk, and its connection.
    """
    async with AsyncExitStack() as stack:
        begun: list[_Controller] = []

        async def begin(name: str, asterisk: str = "pbx") -> _Controller:
            one = make(name, asterisk, await connect(name))
            await one.roster.start()
            await one.broker.flush()
            await one.doors.open()
            stack.push_async_callback(one.doors.close)
            stack.push_async_callback(one.own.stop_serving)
            begun.append(one)
            for other in begun:
                other.broker.publish(other.beat.subject, other.beat.encode())
                await other.broker.flush()
            await until(lambda: len(one.roster.controllers) == len(begun), 30)
            return one

        yield begin
