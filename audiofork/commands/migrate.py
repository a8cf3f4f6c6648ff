"""Rewrites a dialplan from the applications of app_audiofork to those of this package.

What is plain is rewritten, all else stays as it is and is told with its line:

    AudioFork(URL,OPTIONS,COMMAND)      Gosub(audiofork,start,1(URL,OPTIONS,COMMAND))
    StopAudioFork(ID)                   Gosub(audiofork,stop,1(ID))
    ${AUDIOFORK(${VARIABLE},filename)}  ${AUDIOFORK_WSSERVER_${REPLACE(VARIABLE,-,_)}}

In Lua the two become app.UserEvent(): pbx_lua does not come back from a Gosub.
"""

from __future__ import annotations

import bisect
import difflib
import enum
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiofork.errors import RequestRefused
from audiofork.forks.options import parse_options, split_options
from audiofork.forks.urls import check_url

EXIT_DONE = 0
EXIT_FAILED = 1

INCLUDE = "#include extensions_audiofork.conf"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Kind(enum.Enum):
    """The language of a dialplan."""

    CONF = "extensions.conf"
    AEL = "extensions.ael"
    LUA = "extensions.lua"


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


def kind_of(path: Path) -> Kind:
    """Tell the language of a file by its name; what is neither .ael nor .lua is a .conf."""
    return {".ael": Kind.AEL, ".lua": Kind.LUA}.get(path.suffix.lower(), Kind.CONF)


def migrate_text(text: str, kind: Kind) -> Migration:
    """Rewrite all plain uses of app_audiofork in the text of a dialplan.

    Comments stay as they are. What was migrated once is not changed a second time.
    """
    draft = _Draft(text, _without_comments(text, kind))
    if kind is Kind.LUA:
        _rewrite_lua(draft)
        return draft.finish()
    _rewrite_functions(draft)
    first = draft.finish()
    draft = _Draft(first.text, _without_comments(first.text, kind), first.changes)
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


class _NotPlain(Exception):
    """A call cannot be rewritten; the text says why."""


# --- Comments ------------------------------------------------------------------------------------


def _without_comments(text: str, kind: Kind) -> str:
    """Return the text with a blank for each character of a comment; line ends stay."""
    characters = list(text)
    for start, end in _COMMENTS[kind](text):
        for position in range(start, end):
            if characters[position] != "\n":
                characters[position] = " "
    return "".join(characters)


def _conf_comments(text: str) -> Iterator[tuple[int, int]]:
    """Comments as main/config.c finds them: `;`, and nested blocks from `;--` to `--;`."""
    depth, block_start, position = 0, 0, 0
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
            position = _line_end(text, found)
            yield found, position
    if depth:
        yield block_start, len(text)


def _ael_comments(text: str) -> Iterator[tuple[int, int]]:
    """`//` and `/* */`; between parentheses they are text, as the // of a URL is."""
    depth, position = 0, 0
    token = re.compile(r"[()]|//|/\*")
    while match := token.search(text, position):
        position = match.end()
        if match[0] in "()":
            depth = max(0, depth + (1 if match[0] == "(" else -1))
        elif not depth:
            position = _line_end(text, position) if match[0] == "//" else _block_end(text, position)
            yield match.start(), position


def _block_end(text: str, position: int) -> int:
    end = text.find("*/", position)
    return len(text) if end < 0 else end + 2


def _lua_comments(text: str) -> Iterator[tuple[int, int]]:
    for match in _LUA_TOKEN.finditer(text):
        if match.group().startswith("--"):
            yield match.span()


_LUA_LONG = r"\[(?P<{0}>=*)\[.*?(?:\](?P={0})\]|\Z)"
_LUA_STRING = r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
_LUA_TOKEN = re.compile(
    f"--{_LUA_LONG.format('a')}|--[^\n]*|{_LUA_STRING}|{_LUA_LONG.format('b')}", re.DOTALL
)

_COMMENTS: dict[Kind, Callable[[str], Iterator[tuple[int, int]]]] = {
    Kind.CONF: _conf_comments,
    Kind.AEL: _ael_comments,
    Kind.LUA: _lua_comments,
}


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


# --- Arguments, by the rules of ast_app_separate_args (main/app.c) -------------------------------


def _top_level(text: str, delimiters: str) -> list[int]:
    """Return where delimiters stand outside parentheses, brackets and quotes."""
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


def _split(text: str, delimiter: str, most: int) -> list[str]:
    """Split into arguments, without the blanks around them; the last one takes the rest."""
    parts, begin = [], 0
    for position in _top_level(text, delimiter)[: most - 1]:
        parts.append(text[begin:position])
        begin = position + 1
    return [part.strip() for part in [*parts, text[begin:]]]


