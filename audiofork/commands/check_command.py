"""The command line of `check`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import uvloop

from audiofork import config_file
from audiofork.commands.check import Check, load_each, names_of, taps_of
from audiofork.commands.daemon_options import DaemonPlace, asterisk_option, of_the_daemon
from audiofork.commands.findings import Finding, Mark
from audiofork.commands.roles import exits_of, of_relay_host
from audiofork.commands.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_UNREACHABLE, fail, say
from audiofork.config import Config
from audiofork.doors import control_client as client
from audiofork.errors import (
    AmiError,
    AudioForkError,
    ConfigError,
    DaemonBusy,
    DaemonUnreachable,
    RequestRefused,
)
from audiofork.text import why


@click.command(short_help="Test what the daemon needs; say how to repair each fault.")
@click.option("--taps", is_flag=True, help="Only list the ways to get audio, the best first.")
@click.option("--here", is_flag=True, help="Check from here, even if a daemon runs.")
@click.option(
    "--relay", "of_relay", is_flag=True, help="Check a relay host of a cluster; asks no Asterisk."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print each finding as a JSON object in one line."
)
@asterisk_option
@of_the_daemon
def check(
    taps: bool,
    here: bool,
    of_relay: bool,
    as_json: bool,
    asterisk: str,
    path: Path,
    socket_path: Path | None,
) -> None:
    """Test what the daemon needs, and say what to do about each fault.

    If a daemon runs with this configuration, it does the check itself, because it has the secrets
    and its permissions are the ones that matter. Otherwise this command does the check. Asterisk
    opens a channel and spies on it; this takes two or three seconds and disturbs no call. In a
    cluster it also tests the NATS servers, and has Asterisk connect to each relay host; of several
    Asterisks in the configuration it tests one after the other, or that of --asterisk. Exit code
    0: no fault; 1: there are faults; 3: the configuration cannot be used; 4: Asterisk cannot be
    reached.
    """
    if taps and (as_json or of_relay):
        raise click.UsageError(f"--taps and --{'json' if as_json else 'relay'} do not go together")
    if of_relay and asterisk:
        raise click.UsageError("--relay and --asterisk do not go together")
    show_finding = Finding.as_json if as_json else str
    if of_relay:
        _check_relay(path, show_finding)
    if not here:
        _check_by_daemon(taps, as_json, DaemonPlace(path, socket_path, asterisk=asterisk))
    try:
        if taps:
            _print_taps(config_file.load(path, secrets_of=["asterisk", "asterisk *"]), asterisk)
            return
        checks = _checks_of(path, lambda finding: say(show_finding(finding)), asterisk)
    except ConfigError as exc:
        fail(config_file.with_place(str(exc), path), EXIT_CONFIG)
    say(show_finding(Finding(Mark.OK, f"configuration: {path}")))
    sys.exit(max(uvloop.run(one.run()) for one in checks))


def _checks_of(path: Path, tell: Callable[[Finding], None], only: str) -> list[Check]:
    """Return the check of each Asterisk of a configuration, or of one of them.

    Raises:
        ConfigError: It cannot be used, or does not have that one.
    """
    each = load_each(path, only)
    if not any(
        "profile" in unread for _, _, unread in each
    ):  # else it is not known which there are
        config_file.refuse_unknown_variables(config_file.load(path, secrets_of=["profile"]))
    return [
        Check(loaded, tell, unread=unread, asterisk=asterisk) for asterisk, loaded, unread in each
    ]


def _check_relay(path: Path, show_finding: Callable[[Finding], str]) -> NoReturn:
    """Check a relay host, and exit with the result."""
    with exits_of(path):
        from audiofork.commands.check_relay import RelayCheck

        loaded = of_relay_host(path)
        say(show_finding(Finding(Mark.OK, f"configuration: {path}")))
        one = RelayCheck(loaded, lambda finding: say(show_finding(finding)))
        sys.exit(uvloop.run(one.run()))


def _check_by_daemon(taps: bool, as_json: bool, place: DaemonPlace) -> None:
    """Let the daemon check, and exit with its result; return if no daemon can, and say why."""
    try:
        socket_path = place.socket_path or client.socket_of(place.path)
        with client.Client(socket_path, place.asterisk) as daemon:
            sys.exit(daemon.check(place.path, say, taps=taps, as_json=as_json))
    except DaemonBusy as exc:
        fail(str(exc), EXIT_FAILED)
    except (ConfigError, DaemonUnreachable, RequestRefused) as exc:
        # If the daemon cannot be reached, the check itself reports why.
        reason = f": the daemon refuses: {exc}" if isinstance(exc, RequestRefused) else ""
        if not taps:
            finding = Finding(Mark.SKIP, f"check: from here, not by a daemon{reason}")
            say(finding.as_json() if as_json else str(finding))
    except AudioForkError as exc:
        fail(str(exc), EXIT_FAILED)


def _print_taps(loaded: Config, only: str) -> None:
    names = names_of(loaded, only)
    try:
        for name in names:
            if len(names) > 1:
                say(f"{name}:")
            for line in uvloop.run(taps_of(loaded.of_asterisk(name))):
                say(line)
    except (OSError, TimeoutError, ValueError, AmiError) as exc:
        fail(f"Asterisk cannot be asked for its version: {why(exc)}", EXIT_UNREACHABLE)
