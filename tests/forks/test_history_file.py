"""The history: files that it cannot use, slow disks, and who else reads its file."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofork.config import HistoryConfig
from audiofork.errors import HistoryUnavailable
from audiofork.forks import history as module
from audiofork.forks import history_file, history_search, history_writer, sqlite_file
from audiofork.forks.events import (
    Resumed,
)
from audiofork.forks.history import Entry, History, HistoryQuery
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.lifecycle import Away
from audiofork.forks.timelines import Timelines
from tests.forks.history_stage import (
    Kept,
    ended,
    entry_of,
    file_at,
    fork,
    keep,
    kept,
    lines,
    path,
    spoil,
    times,
    until,
)

__all__ = ["keep", "kept", "path", "times"]

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


# --- The file ------------------------------------------------------------------------------------


async def test_without_a_file_nothing_is_kept() -> None:
    history = History(HistoryConfig(file=""), Timelines())
    await history.open()
    history.on_event(ended(fork()))
    assert not history.is_kept
    with pytest.raises(HistoryUnavailable, match="there is no history"):
        await history.search(HistoryQuery())
    await history.close()


async def test_entries_are_written_at_the_end_and_read_by_the_next_run(
    kept: Kept, keep: Callable[..., Any]
) -> None:
    for number in range(1000):
        kept.history.on_event(ended(fork(number)))
    await kept.history.close()
    with pytest.raises(HistoryUnavailable, match="it is closed"):
        await kept.entry(fork().id)
    again = await keep()
    entries, _ = await again.history.search(HistoryQuery(limit=500))
    assert len(entries) == 500
    assert await again.history.entry(fork(0).id) is not None


async def test_file_is_for_its_owner_alone(kept: Kept, path: Path) -> None:
    await kept.tell(ended(fork()))
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["/dev/null", "/proc/history.sqlite3", "link"])
async def test_place_that_cannot_be_used_is_said_once_and_all_else_goes_on(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setattr(history_writer, "RETRY_S", 0.01)
    (tmp_path / "own").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    path = tmp_path / "link" if place == "link" else Path(place)
    history = History(HistoryConfig(file=str(path)), Timelines())
    await history.open()
    history.on_event(ended(fork()))
    with pytest.raises(HistoryUnavailable, match="the history cannot be asked: "):
        await history.search(HistoryQuery())
    await asyncio.sleep(0.05)
    await history.close()
    (line,) = lines(caplog)
    assert line.startswith(f"the history {path} cannot be written: ")
    assert (tmp_path / "own").read_text() == "mine"


async def test_damaged_file_is_moved_aside_and_named(
    path: Path, keep: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path)
    kept = await keep()
    await kept.tell(ended(fork()))
    assert await kept.ids() == [1]
    (line,) = lines(caplog)
    assert "cannot be used (file is not a database); moved aside as history.sqlite3" in line
    assert path.with_name("history.sqlite3.damaged").read_bytes()[:11] == b"no database"


async def test_file_moved_aside_earlier_is_kept(
    path: Path, keep: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(path)
    for name in ("damaged", "damaged.2"):
        path.with_name(f"{path.name}.{name}").write_text(name)
    kept = await keep()
    await kept.tell(ended(fork()))
    (line,) = lines(caplog)
    assert line.endswith("moved aside as history.sqlite3.damaged.3")
    for name in ("damaged", "damaged.2"):
        assert path.with_name(f"{path.name}.{name}").read_text() == name
    assert path.with_name("history.sqlite3.damaged.3").read_bytes()[:11] == b"no database"


async def test_disk_is_not_filled_with_files_moved_aside(
    path: Path, keep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "MOST_ASIDE", 1)
    spoil(path)
    path.with_name("history.sqlite3.damaged").write_text("earlier")
    kept = await keep()
    with pytest.raises(HistoryUnavailable, match=r"1 files were moved aside as \.damaged already"):
        await kept.ids()
    assert file_at(path)[:11] == b"no database"


async def test_file_of_another_version_is_moved_aside_by_its_version_and_stays_whole(
    path: Path, keep: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(HistoryFile(path)) as newer:
        newer.write([entry_of(path)])
        newer.db.execute("PRAGMA user_version = 2")
    kept = await keep()
    await kept.tell(ended(fork(2)))
    assert await kept.ids() == [2]
    (line,) = lines(caplog)
    assert "(of version 2, expected 1); moved aside as history.sqlite3.version-2" in line
    with contextlib.closing(sqlite3.connect(f"{path}.version-2")) as db:
        assert db.execute("SELECT count(*) FROM forks").fetchone() == (1,)


def take_away(path: Path, way: str) -> None:
    """Do what other programs do to a file, such as one that restores a backup."""
    if way == "deleted":
        for one in path.parent.iterdir():
            one.unlink()
        return
    if way == "restored":
        with contextlib.closing(HistoryFile(path.with_name("backup"))) as backup:
            backup.write([dataclasses.replace(entry_of(path), fork_id="000000ab", ended_at=1.0)])
    path.rename(path.with_name("old"))
    if way == "replaced":
        path.touch()
    elif way == "restored":
        path.with_name("backup").rename(path)


@pytest.mark.parametrize("way", ["deleted", "renamed", "replaced", "restored"])
async def test_file_that_is_taken_away_is_noticed_once_and_what_comes_is_kept(
    kept: Kept, path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    await kept.tell(ended(fork(1)))
    take_away(path, way)
    await kept.tell(ended(fork(2)), ended(fork(3)))
    await kept.tell(ended(fork(4)))
    assert await kept.ids() == ([4, 3, 2, 0xAB] if way == "restored" else [4, 3, 2])
    await kept.history.close()
    (line,) = lines(caplog)
    assert line.startswith(f"the history {path} was removed, or replaced, by another program: ")
    with history_file.reading(path) as db:
        assert db.execute("SELECT count(*) FROM forks").fetchone() == (
            4 if way == "restored" else 3,
        )
    if way != "deleted":
        with history_file.reading(path.with_name("old")) as db:
            assert db.execute("SELECT count(*) FROM forks").fetchone() == (1,)


async def test_file_that_is_taken_away_is_noticed_though_nothing_ends(
    kept: Kept, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_writer, "LOOK_S", 0.01)
    await kept.tell(ended(fork(1)))
    take_away(path, "deleted")
    await until(lambda: "was removed, or replaced" in caplog.text)
    await until(path.exists)


async def test_journal_is_no_history(
    path: Path, keep: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE calls (a)")
    kept = await keep()
    await kept.tell(ended(fork()))
    assert await kept.ids() == [1]
    assert "not a history of audiofork" in caplog.text


async def test_file_that_becomes_damaged_is_replaced(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept.tell(ended(fork(1)))
    with monkeypatch.context() as faulty:

        def fail(self: object, works: object) -> None:
            faulty.undo()
            raise sqlite_file.Damaged("database disk image is malformed")

        faulty.setattr(HistoryFile, "write", fail)
        await kept.tell(ended(fork(2)))
    assert await kept.ids() == [2]
    assert "moved aside as history.sqlite3.damaged" in caplog.text


async def test_entry_that_somebody_has_spoilt_spoils_no_other(kept: Kept, path: Path) -> None:
    await kept.tell(ended(fork(1)), ended(fork(2)))
    await kept.history.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE forks SET totals = 'x' WHERE number = 1")
    history = History(HistoryConfig(file=str(path), keep_days=36500), Timelines())
    await history.open()
    with pytest.raises(HistoryUnavailable, match="the entry 00000001.* cannot be read"):
        await history.entry(fork(1).id)
    assert await history.entry(fork(2).id) is not None
    await history.close()


@pytest.mark.slow
async def test_file_of_another_daemon_is_left_alone_and_said(
    kept: Kept, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In another process: SQLite's locks do not count within one."""
    await kept.tell(ended(fork()))
    script = """
import asyncio, sys
from audiofork.config import HistoryConfig
from audiofork.forks.history import History, HistoryQuery
from audiofork.forks.timelines import Timelines
async def main():
    history = History(HistoryConfig(file=sys.argv[1]), Timelines())
    await history.open()
    try:
        await history.search(HistoryQuery())
    except Exception as exc:
        print(exc)
    await history.close()
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    in_use = "it is in use, probably by another daemon"
    assert done.stdout == f"the history cannot be asked: {in_use}\n"
    assert done.stderr == f"the history {path}: {in_use}: running without a history\n"
    assert await kept.ids() == [1]


async def test_full_disk_is_said_once_and_entries_are_written_when_there_is_room(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_writer, "RETRY_S", 0.02)
    await kept.tell(ended(fork(0)))

    def no_room(self: object, works: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as faulty:
        faulty.setattr(HistoryFile, "write", no_room)
        for number in range(1, 4):
            kept.history.on_event(ended(fork(number)))
        with pytest.raises(HistoryUnavailable, match="database or disk is full"):
            await kept.ids()
        assert len(lines(caplog)) == 1
    await until(lambda: len(lines(caplog)) == 2)
    assert lines(caplog)[1] == "the history works again, 0 entries were lost"
    assert await kept.ids() == [3, 2, 1, 0]


async def test_what_a_full_disk_has_no_room_for_is_lost_and_counted(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_writer, "RETRY_S", 0.02)
    monkeypatch.setattr(history_writer, "MOST_WAITING", 10)
    await kept.tell(ended(fork(0)))
    with monkeypatch.context() as faulty:

        def no_room(self: object, works: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        faulty.setattr(HistoryFile, "write", no_room)
        for number in range(1, 31):
            kept.history.on_event(ended(fork(number)))
            with pytest.raises(HistoryUnavailable):
                await kept.ids()
    await until(lambda: "works again" in caplog.text)
    assert "the history works again, 20 entries were lost" in caplog.text
    assert (await kept.ids())[:11] == [*range(30, 20, -1), 0]


async def test_slow_disk_delays_nobody_and_what_it_does_not_take_is_counted(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, hangs = threading.Event(), threading.Event()
    waited_in_vain: list[bool] = []
    real_write = HistoryFile.write

    def slow(self: HistoryFile, works: Any) -> None:
        hangs.set()
        waited_in_vain.append(not goes_on.wait(10))
        real_write(self, works)

    monkeypatch.setattr(HistoryFile, "write", slow)
    assert kept.history._writer is not None
    monkeypatch.setattr(kept.history._writer.inbox, "_most_writes", 10)
    await kept.tell()
    try:
        kept.history.on_event(ended(fork(0)))
        await asyncio.to_thread(hangs.wait, 10)
        for number in range(1, 31):
            kept.history.on_event(ended(fork(number)))
    finally:
        goes_on.set()
    assert len(await kept.all()) == 11
    assert not any(waited_in_vain)  # the disk has waited for us, not we for the disk
    await kept.history.close()
    assert "entries of the history dropped, the disk is too slow: 1 more" in caplog.text
    assert "entries of the history dropped, the disk is too slow: 19 more" in caplog.text


async def test_question_to_a_disk_that_hangs_is_given_up(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(HistoryFile, "search", lambda self, query: goes_on.wait(10))
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)
    try:
        with pytest.raises(HistoryUnavailable, match=r"no answer of the disk within 0\.05 s"):
            await kept.ids()
    finally:
        goes_on.set()


# --- Questions beside entries --------------------------------------------------------------------


class Asked:
    """A search that takes as long as the history lets it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.times = 0

    def search(self, file: HistoryFile, _query: HistoryQuery) -> tuple[list[Entry], str]:
        self.times += 1
        self.begun.set()
        with history_search.in_time(file.db, 30, file.give_up):
            file.db.execute(ENDLESS).fetchall()
        return [], ""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    one = Asked()
    monkeypatch.setattr(HistoryFile, "search", lambda file, query: one.search(file, query))
    return one


