"""Whether a text is a URL that a pattern allows."""

from __future__ import annotations

import pytest

from audiofork.url_patterns import ANYWHERE, is_allowed


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("ws://h/", "ws://h"),
        ("wss://a.example.org:8443/live?x=1", "wss://*.example.org:8443/live"),
        ("ws://[::1]/", "*://[::1]"),
    ],
)
def test_url_that_matches_is_allowed(url: str, pattern: str) -> None:
    assert is_allowed(url, (pattern,))
    assert is_allowed(url, ANYWHERE)


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("ws://h/", "wss://h"),
        ("ws://h.example.net/", "ws://h"),
        ("ws://h/live/../other", "ws://h/live/*"),
        ("ws://h/live/%2e%2e/other", "ws://h/live/*"),
    ],
)
def test_url_that_does_not_match_is_not_allowed(url: str, pattern: str) -> None:
    assert not is_allowed(url, (pattern,))


@pytest.mark.parametrize(
    "text", ["", "h", "http://h/", "ws://", "ws://[::1", "ws://h:x/", "ws://" + "a" * 300]
)
def test_what_is_no_url_of_a_server_is_allowed_to_nobody(text: str) -> None:
    assert not is_allowed(text, ("wss://example.org",))
