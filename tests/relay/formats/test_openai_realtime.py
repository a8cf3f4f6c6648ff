"""OpenAI's Realtime API: what is said to a server of it, and what is made of its messages."""

from __future__ import annotations

import audioop
import base64
import json
from typing import Any

import pytest

from audiofork.link.dialogue import Dialogue
from audiofork.link.messages import Codec, Format, ServerCommand
from audiofork.relay.formats.base import (
    Audio,
    Cleared,
    Command,
    Dtmf,
    Mark,
    Meaning,
    MessageFormat,
    Reply,
    Several,
    Text,
)
from audiofork.relay.formats.openai_realtime import MOST_ERRORS, MOST_NAME_LENGTH
from testbed.realtime_api import check_event
from tests.relay.formats.formats import make

ULAW = bytes(number for number in range(161) if number != 0x7F)  # a second zero
FRAME = audioop.ulaw2lin(ULAW, 2)
CLEAR = Command(ServerCommand.CLEAR)
GRANTED = (ServerCommand.CLEAR, ServerCommand.HANGUP, ServerCommand.TRANSFER)


def begin(opening: object = None, **wishes: Any) -> MessageFormat:
    """Return the format of a fork whose profile has this opening."""
    text = json.dumps(opening) if opening is not None else ""
    return make(Format.OPENAI_REALTIME, dialogue=Dialogue(opening=text), **wishes)


def told(messages: Any) -> list[dict[str, Any]]:
    """Return what messages to the server say, each of which it would understand."""
    events = [json.loads(message) for message in messages]
    for event in events:
        check_event(event)
    return events


def says(one: MessageFormat, kind: str, **fields: Any) -> Meaning:
    """Return what an event of the server means."""
    return one.meaning(json.dumps({"type": kind, "event_id": "event_1", **fields}))


def speaks(one: MessageFormat, audio: bytes, item: str = "item_1", **fields: Any) -> Meaning:
    place = {"item_id": item, "content_index": 0, "response_id": "resp_1", "output_index": 0}
    delta = base64.b64encode(audio).decode()
    return says(one, "response.output_audio.delta", **{**place, "delta": delta, **fields})


def calls(one: MessageFormat, name: str, arguments: str = "{}", **fields: Any) -> Meaning:
    """Return what the call of a tool means."""
    call = {"type": "function_call", "call_id": "call_1", "name": name, "arguments": arguments}
    return says(one, "response.output_item.done", item={**call, "status": "completed", **fields})


# --- To the server -------------------------------------------------------------------------------


def test_session_is_what_the_profile_says_with_the_formats_of_audio() -> None:
    wished = {
        "instructions": 'Say "hello"',
        "audio": {
            "input": {"turn_detection": {"type": "server_vad"}},
            "output": {"voice": "marin"},
        },
    }
    one = begin([wished, {"type": "response.create"}])
    update, greeting = told(one.opening(0, 0))
    ulaw = {"type": "audio/pcmu"}
    assert update["session"] == {
        "type": "realtime",
        "instructions": 'Say "hello"',
        "audio": {
            "input": {"turn_detection": {"type": "server_vad"}, "format": ulaw},
            "output": {"voice": "marin", "format": ulaw},
        },
    }
    assert greeting == {"type": "response.create"}


def test_session_of_a_fork_without_a_profile_has_the_formats_alone() -> None:
    (update,) = told(begin().opening(0, 0))
    ulaw = {"format": {"type": "audio/pcmu"}}
    assert update["session"] == {"type": "realtime", "audio": {"input": ulaw, "output": ulaw}}


def test_session_that_only_transcribes_has_no_audio_to_the_caller() -> None:
    one = begin({"type": "transcription"}, commands=GRANTED)
    session = json.loads(one.opening(0, 0)[0])["session"]
    audio = {"input": {"format": {"type": "audio/pcmu"}}}
    assert session == {"type": "transcription", "audio": audio}


@pytest.mark.parametrize(
    ("wishes", "format_", "encoded", "back"),
    [
        ({}, {"type": "audio/pcmu"}, ULAW, FRAME),
        (
            {"codec": Codec.ALAW},
            {"type": "audio/pcma"},
            audioop.lin2alaw(FRAME, 2),
            audioop.alaw2lin(audioop.lin2alaw(FRAME, 2), 2),
        ),
        ({"sample_rate": 24000}, {"type": "audio/pcm", "rate": 24000}, FRAME, FRAME),
    ],
    ids=["mu-law", "A-law", "PCM"],
)
def test_audio_goes_and_comes_in_the_format_of_the_session(
    wishes: Any, format_: Any, encoded: bytes, back: bytes
) -> None:
    one = begin(**wishes)
    (update,) = told(one.opening(0, 0))
    assert update["session"]["audio"]["output"]["format"] == format_
    (append,) = told(one.audio((FRAME,), 7))
    assert base64.b64decode(append["audio"]) == encoded
    rate = wishes.get("sample_rate", 8000)
    assert speaks(one, encoded) == Audio(back, rate)
    wire = len(one.audio((FRAME,), 7)[0])
    assert one.payload_bytes(len(FRAME)) == pytest.approx(wire, abs=5)


