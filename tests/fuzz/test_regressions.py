"""Inputs that a parser once did not stand."""

from __future__ import annotations

import json

import pytest

from audiofork.cluster.lease import Holder
from audiofork.doors.ami_front_protocol import AsteriskStream
from audiofork.doors.control_answers import parse_line
from audiofork.errors import RequestRefused
from audiofork.forks.requests import parse_request

HOSTILE_NAME = "a\x1b[2J\r\nb\u202e\ud800"


@pytest.mark.parametrize("value", ["x\n", "x" * 1001], ids=["control", "long"])
def test_refusal_that_names_a_hostile_field_may_be_shown(value: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_request({HOSTILE_NAME: value})
    assert str(refused.value).startswith("a?[2j??b??: ")
    assert str(refused.value).isprintable()


def test_refusal_of_a_value_that_is_no_string_may_be_shown() -> None:
    line = json.dumps({HOSTILE_NAME: 1}).encode()
    with pytest.raises(RequestRefused) as refused:
        parse_line(line)
    assert str(refused.value) == "a?[2J??b??: expected a string"


def test_end_of_a_message_that_looks_like_the_answer_to_a_probe_passes() -> None:
    stream = AsteriskStream()
    stream.feed(b"Asterisk Call Manager/11.0.0\r\nEvent: UserEvent\r\nText: ")
    stream.expect("probe-1")
    end = b"Response: Success\r\nActionID: probe-1\r\n\r\n"
    assert stream.feed(end) == (end, None)
    answer = b"Response: Error\r\nActionID: probe-1\r\nMessage: Permission denied\r\n\r\n"
    assert stream.feed(answer) == (b"", "Permission denied")


def test_read_of_nothing_does_not_move_the_place_between_two_messages() -> None:
    stream = AsteriskStream()
    stream.feed(b"Asterisk Call Manager/11.0.0\r\nEvent: x\r\n\r\n")
    assert stream.feed(b"") == (b"", None)
    assert stream.insert(b"ours") == b"ours"


def test_holder_of_a_lease_in_json_that_is_too_deep_is_none() -> None:
    assert Holder.of(b'{"name":' + b'{"a":' * 5000) is None
