"""Rewrites the text of a dialplan; see `migrate`."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field

from audiofork.commands.dialplan import (
    LUA_LONG,
    LUA_STRING,
    LUA_TOKEN,
    Kind,
    NotPlain,
    closing_of,
    line_end,
    split,
    top_level,
    without_comments,
)
from audiofork.commands.migrate_call import (
    GOSUB_NOTE,
    check_plain,
    gosub,
    notes_on,
    start_arguments,
)

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know about a line.

    Attributes:
        line: Its number, from 1.
        text: What there is to know.
        left: Whether something of the module stays on the line that has to be changed by hand.
    """

    line: int
    text: str
    left: bool = False


@dataclass(frozen=True, slots=True)
class Migration:
    """What came of a text; `changes` counts the calls that were rewritten."""

    text: str
    notes: tuple[Note, ...]
    changes: int


def migrate_text(text: str, kind: Kind) -> Migration:
    """Rewrite all plain uses of app_audiofork in the text of a dialplan.

    Comments stay as they are. What was migrated once is not changed a second time.
    """
    draft = _Draft(text, without_comments(text, kind))
    if kind is Kind.LUA:
        _rewrite_lua(draft)
        return draft.finish()
    _rewrite_functions(draft)
    first = draft.finish()
    draft = _Draft(first.text, without_comments(first.text, kind), first.changes)
    draft.notes = dict.fromkeys(first.notes)
    if kind is Kind.CONF:
        _rewrite_conf(draft)
    else:
        _rewrite_ael(draft)
    _report_the_rest(draft)
    return draft.finish()


@dataclass(slots=True)
class _Draft:
    """A text, the edits it is to get, and what was noted of it.

    Attributes:
        code: The text with blanks in place of comments; the same positions.
        edits: Start, end, replacement; they do not overlap.
        notes: In the order they were made, each once.
        handled: Positions of the application names that were rewritten or noted.
    """

    text: str
    code: str
    changes: int = 0
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    notes: dict[Note, None] = field(default_factory=dict)
    handled: set[int] = field(default_factory=set)
    line_ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.line_ends = [match.start() for match in re.finditer("\n", self.text)]

    def replace(self, start: int, end: int, replacement: str) -> None:
        self.edits.append((start, end, replacement))

    def note(self, position: int, text: str, *, left: bool = False) -> None:
        line = bisect.bisect_left(self.line_ends, position) + 1
        self.notes[Note(line, f"left as it is: {text}" if left else text, left)] = None

    def finish(self) -> Migration:
        parts, position = [], 0
        for start, end, replacement in sorted(self.edits):
            parts += [self.text[position:start], replacement]
            position = end
        parts.append(self.text[position:])
        notes = tuple(sorted(self.notes, key=lambda note: note.line))
        return Migration("".join(parts), notes, self.changes + len(self.edits))


# --- extensions.conf and AEL ---------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z]\w*")
_WORD = re.compile(r"(?<![\w/.-])(?:Stop)?AudioFork(?![\w/.-])", re.IGNORECASE)
_FUNCTION = re.compile(r"\$\{AUDIOFORK\(")
_EXTENSION = re.compile(r"[ \t]*(?:exten[ \t]*=>?[^,\n]*,|same[ \t]*=>?)([^,\n]*),", re.IGNORECASE)
_SECTION = re.compile(r"[ \t]*\[([^\]\n]*)\]")


def _rewrite_functions(draft: _Draft) -> None:
    for match in _FUNCTION.finditer(draft.code):
        try:
            closing = closing_of(draft.code, match.end() - 1, line_end(draft.code, match.end()))
            arguments = split(draft.code[match.end() : closing], ",", 3)
            variable = _VARIABLE.fullmatch(arguments[0])
            if len(arguments) != 2 or not variable or draft.code[closing + 1 : closing + 2] != "}":
                raise NotPlain("expected ${AUDIOFORK(${VARIABLE},filename)}")
        except NotPlain as exc:
            hint = "see AUDIOFORK_WSSERVER_<id with _ for -> in docs/migration.md"
            draft.note(match.start(), f"the function AUDIOFORK: {exc}; {hint}", left=True)
            continue
        replacement = f"${{AUDIOFORK_WSSERVER_${{REPLACE({variable[1]},-,_)}}}}"
        draft.replace(match.start(), closing + 2, replacement)


