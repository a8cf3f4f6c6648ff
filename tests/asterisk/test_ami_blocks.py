"""How what comes over AMI is cut into messages."""

from __future__ import annotations

import pytest

from audiofork.asterisk.ami_blocks import Blocks

GREETING = b"Asterisk Call Manager/11.0.0\r\nResponse: Success\r\n\r\n"
A, B, ANSWER = b"Event: A\r\nX: 1", b"Event: B", b"Response: Success"
# An event of which a value has an empty line.
CUT, REST = b"Event: Hangup\r\nUniqueid: 1700000000.9", b"Priority: 1\r\nUniqueid: 1700000000.1"


def wire(*blocks: bytes) -> bytes:
    return b"".join(block + b"\r\n\r\n" for block in blocks)


def greeted() -> Blocks:
    blocks = Blocks()
    blocks.feed(GREETING)
    return blocks


def test_first_message_may_begin_as_it_likes() -> None:
    assert Blocks().feed(GREETING) == ([GREETING[:-4]], [])


def test_messages_come_at_each_cut_of_the_stream() -> None:
    stream = wire(A, ANSWER, B)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            blocks = greeted()
            chunks = stream[:first], stream[first:second], stream[second:]
            got = [blocks.feed(chunk) for chunk in chunks]
            assert sum((whole for whole, _ in got), []) == [A, ANSWER, B]
            assert not any(cut for _, cut in got)


@pytest.mark.parametrize(
    "rest", [REST, b"\r\n" + REST, b"", b"Even: x", b"event: Hangup", GREETING[:-4]]
)
def test_message_that_was_cut_is_dropped_with_its_rest(rest: bytes) -> None:
    assert greeted().feed(wire(A, CUT, rest, B)) == ([A, B], [CUT, rest])


def test_message_whose_rest_has_no_end_yet_is_dropped() -> None:
    blocks = greeted()
    assert blocks.feed(wire(A, CUT) + REST[:4]) == ([A], [CUT])
    assert blocks.feed(wire(REST[4:], B)) == ([B], [REST])


def test_message_waits_until_it_is_seen_how_the_next_begins() -> None:
    blocks = greeted()
    assert blocks.feed(wire(CUT) + b"Eve") == ([], [])
    assert blocks.feed(b"ning") == ([], [CUT])
    blocks = greeted()
    assert blocks.feed(wire(A) + b"Resp") == ([], [])
    assert blocks.feed(b"onse: Success") == ([A], [])


def test_all_rests_of_one_message_are_dropped() -> None:
    assert greeted().feed(wire(A, CUT, REST, REST, B)) == ([A, B], [CUT, REST, REST])


def test_rest_that_comes_alone_is_dropped() -> None:
    blocks = greeted()
    blocks.feed(wire(A))
    assert blocks.feed(wire(REST, B)) == ([B], [REST])


def test_bytes_that_wait_are_counted() -> None:
    blocks = greeted()
    blocks.feed(wire(A) + b"Event: " + b"x" * 100)
    assert blocks.waiting_bytes == 107
