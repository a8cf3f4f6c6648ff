import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup, OriginateFailed
from audiofork.asterisk.taps.ways import Wish
from audiofork.config import PostProcessConfig, ProfileConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiTimeout,
    AmiUnavailable,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.journal import Entry
from audiofork.forks.legs import ASTERISK_AWAY_S, LEG_LOSS_GRACE_S
from audiofork.link.messages import (
    Direction,
    EndFork,
    EndReason,
    ForkReport,
    ForkSpec,
    LegAttached,
    LegLost,
    LegPart,
    SetGate,
    SetMute,
    SinkOpened,
    SinkRetrying,
    Streaming,
)
from tests.control_plane import (
    COMMANDS,
    LEG_PREFIX,
    NAME,
    START,
    UNIQUEID,
    UNKNOWN_ID,
    URL,
    WALL_CLOCK_AHEAD_S,
    WAY,
    Rig,
)

PAIRS = LegPart.PAIRS


# --- The journal, and forks of an earlier run ----------------------------------------------------


ENTRY = Entry(
    fork_id=UNKNOWN_ID,
    channel="PJSIP/old-name",
    uniqueid=UNIQUEID,
    url=URL,
    options="D(stereo)v(2)",
    post_process="",
    action_id="7",
    values={},
    mute_in=False,
    mute_out=False,
    started=WALL_CLOCK_AHEAD_S + 900,  # 100 s before the test begins
    asterisk_started="today",
)


async def resume(rig: Rig, *entries: Entry) -> None:
    rig.journal.entries = {entry.fork_id: entry for entry in entries}
    rig.forks.resume_after_login(entries)
    await rig.forks.on_login()
    await rig.clock.settle()


async def test_running_fork_is_in_the_journal_until_it_ends(rig: Rig) -> None:
    fork_id = await rig.start(options="D(in)")
    assert rig.journal.entries == {
        fork_id: Entry(
            fork_id=fork_id,
            channel=NAME,
            uniqueid=UNIQUEID,
            url=URL,
            options="D(in)",
            post_process="",
            action_id="7",
            values={},
            mute_in=False,
            mute_out=False,
            started=WALL_CLOCK_AHEAD_S + 1000,
            asterisk_started="today",
            attempts=1,
        )
    }
    await rig.ended(fork_id, EndReason.STOPPED)
    assert rig.journal.entries == {}


async def test_refused_start_is_not_in_the_journal(rig: Rig) -> None:
    await rig.request(**{**START, "channel": "nobody"})
    assert rig.journal.entries == {}


async def test_fork_that_the_relay_ends_at_once_is_not_left_in_the_journal(rig: Rig) -> None:
    rig.spec_fault = "no such file"
    await rig.request(**START)
    assert rig.journal.entries == {}


