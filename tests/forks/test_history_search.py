"""The history: what a search finds, and how; and what is removed, forgotten."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofork.config import HistoryConfig
from audiofork.errors import HistoryUnavailable
from audiofork.forks import history_file, history_search, history_writer
from audiofork.forks.events import (
    CommandHandled,
    CommandOutcome,
    ForkInfo,
    MessageReceived,
    Reconnecting,
)
from audiofork.forks.history import HistoryQuery
from audiofork.forks.history_entries import MOST_ENTRIES
from audiofork.forks.history_file import HistoryFile
from audiofork.forks.lifecycle import Away
from audiofork.link.messages import EndReason, ServerCommand
from tests.forks.history_stage import (
    DAY_S,
    NOW,
    NUMBER,
    Kept,
    becomes,
    bytes_of,
    ended,
    entry_of,
    fork,
    keep,
    kept,
    path,
    requested,
    times,
    until,
)
from tests.told_clock import Clock

__all__ = ["keep", "kept", "path", "times"]

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


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


NO_CURSORS = (
    *("1-99999999999999999999", "1.0-9223372036854775808", "1.0-99999999999999999999"),
    *("nan-1", "inf-1", "-inf-1", "1_0.0-1_0", "1.0-1_0", "１.0-１", "1.0-١", "1.0- 1", "1.0--1"),
    *("1e5-1", "1.0-1\n", "1.0-+1", f"{'9' * 5000}.0-1", f"1.0-{'9' * 5000}"),
)


@pytest.mark.parametrize("cursor", ["x", "1.5", "-", "1.5-x", "' OR 1", "nan", *NO_CURSORS])
async def test_cursor_of_nobody_is_refused(kept: Kept, cursor: str) -> None:
    with pytest.raises(ValueError, match="^expected one of an earlier answer"):
        await kept.history.search(HistoryQuery(cursor=cursor))


async def test_greatest_cursor_is_taken(kept: Kept) -> None:
    await kept.tell(ended(fork()))
    for text in ("", "hangup"):
        last = HistoryQuery(cursor=f"9999999999999999.0-{2**63 - 1}", text=text)
        assert len((await kept.history.search(last))[0]) == 1


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


@pytest.mark.slow
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
    file.write([dataclasses.replace(entry_of(path), ended_at=1.0)])
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
            # Of words only those of a stretch of time are sorted.
            of_stretch = "FROM words" in statement
            assert of_stretch == ("words.rowid BETWEEN" in statement)
            assert of_stretch or not any("TEMP B-TREE" in step for step in plan), (statement, plan)
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


@pytest.mark.parametrize("few", [3, 2000])
async def test_search_for_words_is_in_order_of_time_though_the_clock_went_back(
    kept: Kept, times: Clock, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Whatever stretches of time it takes, with filters or without."""
    monkeypatch.setattr(history_search, "_FIRST_STRETCH", 3)
    monkeypatch.setattr(history_search, "_LONGER", 2)
    monkeypatch.setattr(history_search, "_FEW_WORDS", few)
    start = times.now_s
    for number, second in enumerate([0, 10, 20, 5, 15, 10, 10, 30, 1, 10, 25, 12, 5]):
        times.now_s = start + second
        await kept.tell(ended(fork(number)))
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"since": start + 5},
        {"until": start + 20},
        {"since": start + 99},
    )
    for more in cases:
        expected = await kept.ids(**more)
        assert await kept.ids(text="hangup", **more) == expected
        found, cursor = [], ""
        for _ in expected[::2]:
            page = HistoryQuery(text="hangup", limit=2, cursor=cursor)
            entries, cursor = await kept.history.search(dataclasses.replace(page, **more))
            found += [int(entry.fork_id[:8], 16) for entry in entries]
        assert (found, cursor) == (expected, "")


@pytest.mark.parametrize("text", ["hang\0up", "\0", "hangup\0", "a\ud800", "\x1b\n"], ids=ascii)
async def test_characters_that_nobody_prints_break_no_search(kept: Kept, text: str) -> None:
    await kept.tell(ended(fork()))
    for field in ("text", "caller", "channel", "host", "reason"):
        assert await kept.ids(**{field: text}) in ([], [1])
    assert await kept.history.entry(text * 9) is None
    assert await kept.ids(text="hang\0") == [1]


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


