"""A relay host as a whole, where it needs nobody else."""

from __future__ import annotations

import asyncio

import pytest

from audiofork.config import Address, ClusterConfig, Config
from audiofork.link.messages import Command, SendReport
from audiofork.relay.host import HostedFork, RelayHost

ADDRESS = Address("127.0.0.1", 4000)


class FailingWorker:
    """Cannot tell its forks. Implements `HostedWorker`."""

    addresses = (ADDRESS,)

    def __init__(self, config: Config, report: SendReport) -> None:
        pass

    @property
    def sessions(self) -> dict[str, HostedFork]:
        raise LookupError("a fault of ours")

    async def start(self) -> Address:
        return ADDRESS

    def handle(self, command: Command) -> None:
        raise AssertionError(command)

    def configure(self, config: Config) -> None:
        raise AssertionError(config)

    async def close(self) -> None:
        pass


async def test_host_that_cannot_beat_ends_with_the_fault() -> None:
    config = Config(cluster=ClusterConfig(servers=("nats://127.0.0.1:9",), name="relay1"))
    host = RelayHost(config, lambda: config, make_worker=FailingWorker)
    with pytest.raises(LookupError, match="a fault of ours"):
        async with asyncio.timeout(30):
            await host.run()