async def test_mute_is_in_the_journal(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.request(command="AudioForkMute", channel=NAME, direction="read", state="1")
    entry = rig.journal.entries[fork_id]
    assert (entry.mute_in, entry.mute_out) == (True, False)


async def test_fork_of_an_earlier_run_is_resumed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await resume(rig, ENTRY)
    (spec,) = rig.sent
    assert spec == ForkSpec(
        UNKNOWN_ID,
        NAME,
        URL,
        Direction.STEREO,
        (PAIRS,),
        gain_in=2,
        steady=True,
        commands=COMMANDS,
        way=WAY,
        age_s=100.0,
    )
    assert rig.tap.started == [(UNKNOWN_ID, UNIQUEID)]
    assert rig.tap.legs[0] != LEG_PREFIX + UNKNOWN_ID  # the old leg may still have that name
    assert rig.taps.kept == [set()]
    assert rig.ami.told == []
    rig.forks.on_report(LegAttached(UNKNOWN_ID, PAIRS))
    rig.forks.on_report(Streaming(UNKNOWN_ID))
    assert rig.ami.told == ["STREAMING", "AudioForkStarted"]
    assert rig.last_event[1] == {
        "AudioForkID": UNKNOWN_ID,
        "Channel": NAME,
        "Uniqueid": UNIQUEID,
        "WsServer": URL,
        "SampleRate": "8000",
        "ActionID": "7",
        "TakenUp": "yes",
    }
    assert "resumed, stereo by chanspy at 8000 Hz to ws://example.org/a?..." in caplog.text
    assert "resumed 1 of the 1 forks that an earlier run left" in caplog.text


async def test_resumed_fork_counts_its_age_from_its_own_start(rig: Rig) -> None:
    await resume(rig, ENTRY)
    (view,) = await rig.forks.views()
    assert view.age_s == pytest.approx(100)
    await rig.clock.advance(5)
    await rig.ended(UNKNOWN_ID, EndReason.HANGUP)
    assert rig.last_event[1]["Duration"] == "105.0"


async def test_resumed_fork_stays_in_the_journal_as_it_was(rig: Rig) -> None:
    await resume(rig, ENTRY)
    assert rig.journal.entries == {UNKNOWN_ID: replace(ENTRY, channel=NAME, attempts=1)}
    rig.forks.on_report(SinkOpened(UNKNOWN_ID))
    assert rig.journal.entries == {UNKNOWN_ID: replace(ENTRY, channel=NAME)}
    await rig.ended(UNKNOWN_ID, EndReason.HANGUP)
    assert rig.journal.entries == {}


@pytest.mark.parametrize(
    "report", [SinkOpened, Streaming, lambda fork_id: SinkRetrying(fork_id, 1, "away")]
)
async def test_attempt_counts_until_the_relay_has_come_as_far_as_the_server(
    rig: Rig, report: Callable[[str], ForkReport]
) -> None:
    fork_id = await rig.start()
    assert rig.journal.entries[fork_id].attempts == 1
    rig.connect(fork_id, *rig.taps.parts)
    assert rig.journal.entries[fork_id].attempts == 1
    rig.forks.on_report(report(fork_id))
    assert rig.journal.entries[fork_id].attempts == 0


async def test_fork_that_is_kept_for_the_next_start_counts_as_outlived(rig: Rig) -> None:
    fork_id = await rig.start()
    stopping = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.obey()
    await stopping
    assert rig.journal.entries[fork_id].attempts == 0
    rig.journal.entries.clear()


async def test_resumed_fork_stays_muted(rig: Rig) -> None:
    await resume(rig, replace(ENTRY, mute_out=True))
    assert rig.sent[-1] == SetMute(UNKNOWN_ID, False, True)
    (view,) = await rig.forks.views()
    assert view.muted == "write"


async def test_resumed_fork_of_a_bridged_channel_has_its_gate_open(rig: Rig) -> None:
    rig.ami.bridged.add(UNIQUEID)
    await resume(rig, replace(ENTRY, options="b"))
    assert rig.spec.gate_open is False
    assert rig.sent[-1] == SetGate(UNKNOWN_ID, True)


async def test_resumed_fork_can_be_stopped_and_ends_with_its_channel(rig: Rig) -> None:
    other = replace(ENTRY, fork_id=str(uuid.uuid4()))
    await resume(rig, ENTRY, other)
    await rig.request(command="StopAudioFork", audioforkid=UNKNOWN_ID)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.STOPPED)]
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends[1:] == [EndFork(other.fork_id, EndReason.HANGUP)]


@pytest.mark.parametrize("at_start", [True, False], ids=["leg-refused", "leg-closed"])
async def test_resumed_fork_whose_channel_goes_unnoticed_ends_with_hangup(
    rig: Rig, at_start: bool
) -> None:
    rig.tap.fault = NoSuchChannel() if at_start else None
    await resume(rig, ENTRY)
    if not at_start:
        del rig.ami.channels[UNIQUEID]
        rig.forks.on_report(LegLost(UNKNOWN_ID, PAIRS, 0))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(UNKNOWN_ID, EndReason.HANGUP)]


async def test_leg_that_an_earlier_run_asked_for_in_vain_is_no_news(rig: Rig) -> None:
    await resume(rig, ENTRY)
    rig.forks.on_event(OriginateFailed(LEG_PREFIX + UNKNOWN_ID, "8"))
    assert rig.ends == []


