"""The legs of forks: asked for, lost and replaced. The registry around them is the real one."""

import asyncio
from dataclasses import replace

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup, OriginateFailed
from audiofork.asterisk.taps.base import LegOrder
from audiofork.asterisk.taps.ways import Audience, Connects
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiTimeout,
    AmiUnavailable,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
)
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.events import Attack, AttackKind
from audiofork.forks.legs import (
    ASTERISK_AWAY_S,
    LEG_LOSS_GRACE_S,
    LEG_TIMEOUT_S,
    MAX_NEW_LEGS,
    NEW_LEGS_WINDOW_S,
    ORPHAN_TIMEOUT_S,
)
from audiofork.forks.lost_relays import RELAY_DIED
from audiofork.link.messages import (
    EndFork,
    EndReason,
    LegAttached,
    LegLost,
    LegPart,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
    Voice,
)
from tests.control_plane import ANY_URL, LEG_PREFIX, NAME, START, UNIQUEID, UNKNOWN_ID, Rig

IN, OUT, PAIRS = LegPart.IN, LegPart.OUT, LegPart.PAIRS
PARTY, PEER = Audience.PARTY, Audience.PEER


def orders(rig: Rig) -> list[LegOrder]:
    """Return the legs that were asked for, without their UUIDs."""
    return [replace(order, uuid="") for order in rig.tap.orders]


def expected(rig: Rig) -> list[tuple[str, LegPart]]:
    """Return the legs that the relay was told of, which are those that were asked for."""
    told = [command.leg_uuid for command in rig.expected]
    assert told == [order.uuid for order in rig.tap.orders]
    return [(command.fork_id, command.part) for command in rig.expected]


async def states(rig: Rig) -> list[str]:
    return [view.state for view in await rig.forks.views()]


# --- Failures of the leg -------------------------------------------------------------------------


async def test_leg_that_asterisk_refuses_fails_the_fork(rig: Rig) -> None:
    rig.tap.fault = LegRefused("Originate: Permission denied")
    await rig.request(**START)
    end = await rig.obey()
    detail = "Originate: Permission denied"
    assert (end.reason, end.detail) == (EndReason.LEG_FAILED, detail)
    assert rig.last_event[0] == "AudioForkFailed"
    assert rig.last_event[1]["Reason"] == "leg-failed"
    assert rig.last_event[1]["Detail"] == detail
    assert rig.variables["AUDIOFORK_REASON"] == "leg-failed"
    assert rig.ami.told == ["STARTING", "FAILED", "AudioForkFailed"]


async def test_leg_that_asterisk_may_have_heard_of_is_waited_for(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.tap.fault = LegUncertain("Originate: no answer within 5 s")
    fork_id = await rig.start()
    assert (
        "cannot tell whether Asterisk got the request for a leg: Originate: no answer within 5 s"
        in caplog.text
    )
    assert rig.ends == []
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.advance(LEG_TIMEOUT_S)
    assert rig.ends == []


async def test_leg_that_asterisk_has_not_heard_of_fails_the_fork_in_time(rig: Rig) -> None:
    rig.tap.fault = LegUncertain("the connection is lost")
    fork_id = await rig.start()
    await rig.clock.advance(LEG_TIMEOUT_S)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "the leg did not connect")]


async def test_originate_failure_fails_its_fork_alone_and_says_the_reason(rig: Rig) -> None:
    await rig.start()
    fork_id = await rig.start()
    rig.forks.on_event(OriginateFailed(LEG_PREFIX + fork_id, "3"))
    assert rig.ends == [
        EndFork(fork_id, EndReason.LEG_FAILED, "Asterisk could not connect the leg (reason 3)")
    ]


@pytest.mark.parametrize("action_id", ["", LEG_PREFIX + UNKNOWN_ID, LEG_PREFIX, "{}"])
async def test_originate_failure_of_others_is_ignored(rig: Rig, action_id: str) -> None:
    fork_id = await rig.start()
    rig.forks.on_event(OriginateFailed(action_id.format(fork_id), "3"))
    assert rig.ends == []


async def test_leg_that_never_connects_fails_the_fork(rig: Rig) -> None:
    fork_id = await rig.start()
    await rig.clock.advance(LEG_TIMEOUT_S - 0.1)
    assert rig.ends == []
    await rig.clock.advance(0.2)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "the leg did not connect")]


async def test_leg_that_connects_has_no_time_limit(rig: Rig) -> None:
    await rig.attach()
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert rig.ends == []


# --- The loss of a leg ---------------------------------------------------------------------------


