"""The page of our own format, docs/json-format.asyncapi.yaml, says what is sent."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft7Validator

from audiofork.forks.call_info import FIELDS
from audiofork.link.messages import Codec, Direction, EndReason, Format, ServerCommand
from audiofork.relay.formats.base import (
    BufferLevel,
    Cleared,
    Dtmf,
    Mark,
    Message,
    MessageFormat,
    Mute,
)
from audiofork.relay.formats.description import VERSION
from tests.relay.formats.formats import make
from tests.relay.formats.json_page import MESSAGES, PAGE, ROOT, check

TEXTS = [name for name, message in MESSAGES.items() if message["payload"]["type"] == "object"]
SENT = [name for name in TEXTS if name != "command"]  # that is what servers send
# What AsyncAPI itself publishes; `make clients` fetches it.
SPECS = ROOT / ".venv-node/node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json"


def all_texts(one: MessageFormat) -> list[Message]:
    """Return texts of each kind that a fork can send."""
    mutes = [one.event(Mute(is_in, is_out), 5) for is_in, is_out in ((True, True), (False, False))]
    return [
        *one.opening(0, 0),
        *(text for texts in mutes for text in texts),
        *(text for digit in "0123456789*#ABCD" for text in one.event(Dtmf(digit, 90), 9)),
        *one.gap(500, 20),
        *(
            text
            for event in (Mark("a"), Cleared(), BufferLevel(True), BufferLevel(False))
            for text in one.event(event, 500)
        ),
        *one.opening(500, 20),
        *(text for reason in EndReason for text in one.closing(reason.value, 600, 20)),
    ]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("codec", Codec)
def test_every_text_is_as_the_page_says(direction: Direction, codec: Codec) -> None:
    one = make(Format.JSON, direction, codec=codec, sample_rate=16000)
    assert {check(text) for text in all_texts(one)} == set(SENT)


def test_page_names_every_field_of_the_call_and_every_reason() -> None:
    assert set(PAGE["components"]["schemas"]["call"]["properties"]) == {*FIELDS} - {"fork_id"}
    assert MESSAGES["stop"]["payload"]["properties"]["reason"]["enum"] == [*EndReason]
    assert MESSAGES["start"]["payload"]["properties"]["version"]["const"] == VERSION
    commands = MESSAGES["command"]["payload"]["properties"]["command"]["enum"]
    assert set(commands) == {*ServerCommand} - {ServerCommand.AUDIO}
    assert PAGE["info"]["version"].split(".")[0] == str(VERSION)


@pytest.mark.parametrize("name", TEXTS)
def test_examples_of_the_page_are_as_it_says(name: str) -> None:
    examples = MESSAGES[name]["examples"]
    assert {check(json.dumps(example["payload"])) for example in examples} == {name}


@pytest.mark.skipif(not SPECS.exists(), reason="AsyncAPI's own schema is not there: make clients")
def test_page_is_a_document_of_asyncapi_3() -> None:
    schema = json.loads(SPECS.read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(PAGE)] == []
