"""A NATS server, and connections to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from audiofork.cluster.broker import Broker
from audiofork.config import ClusterConfig
from testbed.nats import NatsServer, nats_servers

Connect = Callable[..., Awaitable[Broker]]


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
