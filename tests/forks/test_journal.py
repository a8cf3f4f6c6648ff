import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from audiofork.forks import journal as journal_module
from audiofork.forks import sqlite_file as file_module
from audiofork.forks.journal import Entry, FileJournal
from audiofork.forks.sqlite_file import Damaged

ENTRY = Entry(
    fork_id="3f2a91c0-1111-4222-8333-444455556666",
    channel="PJSIP/100-0000002a",
    uniqueid="1700000000.1",
    url="ws://example.org/a?token=secret",
    options="D(in)",
    post_process="/opt/upload ^{CALLERID(name)}",
    action_id="7",
    values={"CALLERID(name)": "Zo\u00eb \U0001f600"},
    mute_in=True,
    mute_out=False,
    started=1_700_000_000.25,
    asterisk_started="2026-01-01 10:00:00",
)
OTHER = replace(ENTRY, fork_id="3f2a91c0-1111-4222-8333-444455556667", mute_in=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite3"


@pytest.fixture
async def journals(path: Path) -> AsyncIterator[Callable[[], FileJournal]]:
    """Make journals of one file, and close them after the test."""
    made: list[FileJournal] = []

    def make() -> FileJournal:
        made.append(FileJournal(path))
        return made[-1]

    yield make
    for journal in made:
        await journal.close()
        assert journal._writer is not None
        if journal._writer.ident is not None:
            await asyncio.to_thread(journal._writer.join, 10)
            assert not journal._writer.is_alive()


async def entries(path: Path) -> list[Entry]:
    """Return what a journal holds that is not open any more."""
    journal = FileJournal(path)
    found = await journal.open()
    await journal.close()
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.005)


async def write(journal: FileJournal, *changes: Entry) -> None:
    """Put entries, and wait until that has been tried."""
    writer = journal._writer
    assert writer is not None
    for entry in changes:
        journal.put(entry)
    await until(lambda: all(writer._entries.get(e.fork_id) == e for e in changes))
    await until(lambda: writer.changes.empty())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (journal_module.__name__, file_module.__name__)
    return [record.getMessage() for record in caplog.records if record.name in ours]


# --- What it keeps -------------------------------------------------------------------------------


async def test_new_journal_is_empty_and_works(journals: Callable[[], FileJournal]) -> None:
    journal = journals()
    assert await journal.open() == []
    assert journal.works


