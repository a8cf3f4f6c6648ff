"""The fixtures of the check."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from audiofork.commands import check_audio
from tests.commands.checked import SnoopedAri, SpiedAsterisk

SLOWEST_FRAMES_PER_SECOND = check_audio.SLOWEST_FRAMES_PER_SECOND


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen to a fifth of a second in place of a whole one, at whatever pace this machine has."""
    monkeypatch.setattr(check_audio, "FRAMES_WANTED", 10)
    monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", 1.0)


@pytest.fixture
def pace_judged(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge the pace as the product does."""
    monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", SLOWEST_FRAMES_PER_SECOND)


@pytest.fixture
async def asterisk() -> AsyncIterator[SpiedAsterisk]:
    one = SpiedAsterisk()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def ari(asterisk: SpiedAsterisk) -> AsyncIterator[SnoopedAri]:
    one = SnoopedAri(asterisk)
    await one.start()
    yield one
    await one.stop()