@pytest.mark.parametrize(
    ("change", "run", "reason", "detail"),
    [
        pytest.param(
            {"uniqueid": "9.9"},
            "today",
            "hangup",
            "the call ended while the daemon was away; its frames are not known",
            id="gone",
        ),
        pytest.param(
            {}, "later", "leg-failed", "Asterisk was restarted while the daemon was away", id="run"
        ),
        pytest.param(
            {"url": "http://a/"},
            "today",
            "stopped",
            "not resumed: WsServer: the scheme must be ws or wss",
            id="url",
        ),
        pytest.param(
            {"options": "y"},
            "today",
            "stopped",
            "not resumed: Options: unknown option 'y'; "
            "there are D T R r F L b B p P k v V W H A s M x c i S a",
            id="option",
        ),
        pytest.param(
            {"options": "T(ca=/dev/ptmx)"},
            "today",
            "stopped",
            "not resumed: Options: T(ca=/dev/ptmx): not a file below /etc/audiofork/tls "
            "([security] tls_dir)",
            id="file",
        ),
        pytest.param(
            {"attempts": 2},
            "today",
            "stopped",
            "not resumed: the daemon died 2 times in a row while it was being started",
            id="deaths",
        ),
    ],
)
async def test_fork_that_cannot_be_resumed_ends(
    rig: Rig,
    change: dict[str, str],
    run: str,
    reason: str,
    detail: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig.ami.asterisk_started = run
    entry = replace(ENTRY, **change)  # type: ignore[arg-type]
    await resume(rig, entry)
    assert detail in caplog.text
    assert rig.sent == []
    assert rig.tap.legs == []
    assert rig.journal.entries == {}
    assert rig.last_event == (
        "AudioForkStopped",
        {
            "AudioForkID": UNKNOWN_ID,
            "Channel": "PJSIP/old-name",
            "Uniqueid": entry.uniqueid,
            "WsServer": entry.url.replace("ws:", "wss:" if "T" in entry.options else "ws:"),
            "Reason": reason,
            "Duration": "100.0",
            "FramesIn": "0",
            "FramesSent": "0",
            "FramesDropped": "0",
            "Reconnects": "0",
            "TakenUp": "yes",
            "Detail": detail,
            "ActionID": "7",
        },
    )


@pytest.mark.parametrize("limit", ["max_forks", "max_forks_per_channel"])
async def test_limits_hold_for_forks_of_an_earlier_run(rig: Rig, limit: str) -> None:
    rig.allow(**{limit: 1})
    other = replace(ENTRY, fork_id=str(uuid.uuid4()))
    await resume(rig, ENTRY, other)
    assert rig.live == [UNKNOWN_ID]
    assert rig.last_event[1]["AudioForkID"] == other.fork_id
    assert f"({limit})" in rig.last_event[1]["Detail"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_post_process_of_a_call_that_ended_meanwhile_runs_if_it_is_allowed(
    rig: Rig, tmp_path: Path, allowed: bool
) -> None:
    rig.allow(allow_post_process=allowed)
    entry = replace(
        ENTRY,
        uniqueid="9.9",
        post_process=f"echo ^{{UNIQUEID}} > {tmp_path}/out",
        values={"UNIQUEID": "9.9"},
    )
    await resume(rig, entry)
    await rig.until(lambda: rig.ami.events)
    assert rig.last_event[1].get("PostProcessStatus") == ("0" if allowed else None)
    assert (tmp_path / "out").exists() is allowed


async def test_named_command_of_a_call_that_ended_meanwhile_runs_as_it_is_now(
    rig: Rig, tmp_path: Path
) -> None:
    rig.commands.configure({"note": PostProcessConfig(("/usr/bin/touch", f"{tmp_path}/^{{X}}"))})
    await resume(rig, replace(ENTRY, uniqueid="9.9", post_process="@note", values={"X": "9.9"}))
    await rig.until(lambda: rig.ami.events)
    assert rig.last_event[1]["PostProcessStatus"] == "0"
    assert (tmp_path / "9.9").exists()


async def test_named_command_that_is_gone_after_a_restart_is_told(rig: Rig) -> None:
    await resume(rig, replace(ENTRY, post_process="@note"))
    assert rig.last_event[0] == "AudioForkStopped"
    assert "not resumed: PostProcess: no section [post_process:note]" in rig.last_event[1]["Detail"]


async def test_forks_of_an_earlier_run_wait_until_asterisk_can_be_asked(rig: Rig) -> None:
    rig.ami.faults["CoreShowChannels"] = AmiUnavailable("lost again")
    with pytest.raises(AmiUnavailable):
        await resume(rig, ENTRY)
    assert rig.journal.entries == {UNKNOWN_ID: ENTRY}
    del rig.ami.faults["CoreShowChannels"]
    await rig.forks.on_login()
    assert rig.live == [UNKNOWN_ID]
    await rig.forks.on_login()
    assert rig.live == [UNKNOWN_ID]


OTHER = replace(ENTRY, fork_id=str(uuid.uuid4()), uniqueid="2.2")


async def test_resumed_fork_has_its_tap_chosen_anew(rig: Rig) -> None:
    rig.taps.parts, rig.taps.sample_rate = (LegPart.IN, LegPart.OUT), 16000
    await resume(rig, replace(ENTRY, options="L(16000)"))
    assert rig.taps.asked == [(UNIQUEID, (16000,))]
    assert rig.spec.legs == (LegPart.IN, LegPart.OUT)
    assert [order.part for order in rig.tap.orders] == [LegPart.IN, LegPart.OUT]
    assert {order.sample_rate for order in rig.tap.orders} == {rig.spec.sample_rate} == {16000}
    (view,) = await rig.forks.views()
    assert view.sample_rate == 16000


@pytest.mark.parametrize(
    ("exc", "reason", "detail"),
    [
        pytest.param(
            RequestRefused("16000 Hz needs the snoop tap: set [ari]"),
            "stopped",
            "not resumed: 16000 Hz needs the snoop tap: set [ari]",
            id="refused",
        ),
        pytest.param(
            NoSuchChannel(),
            "hangup",
            "the call ended while the daemon was away; its frames are not known",
            id="gone",
        ),
    ],
)
async def test_fork_of_an_earlier_run_without_a_tap_ends_and_the_next_is_resumed(
    rig: Rig, exc: Exception, reason: str, detail: str
) -> None:
    rig.taps.faults[UNIQUEID] = exc
    await resume(rig, ENTRY, OTHER)
    ((name, headers),) = rig.ami.events
    assert (name, headers["AudioForkID"]) == ("AudioForkStopped", UNKNOWN_ID)
    assert (headers["Reason"], headers["Detail"]) == (reason, detail)
    assert rig.live == list(rig.journal.entries) == [OTHER.fork_id]


async def test_link_lost_while_forks_are_resumed_leaves_the_rest_for_the_next_login(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.taps.faults["2.2"] = AmiUnavailable("the connection is lost")
    third = replace(ENTRY, fork_id=str(uuid.uuid4()))
    with pytest.raises(AmiUnavailable):
        await resume(rig, ENTRY, OTHER, third)
    assert rig.live == [UNKNOWN_ID]
    assert len(rig.journal.entries) == 3
    assert rig.ami.events == []
    del rig.taps.faults["2.2"]
    await rig.forks.on_login()
    await rig.clock.settle()
    assert rig.live == [UNKNOWN_ID, OTHER.fork_id, third.fork_id]
    assert [leg.fork_id for leg in rig.tap.orders] == rig.live
    assert "resumed 2 of the 2 forks that an earlier run left" in caplog.text


async def test_stop_of_the_daemon_while_forks_are_resumed_leaves_the_rest_for_the_next_start(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.taps.gate = asyncio.Event()
    resuming = asyncio.create_task(resume(rig, ENTRY, OTHER))
    await rig.clock.settle()
    await rig.shut_down()
    assert rig.journal.entries[UNKNOWN_ID].attempts == 1, "it could be killed now"
    rig.taps.gate.set()
    await resuming
    assert list(rig.journal.entries.values()) == [ENTRY, OTHER]
    assert rig.sent == []
    assert rig.ami.events == []
    assert "an earlier run left" not in caplog.text
    rig.journal.entries.clear()


async def test_forks_of_an_earlier_run_are_left_alone_by_a_daemon_that_stops(rig: Rig) -> None:
    gone = replace(OTHER, uniqueid="9.9")
    await rig.shut_down()
    await resume(rig, ENTRY, gone)
    assert rig.journal.entries == {UNKNOWN_ID: ENTRY, gone.fork_id: gone}
    assert rig.sent == []
    assert rig.ami.events == []
    rig.journal.entries.clear()


@pytest.mark.parametrize(
    ("mutes", "apart"),
    [((True, False), True), ((False, True), True), ((True, True), False), ((False, False), False)],
)
async def test_fork_of_an_earlier_run_needs_its_sides_apart_if_one_is_muted(
    rig: Rig, mutes: tuple[bool, bool], apart: bool
) -> None:
    mute_in, mute_out = mutes
    await resume(rig, replace(ENTRY, options="", mute_in=mute_in, mute_out=mute_out))
    assert rig.taps.wishes == [Wish(Direction.BOTH, apart=apart)]
    assert rig.live == [UNKNOWN_ID]


async def test_fork_of_an_earlier_run_with_one_side_muted_is_not_resumed_if_all_is_mixed(
    rig: Rig,
) -> None:
    rig.taps.faults[UNIQUEID] = RequestRefused("in and out come mixed")
    await resume(rig, replace(ENTRY, options="", mute_in=True))
    assert (rig.sent, rig.tap.orders, rig.journal.entries) == ([], [], {})
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["Reason"] == "stopped"


# --- The connection to Asterisk is away, and back ------------------------------------------------


async def lose_link_and_leg(rig: Rig, fork_id: str) -> None:
    rig.ami.faults["Getvar"] = AmiUnavailable("the connection is lost")
    await rig.lose_leg(fork_id)
    await rig.clock.advance(ASTERISK_AWAY_S - 1)
    assert rig.ends == []
    del rig.ami.faults["Getvar"]


async def test_leg_lost_with_the_link_is_replaced_when_the_link_is_back(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_link_and_leg(rig, fork_id)
    await rig.forks.on_login()
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.expected) == 2
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.last_event[1]["GapMs"] == "4150"
    assert rig.ends == []


async def test_leg_lost_with_the_link_and_the_channel_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_link_and_leg(rig, fork_id)
    del rig.ami.channels[UNIQUEID]
    await rig.forks.on_login()
    await rig.clock.advance(1)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


@pytest.mark.parametrize("leg_lost", [True, False])
async def test_restart_of_asterisk_ends_its_forks_and_new_ones_work(
    rig: Rig, leg_lost: bool
) -> None:
    fork_id = await rig.stream()
    if leg_lost:
        await lose_link_and_leg(rig, fork_id)
    rig.ami.channels = {"3.3": "PJSIP/300-00000001"}
    rig.ami.asterisk_started = "later"
    await rig.forks.on_login()
    await rig.clock.advance(1)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "Asterisk was restarted")]
    await rig.obey()
    assert rig.last_event[1]["Reason"] == "leg-failed"
    assert rig.last_event[1]["Detail"] == "Asterisk was restarted"
    await rig.stream(channel="PJSIP/300-00000001")
    await rig.forks.on_login()
    assert len(rig.ends) == 1


@pytest.mark.parametrize("runs", [("", "later"), ("today", "")])
async def test_asterisk_that_does_not_say_when_it_started_is_asked_for_the_channel(
    rig: Rig, runs: tuple[str, str]
) -> None:
    rig.ami.asterisk_started = runs[0]
    fork_id = await rig.stream()
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.ami.asterisk_started = runs[1]
    del rig.ami.channels[UNIQUEID]
    await rig.forks.on_login()
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_login_ends_the_forks_whose_channels_went_meanwhile(rig: Rig) -> None:
    gone = {await rig.stream(), await rig.attach()}
    await rig.stream(channel="PJSIP/200-0000002b")
    del rig.ami.channels[UNIQUEID]
    asked = len(rig.ami.actions)
    await rig.forks.on_login()
    assert [name for name, _, _ in rig.ami.actions[asked:]] == ["CoreShowChannels"]
    await rig.clock.advance(HANGUP_GRACE_S)
    assert {end.fork_id for end in rig.ends} == gone
    assert {end.reason for end in rig.ends} == {EndReason.HANGUP}


async def test_channel_that_is_younger_than_the_list_lives(rig: Rig) -> None:
    gate = rig.ami.gates["CoreShowChannels"] = asyncio.Event()
    linked = asyncio.create_task(rig.forks.on_login())
    await rig.clock.settle()
    fork_id = await rig.stream()
    name = rig.ami.channels.pop(UNIQUEID)
    gate.set()
    await linked
    rig.ami.channels[UNIQUEID] = name
    await rig.clock.advance(1)
    assert rig.live == [fork_id]
    assert rig.ends == []


async def test_sweep_that_fails_is_said_and_nothing_else(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID]
    rig.ami.faults["Hangup"] = AmiTimeout("Hangup: no answer")
    rig.forks.resume_after_login([ENTRY])
    await rig.forks.on_login()
    assert "may remain: Hangup: no answer" in caplog.text
    assert rig.live == [ENTRY.fork_id]


# --- Legs of an earlier run ----------------------------------------------------------------------


def hung_up(rig: Rig) -> list[str]:
    return [dict(headers)["Channel"] for name, headers, _ in rig.ami.actions if name == "Hangup"]


async def test_login_without_forks_sweeps(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID, f"{LEG_PREFIX}{UNKNOWN_ID}-0a1b2c3d"]
    await rig.forks.on_login()
    assert rig.taps.kept == [set()]
    assert hung_up(rig) == rig.taps.left
    assert "hung up 2 legs" in caplog.text


async def test_sweep_of_a_leg_that_is_gone_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.taps.left = [LEG_PREFIX + UNKNOWN_ID, f"{LEG_PREFIX}{UNKNOWN_ID}-0a1b2c3d"]
    rig.ami.faults["Hangup"] = AmiActionFailed("Hangup", "No such channel")
    await rig.forks.on_login()
    assert hung_up(rig) == rig.taps.left
    assert "may remain" not in caplog.text


async def test_login_with_forks_sweeps_but_keeps_their_legs(rig: Rig) -> None:
    forks = {await rig.stream(), await rig.start()}
    await rig.forks.on_login()
    assert rig.taps.kept == [{LEG_PREFIX + fork_id for fork_id in forks}]
    assert rig.ends == []


# --- Profiles ------------------------------------------------------------------------------------


async def test_fork_to_a_profile_is_resumed_to_what_the_profile_has_now(rig: Rig) -> None:
    section = ProfileConfig(
        url="ws://h/{uniqueid}", options="x(json)", token="new", opening="{caller_number}"
    )
    rig.profiles.configure({"speech": section})
    call = {"uniqueid": UNIQUEID, "caller_number": "7"}
    entry = replace(ENTRY, url="@speech", options="D(in)", call=call, params={"a": "1"})
    await resume(rig, entry)
    assert rig.spec.url == f"ws://h/{UNIQUEID}"
    assert rig.spec.handshake.headers == (("Authorization", "Bearer new"),)
    assert rig.spec.dialogue.opening == "7"
    assert rig.spec.metadata is not None
    assert (rig.spec.metadata.call, rig.spec.metadata.params) == (call, {"a": "1"})
    assert rig.journal.entries[UNKNOWN_ID].url == "@speech"


async def test_fork_to_a_profile_that_is_gone_is_not_resumed(rig: Rig) -> None:
    await resume(rig, replace(ENTRY, url="@speech"))
    assert not rig.sent
    assert "not resumed: WsServer: no section [profile:speech]" in rig.last_event[1]["Detail"]


async def test_leg_of_a_fork_that_begins_anew_is_hung_up_wherever_it_leads(rig: Rig) -> None:
    """The relay host that has it may be cut off from us, and not from Asterisk."""
    leg = LEG_PREFIX + UNKNOWN_ID
    rig.ami.channels[leg] = "AudioSocket/192.0.2.9:9092-1"
    await resume(rig, ENTRY)
    hung_up = [dict(headers)["Channel"] for name, headers, _ in rig.ami.actions if name == "Hangup"]
    assert hung_up == [leg]
    assert rig.tap.started == [(UNKNOWN_ID, UNIQUEID)]
