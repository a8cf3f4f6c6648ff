"""The command list."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys

import click

from audiofork.commands.asking import exit_codes
from audiofork.commands.daemon_options import DaemonPlace, of_any_asterisk, place_of
from audiofork.commands.listing import as_json as forks_as_json
from audiofork.commands.listing import missing_lines, table
from audiofork.commands.terminal import EXIT_FAILED, close_stdout, fail, say, stdout, warn
from audiofork.commands.watching import Screen, Watch, is_terminal
from audiofork.doors.daemon_client import EVERY_ASTERISK


@click.command(name="list", short_help="List the forks.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON array of objects, with whole URLs."
)
@click.option("--watch", is_flag=True, help="Refresh the list each second, until Ctrl-C.")
@click.option("--wide", is_flag=True, help="Print one line per fork on any terminal.")
@click.option("--all", "every", is_flag=True, help="List those of each Asterisk of the cluster.")
@of_any_asterisk
def list_forks(as_json: bool, watch: bool, wide: bool, every: bool, place: DaemonPlace) -> None:
    """List the forks: frames of 20 ms, URLs without their query.

    NEXT is when the next attempt is made to reach what is missing. On a narrow terminal, each
    fork has the first eight characters of its id, and its URL and error on lines of their own.
    In a cluster, RELAY is the relay host that has the fork.
    """
    if every:
        place = _place_of_all(place)
    show = _watch if watch else _list
    show(place, as_json=as_json, wide=wide)


def _place_of_all(place: DaemonPlace) -> DaemonPlace:
    if place.asterisk:
        raise click.UsageError("--all and --asterisk do not go together")
    return place_of(place, EVERY_ASTERISK)


def _list(place: DaemonPlace, *, as_json: bool, wide: bool) -> None:
    with exit_codes(), place.connect() as daemon:
        listing = daemon.listing()
    width = None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    forks = listing.forks
    say(forks_as_json(forks) if as_json else table(forks, listing.legs_left, width))
    if listing.missing:
        fail("\n".join(missing_lines(listing.missing)), EXIT_FAILED)


def _watch(place: DaemonPlace, *, as_json: bool, wide: bool) -> None:
    screen = Screen(stdout(), in_place=is_terminal(sys.stdout, os.environ.get("TERM", "")))
    if screen.size is not None:  # so that the terminal is left as it was
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with exit_codes(), contextlib.suppress(KeyboardInterrupt):
        Watch(place.connect, screen, warn, as_json=as_json, wide=wide).run()
        close_stdout()  # nobody reads any more
