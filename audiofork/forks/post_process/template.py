"""What a post-process command may be, and how values of channel variables come into it.

A value is never a part of the shell's text. Each `^{NAME}` becomes a reference to an environment
variable, quoted for the place where it stands, and a shell does not read the result of such a
reference as syntax. So a value can hold anything; it arrives as it is, within one argument. What
would read it as a program after all (`eval`, `sh -c`, arithmetic and their like) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from audiofork.errors import RequestRefused

MAX_COMMAND_BYTES = 4096
MAX_VALUES = 64
VARIABLE = "AUDIOFORK_VAR_{}"  # from 1, in the order of `names`

# A variable, perhaps with :offset:length, or a function with arguments: `CALLERID(num)`.
_REFERENCE = re.compile(r"\^\{([\w.~:-]{1,100}(?:\([^(){}^]{0,200}\))?)\}", re.ASCII)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=", re.ASCII)
_SIMPLE_EXPANSION = re.compile(r"\$(\{\w+\}|\w|[?$!#@*-])?", re.ASCII)
_MARK = "\0"  # stands for a reference in a word; no command has this character

# What may stand before the name of a command.
_BEFORE_COMMAND = frozenset(
    "! { } if then elif else while until do time exec command builtin env nohup nice".split()
)
# These run their arguments as a program, here or elsewhere, or evaluate them, in some shell.
_EVALUATORS = frozenset("eval ssh su let [[ declare typeset local readonly read unset".split())
_EVALUATING_BUILTINS = frozenset(". source alias trap getopts mapfile readarray enable".split())
_SHELLS = frozenset("sh ash bash dash ksh mksh zsh csh tcsh fish".split())


@dataclass(frozen=True, slots=True)
class PostProcess:
    """A command that is safe to run with any values.

    Attributes:
        script: For /bin/sh -c; refers to the values as environment variables.
        names: The channel variables or functions to read, in order, each once.
    """

    script: str
    names: tuple[str, ...]


def prepare(command: str) -> PostProcess:
    """Turn a command with `^{NAME}` in it into a script that refers to values.

    Raises:
        RequestRefused: It cannot be made safe; the text says what is in the way.
    """
    if not command.isprintable():
        raise _refused("control characters are not allowed")
    if len(command.encode()) > MAX_COMMAND_BYTES:
        raise _refused(f"longer than {MAX_COMMAND_BYTES} bytes")
    if not command.strip():
        raise _refused("empty")
    if "^{" not in command:
        return PostProcess(command, ())
    try:
        return _Scanner(command).scan()
    except RecursionError:
        raise _refused("nested too deeply") from None


def _refused(why: str) -> RequestRefused:
    return RequestRefused(f"PostProcess: {why}")


class _Scanner:
    """Goes through a command as a shell would, and puts references in.

    Only that a value arrives whole depends on what is understood here, never that it is not
    executed: the script gets nothing but names of environment variables.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._script: list[str] = []
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
        return PostProcess("".join(self._script), tuple(self._names))

    # --- The text ---

    def _sees(self, *starts: str) -> bool:
        return self._text.startswith(starts, self._at)

    def _take(self, count: int = 1) -> str:
        """Move on, with what is passed put into the script."""
        taken = self._text[self._at : self._at + count]
        self._script.append(taken)
        self._at += count
        return taken

    def _add(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _commands(self, *, nested: bool) -> None:
        """Scan a list of commands, up to the end or to the parenthesis that closes it."""
        depth = 0
        while self._at < len(self._text):
            if self._sees("#") and self._word is None:
                break  # a comment goes to the end of the line, and there is one line
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
        """Scan what begins with a dollar or is in backquotes."""
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
        found = _REFERENCE.match(self._text, self._at)
        if found is None:
            raise _refused(f"expected ^{{NAME}}, got {self._text[self._at : self._at + 40]}")
        number = self._names.setdefault(found[1], len(self._names) + 1)
        if number > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES} different ^{{...}}")
        self._script.append(form.format(VARIABLE.format(number)))
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
    """Refuse a simple command that would read a value as a program."""
    skipped = 0
    while skipped < len(words) and _is_before_command(words[skipped], skipped):
        skipped += 1
    if skipped == len(words):
        return
    marked = any(_MARK in word for word in words)
    if _MARK in words[skipped] or (marked and "$" in words[skipped]):
        raise _refused("a ^{...} or a variable cannot name the command")
    names = [word.rpartition("/")[2] for word in words]
    for place, name in enumerate(names):
        if name in _SHELLS:
            _check_shell(name, words[place + 1 :])
        elif marked and name in _EVALUATORS:
            raise _refused(f"no ^{{...}} for {name}, which may run it")
    if marked and names[skipped] in _EVALUATING_BUILTINS:
        raise _refused(f"no ^{{...}} for {names[skipped]}, which may run it")
    if marked and names[skipped] in ("test", "[", "printf") and {"-v", "-R"} & set(words):
        raise _refused(f"no ^{{...}} for {names[skipped]} -v, which may run it")


def _is_before_command(word: str, place: int) -> bool:
    if word.startswith("-"):  # an option of `env` or `command`
        return place > 0
    return word in _BEFORE_COMMAND or _ASSIGNMENT.match(word) is not None


def _check_shell(name: str, arguments: list[str]) -> None:
    """Allow a shell no more than to run a file, with arguments: `sh /opt/upload.sh ^{X}`."""
    for argument in arguments:
        if "/" in argument and _MARK not in argument and not argument.startswith("-"):
            return
        if _MARK in argument or re.match("-[^-]*[cs]", argument):
            break
    raise _refused(f"with ^{{...}}, {name} may only run a file that is named by its path")
