"""What is parsed against a dataclass, what is refused and how, what is rendered."""

from __future__ import annotations

import contextlib
import enum
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from audiofork.doors.http import schema
from audiofork.doors.http.describing import Describer, told_of
from audiofork.doors.http.schema import (
    BadValue,
    Bounds,
    as_json,
    parse_body,
    parse_query,
    plain,
)


class Colour(enum.StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    """Inside.

    Attributes:
        in: A word of Python's.
    """

    in_: bool | None = None


@dataclass(frozen=True)
class Outer:
    """Outside.

    Attributes:
        name: Its name, which
            goes on.
        number, share: Amounts.
    """

    name: Annotated[str, Bounds(max_length=5)]
    number: Annotated[int, Bounds(minimum=1, maximum=9)] = 1
    share: float = 0.5
    flag: bool = False
    words: Annotated[dict[str, str], Bounds(max_items=2)] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    maybe: float | None = None


def test_body_becomes_the_object() -> None:
    body = {
        **{"name": "a", "number": 3, "share": 1, "flag": True},
        **{"words": {"x": "y"}, "inner": {"in": True}, "maybe": None},
    }
    expected = Outer("a", 3, 1, True, {"x": "y"}, Inner(True), None)
    assert parse_body(Outer, json.dumps(body).encode()) == expected
    assert parse_body(Outer, b'{"name": "a"}') == Outer("a")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "the body: expected a JSON object in UTF-8"),
        (b"\xff", "the body: expected a JSON object in UTF-8"),
        (b"[" * 60_000, "the body: expected a JSON object in UTF-8"),
        (b'{"name": "a", "share": NaN}', "the body: expected a JSON object in UTF-8"),
        (b'{"name": "\\ud800"}', "the body: expected a JSON object in UTF-8"),
        (b'{"name": "a", "number": ' + b"9" * 5000 + b"}", "the body: expected a JSON object"),
        (b"[]", "the body: expected an object, got a list"),
        (b"null", "the body: expected an object, got null"),
        (b"{}", "name: missing"),
        (b'{"name": 3}', "name: expected a string, got a number"),
        (b'{"name": null}', "name: expected a string, got null"),
        (b'{"name": "a", "name": "b"}', "name: given twice"),
        (b'{"name": "a", "flag": 1}', "flag: expected true or false, got a number"),
        (b'{"name": "a", "number": true}', "number: expected a whole number, got true"),
        (b'{"name": "a", "number": 1.5}', "number: expected a whole number, got a number"),
        (b'{"name": "a", "number": 10}', "number: expected at least 1 and at most 9"),
        (b'{"name": "abcdef"}', "name: expected 5 characters at most"),
        (b'{"name": "a", "words": {"x": 1}}', "words: expected an object of strings, got an obj"),
        (b'{"name": "a", "words": {"x": "", "y": "", "z": ""}}', "words: expected 2 at most"),
        (b'{"name": "a", "inner": {"inn": true}}', "inner.inn: no such field; did you mean in?"),
        (b'{"name": "a", "inner": {"in_": true}}', "inner.in_: no such field; did you mean in?"),
        (b'{"name": "a", "inner": {"in": "x"}}', "inner.in: expected true or false or null, got"),
        (b'{"name": "a", "Name": "b"}', "Name: no such field; did you mean name?"),
        (b'{"name": "a", "zzzzzz": "b"}', "zzzzzz: no such field; there are name, number, "),
        (b'{"\\u001b[31m": "b"}', "?[31m: no such field; there are name, "),
    ],
)
def test_body_that_is_something_else_is_refused_with_its_place(body: bytes, fault: str) -> None:
    with pytest.raises(BadValue) as refused:
        parse_body(Outer, body)
    assert str(refused.value).startswith(fault)


def test_refusal_does_not_repeat_a_value_and_little_of_a_name() -> None:
    with pytest.raises(BadValue) as refused:
        parse_body(Outer, b'{"name": ["s3cret"]}')
    assert "s3cret" not in str(refused.value)
    with pytest.raises(BadValue) as refused:
        parse_body(Outer, json.dumps({"n" * 50_000: 1}).encode())
    assert len(str(refused.value)) < 200


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_body_gives_an_object_or_is_refused(body: bytes) -> None:
    with contextlib.suppress(BadValue):
        assert isinstance(parse_body(Outer, body), Outer)