def _rewrite_conf(draft: _Draft) -> None:
    section, position = "", 0
    while position < len(draft.code):
        end = line_end(draft.code, position)
        if match := _SECTION.match(draft.code, position, end):
            section = match[1]
            if section == "audiofork" and "UserEvent(AudioFork" not in draft.code:
                draft.note(position, "the shipped dialplan has a context of this name: rename it")
        elif match := _EXTENSION.match(draft.code, position, end):
            changes = len(draft.edits)
            if match[1].strip().lower() != "hint":
                _application(draft, match.end(), end, old_forms=True)
            if section.startswith("macro-") and len(draft.edits) > changes:
                draft.note(position, _MACRO)
        position = end + 1


_MACRO = (
    "in a macro: Asterisk 21 and later have none; Dial's U(context) in place of M(macro) runs "
    "a Gosub, or fork the caller's channel with D(in)"
)


def _rewrite_ael(draft: _Draft) -> None:
    """Rewrite calls that are statements, and those that Exec() and its like run as such."""
    depth, position = 0, 0
    for match in _AEL_CALL.finditer(draft.code):
        between = draft.code[position : match.start()]
        depth += between.count("(") - between.count(")")
        position = match.start()
        if depth or not _begins_statement(draft.code, position):
            continue
        try:
            closing = closing_of(draft.code, match.end() - 1, len(draft.code))
        except NotPlain:
            continue  # told by _report_the_rest
        if re.compile(r"\s*;").match(draft.code, closing + 1):
            _application(draft, position, closing + 1)


_AEL_CALL = re.compile(
    r"(?<![\w.])(?:AudioFork|StopAudioFork|ExecIf|TryExec|Exec)\s*\(", re.IGNORECASE
)


def _begins_statement(code: str, position: int) -> bool:
    before = _last(code, position)
    return (
        not before
        or before in "{};:)>"
        or bool(_ELSE.search(code, max(0, position - 80), position))
    )


_ELSE = re.compile(r"\belse\s+\Z")


def _last(code: str, position: int) -> str:
    """Return the last character before a position that is no blank, or nothing."""
    while position and code[position - 1].isspace():
        position -= 1
    return code[max(0, position - 1) : position]


def _application(draft: _Draft, start: int, end: int, *, old_forms: bool = False) -> None:
    """Rewrite the application call that code[start:end] is, or those that it wraps."""
    start, end = _trim(draft.code, start, end)
    match = _NAME.match(draft.code, start, end)
    if not match:
        return
    name = match[0].lower()
    if name in ("audiofork", "stopaudiofork"):
        draft.handled.add(start)
        try:
            _call(draft, start, match.end(), end, old_forms)
        except NotPlain as exc:
            draft.note(start, str(exc), left=True)
    elif name in ("exec", "tryexec", "execif"):
        for inner_start, inner_end in _wrapped(draft.code, name, match.end(), end):
            _application(draft, inner_start, inner_end)


def _trim(code: str, start: int, end: int) -> tuple[int, int]:
    inner = code[start:end]
    return start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())


