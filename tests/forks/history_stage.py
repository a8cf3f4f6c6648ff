"""A history of one file, told what happens to forks; shared by the tests of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from audiofork.asterisk.channels import Target
from audiofork.config import HistoryConfig
from audiofork.forks import history as module
from audiofork.forks import history_writer, sqlite_file
from audiofork.forks.events import (
    About,
    DomainEvent,
    Ended,
    ForkInfo,
    Requested,
)
from audiofork.forks.history import Entry, History, HistoryQuery
from audiofork.forks.options import Options
from audiofork.forks.requests import Origin, StartFork
from audiofork.forks.timelines import Timelines
from audiofork.link.messages import EndReason, ForkStats
from tests.control_plane import NAME
from tests.told_clock import Clock

URL = "wss://Example.org:8443/live?token=hunter2"
NUMBER, CALLER = "+4930123456", "Zoë Müller"
NOW = 1_800_000_000.0  # entries that are too old would be removed
DAY_S = 86_400.0


def fork(number: int = 1, **changes: Any) -> ForkInfo:
    """Return a fork; `about` fields may be among the changes."""
    names = {one.name for one in dataclasses.fields(About)}
    given = {name: changes.pop(name) for name in list(changes) if name in names}
    about = About(
        **{
            **{"requested_at": 5000.0, "direction": "both", "format": "json", "tap": "snoop"},
            **given,
        }
    )
    fields = {
        "id": f"{number:08x}-1111-4222-8333-444455556666",
        "channel": f"PJSIP/100-{number:08x}",
        "uniqueid": f"1700000000.{number}",
        "url": URL,
        "sample_rate": 16000,
        "caller_number": NUMBER,
        "caller_name": CALLER,
        **changes,
    }
    return ForkInfo(**fields, about=about)


def requested(info: ForkInfo) -> Requested:
    return Requested(info, StartFork(Target(NAME), URL, Options(), origin=Origin("ami", NAME)))


def ended(info: ForkInfo, reason: EndReason = EndReason.HANGUP, detail: str = "") -> Ended:
    stats = ForkStats(9, 5, 4, reconnects=1, frames_missing=2)
    return Ended(info, reason, stats, False, detail, gaps=1, gap_s=0.25, relays_lost=3)


class Kept:
    """A history with its timelines, of one file."""

    def __init__(self, path: Path, times: Clock, **options: Any) -> None:
        self.timelines = Timelines(times)
        self.history = History(HistoryConfig(file=str(path), **options), self.timelines, times)

    async def tell(self, *events: DomainEvent) -> None:
        """Tell what happens, and wait until it is written."""
        for event in events:
            self.timelines.on_event(event)
            self.history.on_event(event)
        await self.history.entry("written by now")

    async def entry(self, fork_id: str) -> Entry:
        """Return an entry that is there."""
        found = await self.history.entry(fork_id)
        assert found is not None
        return found

    async def all(self, **query: Any) -> list[Entry]:
        return (await self.history.search(HistoryQuery(**query)))[0]

    async def ids(self, **query: Any) -> list[int]:
        """Return the numbers of the forks that are found."""
        return [int(entry.fork_id[:8], 16) for entry in await self.all(**query)]


@pytest.fixture
def times() -> Clock:
    """The time of the history; that of the registry's loop is another."""
    times = Clock()
    times.now_s = 5060.5
    return times


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture
async def keep(path: Path, times: Clock) -> AsyncIterator[Callable[..., Any]]:
    """Open histories of one file that never grows too old; close them after the test."""
    made: list[Kept] = []

    async def make(**options: Any) -> Kept:
        made.append(Kept(path, times, **{"keep_days": 36500, **options}))
        await made[-1].history.open()
        return made[-1]

    yield make
    for one in made:
        await one.history.close()
        writer = one.history._writer
        assert writer is not None
        await asyncio.to_thread(writer.join, 10)
        assert not writer.is_alive()


@pytest.fixture
async def kept(keep: Callable[..., Any]) -> Kept:
    one = await keep()
    assert isinstance(one, Kept)
    return one


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (module.__name__, history_writer.__name__, sqlite_file.__name__)
    return [record.getMessage() for record in caplog.records if record.name in ours]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.005)


def file_at(path: Path) -> bytes:
    return path.read_bytes()


async def becomes(kept: Kept, ids: list[int]) -> None:
    """Wait until these are the only entries."""
    async with asyncio.timeout(10):
        while await kept.ids() != ids:  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.01)


def bytes_of(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.iterdir())


def spoil(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database " * 1000)


def entry_of(path: Path) -> Entry:
    """Return some entry."""
    history = History(HistoryConfig(file=str(path)), Timelines(), lambda: NOW)
    return history._ended(ended(fork(caller_name="Elephant")))
