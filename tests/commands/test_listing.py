"""Forks as a table: what its columns say, and how it fits a terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from audiofork.commands.listing import Flows, as_json, summary, table
from audiofork.forks.view import ForkView
from tests.commands.views import FORK_ID, VIEW

AWAY = dataclasses.replace(
    VIEW,
    state="reconnecting",
    waits_for="the server",
    last_error="Connection refused",
    last_error_s=2.0,
    away_s=65.0,
    attempt=4,
    next_attempt_s=3.2,
)


def fork(view: ForkView = VIEW, **changes: Any) -> dict[str, Any]:
    """Return a fork as the control socket gives it."""
    listed: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(dataclasses.replace(view, **changes)))
    )
    return listed


def row(one: dict[str, Any]) -> str:
    return table([one]).splitlines()[1]


def test_table_shows_nothing_that_a_terminal_would_obey() -> None:
    text = table(
        [fork(channel="PJSIP/\x1b[2Jx\n", muted="read", last_error="\x1b[2J", last_error_s=1.0)]
    )
    assert "PJSIP/?[2Jx?" in text
    assert "\x1b" not in text
    assert "  read  " in text


# --- The last error and the next attempt ---------------------------------------------------------


def test_fork_whose_server_is_away_shows_its_error_since_when_and_when_it_is_tried_again() -> None:
    assert row(fork(AWAY)).endswith(
        "wss://example.org/live?...  in 3 s  the server, for 0:01:05: Connection refused"
    )


def test_attempt_that_is_due_is_shown_as_now() -> None:
    assert "  now   the server" in row(fork(AWAY, next_attempt_s=0))


def test_fork_whose_error_is_over_shows_how_long() -> None:
    over = fork(VIEW, last_error="Connection refused", last_error_s=75.0)
    assert row(over).endswith("  -     Connection refused (0:01:15 ago)")


def test_fork_that_waits_without_an_error_shows_for_what() -> None:
    attaching = fork(VIEW, state="attaching", waits_for="the server and the leg")
    assert row(attaching).endswith("  -     none yet, waits for the server and the leg")


def test_fork_of_an_older_daemon_has_dashes() -> None:
    """One that was started before the update of the command."""
    old = fork()
    for name in ("waits_for", "last_error", "last_error_s", "away_s", "attempt", "next_attempt_s"):
        del old[name]
    assert row(old).endswith("  -     -")
    assert len(table([old], width=80).splitlines()) == 3


# --- Terminals -----------------------------------------------------------------------------------


def test_table_in_a_terminal_of_80_columns_wraps_no_line_and_leaves_out_no_part_of_the_error() -> (
    None
):
    error = "the certificate is not accepted: " + "word " * 30 + "end"
    text = table([fork(), fork(AWAY, last_error=error)], 2, width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["ID", "CHANNEL", "STATE", "AGE", "SENT", "DROPPED"]
    assert lines[1].split() == [
        *("3f2a91c0", "PJSIP/100-0000002a", "streaming", "1:02:03", "990", "0")
    ]
    assert lines[2].strip() == "wss://example.org/live?..."
    below = " ".join(line.strip() for line in lines[4:-1])
    assert below == (
        f"wss://example.org/live?... has waited 0:01:05 for the server: {error}; attempt 4 in 3 s"
    )
    assert lines[-1] == "2 legs of ended forks stay until their channels have media or end"


def test_channel_without_room_in_a_terminal_stands_whole_below_its_fork() -> None:
    channel = "PJSIP/a-trunk-with-a-long-name.example.org-0000002a"
    lines = table([fork(channel=channel), fork(AWAY)], width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["ID", "STATE", "AGE", "SENT", "DROPPED"]
    assert [line.strip() for line in lines[2:4]] == [channel, "wss://example.org/live?..."]
    assert lines[5].strip() == "PJSIP/100-0000002a"


def test_watched_table_fits_80_columns_with_frames_a_second() -> None:
    flows = Flows()
    flows.look([fork(AWAY)])
    flows.look([fork(AWAY, age_s=3725.9, frames_in=1100, frames_sent=1090)])
    lines = table([fork(AWAY, age_s=3725.9)], width=80, flows=flows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-1] == "SENT/S"
    assert lines[1].split()[-1] == "50"


def test_table_in_a_wide_terminal_has_a_line_for_each_fork_with_its_whole_id() -> None:
    text = table([fork(), fork(AWAY)], width=250)
    assert len(text.splitlines()) == 3
    assert text == table([fork(), fork(AWAY)])
    assert FORK_ID in text


@pytest.mark.parametrize("width", [1, 20, 40])
def test_tiny_terminal_is_no_fault(width: int) -> None:
    assert "3f2a91c0" in table([fork(AWAY)], width=width)


# --- Frames a second -----------------------------------------------------------------------------


def looked(before: dict[str, Any], after: dict[str, Any]) -> Flows:
    flows = Flows()
    for one in (before, after):
        flows.look([one])
    return flows


def test_frames_a_second_are_by_the_daemons_clock() -> None:
    after = fork(age_s=3725.9, frames_in=1100, frames_sent=1050, frames_dropped=40)
    flow = looked(fork(), after).of(after)
    assert flow is not None
    assert [flow.frames_in, flow.frames_sent, flow.frames_dropped] == [50, 30, 20]


def test_new_fork_has_no_frames_a_second() -> None:
    flows = Flows()
    flows.look([fork()])
    assert flows.of(fork()) is None
    assert "  -       -  wss:" in table([fork()], flows=flows)


def test_counts_that_begin_anew_with_another_daemon_are_no_negative_rate() -> None:
    resumed = fork(age_s=3725.9, frames_in=10, frames_sent=10)
    assert looked(fork(), resumed).of(resumed) is None


def test_frames_that_a_broken_connection_gives_back_are_no_negative_rate() -> None:
    after = fork(age_s=3724.9, frames_in=1050, frames_sent=980)
    flow = looked(fork(), after).of(after)
    assert flow is not None
    assert (flow.frames_in, flow.frames_sent) == (50, 0)


def test_summary_counts_forks_by_state_and_the_frames_of_all() -> None:
    other = {**fork(AWAY), "id": "another"}
    flows = Flows()
    flows.look([fork(), other])
    later = [
        fork(age_s=3724.9, frames_in=1050, frames_sent=1040),
        {**other, "age_s": 3724.9, "frames_in": 1050, "frames_dropped": 10},
    ]
    flows.look(later)
    assert summary(later, flows) == (
        "2 forks (1 streaming, 1 reconnecting)\nframes a second: 100 in, 50 sent, 10 dropped"
    )
    assert summary([], Flows()).startswith("0 forks\n")


# --- A thousand ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [None, 80])
def test_thousand_forks_are_a_table_with_a_line_or_more_for_each(width: int | None) -> None:
    forks = [{**fork(AWAY), "id": f"{number:08}-0000"} for number in range(1000)]
    flows = Flows()
    flows.look(forks)
    assert table(forks, 0, width, flows).count("\n") >= 1000
    as_json(forks)


# --- A cluster -----------------------------------------------------------------------------------


def test_relay_host_has_a_column_where_one_is_named() -> None:
    assert "RELAY" not in table([fork()])
    heading, first, second = table([fork(relay_host="r1"), fork()]).splitlines()
    assert heading.split()[:4] == ["ID", "CHANNEL", "RELAY", "DIRECTION"]
    assert first.split()[2] == "r1"
    assert second.split()[2] == "-"


def test_asterisk_has_a_column_where_forks_of_several_are_listed() -> None:
    heading, first = table([{**fork(relay_host="r1"), "asterisk": "pbx"}]).splitlines()
    assert heading.split()[:4] == ["ID", "CHANNEL", "ASTERISK", "RELAY"]
    assert first.split()[2:4] == ["pbx", "r1"]


def test_narrow_table_names_the_place_below_the_fork() -> None:
    text = table([{**fork(relay_host="r\x1b1"), "asterisk": "pbx"}], width=60)
    assert "          Asterisk pbx, relay host r?1" in text.splitlines()
    assert "relay host" not in table([fork()], width=60)
