"""Rewrites the text of a dialplan; see `migrate`."""

from __future__ import annotations

import re

from audiofork.commands.dialplan import (
    Kind,
    NotPlain,
    closing_of,
    line_end,
    split,
    top_level,
    without_comments,
)
from audiofork.commands.migrate_call import gosub, notes_on
from audiofork.commands.migrate_draft import Draft, Migration
from audiofork.commands.migrate_gone import note_gone
from audiofork.commands.migrate_lua import rewrite_lua

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def migrate_text(text: str, kind: Kind, branch: int | None = None) -> Migration:
    """Rewrite all plain uses of app_audiofork in the text of a dialplan.

    Comments stay unchanged. Calls that were migrated before are not changed again.

    Args:
        text: The dialplan.
        kind: Its language.
        branch: The branch of the Asterisk that runs it, 22 for 22.10.1; None: unknown. Uses of
            what Asterisk 21 no longer has are noted.
    """
    draft = Draft(text, without_comments(text, kind))
    if kind is Kind.LUA:
        rewrite_lua(draft)
        note_gone(draft, kind, branch)
        return draft.finish()
    _rewrite_functions(draft)
    first = draft.finish()
    draft = Draft(first.text, without_comments(first.text, kind), first.changes)
    draft.notes = dict.fromkeys(first.notes)
    if kind is Kind.CONF:
        _rewrite_conf(draft)
    else:
        _rewrite_ael(draft)
    _report_the_rest(draft)
    _note_bare_gosubs(draft)
    note_gone(draft, kind, branch)
    return draft.finish()


# --- extensions.conf and AEL ---------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z]\w*")
_WORD = re.compile(r"(?<![\w/.-])(?:Stop)?AudioFork(?![\w/.-])", re.IGNORECASE)
_FUNCTION = re.compile(r"\$\{AUDIOFORK\(")
# An extension may have commas in brackets or after a backslash (pbx_strsep in pbx_config.c).
_EXTENSION = re.compile(
    r"[ \t]*(?:exten[ \t]*=>?(?:\[[^\]\n]*+\]|\\[^\n]|[^,\n])*+,|same[ \t]*=>?)([^,\n]*+),",
    re.IGNORECASE,
)
_SECTION = re.compile(r"[ \t]*\[([^\]\n]*)\]")


def _rewrite_functions(draft: Draft) -> None:
    for match in _FUNCTION.finditer(draft.code):
        try:
            closing = closing_of(draft.code, match.end() - 1, line_end(draft.code, match.end()))
            arguments = split(draft.code[match.end() : closing], ",", 3)
            variable = _VARIABLE.fullmatch(arguments[0])
            if len(arguments) != 2 or not variable or draft.code[closing + 1 : closing + 2] != "}":
                raise NotPlain("expected ${AUDIOFORK(${VARIABLE},filename)}")
        except NotPlain as exc:
            hint = "see AUDIOFORK_WSSERVER_<id with _ for -> in docs/migration.md"
            draft.leave(match.start(), f"the function AUDIOFORK: {exc}; {hint}")
            continue
        replacement = f"${{AUDIOFORK_WSSERVER_${{REPLACE({variable[1]},-,_)}}}}"
        draft.replace(match.start(), closing + 2, replacement)


def _rewrite_conf(draft: Draft) -> None:
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


def _rewrite_ael(draft: Draft) -> None:
    """Rewrite calls that are statements, and calls inside Exec() and similar statements."""
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
    """Return the last non-blank character before a position; empty if there is none."""
    while position and code[position - 1].isspace():
        position -= 1
    return code[max(0, position - 1) : position]


MAX_WRAPPED = 20  # calls within each other; deeper ones are only noted


def _application(
    draft: Draft, start: int, end: int, *, old_forms: bool = False, levels: int = MAX_WRAPPED
) -> None:
    """Rewrite the application call in code[start:end], or the calls that it wraps."""
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
            draft.leave(start, str(exc))
    elif name in ("exec", "tryexec", "execif") and levels:
        for inner_start, inner_end in _wrapped(draft.code, name, match.end(), end):
            _application(draft, inner_start, inner_end, levels=levels - 1)


def _trim(code: str, start: int, end: int) -> tuple[int, int]:
    inner = code[start:end]
    return start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())


def _wrapped(code: str, name: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return the positions of the applications that Exec(), TryExec() or ExecIf() runs."""
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


def _call(draft: Draft, start: int, name_end: int, end: int, old_forms: bool) -> None:
    """Rewrite AudioFork or StopAudioFork at `start`; only blanks may follow it.

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
    if draft.has_comment(start, end):
        raise NotPlain("it contains a comment")
    draft.replace(start, end, gosub(name, arguments, delimiter))
    for text in notes_on(name, arguments, delimiter):
        draft.note(start, text)


_NAMED_END = re.compile(r"[ \t\r]*(?:[,|);\n]|\Z)")


def _report_the_rest(draft: Draft) -> None:
    """Note each use of the module's names that was not rewritten and is not this package's own."""
    for match in _WORD.finditer(draft.code):
        before = draft.code[max(0, match.start() - 500) : match.start()].rpartition("\n")[2]
        after = draft.code[match.end() : match.end() + 80]
        if match.start() in draft.handled or re.search(
            r"\$\{$|UserEvent\s*\(\s*(?:AudioFork,.*)?$", before, re.I
        ):
            continue
        called = re.match(r"\s*\(", after)
        # The context audiofork, in small letters, is ours.
        named = match[0] in ("AudioFork", "StopAudioFork") and _NAMED_END.match(after)
        if called or (named and re.search(r"(?:^|[,=|?:(;{}])\s*$", before)):
            draft.leave(match.start(), f"{match[0]} is not a plain application call")


_BARE_GOSUB = re.compile(r"(?<!1\)\}\?)\bGosub[ \t]*\([ \t]*audiofork,(start|stop|mute),", re.I)


def _note_bare_gosubs(draft: Draft) -> None:
    """Note each Gosub that was written by hand, or by an earlier version."""
    for match in _BARE_GOSUB.finditer(draft.code):
        exists = f"${{DIALPLAN_EXISTS(audiofork,{match[1].lower()},1)}}"
        instead = f"write ExecIf({exists}?Gosub(...))"
        text = f"ends the call where the context audiofork is missing: {instead}"
        draft.note(match.start(), text)
