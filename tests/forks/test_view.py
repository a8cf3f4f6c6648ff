"""A fork as lists show it: what it waits for, its latest error, the attempt that follows."""

from __future__ import annotations

import asyncio
import dataclasses
import json

from audiofork.asterisk.ami_protocol import ChannelHangup, HoldChanged
from audiofork.forks.events import Ended
from audiofork.forks.view import ForkView, view_of
from audiofork.link.messages import (
    EndReason,
    ForkStats,
    LegAttached,
    LegPart,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.text import MAX_REASON_CHARACTERS
from tests.control_plane import NAME, START, UNIQUEID, WALL_CLOCK_AHEAD_S, Headers, Rig

PAIRS = LegPart.PAIRS
CALLER = {"CALLERID(num)": "+4930123", "CALLERID(name)": "Zo\u00eb\x1b<b>"}


async def view(rig: Rig) -> ForkView:
    (one,) = await rig.forks.views()
    return one


async def test_new_fork_waits_for_the_server_and_its_leg_and_has_no_error(rig: Rig) -> None:
    await rig.start()
    one = await view(rig)
    assert (one.state, one.waits_for) == ("attaching", "the server and the leg")
    assert (one.last_error, one.last_error_s, one.away_s) == ("", None, None)
    assert (one.attempt, one.next_attempt_s, one.gaps) == (0, None, 0)


async def test_fork_that_speaks_shows_what_becomes_of_the_server_s_audio(rig: Rig) -> None:
    rig.allow(allow_speak=("*://*",))
    fork_id = await rig.stream(options="k(party)")
    rig.stats = {fork_id: ForkStats(frames_played=9, frames_cleared=4, underruns=1)}
    one = await view(rig)
    assert one.speaks
    assert (one.frames_played, one.frames_cleared, one.frames_unplayed) == (9, 4, 0)
    assert one.underruns == 1


async def test_fork_whose_channel_is_looked_up_waits_for_asterisk(rig: Rig) -> None:
    rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    one = await view(rig)
    assert (one.state, one.waits_for, one.tap) == ("requested", "Asterisk's answer", "")
    rig.ami.gates["Getvar"].set()
    await asked


async def test_fork_without_audio_of_its_call_waits_for_that(rig: Rig) -> None:
    await rig.attach(options="D(in)")
    assert (await view(rig)).waits_for == "audio of the call"


async def test_fork_of_a_call_that_is_not_bridged_waits_for_a_bridge_with_option_b(
    rig: Rig,
) -> None:
    await rig.attach(options="b")
    assert (await view(rig)).waits_for == "a bridge (option b)"


async def test_fork_of_a_call_on_hold_waits_for_its_end_where_that_is_configured(
    rig: Rig,
) -> None:
    rig.forks._holds.waits = True
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, True))
    await rig.start()
    assert (await view(rig)).waits_for == "the server and the end of the hold"
    rig.forks.on_event(HoldChanged(UNIQUEID, NAME, False))
    await rig.clock.settle()
    assert (await view(rig)).waits_for == "the server and the leg"


async def test_fork_that_streams_waits_for_nothing(rig: Rig) -> None:
    await rig.stream()
    assert (await view(rig)).waits_for == ""


async def test_server_that_is_away_is_shown_with_its_error_and_the_time_of_the_next_attempt(
    rig: Rig,
) -> None:
    fork_id = await rig.start()
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkRetrying(fork_id, 2, "Connection refused", 3.0))
    await rig.clock.advance(1.0)
    one = await view(rig)
    assert (one.state, one.waits_for) == ("attaching", "the server")
    assert (one.last_error, one.attempt) == ("Connection refused", 2)
    assert (one.last_error_s, one.away_s, one.next_attempt_s) == (1.0, 1.0, 2.0)


async def test_attempt_that_is_under_way_is_due_now(rig: Rig) -> None:
    fork_id = await rig.start()
    rig.forks.on_report(SinkRetrying(fork_id, 2, "Connection refused", 3.0))
    await rig.clock.advance(4.0)
    assert (await view(rig)).next_attempt_s == 0


async def test_server_is_away_since_the_first_of_several_errors(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.5))
    await rig.clock.advance(5.0)
    rig.forks.on_report(SinkRetrying(fork_id, 2, "Connection refused", 1.0))
    one = await view(rig)
    assert (one.state, one.last_error) == ("reconnecting", "Connection refused")
    assert (one.away_s, one.last_error_s, one.next_attempt_s) == (5.0, 0.0, 1.0)


async def test_error_that_is_over_stays_as_the_last_one_without_an_attempt(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.5))
    rig.forks.on_report(SinkResumed(fork_id, 0))
    await rig.clock.advance(60.0)
    one = await view(rig)
    assert (one.state, one.waits_for, one.last_error) == ("streaming", "", "the connection broke")
    assert (one.last_error_s, one.away_s) == (60.0, None)
    assert (one.attempt, one.next_attempt_s, one.gaps) == (0, None, 1)


async def test_server_that_is_lost_again_is_away_since_then(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(2):
        rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.5))
        await rig.clock.advance(10.0)
        rig.forks.on_report(SinkResumed(fork_id, 0))
    rig.forks.on_report(SinkRetrying(fork_id, 1, "the connection broke", 0.5))
    await rig.clock.advance(2.0)
    assert (await view(rig)).away_s == 2.0


