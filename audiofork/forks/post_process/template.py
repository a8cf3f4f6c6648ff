"""Puts values of channel variables into a post-process command, so that no shell executes them.

In a command of the configuration each `^{NAME}` is replaced within its argument; no shell is used.
In a shell command a value is never part of the text. Each `^{NAME}` becomes a reference to an
environment variable, with the quotes that its place needs, and a shell does not read the value of
a quoted reference as syntax. So a value may contain anything and arrives unchanged, in one
argument. If the shell itself would evaluate it again (as the name of a command, in `eval`, in
arithmetic and so on) the command is refused. What other programs do with it is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from audiofork.errors import RequestRefused
from audiofork.placeholders import MAX_NAMES, PLACEHOLDER, filled, names_in

SHELL = "/bin/sh"
MAX_COMMAND_BYTES = 4096
VARIABLE = "AUDIOFORK_VAR_{}"  # numbered from 1, in the order of `names`

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=", re.ASCII)
_SIMPLE_EXPANSION = re.compile(r"\$(\{\w+\}|\w|[?$!#@*-])?", re.ASCII)
_MARK = "\0"  # represents a reference in a word; no command contains this character

# Words that may precede the name of a command.
_BEFORE_COMMAND = frozenset(
    "! { } if then elif else while until do time exec command builtin env nohup nice".split()
)
# Commands by which the shell itself evaluates an argument as program or arithmetic.
_EVALUATORS = frozenset("eval let [[ declare typeset local readonly read unset".split())
_EVALUATING_BUILTINS = frozenset(". source alias trap getopts mapfile readarray enable".split())


@dataclass(frozen=True, slots=True)
class PostProcess:
    """A command that is safe to run with any values.

    Attributes:
        argv: The program and its arguments.
        names: The channel variables or functions to read, in order, each once.
        by_environment: Whether the values are passed as environment variables, which a script
            refers to; else each replaces its `^{NAME}` in `argv`.
    """

    argv: tuple[str, ...]
    names: tuple[str, ...]
    by_environment: bool = False

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """Return the program and its arguments, for these values."""
        if self.by_environment:
            return list(self.argv)
        return [filled(word, values) for word in self.argv]

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables for these values."""
        if not self.by_environment:
            return {}
        numbered = enumerate(self.names, 1)
        return {VARIABLE.format(number): values.get(name, "") for number, name in numbered}


def prepare_argv(argv: tuple[str, ...]) -> PostProcess:
    """Return a command of the configuration: a program and its arguments, with `^{NAME}`."""
    return PostProcess(argv, names_in(argv))


def _script(text: str, names: tuple[str, ...] = ()) -> PostProcess:
    return PostProcess((SHELL, "-c", text), names, by_environment=True)


def prepare(command: str) -> PostProcess:
    """Turn a shell command with `^{NAME}` into a script that refers to environment variables.

    Raises:
        RequestRefused: It cannot be made safe; the text says why.
    """
    if not command.isprintable():
        raise _refused("control characters are not allowed")
    if len(command.encode()) > MAX_COMMAND_BYTES:
        raise _refused(f"longer than {MAX_COMMAND_BYTES} bytes")
    if not command.strip():
        raise _refused("empty")
    if "^{" not in command:
        return _script(command)
    try:
        return _Scanner(command).scan()
    except RecursionError:
        raise _refused("nested too deeply") from None


def _refused(why: str) -> RequestRefused:
    return RequestRefused(f"PostProcess: {why}")


