"""Marks all tests of this folder as slow: most of them start programs."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those of this folder: the hook gets all that were collected."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
