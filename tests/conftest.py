"""Hooks and fixtures for all tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

from testbed import guard

# Here, for each process of a parallel run by itself.
guard.end_with_us()

# A busy machine is no reason for a test to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Thousands of collected tests are no garbage. To look through them for some, again and again, took
# a twentieth of the whole run.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests: else one process would run them after all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