def test_several_frames_go_in_one_message() -> None:
    (append,) = told(begin().audio((FRAME, FRAME), 0))
    assert len(base64.b64decode(append["audio"])) == 320


def test_nothing_but_audio_and_answers_is_told_of_the_call() -> None:
    one = begin()
    assert one.event(Dtmf("5", 90), 7) == one.event(Mark("a"), 7) == ()
    assert one.gap(5, 2) == one.closing("hangup", 9, 0) == ()


def test_audio_waits_for_the_server_to_accept_each_session() -> None:
    one = begin()
    assert one.must_answer
    seen = []
    for kind in ("session.created", "session.updated"):
        one.opening(500, 2)
        says(one, kind, session={})
        seen.append(one.is_answered)
    one.opening(500, 2)
    assert [*seen, one.is_answered] == [False, True, False]


# --- Barge-in ------------------------------------------------------------------------------------


def test_caller_who_speaks_cuts_the_server_off_and_it_is_told_what_was_heard() -> None:
    one = begin()
    speaks(one, bytes(8 * 1000))
    speaks(one, bytes(8 * 501))
    assert says(one, "input_audio_buffer.speech_started") == CLEAR
    assert told(one.event(Cleared(1200), 7)) == [
        {
            "type": "conversation.item.truncate",
            "item_id": "item_1",
            "content_index": 0,
            "audio_end_ms": 301,
        }
    ]
    assert speaks(one, bytes(800)) is None, "the rest that was on its way"
    assert isinstance(speaks(one, bytes(800), "item_2"), Audio)


@pytest.mark.parametrize(
    ("lost_ms", "heard"),
    [
        (0, []),
        (20, [("item_3", 80)]),
        (100, [("item_3", 0)]),
        (119, [("item_3", 0)]),  # the rest of a frame that was padded with silence
        (140, [("item_2", 260), ("item_3", 0)]),
        (9999, [("item_1", 0), ("item_2", 0), ("item_3", 0)]),
    ],
)
def test_items_that_were_heard_whole_are_not_cut(lost_ms: int, heard: Any) -> None:
    one = begin()
    for number, duration_ms in enumerate((200, 300, 100), 1):
        speaks(one, bytes(8 * duration_ms), f"item_{number}")
    events = told(one.event(Cleared(lost_ms), 0))
    assert [(event["item_id"], event["audio_end_ms"]) for event in events] == heard
    assert one.event(Cleared(100), 0) == ()


def test_item_with_a_name_that_is_too_long_to_be_kept_is_not_played() -> None:
    one = begin()
    assert speaks(one, bytes(160), "x" * MOST_NAME_LENGTH) is not None
    assert speaks(one, bytes(160), "x" * (MOST_NAME_LENGTH + 1)) is None
    assert [fields["item_id"] for fields in told(one.event(Cleared(20), 0))] == [
        "x" * MOST_NAME_LENGTH
    ]


def test_new_session_knows_nothing_of_the_items_of_the_last_one() -> None:
    one = begin()
    speaks(one, bytes(800))
    one.opening(50, 0)
    assert one.event(Cleared(100), 0) == ()


def test_server_that_does_not_stop_when_its_caller_speaks_is_not_cut_off() -> None:
    detection = {"type": "server_vad", "interrupt_response": False}
    one = begin({"audio": {"input": {"turn_detection": detection}}})
    assert says(one, "input_audio_buffer.speech_started") is None


# --- What is told of the conversation ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "speaker"),
    [
        ("conversation.item.input_audio_transcription.completed", "caller"),
        ("response.output_audio_transcript.done", "bot"),
        ("response.audio_transcript.done", "bot"),
    ],
)
def test_transcript_is_told_with_its_speaker(kind: str, speaker: str) -> None:
    meaning = says(begin(), kind, transcript=" Grüß Gott\n", item_id="item_1")
    assert meaning == Text(
        f'{{"event": "transcript", "speaker": "{speaker}", "text": "Grüß Gott"}}'
    )
    assert says(begin(), kind, transcript="") is None


def test_error_is_told_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    one = begin()
    error = {"type": "invalid_request_error", "code": "bad_value", "message": "no\nvoice x"}
    for _ in range(2):
        assert says(one, "error", error=error) == Text(
            '{"event": "error", "code": "bad_value", "message": "no\\nvoice x"}'
        )
    (record,) = caplog.records
    assert record.getMessage() == "the server reports an error: bad_value: no?voice x"


def test_error_before_the_session_is_accepted_is_a_refusal_of_this_connection() -> None:
    one = begin()
    one.opening(0, 0)
    says(one, "error", error={"type": "server_error", "message": "busy"})
    assert not one.refusal, "another time it may do"
    error = {"type": "invalid_request_error", "code": "bad_value"}
    says(one, "error", error={**error, "message": "ü" * 100})
    assert one.refusal == "bad_value: " + "ü" * 56
    one.opening(0, 0)
    assert not one.refusal
    says(one, "session.updated", session={})
    says(one, "error", error={**error, "message": "x"})
    assert not one.refusal


