import asyncio
import os
from pathlib import Path

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.config import PostProcessConfig
from audiofork.errors import NoSuchChannel, RequestRefused
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.legs import LEG_TIMEOUT_S
from audiofork.forks.post_process import runner
from audiofork.link.messages import EndFork, EndReason, ForkSpec, ForkStats, LegAttached, LegPart
from audiofork.text import MAX_REASON_CHARACTERS
from tests.control_plane import NAME, START, UNIQUEID, URL, Clock, Rig

PAIRS = LegPart.PAIRS


# --- Start to end --------------------------------------------------------------------------------


async def test_end_is_told_with_reason_duration_and_counts(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.clock.advance(12.34)
    await rig.ended(fork_id, EndReason.HANGUP, stats=ForkStats(617, 610, 7))
    assert rig.last_event == (
        "AudioForkStopped",
        {
            "AudioForkID": fork_id,
            "Channel": NAME,
            "Uniqueid": UNIQUEID,
            "WsServer": URL,
            "Reason": "hangup",
            "Duration": "12.3",
            "FramesIn": "617",
            "FramesSent": "610",
            "FramesDropped": "7",
            "Reconnects": "0",
            "ActionID": "7",
        },
    )
    assert rig.variables["AUDIOFORK_REASON"] == "hangup"
    assert rig.ami.told[-2:] == ["STOPPED", "AudioForkStopped"]


async def test_two_forks_on_one_channel_go_their_own_ways(rig: Rig) -> None:
    first, second = await rig.stream(), await rig.stream()
    assert len(rig.forks) == 2
    await rig.ended(first, EndReason.SINK_GONE)
    assert len(rig.forks) == 1
    await rig.request(command="StopAudioFork", audioforkid=second)
    assert rig.ends == [EndFork(second, EndReason.STOPPED)]


# --- Hangup --------------------------------------------------------------------------------------


async def test_hangup_ends_the_fork_after_a_grace(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S - 0.01)
    assert rig.ends == []
    await rig.clock.advance(0.02)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_hangup_request_and_hangup_are_one(rig: Rig) -> None:
    await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S * 0.75)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S * 0.5)
    assert len(rig.ends) == 1
    await rig.clock.advance(1)
    assert len(rig.ends) == 1


async def test_hangup_ends_every_fork_of_the_channel_and_no_other(rig: Rig) -> None:
    mine = {await rig.stream(), await rig.stream()}
    await rig.stream(channel="PJSIP/200-0000002b")
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.forks.on_event(ChannelHangup("9.9"))
    rig.forks.on_event(ChannelHangup(""))
    await rig.clock.advance(1)
    assert {end.fork_id for end in rig.ends} == mine


async def test_hangup_before_the_leg_attaches_still_ends_the_fork(rig: Rig) -> None:
    fork_id = await rig.start()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_stop_within_the_grace_of_a_hangup_goes_first(rig: Rig) -> None:
    await rig.stream()
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.request(command="StopAudioFork", uniqueid=UNIQUEID)
    await rig.clock.advance(1)
    assert [end.reason for end in rig.ends] == [EndReason.STOPPED]


# --- The daemon's end ----------------------------------------------------------------------------


async def test_shutdown_that_keeps_leaves_the_forks_in_the_journal(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.allow(allow_post_process=True)
    forks = [await rig.stream(postprocess="echo no"), await rig.attach()]
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.SHUTDOWN) for fork_id in forks]
    assert rig.ami.told[-4:] == ["RECONNECTING", "AudioForkReconnecting"] * 2
    assert rig.last_event[1]["Reason"] == "the daemon is restarted"
    told = list(rig.ami.told)
    for fork_id in forks:
        await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert rig.ami.told == told
    assert list(rig.journal.entries) == forks
    rig.journal.entries.clear()


async def test_shutdown_that_keeps_ends_what_ends_anyway(rig: Rig) -> None:
    hung_up, refused = await rig.stream(), await rig.stream(channel="PJSIP/200-0000002b")
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    assert rig.ami.told.count("AudioForkReconnecting") == 1
    await rig.ended(hung_up, EndReason.SHUTDOWN)
    await rig.ended(refused, EndReason.SINK_REFUSED)
    await shutdown
    assert rig.ami.told.count("AudioForkStopped") == 2
    assert rig.journal.entries == {}