class _Scanner:
    """Parses a command as a shell would, and inserts the references.

    If it parsed a command wrongly, a value might be split into several arguments. It would still
    not be executed, because the script contains only names of environment variables.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._text_out: list[str] = []
        self._names: dict[str, int] = {}
        self._words: list[str] = []  # of the simple command, without quotes
        self._word: str | None = None
        self._redirect = False  # the next word names a file

    def scan(self) -> PostProcess:
        """Return the script.

        Raises:
            RequestRefused: As `prepare`.
        """
        self._commands(nested=False)
        return _script("".join(self._text_out), tuple(self._names))

    # --- The text ---

    def _sees(self, *starts: str) -> bool:
        return self._text.startswith(starts, self._at)

    def _take(self, count: int = 1) -> str:
        """Copy the next characters to the script and move past them; return them."""
        taken = self._text[self._at : self._at + count]
        self._text_out.append(taken)
        self._at += count
        return taken

    def _add(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _commands(self, *, nested: bool) -> None:
        """Scan a list of commands, up to the end or its closing parenthesis."""
        depth = 0
        while self._at < len(self._text):
            if self._sees("#") and self._word is None:
                break  # a comment: the command has only one line, so it goes to the end
            if self._sees(")") and nested and not depth:
                self._end_command(nested=True)
                return
            if self._sees("(", ")"):
                depth += 1 if self._sees("(") else -1
            self._step()
        if nested:
            raise _refused("$( is not closed")
        self._end_command()

    def _step(self) -> None:
        if self._sees(" "):
            self._end_word()
            self._take()
        elif self._sees("<", ">"):
            self._begin_redirect()
        elif self._sees("(("):
            raise _refused("no ^{...} together with ((")
        elif self._sees(";", "&", "|", "(", ")"):
            self._end_command()
            self._take()
        elif self._sees("'"):
            self._single_quotes()
        elif self._sees('"'):
            self._double_quotes()
        else:
            self._unquoted()

    def _unquoted(self) -> None:
        if self._sees("^{"):
            self._reference('"${{{}}}"')
        elif self._sees("\\"):
            self._escaped()
        elif self._sees("$'", '$"'):
            raise _refused("no ^{...} together with $' or $\"")
        elif self._sees("$", "`"):
            self._expansion()
        else:
            self._add(self._take())

    def _begin_redirect(self) -> None:
        if self._sees("<<"):
            raise _refused("no ^{...} together with <<")
        if self._word is not None and self._word.isdigit():
            self._word = None  # the number of a file descriptor
        self._end_word()
        self._take(2 if self._sees(">>", ">&", "<&", ">|", "<>") else 1)
        self._redirect = True

    def _single_quotes(self) -> None:
        self._take()
        self._add("")
        while not self._sees("'"):
            if self._sees("^{"):
                self._reference("'\"${{{}}}\"'")
            else:
                self._add(self._some("single quotes"))
        self._take()

    def _double_quotes(self) -> None:
        self._take()
        self._add("")
        while not self._sees('"'):
            if self._sees("^{"):
                self._reference("${{{}}}")
            elif self._sees("\\"):
                self._escaped()
            elif self._sees("$", "`"):
                self._expansion()
            else:
                self._add(self._some("double quotes"))
        self._take()

    def _some(self, where: str) -> str:
        if self._at >= len(self._text):
            raise _refused(f"{where} are not closed")
        return self._take()

    def _escaped(self) -> None:
        if self._sees("\\^{"):
            raise _refused("a backslash before ^{")
        self._add(self._take(2)[1:])

    def _expansion(self) -> None:
        """Scan an expansion: it begins with a dollar or a backquote."""
        if self._sees("`", "$((", "$["):
            raise _refused("no ^{...} together with backquotes or arithmetic; $( ) is possible")
        if self._sees("$("):
            self._substitution()
            return
        simple = _SIMPLE_EXPANSION.match(self._text, self._at)
        assert simple is not None
        if simple[0] == "$" and self._sees("${", "$^{"):
            raise _refused("no ^{...} together with a $ before it, or with more than ${NAME}")
        self._add(self._take(len(simple[0])))

    def _substitution(self) -> None:
        outer = self._words, self._word, self._redirect
        self._words, self._word, self._redirect = [], None, False
        self._take(2)
        self._commands(nested=True)
        self._take()
        self._words, self._word, self._redirect = outer
        self._add("$()")

    def _reference(self, form: str) -> None:
        found = PLACEHOLDER.match(self._text, self._at)
        if found is None:
            raise _refused(f"expected ^{{NAME}}, got {self._text[self._at : self._at + 40]}")
        number = self._names.setdefault(found[1], len(self._names) + 1)
        if number > MAX_NAMES:
            raise _refused(f"more than {MAX_NAMES} different ^{{...}}")
        self._text_out.append(form.format(VARIABLE.format(number)))
        self._at = found.end()
        self._add(_MARK)

    # --- The words ---

    def _end_word(self) -> None:
        if self._word is not None and not self._redirect:
            self._words.append(self._word)
        if self._word is not None:
            self._redirect = False
        self._word = None

    def _end_command(self, *, nested: bool = False) -> None:
        self._end_word()
        if nested and self._words[:1] == ["case"]:
            raise _refused("no ^{...} together with case in $( )")  # whose ) is of a pattern
        _check_command(self._words)
        self._words, self._redirect = [], False


def _check_command(words: list[str]) -> None:
    """Refuse a simple command that would make the shell evaluate a value as a program."""
    skipped = 0
    while skipped < len(words) and _is_before_command(words[skipped], skipped):
        skipped += 1
    if skipped == len(words):
        return
    marked = any(_MARK in word for word in words)
    if _MARK in words[skipped] or (marked and "$" in words[skipped]):
        raise _refused("a ^{...} or a variable cannot name the command")
    names = [word.rpartition("/")[2] for word in words]
    for name in names:
        if marked and name in _EVALUATORS:
            raise _refused(f"no ^{{...}} for {name}, which may run it")
    if marked and names[skipped] in _EVALUATING_BUILTINS:
        raise _refused(f"no ^{{...}} for {names[skipped]}, which may run it")
    if marked and names[skipped] in ("test", "[", "printf") and {"-v", "-R"} & set(words):
        raise _refused(f"no ^{{...}} for {names[skipped]} -v, which may run it")


def _is_before_command(word: str, place: int) -> bool:
    if word.startswith("-"):  # an option of `env` or `command`
        return place > 0
    return word in _BEFORE_COMMAND or _ASSIGNMENT.match(word) is not None
