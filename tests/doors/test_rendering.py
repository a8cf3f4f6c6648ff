"""How forks and events look as JSON: names, what is left out, what is made harmless."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

import pytest

from audiofork.asterisk.channels import Target
from audiofork.doors.rendering import NAMES, event_fields, fork_fields, host_of, info_fields
from audiofork.forks.events import (
    Attack,
    AttackKind,
    CommandHandled,
    CommandOutcome,
    DomainEvent,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
    Muted,
    Parting,
    Pressed,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import parse_options
from audiofork.forks.requests import MuteFork, Origin, StartFork, StopFork
from audiofork.forks.view import ForkView
from audiofork.link.messages import EndReason, ForkStats, ServerCommand

FORK_ID = "3f2a91c0-0000-4000-8000-000000000001"
URL = "wss://user:pw@h:8443/live?token=s3cret"
FORK = ForkInfo(FORK_ID, "PJSIP/1-1", "1.1", URL, sample_rate=16000)
NASTY = "\x00\r\n\x1b[31m" + "x" * 9000
STATS = ForkStats(frames_in=5, frames_sent=4, frames_dropped=1)
START = StartFork(
    Target("PJSIP/1-1", ""),
    URL,
    parse_options("D(in)x(json)A(s3cret)"),
    options_text="D(in)x(json)A(s3cret)",
    params={"a": "s3cret"},
    profile="speech",
    origin=Origin("http", "carl"),
)
EVENTS: list[tuple[DomainEvent, dict[str, object]]] = [
    (
        Requested(FORK, START, {"caller": "s3cret"}),
        {
            **{"direction": "in", "format": "json", "profile": "speech", "sample_rate": 16000},
            **{"speaks": False, "connects": False, "from_earlier_run": False},
            **{"door": "http", "who": "carl"},
        },
    ),
    (Started(FORK, "chat"), {"sample_rate": 16000, "subprotocol": "chat"}),
    (
        Reconnecting(FORK, Away.SERVER, 2, "Connection refused", True),
        {"what": "server", "attempt": 2, "detail": "Connection refused", "was_streaming": True},
    ),
    (
        Resumed(FORK, Away.SERVER, 7, None, True),
        {"what": "server", "frames_dropped": 7, "gap_ms": None, "is_streaming": True},
    ),
    (MessageReceived(FORK, "hello"), {"text": "hello", "is_cut": False}),
    (Pressed(FORK, "7", 120), {"digit": None, "duration_ms": 120}),
    (
        CommandHandled(FORK, ServerCommand.HANGUP, "", CommandOutcome.REFUSED, "not allowed"),
        {"command": "hangup", "value": "", "outcome": "refused", "detail": "not allowed"},
    ),
    (Muted(FORK, True, False), {"in": True, "out": False}),
    (
        Ended(FORK, EndReason.HANGUP, STATS, False, "by the caller"),
        {"reason": "hangup", "detail": "by the caller", "failed": False, "frames_in": 5},
    ),
    (
        Stopped(FORK, EndReason.STOPPED, "", 1.23456, STATS, 1, "0"),
        {
            **{"reason": "stopped", "detail": "", "duration_s": 1.235, "relays_lost": 1},
            **{"post_process_status": "0", "frames_sent": 4},
        },
    ),
    (
        Failed(FORK, EndReason.SINK_GONE, "gone", 1.0, STATS),
        {"reason": "sink-gone", "detail": "gone", "frames_dropped": 1},
    ),
]


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=[type(e).__name__ for e, _ in EVENTS])
def test_event_has_its_fork_and_its_fields(event: DomainEvent, expected: dict[str, object]) -> None:
    rendered = event_fields(event)
    assert rendered["fork"] == {
        **{"id": FORK_ID, "channel": "PJSIP/1-1", "uniqueid": "1.1"},
        **{"url": "wss://h:8443/live?...", "host": "h:8443"},
    }
    assert {name: rendered[name] for name in expected} == expected
    assert not {"s3cret", "pw", "user"} & set(json.dumps(rendered).replace('"', " ").split())
    assert "s3cret" not in json.dumps(rendered)


def test_every_event_has_a_name_and_is_rendered() -> None:
    kinds = set(get_args(DomainEvent))
    assert set(NAMES) == kinds - {Parting}
    assert {type(event) for event, _ in EVENTS} == set(NAMES) - {Refused, Attack}
    assert event_fields(Parting(FORK, EndReason.HANGUP, False))["reason"] == "hangup"


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (START, "start"),
        (StopFork(Target("PJSIP/1-1", ""), "", origin=Origin("http", "carl")), "stop"),
        (MuteFork(Target("PJSIP/1-1", ""), "", True, None, origin=Origin("http", "carl")), "mute"),
    ],
)
def test_refused_request_tells_what_was_asked_by_whom(
    request_: StartFork | StopFork | MuteFork, what: str
) -> None:
    rendered = event_fields(Refused(request_, "No such channel"))
    assert rendered["fork"]["channel"] == "PJSIP/1-1"
    assert rendered["request"] == what
    assert (rendered["door"], rendered["who"]) == ("http", "carl")
    assert rendered["detail"] == "No such channel"
    assert "s3cret" not in json.dumps(rendered)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://h/live?token=x", "ws://h/live?..."),
        ("@speech", "@speech"),
        ("wss://user:s3cret@h/", ""),
        ("ws:user:s3cret@h", ""),
        ("s3cret", ""),
        ("ws://[::1", "(not a URL)"),
        ("ws://h/\x1b[31m", "ws://h/?[31m"),
    ],
)
def test_refused_url_shows_nothing_that_may_be_a_password(url: str, shown: str) -> None:
    request = StartFork(Target("PJSIP/1-1", ""), url, parse_options(""))
    assert event_fields(Refused(request, "no"))["fork"]["url"] == shown


def test_texts_of_others_are_harmless_and_short() -> None:
    for event in (
        Reconnecting(FORK, Away.SERVER, 1, NASTY, False),
        Ended(FORK, EndReason.HANGUP, STATS, False, NASTY),
        Failed(FORK, EndReason.FAULT, NASTY, 1.0, STATS, 0, NASTY),
        CommandHandled(FORK, ServerCommand.DTMF, NASTY, CommandOutcome.FAILED, NASTY),
        Attack(AttackKind.FORGED_EVENT, NASTY, 3),
        Refused(StartFork(Target(NASTY, NASTY), "ws://" + NASTY, parse_options("")), NASTY),
    ):
        text = json.dumps(event_fields(event), ensure_ascii=False)
        assert "\\u00" not in text
        assert len(text) < 2500


def test_attack_has_no_fork() -> None:
    assert event_fields(Attack(AttackKind.WRONG_UUID, "from 192.0.2.1", 3)) == {
        **{"fork": None, "kind": "wrong-uuid", "detail": "from 192.0.2.1", "count": 3}
    }


def test_view_has_all_fields_and_the_host() -> None:
    view = ForkView(FORK_ID, "c", "u", URL, "in", "streaming", 1.0, 1, 1, 0, "")
    rendered = fork_fields(view)
    assert set(rendered) == {one.name for one in fields(ForkView)} | {"host"}
    assert (rendered["url"], rendered["host"]) == ("wss://h:8443/live?...", "h:8443")
    assert info_fields(FORK)["url"] == rendered["url"]


@pytest.mark.parametrize(
    ("url", "host"),
    [("ws://[::1]:80/x", "[::1]:80"), ("ws://u:p@h/", "h"), ("ws://[::1", ""), ("", "")],
)
def test_host_is_that_of_the_url_without_who_asks(url: str, host: str) -> None:
    assert host_of(url) == host
