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
    """Rewrite calls whose arguments are plain strings, and note all others."""
    strings = _strings(draft.text)
    for match in _LUA_CALL.finditer(draft.code):
        name = match["name"] or match["quoted"]
        if name.lower() in ("audiofork", "stopaudiofork") and not _within(strings, match.start()):
            draft.handled.add(match.start("name" if match["name"] else "quoted"))
            try:
                _rewrite_call(draft, name, match.start(), match.end())
            except NotPlain as exc:
                draft.leave(match.start(), str(exc))
    for match in _LUA_FUNCTION.finditer(draft.code):
        hint = 'channel["AUDIOFORK_WSSERVER_" .. id:gsub("-", "_")]:get()'
        draft.leave(match.start(), f"the function AUDIOFORK: write {hint}")
    _report_the_rest(draft, strings)


def _strings(text: str) -> list[tuple[int, int]]:
    """Return the positions of strings and comments."""
    return [match.span() for match in LUA_TOKEN.finditer(text)]


def _within(spans: list[tuple[int, int]], position: int) -> bool:
    index = bisect.bisect(spans, (position, 0)) - 1
    return index >= 0 and position < spans[index][1]


def _rewrite_call(draft: Draft, name: str, start: int, name_end: int) -> None:
    end, arguments = _lua_arguments(draft.code, name_end)
    if draft.has_comment(start, end):
        raise NotPlain("it contains a comment")
    draft.replace(start, end, _lua_event(name, arguments))
    for text in notes_on(name, arguments):
        if text != GOSUB_NOTE:
            draft.note(start, text)


_WORD = re.compile(r"(?<![\w/-])(?:Stop)?AudioFork\b(?![/-])", re.I)
_OPENING = re.compile(r"\s*\(")
_EVENT = re.compile(r"""UserEvent\s*\(?\s*["']\Z""", re.I)


def _report_the_rest(draft: Draft, strings: list[tuple[int, int]]) -> None:
    """Note other ways to use the applications: app[name], a function of its own, app.Exec()."""
    for match in _WORD.finditer(draft.code):
        start, end = match.span()
        if start in draft.handled or match[0] == "AUDIOFORK":
            continue  # the function is noted where it stands
        before, after = draft.code[max(0, start - 80) : start], draft.code[end : end + 1]
        if not _within(strings, start):
            told = before.rstrip().endswith(".")
        elif _OPENING.match(draft.code, end):
            told = not before.endswith(".")
        else:
            is_whole = before[-1:] in ("'", '"') and after == before[-1:]
            told = is_whole and match[0].endswith("AudioFork") and not _EVENT.search(before)
        if told:
            draft.leave(start, f"{match[0]} is not a plain application call")


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
    """Return the app.UserEvent() that replaces a call."""
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
