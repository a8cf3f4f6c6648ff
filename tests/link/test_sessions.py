"""Messages between hosts carry a stamp; a message that is missing is noticed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.link.messages import EndFork, EndReason, TakeStats
from audiofork.link.sessions import (
    Gone,
    Hello,
    Numbers,
    Stamp,
    decode_down,
    decode_up,
    down_subject,
    pack,
    split,
    up_subject,
)
from audiofork.link.stream import NotUnderstood

STAMP = Stamp(7, "s", 3)


def test_message_comes_back_with_its_stamp() -> None:
    message = EndFork("a", EndReason.STOPPED, "enough")
    stamp, line = split(pack(STAMP, message))
    assert (stamp, decode_down(line)) == (STAMP, message)


def test_each_direction_has_messages_of_its_own() -> None:
    assert decode_up(split(pack(STAMP, Gone()))[1]) == Gone()
    with pytest.raises(NotUnderstood):
        decode_down(split(pack(STAMP, Gone()))[1])
    with pytest.raises(NotUnderstood):
        decode_up(split(pack(STAMP, Hello()))[1])


def test_subjects_name_both_ends_so_that_each_may_be_allowed_its_own() -> None:
    assert down_subject("r1", "pbx") == "audiofork.relay.r1.pbx"
    assert up_subject("pbx", "r1") == "audiofork.control.pbx.r1"


@pytest.mark.parametrize(
    "first",
    [
        "",
        "{}",
        "[1, 2, 3]",
        '[1, "s"]',
        '[-1, "s", 0]',
        '[true, "s", 0]',
        '[1, "s", 0.5]',
        f'[{2**63}, "s", 0]',
        json.dumps([1, "s" * 65, 0]),
        "[" * 5000,
    ],
)
def test_what_has_no_stamp_raises(first: str) -> None:
    with pytest.raises(ValueError, match=r"no (JSON|stamp)"):
        split(f"{first}\n[]".encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_split_or_raise(payload: bytes) -> None:
    try:
        split(payload)
    except ValueError as exc:
        refusal = str(exc)
        assert refusal


def numbers() -> Numbers:
    one = Numbers()
    one.begin("s")
    return one


def test_messages_in_their_order_are_each_the_next() -> None:
    sender, receiver = numbers(), numbers()
    stamps = [split(pack(sender.stamp(1), TakeStats(n)))[0] for n in range(4)]
    assert [receiver.is_next(stamp) for stamp in stamps] == [True] * 4


def test_message_after_a_missing_one_is_not_the_next() -> None:
    sender, receiver = numbers(), numbers()
    first, _, third = (sender.stamp(1) for _ in range(3))
    assert receiver.is_next(first)
    assert not receiver.is_next(third)


def test_message_of_another_session_is_not_the_next_and_each_session_counts_anew() -> None:
    receiver = numbers()
    assert not receiver.is_next(Stamp(1, "other", 0))
    assert receiver.is_next(Stamp(1, "s", 0))
    receiver.begin("other")
    assert receiver.is_next(Stamp(1, "other", 0))
    receiver.end()
    assert not receiver.is_next(Stamp(1, "other", 1))
