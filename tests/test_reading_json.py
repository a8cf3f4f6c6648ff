from __future__ import annotations

import pytest

from audiofork.reading_json import parsed_json


@pytest.mark.parametrize("text", ['{"a": [1, null]}', b'{"a": [1, null]}'])
def test_text_of_json_is_its_value(text: str | bytes) -> None:
    assert parsed_json(text) == {"a": [1, None]}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", b"\xff", "9" * 5000),
        *("[" * 100_000, '{"a":' * 100_000),
    ],
    ids=["empty", "cut-off", "no-utf-8", "long-number", "deep-lists", "deep-objects"],
)
def test_anything_else_is_a_value_error_alone(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever its text)
        parsed_json(text)


def test_options_are_those_of_json() -> None:
    assert parsed_json("[NaN]", parse_constant=str.lower) == ["nan"]
