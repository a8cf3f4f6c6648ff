"""Output and exit codes of the commands."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from typing import Any, NoReturn, TextIO

import click

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_CONFIG = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130  # as a shell has it: 128 and SIGINT

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 the configuration cannot be "
    "used, 4 the daemon or Asterisk cannot be reached."
)


class Amount(click.FloatRange):
    """A number of 0 or more on the command line; not nan or inf, which Python's float() accepts."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value!r}", param, ctx)
        converted: float = super().convert(value, param, ctx)
        return converted


def say(line: str | bytes) -> None:
    """Print a line; if nobody can read it any more, the work continues."""
    try:
        click.echo(line, stdout())
    except OSError:
        close_stdout()


def write(text: str) -> None:
    """Write a text to standard output unchanged; if nobody reads it, the work continues."""
    try:
        click.echo(text, stdout(), nl=False)
    except OSError:
        close_stdout()


def stdout() -> TextIO:
    """Return standard output, set up to accept every character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return sys.stdout


def close_stdout() -> None:
    """Discard all further output, because nobody reads it any more."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end)


def warn(line: str) -> None:
    """Print a line on standard error; if that fails, the work continues."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def columns_of_stderr() -> int | None:
    """Return the width of the terminal of standard error, in columns; None: it is no terminal."""
    if not sys.stderr.isatty():
        return None
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


def show(text: str) -> None:
    """Write a text to standard error unchanged, if possible."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True, nl=False)


def fail(message: str, code: int) -> NoReturn:
    """Print why a command failed on standard error, and exit."""
    click.echo(f"audiofork: {message}", err=True)
    sys.exit(code)
