"""The command line of `migrate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from audiofork.commands.migrate import Task, local_branch, run
from audiofork.commands.terminal import say, warn


def _branch(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    branch, _, _ = text.partition(".")
    if not (branch.isascii() and branch.isdigit() and len(branch) < 4):
        raise click.BadParameter(f"expected a number as 22 or 18.26.4, not {text!r}")
    return int(branch)


@click.command(short_help="Rewrite dialplans of app_audiofork.")
@click.argument(
    "files", nargs=-1, metavar="[FILE]...", type=click.Path(readable=False, path_type=Path)
)
@click.option("--write", is_flag=True, help="Rewrite the files; without it, only show a diff.")
@click.option(
    "--asterisk-config",
    "folder",
    metavar="DIR",
    type=click.Path(readable=False, path_type=Path),
    help="Asterisk's configuration folder, which included files are relative to; else the "
    "folder of each FILE.",
)
@click.option(
    "--asterisk-version",
    "branch",
    metavar="VERSION",
    callback=_branch,
    help="The Asterisk that runs the dialplan, as 22 or 18.26.4; else the installed one.",
)
def migrate(files: tuple[Path, ...], write: bool, folder: Path | None, branch: int | None) -> None:
    """Rewrite dialplans of app_audiofork: extensions.conf, .ael, .lua, and what they include.

    Without a FILE, those in /etc/asterisk. Prints the changes as a diff, and notes what it
    leaves to you. --write keeps a copy of each file that it rewrites. Exit code 0: nothing is
    left to do by hand; 1: something is, or a file cannot be read or written.
    """
    sys.exit(run(Task(files, folder, branch or local_branch(), write), say, warn))
