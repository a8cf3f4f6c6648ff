"""The command history: by a daemon over its control socket, and from the file of none."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audiofork.cli import main
from audiofork.commands import history_command
from audiofork.config import HistoryConfig
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.history_answers import HistoryAnswers
from audiofork.forks.history import Entry, History
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.timelines import Timelines
from tests.commands.histories import ENTRY

NOW = time.time()
ENTRIES = [
    dataclasses.replace(ENTRY, ended_at=NOW - 7200),
    dataclasses.replace(
        ENTRY,
        fork_id="3f2a91c1-0000-4000-8000-000000000002",
        channel="PJSIP/200-0000002b",
        caller_number="0700",
        caller_name="Anna",
        reason="hangup",
        failed=False,
        detail="",
        ended_at=NOW - 60,
        timeline=(),
    ),
]


class DaemonWithHistory:
    """A control socket with a history, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "control.sock"
        self._file = folder / "history.sqlite3"
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        history = History(HistoryConfig(file=str(self._file)), Timelines())
        await history.open()
        socket = ControlSocket(
            self.socket, ControlAnswers(ask, views, history=HistoryAnswers(history))
        )
        await socket.start()
        self._ready.set()
        await self._stop.wait()
        await socket.close()
        await history.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


async def ask(_request: object) -> list[str]:
    raise NotImplementedError


async def views() -> list[Any]:
    return []


def fill(folder: Path, entries: list[Entry] = ENTRIES) -> None:
    with contextlib.closing(HistoryFile(folder / "history.sqlite3")) as file:
        file.write(entries)


