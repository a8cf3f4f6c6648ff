"""The command line of `audiofork setup`."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path

import click

from audiofork.commands.setup import by_hand
from audiofork.commands.setup.run import STATE, Setup, for_this_machine
from audiofork.commands.terminal import EXIT_CONFIG, EXIT_FAILED, fail, say
from audiofork.errors import ConfigError, SetupError
from audiofork.text import why


def _host(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Return a host as all that it is put into takes it: without the brackets of IPv6."""
    if text is None:
        return None
    host = text.removeprefix("[").removesuffix("]")
    if re.fullmatch(r"[\w.-]+", host, re.ASCII):
        return host
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise click.BadParameter(f"expected a name or an address, got {text!r}") from None


@click.command()
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--dry-run", is_flag=True, help="Only show what would be changed.")
@click.option("--undo", is_flag=True, help="Take back all that setup has done.")
@click.option(
    "--asterisk-config",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    help="Asterisk's configuration folder, where it is not found by itself.",
)
@click.option(
    "--asterisk",
    "host",
    metavar="HOST",
    callback=_host,
    help="Asterisk is on another host: only print what to put where.",
)
@click.option(
    "-c",
    "--config",
    "ini",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    default=Path("/etc/audiofork/audiofork.ini"),
    show_default=True,
    help="The daemon's configuration file, which is made or added to.",
)
# Not readable=True, click's default: of what only root may read the text is that of _run.
@click.option(
    "--state", type=click.Path(readable=False, path_type=Path), default=STATE, hidden=True
)
def setup(
    *,
    yes: bool,
    dry_run: bool,
    undo: bool,
    folder: Path | None,
    host: str | None,
    ini: Path,
    state: Path,
) -> None:
    """Put the daemon beside the Asterisk of this machine, and start it.

    Makes a secret, has Asterisk know the daemon's users of AMI and ARI and its dialplan, writes the
    configuration and the service of systemd, reloads what has changed, and ends with `audiofork
    check`. Each change is shown first as a diff, then you are asked. Lines that are there stay. Run
    again it changes nothing more. Exit code 0: all is well; 1: nothing was changed, or the check
    has found faults; 3: the configuration cannot be used; 4: Asterisk cannot be reached.

    Without root, or with --asterisk HOST, it prints what to put where.
    """
    if undo and (dry_run or folder or host):
        raise click.UsageError("--undo takes no other option but --yes")
    one = for_this_machine(say, lambda question: yes or _confirm(question), ini, state)
    one.folder = folder.absolute() if folder else None
    try:
        sys.exit(_run(one, undo=undo, dry_run=dry_run, host=host))
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)
    except SetupError as exc:
        fail(str(exc), EXIT_FAILED)
    except OSError as exc:
        fail(f"{why(exc)}; nothing was changed", EXIT_FAILED)


def _run(one: Setup, *, undo: bool, dry_run: bool, host: str | None) -> int:
    is_root = os.geteuid() == 0
    if undo:
        if not is_root:
            raise SetupError("--undo writes to files of root: run it as root")
        return one.undo()
    if host:
        say(f"Asterisk is on {host}, where setup can change nothing. What to do:\n")
        say(by_hand.text(one.paths.ini, host))
        return 0
    if is_root and not dry_run:
        return one.do()
    return _show(one) if dry_run else _tell_by_hand(one, "nothing was changed: it takes root")


def _show(one: Setup) -> int:
    try:
        return one.show()
    except PermissionError as exc:
        return _tell_by_hand(one, f"{exc.filename} can be read by root alone")


def _tell_by_hand(one: Setup, why: str) -> int:
    say(f"{why}. As root, `audiofork setup` does what follows; or do it yourself:\n")
    say(by_hand.text(one.paths.ini))
    return EXIT_FAILED


def _confirm(question: str) -> bool:
    try:
        return click.confirm(question, default=False)
    except click.Abort:  # Ctrl-C, or nobody is there to answer
        click.echo("")
        return False
