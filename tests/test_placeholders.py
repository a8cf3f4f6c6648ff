"""Placeholders in commands."""

from __future__ import annotations

import pytest

from audiofork.placeholders import MAX_NAMES, filled, names_in


def test_names_come_in_order_and_once() -> None:
    words = ("^{B}", "a^{A}^{B}b", "^{CALLERID(num)}", "^", "{C}", "^{D:1:2}")
    assert names_in(words) == ("B", "A", "CALLERID(num)", "D:1:2")


@pytest.mark.parametrize("word", ["^{}", "^{X", "^{ X }", "^{A^{B}}", "^{F(a}", "a^{X}^{"])
def test_what_begins_like_a_placeholder_and_is_none_is_told(word: str) -> None:
    with pytest.raises(ValueError, match=r"^\^{NAME} in place of \^{"):
        names_in(("a", word))


def test_too_many_names_are_told() -> None:
    words = [f"^{{V{number}}}" for number in range(MAX_NAMES)]
    assert len(names_in(words)) == MAX_NAMES
    with pytest.raises(ValueError, match="64 different"):
        names_in([*words, "^{more}"])


def test_value_is_put_in_as_it_is_and_not_read_again() -> None:
    values = {"X": "^{Y}\\1\\g<0>", "Y": "no"}
    assert filled("a^{X}b^{Z}", values) == "a^{Y}\\1\\g<0>b"
