"""What a relay process keeps of its forks for the next daemon."""

from __future__ import annotations

from dataclasses import replace

import pytest

from audiofork.link.messages import (
    Adopt,
    CommandAsked,
    CountBefore,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    ForkStats,
    HandOver,
    HeldFork,
    Leave,
    LegAttached,
    LegLost,
    LegPart,
    ServerCommand,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
    TakeOver,
)
from audiofork.relay.handover import (
    JUST_ENDED_S,
    MOST_WAITING,
    MOST_WAITING_CHARACTERS,
    Handover,
)
from tests.told_clock import Clock

IN, OUT = LegPart.IN, LegPart.OUT
SPEC = ForkSpec(
    "a", "PJSIP/1", "ws://h/", Direction.STEREO, (IN, OUT), sample_rate=16_000, way="snoop/dial"
)
LIFE: list[ForkReport] = [
    SinkOpened("a", "chat"),
    LegAttached("a", IN),
    LegAttached("a", OUT),
    Streaming("a"),
]
ENDED = ForkEnded("a", EndReason.SINK_GONE, "gone", ForkStats(5, 5))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handover(clock: Clock) -> Handover:
    """One fork that streams."""
    one = Handover(clock)
    assert one.on_command(SPEC) == []
    for part in (IN, OUT):
        assert one.on_command(ExpectLeg("a", part, f"uuid-{part}", f"leg-{part}")) == []
    assert all(one.on_report(report) for report in LIFE)
    return one


def test_fork_of_the_daemon_that_is_there_is_not_held(handover: Handover) -> None:
    assert handover.held() == ()


def test_fork_is_held_with_its_legs_once_the_daemon_is_gone(handover: Handover) -> None:
    handover.on_daemon_gone()
    legs = {"in": "leg-in", "out": "leg-out"}
    held = HeldFork("a", "snoop/dial", (IN, OUT), 16_000, legs, attached=(IN, OUT))
    assert handover.held() == (held,)


def test_held_fork_tells_how_old_it_is_also_if_it_came_from_another_relay(
    handover: Handover, clock: Clock
) -> None:
    handover.on_command(replace(SPEC, fork_id="b", age_s=60.0))
    clock.now_s += 5
    handover.on_daemon_gone()
    assert [one.age_s for one in handover.held()] == [5.0, 65.0]


def test_held_fork_tells_what_is_muted_and_which_legs_are_there(handover: Handover) -> None:
    handover.on_command(SetMute("a", mute_in=True))
    handover.on_command(SetMute("a", mute_out=True))
    handover.on_command(SetMute("a", mute_in=False))
    handover.on_report(LegLost("a", OUT, 5))
    handover.on_daemon_gone()
    (held,) = handover.held()
    assert (held.mute_in, held.mute_out, held.attached) == (False, True, (IN,))


def test_fork_that_is_left_is_held_though_the_daemon_is_still_there(handover: Handover) -> None:
    handover.on_command(Leave("a"))
    assert [one.fork_id for one in handover.held()] == ["a"]
    assert not handover.on_report(SinkMessage("a", "hi"))


def test_adopted_fork_is_told_as_if_it_had_just_begun_and_is_not_held_any_more(
    handover: Handover,
) -> None:
    handover.on_daemon_gone()
    assert handover.on_command(Adopt("a")) == LIFE
    assert handover.held() == ()
    assert handover.on_report(SinkMessage("a", "hi"))


def test_what_happens_meanwhile_is_told_to_the_next_daemon(handover: Handover) -> None:
    handover.on_daemon_gone()
    retrying = SinkRetrying("a", 2, "refused", 1.0)
    lost, asked = LegLost("a", OUT, 700), CommandAsked("a", ServerCommand.HANGUP)
    for report in (SinkMessage("a", "one"), retrying, lost, asked, SinkMessage("a", "two")):
        assert not handover.on_report(report)
    meanwhile = [SinkMessage("a", "one"), asked, SinkMessage("a", "two")]
    assert handover.on_command(Adopt("a")) == [*LIFE, retrying, lost, *meanwhile]


def test_what_was_told_is_not_told_again_to_the_daemon_after_that(handover: Handover) -> None:
    handover.on_daemon_gone()
    handover.on_report(SinkMessage("a", "one"))
    handover.on_command(Adopt("a"))
    handover.on_daemon_gone()
    assert handover.on_command(Adopt("a")) == LIFE


def test_connection_that_is_open_at_last_is_not_missing(handover: Handover) -> None:
    handover.on_report(SinkRetrying("a", 2, "refused", 1.0))
    handover.on_report(SinkOpened("a", "chat"))
    handover.on_daemon_gone()
    assert handover.on_command(Adopt("a")) == LIFE


def test_connection_that_is_back_is_told_as_such(handover: Handover) -> None:
    """The daemon may have heard that it was missing, and not that it is back."""
    handover.on_report(SinkRetrying("a", 2, "refused", 1.0))
    handover.on_report(SinkResumed("a", 3))
    handover.on_daemon_gone()
    assert handover.on_command(Adopt("a")) == [*LIFE, SinkResumed("a", 3)]


