"""What a relay host has of one Asterisk: it obeys the controller that leads, and no other."""

from __future__ import annotations

import pytest

from audiofork.errors import NoMessage
from audiofork.link.messages import (
    Adopt,
    Command,
    CountBefore,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    Listen,
    SinkOpened,
    StrangersRefused,
    TakeStats,
)
from audiofork.link.sessions import (
    Down,
    Drain,
    Gone,
    Hello,
    Numbers,
    Stamp,
    Superseded,
    Up,
    decode_up,
    pack,
    split,
)
from audiofork.link.stream import Held, Ping, Pong
from audiofork.relay.host_owner import SILENT_S, Owner

ORPHAN_TIMEOUT_S = 30.0
FORK = ForkSpec("a", "PJSIP/1", "ws://h/", Direction.IN)


class Stage:
    """An owner, and what it says and does."""

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self.now = 100.0
        self.said: list[tuple[Stamp, Up]] = []
        self.obeyed: list[Command] = []
        self.drained: list[bool] = []
        self.owner = Owner(
            *("pbx", self._publish, self.obeyed.append, ORPHAN_TIMEOUT_S, lambda: self.now),
            *(self.drained.append, silent_s),
        )

    def _publish(self, payload: bytes) -> None:
        stamp, line = split(payload)
        self.said.append((stamp, decode_up(line)))

    def hears(self, numbers: Numbers, message: Down, epoch: int = 1) -> None:
        stamp, line = split(pack(numbers.stamp(epoch), message))
        self.owner.on_message(stamp, line)

    def opens(self, session: str = "s", epoch: int = 1) -> Numbers:
        numbers = Numbers()
        numbers.begin(session)
        self.hears(numbers, Hello(), epoch)
        return numbers

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.owner.on_time()

    @property
    def words(self) -> list[Up]:
        return [message for _, message in self.said]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_session_begins_with_what_is_held(stage: Stage) -> None:
    numbers = stage.opens()
    stage.hears(numbers, FORK)
    stage.owner.on_report(SinkOpened("a"))
    assert stage.words == [Held(()), SinkOpened("a")]
    assert [stamp.number for stamp, _ in stage.said] == [0, 1]
    assert stage.obeyed == [FORK]
    stage.opens("t", epoch=2)
    held = stage.words[-1]
    assert isinstance(held, Held)
    assert [one.fork_id for one in held.forks] == ["a"]


def test_ping_is_answered(stage: Stage) -> None:
    numbers = stage.opens()
    stage.hears(numbers, Ping())
    assert stage.words == [Held(()), Pong()]


def test_controller_that_pings_seldom_is_waited_for_as_long() -> None:
    stage = Stage(silent_s=20)
    numbers = stage.opens()
    stage.passes(19)
    assert stage.owner.is_led
    stage.hears(numbers, Ping())
    stage.passes(19)
    assert stage.owner.is_led
    stage.passes(2)
    assert not stage.owner.is_led


def test_message_after_a_missing_one_ends_the_session_and_is_not_obeyed(stage: Stage) -> None:
    numbers = stage.opens()
    numbers.stamp(1)
    stage.hears(numbers, FORK)
    assert stage.words == [Held(()), Gone()]
    assert stage.obeyed == []
    stage.hears(numbers, FORK)
    assert stage.words[-1] == Gone()


def test_message_of_an_unknown_session_is_answered_and_not_obeyed(stage: Stage) -> None:
    numbers = Numbers()
    numbers.begin("unknown")
    stage.hears(numbers, FORK)
    assert stage.said == [(Stamp(1, "unknown", 0), Gone())]
    assert stage.obeyed == []


def test_controller_that_led_before_is_not_obeyed_and_told(stage: Stage) -> None:
    before = stage.opens(epoch=4)
    now = stage.opens("t", epoch=5)
    stage.hears(before, FORK, epoch=4)
    assert stage.said[-1] == (Stamp(4, "s", 0), Superseded(5))
    stage.hears(now, FORK, epoch=5)
    assert stage.obeyed == [FORK]


def test_controller_that_led_before_cannot_open_a_session_and_disturbs_that_of_the_next(
    stage: Stage,
) -> None:
    now = stage.opens("t", epoch=5)
    stage.opens("s", epoch=4)
    assert stage.words == [Held(()), Superseded(5)]
    stage.hears(now, FORK, epoch=5)
    assert stage.obeyed == [FORK]


def test_message_of_another_version_counts_and_has_no_effect(stage: Stage) -> None:
    numbers = stage.opens()
    with pytest.raises(NoMessage, match="Unknown is not known here"):
        stage.owner.on_message(numbers.stamp(1), b'["Unknown", {}]')
    with pytest.raises(NoMessage, match="no JSON"):
        stage.owner.on_message(numbers.stamp(1), b"\xff")
    stage.hears(numbers, TakeStats(1))
    assert stage.obeyed == [TakeStats(1)]


def test_silent_controller_counts_as_gone_and_forks_go_on(stage: Stage) -> None:
    numbers = stage.opens()
    stage.hears(numbers, FORK)
    stage.passes(SILENT_S - 0.1)
    stage.hears(numbers, Ping())
    stage.passes(SILENT_S - 0.1)
    assert stage.obeyed == [FORK]
    stage.passes(0.2)
    assert stage.obeyed == [FORK, Listen("a", is_on=False)]
    said = len(stage.said)
    stage.owner.on_report(SinkOpened("a"))
    assert len(stage.said) == said
    later = stage.opens("t")
    stage.hears(later, Adopt("a"))
    assert stage.words[-1] == SinkOpened("a")


def test_forks_that_no_controller_comes_for_end_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.hears(stage.opens(), FORK)
    stage.owner.leave()
    stage.passes(ORPHAN_TIMEOUT_S - 1)
    assert len(stage.obeyed) == 2
    stage.passes(2)
    assert stage.obeyed[2:] == [EndFork("a", EndReason.SHUTDOWN, "no controller came")]
    assert "no controller of pbx came for 30 s: 1 forks end" in caplog.text


def test_what_is_of_no_fork_is_told_where_there_is_a_controller(stage: Stage) -> None:
    stage.owner.tell(StrangersRefused(1, "h"))
    assert stage.said == []
    stage.opens()
    stage.owner.tell(StrangersRefused(1, "h"))
    assert stage.words == [Held(()), StrangersRefused(1, "h")]


def test_host_is_drained_by_a_controller_that_leads(stage: Stage) -> None:
    before = stage.opens(epoch=4)
    stage.hears(stage.opens("t", epoch=5), Drain(is_on=True), epoch=5)
    stage.hears(before, Drain(is_on=False), epoch=4)
    assert stage.drained == [True]


def test_end_is_told_to_the_next_controller_with_what_other_hosts_have_counted(
    stage: Stage,
) -> None:
    first = stage.opens()
    stage.hears(first, FORK)
    stage.hears(first, CountBefore("a", ForkStats(frames_in=5, frames_sent=5)))
    second = stage.opens("t", epoch=2)
    stage.hears(second, Adopt("a"), epoch=2)
    stage.owner.on_report(ForkEnded("a", EndReason.HANGUP, "", ForkStats(frames_in=2)))
    whole = ForkStats(frames_in=7, frames_sent=5)
    assert stage.words[-1] == ForkEnded("a", EndReason.HANGUP, "", whole)
