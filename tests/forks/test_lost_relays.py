import asyncio

import pytest

from audiofork.asterisk.ami_protocol import BridgeChanged, ChannelHangup, OriginateFailed
from audiofork.errors import (
    LegRefused,
)
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.legs import LEG_LOSS_GRACE_S, LEG_TIMEOUT_S, MAX_NEW_LEGS
from audiofork.forks.lost_relays import RELAY_DIED
from audiofork.link.messages import (
    EndReason,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegPart,
    RelayLost,
    SetMute,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from tests.control_plane import (
    NAME,
    UNIQUEID,
    Rig,
)

PAIRS = LegPart.PAIRS


# --- A relay process that dies with its forks ----------------------------------------------------


async def test_forks_of_a_dead_relay_process_are_ordered_anew_and_this_is_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id, other = await rig.stream(options="D(in)"), await rig.stream(actionid="8")
    spec = rig.sent[0]
    rig.sent.clear()
    await rig.lose_relay(fork_id)
    assert rig.sent == [spec]
    assert rig.ami.told[-2:] == ["RECONNECTING", "AudioForkReconnecting"]
    assert rig.last_event[1]["AudioForkID"] == fork_id
    assert (rig.last_event[1]["Attempt"], rig.last_event[1]["Reason"]) == ("1", RELAY_DIED)
    assert [view.state for view in await rig.forks.views()] == ["reconnecting", "streaming"]
    assert rig.tap.legs[-1] not in rig.tap.legs[:-1]
    assert rig.tap.started[-1] == (fork_id, UNIQUEID)
    await rig.clock.advance(0.25)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert rig.ami.told.count("AudioForkResumed") == 1
    assert (rig.last_event[1]["FramesDropped"], rig.last_event[1]["GapMs"]) == ("0", "250")
    told = list(rig.ami.told)
    rig.forks.on_report(Streaming(fork_id))  # the first of the new process, not of the fork
    assert rig.ami.told == told
    assert [view.state for view in await rig.forks.views()] == ["streaming"] * 2
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert rig.ends == []
    assert rig.live == [other, fork_id]
    assert "a relay process died; attempt 1 follows" in caplog.text


async def test_fork_of_a_dead_relay_process_waits_for_its_server_too(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told[-1] == "AudioForkReconnecting"  # the leg alone is back
    rig.forks.on_report(SinkRetrying(fork_id, 1, "Connection refused"))
    rig.forks.on_report(SinkOpened(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert rig.ami.told.count("AudioForkResumed") == 1
    rig.forks.on_report(Streaming(fork_id))
    assert [view.state for view in await rig.forks.views()] == ["streaming"]


async def test_server_that_goes_again_while_legs_are_missing_is_back_with_them(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(SinkRetrying(fork_id, 1, "closed"))
    await rig.clock.advance(0.2)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert "AudioForkResumed" not in rig.ami.told
    rig.forks.on_report(SinkResumed(fork_id, 7))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert (rig.last_event[1]["FramesDropped"], rig.last_event[1]["GapMs"]) == ("7", "200")


async def test_leg_that_is_lost_after_all_was_back_is_told_by_itself(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    rig.connect(fork_id, PAIRS)
    rig.forks.on_report(SinkOpened(fork_id))
    await rig.lose_leg(fork_id)
    await rig.clock.advance(0.5)
    rig.connect(fork_id, PAIRS)
    assert rig.ami.told.count("AudioForkResumed") == 2
    assert rig.last_event[1]["GapMs"] == "500"


async def test_gap_counts_from_the_death_of_the_relay_process(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id, away_s=1.5)
    await rig.clock.advance(0.5)
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.last_event[1]["GapMs"] == "2000"


async def test_fork_that_was_attaching_when_its_relay_process_died_starts_all_the_same(
    rig: Rig,
) -> None:
    fork_id = await rig.start()
    await rig.lose_relay(fork_id)
    assert rig.ami.told == ["STARTING", "AudioForkReconnecting"]
    rig.forks.on_event(OriginateFailed(rig.tap.legs[0], "0"))  # the first leg found nobody
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    rig.forks.on_report(SinkOpened(fork_id))
    rig.forks.on_report(Streaming(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkStarted"]
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert rig.ends == []


async def test_refusal_of_a_leg_for_a_dead_relay_process_is_no_news(rig: Rig) -> None:
    rig.tap.gate, rig.tap.fault = asyncio.Event(), LegRefused("Originate: no")
    fork_id = await rig.start()
    gate, rig.tap.gate, rig.tap.fault = rig.tap.gate, None, None
    await rig.lose_relay(fork_id)
    rig.tap.fault = LegRefused("Originate: no")
    gate.set()
    await rig.clock.settle()
    assert rig.ends == []


async def test_new_relay_process_hears_what_has_changed_since_the_start(rig: Rig) -> None:
    rig.ami.bridged = set()
    fork_id = await rig.stream(options="b")
    rig.forks.on_event(BridgeChanged(UNIQUEID, True))
    await rig.request(command="AudioForkMute", channel=NAME, direction="read", state="1")
    rig.sent.clear()
    await rig.lose_relay(fork_id)
    spec, mute = rig.sent
    assert isinstance(spec, ForkSpec)
    assert spec.gate_open
    assert mute == SetMute(fork_id, True, False)


async def test_too_many_dead_relay_processes_end_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(MAX_NEW_LEGS):
        await rig.lose_relay(fork_id)
        rig.forks.on_report(SinkOpened(fork_id))
        rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.lose_relay(fork_id)
    name, headers = rig.last_event
    assert (name, headers["Reason"]) == ("AudioForkStopped", "leg-failed")
    assert headers["Detail"] == f"the leg was lost 4 times in 10 s, last: {RELAY_DIED}"
    assert headers["RelaysLost"] == "4"
    assert len(rig.forks) == 0
    assert rig.live == []
    assert rig.journal.entries == {}


@pytest.mark.parametrize("how", ["stopped", "hangup"])
async def test_fork_that_was_ending_ends_with_its_relay_process(rig: Rig, how: str) -> None:
    fork_id = await rig.stream()
    if how == "stopped":
        await rig.request(command="StopAudioFork", channel=NAME)
    else:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.lose_relay(fork_id)
    name, headers = rig.last_event
    assert (name, headers["Reason"], headers["Detail"]) == ("AudioForkStopped", how, RELAY_DIED)
    assert len(rig.forks) == 0
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.live == []


async def test_totals_of_a_fork_say_that_they_began_anew(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)
    await rig.request(command="StopAudioFork", channel=NAME)
    await rig.ended(fork_id, EndReason.STOPPED, stats=ForkStats(5, 5))
    assert rig.last_event[1]["RelaysLost"] == "1"
    assert rig.last_event[1]["FramesIn"] == "5"
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.SINK_GONE)
    assert "RelaysLost" not in rig.last_event[1]


async def test_leg_that_was_lost_just_before_its_relay_process_is_replaced_once(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.lose_relay(fork_id)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 2
    assert len(rig.expected) == 2


async def test_fork_that_ended_when_its_relay_process_died_is_no_news(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.ended(fork_id, EndReason.SINK_GONE)
    told = list(rig.ami.told)
    rig.forks.on_report(RelayLost((fork_id,)))
    await rig.clock.settle()
    assert rig.ami.told == told


async def test_fork_whose_tls_files_went_since_ends_when_its_relay_process_dies(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    rig.spec_fault = "the certificate cannot be used"
    await rig.lose_relay(fork_id)
    assert rig.last_event[1]["Reason"] == "sink-refused"
    assert len(rig.tap.legs) == 1
    assert len(rig.forks) == 0


async def test_attempt_is_that_of_the_leg_that_was_lost_most_often(two: Rig) -> None:
    fork_id = await two.stream()
    await two.lose_leg(fork_id, part=LegPart.IN)
    await two.clock.advance(LEG_LOSS_GRACE_S)
    two.connect(fork_id, LegPart.IN)
    await two.lose_relay(fork_id)
    assert (two.last_event[1]["Attempt"], two.last_event[1]["Reason"]) == ("2", RELAY_DIED)


async def test_too_many_dead_relay_processes_name_the_leg_that_was_lost_most_often(
    two: Rig,
) -> None:
    fork_id = await two.stream()
    await two.lose_leg(fork_id, part=LegPart.OUT)
    await two.clock.advance(LEG_LOSS_GRACE_S)
    two.connect(fork_id, LegPart.OUT)
    for _ in range(MAX_NEW_LEGS):
        await two.lose_relay(fork_id)
    detail = f"the leg of out was lost 4 times in 10 s, last: {RELAY_DIED}"
    assert two.last_event[1]["Detail"] == detail
    assert len(two.forks) == 0
