"""The ring of the latest events: numbers, ids, what is kept, what is rendered and when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audiofork.doors import event_stream
from audiofork.doors.event_stream import MAX_EVENTS, EventStream, StreamEvent
from audiofork.doors.rendering import MAX_MESSAGE_CHARACTERS, event_fields
from audiofork.forks.events import (
    Attack,
    AttackKind,
    DomainEvent,
    ForkInfo,
    MessageReceived,
    Parting,
    Pressed,
    Started,
)
from audiofork.link.messages import EndReason

RUN = "0d0d0d0d-0000-4000-8000-000000000001"
FORK = ForkInfo("3f2a91c0-0000-4000-8000-000000000001", "PJSIP/1-1", "1.1", "ws://h/?token=x")


@pytest.fixture
def stream() -> EventStream:
    return EventStream(RUN, clock=lambda: 1700000000.1239)


def numbers(events: list[StreamEvent]) -> list[int]:
    return [one.number for one in events]


def test_events_have_numbers_names_and_their_fork(stream: EventStream) -> None:
    stream.on_event(Started(FORK, "chat"))
    stream.on_event(Attack(AttackKind.WRONG_UUID, "x"))
    first, second = stream.after(0, 10)
    assert (first.number, first.name, first.fork_id) == (1, "fork.started", FORK.id)
    assert (second.number, second.name, second.fork_id) == (2, "attack", "")
    assert json.loads(first.json) == {
        "at": 1700000000.124,
        "fork": {
            **{"id": FORK.id, "channel": "PJSIP/1-1", "uniqueid": "1.1"},
            **{"url": "ws://h/?...", "host": "h"},
        },
        "sample_rate": 0,
        "subprotocol": "chat",
    }


def test_what_comes_just_before_the_end_is_no_event(stream: EventStream) -> None:
    stream.on_event(Parting(FORK, EndReason.HANGUP, False))
    assert stream.last == 0


def test_reader_goes_on_where_it_was(stream: EventStream) -> None:
    for _ in range(5):
        stream.on_event(Started(FORK))
    assert stream.number_of(stream.id_of(3)) == 3
    assert numbers(stream.after(3, 10)) == [4, 5]
    assert numbers(stream.after(0, 2)) == [1, 2]
    assert stream.after(5, 10) == []


@pytest.mark.parametrize(
    "event_id",
    [
        *("", "x", "-1", RUN, f"{RUN}-", f"{RUN}--1", f"{RUN}-6", f"{RUN}-\u0661", f"{RUN}-1e3"),
        *("other-run-3", f"{RUN}-" + "9" * 5000, f"x{RUN}-3"),
    ],
)
def test_id_that_is_none_of_this_run_is_not_known(stream: EventStream, event_id: str) -> None:
    for _ in range(5):
        stream.on_event(Started(FORK))
    assert stream.number_of(event_id) is None


def test_ring_keeps_the_latest(stream: EventStream) -> None:
    for _ in range(MAX_EVENTS + 10):
        stream.on_event(Started(FORK))
    assert stream.number_of(stream.id_of(9)) is None  # what followed it is gone
    assert stream.number_of(stream.id_of(10)) == 10
    assert numbers(stream.after(10, 2)) == [11, 12]
    assert numbers(stream.after(0, 1)) == [11]


def test_texts_of_servers_are_cut_and_all_of_them_together_bounded(
    stream: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.on_event(MessageReceived(FORK, "x" * 1_000_000))
    fields = json.loads(stream.after(0, 1)[0].json)
    assert len(fields["text"]) == MAX_MESSAGE_CHARACTERS
    assert fields["is_cut"] is True
    monkeypatch.setattr(event_stream, "MAX_TEXT_CHARACTERS", 10 * MAX_MESSAGE_CHARACTERS)
    for _ in range(50):
        stream.on_event(MessageReceived(FORK, "x" * MAX_MESSAGE_CHARACTERS))
    assert len(stream.after(0, 100)) == 10
    stream.on_event(Started(FORK))  # has none
    assert len(stream.after(0, 100)) == 11


def test_event_is_rendered_only_when_somebody_reads_it_and_once(
    stream: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[object] = []

    def fields(event: DomainEvent, *, tells_keys: bool) -> dict[str, Any]:
        rendered.append(event)
        return event_fields(event, tells_keys=tells_keys)

    monkeypatch.setattr(event_stream, "event_fields", fields)
    stream.on_event(Started(FORK))
    assert rendered == []
    (event,) = stream.after(0, 1)
    assert event.json == event.json
    assert len(rendered) == 1


def test_reader_hears_each_event_until_it_leaves(stream: EventStream) -> None:
    heard: list[int] = []
    leave = stream.subscribe(lambda event: heard.append(event.number))
    stream.on_event(Started(FORK))
    stream.on_event(Started(FORK))
    leave()
    leave()
    stream.on_event(Started(FORK))
    assert heard == [1, 2]


def test_reader_that_fails_harms_no_other(
    stream: EventStream, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def fail(event: StreamEvent) -> None:
        raise ValueError("no")

    stream.subscribe(fail)
    stream.subscribe(lambda event: heard.append(event.number))
    stream.on_event(Started(FORK))
    assert heard == [1]
    assert "a reader of events failed on fork.started" in caplog.text


def test_keys_are_told_only_where_they_may_be() -> None:
    for tells_keys, digit in ((False, None), (True, "7")):
        stream = EventStream(RUN, tells_keys=tells_keys)
        stream.on_event(Pressed(FORK, "7", 120))
        fields = json.loads(stream.after(0, 1)[0].json)
        assert (fields["digit"], fields["duration_ms"]) == (digit, 120)
