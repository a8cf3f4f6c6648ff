"""Texts from outside, and errors, as they may be shown to people."""

from __future__ import annotations

MAX_REASON_CHARACTERS = 200


def printable(text: str, stand_in: str) -> str:
    """Return a text with `stand_in` for each character that is not printable.

    The result cannot begin a new line in a log or in AMI, or control a terminal.
    """
    return "".join(character if character.isprintable() else stand_in for character in text)


def harmless(text: str) -> str:
    """Return the beginning of a text as it may stand in one line of a log or an AMI header."""
    return printable(text, "?")[:MAX_REASON_CHARACTERS]


def why(exc: BaseException) -> str:
    """Return the text of an exception; supply one for a timeout, which has none."""
    return str(exc) or ("no answer in time" if isinstance(exc, TimeoutError) else repr(exc))