def test_leg_that_replaces_another_is_the_one_that_is_told(handover: Handover) -> None:
    handover.on_report(LegLost("a", IN, 5))
    handover.on_command(ExpectLeg("a", IN, "uuid-2", "leg-2"))
    handover.on_daemon_gone()
    (held,) = handover.held()
    assert held.leg_ids["in"] == "leg-2"
    opened, _, attached_out, streaming = LIFE
    assert handover.on_command(Adopt("a")) == [opened, attached_out, streaming]


def test_end_is_kept_until_the_fork_is_adopted(handover: Handover) -> None:
    handover.on_daemon_gone()
    assert not handover.on_report(ENDED)
    assert [one.fork_id for one in handover.held()] == ["a"]
    assert handover.on_command(Adopt("a"))[-1] == ENDED
    assert len(handover) == 0


def test_order_to_end_a_fork_that_has_ended_is_answered(handover: Handover) -> None:
    handover.on_daemon_gone()
    handover.on_report(ENDED)
    assert handover.on_command(EndFork("a", EndReason.SHUTDOWN)) == [ENDED]
    assert len(handover) == 0


def test_order_to_end_a_held_fork_lets_its_end_be_reported(handover: Handover) -> None:
    handover.on_daemon_gone()
    assert handover.on_command(EndFork("a", EndReason.SHUTDOWN)) == []
    assert handover.on_report(ENDED)
    assert len(handover) == 0


def test_ended_fork_is_forgotten_once_the_daemon_must_have_noted_it(
    handover: Handover, clock: Clock
) -> None:
    assert handover.on_report(ENDED)
    assert len(handover) == 0
    clock.now_s += JUST_ENDED_S + 0.1
    handover.on_ping()
    handover.on_daemon_gone()
    assert handover.held() == ()


def test_end_that_was_reported_just_before_the_daemon_died_is_reported_again(
    handover: Handover, clock: Clock
) -> None:
    handover.on_report(ENDED)
    clock.now_s += JUST_ENDED_S - 0.1
    handover.on_daemon_gone()
    (held,) = handover.held()
    assert held.has_ended
    assert handover.on_command(Adopt("a")) == [*LIFE, ENDED]
    assert handover.held() == ()


def test_messages_beyond_a_number_are_dropped_and_counted(
    handover: Handover, caplog: pytest.LogCaptureFixture
) -> None:
    handover.on_daemon_gone()
    for number in range(MOST_WAITING + 7):
        handover.on_report(SinkMessage("a", str(number)))
    told = handover.on_command(Adopt("a"))
    texts = [one.text for one in told if isinstance(one, SinkMessage)]
    assert texts == [str(number) for number in range(MOST_WAITING)]
    assert "7 messages of its server are lost: too many came without a daemon" in caplog.text


def test_messages_of_all_forks_that_are_too_long_are_dropped_and_counted(
    handover: Handover, caplog: pytest.LogCaptureFixture
) -> None:
    """The next daemon gets them in one go."""
    handover.on_daemon_gone()
    for _ in range(2):
        half = "x" * (MOST_WAITING_CHARACTERS // 2)
        for text in (half, half, "y"):
            handover.on_report(SinkMessage("a", text))
        told = handover.on_command(Adopt("a"))
        assert [one.text for one in told if isinstance(one, SinkMessage)] == [half, half]
        assert caplog.text.count("1 messages of its server are lost") == 1
        caplog.clear()
        handover.on_daemon_gone()


def test_end_that_a_daemon_which_hangs_has_not_read_is_reported_again(
    handover: Handover, clock: Clock
) -> None:
    clock.now_s += 10
    handover.on_ping()
    clock.now_s += 30  # no ping came since
    handover.on_report(ENDED)
    clock.now_s += 30
    handover.on_daemon_gone()
    assert [one.has_ended for one in handover.held()] == [True]


def test_commands_and_reports_of_unknown_forks_pass(handover: Handover) -> None:
    assert handover.on_command(Adopt("b")) == []
    assert handover.on_command(EndFork("b", EndReason.STOPPED)) == []
    assert handover.on_report(Streaming("b"))


def test_fork_that_moves_here_is_spare_until_it_is_taken_over(handover: Handover) -> None:
    handover.on_command(replace(SPEC, holds=True))
    handover.on_daemon_gone()
    assert [one.is_spare for one in handover.held()] == [True]
    handover.on_command(TakeOver("a"))
    assert [one.is_spare for one in handover.held()] == [False]


def test_fork_that_was_handed_over_is_spare_while_it_sends_what_waits(handover: Handover) -> None:
    handover.on_command(SPEC)
    handover.on_command(HandOver("a"))
    handover.on_daemon_gone()
    assert [(one.is_spare, one.has_ended) for one in handover.held()] == [(True, False)]


def test_what_other_relays_have_counted_before_is_kept_for_whoever_leads(
    handover: Handover,
) -> None:
    handover.on_command(SPEC)
    handover.on_command(CountBefore("a", ForkStats(frames_in=5, frames_sent=4)))
    handover.on_daemon_gone()
    handover.on_command(Adopt("a"))
    handover.on_command(CountBefore("a", ForkStats(frames_in=1)))
    own = ForkStats(frames_in=10, rtt_ms=2.0)
    assert handover.whole("a", own) == ForkStats(frames_in=16, frames_sent=4, rtt_ms=2.0)
    assert handover.whole("another", own) == own
