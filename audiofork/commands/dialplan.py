"""Parses the text of a dialplan: its comments, and the arguments of an application."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_DIALPLAN_BYTES = 16 << 20


class Kind(enum.Enum):
    """The language of a dialplan."""

    CONF = "extensions.conf"
    AEL = "extensions.ael"
    LUA = "extensions.lua"


def kind_of(path: Path, text: str, included_by: Kind | None = None) -> Kind:
    """Return the language of a file, by its content or, if that is unclear, by what includes it.

    Args:
        path: Its name decides if nothing includes the file: if it ends neither in .ael nor in
            .lua, the file is a .conf.
        text: The content.
        included_by: The language of the file that includes it.
    """
    found = [kind for kind, mark in _MARKS.items() if mark.search(without_comments(text, kind))]
    if len(found) == 1:
        return found[0]
    by_name = {".ael": Kind.AEL, ".lua": Kind.LUA}.get(path.suffix.lower(), Kind.CONF)
    return included_by or by_name


# The beginnings of lines that only this language has.
_MARKS = {
    Kind.CONF: re.compile(
        r"^[ \t]*(?:\[[^\[\]\"'\n]+\][ \t]*(?:\([^)\n]*\)[ \t]*)?\r?$"
        r"|(?:exten|same)[ \t]*=>?[ \t]*\S)",
        re.M | re.I,
    ),
    Kind.AEL: re.compile(
        r"^[ \t]*(?:(?:abstract|extend)[ \t]+)*"
        r"(?:context[ \t]+[\w-]+|macro[ \t]+[\w-]+[ \t]*\([^)\n]*\)|globals)\s*\{",
        re.M,
    ),
    Kind.LUA: re.compile(
        r"^[ \t]*(?:local[ \t]+\w|(?:local[ \t]+)?function[ \t(]|\w+[ \t]*=[ \t]*\{|app[ \t]*[.\[])"
        r"|^[ \t]*\[[\"'][^\n]*\][ \t]*=",
        re.M,
    ),
}


BYTE_ORDER_MARK = "\ufeff"  # Asterisk skips it at the beginning of a .conf file


class NotPlain(Exception):
    """A call cannot be rewritten; the text says why."""


def line_end(text: str, position: int) -> int:
    """Return where the line of a position ends."""
    end = text.find("\n", position)
    return len(text) if end < 0 else end


# --- Comments ------------------------------------------------------------------------------------


def without_comments(text: str, kind: Kind) -> str:
    """Return the text with each character of a comment replaced by a blank; line ends stay."""
    parts, position = [], 0
    for start, end in _COMMENTS[kind](text):
        parts += [text[position:start], re.sub(r"[^\n]", " ", text[start:end])]
        position = end
    return "".join([*parts, text[position:]])


def _conf_comments(text: str) -> Iterator[tuple[int, int]]:
    """Yield comments as main/config.c finds them: `;`, and nested blocks from `;--` to `--;`."""
    depth, block_start, position = 0, 0, 0
    if text.startswith(BYTE_ORDER_MARK):
        yield 0, 1
    while (found := text.find(";", position)) >= 0:
        begin, position = position, found + 1
        if text.endswith("\\", begin, found):
            continue
        if text.startswith(";--", found) and not text.startswith(";---", found):
            block_start = block_start if depth else found
            depth += 1
            position = found + 3
        elif depth and text.endswith("--", begin, found):
            depth -= 1
            if not depth:
                yield block_start, position
        elif not depth:
            position = line_end(text, found)
            yield found, position
    if depth:
        yield block_start, len(text)


def _ael_comments(text: str) -> Iterator[tuple[int, int]]:
    """Yield `//` and `/* */`; between parentheses they are text, such as the // of a URL."""
    depth, position = 0, 0
    token = re.compile(r"[()]|//|/\*")
    while match := token.search(text, position):
        position = match.end()
        if match[0] in "()":
            depth = max(0, depth + (1 if match[0] == "(" else -1))
        elif not depth:
            position = line_end(text, position) if match[0] == "//" else _block_end(text, position)
            yield match.start(), position


def _block_end(text: str, position: int) -> int:
    end = text.find("*/", position)
    return len(text) if end < 0 else end + 2


def _lua_comments(text: str) -> Iterator[tuple[int, int]]:
    for match in LUA_TOKEN.finditer(text):
        if match.group().startswith("--"):
            yield match.span()


LUA_LONG = r"\[(?P<{0}>=*)\[.*?(?:\](?P={0})\]|\Z)"
LUA_STRING = r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
LUA_TOKEN = re.compile(
    f"--{LUA_LONG.format('a')}|--[^\n]*|{LUA_STRING}|{LUA_LONG.format('b')}", re.DOTALL
)

_COMMENTS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    Kind.CONF: _conf_comments,
    Kind.AEL: _ael_comments,
    Kind.LUA: _lua_comments,
}


# --- Arguments, by the rules of ast_app_separate_args (main/app.c) -------------------------------


def top_level(text: str, delimiters: str) -> list[int]:
    """Return the positions of delimiters outside parentheses, brackets and quotes."""
    parentheses = brackets = 0
    quoted = False
    found = []
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == '"':
            quoted = not quoted
        elif character in delimiters and not (parentheses or brackets or quoted):
            found.append(position)
        else:
            parentheses = max(0, parentheses + (character == "(") - (character == ")"))
            brackets = max(0, brackets + (character == "[") - (character == "]"))
        position += 1
    return found


def split(text: str, delimiter: str, most: int) -> list[str]:
    """Split a text into arguments, without the blanks around them; the last one gets the rest."""
    parts, begin = [], 0
    for position in top_level(text, delimiter)[: most - 1]:
        parts.append(text[begin:position])
        begin = position + 1
    return [part.strip() for part in [*parts, text[begin:]]]


def closing_of(code: str, opening: int, end: int) -> int:
    """Return where the parenthesis at `opening` is closed; Asterisk counts them inside quotes too.

    Raises:
        NotPlain: It is not closed before `end`, or not within MAX_LINE_CHARACTERS.
    """
    depth = 0
    for match in _PARENTHESIS.finditer(code, opening, min(end, opening + MAX_LINE_CHARACTERS)):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise NotPlain("the parenthesis is not closed")


_PARENTHESIS = re.compile(r"[()]")
MAX_LINE_CHARACTERS = 8192  # the most that Asterisk reads of a line


def unquoted(text: str) -> str:
    """Return an argument as the application gets it: without quotes and backslashes."""
    return re.sub(r'\\(.?)|"', r"\1", text)
