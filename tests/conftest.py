"""What holds for all tests."""

from __future__ import annotations

import pytest

from testbed import guard

# Here, for each process of a parallel run by itself.
guard.end_with_us()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: else one process would be at it when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
