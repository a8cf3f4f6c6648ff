"""Finds and fills `^{NAME}`, which stands for the value of a channel variable or function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_NAMES = 64

# The name of a variable, which may have :offset:length, or a function call: `CALLERID(num)`.
PLACEHOLDER = re.compile(r"\^\{([\w.~:-]{1,100}(?:\([^(){}^]{0,200}\))?)\}", re.ASCII)


def names_in(words: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the placeholders of some words, in order, each once.

    Raises:
        ValueError: There are more than MAX_NAMES, or a placeholder is malformed. The text says what
            is allowed, to follow "expected".
    """
    names: dict[str, None] = {}
    for word in words:
        names.update(dict.fromkeys(PLACEHOLDER.findall(word)))
        rest = PLACEHOLDER.sub("", word).partition("^{")
        if rest[1]:
            raise ValueError(f"^{{NAME}} in place of ^{{{rest[2][:40]}")
    if len(names) > MAX_NAMES:
        raise ValueError(f"{MAX_NAMES} different ^{{NAME}} at most")
    return tuple(names)


def filled(word: str, values: Mapping[str, str]) -> str:
    """Return a word with each placeholder replaced by its value.

    Values are not searched for placeholders in turn.

    Args:
        word: A word that `names_in` accepts.
        values: The values, any text, by name; a missing one counts as empty.
    """
    return PLACEHOLDER.sub(lambda found: values.get(found[1], ""), word)
