"""Rewrites a dialplan in Lua; see `migrate`."""

from __future__ import annotations

import bisect
import re

from audiofork.commands.dialplan import LUA_LONG, LUA_STRING, LUA_TOKEN, NotPlain, split, top_level
from audiofork.commands.migrate_call import GOSUB_NOTE, check_plain, notes_on, start_arguments
from audiofork.commands.migrate_draft import Draft

_LUA_CALL = re.compile(
    r"""\bapp\s*(?:\.\s*(?P<name>\w+)|\[\s*(?P<quote>["'])(?P<quoted>\w+)(?P=quote)\s*\])""",
)
_LUA_ARGUMENT = re.compile(rf"\s*(?:{LUA_STRING}|{LUA_LONG.format('c')})\s*(?P<end>[,)])", re.S)
_LUA_FUNCTION = re.compile(r"""\bchannel\s*(?:\.\s*|\[\s*["'])AUDIOFORK\b""")


def rewrite_lua(draft: Draft) -> None:
    tokens = [match.span() for match in LUA_TOKEN.finditer(draft.text)]
    for match in _LUA_CALL.finditer(draft.code):
        name = match["name"] or match["quoted"]
        if name.lower() not in ("audiofork", "stopaudiofork"):
            continue
        token = bisect.bisect(tokens, (match.start(), 0)) - 1
        if token >= 0 and match.start() < tokens[token][1]:
            continue  # within a string
        try:
            end, arguments = _lua_arguments(draft.code, match.end())
            if draft.has_comment(match.start(), end):
                raise NotPlain("a comment stands in it")
            replacement = _lua_event(name, arguments)
        except NotPlain as exc:
            draft.leave(match.start(), str(exc))
            continue
        draft.replace(match.start(), end, replacement)
        for text in notes_on(name, arguments):
            if text != GOSUB_NOTE:
                draft.note(match.start(), text)
    for match in _LUA_FUNCTION.finditer(draft.code):
        hint = 'channel["AUDIOFORK_WSSERVER_" .. id:gsub("-", "_")]:get()'
        draft.leave(match.start(), f"the function AUDIOFORK: write {hint}")


def _lua_arguments(code: str, position: int) -> tuple[int, str]:
    """Return the end of a call and its arguments, joined by commas as pbx_lua joins them."""
    opening = re.compile(r"\s*\(").match(code, position)
    if not opening:
        raise NotPlain("expected arguments in parentheses")
    position, values = opening.end(), list[str]()
    if empty := re.compile(r"\s*\)").match(code, position):
        return empty.end(), ""
    while match := _LUA_ARGUMENT.match(code, position):
        values.append(_lua_value(match[0][: match.start("end") - match.start()].strip()))
        position = match.end()
        if match["end"] == ")":
            return position, ",".join(values)
    raise NotPlain("expected plain strings as arguments")


def _lua_value(literal: str) -> str:
    if literal.startswith("["):
        equals = literal.index("[", 1)
        return literal[equals + 1 : -equals - 1].removeprefix("\n")
    if re.search(r"\\[^\"'\\]", literal):
        raise NotPlain("a string has an escape")
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _lua_event(name: str, arguments: str) -> str:
    """Return the app.UserEvent() in place of a call."""
    check_plain(arguments)
    if name.lower() == "stopaudiofork":
        fields = ["Command: StopAudioFork"]
        if arguments.strip():
            fields.append(f"AudioForkID: {split(arguments, ',', 2)[0]}")
    else:
        names = ("WsServer", "Options", "PostProcess")
        values = start_arguments(arguments)
        if top_level("".join(values[2:]), ","):
            raise NotPlain("its command has a comma")
        fields = [f"{n}: {v}" for n, v in zip(names, values, strict=False) if v]
    return f"app.UserEvent({', '.join(_lua_quoted(text) for text in ['AudioFork', *fields])})"


def _lua_quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
