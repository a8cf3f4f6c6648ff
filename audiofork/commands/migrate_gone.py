"""Reports what Asterisk 21 no longer has: macros, whatever runs them, and chan_sip."""

from __future__ import annotations

import re
from collections.abc import Iterator

from audiofork.commands.dialplan import Kind, NotPlain, closing_of, line_end, split, unquoted
from audiofork.commands.migrate_draft import Draft

WITHOUT_MACROS = 21  # the first branch that has neither app_macro nor chan_sip
MAX_ARGUMENTS = 50


def note_gone(draft: Draft, kind: Kind, branch: int | None) -> None:
    """Note each use of a macro, and of chan_sip if Asterisk may lack it.

    Args:
        draft: Gets the notes.
        kind: The language.
        branch: The branch of the Asterisk that runs the dialplan; None: unknown.
    """
    has_gone = branch is None or branch >= WITHOUT_MACROS
    for position, text in _macros(draft.code, kind):
        draft.note(position, text, left=has_gone)
    if has_gone:
        for position, text in _chan_sip(draft.code):
            draft.note(position, text, left=True)


# --- Macros --------------------------------------------------------------------------------------

_APPLICATIONS = r"Dial|RetryDial|Queue|Macro|MacroExclusive|MacroIf|MacroExit"
_CALL = re.compile(
    rf"(?:^|(?<=[,?:(){{}};>|\s]))(?<!\$\{{)(?P<name>{_APPLICATIONS})[ \t]*\(", re.I | re.M
)
_LUA_CALL = re.compile(
    rf"""\bapp\s*(?:\.\s*|\[\s*["'])(?P<name>{_APPLICATIONS})(?:["']\s*\])?\s*\(""",
    re.I,
)
# Options of Dial() in a variable: Set(DIAL_OPTIONS=tM(x)), or a global variable.
_ASSIGNED = re.compile(
    r"(?:^|(?<=[\s.(,]))(?:_{0,2}GLOBAL\([ \t]*)?(?P<variable>\w++)\)?"
    r"[ \t]*=>?[ \t]*[\"']?(?=(?P<value>[^\s\"']{1,500}))",
    re.M,
)
_ARGUMENT_OF_OPTIONS = {"dial": 2, "retrydial": 5}
_ARGUMENT_OF_MACRO = 6  # of Queue()


def _macros(code: str, kind: Kind) -> Iterator[tuple[int, str]]:
    for match in (_LUA_CALL if kind is Kind.LUA else _CALL).finditer(code):
        name = match["name"]
        arguments = _arguments(code, match, kind)
        if name.lower().startswith("macro"):
            yield match.start(), _instead_of_macro(name, arguments)
        elif name.lower() == "queue":
            yield from _of_queue(code, match.start(), arguments)
        else:
            options = arguments[_ARGUMENT_OF_OPTIONS[name.lower()] :][:1]
            yield from _of_options(match.start(), f"{name}()", *options)
    for match in _ASSIGNED.finditer(code):
        if "OPT" in match["variable"]:
            yield from _of_options(match.start(), "these options", match["value"])


def _arguments(code: str, match: re.Match[str], kind: Kind) -> list[str]:
    """Return the arguments of a call; a single empty one if it does not end."""
    start = match.end()
    try:
        end = closing_of(
            code, start - 1, len(code) if kind is not Kind.CONF else line_end(code, start)
        )
    except NotPlain:
        return [""]
    text = code[start:end]
    if kind is Kind.LUA:  # what its strings hold is joined by commas
        text = ",".join(one.strip("\"'") for one in split(text, ",", MAX_ARGUMENTS))
    return split(text, ",", MAX_ARGUMENTS)


_NO_MACROS = "Asterisk 21 and later have no macros"


def _instead_of_macro(name: str, arguments: list[str]) -> str:
    macro, *rest = arguments
    if name.lower() == "macroexit":
        return f"{name}(): {_NO_MACROS}: write Return()"
    if name.lower() == "macroif":
        return f"{name}(): {_NO_MACROS}: write GosubIf(), and {_RETURN}"
    given = f"({','.join(rest)})" if rest else ""
    return (
        f"{name}({macro}): {_NO_MACROS}: write Gosub(macro-{macro},s,1{given}), and let each way "
        f"through [macro-{macro}] end with Return()"
    )


_RETURN = "let each way through the macro's context end with Return()"


def _of_queue(code: str, position: int, arguments: list[str]) -> Iterator[tuple[int, str]]:
    macro = unquoted("".join(arguments[_ARGUMENT_OF_MACRO:][:1]))
    if not macro or macro.startswith("macro-") or f"[{macro}]" in code:
        return  # there is none, or it is the context of a Gosub
    yield (
        position,
        f"the macro {macro} of Queue(): {_NO_MACROS}: this argument is a Gosub's context there: "
        f"write macro-{macro} (before Asterisk 21 as the argument after it), and {_RETURN}",
    )


def _of_options(position: int, where: str, options: str = "") -> Iterator[tuple[int, str]]:
    macro = macro_of_options(options)
    if macro is None:
        return
    context = f"macro-{macro.partition('^')[0]}"
    yield (
        position,
        f"M({macro}) of {where}: {_NO_MACROS}: write U(macro-{macro}), and let each way through "
        f"[{context}] end with Return(); MACRO_RESULT is called GOSUB_RESULT there",
    )


def macro_of_options(options: str) -> str | None:
    """Return the argument of option M of Dial(), whatever other options it has."""
    masked, count = options, 1
    while count:
        masked, count = _SUBSTITUTED.subn(lambda match: "_" * len(match[0]), masked)
    position = 0
    while (opening := masked.find("(", position)) >= 0:
        try:
            closing = closing_of(masked, opening, len(masked))
        except NotPlain:
            return None
        if masked[:opening].endswith("M"):
            return options[opening + 1 : closing]
        position = closing + 1
    return None


_SUBSTITUTED = re.compile(r"\$\{[^{}]*\}|\$\[[^\[\]]*\]")  # an innermost one


# --- chan_sip ------------------------------------------------------------------------------------

_CHANNEL = re.compile(r"(?<![\w/.:@-])SIP/(?!2\.0)(?=[\w$+*]|[\"']\s*\.\.)[^\s,&()|\"';]*")
_OF_CHAN_SIP = re.compile(
    r"\b(SIPAddHeader|SIPRemoveHeader|SIPDtmfMode|SIPSendCustomINFO"
    r"|SIP_HEADERS?|SIPPEER|SIPCHANINFO|CHECKSIPDOMAIN)[ \t]*\("
)


def _chan_sip(code: str) -> Iterator[tuple[int, str]]:
    for match in _CHANNEL.finditer(code):
        instead = f"write PJ{match[0]}, a channel of chan_pjsip"
        yield match.start(), f"{match[0]}: Asterisk 21 and later have no chan_sip: {instead}"
    for match in _OF_CHAN_SIP.finditer(code):
        instead = "chan_pjsip has its own, as PJSIP_HEADER()"
        yield match.start(), f"{match[1]}(): Asterisk 21 and later have no chan_sip: {instead}"