async def leave(kept: Kept, number: int) -> None:
    """Ask questions that nobody waits for."""
    for _ in range(number):
        with contextlib.suppress(TimeoutError, HistoryUnavailable):
            async with asyncio.timeout(0):
                await kept.ids()


@pytest.mark.slow
async def test_abandoned_questions_are_not_answered_and_keep_no_entry_out(
    kept: Kept, asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    await kept.tell()
    for number in range(20):
        await leave(kept, 200)
        kept.history.on_event(ended(fork(number)))
    async with asyncio.timeout(5):
        for number in range(20):
            assert await kept.history.entry(fork(number).id) is not None
    assert asked.times < 1000
    assert "dropped" not in caplog.text


async def test_question_that_is_abandoned_while_it_is_answered_is_broken_off(
    kept: Kept, asked: Asked
) -> None:
    asking = asyncio.create_task(kept.ids())
    await asyncio.to_thread(asked.begun.wait, 10)
    asking.cancel()
    async with asyncio.timeout(5):
        await kept.tell(ended(fork()))
        assert await kept.history.entry(fork().id) is not None


@pytest.mark.slow
async def test_questions_that_wait_or_run_are_bounded_and_entries_are_not_by_them(
    kept: Kept, asked: Asked
) -> None:
    most = history_writer.MOST_ASKING
    first = asyncio.create_task(kept.ids())
    await asyncio.to_thread(asked.begun.wait, 10)
    others = [asyncio.create_task(kept.ids()) for _ in range(most - 1)]
    await asyncio.sleep(0)
    with pytest.raises(HistoryUnavailable, match="too many ask the history at once"):
        await kept.ids()
    for number in range(history_writer.MOST_WAITING):
        kept.history.on_event(ended(fork(number)))
    assert kept.history._writer is not None
    assert kept.history._writer.inbox.writes == history_writer.MOST_WAITING
    for one in (first, *others):
        one.cancel()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await kept.history.entry(fork(0).id) is not None


async def test_entries_are_written_at_the_end_before_any_question_is_answered(
    kept: Kept, asked: Asked, path: Path
) -> None:
    asking = [asyncio.create_task(kept.ids()) for _ in range(5)]
    await asyncio.to_thread(asked.begun.wait, 10)
    for number in range(500):
        kept.history.on_event(ended(fork(number)))
    async with asyncio.timeout(5):
        await kept.history.close()
    assert kept.history._writer is not None
    assert kept.history._writer.closed.done()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(one, HistoryUnavailable) for one in answers)
    assert asked.times == 1
    with history_file.reading(path) as db:
        assert db.execute("SELECT count(*) FROM forks").fetchone() == (500,)


