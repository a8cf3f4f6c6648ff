"""The log of a fork's life: one line for the request, one for the audio, one for the end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest

from audiofork.config import HistoryConfig
from audiofork.forks.events import Ended
from audiofork.forks.history import History
from audiofork.forks.requests import Origin, parse_request
from audiofork.forks.timelines import Timelines
from audiofork.link.messages import (
    EndReason,
    ForkEnded,
    ForkStats,
    LegAttached,
    LegPart,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from tests.control_plane import NAME, START, UNIQUEID, Rig

PAIRS = LegPart.PAIRS


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def events(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records of the events of forks' lives."""
    return [record for record in caplog.records if hasattr(record, "fields")]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    of_record: dict[str, Any] = vars(record)["fields"]
    return of_record


async def test_fork_that_streams_has_a_line_for_its_request_its_audio_and_its_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    (fork_id,) = await rig.forks.ask(parse_request(START, Origin("AMI", NAME)))
    assert [fields(one)["event"] for one in events(caplog)] == ["requested"]
    await rig.clock.advance(0.12)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.clock.advance(0.13)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.advance(0.05)
    rig.forks.on_report(Streaming(fork_id))
    await rig.clock.advance(12.0)
    await rig.ended(fork_id, EndReason.HANGUP, "why", ForkStats(5, 3, 2, reconnects=1))
    requested, streaming, ended = events(caplog)
    assert [record.getMessage() for record in (requested, streaming, ended)] == [
        f"requested by AMI {NAME}, both by chanspy at 8000 Hz to ws://example.org/a?...",
        "streaming 300 ms after the request (the server after 120 ms, the legs after 250 ms)",
        "ended: hangup (why), 12.3 s, frames 5 in, 3 sent, 2 dropped, 1 reconnects, 0 gaps",
    ]
    named = {"fork_id": fork_id, "uniqueid": UNIQUEID}
    assert fields(requested) == {
        **{"event": "requested", **named},
        "door": "AMI",
        "who": NAME,
        "direction": "both",
        "tap": "chanspy",
        "sample_rate": 8000,
        "url": "ws://example.org/a?...",
        **{"host": "example.org", "profile": "", "format": "raw"},
    }
    times = {"ms": 300, "server_ms": 120, "legs_ms": 250}
    assert fields(streaming) == {"event": "streaming", **named, **times}
    assert fields(ended) == {
        **{"event": "ended", **named, "reason": "hangup", "failed": False, "detail": "why"},
        **{"duration_s": 12.3, "frames_missing": 0, "messages_ignored": 0, "messages_unused": 0},
        **{"commands_refused": 0, "relays_lost": 0},
        **{"frames_in": 5, "frames_sent": 3, "frames_dropped": 2, "reconnects": 1},
        **{"gaps": 0, "gap_s": 0.0},
    }
    for record in (requested, streaming, ended):
        assert record.levelname == "INFO"
        assert (vars(record)["fork"], vars(record)["channel"]) == (fork_id, NAME)


async def test_fields_have_the_names_that_the_history_has_for_them(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.SINK_GONE, "why", ForkStats(5, 3, 2))
    history = History(HistoryConfig(file=""), Timelines())
    (ended,) = [event for event in rig.events if isinstance(event, Ended)]
    entry = history._ended(ended)
    kept = {one.name: getattr(entry, one.name) for one in dataclasses.fields(entry)}
    kept |= entry.totals
    of_log = {"event", "door", "who", "ms", "server_ms", "legs_ms"}
    for record in events(caplog):
        for name, value in fields(record).items():
            assert name in of_log or name in ("duration_s", "gap_s") or kept[name] == value, name