async def test_entries_are_there_after_a_close_in_their_order(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    journal = journals()
    await journal.open()
    for entry in (OTHER, ENTRY):
        journal.put(entry)
    await journal.close()
    assert await entries(path) == [OTHER, ENTRY]


async def test_entry_is_replaced_in_its_place(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    journal = journals()
    await journal.open()
    muted = replace(ENTRY, mute_out=True)
    for entry in (ENTRY, OTHER, muted):
        journal.put(entry)
    await journal.close()
    assert await entries(path) == [muted, OTHER]


async def test_removed_entry_is_gone(path: Path, journals: Callable[[], FileJournal]) -> None:
    journal = journals()
    await journal.open()
    journal.put(ENTRY)
    journal.put(OTHER)
    journal.remove(ENTRY.fork_id)
    journal.remove("unknown")
    await journal.close()
    assert await entries(path) == [OTHER]


async def traces(path: Path, text: str) -> list[str]:
    """Return the names of the files beside a journal, itself too, that hold a text."""
    files = sorted(path.parent.iterdir())
    return [one.name for one in files if text.encode() in one.read_bytes()]


async def no_trace(path: Path, text: str) -> None:
    async with asyncio.timeout(5):
        while await traces(path, text):  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("length", [0, 20_000], ids=["in-a-page", "over-pages"])
async def test_nothing_of_a_removed_entry_is_left_in_any_file_while_others_stay(
    path: Path, journals: Callable[[], FileJournal], length: int
) -> None:
    journal = journals()
    await journal.open()
    secret = replace(ENTRY, url="ws://example.org/?token=hunter2" + "x" * length)
    other = replace(OTHER, url="ws://example.org/?token=stays")
    await write(journal, other, secret)
    await write(journal, replace(secret, mute_out=True))  # an earlier state is in the WAL
    assert await traces(path, "hunter2")
    journal.remove(secret.fork_id)
    await no_trace(path, "hunter2")
    assert await traces(path, "token=stays")
    assert journal.works


async def test_nothing_of_many_that_end_at_once_is_left(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    journal = journals()
    await journal.open()
    many = [
        replace(ENTRY, fork_id=str(uuid.UUID(int=number)), url=f"ws://a/?token=hunter2-{number}")
        for number in range(300)
    ]
    await write(journal, OTHER, *many)
    for entry in many:
        journal.remove(entry.fork_id)
    await no_trace(path, "hunter2")
    await journal.close()
    assert await entries(path) == [OTHER]


async def test_what_a_killed_run_had_deleted_is_gone_when_the_next_has_opened(
    path: Path, journals: Callable[[], FileJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journals()
    await journal.open()
    with monkeypatch.context() as dying:
        dying.setattr(journal_module._File, "wipe", lambda _: None)
        secret = replace(ENTRY, url="ws://example.org/?token=hunter2")
        await write(journal, secret)
        journal.remove(secret.fork_id)
        await until(lambda: not journal._writer._entries)  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
        left = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    await journal.close()
    for name, content in left.items():
        (path.parent / name).write_bytes(content)
    assert await traces(path, "hunter2")
    assert await journals().open() == []
    assert await traces(path, "hunter2") == []


async def test_entry_of_a_version_that_counted_no_attempts_is_read(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    journal = journals()
    await journal.open()
    journal.put(ENTRY)
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE forks SET entry = json_remove(entry, '$.attempts')")
        file.commit()
    assert await entries(path) == [ENTRY]


async def test_what_was_left_can_be_removed(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    journal = journals()
    await journal.open()
    journal.put(ENTRY)
    await journal.close()
    journal = journals()
    assert await journal.open() == [ENTRY]
    journal.remove(ENTRY.fork_id)
    await journal.close()
    assert await entries(path) == []


async def test_entry_survives_sigkill(path: Path) -> None:
    """Of a process that is killed as soon as its thread has taken the entry."""
    script = """
import asyncio, json, sys, time
from pathlib import Path
from audiofork.forks.journal import Entry, FileJournal, Journal
async def main():
    journal = FileJournal(Path(sys.argv[1]))
    await journal.open()
    journal.put(Entry(**json.loads(sys.argv[2])))
    time.sleep(0.1)
    print("put", flush=True)
    time.sleep(60)
asyncio.run(main())
"""
    arguments = [sys.executable, "-c", script, str(path), json.dumps(asdict(ENTRY))]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert process.stdout is not None
    with process.stdout as output:
        assert await asyncio.to_thread(output.readline) == b"put\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert await entries(path) == [ENTRY]


async def test_files_are_for_their_owner_alone(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    old_mask = os.umask(0)
    try:
        journal = journals()
        await journal.open()
        await write(journal, ENTRY)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(old_mask)
    assert modes == {path.name: 0o600, path.name + "-wal": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_file_that_others_may_read_becomes_private(
    path: Path, journals: Callable[[], FileJournal]
) -> None:
    path.parent.mkdir()
    sqlite_file(path)
    os.chmod(path, 0o644)
    await journals().open()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_journal_without_a_path_keeps_nothing() -> None:
    journal = FileJournal(None)
    assert await journal.open() == []
    journal.put(ENTRY)
    journal.remove(ENTRY.fork_id)
    await journal.close()
    assert not journal.works


async def test_journal_that_was_never_opened_can_be_closed(path: Path) -> None:
    journal = FileJournal(path)
    journal.put(ENTRY)
    await journal.close()
    assert not path.parent.exists()


# --- Files that cannot be used -------------------------------------------------------------------


def sqlite_file(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def with_entry(path: Path, text: object) -> None:
    table = "CREATE TABLE forks (number INTEGER PRIMARY KEY, id TEXT UNIQUE, entry TEXT)"
    ours = ("PRAGMA application_id = 0x61666F72", "PRAGMA user_version = 1", table)
    sqlite_file(path, *ours)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO forks (id, entry) VALUES ('a', ?)", (text,))
    db.close()


def content(path: Path) -> bytes:
    return path.read_bytes()


def corrupt(path: Path) -> None:
    """Make a journal whose first pages are whole, and the rest is not."""
    with_entry(path, json.dumps(asdict(ENTRY)) + " " * 50_000)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096].ljust(len(whole), b"\0"))


FOREIGN = ("CREATE TABLE calls (a)", "INSERT INTO calls VALUES (1)")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b"not a database " * 1000), "file is not a database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000), ""),
        (corrupt, ""),
        (lambda path: sqlite_file(path, *FOREIGN), "not a journal of audiofork"),
        (
            lambda path: sqlite_file(path, *FOREIGN, "PRAGMA application_id = 0x61666F72"),
            "of version 0, expected 1",
        ),
        (lambda path: with_entry(path, "no JSON"), "an entry cannot be read"),
        (lambda path: with_entry(path, b"\xff"), "an entry cannot be read"),
        (lambda path: with_entry(path, "[" * 100_000), "an entry cannot be read"),
        (lambda path: with_entry(path, None), "an entry cannot be read"),
        (lambda path: with_entry(path, "{}"), "an entry cannot be read"),
        (
            lambda path: with_entry(path, json.dumps({**asdict(ENTRY), "values": [1]})),
            "an entry cannot be read",
        ),
        (
            lambda path: with_entry(path, json.dumps({**asdict(ENTRY), "fork_id": "../x"})),
            "an entry cannot be read",
        ),
    ],
    ids=[
        *("garbage", "garbage-with-head", "corrupt", "foreign", "version", "no-json", "bytes"),
        *("deep", "null", "missing", "type", "id"),
    ],
)
async def test_file_that_is_no_journal_is_put_aside_and_replaced(
    path: Path,
    journals: Callable[[], FileJournal],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], object],
    why: str,
) -> None:
    path.parent.mkdir()
    make(path)
    before = content(path)
    journal = journals()
    assert await journal.open() == []
    assert journal.works
    journal.put(ENTRY)
    await journal.close()
    assert await entries(path) == [ENTRY]
    (line,) = lines(caplog)
    assert why in line
    name = f"journal.sqlite3.{'version-0' if 'version 0' in why else 'damaged'}"
    assert line.endswith(f"moved aside as {name}")
    aside = content(path.with_name(name))
    assert aside[100:] == before[100:]  # SQLite may have touched its header


async def test_file_that_becomes_corrupt_is_written_anew(
    path: Path,
    journals: Callable[[], FileJournal],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journals()
    await journal.open()
    await write(journal, ENTRY)
    real_change = journal_module._File.change
    faults = [Damaged("database disk image is malformed")]

    def change(self: journal_module._File, changes: Mapping[str, Entry | None]) -> None:
        if faults:
            raise faults.pop()
        real_change(self, changes)

    monkeypatch.setattr(journal_module._File, "change", change)
    journal.put(OTHER)
    await journal.close()
    assert await entries(path) == [ENTRY, OTHER]
    (line,) = lines(caplog)
    assert "database disk image is malformed" in line


async def test_locked_file_is_left_alone_and_said(
    path: Path, journals: Callable[[], FileJournal], caplog: pytest.LogCaptureFixture
) -> None:
    """By another process: SQLite's locks do not count within one."""
    script = """
import asyncio, sys
from pathlib import Path
from audiofork.forks.journal import FileJournal, Journal
async def main():
    journal = FileJournal(Path(sys.argv[1]))
    await journal.open()
    print("open", flush=True)
    sys.stdin.read()
    await journal.close()
asyncio.run(main())
"""
    pipe = subprocess.PIPE
    arguments = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        assert process.stdin is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"open\n"
        journal = journals()
        assert await journal.open() == []
        assert not journal.works
        journal.put(ENTRY)
        await journal.close()
    assert await entries(path) == []
    assert lines(caplog) == [
        f"the journal {path} is in use, probably by another daemon: running without a journal"
    ]


# --- Disks that fail, and recover ----------------------------------------------------------------


@pytest.fixture
def short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", 0.02)


async def test_full_disk_is_said_once_and_the_file_made_whole_when_there_is_room(
    path: Path,
    journals: Callable[[], FileJournal],
    caplog: pytest.LogCaptureFixture,
    short_retry: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journals()
    await journal.open()
    await write(journal, ENTRY)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def no_room(self: object, changes: object) -> None:
        raise full

    with monkeypatch.context() as faulty:
        faulty.setattr(journal_module._File, "change", no_room)
        for entry in (OTHER, replace(OTHER, mute_out=True)):
            await write(journal, entry)
        await until(lambda: not journal.works)
        assert len(lines(caplog)) == 1
        assert "cannot be written: database or disk is full; forks go on" in lines(caplog)[0]
    await until(lambda: journal.works)
    assert lines(caplog)[1:] == ["the journal works again, 2 forks are in it"]
    await journal.close()
    assert await entries(path) == [ENTRY, replace(OTHER, mute_out=True)]


@pytest.mark.slow
async def test_real_limit_of_the_disk_does_no_harm(path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to let the file grow."""
    script = """
import asyncio, json, logging, resource, sys
from dataclasses import replace
from pathlib import Path
from audiofork.forks import journal as module
from audiofork.forks.journal import Entry, FileJournal, Journal
logging.basicConfig(format="%(message)s", stream=sys.stdout)
module.RETRY_S = 0.02
async def main():
    journal = FileJournal(Path(sys.argv[1]))
    await journal.open()
    entry = Entry(**json.loads(sys.argv[2]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    for number in range(100):
        journal.put(replace(entry, fork_id=entry.fork_id[:-3] + f"{number:03}", url="x" * 900))
        await asyncio.sleep(0.001)
    while journal.works:
        await asyncio.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    while not journal.works:
        await asyncio.sleep(0.001)
    await journal.close()
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(path), json.dumps(asdict(ENTRY))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done
    assert "cannot be written" in said[0]
    assert "works again" in said[-1]  # and perhaps in between: small writes may have room
    assert len(await entries(path)) == 100


@pytest.mark.parametrize("place", ["/proc/audiofork/journal", "/proc/journal"])
async def test_folder_that_takes_no_file_is_said_once(
    place: str, caplog: pytest.LogCaptureFixture, short_retry: None
) -> None:
    """Root may write to a read-only folder, but not to /proc."""
    journal = FileJournal(Path(place))
    assert await journal.open() == []
    for entry in (ENTRY, OTHER):
        await write(journal, entry)
    assert not journal.works
    await journal.close()
    (line,) = lines(caplog)
    assert f"the journal {place} cannot be written: " in line


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null"])
async def test_device_is_no_journal(place: str, caplog: pytest.LogCaptureFixture) -> None:
    mode = os.stat(place).st_mode
    journal = FileJournal(Path(place))
    assert await journal.open() == []
    await journal.close()
    assert "not a regular file" in caplog.text
    assert os.stat(place).st_mode == mode


async def test_folder_that_appears_later_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, short_retry: None
) -> None:
    path = tmp_path / "a" / "b" / "journal.sqlite3"
    journal = FileJournal(path)
    await journal.open()
    await write(journal, ENTRY)
    (tmp_path / "a").mkdir()
    await until(lambda: journal.works)
    await journal.close()
    assert await entries(path) == [ENTRY]
    assert "works again, 1 forks are in it" in caplog.text


async def test_bug_in_the_journal_is_logged_and_reaches_nobody(
    path: Path,
    journals: Callable[[], FileJournal],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journals()
    await journal.open()
    monkeypatch.setattr(journal_module._File, "change", lambda self, changes: 1 / 0)
    journal.put(ENTRY)
    assert journal._writer is not None
    await asyncio.to_thread(journal._writer.join, 10)
    journal.put(OTHER)
    assert not journal.works
    assert "the journal failed; continuing without it" in caplog.text


async def test_open_that_takes_for_ever_is_given_up(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(path: Path) -> None:
        loop.call_soon_threadsafe(hangs.set)
        released.wait()

    monkeypatch.setattr(file_module, "make_private", hang)
    monkeypatch.setattr(journal_module, "OPEN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(journal_module, "CLOSE_TIMEOUT_S", 0.05)
    journal = FileJournal(path)
    assert await journal.open() == []
    await hangs.wait()
    assert "did not open within 0.05 s" in caplog.text
    await journal.close()
    released.set()
    assert journal._writer is not None
    await asyncio.to_thread(journal._writer.join, 10)
