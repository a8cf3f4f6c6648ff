"""The history as text: a table, one entry with its timeline, causes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from audiofork.commands.history_table import causes_table, details, table
from audiofork.commands.times import shown
from tests.commands.histories import ENTRY, as_listed

AT = shown(1_700_000_061.5)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_entry_is_a_line() -> None:
    heading, line = table([as_listed()]).splitlines()
    assert heading.split() == [
        *("ENDED", "ID", "CHANNEL", "CALLER", "SERVER", "TIME", "SENT", "DROPPED", "REASON"),
        "DETAIL",
    ]
    for cell in (
        *("2023-11-14 22:14:21", ENTRY.fork_id, "PJSIP/100-0000002a", "Zoë <+4930123456>"),
        *("wss://example.org/live?...", "0:01:01", "3000", "sink-gone", "the connection broke"),
    ):
        assert cell in line


def test_nothing_is_said_to_be_nothing() -> None:
    assert (table([]), causes_table([])) == ("no entries", "no failures")


@pytest.mark.parametrize(
    ("changes", "caller"),
    [
        ({"caller_number": "", "caller_name": ""}, "-"),
        ({"caller_name": ""}, "+4930123456"),
        ({"caller_number": ""}, "Zoë"),
        ({"caller_name": "+4930123456"}, "+4930123456"),
    ],
)
def test_caller_is_what_is_known_of_one(changes: dict[str, Any], caller: str) -> None:
    line = table([as_listed(**changes)]).splitlines()[1]
    assert f"  {caller}  " in line


def test_narrow_terminal_has_short_ids_and_the_rest_below() -> None:
    lines = table([as_listed()], 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        *("2023-11-14", "22:14:21", "3f2a91c0", "PJSIP/100-0000002a", "0:01:01", "sink-gone"),
    ]
    below = "Zoë <+4930123456>, wss://example.org/live?..."
    assert [line.strip() for line in lines[2:]] == [below, "the connection broke"]


def test_entry_without_totals_has_dashes() -> None:
    line = table([as_listed(totals={}, channel="", uniqueid="")]).splitlines()[1]
    assert line.split()[3] == "-"


def test_details_have_everything_and_the_timeline() -> None:
    text = details(as_listed(with_timeline=True))
    assert text.splitlines() == [
        f"fork {ENTRY.fork_id}",
        "  channel      PJSIP/100-0000002a",
        "  uniqueid     1700000000.42",
        "  caller       Zoë <+4930123456>",
        "  server       wss://example.org/live?...",
        "  direction    both",
        "  tap          snoop",
        "  sample rate  16000",
        "  format       json",
        "  ended        sink-gone: the connection broke",
        "  totals       frames_in 3050, frames_sent 3000, frames_dropped 50, gap_s 0.25, "
        "duration_s 61.25",
        "",
        "  2023-11-14 22:13:20      +0.0 s  requested     both by snoop",
        "  2023-11-14 22:13:20      +0.5 s  started       audio flows",
        "  2023-11-14 22:14:21     +61.2 s  ended         sink-gone (the connection broke)",
    ]


def test_details_of_a_refused_start_leave_out_what_there_is_not() -> None:
    text = details(
        as_listed(
            reason="refused",
            detail="No such channel",
            totals={},
            tap="",
            sample_rate=0,
            caller_number="",
            caller_name="",
            uniqueid="",
        )
    )
    assert [line.split()[0] for line in text.splitlines()] == [
        *("fork", "channel", "server", "direction", "format", "ended"),
    ]


def test_nothing_that_a_terminal_would_obey_is_shown() -> None:
    evil = "\x1b[2J\n"
    entry = as_listed(channel=evil, detail=evil, caller_name=evil, with_timeline=True)
    entry["timeline"][0]["text"] = evil
    assert "\x1b" not in table([entry]) + details(entry)
    assert table([entry]).count("\n") == 1


def test_causes_are_counted() -> None:
    cause = {
        **{"reason": "sink-gone", "detail": "port N: refused", "count": 12},
        **{"latest_at": 1_700_000_061.5, "fork_id": ENTRY.fork_id},
    }
    heading, line = causes_table([cause, {**cause, "count": 3}]).splitlines()[:2]
    assert heading.split() == ["COUNT", "LATEST", "REASON", "ID", "DETAIL"]
    assert line == "   12  2023-11-14 22:14:21  sink-gone  3f2a91c0  port N: refused"
