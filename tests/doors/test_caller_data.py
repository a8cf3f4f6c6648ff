"""What of a request a caller has written, and what the dialplan has."""

from __future__ import annotations

import pytest

from audiofork.doors.caller_data import decoded, slipped_in

URL = "ws://127.0.0.1/?called=1"


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({"wsserver": "ws%3A//h"}, {"wsserver": "ws%3A//h"}),
        ({"encoding": "base64", "options": "+"}, {"encoding": "base64", "options": "+"}),
        (
            {"encoding": "uri", "wsserver": "ws%3A%2F%2Fh%2F%22%C3%A9%2C%0D%5C+", "command": "a+b"},
            {"wsserver": 'ws://h/"é,\r\\ ', "command": "a+b"},
        ),
        (
            {
                "encoding": "uri-quoted",
                "wsserver": "%22ws%3A%2F%2Fh%2Fa%2Cb%22%5C%2C",
                "options": "%22",
            },
            {"wsserver": "ws://h/a,b,", "options": '"'},
        ),
        ({"encoding": "uri", "options": "%ff%"}, {"options": "\ufffd%"}),
        ({"encoding": "uri", "channel": "Local/5%30+"}, {"channel": "Local/5%30+"}),
    ],
)
def test_values_are_as_before_the_dialplan_encoded_them(
    fields: dict[str, str], plain: dict[str, str]
) -> None:
    assert decoded(fields) == plain


@pytest.mark.parametrize(
    ("text", "fields", "name"),
    [
        ("1,WsServer: ws://evil/", {"wsserver": "ws://evil/"}, "WsServer"),
        ("1,WsServer: ws://evil/", {"wsserver": "ws://evil/&to=2"}, "WsServer"),
        ('1, "ws\\server" :ws://evil/', {"wsserver": "ws://evil/"}, "WsServer"),
        ("1,x,Command: StopAudioFork", {"command": "StopAudioFork"}, "Command"),
        ("1,PostProcess: touch x", {"postprocess": "touch x"}, "PostProcess"),
        ("1,D(in)", {"wsserver": URL, "options": "D(in)"}, "Options"),
        ("1,,touch x", {"wsserver": URL, "postprocess": "touch x"}, "PostProcess"),
        # As they should be: what was dialled is one value, or in none.
        ("1,WsServer: ws://evil/", {"wsserver": "ws://h/?c=1%2CWsServer%3A"}, ""),
        ("1,D(in)", {"wsserver": "ws://h/?c=1%2CD(in)", "options": "D(in)"}, ""),
        ("Smith, Wsserver:", {"wsserver": URL}, ""),
        ("Miller, S", {"wsserver": "ws://h/", "options": "S"}, ""),
        (",D(in)", {"wsserver": URL, "options": "D(in)"}, ""),
        ("", {"wsserver": URL}, ""),
    ],
)
def test_field_that_a_caller_has_written_is_named(
    text: str, fields: dict[str, str], name: str
) -> None:
    assert slipped_in(fields, ["<unknown>", text]) == name
