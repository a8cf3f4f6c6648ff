"""`^{NAME}` in commands: stands for the value of a channel's variable or function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_NAMES = 64

# A variable, perhaps with :offset:length, or a function with arguments: `CALLERID(num)`.
PLACEHOLDER = re.compile(r"\^\{([\w.~:-]{1,100}(?:\([^(){}^]{0,200}\))?)\}", re.ASCII)


def names_in(words: Iterable[str]) -> tuple[str, ...]:
    """Return the names that words have placeholders for, in order, each once.

    Raises:
        ValueError: There are too many, or what begins like a placeholder is none; the text says
            what would be right, as the rest of a sentence that begins with "expected".
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
    """Return a word with values in place of its placeholders, which may hold anything.

    What looks like a placeholder in a value is none.

    Args:
        word: One that `names_in` takes.
        values: By name; one that is missing is empty.
    """
    return PLACEHOLDER.sub(lambda found: values.get(found[1], ""), word)