async def test_caller_is_forgotten_in_every_byte_and_blanked_where_others_mention_him(
    keep: Callable[..., Any], path: Path
) -> None:
    kept = await keep(texts=True)
    forks = [
        fork(1),
        fork(2, caller_number="004930123456"),
        fork(3, caller_number="", channel="SIP/4930123456-0000002a"),
        fork(4, caller_number="0700", caller_name="for +4930123456"),
        fork(5, caller_number="49301234567"),
        fork(6, caller_number="0700"),
    ]
    said = MessageReceived(forks[5], "004930123456 and 49301234567, said Zoë")
    sent = CommandHandled(forks[5], ServerCommand.TRANSFER, "4930123456", CommandOutcome.DONE)
    await kept.tell(*(requested(info) for info in forks), said, sent)
    await kept.tell(*(ended(info) for info in forks))
    assert b"4930123456" in bytes_of(path)
    assert await kept.history.forget("+49 30 123456") == (2, 3)
    assert await kept.ids() == [6, 5, 4, 3]
    left = bytes_of(path).replace(b"49301234567", b"")
    assert b"4930123456" not in left
    assert b"M\xc3\xbcller" in left  # of the others
    assert (await kept.entry(forks[2].id)).channel == "SIP/***-0000002a"
    assert await kept.ids(channel="SIP/***") == [3]
    assert (await kept.entry(forks[3].id)).caller_name == "for +***"
    texts = [one.text for one in (await kept.entry(forks[5].id)).timeline]
    assert texts[1:3] == ["*** and 49301234567, said Zoë", "transfer ***: done"]
    assert await kept.ids(text="said") == [6]
    assert await kept.history.forget(NUMBER) == (0, 0)


@pytest.mark.parametrize("number", ["16000", "10000", "12345678", "99999", "17000"])
async def test_number_that_stands_in_our_own_words_takes_no_entry_of_others(
    keep: Callable[..., Any], number: str
) -> None:
    """It is a sample rate, a port, part of an id, or of what we say."""
    kept = await keep(texts=True)
    info = fork(
        caller_number="0700",
        url="ws://h:10000/10000",
        uniqueid="17000.99999",
        channel="PJSIP/100-12345678",
    )
    away = Reconnecting(info, Away.SERVER, 17000, "no answer within 99999 ms", True)
    said = MessageReceived(info, "hello")
    await kept.tell(requested(info), said, away, ended(info, EndReason.SINK_GONE, "99999 ms"))
    before = await kept.entry(info.id)
    assert await kept.history.forget(number) == (0, 0)
    assert await kept.entry(info.id) == before


async def test_number_that_is_only_mentioned_leaves_the_index_too(kept: Kept, path: Path) -> None:
    await kept.tell(ended(fork(caller_number="0700", caller_name="for 4930123456")))
    assert await kept.history.forget(NUMBER) == (0, 1)
    assert b"4930123456" not in bytes_of(path)


async def test_caller_whose_number_is_a_sample_rate_is_forgotten_alone(kept: Kept) -> None:
    for info in (fork(1, caller_number="16000"), fork(2, caller_number="0700")):
        await kept.tell(requested(info), ended(info))
    assert await kept.history.forget("16000") == (1, 0)
    assert await kept.ids() == [2]


@pytest.mark.parametrize("number", ["", "+", "anonymous", "+*******456", "%", "Zoë", "²"])
async def test_what_is_no_number_is_not_forgotten(keep: Callable[..., Any], number: str) -> None:
    kept = await keep(mask_numbers=True)
    await kept.tell(ended(fork(1)), ended(fork(2, caller_number="")))
    assert await kept.history.forget(number) == (0, 0)
    assert len(await kept.all()) == 2


async def test_short_number_is_forgotten_as_a_caller_and_not_where_it_is_mentioned(
    kept: Kept,
) -> None:
    await kept.tell(ended(fork(1, caller_number="100")), ended(fork(2, caller_number="0700")))
    assert await kept.history.forget("100") == (1, 0)
    assert (await kept.all())[0].channel == fork(2).channel
    assert await kept.ids() == [2]


async def test_forgetting_that_is_broken_off_is_finished_by_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(HistoryFile(path)) as file:
        for number in range(20):
            file.write([dataclasses.replace(entry_of(path), fork_id=str(number))])
        with monkeypatch.context() as slow:
            slow.setattr(file, "_change", lambda changes: file.db.execute(ENDLESS).fetchall())
            slow.setattr(history_file, "FORGET_S", 0.05)
            with pytest.raises(HistoryUnavailable, match="is done in part: ask again"):
                file.forget(NUMBER)
        assert file.forget(NUMBER) == (0, 0)
    assert b"lephant" not in bytes_of(path).lower()