def test_query_becomes_the_object() -> None:
    pairs = [("name", "a"), ("number", "3"), ("share", "0.25"), ("flag", "yes"), ("maybe", "2")]
    assert parse_query(Outer, pairs) == Outer("a", 3, 0.25, True, maybe=2.0)


@pytest.mark.parametrize(
    ("pairs", "fault"),
    [
        ([("name", "a"), ("name", "a")], "name: given twice"),
        ([("nam", "a")], "nam: no such parameter; did you mean name?"),
        ([("number", "1_0"), ("name", "a")], "number: expected a whole number, got '1_0'"),
        ([("number", "\u0661"), ("name", "a")], "number: expected a whole number, got '\u0661'"),
        ([("number", "0"), ("name", "a")], "number: expected at least 1 and at most 9"),
        ([("share", "inf"), ("name", "a")], "share: expected a number, got 'inf'"),
        ([("flag", "maybe"), ("name", "a")], "flag: expected true or false, got 'maybe'"),
        ([("number", "9" * 5000), ("name", "a")], "number: expected a whole number, got '999"),
        ([], "name: missing"),
    ],
)
def test_query_that_is_something_else_is_refused(pairs: list[tuple[str, str]], fault: str) -> None:
    with pytest.raises(BadValue) as refused:
        parse_query(Outer, pairs)
    assert str(refused.value).startswith(fault)
    assert len(str(refused.value)) < 200


def test_values_are_rendered_as_types_that_json_has() -> None:
    value = {"a": Outer("n", maybe=math.nan), Colour.RED: (1, Colour.RED), "b": math.inf}
    assert plain(value) == {
        "a": {
            **{"name": "n", "number": 1, "share": 0.5, "flag": False},
            **{"words": {}, "inner": {"in": None}, "maybe": None},
        },
        "red": [1, "red"],
        "b": None,
    }


def test_json_is_one_line_of_ascii_whatever_the_texts_hold() -> None:
    text = "\x00\x1b\r\n</script>\u2028\ud800\U0001f600"
    rendered = as_json({"text": text})
    assert rendered.isascii()
    assert rendered.isprintable()
    assert json.loads(rendered) == {"text": text}


def test_description_has_the_fields_with_their_texts_and_bounds() -> None:
    describer = Describer()
    assert describer.of(Outer, is_answer=False) == {"$ref": "#/components/schemas/Outer"}
    outer = describer.components["Outer"]
    assert outer["required"] == ["name"]
    assert outer["additionalProperties"] is False
    assert outer["properties"]["name"] == {
        "type": "string",
        "maxLength": 5,
        "description": "Its name, which goes on.",
    }
    assert outer["properties"]["number"]["maximum"] == 9
    assert outer["properties"]["share"] == {
        "type": "number",
        "default": 0.5,
        "description": "Amounts.",
    }
    assert outer["properties"]["maybe"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert describer.components["Inner"]["properties"]["in"]["description"]
    assert told_of(Inner) == {"in": "A word of Python's."}


def test_answers_never_leave_a_field_out() -> None:
    describer = Describer()
    describer.of(Outer)
    assert set(describer.components["Outer"]["required"]) == {
        *("name", "number", "share", "flag", "words", "inner", "maybe")
    }


def test_what_is_parsed_and_rendered_again_fits_its_description() -> None:
    describer = Describer()
    schema = describer.of(Outer)
    document: dict[str, Any] = {**schema, "components": {"schemas": describer.components}}
    value = parse_body(Outer, b'{"name": "a", "inner": {"in": true}, "words": {"a": "b"}}')
    Draft202012Validator(document).validate(json.loads(as_json(value)))


def test_name_that_is_given_twice_is_found_by_looking_at_each_once() -> None:
    """Of 60 KB: to count each name among all others held the event loop up for half a second."""

    class Name(str):
        __slots__ = ()
        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    names = [Name(f"n{number}") for number in range(1000)]
    with pytest.raises(BadValue, match="n999: given twice"):
        schema._once([(name, 0) for name in [*names, Name("n999")]])
    assert Name.compared < 2000
