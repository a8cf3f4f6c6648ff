"""The option string of a fork: Asterisk's grammar, our letters.

The grammar is that of ast_app_parse_options (main/app.c): each letter may have an argument in
parentheses. Parentheses nest; an argument that begins with a quote may hold any of them inside
quotes; a backslash outside quotes takes the next character as it is. Of a letter that comes
twice, the last one stands. Blanks between options mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from audiofork.errors import RequestRefused
from audiofork.model import Direction

MAX_OPTIONS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """What the option string of a request says, with the defaults filled in."""

    direction: Direction = Direction.BOTH


def parse_options(text: str) -> Options:
    """Parse an option string such as `D(in)`.

    Raises:
        RequestRefused: A letter is unknown, or an argument is missing or not allowed.
    """
    options = Options()
    for letter, argument in split_options(text):
        parser = _PARSERS.get(letter)
        if parser is None:
            raise RequestRefused(f"Options: unknown option {letter!r}")
        options = parser(options, argument)
    return options


def split_options(text: str) -> list[tuple[str, str | None]]:
    """Cut an option string into letters and arguments.

    Returns:
        Pairs in the order of the string; the argument is None where there are no parentheses.

    Raises:
        RequestRefused: The string is too long, or a parenthesis is not closed.
    """
    if len(text.encode(errors="replace")) > MAX_OPTIONS_BYTES:
        raise RequestRefused(f"Options: longer than {MAX_OPTIONS_BYTES} bytes")
    pairs: list[tuple[str, str | None]] = []
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        argument = None
        if text[position : position + 1] == "(":
            argument, position = _argument(letter, text, position + 1)
        if not letter.isspace():
            pairs.append((letter, argument))
        elif argument is not None:
            raise RequestRefused("Options: an argument without a letter")
    return pairs


def _argument(letter: str, text: str, start: int) -> tuple[str, int]:
    """Return the argument that begins at `start`, and the position behind its parenthesis."""
    quotes_count = text[start : start + 1] == '"'
    quoted = False
    depth = 1
    kept: list[str] = []
    position = start
    while position < len(text):
        character = text[position]
        position += 1
        if character == '"' and quotes_count:
            quoted = not quoted
        elif character == "\\":
            following = text[position : position + 1]
            if quoted and following != '"':
                kept.append(character)
            kept.append(following)
            position += 1
        else:
            if not quoted:
                depth += (character == "(") - (character == ")")
            if depth == 0:
                return "".join(kept), position
            kept.append(character)
    raise RequestRefused(f"Options: missing closing parenthesis of option {letter!r}")


def _direction(options: Options, argument: str | None) -> Options:
    try:
        direction = Direction((argument or "").strip().lower())
    except ValueError:
        given = repr(argument) if argument else "nothing"
        raise RequestRefused(f"Options: D takes in, out, both or stereo, not {given}") from None
    return replace(options, direction=direction)


_PARSERS: dict[str, Callable[[Options, str | None], Options]] = {"D": _direction}
