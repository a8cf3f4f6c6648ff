"""Texts from outside, and errors, as they may be shown to people."""

from __future__ import annotations


def printable(text: str, stand_in: str) -> str:
    """Return a text with `stand_in` for each character that is not printable.

    What is left can neither begin a new line, in a log or in AMI, nor command a terminal.
    """
    return "".join(character if character.isprintable() else stand_in for character in text)


def why(exc: BaseException) -> str:
    """Return what an exception says; a timeout says nothing of its own."""
    return str(exc) or ("no answer in time" if isinstance(exc, TimeoutError) else repr(exc))