@pytest.fixture(params=["daemon", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with a configuration and a history, by a daemon that runs or by none."""
    (tmp_path / "audiofork.ini").write_text(
        f"[control]\nsocket = {tmp_path}/control.sock\n"
        f"[history]\nfile = {tmp_path}/history.sqlite3\n"
    )
    fill(tmp_path)
    daemon = DaemonWithHistory(tmp_path) if request.param == "daemon" else None
    yield tmp_path
    if daemon is not None:
        daemon.stop()


def history(folder: Path, *arguments: str, **more: Any) -> Result:
    config = str(folder / "audiofork.ini")
    return CliRunner().invoke(main, ["history", *arguments, "-c", config], **more)


def ids(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [entry["fork_id"][:8] for entry in json.loads(result.stdout)]


def test_entries_are_a_table_the_newest_first(folder: Path) -> None:
    result = history(folder)
    assert result.exit_code == 0
    heading, first, second = result.stdout.splitlines()
    assert heading.split()[:2] == ["ENDED", "ID"]
    assert ENTRIES[1].fork_id in first
    assert ENTRIES[0].fork_id in second


def test_file_that_is_read_without_a_daemon_is_named_on_standard_error(folder: Path) -> None:
    runs = (folder / "control.sock").exists()
    said = history(folder).stderr
    where = f"no daemon answers: read from {folder}/history.sqlite3\n"
    assert said == ("" if runs else where)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["3f2a91c1", "3f2a91c0"]),
        (["--channel", "PJSIP/200"], ["3f2a91c1"]),
        (["--caller", "+49 30 123456"], ["3f2a91c0"]),
        (["--caller", "anna"], ["3f2a91c1"]),
        (["--host", "example.org"], ["3f2a91c1", "3f2a91c0"]),
        (["--reason", "hangup"], ["3f2a91c1"]),
        (["--failed"], ["3f2a91c0"]),
        (["--text", "connection bro"], ["3f2a91c0"]),
        (["--since", "1h"], ["3f2a91c1"]),
        (["--until", "1h"], ["3f2a91c0"]),
        (["--since", "3h", "--until", "1h", "--failed"], ["3f2a91c0"]),
        (["--limit", "1"], ["3f2a91c1"]),
        (["--limit", "0"], ["3f2a91c1", "3f2a91c0"]),
    ],
    ids=str,
)
def test_filters_and_json(folder: Path, options: list[str], found: list[str]) -> None:
    assert ids(history(folder, "--json", *options)) == found


def test_nothing_found_is_no_failure(folder: Path) -> None:
    result = history(folder, "--reason", "fault")
    assert (result.exit_code, result.stdout) == (0, "no entries\n")


def test_json_has_every_field(folder: Path) -> None:
    entry = json.loads(history(folder, "--json", "--failed").stdout)[0]
    assert set(entry) == {one.name for one in dataclasses.fields(Entry)}
    assert entry["timeline"] == []
    assert entry["totals"]["frames_sent"] == 3000


def test_one_entry_has_its_timeline(folder: Path) -> None:
    text = history(folder, "3F2A91C0").stdout
    assert text.startswith(f"fork {ENTRY.fork_id}\n")
    assert "started       audio flows" in text
    entry = json.loads(history(folder, ENTRY.fork_id, "--json").stdout)
    assert entry["timeline"][1] == {
        "at": 1_700_000_000.75,
        "kind": "started",
        "text": "audio flows",
    }


def test_entry_that_is_not_there_exits_with_1(folder: Path) -> None:
    result = history(folder, "3f2a91c9")
    assert result.exit_code == 1
    assert "no entry, or more than one, with the id 3f2a91c9" in result.stderr


def test_causes_are_grouped(folder: Path) -> None:
    assert "sink-gone  3f2a91c0  the connection broke" in history(folder, "--causes").stdout
    (cause,) = json.loads(history(folder, "--causes", "--json", "--since", "3h").stdout)
    assert (cause["count"], cause["fork_id"]) == (1, ENTRY.fork_id)
    assert history(folder, "--causes", "--since", "1h").stdout == "no failures\n"


def test_caller_is_forgotten_after_a_yes(folder: Path) -> None:
    result = history(folder, "--forget", "+4930123456", input="n\n")
    assert result.exit_code == 1
    assert "Remove all entries of calls from this number for good, and blank it" in result.stderr
    result = history(folder, "--forget", "100", input="n\n")
    assert "Remove all entries of calls from this number for good? [y/N]" in result.stderr
    result = history(folder, "--forget", "004930123456", input="y\n")
    assert (result.exit_code, result.stdout) == (0, "1 entries removed\n")
    assert ids(history(folder, "--json")) == ["3f2a91c1"]
    assert b"4930123456" not in (folder / "history.sqlite3").read_bytes()


def test_number_may_come_by_standard_input_and_yes_by_an_option(folder: Path) -> None:
    result = history(folder, "--forget", "-", "--yes", "--json", input="0700\n")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"removed": 1, "blanked": 0})
    assert ids(history(folder, "--json")) == ["3f2a91c0"]


def test_many_entries_come_page_by_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_command, "_PAGE", 1)
    assert ids(history(folder, "--json", "--limit", "0")) == ["3f2a91c1", "3f2a91c0"]
    assert ids(history(folder, "--json", "--limit", "1")) == ["3f2a91c1"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--since", "soon"], "expected 2h (s, m, h, d, w), today"),
        (["--limit", "-1"], "-1 is not in the range"),
        (["--forget", "Anna", "--yes"], "expected a number"),
        (["--forget", "²", "--yes"], "expected a number"),
        (["--forget", "49+30", "--yes"], "expected a number"),
        (["--forget", "1", "--causes"], "--causes and --forget do not go together"),
        (["3f2a91c0", "--failed"], "ID and --failed do not go together"),
        (["--causes", "--host", "h"], "--causes and --host do not go together"),
        (["--forget", "1", "--since", "2h"], "--forget and --since do not go together"),
    ],
    ids=str,
)
def test_wrong_command_line_exits_with_2(tmp_path: Path, arguments: list[str], why: str) -> None:
    result = history(tmp_path, *arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())


def test_file_of_a_cluster_says_that_others_were_not_asked(tmp_path: Path) -> None:
    (tmp_path / "audiofork.ini").write_text(
        f"[control]\nsocket = {tmp_path}/none.sock\n[cluster]\nservers = nats://127.0.0.1:9\n"
        f"[history]\nfile = {tmp_path}/history.sqlite3\n"
    )
    fill(tmp_path)
    result = history(tmp_path)
    assert result.exit_code == 0
    told = "the history of other controllers is missing: no controller runs here to ask them"
    assert told in result.stderr
    result = history(tmp_path, "--forget", "0700", "--yes", "--json")
    assert result.exit_code == 1
    done = json.loads(result.stdout)
    assert (done["removed"], list(done["missing"])) == (1, ["other controllers"])
    assert "the history of other controllers may still have the number" in result.stderr


# --- Where there is no history -------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"no database " * 100])
def test_neither_daemon_nor_file_exits_with_4_and_says_both(
    tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "audiofork.ini").write_text(
        f"[control]\nsocket = {tmp_path}/none.sock\n[history]\nfile = {tmp_path}/history.sqlite3\n"
    )
    if content is not None:
        (tmp_path / "history.sqlite3").write_bytes(content)
    for arguments in ([], ["3f2a91c0"], ["--causes"], ["--forget", "123", "--yes"]):
        result = history(tmp_path, *arguments)
        assert result.exit_code == 4, result.output
        assert f"no daemon at {tmp_path}/none.sock" in result.stderr
        assert f"the history {tmp_path}/history.sqlite3 cannot be read" in result.stderr
    assert (tmp_path / "history.sqlite3").exists() is (content is not None)


def test_without_daemon_and_without_a_file_in_the_configuration_exits_with_4(
    tmp_path: Path,
) -> None:
    (tmp_path / "audiofork.ini").write_text(
        f"[control]\nsocket = {tmp_path}/none.sock\n[history]\nfile =\n"
    )
    result = history(tmp_path)
    assert result.exit_code == 4
    assert f"no daemon at {tmp_path}/none.sock" in result.stderr


def test_without_a_configuration_exits_with_3(tmp_path: Path) -> None:
    assert history(tmp_path).exit_code == 3


def test_error_in_another_section_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "audiofork.ini").write_text(
        f"[control]\nsocket = {tmp_path}/none.sock\n[asterisk]\nport = x\n"
        f"[history]\nfile = {tmp_path}/history.sqlite3\n"
    )
    fill(tmp_path)
    assert history(tmp_path).exit_code == 0
