"""What a fork's relay host says anew is no news; what it may have missed is said to it again."""

from __future__ import annotations

import pytest

from audiofork.link.messages import (
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkStats,
    HeldFork,
    LegAttached,
    LegLost,
    LegPart,
    PressKey,
    SetGate,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.link.told import Told

IN = LegPart.IN
RETRYING = SinkRetrying("a", 2, "refused", 1.0)


def held(**more: object) -> HeldFork:
    leg_ids = {"in": "leg-1"}
    return HeldFork("a", "way", (IN,), 8000, leg_ids, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "report", [SinkOpened("a"), LegAttached("a", IN), Streaming("a"), RETRYING]
)
def test_what_is_said_twice_is_news_once(report: ForkReport) -> None:
    told = Told()
    assert [told.is_news(report) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    "report", [SinkMessage("a", "text"), ForkEnded("a", EndReason.STOPPED, "", ForkStats())]
)
def test_texts_and_the_end_are_always_news(report: ForkReport) -> None:
    told = Told()
    assert [told.is_news(report) for _ in range(2)] == [True, True]


def test_connection_that_is_back_is_news_where_it_was_said_to_be_missing() -> None:
    told = Told()
    assert not told.is_news(SinkResumed("a", 1))
    told.is_news(RETRYING)
    assert told.is_news(SinkResumed("a", 1))
    assert not told.is_news(SinkResumed("a", 1))


def test_leg_is_lost_once_and_news_when_another_comes() -> None:
    told = Told()
    told.is_news(LegAttached("a", IN))
    lost = LegLost("a", IN, 5)
    assert [told.is_news(lost), told.is_news(lost)] == [True, False]
    told.note_order(ExpectLeg("a", IN, "uuid", "leg-2"))
    assert told.is_news(LegAttached("a", IN))


def test_leg_that_takes_the_place_of_one_that_was_not_lost_is_news() -> None:
    told = Told()
    told.is_news(LegAttached("a", IN))
    told.note_order(ExpectLeg("a", IN, "uuid", "leg-2"))
    assert told.is_news(LegAttached("a", IN))


def test_leg_that_the_host_expects_already_is_not_announced_again() -> None:
    told = Told()
    told.note_order(ExpectLeg("a", IN, "uuid", "leg-1"))
    assert told.orders_for(held()) == []
    told.note_order(again := ExpectLeg("a", IN, "uuid", "leg-2"))
    assert told.orders_for(held()) == [again]


def test_last_order_of_each_kind_is_given_again_and_keys_are_not() -> None:
    told = Told()
    told.note_order(SetGate("a", is_open=True))
    told.note_order(SetGate("a", is_open=False))
    told.note_order(PressKey("a", "1", 100))
    told.note_order(EndFork("a", EndReason.STOPPED))
    assert told.orders_for(held()) == [
        SetGate("a", is_open=False),
        EndFork("a", EndReason.STOPPED),
    ]


def test_mutes_add_up() -> None:
    told = Told()
    told.note_order(SetMute("a", mute_in=True))
    told.note_order(SetMute("a", mute_out=True))
    told.note_order(SetMute("a", mute_in=False))
    assert told.orders_for(held()) == [SetMute("a", mute_in=False, mute_out=True)]
