"""Fixtures and hooks for the tests of the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from testbed.recorder import Recorder


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of the contract on the event loop of the daemon: they rest on its order."""
    if item.path.name == "test_relay.py":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    async with Recorder() as one:
        yield one