def _closing(code: str, opening: int, end: int) -> int:
    """Return where the parenthesis at `opening` is closed; Asterisk counts them inside quotes too.

    Raises:
        _NotPlain: It is not closed before `end`.
    """
    depth = 0
    for position in range(opening, end):
        depth += (code[position] == "(") - (code[position] == ")")
        if depth == 0:
            return position
    raise _NotPlain("the parenthesis is not closed")


def _unquoted(text: str) -> str:
    """Return an argument as the application gets it: without quotes and backslashes."""
    return re.sub(r'\\(.?)|"', r"\1", text)


# --- One call ------------------------------------------------------------------------------------


def _gosub(name: str, arguments: str, delimiter: str = ",") -> str:
    """Return what takes the place of AudioFork(arguments) or StopAudioFork(arguments).

    Raises:
        _NotPlain: The arguments are not plain.
    """
    _check_plain(arguments)
    if name.lower() == "stopaudiofork":
        return f"Gosub(audiofork,stop,1({_split(arguments, delimiter, 2)[0]}))"
    parts = _start_arguments(arguments, delimiter)
    parts[2:] = [_literal(part) for part in parts[2:]]
    return f"Gosub(audiofork,start,1({','.join(parts)}))"


def _check_plain(arguments: str) -> None:
    if "\n" in arguments:
        raise _NotPlain("its arguments go over several lines")
    if re.search(r"\\[()\\]", arguments):
        raise _NotPlain("its arguments have an escaped parenthesis or backslash")
    if arguments.replace(r"\"", "").count('"') % 2:
        raise _NotPlain("its arguments have a quote that is not closed")


def _start_arguments(arguments: str, delimiter: str = ",") -> list[str]:
    """Return URL, options and command, as far as they are there; the command as it was written.

    Raises:
        _NotPlain: They are not plain.
    """
    parts = _split(arguments, delimiter, 3)
    if not _unquoted(parts[0]):
        raise _NotPlain("it names no server")
    if delimiter == "," and any(_top_level(part, "|") for part in parts[:2]):
        raise _NotPlain("its arguments have a |, which separates none since Asterisk 1.6")
    parts[1:2] = [_options(part) for part in parts[1:2]]
    while not parts[-1]:
        parts.pop()
    return parts


def _options(text: str) -> str:
    """Return the option string without the quotes that are not part of an option."""
    bare = _unquoted(text).strip()
    if _top_level(bare, ",") or '"' in bare:
        raise _NotPlain("its options have a comma")
    if ";" in bare:
        raise _NotPlain("its options have a semicolon")
    return bare


def _literal(command: str) -> str:
    """Return a command as the shell gets it, but with a backslash before each bare comma.

    AudioFork() took away quotes and one level of backslashes. The Gosub keeps all but the commas.
    """
    text = _unquoted(command)
    if ";" in text:
        raise _NotPlain("its command has a semicolon")
    if text.count('"') % 2 or "\\" in text:
        raise _NotPlain("its command has a lone quote, or a backslash for the shell")
    if not (commas := _top_level(text, ",")):
        return text
    if "'" in text:
        raise _NotPlain("its command has a comma, and single quotes")
    begins = [0, *commas]
    return "\\".join(text[a:b] for a, b in zip(begins, [*commas, len(text)], strict=True))


def _notes_on(name: str, arguments: str, delimiter: str = ",") -> list[str]:
    """Return what differs for a call that was rewritten."""
    if name.lower() == "stopaudiofork":
        if arguments.strip():
            return []
        return ["without an id all forks of the channel end; the module ended the newest alone"]
    url, options, command, *_ = [*_split(arguments, delimiter, 3), "", ""]
    notes = _notes_on_options(_unquoted(options))
    try:
        if "${" not in url:
            check_url(_unquoted(url), ("ws://*", "wss://*"))
    except RequestRefused as exc:
        notes.append(f"this URL is refused: {exc}")
    if command:
        notes.append("a command runs only with [security] allow_post_process = yes")
    if _OF_THE_GOSUB.search(command):
        notes.append(_GOSUB_NOTE)
    return notes


_GOSUB_NOTE = (
    "^{EXTEN}, ^{CONTEXT}, ^{PRIORITY} and ^{ARG1} are those of the Gosub: set a variable before, "
    "and use that"
)
_OF_THE_GOSUB = re.compile(r"\^\{(?:EXTEN|CONTEXT|PRIORITY|ARG\d+)\b")

_DIFFERENCES = {
    "T": "T: certificates are verified; the module verified none. For an authority of your own "
    "set [websocket] ca_list_file or T(ca=/path)",
    "a": "a has no effect, as before",
    "b": "b: audio flows only while the channel is bridged; in the module b had no effect",
    "S": "S keeps time in D(in); D(out) and D(both) always do",
}