# --- The end -------------------------------------------------------------------------------------


async def test_stop_does_not_wait_for_a_disk_that_hangs(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(HistoryFile, "write", lambda self, works: goes_on.wait(10))
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.05)
    try:
        kept.history.on_event(ended(fork()))
        async with asyncio.timeout(2):
            await kept.history.close()
    finally:
        goes_on.set()


async def test_bug_in_the_history_is_logged_and_reaches_nobody(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HistoryFile, "write", lambda self, works: 1 / 0)
    kept.history.on_event(ended(fork()))
    writer = kept.history._writer
    assert writer is not None
    await asyncio.to_thread(writer.join, 10)
    kept.history.on_event(ended(fork(2)))
    assert "the history failed; continuing without it" in caplog.text
    with pytest.raises(HistoryUnavailable):
        await kept.ids()


@pytest.mark.slow
async def test_entries_survive_sigkill(path: Path) -> None:
    """Of a process that is killed as soon as its thread has taken them."""
    script = f"""
import asyncio, os, signal, sys, time
from audiofork.config import HistoryConfig
from audiofork.forks.history import History
from audiofork.forks.timelines import Timelines
from tests.forks.history_stage import ended, fork
async def main():
    history = History(HistoryConfig(file={str(path)!r}), Timelines())
    await history.open()
    history.on_event(ended(fork()))
    await history.entry("written by now")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    root = Path(__file__).parent.parent.parent
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], cwd=root, timeout=30, check=False
    )
    with history_file.reading(path) as db:
        entries, _ = history_search.search(db, HistoryQuery())
    assert [entry.fork_id for entry in entries] == [fork().id]


# --- Reading the file of a daemon that does not run ----------------------------------------------


async def test_closed_file_is_read_also_in_a_folder_that_one_may_not_write(
    kept: Kept, path: Path
) -> None:
    await kept.tell(Resumed(fork(), Away.SERVER), ended(fork()))
    await kept.history.close()
    before = file_at(path)
    os.chmod(path.parent, 0o500)
    try:
        with history_file.reading(path) as db:
            assert history_search.search(db, HistoryQuery())[0][0].fork_id == fork().id
            assert history_search.entry(db, fork().id[:8]) is not None
    finally:
        os.chmod(path.parent, 0o700)
    assert file_at(path) == before


@pytest.mark.slow
async def test_file_that_a_daemon_has_open_is_not_read_beside_it(kept: Kept, path: Path) -> None:
    await kept.tell(ended(fork()))
    script = """
import sys
from pathlib import Path
from audiofork.forks import history_file
try:
    with history_file.reading(Path(sys.argv[1])):
        pass
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    refusal = f"HistoryUnavailable the history {path} cannot be read: database is locked\n"
    assert (done.stdout, done.stderr) == (refusal, "")


@pytest.mark.parametrize("content", [None, b"", b"no database " * 100])
def test_file_that_is_no_history_is_not_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "h"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HistoryUnavailable), history_file.reading(path):
        pass
    assert content is None or path.read_bytes() == content
