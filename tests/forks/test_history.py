"""The history: what it keeps, finds and forgets, and files that it cannot use."""

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
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from audiofork.asterisk.channels import Target
from audiofork.config import HistoryConfig
from audiofork.errors import HistoryUnavailable
from audiofork.forks import history as module
from audiofork.forks import history_file, history_search, history_writer, sqlite_file
from audiofork.forks.events import (
    About,
    DomainEvent,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.history import Entry, History, HistoryQuery
from audiofork.forks.history_entries import MOST_ENTRIES
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import Options
from audiofork.forks.requests import MuteFork, Origin, StartFork
from audiofork.forks.timelines import Moment, Timelines
from audiofork.link.messages import EndReason, ForkStats
from tests.control_plane import NAME, UNIQUEID, Rig
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
    async with asyncio.timeout(10):
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


# --- What an entry has ---------------------------------------------------------------------------


async def test_fork_that_has_ended_is_kept_with_all_that_is_known(kept: Kept, times: Clock) -> None:
    info = fork()
    await kept.tell(requested(info), Started(info))
    times.now_s += 60
    await kept.tell(ended(info, EndReason.SINK_GONE, "it broke"))
    entry = await kept.entry(info.id)
    assert entry == Entry(
        fork_id=info.id,
        channel="PJSIP/100-00000001",
        uniqueid="1700000000.1",
        caller_number=NUMBER,
        caller_name=CALLER,
        url="wss://Example.org:8443/live?...",
        host="example.org",
        direction="both",
        profile="",
        format="json",
        tap="snoop",
        sample_rate=16000,
        requested_at=5000.0,
        started_at=5060.5,
        ended_at=5120.5,
        reason="sink-gone",
        failed=True,
        detail="it broke",
        totals={
            **{"frames_in": 9, "frames_sent": 5, "frames_dropped": 4, "frames_missing": 2},
            **{"reconnects": 1, "messages_ignored": 0, "messages_unused": 0},
            **{"commands_refused": 0, "frames_played": 0, "frames_cleared": 0},
            **{"frames_unplayed": 0, "underruns": 0},
            **{"gaps": 1, "gap_s": 0.25, "relays_lost": 3, "duration_s": 120.5},
        },
        timeline=(
            Moment(
                *(5060.5, "requested"),
                f"by ami {NAME}, both by snoop at 16000 Hz to wss://Example.org:8443/live?...",
            ),
            Moment(5060.5, "started", "audio flows"),
            Moment(5120.5, "ended", "sink-gone (it broke)"),
        ),
    )


async def test_results_of_a_search_have_no_timelines(kept: Kept) -> None:
    await kept.tell(Started(fork()), ended(fork()))
    (entry,) = await kept.all()
    assert entry.timeline == ()
    assert dataclasses.replace(entry, timeline=()) == dataclasses.replace(
        await kept.entry(fork().id), timeline=()
    )


async def test_fork_that_never_had_audio_has_no_start(kept: Kept) -> None:
    await kept.tell(ended(fork(), EndReason.SINK_REFUSED))
    (entry,) = await kept.all()
    assert entry.started_at is None
    assert entry.failed


@pytest.mark.parametrize("reason", list(EndReason))
async def test_failures_are_the_reasons_that_an_administrator_should_look_at(
    kept: Kept, reason: EndReason
) -> None:
    await kept.tell(ended(fork(), reason))
    (entry,) = await kept.all()
    no_failures = {"hangup", "stopped", "sink-closed", "shutdown"}
    assert (entry.reason, entry.failed) == (reason.value, reason.value not in no_failures)


async def test_profile_is_kept_by_its_name_and_nothing_else_of_its_server(kept: Kept) -> None:
    await kept.tell(ended(fork(url="@speech", profile="speech")))
    (entry,) = await kept.all()
    assert (entry.url, entry.host, entry.profile) == ("@speech", "@speech", "speech")


async def test_outcome_of_the_post_process_command_is_added(kept: Kept) -> None:
    info = fork()
    await kept.tell(ended(info))
    await kept.tell(
        Stopped(info, EndReason.HANGUP, "", 1.0, ForkStats(), post_process_status="not run")
    )
    (entry,) = await kept.all()
    whole = await kept.entry(info.id)
    assert [moment.text for moment in whole.timeline] == ["hangup", "exit status not run"]
    assert await kept.ids(text="exit status not") == [1]
    assert whole.totals == entry.totals


async def test_last_event_without_a_command_changes_nothing(kept: Kept) -> None:
    info = fork()
    await kept.tell(ended(info), Failed(info, EndReason.SINK_GONE, "", 1.0, ForkStats()))
    whole = await kept.entry(info.id)
    assert [moment.kind for moment in whole.timeline] == ["ended"]


async def test_refused_start_is_kept_with_its_reason(kept: Kept) -> None:
    target = Target("PJSIP/100-0000002a", "17.1")
    request = StartFork(target, URL, Options(), origin=Origin("dialplan", "PJSIP/100-0000002a"))
    await kept.tell(Refused(request, "No such channel"), Refused(request, "No such channel"))
    entries = await kept.all(reason="refused")
    assert len({entry.fork_id for entry in entries}) == 2
    first = entries[0]
    assert (
        (first.channel, first.uniqueid, first.host) == (*target.__reduce__()[1], "example.org")[:3]
        if False
        else ("PJSIP/100-0000002a", "17.1", "example.org")
    )
    assert (first.failed, first.detail, first.started_at) == (True, "No such channel", None)
    assert first.requested_at == first.ended_at == 5060.5
    whole = await kept.entry(first.fork_id)
    text = "by dialplan PJSIP/100-0000002a: No such channel"
    assert whole.timeline == (Moment(5060.5, "refused", text),)


async def test_refused_request_that_is_no_start_is_not_kept(kept: Kept) -> None:
    await kept.tell(Refused(MuteFork(Target("x"), "", True, True), "No such fork"))
    assert await kept.all() == []


async def test_flood_of_refused_starts_is_not_kept_and_said(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        request = StartFork(Target("x"), URL, Options(), origin=Origin("ami", f"{number % 2}"))
        await kept.tell(Refused(request, "no"))
    assert len(await kept.all(limit=500)) == 2 * module.REFUSED_OF_ORIGIN
    await kept.history.close()
    assert "refused starts not kept in the history, too many" in caplog.text


async def test_life_of_a_real_fork_is_kept(kept: Kept, rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(9, 9))
    await kept.tell(*rig.events)
    entry = await kept.entry(fork_id)
    assert (entry.channel, entry.uniqueid, entry.reason) == (NAME, UNIQUEID, "hangup")
    assert (entry.direction, entry.format, entry.tap) == ("both", "raw", "chanspy")
    assert entry.totals["frames_sent"] == 9
    assert [moment.kind for moment in entry.timeline] == ["requested", "started", "ended"]


async def test_fork_of_an_earlier_run_has_one_entry_with_what_is_known(kept: Kept) -> None:
    info = fork(from_earlier_run=True)
    request = StartFork(Target(NAME), URL, Options())
    await kept.tell(Requested(info, request), Started(info), ended(info))
    await kept.tell(
        ended(info, EndReason.FAULT)
    )  # a daemon that was killed between file and journal
    (entry,) = await kept.all()
    assert (entry.requested_at, entry.started_at, entry.reason) == (5000.0, 5060.5, "hangup")
    whole = await kept.entry(info.id)
    assert whole.timeline[0].text.startswith("taken up from an earlier run of the daemon")


async def test_fork_that_cannot_be_resumed_is_kept_too(kept: Kept) -> None:
    info = fork(from_earlier_run=True)
    await kept.tell(
        Ended(info, EndReason.HANGUP, ForkStats(), False, "the call ended while away"),
        Stopped(info, EndReason.HANGUP, "the call ended while away", 9.0, ForkStats()),
    )
    (entry,) = await kept.all()
    assert (entry.detail, entry.totals["frames_in"]) == ("the call ended while away", 0)


# --- What is not kept ----------------------------------------------------------------------------


async def test_texts_are_harmless(kept: Kept) -> None:
    evil = "a\r\n\x1b[31m\u2028b"
    info = fork(channel=evil, caller_name=evil, caller_number=evil, uniqueid=evil)
    await kept.tell(
        *(requested(info), Reconnecting(info, Away.SERVER, 1, evil, True)),
        ended(info, EndReason.SINK_GONE, evil),
    )
    entry = await kept.entry(info.id)
    texts = [entry.channel, entry.caller_name, entry.caller_number, entry.uniqueid, entry.detail]
    texts += [moment.text for moment in entry.timeline]
    assert all(text.isprintable() for text in texts)
    assert len(entry.timeline) == 3


async def test_query_of_a_url_is_kept_only_where_asked_for(
    kept: Kept, keep: Callable[..., Any], path: Path
) -> None:
    await kept.tell(ended(fork()))
    assert b"hunter2" not in bytes_of(path)
    await kept.history.close()
    other = await keep(queries=True)
    await other.tell(ended(fork(2)))
    (entry, _) = await other.all()
    assert entry.url == URL


@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("url", ["wss://user:hunter2@h/", "wss:hunter2@h/", "ws://h@hunter2/?a=@"])
async def test_password_in_a_refused_url_is_never_kept(
    keep: Callable[..., Any], path: Path, queries: bool, url: str
) -> None:
    kept = await keep(queries=queries)
    request = StartFork(Target("x"), url, Options())
    await kept.tell(Refused(request, "WsServer: credentials are not allowed in a URL"))
    assert len(await kept.all()) == 1
    assert b"hunter2" not in bytes_of(path)


async def test_texts_of_servers_are_kept_only_where_asked_for(
    kept: Kept, keep: Callable[..., Any], path: Path
) -> None:
    await kept.tell(requested(fork()), MessageReceived(fork(), "my card is 4711"), ended(fork()))
    entry = await kept.entry(fork().id)
    assert [moment.text for moment in entry.timeline[1:]] == ["a text", "hangup"]
    assert b"4711" not in bytes_of(path)
    await kept.history.close()
    other = await keep(texts=True)
    await other.tell(
        *(requested(fork(2)), MessageReceived(fork(2), "my card is 4711"), ended(fork(2)))
    )
    assert await other.ids(text="card 4711") == [2]


async def test_masked_number_is_nowhere_in_the_file(keep: Callable[..., Any], path: Path) -> None:
    kept = await keep(mask_numbers=True, queries=True)
    info = fork(
        channel="SIP/4930123456-0000002a",
        caller_name="+49 (30) 123456",
        url="ws://h/%2B4930123456/?from=4930123456",
    )
    why = "no answer for 4930123456"
    origin = Origin("dialplan", "SIP/4930123456-0000002a")
    await kept.tell(
        Requested(info, StartFork(Target(NAME), URL, Options(), origin=origin)),
        *(Reconnecting(info, Away.SERVER, 1, why, True), ended(info, EndReason.SINK_GONE, why)),
    )
    entry = await kept.entry(info.id)
    assert entry.caller_number == "+*******456"
    assert entry.caller_name == "+** (**) ***456"
    assert entry.channel == "SIP/*******456-0000002a"
    assert entry.url == "ws://h/%2B*******456/?from=*******456"
    assert entry.detail == "no answer for *******456"
    assert all("*******456" in moment.text for moment in entry.timeline)
    assert b"4930123456" not in bytes_of(path)
    assert await kept.ids(caller="+*******456") == [1]
    assert await kept.ids(channel="SIP/*******456") == [1]
    assert await kept.ids(caller=NUMBER) == []


async def test_masked_channel_is_masked_in_the_timeline_too(
    keep: Callable[..., Any], path: Path
) -> None:
    kept = await keep(mask_numbers=True)
    info = fork(caller_number="100")
    origin = Origin("dialplan", info.channel)
    await kept.tell(
        Requested(info, StartFork(Target(NAME), URL, Options(), origin=origin)), ended(info)
    )
    entry = await kept.entry(info.id)
    assert entry.timeline[0].text.startswith("by dialplan PJSIP/*00-00000001, both by snoop")
    assert b"PJSIP/100" not in bytes_of(path)


async def test_options_that_are_reloaded_hold_for_what_ends_then(kept: Kept, path: Path) -> None:
    await kept.tell(ended(fork(1)))
    kept.history.configure(HistoryConfig(file=str(path), keep_days=36500, mask_numbers=True))
    await kept.tell(ended(fork(2)))
    assert [entry.caller_number for entry in await kept.all()] == ["+*******456", NUMBER]


# --- Searching -----------------------------------------------------------------------------------


async def fill(kept: Kept, times: Clock) -> None:
    """Make five entries, each a minute after the one before."""
    ends: list[tuple[ForkInfo, EndReason, str]] = [
        (fork(1), EndReason.HANGUP, ""),
        (fork(2, channel="PJSIP/200-00000002"), EndReason.SINK_GONE, "Connection refused"),
        (fork(3, url="@speech", caller_number="0700"), EndReason.HANGUP, ""),
        (fork(4, caller_name="Anna Bell", caller_number=""), EndReason.STOPPED, ""),
        (fork(5, url="ws://127.0.0.1:8080/a_b"), EndReason.LEG_FAILED, "the leg of 100% did"),
    ]
    for info, reason, detail in ends:
        times.now_s += 60
        await kept.tell(ended(info, reason, detail))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"channel": "PJSIP/100-00000003"}, [3]),
        ({"channel": "PJSIP/100"}, [5, 4, 3, 1]),
        ({"channel": "PJSIP/10"}, []),
        ({"channel": "1700000000.4"}, [4]),
        ({"caller": NUMBER}, [5, 2, 1]),
        ({"caller": "0049 (30) 12-34-56"}, [5, 2, 1]),
        ({"caller": "30123456"}, []),
        ({"caller": "0700"}, [3]),
        ({"caller": "zoe"}, [5, 3, 2, 1]),
        ({"caller": "MÜLL zoë"}, [5, 3, 2, 1]),
        ({"caller": "anna be"}, [4]),
        ({"caller": "anna b"}, []),
        ({"host": "EXAMPLE.org"}, [4, 2, 1]),
        ({"host": "@speech"}, [3]),
        ({"host": "127.0.0.1"}, [5]),
        ({"reason": "hangup"}, [3, 1]),
        ({"failed": True}, [5, 2]),
        ({"failed": False}, [4, 3, 1]),
        ({"since": 5240.5}, [5, 4, 3]),
        ({"until": 5240.5}, [2, 1]),
        ({"since": 5180.5, "until": 5300.5}, [3, 2]),
        ({"since": 9000.0}, []),
        ({"text": "refused"}, [2]),
        ({"text": "conn refu"}, [2]),
        ({"text": "refused conn"}, [2]),
        ({"text": "127.0.0.1:8080"}, [5]),
        ({"text": "a_b"}, [5]),
        ({"text": "4930123456"}, [5, 2, 1]),
        ({"text": "pjsip/200"}, [2]),
        ({"text": "elephant"}, []),
        ({"text": '" OR * : ( NEAR ^ -'}, []),
        ({"text": "%"}, [5, 4, 3, 2, 1]),
        ({"text": "refused", "failed": True, "reason": "sink-gone"}, [2]),
        ({"text": "refused", "failed": False}, []),
        ({"text": "hangup", "since": 5200.0}, [3]),
        ({"text": "hangup", "until": 5200.0}, [1]),
        ({"text": "hangup", "since": 9000.0}, []),
        ({"text": "hangup", "caller": "zoe"}, [3, 1]),
        ({"text": "hangup", "caller": NUMBER, "since": 5000.0, "until": 9000.0}, [1]),
        ({"text": "hangup", "channel": "PJSIP/100", "reason": "hangup"}, [3, 1]),
        ({"text": "h"}, []),
        ({"channel": "PJSIP/100", "reason": "hangup", "host": "example.org"}, [1]),
        ({"channel": "' OR 1 --"}, []),
        ({"limit": 2}, [5, 4]),
        ({"limit": 0}, [5]),
        ({"limit": -5}, [5]),
    ],
    ids=str,
)
async def test_search_finds_what_fits_newest_first(
    kept: Kept, times: Clock, query: dict[str, Any], found: list[int]
) -> None:
    await fill(kept, times)
    assert await kept.ids(**query) == found