def _notes_on_options(options: str) -> list[str]:
    if "${" in options:
        return ["its options hold a variable: see what R, r, T, b and S mean in docs/migration.md"]
    notes = []
    try:
        letters = {letter for letter, _ in split_options(options)}
        parse_options(options)
    except RequestRefused as exc:
        letters = set()
        notes.append(f"these options are refused: {exc}")
    notes += [text for letter, text in _DIFFERENCES.items() if letter in letters]
    if "R" in letters and "r" not in letters:
        notes.append("R without r: r stays 5; the module set it to 15. r(15) keeps that")
    if "r" in letters and "R" not in letters:
        notes.append("r without R: R stays 5; the module set it to 15. R(15) keeps that")
    return notes


# --- extensions.conf and AEL ---------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z]\w*")
_WORD = re.compile(r"(?<![\w/.-])(?:Stop)?AudioFork(?![\w/.-])", re.IGNORECASE)
_FUNCTION = re.compile(r"\$\{AUDIOFORK\(")
_EXTENSION = re.compile(r"[ \t]*(?:exten[ \t]*=>?[^,\n]*,|same[ \t]*=>?)([^,\n]*),", re.IGNORECASE)
_SECTION = re.compile(r"[ \t]*\[([^\]\n]*)\]")


def _rewrite_functions(draft: _Draft) -> None:
    for match in _FUNCTION.finditer(draft.code):
        try:
            closing = _closing(draft.code, match.end() - 1, _line_end(draft.code, match.end()))
            arguments = _split(draft.code[match.end() : closing], ",", 3)
            variable = _VARIABLE.fullmatch(arguments[0])
            if len(arguments) != 2 or not variable or draft.code[closing + 1 : closing + 2] != "}":
                raise _NotPlain("expected ${AUDIOFORK(${VARIABLE},filename)}")
        except _NotPlain as exc:
            hint = "see AUDIOFORK_WSSERVER_<id with _ for -> in docs/migration.md"
            draft.note(match.start(), f"the function AUDIOFORK: {exc}; {hint}", left=True)
            continue
        replacement = f"${{AUDIOFORK_WSSERVER_${{REPLACE({variable[1]},-,_)}}}}"
        draft.replace(match.start(), closing + 2, replacement)


def _rewrite_conf(draft: _Draft) -> None:
    section, position = "", 0
    while position < len(draft.code):
        end = _line_end(draft.code, position)
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
            closing = _closing(draft.code, match.end() - 1, len(draft.code))
        except _NotPlain:
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
        except _NotPlain as exc:
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
        begin, closing = opening + 1, _closing(code, opening, end)
    except _NotPlain:
        return []
    if code[closing + 1 : end].strip():
        return []
    if name != "execif":
        return [(begin, closing)]
    condition = _top_level(code[begin:closing], "?")
    if not condition:
        return []
    begin += condition[0] + 1
    colons = _top_level(code[begin:closing], ":")
    if not colons:
        return [(begin, closing)]
    return [(begin, begin + colons[0]), (begin + colons[0] + 1, closing)]


def _call(draft: _Draft, start: int, name_end: int, end: int, old_forms: bool) -> None:
    """Rewrite AudioFork or StopAudioFork at `start`, which nothing but blanks may follow.

    Raises:
        _NotPlain: Why it cannot be rewritten.
    """
    name, rest = draft.code[start:name_end], draft.code[name_end:end].strip()
    delimiter = ","
    if rest.startswith("("):
        opening = draft.code.index("(", name_end)
        closing = _closing(draft.code, opening, end)
        if draft.code[closing + 1 : end].strip():
            raise _NotPlain("something follows the closing parenthesis")
        arguments = draft.code[opening + 1 : closing]
    elif old_forms and rest[:1] in ("|", ","):
        arguments = rest[1:]
        delimiter = "|" if _top_level(arguments, "|") else ","
    elif not rest:
        arguments = ""
    else:
        raise _NotPlain("expected arguments in parentheses")
    if draft.code[start:end] != draft.text[start:end]:
        raise _NotPlain("a comment stands in it")
    draft.replace(start, end, _gosub(name, arguments, delimiter))
    for text in _notes_on(name, arguments, delimiter):
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
_LUA_ARGUMENT = re.compile(rf"\s*(?:{_LUA_STRING}|{_LUA_LONG.format('c')})\s*(?P<end>[,)])", re.S)
_LUA_FUNCTION = re.compile(r"""\bchannel\s*(?:\.\s*|\[\s*["'])AUDIOFORK\b""")