async def test_leg_that_is_away_is_shown_until_it_is_back(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.clock.advance(0.2)
    one = await view(rig)
    assert (one.state, one.waits_for) == ("reconnecting", "the leg")
    assert (one.last_error, one.attempt) == ("the leg was lost: Asterisk closed it", 1)
    assert one.next_attempt_s == 0
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert (await view(rig)).waits_for == ""


async def test_error_is_that_of_what_is_still_missing_not_of_what_came_back_since(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused", 5.0))
    await rig.clock.advance(1.0)
    await rig.lose_leg(fork_id)
    await rig.clock.advance(0.2)
    one = await view(rig)
    assert one.waits_for == "the server and the leg"
    assert one.last_error == "the leg was lost: Asterisk closed it"
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    one = await view(rig)
    assert (one.waits_for, one.last_error) == ("the server", "Connection refused")


async def test_fork_of_a_call_that_is_over_waits_for_the_server_to_deliver_the_rest(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused", 5.0))
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    one = await view(rig)
    assert (one.waits_for, one.ending) == ("the server to deliver the rest", "hangup")
    await rig.ended(fork_id, EndReason.HANGUP)


async def test_fork_that_was_stopped_says_so_until_it_has_ended(rig: Rig) -> None:
    fork_id = await rig.stream()
    assert (await view(rig)).ending == ""
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused", 5.0))
    await rig.request(command="StopAudioFork", audioforkid=fork_id)
    one = await view(rig)
    assert (one.waits_for, one.ending) == ("the server to deliver the rest", "stopped")
    await rig.ended(fork_id, EndReason.STOPPED)


async def test_fork_without_a_relay_process_waits_for_one(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.no_relay(fork_id)
    assert (await view(rig)).waits_for == "a relay process"
    await rig.lose_relay(fork_id)
    rig.live.append(fork_id)
    one = await view(rig)
    assert (one.waits_for, one.last_error) == ("the server and the leg", "a relay process died")
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(Streaming(fork_id))
    assert (await view(rig)).waits_for == ""


async def test_error_of_any_text_is_one_printable_line(rig: Rig) -> None:
    fork_id = await rig.start()
    rig.forks.on_report(SinkRetrying(fork_id, 2, "a\r\nb\x1b[2J" + "x" * 5000, 3.0))
    shown = (await view(rig)).last_error
    assert shown.startswith("a??b?[2Jx")
    assert len(shown) == MAX_REASON_CHARACTERS


async def test_views_of_a_thousand_forks_are_json(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused" * 20, 3.0))
    fork = rig.forks._table.get(fork_id)
    assert fork is not None
    views = [view_of(fork, ForkStats()) for _ in range(1000)]
    assert len(json.dumps([dataclasses.asdict(view) for view in views])) > 100_000


async def test_view_has_the_counts_of_the_servers_messages(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.stats = {fork_id: ForkStats(messages_ignored=3, messages_unused=4)}
    shown = await view(rig)
    assert (shown.messages_ignored, shown.messages_unused) == (3, 4)


async def test_view_has_how_its_server_is_reached_and_what_waits_for_it(rig: Rig) -> None:
    fork_id = await rig.stream(options="x(json)")
    stats = ForkStats(100, 90, 3, rtt_ms=12.5, unacked_bytes=640)
    rig.stats = {fork_id: stats}
    one = await view(rig)
    assert (one.format, one.profile, one.connects) == ("json", "", False)
    assert (one.backlog, one.rtt_ms, one.unacked_bytes) == (7, 12.5, 640)
    assert one.requested_at == WALL_CLOCK_AHEAD_S + rig.clock()


async def test_caller_is_not_asked_for_where_nobody_wants_to_know(rig: Rig) -> None:
    rig.ami.values = CALLER
    await rig.stream()
    one = await view(rig)
    assert (one.caller_number, one.caller_name) == ("", "")
    assert all("CALLERID" not in dict(headers).get("Variable", "") for _, headers in asked(rig))


async def test_caller_is_asked_for_where_somebody_wants_to_know_and_is_shown_harmless(
    rig: Rig,
) -> None:
    rig.forks._look_ups._asks_callers = True
    rig.ami.values = CALLER
    fork_id = await rig.stream()
    one = await view(rig)
    assert (one.caller_number, one.caller_name) == ("+4930123", "Zo\u00eb?<b>")
    assert len([1 for _, headers in asked(rig) if "CALLERID" in str(headers)]) == 1
    await rig.ended(fork_id, EndReason.HANGUP)
    (ended,) = [event for event in rig.events if isinstance(event, Ended)]
    assert (ended.fork.caller_number, ended.fork.caller_name) == tuple(CALLER.values())


async def test_caller_that_the_server_is_told_of_is_not_asked_for_again(rig: Rig) -> None:
    rig.forks._look_ups._asks_callers = True
    rig.ami.values = CALLER
    await rig.stream(options="M")
    one = await view(rig)
    assert one.caller_number == "+4930123"
    assert len([1 for _, headers in asked(rig) if "CALLERID" in str(headers)]) == 1


def asked(rig: Rig) -> list[tuple[str, Headers]]:
    return [(name, headers) for name, headers, _ in rig.ami.actions]