async def test_leg_loss_with_the_channel_gone_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    del rig.ami.channels[UNIQUEID]
    await rig.lose_leg(fork_id)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_loss_with_the_channel_gone_a_little_later_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    assert rig.ends == []
    del rig.ami.channels[UNIQUEID]
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_loss_while_asterisk_shuts_down_is_a_hangup(rig: Rig) -> None:
    """It refuses to speak of its channels before it tells of their hangups."""
    fork_id = await rig.stream()
    rig.ami.faults["Getvar"] = AmiActionFailed("Getvar", "Asterisk is shutting down")
    await rig.lose_leg(fork_id)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP, "Asterisk is shutting down")]


async def test_leg_loss_with_the_hangup_told_a_little_later_is_a_hangup(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


@pytest.mark.parametrize(
    ("hangup", "reason"),
    [(False, EndReason.NO_SUCH_CHANNEL), (True, EndReason.HANGUP)],
    ids=["no-hangup", "hangup"],
)
async def test_leg_loss_without_a_frame_and_without_channel(
    rig: Rig, hangup: bool, reason: EndReason
) -> None:
    """The channel may be gone before the news of its hangup has been read."""
    fork_id = await rig.attach()
    del rig.ami.channels[UNIQUEID]
    await rig.lose_leg(fork_id, frames_in=0)
    assert rig.ends == []
    if hangup:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert [end.reason for end in rig.ends] == [reason]


@pytest.mark.parametrize(
    ("hangup", "reason"),
    [(False, EndReason.LEG_FAILED), (True, EndReason.HANGUP)],
    ids=["no-hangup", "hangup"],
)
@pytest.mark.parametrize("exc", [AmiUnavailable("down"), AmiTimeout("late")], ids=["down", "late"])
async def test_leg_loss_that_asterisk_does_not_explain(
    rig: Rig, hangup: bool, reason: EndReason, exc: AmiError
) -> None:
    fork_id = await rig.stream()
    rig.ami.faults["Getvar"] = exc
    if hangup:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.lose_leg(fork_id)
    if exc.args == ("down",) and not hangup:
        assert rig.ends == []  # the link may come back
        await rig.clock.advance(ASTERISK_AWAY_S)
    assert [end.reason for end in rig.ends] == [reason]
    if not hangup:
        assert rig.ends[0].detail == f"the leg was lost, and Asterisk cannot be asked: {exc}"


async def test_leg_loss_of_a_fork_that_ends_meanwhile_asks_for_no_second_end(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.ended(fork_id, EndReason.SINK_GONE)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == []


# --- A leg that is lost while its channel lives ---------------------------------------------------


async def lose_and_replace(rig: Rig, fork_id: str, frames_in: int = 50) -> None:
    await rig.lose_leg(fork_id, frames_in)
    await rig.clock.advance(LEG_LOSS_GRACE_S)


async def test_lost_leg_is_replaced_and_both_are_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id = await rig.stream(options="D(in)p")
    await lose_and_replace(rig, fork_id)
    assert rig.ami.told[-2:] == ["RECONNECTING", "AudioForkReconnecting"]
    assert rig.last_event[1]["Attempt"] == "1"
    assert rig.last_event[1]["Reason"] == "the leg was lost: Asterisk closed it"
    assert [view.state for view in await rig.forks.views()] == ["reconnecting"]
    assert expected(rig)[1:] == [(fork_id, PAIRS)]
    assert rig.tap.started == [(fork_id, UNIQUEID)] * 2
    assert rig.tap.speaking == [fork_id] * 2
    assert rig.tap.legs == [LEG_PREFIX + fork_id, f"{LEG_PREFIX}{fork_id}-1"]
    await rig.clock.advance(0.05)
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert rig.last_event[1]["FramesDropped"] == "0"
    assert rig.last_event[1]["GapMs"] == "200"
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert "the leg was lost: Asterisk closed it; attempt 1 follows" in caplog.text
    assert "the leg is back after 200 ms" in caplog.text
    await rig.clock.advance(LEG_TIMEOUT_S + 1)
    assert rig.ends == []


async def test_leg_that_is_lost_too_often_ends_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(MAX_NEW_LEGS):
        await lose_and_replace(rig, fork_id)
        assert rig.ends == []
        rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await lose_and_replace(rig, fork_id)
    detail = "the leg was lost 4 times in 10 s, last: Asterisk closed it"
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]
    await rig.obey()
    assert rig.last_event[1]["Detail"] == detail
    assert rig.last_event[0] == "AudioForkStopped"


async def test_leg_that_is_lost_now_and_then_is_replaced_each_time(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(3 * MAX_NEW_LEGS):
        await lose_and_replace(rig, fork_id)
        rig.forks.on_report(LegAttached(fork_id, PAIRS))
        await rig.clock.advance(NEW_LEGS_WINDOW_S / MAX_NEW_LEGS)
    assert rig.ends == []
    assert rig.last_event[1]["FramesDropped"] == "0"


@pytest.mark.parametrize("refused", [False, True], ids=["does-not-connect", "refused"])
async def test_new_leg_that_does_not_come_about_counts_as_lost(rig: Rig, refused: bool) -> None:
    fork_id = await rig.stream()
    why = "Asterisk could not connect the leg (reason 3)"
    if refused:
        why = "Originate: no"
        rig.tap.fault = LegRefused(why)
    await lose_and_replace(rig, fork_id)
    for attempt in range(1, MAX_NEW_LEGS + 1):
        assert rig.last_event[1]["Attempt"] == str(attempt)
        if not refused:
            rig.forks.on_event(OriginateFailed(rig.tap.legs[-1], "3"))
        await rig.clock.advance(LEG_LOSS_GRACE_S)
    detail = f"the leg was lost 4 times in 10 s, last: {why}"
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_new_leg_that_never_connects_fails_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_and_replace(rig, fork_id)
    await rig.clock.advance(LEG_TIMEOUT_S)
    assert rig.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "the leg did not connect again")]