def _rewrite_lua(draft: _Draft) -> None:
    tokens = [match.span() for match in _LUA_TOKEN.finditer(draft.text)]
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
                raise _NotPlain("a comment stands in it")
            replacement = _lua_event(name, arguments)
        except _NotPlain as exc:
            draft.note(match.start(), str(exc), left=True)
            continue
        draft.replace(match.start(), end, replacement)
        for text in _notes_on(name, arguments):
            if text != _GOSUB_NOTE:
                draft.note(match.start(), text)
    for match in _LUA_FUNCTION.finditer(draft.code):
        hint = 'channel["AUDIOFORK_WSSERVER_" .. id:gsub("-", "_")]:get()'
        draft.note(match.start(), f"the function AUDIOFORK: write {hint}", left=True)


def _lua_arguments(code: str, position: int) -> tuple[int, str]:
    """Return the end of a call and its arguments, joined by commas as pbx_lua joins them."""
    opening = re.compile(r"\s*\(").match(code, position)
    if not opening:
        raise _NotPlain("expected arguments in parentheses")
    position, values = opening.end(), list[str]()
    if empty := re.compile(r"\s*\)").match(code, position):
        return empty.end(), ""
    while match := _LUA_ARGUMENT.match(code, position):
        values.append(_lua_value(match[0][: match.start("end") - match.start()].strip()))
        position = match.end()
        if match["end"] == ")":
            return position, ",".join(values)
    raise _NotPlain("expected plain strings as arguments")


def _lua_value(literal: str) -> str:
    if literal.startswith("["):
        equals = literal.index("[", 1)
        return literal[equals + 1 : -equals - 1].removeprefix("\n")
    if re.search(r"\\[^\"'\\]", literal):
        raise _NotPlain("a string has an escape")
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _lua_event(name: str, arguments: str) -> str:
    """Return the app.UserEvent() in place of a call."""
    _check_plain(arguments)
    if name.lower() == "stopaudiofork":
        fields = ["Command: StopAudioFork"]
        if arguments.strip():
            fields.append(f"AudioForkID: {_split(arguments, ',', 2)[0]}")
    else:
        names = ("WsServer", "Options", "PostProcess")
        values = _start_arguments(arguments)
        if _top_level("".join(values[2:]), ","):
            raise _NotPlain("its command has a comma")
        fields = [f"{n}: {v}" for n, v in zip(names, values, strict=False) if v]
    return f"app.UserEvent({', '.join(_lua_quoted(text) for text in ['AudioFork', *fields])})"


def _lua_quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- Files ---------------------------------------------------------------------------------------


def run(
    paths: Sequence[Path], *, write: bool, say: Callable[[str], None], warn: Callable[[str], None]
) -> int:
    """Show how files would be rewritten, as a diff that `patch` takes, or rewrite them.

    Files are replaced whole and at once, with their mode and owner; no copy of the old one
    stays: the diff turns the new one back (`patch -R`).

    Args:
        paths: The files; each one's language is told by its name.
        write: Whether to change the files.
        say: Takes each line of the diff.
        warn: Takes notes, as file:line: text, and errors.

    Returns:
        EXIT_DONE, or EXIT_FAILED if a file cannot be read or written, or something of the module
        was left in one.
    """
    failed = False
    needs_include = False
    for path in paths:
        try:
            old, result = _migrate_file(path)
            for line in _diff(path, old, result.text):
                say(line)
            if write and result.changes:
                _replace_file(path, _encode(result.text))
        except OSError as exc:
            warn(f"{path}: {exc.strerror or exc}")
            failed = True
            continue
        for note in result.notes:
            warn(f"{path}:{note.line}: {note.text}")
            failed |= note.left
        warn(f"{path}: {_summary(result, write)}")
        needs_include |= "Gosub(audiofork," in result.text and INCLUDE not in result.text
    if needs_include:
        warn(f"extensions.conf needs the line: {INCLUDE}")
    return EXIT_FAILED if failed else EXIT_DONE


def _summary(result: Migration, write: bool) -> str:
    left = sum(note.left for note in result.notes)
    done = "rewritten" if write else "to rewrite, by --write"
    return f"{result.changes} {done}" + (f", {left} left to do by hand" if left else "")


def _migrate_file(path: Path) -> tuple[str, Migration]:
    # Bytes that are not UTF-8 (an old file in Latin-1) come through as they are.
    old = path.read_bytes().decode("utf-8", "surrogateescape")
    return old, migrate_text(old, kind_of(path))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _diff(path: Path, old: str, new: str) -> Iterator[str]:
    lines = difflib.unified_diff(_lines(old), _lines(new), str(path), str(path), lineterm="\n")
    for line in lines:
        printable = _encode(line).decode("utf-8", "replace")
        yield printable.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"


def _lines(text: str) -> list[str]:
    """Split at \\n alone, as Asterisk does; str.splitlines() knows many more line ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _replace_file(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one, or leave the old one as it was.

    Raises:
        OSError: The folder cannot be written to, or the owner cannot be kept.
    """
    target = path.resolve()  # of a link, the file that it names is replaced
    status = target.stat()
    # Asterisk's `#include *.conf` must not see the new file before its time.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