def test_errors_of_ever_new_kinds_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    one = begin()
    for number in range(50):
        says(one, "error", error={"code": str(number), "message": ""})
    assert len(caplog.records) == MOST_ERRORS


def test_response_that_failed_is_told_as_an_error() -> None:
    error = {"type": "insufficient_quota", "message": "no money"}
    response = {"status": "failed", "status_details": {"type": "failed", "error": error}}
    assert says(begin(), "response.done", response=response) == Text(
        '{"event": "error", "code": "insufficient_quota", "message": "no money"}'
    )


@pytest.mark.parametrize(
    "message",
    [
        b"\1\2",
        '{"type": "rate_limits.updated"}',
        '{"type": "response.output_audio.delta", "delta": "?"}',
        '{"type": "response.output_audio.delta", "delta": 5}',
        '{"type": "response.output_item.done", "item": []}',
        '{"type": "response.done", "response": {"status_details": 4}}',
    ],
)
def test_message_that_means_nothing_is_left_out(message: str | bytes) -> None:
    assert begin().meaning(message) in (None, Several(()))


@pytest.mark.parametrize(
    "message",
    ["hello", "{", "[" * 100_000, '{"type": 7}', '{"type": ["error"]}', '{"type": "error"}'],
)
def test_message_that_is_not_of_the_api_is_told(message: str) -> None:
    assert isinstance(begin().meaning(message), Text)


# --- Tools ---------------------------------------------------------------------------------------


def test_tools_that_are_granted_are_offered_beside_those_of_the_profile() -> None:
    own = {"type": "function", "name": "transfer", "description": "To sales or to help."}
    one = begin({"tools": [own]}, commands=GRANTED)
    (update,) = told(one.opening(0, 0))
    first, second = update["session"]["tools"]
    assert first == own
    assert (second["name"], second["parameters"]["type"]) == ("hang_up", "object")
    (update,) = told(begin({"tools": [own]}).opening(0, 0))
    assert update["session"]["tools"] == [own]


@pytest.mark.parametrize(
    ("name", "arguments", "command"),
    [
        ("hang_up", "{}", Command(ServerCommand.HANGUP, after_audio=True)),
        (
            "transfer",
            '{"to": "help,100,1"}',
            Command(ServerCommand.TRANSFER, "help,100,1", after_audio=True),
        ),
    ],
)
def test_tool_that_is_granted_is_done_after_what_the_bot_says_before(
    name: str, arguments: str, command: Command
) -> None:
    one = begin(commands=GRANTED)
    meaning = calls(one, name, arguments)
    assert isinstance(meaning, Several)
    text, reply, done = meaning.meanings
    assert text == Text(f'{{"event": "tool_call", "name": "{name}", "arguments": {arguments}}}')
    assert isinstance(reply, Reply)
    (answer,) = told(reply.messages)
    assert answer["item"]["call_id"] == "call_1"
    assert done == command
    assert says(one, "response.done", response={"status": "completed"}) is None


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("order_pizza", '{"size": 3}', "Passed on to the telephone system. There is no result."),
        ("order_pizza", "no JSON", "Passed on to the telephone system. There is no result."),
        ("hang_up", "{}", "Refused: hang_up is not allowed in this call."),
        ("transfer", '{"to": "x,1,1"}', "Refused: transfer is not allowed in this call."),
    ],
)
def test_other_tool_is_told_and_answered_and_the_model_goes_on_when_it_is_done(
    name: str, arguments: str, output: str
) -> None:
    one = begin(commands=(ServerCommand.CLEAR,))
    meaning = calls(one, name, arguments)
    assert isinstance(meaning, Several)
    text, reply = meaning.meanings
    assert isinstance(text, Text)
    assert json.loads(text.text)["name"] == name
    assert isinstance(reply, Reply)
    (answer,) = told(reply.messages)
    assert answer["item"]["output"] == output
    done = says(one, "response.done", response={"status": "completed"})
    assert isinstance(done, Reply)
    assert told(done.messages) == [{"type": "response.create"}]
    assert says(one, "response.done", response={"status": "completed"}) is None


def test_transfer_to_nowhere_is_refused_with_what_is_expected() -> None:
    meaning = calls(begin(commands=GRANTED), "transfer", '{"to": 7}')
    assert isinstance(meaning, Several)
    reply = meaning.meanings[1]
    assert isinstance(reply, Reply)
    (answer,) = told(reply.messages)
    assert answer["item"]["output"] == 'Refused: expected {"to": "context,exten,priority"}.'


def test_response_that_the_caller_has_broken_off_is_not_asked_for_again() -> None:
    one = begin()
    calls(one, "order_pizza")
    assert says(one, "response.done", response={"status": "cancelled"}) is None


@pytest.mark.parametrize("fields", [{"status": "incomplete"}, {"type": "message"}])
def test_item_that_is_no_complete_call_does_nothing(fields: Any) -> None:
    assert calls(begin(commands=GRANTED), "hang_up", **fields) is None
