"""Details of failures, folded so that those of one cause are equal."""

from __future__ import annotations

import pytest

from audiofork.forks.causes import MOST_CHARACTERS, cause_of


@pytest.mark.parametrize(
    ("detail", "cause"),
    [
        (
            "ws://asr1.example.org:8080: Connection refused",
            "ws://asr1.example.org:N: Connection refused",
        ),
        ("ws://127.0.0.1:8080: no answer in 2.5 s", "ws://127.0.0.1:N: no answer in N s"),
        ("the server answered HTTP 403 Forbidden", "the server answered HTTP 403 Forbidden"),
        ("the server closed with 1011 error 17", "the server closed with 1011 error N"),
        (
            "the channel is connected already, by the fork 3f2a91c0-1111-4222-8333-444455556666",
            "the channel is connected already, by the fork ...",
        ),
        ("PJSIP/100-0000002a is gone", "PJSIP/N-... is gone"),
        ("No such channel", "No such channel"),
        ("", ""),
    ],
)
def test_numbers_and_ids_are_folded_and_what_tells_the_cause_stays(detail: str, cause: str) -> None:
    assert cause_of(detail) == cause


def test_cause_is_short_and_quick_whatever_a_server_says() -> None:
    assert len(cause_of("x" * 100_000)) == MOST_CHARACTERS
    assert len(cause_of("1.1.1.1." * 10_000)) == MOST_CHARACTERS
    assert len(cause_of("abcdefab" * 10_000)) == MOST_CHARACTERS