async def test_shutdown_that_cannot_keep_ends_the_forks_and_says_so(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.works = False
    fork_id = await rig.stream()
    shutdown = asyncio.create_task(rig.stop(keep=True))
    await rig.clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert "cannot be kept, because the journal does not work" in caplog.text
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.journal.entries == {}


async def test_shutdown_without_forks_returns_at_once_and_refuses_new_ones(rig: Rig) -> None:
    await rig.shut_down()
    await rig.request(**START)
    assert rig.last_event[1]["Reason"] == "the daemon stops"
    assert rig.sent == []


async def test_shutdown_ends_the_running_forks_and_waits_for_them(rig: Rig) -> None:
    forks = [await rig.stream(), await rig.attach(), await rig.start()]
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert rig.ends == [EndFork(fork_id, EndReason.SHUTDOWN) for fork_id in forks]
    for fork_id in forks:
        assert not shutdown.done()
        await rig.ended(fork_id, EndReason.SHUTDOWN)
    await shutdown
    assert rig.ami.told.count("AudioForkStopped") == 3


async def test_shutdown_while_a_start_is_looked_up_refuses_it(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    assert rig.sent == []
    assert rig.last_event[0] == "AudioForkFailed"
    assert "shutdown" in rig.last_event[1]["Reason"]


async def test_shutdown_while_a_door_asks_for_a_start_refuses_it(rig: Rig) -> None:
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START))
    await rig.clock.settle()
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert not shutdown.done()
    gate.set()
    await shutdown
    with pytest.raises(RequestRefused, match="^ended before it began: shutdown$"):
        await asked
    with pytest.raises(RequestRefused, match="^the daemon stops$"):
        await rig.ask(**START)
    assert rig.sent == []
    assert rig.ami.events == []


async def test_fault_during_a_shutdown_does_not_cut_it_short(clock: Clock) -> None:
    rig = Rig(clock)
    rig.tap.gate, rig.tap.fault = asyncio.Event(), RuntimeError("boom")
    fork_id = await rig.start()
    shutdown = asyncio.create_task(rig.stop())
    await clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    rig.tap.gate.set()
    await shutdown


async def test_fault_in_one_start_is_logged_with_its_traceback(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(clock)
    rig.tap.fault = RuntimeError("boom")
    await rig.request(**START)
    rig.tap.fault = None
    await rig.stream()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "boom"
    await rig.close()


async def test_close_gives_up_what_waits_for_asterisk(clock: Clock) -> None:
    tasks_before = asyncio.all_tasks()
    rig = Rig(clock)
    rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.request(**START)
    await rig.close()
    assert asyncio.all_tasks() == tasks_before
    assert rig.sent == []


async def test_close_leaves_no_timer(clock: Clock) -> None:
    rig = Rig(clock)
    await rig.request(**START)
    await rig.close()
    await clock.advance(LEG_TIMEOUT_S + 1)
    assert [type(command) for command in rig.sent] == [ForkSpec]


# --- The sink ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "streaming", "news"),
    [
        (EndReason.SINK_GONE, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.SINK_REFUSED, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.FAULT, False, ["FAILED", "AudioForkFailed"]),
        (EndReason.HANGUP, False, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SHUTDOWN, False, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SINK_GONE, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.SINK_REFUSED, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.FAULT, True, ["STOPPED", "AudioForkStopped"]),
        (EndReason.LEG_FAILED, True, ["STOPPED", "AudioForkStopped"]),
    ],
)
async def test_end_is_a_failure_only_before_the_first_frame(
    rig: Rig, reason: EndReason, streaming: bool, news: list[str]
) -> None:
    fork_id = await (rig.stream() if streaming else rig.attach())
    await rig.ended(fork_id, reason, "why")
    assert rig.ami.told[-2:] == news
    assert rig.last_event[1]["Reason"] == rig.variables["AUDIOFORK_REASON"] == reason.value
    assert rig.last_event[1]["Detail"] == "why"