def _wrapped(code: str, name: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return where the applications stand that Exec(), TryExec() or ExecIf() runs."""
    opening = code.find("(", start, end)
    if opening < 0 or code[start:opening].strip():
        return []
    try:
        begin, closing = opening + 1, closing_of(code, opening, end)
    except NotPlain:
        return []
    if code[closing + 1 : end].strip():
        return []
    if name != "execif":
        return [(begin, closing)]
    condition = top_level(code[begin:closing], "?")
    if not condition:
        return []
    begin += condition[0] + 1
    colons = top_level(code[begin:closing], ":")
    if not colons:
        return [(begin, closing)]
    return [(begin, begin + colons[0]), (begin + colons[0] + 1, closing)]


def _call(draft: _Draft, start: int, name_end: int, end: int, old_forms: bool) -> None:
    """Rewrite AudioFork or StopAudioFork at `start`, which nothing but blanks may follow.

    Raises:
        NotPlain: Why it cannot be rewritten.
    """
    name, rest = draft.code[start:name_end], draft.code[name_end:end].strip()
    delimiter = ","
    if rest.startswith("("):
        opening = draft.code.index("(", name_end)
        closing = closing_of(draft.code, opening, end)
        if draft.code[closing + 1 : end].strip():
            raise NotPlain("something follows the closing parenthesis")
        arguments = draft.code[opening + 1 : closing]
    elif old_forms and rest[:1] in ("|", ","):
        arguments = rest[1:]
        delimiter = "|" if top_level(arguments, "|") else ","
    elif not rest:
        arguments = ""
    else:
        raise NotPlain("expected arguments in parentheses")
    if draft.code[start:end] != draft.text[start:end]:
        raise NotPlain("a comment stands in it")
    draft.replace(start, end, gosub(name, arguments, delimiter))
    for text in notes_on(name, arguments, delimiter):
        draft.note(start, text)


_NAMED_END = re.compile(r"[ \t\r]*(?:[,|);\n]|\Z)")


def _report_the_rest(draft: _Draft) -> None:
    """Note each use of the words that was not rewritten, and is none of this package's own."""
    for match in _WORD.finditer(draft.code):
        line_start = draft.code.rfind("\n", 0, match.start()) + 1
        before = draft.code[max(line_start, match.start() - 500) : match.start()]
        after = draft.code[match.end() : match.end() + 80]
        if match.start() in draft.handled or re.search(
            r"\$\{$|UserEvent\s*\(\s*(?:AudioFork,.*)?$", before, re.I
        ):
            continue
        called = re.match(r"\s*\(", after)
        # The context audiofork, in small letters, is ours.
        named = match[0] in ("AudioFork", "StopAudioFork") and _NAMED_END.match(after)
        if called or (named and re.search(r"(?:^|[,=|?:(;{}])\s*$", before)):
            draft.note(match.start(), f"{match[0]} is not a plain application call", left=True)


# --- Lua -----------------------------------------------------------------------------------------

_LUA_CALL = re.compile(
    r"""\bapp\s*(?:\.\s*(?P<name>\w+)|\[\s*(?P<quote>["'])(?P<quoted>\w+)(?P=quote)\s*\])""",
)
_LUA_ARGUMENT = re.compile(rf"\s*(?:{LUA_STRING}|{LUA_LONG.format('c')})\s*(?P<end>[,)])", re.S)
_LUA_FUNCTION = re.compile(r"""\bchannel\s*(?:\.\s*|\[\s*["'])AUDIOFORK\b""")


def _rewrite_lua(draft: _Draft) -> None:
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
            if draft.code[match.start() : end] != draft.text[match.start() : end]:
                raise NotPlain("a comment stands in it")
            replacement = _lua_event(name, arguments)
        except NotPlain as exc:
            draft.note(match.start(), str(exc), left=True)
            continue
        draft.replace(match.start(), end, replacement)
        for text in notes_on(name, arguments):
            if text != GOSUB_NOTE:
                draft.note(match.start(), text)
    for match in _LUA_FUNCTION.finditer(draft.code):
        hint = 'channel["AUDIOFORK_WSSERVER_" .. id:gsub("-", "_")]:get()'
        draft.note(match.start(), f"the function AUDIOFORK: write {hint}", left=True)


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