async def test_fork_that_never_streams_has_no_line_that_says_so(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.start()
    rig.forks.on_report(SinkRetrying(fork_id, 2, "Connection refused", 0.3))
    await rig.ended(fork_id, EndReason.SINK_GONE, "Connection refused")
    requested, ended = events(caplog)
    assert fields(requested)["event"] == "requested"
    assert ended.getMessage().startswith("ended: sink-gone (Connection refused), 0.0 s, ")
    assert ended.levelname == "WARNING"


@pytest.mark.slow
async def test_many_forks_have_no_line_more_than_one_for_each_event(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.allow(max_forks_per_channel=1000, max_starts=1000)
    asked = [rig.forks.ask(parse_request(START)) for _ in range(300)]
    for (fork_id,) in await asyncio.gather(*asked):
        rig.connect(fork_id, PAIRS)
        rig.forks.on_report(SinkOpened(fork_id))
        rig.forks.on_report(Streaming(fork_id))
        rig.live.remove(fork_id)
        rig.forks.on_report(ForkEnded(fork_id, EndReason.HANGUP, "", ForkStats()))
        rig.legs_gone(fork_id)
    await rig.clock.settle()
    counts = Counter(fields(one)["event"] for one in events(caplog))
    assert counts == {"requested": 300, "streaming": 300, "ended": 300}
    assert len(caplog.records) == 900


async def test_refused_start_has_no_line_of_a_life(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.request(channel="PJSIP/nobody-1", wsserver="ws://localhost/")
    assert events(caplog) == []


async def test_gaps_are_counted_and_timed_until_audio_flows_again_or_the_fork_ends(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "gone", 0.3))
    await rig.clock.advance(1.0)
    rig.forks.on_report(SinkRetrying(fork_id, 2, "gone", 0.3))
    await rig.clock.advance(1.5)
    rig.forks.on_report(SinkResumed(fork_id, 0))
    await rig.clock.advance(10)
    rig.forks.on_report(SinkRetrying(fork_id, 1, "gone", 0.3))
    await rig.clock.advance(0.5)
    await rig.ended(fork_id, EndReason.SINK_GONE)
    ended = events(caplog)[-1]
    assert ended.getMessage().endswith(" 2 gaps of 3.0 s")
    assert (fields(ended)["gaps"], fields(ended)["gap_s"]) == (2, 3.0)


async def test_end_of_a_fork_that_speaks_says_what_became_of_the_server_s_audio(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.allow(allow_speak=("*://*",))
    fork_id = await rig.stream(options="k(party)")
    stats = ForkStats(frames_played=9, frames_cleared=4, frames_unplayed=2, underruns=1)
    await rig.ended(fork_id, EndReason.HANGUP, stats=stats)
    ended = events(caplog)[-1]
    assert ended.getMessage().endswith(
        " 0 gaps; of the server's 9 played, 4 cleared, 2 unplayed, 1 underruns"
    )
    assert {
        **{"frames_played": 9, "frames_cleared": 4, "frames_unplayed": 2, "underruns": 1}
    }.items() <= fields(ended).items()


async def test_frames_of_another_relay_process_are_no_second_start(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.live.append(fork_id)
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(Streaming(fork_id))
    assert [fields(one)["event"] for one in events(caplog)] == ["requested", "streaming"]
    await rig.ended(fork_id, EndReason.HANGUP)
    assert fields(events(caplog)[-1])["gaps"] == 1


async def test_who_asked_cannot_write_a_line_of_his_own(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.forks.ask(parse_request(START, Origin("dialplan", "a\r\nb\x1b" + "x" * 5000)))
    (requested,) = events(caplog)
    assert requested.getMessage().isprintable()
    assert len(requested.getMessage()) < 500
    assert fields(requested)["who"].startswith("a??b?x")


async def test_fork_that_is_left_for_the_next_run_says_so_in_place_of_its_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.stream()
    await rig.clock.advance(2.0)
    stop = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.obey()
    await stop
    last = events(caplog)[-1]
    named = {"fork_id": vars(last)["fork"], "uniqueid": UNIQUEID}
    assert fields(last) == {"event": "left", **named, "duration_s": 2.0}
    assert last.getMessage() == "left for the next start after 2.0 s"
    rig.journal.entries.clear()


async def test_fields_of_a_fork_that_cannot_be_resumed_have_the_reason(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    entry = rig.journal.entries[fork_id]
    await rig.ended(fork_id, EndReason.HANGUP)
    rig.forks.resume_after_login([entry])
    rig.ami.channels.clear()
    await rig.forks.on_login()
    detail = "the call ended while the daemon was away; its frames are not known"
    last = events(caplog)[-1]
    assert fields(last) == {
        **{"event": "ended", "fork_id": vars(last)["fork"], "uniqueid": UNIQUEID},
        **{"reason": "hangup", "failed": False, "detail": detail},
    }


async def test_log_warns_of_frames_that_asterisk_did_not_bring(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(5, 5, frames_missing=25))
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warning.endswith(
        "Asterisk delivered 25 frames fewer than 50 a second: its timer misses ticks, or the "
        "machine is too busy (docs/asterisk.md, The timing module)"
    )
