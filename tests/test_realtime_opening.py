from __future__ import annotations

import pytest

from audiofork.realtime_opening import Opening, parse_opening


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("", Opening({})),
        ('{"instructions": "{caller_name}"}', Opening({"instructions": "{caller_name}"})),
        ('{"instructions": "Two\nlines"}', Opening({"instructions": "Two\nlines"})),
        (
            '[{"type": "transcription"}, {"type": "response.create"}]',
            Opening({"type": "transcription"}, ({"type": "response.create"},)),
        ),
    ],
)
def test_opening_is_a_session_and_the_events_after_it(text: str, opening: Opening) -> None:
    assert parse_opening(text) == opening


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"instructions":\n "a" "S3CRET"}', r"JSON; expecting ',' delimiter at line 2, column 6"),
        ("hello", "JSON; expecting value at line 1, column 1"),
        ("[" * 100_000, "JSON that is less deeply nested"),
        ("[]", "a JSON object, the session, or a list that begins with it"),
        ('"S3CRET"', "a JSON object, the session"),
        ('[{}, "response.create"]', 'a JSON object with "type" as event 1 after the session'),
        ('[{}, {"type": "a"}, {"type": 7}]', 'a JSON object with "type" as event 2'),
        ('{"type": "S3CRET"}', "session.type to be realtime or transcription"),
        ('{"audio": []}', "session.audio to be a JSON object"),
        ('{"audio": {"input": 7}}', "session.audio.input to be a JSON object"),
        ('{"tools": {}}', "session.tools to be a list of JSON objects"),
        ('{"tools": ["S3CRET"]}', "session.tools to be a list of JSON objects"),
        (
            '{"audio": {"output": {"format": {"type": "audio/pcm"}}}}',
            r"no session.audio.output.format, since options decide it: none is mu-law, c\(alaw\)",
        ),
        (
            '{"audio": {"input": {"turn_detection": null}}}',
            "session.audio.input.turn_detection not to be null",
        ),
    ],
)
def test_opening_that_is_none_says_where_and_what_is_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}") as caught:
        parse_opening(text)
    assert "S3CRET" not in str(caught.value)
