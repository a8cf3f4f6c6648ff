"""Sums over running and ended forks never decrease, whatever becomes of a fork."""

from __future__ import annotations

from audiofork.asterisk.channels import Target
from audiofork.forks.events import (
    DomainEvent,
    Ended,
    ForkInfo,
    Reconnecting,
    Requested,
    Started,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import Options
from audiofork.forks.requests import StartFork
from audiofork.forks.totals import COUNTED, Totals
from audiofork.link.messages import EndReason, ForkStats

REQUEST = StartFork(Target("PJSIP/1"), "ws://127.0.0.1/", Options())


def info(fork_id: str) -> ForkInfo:
    return ForkInfo(fork_id, "PJSIP/1", "1.1", "ws://127.0.0.1/")


def begins(fork_id: str) -> Requested:
    return Requested(info(fork_id), REQUEST)


def ends(fork_id: str, stats: ForkStats) -> Ended:
    return Ended(info(fork_id), EndReason.HANGUP, stats, has_failed=False)


def loses(fork_id: str, what: Away) -> Reconnecting:
    return Reconnecting(info(fork_id), what, 1, "it died", was_streaming=True)


class Told(Totals):
    """Totals that were told of events."""

    def __init__(self, *events: DomainEvent) -> None:
        super().__init__()
        for event in events:
            self.on_event(event)

    def hear(self, **stats: ForkStats) -> None:
        self.take(stats, self.ask())

    @property
    def frames(self) -> tuple[int, int, int]:
        counts = self.counts()
        return counts["frames_in"], counts["frames_sent"], counts["frames_dropped"]


def test_counts_of_running_and_ended_forks_add_up() -> None:
    totals = Told(begins("a"), begins("b"), begins("c"))
    totals.hear(a=ForkStats(10, 9, 1), b=ForkStats(20, 20, 0))
    totals.on_event(ends("a", ForkStats(15, 13, 2, frames_missing=3, underruns=4)))
    assert totals.frames == (35, 33, 2)
    counts = totals.counts()
    assert (counts["frames_missing"], counts["underruns"], tuple(counts)) == (3, 4, COUNTED)


def test_fork_that_the_relay_does_not_tell_of_keeps_what_was_known() -> None:
    totals = Told(begins("a"))
    totals.hear(a=ForkStats(10, 10, 0))
    totals.hear()
    assert totals.frames == (10, 10, 0)


def test_frames_that_come_back_from_a_broken_connection_make_no_count_less() -> None:
    totals = Told(begins("a"))
    totals.hear(a=ForkStats(10, 10, 0))
    totals.hear(a=ForkStats(12, 4, 0))
    assert totals.frames == (12, 10, 0)
    totals.on_event(ends("a", ForkStats(12, 4, 8)))
    assert totals.frames == (12, 10, 8)


def test_counts_of_a_lost_relay_process_stay_and_those_of_the_next_are_added() -> None:
    totals = Told(begins("a"))
    totals.hear(a=ForkStats(1000, 990, 10))
    totals.on_event(loses("a", Away.RELAY))
    assert totals.frames == (1000, 990, 10)
    totals.hear(a=ForkStats(5, 5, 0))
    assert totals.frames == (1005, 995, 10)
    totals.on_event(ends("a", ForkStats(7, 7, 0)))
    assert totals.frames == (1007, 997, 10)


def test_loss_of_another_part_is_not_that_of_the_relay() -> None:
    totals = Told(begins("a"))
    totals.hear(a=ForkStats(10, 10, 0))
    totals.on_event(loses("a", Away.SERVER))
    totals.hear(a=ForkStats(11, 11, 0))
    assert totals.frames == (11, 11, 0)


def test_fork_that_ends_with_its_relay_process_keeps_what_was_known() -> None:
    totals = Told(begins("a"))
    totals.hear(a=ForkStats(1000, 990, 10))
    totals.on_event(ends("a", ForkStats()))
    assert totals.frames == (1000, 990, 10)


def test_answer_that_a_lost_process_gave_before_is_not_taken_for_the_next_ones() -> None:
    totals = Told(begins("a"), begins("b"))
    asked = totals.ask()
    totals.hear(a=ForkStats(1000, 1000, 0))
    totals.on_event(loses("a", Away.RELAY))
    totals.take({"a": ForkStats(1001, 1001, 0), "b": ForkStats(5, 5, 0)}, asked)
    assert totals.frames == (1005, 1005, 0)
    totals.hear(a=ForkStats(3, 3, 0))
    assert totals.frames == (1008, 1008, 0)


def test_statistics_of_forks_that_have_ended_meanwhile_count_no_second_time() -> None:
    totals = Told(begins("a"), ends("a", ForkStats(10, 10, 0)))
    totals.hear(a=ForkStats(9, 9, 0))
    assert totals.frames == (10, 10, 0)
    assert not totals._running


def test_fork_that_could_not_be_resumed_counts_nothing() -> None:
    totals = Told(ends("never", ForkStats()), Started(info("never")))
    assert totals.frames == (0, 0, 0)
