"""The history: what it keeps of forks that have ended, and what it does not keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofork.asterisk.channels import Target
from audiofork.config import HistoryConfig
from audiofork.forks import history as module
from audiofork.forks.events import (
    Ended,
    Failed,
    MessageReceived,
    Reconnecting,
    Refused,
    Requested,
    Started,
    Stopped,
)
from audiofork.forks.history import Entry
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import Options
from audiofork.forks.requests import MuteFork, Origin, StartFork
from audiofork.forks.timelines import Moment
from audiofork.link.messages import EndReason, ForkStats
from tests.control_plane import NAME, UNIQUEID, Rig
from tests.forks.history_stage import (
    CALLER,
    NUMBER,
    URL,
    Kept,
    bytes_of,
    ended,
    fork,
    keep,
    kept,
    path,
    requested,
    times,
)
from tests.told_clock import Clock

__all__ = ["keep", "kept", "path", "times"]


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
    no_failures = {"hangup", "stopped", "sink-closed", "moved", "shutdown"}
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
