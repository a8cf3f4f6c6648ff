"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest

from testbed import guard

# Here, for each process of a parallel run by itself.
guard.end_with_us()

# Seven thousand tests that are collected are no garbage: whoever looks through them for some, again
# and again, takes a twentieth of the whole run.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: else one process would be at it when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
