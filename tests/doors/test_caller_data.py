"""What of a request a caller has written, and what the dialplan has."""

from __future__ import annotations

import base64

import pytest

from audiofork.doors.caller_data import decoded, slipped_in
from audiofork.errors import RequestRefused

URL = "ws://127.0.0.1/?called=1"


def encoded(value: str | bytes) -> str:
    """Encode a value as the shipped dialplan does."""
    return base64.b64encode(b"." + (value if isinstance(value, bytes) else value.encode())).decode()


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({"wsserver": "ws%3A//h"}, {"wsserver": "ws%3A//h"}),
        ({"encoding": "uri", "options": "+"}, {"encoding": "uri", "options": "+"}),
        (
            {"encoding": "base64", "wsserver": encoded('ws://h/"é,\r\\ ('), "command": "a+b"},
            {"wsserver": 'ws://h/"é,\r\\ (', "command": "a+b"},
        ),
        (
            {
                "encoding": "base64-quoted",
                "wsserver": encoded('"ws://h/a,b"\\,'),
                "options": encoded('"'),
            },
            {"wsserver": "ws://h/a,b,", "options": '"'},
        ),
        ({"encoding": "base64", "options": encoded(b"\xfe")}, {"options": "\ufffd"}),
        ({"encoding": "base64", "wsserver": encoded(b"ws\xff//h:1/")}, {"wsserver": "ws://h:1/"}),
        ({"encoding": "base64", "options": encoded("")}, {"options": ""}),
        ({"encoding": "base64", "channel": "Local/5"}, {"channel": "Local/5"}),
    ],
)
def test_values_are_as_before_the_dialplan_encoded_them(
    fields: dict[str, str], plain: dict[str, str]
) -> None:
    assert decoded(fields) == plain


def test_value_of_an_asterisk_that_cannot_encode_is_refused() -> None:
    with pytest.raises(RequestRefused, match="func_base64.so loaded"):
        decoded({"encoding": "base64", "wsserver": ""})


@pytest.mark.parametrize("value", ["ws://h/", "Li", "é", "Lg==\n"])
def test_value_that_is_not_encoded_is_refused(value: str) -> None:
    with pytest.raises(RequestRefused, match="^wsserver: not in base64"):
        decoded({"encoding": "base64", "wsserver": value})


@pytest.mark.parametrize(
    ("text", "fields", "name"),
    [
        ("1,WsServer: ws://evil/", {"wsserver": "ws://evil/"}, "WsServer"),
        ("1,WsServer: ws://evil/", {"wsserver": "ws://evil/&to=2"}, "WsServer"),
        ('1, "ws\\server" :ws://evil/', {"wsserver": "ws://evil/"}, "WsServer"),
        ("1,x,Command: StopAudioFork", {"command": "StopAudioFork"}, "Command"),
        ("1,Uniqueid: 9.9", {"uniqueid": "9.9"}, "Uniqueid"),
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
