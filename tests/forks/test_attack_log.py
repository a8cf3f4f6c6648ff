"""The log of attacks."""

from __future__ import annotations

import pytest

from audiofork.forks.attack_log import AttackLog
from audiofork.forks.events import Attack, AttackKind, Refused
from audiofork.forks.requests import parse_request


def test_attack_is_logged_with_its_kind_its_count_and_who_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    AttackLog().on_event(Attack(AttackKind.WRONG_UUID, "from 192.0.2.1", 3))
    assert caplog.messages == ["attack, wrong-uuid: 3 more, last: from 192.0.2.1"]
    assert caplog.records[0].levelname == "WARNING"


def test_flood_of_attacks_is_a_line_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    log = AttackLog()
    for number in range(100):
        log.on_event(Attack(AttackKind.WRONG_UUID, f"wrong {number}"))
        log.on_event(Attack(AttackKind.FORGED_EVENT, f"forged {number}"))
    assert caplog.messages == [
        "attack, wrong-uuid: 1 more, last: wrong 0",
        "attack, forged-event: 1 more, last: forged 0",
    ]


def test_what_an_attacker_says_does_no_harm_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    AttackLog().on_event(Attack(AttackKind.FORGED_EVENT, "a\r\n\x1b[2J" + "b" * 1000))
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 300


def test_what_is_no_attack_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    stop = parse_request({"command": "StopAudioFork", "channel": "SIP/1"})
    AttackLog().on_event(Refused(stop, "No such fork"))
    assert caplog.messages == []