@pytest.mark.parametrize("query", [{}, {"text": "hangup"}, {"host": "example.org"}], ids=str)
async def test_pages_have_each_entry_once_though_others_end_meanwhile(
    kept: Kept, times: Clock, query: dict[str, Any]
) -> None:
    for number in range(1, 8):
        times.now_s += number % 2  # some end at the same moment
        await kept.tell(ended(fork(number)))
    found: list[str] = []
    cursor, number = "", 100
    while True:
        page = HistoryQuery(**query, limit=3, cursor=cursor)
        entries, cursor = await kept.history.search(page)
        found += [entry.fork_id[:8] for entry in entries]
        if not cursor:
            break
        times.now_s += 1
        await kept.tell(ended(fork(number := number + 1)))
    assert found == [f"{number:08x}" for number in range(7, 0, -1)]


@pytest.mark.parametrize("cursor", ["x", "1.5", "-", "1.5-x", "' OR 1", "nan"])
async def test_cursor_of_nobody_is_refused(kept: Kept, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor: expected one of an earlier answer"):
        await kept.history.search(HistoryQuery(cursor=cursor))


async def test_page_has_no_more_entries_than_allowed(kept: Kept) -> None:
    await kept.tell(*(ended(fork(number)) for number in range(MOST_ENTRIES + 10)))
    entries, cursor = await kept.history.search(HistoryQuery(limit=10**6))
    assert len(entries) == MOST_ENTRIES
    assert cursor


@pytest.mark.parametrize(
    ("asked", "found"),
    [("00000002", True), ("0000000", False), ("", False), ("00000003", False), ("%", False)],
)
async def test_entry_is_found_by_the_beginning_of_its_id(
    kept: Kept, asked: str, found: bool
) -> None:
    await kept.tell(ended(fork(1)), ended(fork(2)))
    assert (await kept.history.entry(asked) is not None) is found


async def test_beginning_that_two_ids_have_finds_none(kept: Kept) -> None:
    ids = ("00000001-1111-4222-8333-444455556666", "00000001-1111-4222-8333-444455556667")
    await kept.tell(*(ended(fork(id=one)) for one in ids))
    assert await kept.history.entry("00000001") is None
    assert await kept.history.entry(ids[0]) is not None


async def test_causes_are_grouped_and_the_most_frequent_come_first(
    kept: Kept, times: Clock
) -> None:
    details = ["port 1: refused", "port 22: refused", "HTTP 403", "port 3: refused"]
    for number, detail in enumerate(details):
        times.now_s += 1
        await kept.tell(ended(fork(number), EndReason.SINK_GONE, detail))
    await kept.tell(ended(fork(9), EndReason.HANGUP, "port 4: refused"))
    first, second = await kept.history.causes(0)
    assert dataclasses.astuple(first) == (
        *("sink-gone", "port N: refused", 3, times.now_s),
        fork(3).id,
    )
    assert (second.detail, second.count) == ("HTTP 403", 1)
    assert [cause.count for cause in await kept.history.causes(times.now_s)] == [1]
    assert await kept.history.causes(times.now_s + 1) == []


async def test_search_that_takes_too_long_is_given_up_and_the_next_one_works(
    kept: Kept, times: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for begin in range(0, 3000, 1000):
        await kept.tell(*(ended(fork(number)) for number in range(begin, begin + 1000)))
    with monkeypatch.context() as slow:
        slow.setattr(history_search, "ANSWER_S", -1.0)
        slow.setattr(history_search, "_LOOK_AT_CLOCK", 1)
        with pytest.raises(HistoryUnavailable, match="give it a shorter time"):
            await kept.all(reason="stopped", text="hangup")
    assert await kept.ids(limit=1) == [2999]


def test_each_filter_has_an_index(path: Path) -> None:
    """What SQLite plans: no search reads all entries, and none sorts them."""
    file = HistoryFile(path)
    with contextlib.closing(file):
        plans: list[str] = []
        file.db.set_trace_callback(
            lambda statement: (
                plans.append(statement) if statement.startswith("SELECT forks.") else None
            )
        )
        for query in (
            *({"channel": "PJSIP/1"}, {"channel": "PJSIP/1-0000002a"}, {"channel": "1.1"}),
            *({"caller": "123"}, {"host": "h"}, {"reason": "hangup"}, {"failed": True}),
            *({"since": 1.0}, {"until": 1.0}, {}, {"channel": "PJSIP/1", "reason": "hangup"}),
            *({"text": "a"}, {"text": "a", "since": 1.0}, {"caller": "anna"}),
        ):
            file.search(HistoryQuery(**query))
            file.search(HistoryQuery(**query, cursor="1.0-1"))
        file.db.set_trace_callback(None)
        assert len(plans) == 28
        for statement in plans:
            plan = [row[-1] for row in file.db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert not any("TEMP B-TREE" in step for step in plan), (statement, plan)
            assert not any(step == "SCAN forks" for step in plan), (statement, plan)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({"channel": "PJSIP/1", "reason": "hangup"}, "by_endpoint"),
        ({"caller": "123", "host": "h", "reason": "hangup"}, "by_caller_key"),
        ({"channel": "1.1", "host": "h", "since": 1.0}, "by_uniqueid"),
        ({"host": "h", "reason": "hangup", "failed": True}, "by_host"),
        ({"channel": "PJSIP/1", "caller": "123", "failed": True}, "by_endpoint"),
    ],
    ids=str,
)
def test_of_several_filters_the_index_of_the_most_selective_is_used(
    path: Path, query: dict[str, Any], index: str
) -> None:
    with contextlib.closing(HistoryFile(path)) as file:
        said: list[str] = []
        file.db.set_trace_callback(said.append)
        file.search(HistoryQuery(**query))
        file.db.set_trace_callback(None)
        (statement,) = (one for one in said if one.startswith("SELECT forks."))
        plan = [row[-1] for row in file.db.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert any(f"INDEX {index} " in step for step in plan), plan


# --- Removing ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_writer, "LOOK_S", 0.01)
    monkeypatch.setattr(history_writer, "STEP_PAUSE_S", 0.001)


async def test_what_is_too_old_is_removed_and_nothing_else(
    kept: Kept, times: Clock, path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "STEP_ROWS", 2)
    times.now_s = time.time() - 3 * DAY_S
    await kept.tell(*(ended(fork(number, caller_name="Elephant")) for number in range(5)))
    times.now_s = time.time()
    await kept.tell(ended(fork(9)))
    kept.history.configure(HistoryConfig(file=str(path), keep_days=2))
    await becomes(kept, [9])
    assert await kept.ids(text="elephant") == []
    assert await kept.ids(text="hangup") == [9]


async def test_most_rows_stay_and_the_oldest_go(
    keep: Callable[..., Any], times: Clock, quick: None
) -> None:
    kept = await keep(max_rows=3)
    for number in range(8):
        times.now_s += 1
        await kept.tell(ended(fork(number)))
    await becomes(kept, [7, 6, 5])


async def test_refused_starts_take_a_tenth_of_the_rows(path: Path) -> None:
    with contextlib.closing(HistoryFile(path)) as file:
        base = entry_of(path)
        refused = dataclasses.replace(base, reason="refused", failed=True)
        file.write(dataclasses.replace(base, fork_id=str(number)) for number in range(50))
        file.write(dataclasses.replace(refused, fork_id=f"r{number}") for number in range(50))
        assert (file.rows, file.refused) == (100, 50)
        while file.remove_some(0.0, 100):
            pass
        assert (file.rows, file.refused) == (60, 10)
    with contextlib.closing(HistoryFile(path)) as again:
        assert (again.rows, again.refused) == (60, 10)


def entry_of(path: Path) -> Entry:
    """Return some entry."""
    history = History(HistoryConfig(file=str(path)), Timelines(), lambda: NOW)
    return history._ended(ended(fork(caller_name="Elephant")))


async def test_words_of_removed_entries_leave_the_index(path: Path) -> None:
    with contextlib.closing(HistoryFile(path)) as file:
        for number in range(20):
            file.write([dataclasses.replace(entry_of(path), fork_id=str(number))])
        while file.remove_some(NOW + 1, 100):
            pass
        while file.merge():
            pass
        file.wipe()
        assert file.rows == 0
    assert b"lephant" not in bytes_of(path).lower()


async def test_merge_follows_a_removal(
    keep: Callable[..., Any], times: Clock, path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_writer, "MERGE_S", 0.01)
    kept = await keep(max_rows=1)
    for number in range(5):
        times.now_s += 1
        await kept.tell(ended(fork(number, caller_name="Elephant" if number < 4 else "Ant")))
    await until(lambda: b"lephant" not in bytes_of(path).lower())
    assert await kept.ids() == [4]


async def test_caller_is_forgotten_in_every_byte(kept: Kept, times: Clock, path: Path) -> None:
    mentions = ("SIP/4930123456-0000002a", "ws://h/%2B4930123456", "who is 4930123456")
    forks = [
        fork(1),
        fork(2, caller_number="004930123456"),
        fork(3, caller_number="", channel=mentions[0]),
        fork(4, caller_number="", url=mentions[1]),
        fork(5, caller_number="49301234567"),
        fork(6, caller_number="0700"),
    ]
    await kept.tell(*(ended(info) for info in forks))
    await kept.tell(ended(fork(7, caller_number=""), EndReason.SINK_GONE, mentions[2]))
    assert b"4930123456" in bytes_of(path)
    assert await kept.history.forget("+49 30 123456") == 5
    assert await kept.ids() == [6, 5]
    left = bytes_of(path).replace(b"49301234567", b"")
    assert b"4930123456" not in left
    assert b"M\xc3\xbcller" in left  # of the others
    assert await kept.history.forget(NUMBER) == 0


@pytest.mark.parametrize("number", ["", "+", "anonymous", "+*******456", "%", "Zoë"])
async def test_what_is_no_number_is_not_forgotten(keep: Callable[..., Any], number: str) -> None:
    kept = await keep(mask_numbers=True)
    await kept.tell(ended(fork(1)), ended(fork(2, caller_number="")))
    assert await kept.history.forget(number) == 0
    assert len(await kept.all()) == 2


async def test_short_number_is_forgotten_as_a_caller_and_not_where_it_is_mentioned(
    kept: Kept,
) -> None:
    await kept.tell(ended(fork(1, caller_number="100")), ended(fork(2, caller_number="0700")))
    assert await kept.history.forget("100") == 1
    assert await kept.ids() == [2]


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
    real_write = HistoryFile.write

    def slow(self: HistoryFile, works: Any) -> None:
        hangs.set()
        goes_on.wait(10)
        real_write(self, works)

    monkeypatch.setattr(HistoryFile, "write", slow)
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    await kept.tell()
    try:
        kept.history.on_event(ended(fork(0)))
        await asyncio.to_thread(hangs.wait, 10)
        began = time.monotonic()
        for number in range(1, 31):
            kept.history.on_event(ended(fork(number)))
        assert time.monotonic() - began < 1
        with pytest.raises(HistoryUnavailable, match="too many ask"):
            await kept.ids()
    finally:
        goes_on.set()
    await until(lambda: kept.history._writer and kept.history._writer.works.empty())
    assert len(await kept.all()) == 11
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


async def test_entries_survive_sigkill(path: Path) -> None:
    """Of a process that is killed as soon as its thread has taken them."""
    script = f"""
import asyncio, os, signal, sys, time
from audiofork.config import HistoryConfig
from audiofork.forks.history import History
from audiofork.forks.timelines import Timelines
from tests.forks.test_history import ended, fork
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
    assert done.stdout == (
        f"HistoryUnavailable the history {path} cannot be read: database is locked\n"
    )


@pytest.mark.parametrize("content", [None, b"", b"no database " * 100])
def test_file_that_is_no_history_is_not_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "h"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HistoryUnavailable), history_file.reading(path):
        pass
    assert content is None or path.read_bytes() == content