@pytest.mark.parametrize("streaming", [False, True])
async def test_control_characters_of_the_server_do_not_reach_asterisk(
    rig: Rig, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await (rig.stream() if streaming else rig.attach())
    await rig.ended(
        fork_id, EndReason.SINK_REFUSED, "a\r\nAction: Hangup\0\x85\u2028\ud800" + "é" * 999
    )
    detail = rig.last_event[1]["Detail"]
    assert detail.startswith("a??Action: Hangup????é")
    assert len(detail) == MAX_REASON_CHARACTERS
    assert "\r" not in caplog.text


async def test_end_that_the_relay_reports_needs_no_command(rig: Rig) -> None:
    await rig.ended(await rig.stream(), EndReason.SINK_GONE)
    await rig.request(command="StopAudioFork", channel=NAME)
    assert rig.ends == []
    assert rig.last_event[1]["Reason"] == "No such fork"


# --- The post-process command --------------------------------------------------------------------


@pytest.fixture
def post_process_rig(rig: Rig) -> Rig:
    rig.allow(allow_post_process=True)
    rig.ami.values = {"CALLERID(name)": "'; touch pwned; $(id)", "EMPTY": ""}
    return rig


def told_of_end(rig: Rig) -> list[str]:
    return [name for name, _ in rig.ami.events if name.endswith(("Stopped", "Failed"))]


@pytest.mark.parametrize("field", ["postprocess", "command"])
async def test_post_process_is_refused_unless_allowed(rig: Rig, field: str) -> None:
    await rig.request(**START, **{field: "/bin/true"})
    reason = rig.last_event[1]["Reason"]
    assert reason.startswith("PostProcess: shell commands are not allowed (allow_post_process)")
    assert rig.sent == []
    assert rig.ami.actions == []


@pytest.mark.parametrize("field", ["postprocess", "command"])
async def test_post_process_runs_with_the_values_of_the_start(
    post_process_rig: Rig, tmp_path: Path, field: str
) -> None:
    rig = post_process_rig
    script = f"printf '[%s]' ^{{CALLERID(name)}} ^{{EMPTY}} > {tmp_path}/out; exit 3"
    fork_id = await rig.stream(**{field: script})
    rig.ami.values = {"CALLERID(name)": "later"}
    assert not (tmp_path / "out").exists()
    del rig.ami.channels[UNIQUEID]  # as it is after a hangup
    await rig.ended(fork_id, EndReason.HANGUP)
    await rig.until(lambda: told_of_end(rig))
    assert (tmp_path / "out").read_text() == "['; touch pwned; $(id)][]"
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "3"
    assert rig.last_event[1]["Reason"] == "hangup"


async def test_post_process_is_waited_for_before_the_event_but_not_by_the_variables(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"touch {tmp_path}/runs; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    fork_id = await rig.stream(postprocess=script)
    await rig.ended(fork_id, EndReason.STOPPED)
    await rig.until((tmp_path / "runs").exists)
    assert told_of_end(rig) == []
    assert rig.variables["AUDIOFORK_STATUS"] == "STOPPED"
    assert len(rig.forks) == 0
    (tmp_path / "go").touch()
    await rig.until(lambda: told_of_end(rig))
    assert rig.last_event[1]["PostProcessStatus"] == "0"


async def test_post_process_of_a_fork_that_failed_runs_too(post_process_rig: Rig) -> None:
    rig = post_process_rig
    fork_id = await rig.attach(postprocess="exit 4")
    await rig.ended(fork_id, EndReason.SINK_GONE, "refused")
    await rig.until(lambda: told_of_end(rig))
    name, headers = rig.last_event
    assert (name, headers["Reason"], headers["Detail"]) == (
        "AudioForkFailed",
        "sink-gone",
        "refused",
    )
    assert headers["PostProcessStatus"] == "4"


async def test_post_process_of_a_start_that_is_refused_does_not_run(
    post_process_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = post_process_rig
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("runs"))
    await rig.request(**{**START, "channel": "nobody"}, postprocess="true")
    assert rig.last_event[1]["Reason"] == "No such channel"
    assert "PostProcessStatus" not in rig.last_event[1]


async def test_post_process_values_of_a_channel_that_goes_refuse_the_start(
    post_process_rig: Rig,
) -> None:
    rig = post_process_rig
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    asked = asyncio.create_task(rig.ask(**START, postprocess="echo ^{EMPTY}"))
    await rig.clock.settle()
    gate.set()
    gate = rig.ami.gates["Getvar"] = asyncio.Event()
    await rig.clock.settle()
    rig.ami.channels.clear()
    gate.set()
    with pytest.raises(NoSuchChannel):
        await asked


async def test_post_process_that_cannot_be_run_is_said(
    post_process_rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = post_process_rig

    async def run(*_: object) -> int:
        raise OSError("no more processes")

    monkeypatch.setattr(runner, "run", run)
    await rig.ended(await rig.stream(postprocess="true"), EndReason.HANGUP)
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "not run"
    assert "the post-process command cannot be run: no more processes" in caplog.text


async def test_post_process_is_waited_for_by_a_shutdown(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    fork_id = await rig.stream(postprocess=script)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    await rig.ended(fork_id, EndReason.SHUTDOWN)
    assert not shutdown.done()
    (tmp_path / "go").touch()
    await rig.until(shutdown.done)
    assert told_of_end(rig) == ["AudioForkStopped"]


async def test_post_process_that_outlasts_the_daemon_is_said_and_killed(
    post_process_rig: Rig, tmp_path: Path
) -> None:
    rig = post_process_rig
    script = f"touch {tmp_path}/runs; sleep 60; touch {tmp_path}/late"
    await rig.ended(await rig.stream(postprocess=script), EndReason.SHUTDOWN)
    await rig.until((tmp_path / "runs").exists)
    closing = asyncio.create_task(rig.close())
    await rig.until(closing.done)
    assert rig.last_event[0] == "AudioForkStopped"
    assert rig.last_event[1]["PostProcessStatus"] == "interrupted"


async def test_command_of_the_configuration_runs_without_further_leave(
    rig: Rig, tmp_path: Path
) -> None:
    rig.ami.values = {"CALLERID(name)": "'; touch pwned; $(id)"}
    argv = ("/usr/bin/touch", f"{tmp_path}/a^{{CALLERID(name)}}")
    rig.commands.configure({"note": PostProcessConfig(argv)})
    fork_id = await rig.stream(postprocess="@note")
    await rig.ended(fork_id, EndReason.HANGUP)
    await rig.until(lambda: told_of_end(rig))
    assert rig.last_event[1]["PostProcessStatus"] == "0"
    assert os.listdir(tmp_path) == ["a'; touch pwned; $(id)"]


async def test_command_that_the_configuration_does_not_have_refuses_the_fork(rig: Rig) -> None:
    await rig.request(**START, postprocess="@note")
    reason = "PostProcess: no section [post_process:note]; there are: none"
    assert rig.last_event[1]["Reason"] == reason
    assert rig.sent == []