async def test_gap_and_time_limit_of_a_new_leg_that_took_two_attempts(rig: Rig) -> None:
    """The gap counts from the loss, the limit from the latest attempt."""
    fork_id = await rig.stream()
    await lose_and_replace(rig, fork_id)
    await rig.clock.advance(LEG_TIMEOUT_S - 1)
    rig.forks.on_event(OriginateFailed(rig.tap.legs[-1], "3"))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    await rig.clock.advance(2)
    assert rig.ends == []
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.last_event[1]["GapMs"] == "7300"


async def test_originate_failure_of_an_earlier_leg_is_no_news(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_and_replace(rig, fork_id)
    rig.forks.on_event(OriginateFailed(rig.tap.legs[0], "3"))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 2
    assert rig.ends == []


async def test_leg_that_brought_nothing_is_replaced_while_its_channel_lives(rig: Rig) -> None:
    fork_id = await rig.attach()
    await lose_and_replace(rig, fork_id, frames_in=0)
    assert expected(rig)[1:] == [(fork_id, PAIRS)]
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert rig.ami.told == ["STARTING", "AudioForkReconnecting"]
    rig.forks.on_report(Streaming(fork_id))
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkStarted"]


async def test_first_frame_while_the_leg_is_lost_waits_for_the_leg(rig: Rig) -> None:
    """A server that accepts late gets what the first leg had brought."""
    fork_id = await rig.attach()
    await lose_and_replace(rig, fork_id)
    rig.forks.on_report(Streaming(fork_id))
    assert [view.state for view in await rig.forks.views()] == ["reconnecting"]
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    assert [view.state for view in await rig.forks.views()] == ["streaming"]
    assert rig.last_event[0] == "AudioForkResumed"


@pytest.mark.parametrize("leg_first", [True, False])
async def test_leg_and_server_lost_are_both_waited_for(rig: Rig, leg_first: bool) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(SinkRetrying(fork_id, 1, "gone"))
    await lose_and_replace(rig, fork_id)
    back: list[LegAttached | SinkResumed] = [LegAttached(fork_id, PAIRS), SinkResumed(fork_id, 2)]
    rig.forks.on_report(back.pop(0 if leg_first else 1))
    assert rig.ami.told[-1] == "AudioForkResumed"
    assert rig.ami.told.count("STREAMING") == 1
    assert [view.state for view in await rig.forks.views()] == ["reconnecting"]
    rig.forks.on_report(back.pop())
    assert rig.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert [view.state for view in await rig.forks.views()] == ["streaming"]


@pytest.mark.parametrize("verb", ["stop", "hangup"])
async def test_end_while_a_lost_leg_is_looked_into_goes_first(rig: Rig, verb: str) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    if verb == "stop":
        await rig.request(command="StopAudioFork", channel=NAME)
    else:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(1)
    reason = EndReason.STOPPED if verb == "stop" else EndReason.HANGUP
    assert rig.ends == [EndFork(fork_id, reason)]
    assert len(rig.tap.legs) == 1


async def test_hangup_while_the_new_leg_is_under_way_ends_the_fork(rig: Rig) -> None:
    fork_id = await rig.stream()
    await lose_and_replace(rig, fork_id)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    rig.forks.on_report(LegAttached(fork_id, PAIRS))
    await rig.clock.advance(HANGUP_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


# --- A channel that is gone when a leg is asked for ----------------------------------------------


@pytest.mark.parametrize(
    ("hangup", "reason", "event"),
    [
        (False, EndReason.NO_SUCH_CHANNEL, "AudioForkFailed"),
        (True, EndReason.HANGUP, "AudioForkStopped"),
    ],
    ids=["no-hangup", "hangup"],
)
async def test_start_whose_channel_is_gone_when_the_leg_is_asked_for(
    rig: Rig, hangup: bool, reason: EndReason, event: str
) -> None:
    """The channel may be gone before the news of its hangup has been read."""
    rig.tap.fault = NoSuchChannel()
    fork_id = await rig.start()
    await rig.clock.advance(LEG_LOSS_GRACE_S - 0.1)
    assert rig.ends == []
    if hangup:
        rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(0.1)
    assert rig.ends == [EndFork(fork_id, reason)]
    await rig.obey()
    assert (rig.last_event[0], rig.last_event[1]["Reason"]) == (event, reason)


async def test_new_leg_whose_channel_is_gone_when_it_is_asked_for_is_a_hangup(rig: Rig) -> None:
    """Though the news of it is late, or lost with the link."""
    fork_id = await rig.stream()
    rig.tap.fault = NoSuchChannel()
    await lose_and_replace(rig, fork_id)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_channel_that_a_leg_for_a_dead_relay_process_did_not_find_is_no_news(
    rig: Rig,
) -> None:
    rig.tap.gate, rig.tap.fault = asyncio.Event(), NoSuchChannel()
    fork_id = await rig.start()
    gate, rig.tap.gate, rig.tap.fault = rig.tap.gate, None, None
    await rig.lose_relay(fork_id)
    rig.tap.fault = NoSuchChannel()
    gate.set()
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.ends == []


# --- Legs that somebody else may have forged -----------------------------------------------------


def attacks(rig: Rig) -> list[Attack]:
    return [event for event in rig.events if isinstance(event, Attack)]


async def test_contested_leg_is_replaced_by_one_with_another_uuid_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    rig.forks.on_report(LegLost(fork_id, PAIRS, 50, contested=True))
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert rig.last_event[0] == "AudioForkReconnecting"
    why = "the leg was lost: somebody else presented its UUID as well"
    assert rig.last_event[1]["Reason"] == why
    assert f"{why}; attempt 1 follows" in caplog.text
    assert expected(rig) == [(fork_id, PAIRS)] * 2
    assert len({command.leg_uuid for command in rig.expected}) == 2
    (attack,) = attacks(rig)
    assert attack.kind is AttackKind.CONTESTED_LEG
    assert fork_id in attack.detail
    rig.connect(fork_id, PAIRS)
    assert rig.ami.told[-1] == "AudioForkResumed"


async def test_fork_whose_legs_are_contested_again_and_again_ends_and_says_so(rig: Rig) -> None:
    fork_id = await rig.stream()
    for _ in range(MAX_NEW_LEGS + 1):
        rig.forks.on_report(LegLost(fork_id, PAIRS, 50, contested=True))
        await rig.clock.advance(LEG_LOSS_GRACE_S)
        rig.connect(fork_id, PAIRS)
    (end,) = rig.ends
    assert end.reason is EndReason.LEG_FAILED
    assert end.detail.endswith("last: somebody else presented its UUID as well")
    assert rig.counters.attacks == {AttackKind.CONTESTED_LEG: MAX_NEW_LEGS + 1}


async def test_connection_that_outlives_its_channel_is_replaced_as_forged(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_event(ChannelHangup(rig.tap.legs[0]))
    await rig.clock.advance(ORPHAN_TIMEOUT_S - 0.1)
    assert attacks(rig) == []
    await rig.clock.advance(0.1)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert [attack.kind for attack in attacks(rig)] == [AttackKind.CONTESTED_LEG]
    assert expected(rig) == [(fork_id, PAIRS)] * 2


async def test_leg_that_is_lost_with_its_channel_is_no_attack(rig: Rig) -> None:
    fork_id = await rig.stream()
    rig.forks.on_event(ChannelHangup(rig.tap.legs[0]))
    await rig.lose_leg(fork_id)
    await rig.clock.advance(ORPHAN_TIMEOUT_S + 1)
    assert attacks(rig) == []
    assert len(rig.expected) == 2


async def test_channel_of_a_leg_that_goes_with_its_relay_process_is_no_attack(rig: Rig) -> None:
    fork_id = await rig.stream()
    await rig.no_relay(fork_id)
    rig.forks.on_event(ChannelHangup(rig.tap.legs[0]))
    await rig.clock.advance(ORPHAN_TIMEOUT_S + 1)
    assert attacks(rig) == []
    await rig.lose_relay(fork_id)
    assert len(rig.expected) == 2


async def test_channel_that_ends_while_its_relay_does_not_answer_is_no_attack(rig: Rig) -> None:
    """A relay host that has died counts as dead only after a while."""

    async def answer(_fork_id: str) -> bool:
        await asyncio.sleep(3)
        return False

    fork_id = await rig.stream()
    rig.forks._legs._until_expected = answer
    rig.forks.on_event(ChannelHangup(rig.tap.legs[0]))
    await rig.clock.advance(ORPHAN_TIMEOUT_S)
    await rig.clock.advance(5)
    assert attacks(rig) == []
    assert expected(rig) == [(fork_id, PAIRS)]


async def test_uuids_of_legs_are_told_to_the_relay_and_asterisk_alone(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    fork_id = await rig.stream()
    await lose_and_replace(rig, fork_id)
    view = (await rig.forks.views())[0]
    told = [rig.ami.told, rig.ami.events, rig.ami.variables, rig.ami.posts, rig.events, view]
    shown = f"{told} {rig.journal.entries} {rig.sent} {rig.tap.orders} {rig.expected} {caplog.text}"
    assert len(rig.expected) == 2
    assert not any(command.leg_uuid in shown for command in rig.expected)
    assert not any(fork_id in command.leg_uuid for command in rig.expected)


# --- Two legs ------------------------------------------------------------------------------------


async def lose_part(rig: Rig, fork_id: str, part: LegPart) -> None:
    await rig.lose_leg(fork_id, part=part)
    await rig.clock.advance(LEG_LOSS_GRACE_S)


def order_of(
    fork_id: str, part: LegPart, leg_id: str, heard_by: Audience | None = None
) -> LegOrder:
    return LegOrder(leg_id, "", fork_id, part, UNIQUEID, Connects.ORIGINATE, 16000, heard_by, NAME)


@pytest.mark.parametrize(
    ("options", "first", "second", "voice"),
    [
        ("", None, None, None),
        ("p", PARTY, None, None),
        ("k(party)", PARTY, None, (IN,)),
        ("k(peer)", None, PEER, (OUT,)),
        ("k(both)", PARTY, PEER, (IN, OUT)),
        ("k(party)B", PARTY, None, (IN,)),
        ("k(peer)P", PARTY, PEER, (OUT,)),
    ],
)
async def test_each_of_two_legs_is_heard_by_its_side_of_the_call(
    two: Rig,
    options: str,
    first: Audience | None,
    second: Audience | None,
    voice: tuple[LegPart, ...] | None,
) -> None:
    two.allow(allow_speak=ANY_URL)
    fork_id = await two.start(options=options)
    assert two.spec.legs == (IN, OUT)
    assert two.spec.sample_rate == 16000
    leg_id = LEG_PREFIX + fork_id
    assert orders(two) == [
        order_of(fork_id, IN, f"{leg_id}-in", first),
        order_of(fork_id, OUT, f"{leg_id}-out", second),
    ]
    assert two.spec.voice == (Voice(voice) if voice else None)


async def test_two_legs_that_connect_have_no_time_limit(two: Rig) -> None:
    fork_id = await two.start()
    two.connect(fork_id, OUT, IN)
    await two.clock.advance(LEG_TIMEOUT_S + 1)
    assert two.ends == []


@pytest.mark.parametrize(("comes", "missing"), [(IN, OUT), (OUT, IN)])
async def test_leg_that_connects_leaves_the_other_its_time_limit(
    two: Rig, comes: LegPart, missing: LegPart
) -> None:
    fork_id = await two.start()
    two.connect(fork_id, comes)
    await two.clock.advance(LEG_TIMEOUT_S - 0.1)
    assert two.ends == []
    await two.clock.advance(0.2)
    detail = f"the leg of {missing} did not connect"
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_one_of_two_legs_that_asterisk_refuses_fails_the_fork(two: Rig) -> None:
    two.tap.gate, two.tap.fault = asyncio.Event(), LegRefused("ARI: 500: no")
    fork_id = await two.start()
    two.connect(fork_id, IN)
    two.tap.gate.set()
    await two.clock.settle()
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, "ARI: 500: no")]


async def test_one_of_two_legs_that_is_lost_is_replaced_alone_and_this_is_told(
    two: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id = await two.stream()
    await lose_part(two, fork_id, OUT)
    assert two.ami.told[-2:] == ["RECONNECTING", "AudioForkReconnecting"]
    assert two.last_event[1]["Attempt"] == "1"
    assert two.last_event[1]["Reason"] == "the leg of out was lost: Asterisk closed it"
    assert await states(two) == ["reconnecting"]
    assert expected(two)[2:] == [(fork_id, OUT)]
    assert orders(two)[2:] == [order_of(fork_id, OUT, f"{LEG_PREFIX}{fork_id}-out-2")]
    await two.clock.advance(0.05)
    two.connect(fork_id, OUT)
    assert two.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert two.last_event[1]["GapMs"] == "200"
    assert await states(two) == ["streaming"]
    assert "the leg of out is back after 200 ms" in caplog.text
    await two.clock.advance(LEG_TIMEOUT_S + 1)
    assert two.ends == []


async def test_new_one_of_two_legs_that_never_connects_fails_the_fork(two: Rig) -> None:
    fork_id = await two.stream()
    await lose_part(two, fork_id, IN)
    await two.clock.advance(LEG_TIMEOUT_S)
    detail = "the leg of in did not connect again"
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_two_legs_lost_at_once_are_both_waited_for(two: Rig) -> None:
    fork_id = await two.stream()
    await two.lose_leg(fork_id, part=IN)
    await two.lose_leg(fork_id, part=OUT)
    await two.clock.advance(LEG_LOSS_GRACE_S)
    assert expected(two)[2:] == [(fork_id, IN), (fork_id, OUT)]
    assert [order.part for order in two.tap.orders[2:]] == [IN, OUT]
    two.connect(fork_id, OUT)
    assert two.ami.told[-1] == "AudioForkResumed"
    assert two.ami.told.count("STREAMING") == 1  # that of the start
    assert await states(two) == ["reconnecting"]
    two.connect(fork_id, IN)
    assert two.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert await states(two) == ["streaming"]


@pytest.mark.parametrize("told", [True, False], ids=["event", "no-event"])
async def test_two_legs_lost_at_a_hangup_end_the_fork_once(two: Rig, told: bool) -> None:
    fork_id = await two.stream()
    del two.ami.channels[UNIQUEID]
    if told:
        two.forks.on_event(ChannelHangup(UNIQUEID))
    await two.lose_leg(fork_id, part=IN)
    await two.lose_leg(fork_id, part=OUT)
    await two.clock.advance(1)
    assert two.ends == [EndFork(fork_id, EndReason.HANGUP)]
    assert len(two.tap.orders) == 2


async def test_one_of_two_legs_that_is_lost_too_often_ends_the_fork(two: Rig) -> None:
    fork_id = await two.stream()
    for _ in range(MAX_NEW_LEGS):
        await lose_part(two, fork_id, OUT)
        assert two.ends == []
        two.connect(fork_id, OUT)
    await lose_part(two, fork_id, OUT)
    detail = "the leg of out was lost 4 times in 10 s, last: Asterisk closed it"
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_losses_of_two_legs_are_counted_apart(two: Rig) -> None:
    fork_id = await two.stream()
    for attempt in range(1, MAX_NEW_LEGS + 1):
        for part in (IN, OUT):
            await lose_part(two, fork_id, part)
            assert two.last_event[1]["Attempt"] == str(attempt)
            two.connect(fork_id, part)
    assert two.ends == []
    assert await states(two) == ["streaming"]


async def test_login_keeps_both_legs_and_no_earlier_one(two: Rig) -> None:
    fork_id = await two.stream()
    await lose_part(two, fork_id, IN)
    await two.forks.on_login()
    first, out, new = two.tap.legs
    assert two.taps.kept == [{out, new}]


@pytest.mark.parametrize(("first", "second"), [(IN, OUT), (OUT, IN)])
async def test_two_legs_of_a_dead_relay_process_are_both_ordered_anew(
    two: Rig, first: LegPart, second: LegPart
) -> None:
    fork_id = await two.stream()
    spec = two.spec
    await two.lose_relay(fork_id)
    assert two.sent[1:] == [spec]
    assert [order.part for order in two.tap.orders[2:]] == [IN, OUT]
    assert len(set(two.tap.legs)) == 4
    assert two.ami.told.count("AudioForkReconnecting") == 1
    assert two.last_event[1]["Reason"] == RELAY_DIED
    two.forks.on_report(SinkOpened(fork_id))
    two.connect(fork_id, first)
    assert await states(two) == ["reconnecting"]
    assert two.ami.told.count("STREAMING") == 1
    await two.clock.advance(0.3)
    two.connect(fork_id, second)
    assert two.ami.told[-2:] == ["STREAMING", "AudioForkResumed"]
    assert two.last_event[1]["GapMs"] == "300"
    assert await states(two) == ["streaming"]
    await two.clock.advance(LEG_TIMEOUT_S + 1)
    assert two.ends == []


async def test_legs_that_were_never_asked_for_take_no_room_from_the_next(two: Rig) -> None:
    two.spec_fault = "the certificate cannot be used"
    await two.request(**START)
    assert (two.tap.legs, two.live) == ([], [])
    two.spec_fault = ""
    await two.start()
    assert len(two.tap.legs) == 2


async def test_gap_of_a_leg_that_was_lost_before_its_relay_process_counts_from_its_own_loss(
    two: Rig,
) -> None:
    fork_id = await two.stream()
    await lose_part(two, fork_id, IN)
    await two.clock.advance(0.5)
    await two.lose_relay(fork_id)
    await two.clock.advance(0.1)
    two.forks.on_report(SinkOpened(fork_id))
    two.connect(fork_id, IN)
    assert two.last_event[0] == "AudioForkReconnecting"
    two.connect(fork_id, OUT)
    assert two.last_event[0] == "AudioForkResumed"
    assert two.last_event[1]["GapMs"] == "750"  # the longest


async def test_legs_that_find_no_relay_process_are_not_asked_for_before_there_is_one(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    await rig.lose_relay(fork_id)  # another process took it, and died before the leg came
    assert len(rig.tap.legs) == 2
    await rig.no_relay(fork_id)
    for _ in range(MAX_NEW_LEGS + 1):
        rig.forks.on_event(OriginateFailed(rig.tap.legs[-1], "3"))
        await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 2
    assert rig.ends == []
    rig.live.append(fork_id)
    await rig.lose_relay(fork_id)
    rig.connect(fork_id, PAIRS)
    assert len(rig.tap.legs) == 3
    await rig.clock.advance(LEG_TIMEOUT_S)
    assert rig.ends == []


async def test_first_leg_of_a_fork_that_finds_no_relay_process_does_not_fail_it(rig: Rig) -> None:
    fork_id = await rig.start()
    await rig.no_relay(fork_id)
    rig.forks.on_event(OriginateFailed(rig.tap.legs[-1], "3"))
    assert rig.ends == []
    await rig.lose_relay(fork_id)
    assert len(rig.tap.legs) == 2


async def test_leg_that_was_lost_just_before_the_last_relay_process_waits_for_the_next(
    rig: Rig,
) -> None:
    fork_id = await rig.stream()
    await rig.lose_leg(fork_id)
    await rig.no_relay(fork_id)
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 1
    await rig.lose_relay(fork_id)
    assert len(rig.tap.legs) == 2
    rig.connect(fork_id, PAIRS)
    await rig.lose_leg(fork_id)  # of the next
    await rig.clock.advance(LEG_LOSS_GRACE_S)
    assert len(rig.tap.legs) == 3


@pytest.mark.parametrize(("comes", "missing"), [(IN, OUT), (OUT, IN)])
async def test_leg_for_a_new_relay_process_that_never_connects_fails_the_fork(
    two: Rig, comes: LegPart, missing: LegPart
) -> None:
    fork_id = await two.stream()
    await two.lose_relay(fork_id)
    two.connect(fork_id, comes)
    await two.clock.advance(LEG_TIMEOUT_S)
    detail = f"the leg of {missing} did not connect again"
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_leg_that_was_lost_too_often_ends_the_fork_when_its_relay_process_dies(
    two: Rig,
) -> None:
    fork_id = await two.stream()
    for _ in range(MAX_NEW_LEGS):
        await lose_part(two, fork_id, IN)
        two.connect(fork_id, IN)
    await two.lose_relay(fork_id)
    detail = f"the leg of in was lost 4 times in 10 s, last: {RELAY_DIED}"
    assert two.last_event[1]["Detail"] == detail
    assert len(two.forks) == 0


async def test_channel_that_is_gone_when_one_of_two_legs_is_asked_for_ends_the_fork_once(
    two: Rig,
) -> None:
    two.tap.fault = NoSuchChannel()
    fork_id = await two.start()
    await two.clock.advance(LEG_LOSS_GRACE_S)
    assert two.ends == [EndFork(fork_id, EndReason.NO_SUCH_CHANNEL)]


async def test_channel_that_one_of_two_legs_found_was_there(two: Rig) -> None:
    two.tap.gate, two.tap.fault = asyncio.Event(), NoSuchChannel()
    fork_id = await two.start()
    two.connect(fork_id, IN)
    two.tap.gate.set()
    await two.clock.advance(LEG_LOSS_GRACE_S)
    assert two.ends == [EndFork(fork_id, EndReason.HANGUP)]


# --- A leg that Asterisk hangs up before it has connected ----------------------------------------


async def test_leg_hung_up_before_it_connects_fails_the_fork_with_the_tap_s_text(two: Rig) -> None:
    fork_id = await two.start()
    two.connect(fork_id, IN)
    two.forks.on_event(ChannelHangup(two.tap.legs[1]))
    await two.clock.advance(LEG_LOSS_GRACE_S - 0.01)
    assert two.ends == []
    await two.clock.advance(0.02)
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, two.tap.early_hangup_detail)]


@pytest.mark.parametrize("hangup", ["event", "no-event", "late"])
async def test_leg_hung_up_before_it_connects_with_its_channel_is_a_hangup(
    two: Rig, hangup: str
) -> None:
    fork_id = await two.start()
    if hangup != "late":
        del two.ami.channels[UNIQUEID]
    two.forks.on_event(ChannelHangup(two.tap.legs[0]))
    if hangup == "event":
        two.forks.on_event(ChannelHangup(UNIQUEID))
    await two.clock.settle()
    two.ami.channels.pop(UNIQUEID, None)
    await two.clock.advance(LEG_LOSS_GRACE_S)
    assert two.ends == [EndFork(fork_id, EndReason.HANGUP)]


async def test_leg_hung_up_whose_connection_is_told_later_is_no_news(two: Rig) -> None:
    """It has connected to another process, whose report takes longer."""
    fork_id = await two.start()
    two.forks.on_event(ChannelHangup(two.tap.legs[0]))
    await two.clock.settle()
    two.connect(fork_id, IN, OUT)
    await two.clock.advance(1)
    assert two.ends == []


async def test_leg_hung_up_after_it_has_connected_is_for_the_relay_to_tell(two: Rig) -> None:
    await two.stream()
    asked = len(two.ami.actions)
    for leg_id in two.tap.legs:
        two.forks.on_event(ChannelHangup(leg_id))
    await two.clock.advance(ORPHAN_TIMEOUT_S - 0.1)
    assert two.ends == []
    assert len(two.ami.actions) == asked


async def test_hangup_of_an_earlier_leg_is_no_news_to_the_new_one(two: Rig) -> None:
    fork_id = await two.stream()
    await lose_part(two, fork_id, IN)
    asked = len(two.ami.actions)
    two.forks.on_event(ChannelHangup(two.tap.legs[0]))
    await two.clock.advance(1)
    assert two.ends == []
    assert len(two.ami.actions) == asked


async def test_hangup_of_a_leg_of_others_is_no_news(two: Rig) -> None:
    await two.start()
    for uniqueid in (LEG_PREFIX, f"{LEG_PREFIX}{UNKNOWN_ID}-in", f"{two.tap.legs[0]}x"):
        two.forks.on_event(ChannelHangup(uniqueid))
    await two.clock.advance(1)
    assert two.ends == []


async def test_hangup_of_a_leg_of_a_tap_that_tells_in_another_way_is_no_news(rig: Rig) -> None:
    await rig.start()
    rig.forks.on_event(ChannelHangup(rig.tap.legs[0]))
    await rig.clock.advance(1)
    assert rig.ends == []


async def test_new_leg_hung_up_before_it_connects_counts_as_lost(two: Rig) -> None:
    fork_id = await two.stream()
    await lose_part(two, fork_id, OUT)
    for _ in range(MAX_NEW_LEGS):
        assert two.ends == []
        two.forks.on_event(ChannelHangup(two.tap.legs[-1]))
        await two.clock.advance(LEG_LOSS_GRACE_S)
        await two.clock.advance(LEG_LOSS_GRACE_S)
    detail = f"the leg of out was lost 4 times in 10 s, last: {two.tap.early_hangup_detail}"
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, detail)]


async def test_leg_hung_up_before_it_connects_with_the_link_away_waits_for_the_link(
    two: Rig,
) -> None:
    fork_id = await two.start()
    two.ami.faults["Getvar"] = AmiUnavailable("the connection is lost")
    two.forks.on_event(ChannelHangup(two.tap.legs[0]))
    await two.clock.advance(1)
    assert two.ends == []
    del two.ami.faults["Getvar"]
    await two.forks.on_login()
    await two.clock.advance(LEG_LOSS_GRACE_S)
    assert two.ends == [EndFork(fork_id, EndReason.LEG_FAILED, two.tap.early_hangup_detail)]
