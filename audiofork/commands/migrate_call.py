"""Replaces one AudioFork() or StopAudioFork(), and notes what differs then."""

from __future__ import annotations

import re

from audiofork.commands.caller_data import bare_in
from audiofork.commands.dialplan import NotPlain, split, top_level, unquoted
from audiofork.errors import RequestRefused
from audiofork.forks.options import as_the_module, parse_options, split_options
from audiofork.forks.urls import check_url


def gosub(name: str, arguments: str, delimiter: str = ",") -> str:
    """Return the replacement of AudioFork(arguments) or StopAudioFork(arguments).

    Raises:
        NotPlain: The arguments are not plain.
    """
    check_plain(arguments)
    if name.lower() == "stopaudiofork":
        return _gosub_if("stop", split(arguments, delimiter, 2)[0])
    parts = start_arguments(arguments, delimiter)
    parts[2:] = [_literal(part) for part in parts[2:]]
    return _gosub_if("start", ",".join(parts))


def _gosub_if(extension: str, arguments: str) -> str:
    """Return a Gosub that is skipped where the shipped dialplan is not loaded.

    A Gosub to a context that does not exist ends the call. ExecIf() splits only at ? and : outside
    parentheses, and leaves quotes and backslashes unchanged.
    """
    otherwise = ":Log(WARNING,no context audiofork)" if extension == "start" else ""
    exists = f"${{DIALPLAN_EXISTS(audiofork,{extension},1)}}"
    return f"ExecIf({exists}?Gosub(audiofork,{extension},1({arguments})){otherwise})"


def check_plain(arguments: str) -> None:
    """Raise NotPlain for arguments that no rule here covers."""
    if "\n" in arguments:
        raise NotPlain("its arguments span several lines")
    if re.search(r"\\[()\\]", arguments):
        raise NotPlain("its arguments have an escaped parenthesis or backslash")
    if arguments.replace(r"\"", "").count('"') % 2:
        raise NotPlain("its arguments have a quote that is not closed")


def start_arguments(arguments: str, delimiter: str = ",") -> list[str]:
    """Return URL, options and command, as far as given; the command as written.

    Raises:
        NotPlain: They are not plain.
    """
    parts = split(arguments, delimiter, 3)
    if not unquoted(parts[0]):
        raise NotPlain("it names no server")
    if delimiter == "," and any(top_level(part, "|") for part in parts[:2]):
        raise NotPlain(
            "its arguments contain a |, which has not separated arguments since Asterisk 1.6"
        )
    url, options, *command = [*parts, ""] if len(parts) == 1 else parts
    return [url, _options(options), *filter(None, command)]


def _options(text: str) -> str:
    """Return the options without surrounding quotes, with the subprotocol of the module."""
    bare = unquoted(text).strip()
    if top_level(bare, ",") or '"' in bare:
        raise NotPlain("its options have a comma")
    if ";" in bare:
        raise NotPlain("its options have a semicolon")
    try:
        return as_the_module(bare)
    except RequestRefused:
        return bare  # told by notes_on


def _literal(command: str) -> str:
    """Return a command as the shell gets it, but with a backslash before each bare comma.

    AudioFork() removed quotes and one level of backslashes. The Gosub changes only the commas.
    """
    text = unquoted(command)
    if ";" in text:
        raise NotPlain("its command has a semicolon")
    if text.count('"') % 2 or "\\" in text:
        raise NotPlain("its command has a lone quote, or a backslash for the shell")
    if not (commas := top_level(text, ",")):
        return text
    if "'" in text:
        raise NotPlain("its command has a comma, and single quotes")
    begins = [0, *commas]
    return "\\".join(text[a:b] for a, b in zip(begins, [*commas, len(text)], strict=True))


def notes_on(name: str, arguments: str, delimiter: str = ",") -> list[str]:
    """Return notes on what differs for a rewritten call."""
    if name.lower() == "stopaudiofork":
        if arguments.strip():
            return []
        return ["without an id all forks of the channel end; the module ended only the newest"]
    url, options, command, *_ = [*split(arguments, delimiter, 3), "", ""]
    notes = _notes_on_options(unquoted(options))
    try:
        if "${" not in url:
            check_url(unquoted(url), ("ws://*", "wss://*"))
    except RequestRefused as exc:
        notes.append(f"this URL is refused: {exc}")
    for caller in bare_in(arguments):
        notes.append(
            f"a caller may choose {caller} so that a comma in it begins another argument: put it "
            "through URIENCODE(), or the URL into AUDIOFORK_URL"
        )
    if command:
        notes.append("a command runs only with [security] allow_post_process = yes")
    if _OF_THE_GOSUB.search(command):
        notes.append(GOSUB_NOTE)
    return notes


GOSUB_NOTE = (
    "^{EXTEN}, ^{CONTEXT}, ^{PRIORITY} and ^{ARG1} are those of the Gosub: set a variable before, "
    "and use that"
)
_OF_THE_GOSUB = re.compile(r"\^\{(?:EXTEN|CONTEXT|PRIORITY|ARG\d+)\b")

_DIFFERENCES = {
    "T": "T: certificates are verified; the module verified none. For an authority of your own "
    "set [websocket] ca_list_file, or T(ca=NAME) with a file in [security] tls_dir",
    "a": "a has no effect, as before",
    "b": "b: audio flows only while the channel is bridged; in the module b had no effect",
    "S": "S keeps time in D(in); D(out) and D(both) always do",
}


def _notes_on_options(options: str) -> list[str]:
    if "${" in options:
        return [
            "its options contain a variable: see what R, r, T, b and S mean in docs/migration.md"
        ]
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
