"""The command line of `history`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from audiofork import config_file
from audiofork.commands import terminal
from audiofork.commands.asking import exit_codes
from audiofork.commands.daemon_options import DaemonPlace, of_any_asterisk
from audiofork.commands.history_table import causes_table, details, table, terminal_width
from audiofork.commands.times import seconds_of
from audiofork.doors.daemon_client import Forgetting
from audiofork.doors.history_answers import as_dict, query_of
from audiofork.errors import ConfigError, DaemonUnreachable, HistoryUnavailable, RequestRefused
from audiofork.forks import history_file, history_search
from audiofork.forks.masking import LEAST_IN_TEXT, digits_of, is_number
from audiofork.text import printable

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PAGE = 500  # entries that are asked for at once


class Source(Protocol):
    """Where the history is read: by a daemon, or the file itself.

    Every method raises HistoryUnavailable, and RequestRefused for what it does not understand.

    Attributes:
        missing: In a cluster, whose histories were not among the answers, with the reason.
    """

    missing: dict[str, str]

    def history(self, fields: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """Return entries, and the cursor of the next page."""

    def causes(self, since: float) -> list[dict[str, Any]]:
        """Return the causes of failures since a time."""

    def forget(self, number: str) -> Forgetting:
        """Remove all entries of a caller, and blank the number where others mention it."""


class HistoryOfFile:
    """The history of a daemon that does not run.

    Args:
        path: The file.
        is_alone: Whether there are no other histories; those of a cluster cannot be asked.
    """

    def __init__(self, path: Path, *, is_alone: bool = True) -> None:
        self._path = path
        why = "no controller runs here to ask them"
        self.missing = {} if is_alone else {"other controllers": why}

    def history(self, fields: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """Return entries, and the cursor of the next page."""
        lower = {name.lower(): value for name, value in fields.items()}
        with history_file.reading(self._path) as db:
            if fork_id := lower.get("audioforkid", "").lower():
                entry = history_search.entry(db, fork_id)
                return ([as_dict(entry)] if entry else []), ""
            entries, cursor = history_search.search(db, query_of(lower))
            return [as_dict(entry) for entry in entries], cursor

    def causes(self, since: float) -> list[dict[str, Any]]:
        """Return the causes of failures since a time."""
        with history_file.reading(self._path) as db:
            return [asdict(cause) for cause in history_search.causes(db, since)]

    def forget(self, number: str) -> Forgetting:
        """Remove all entries of a caller, and blank the number where others mention it."""
        return Forgetting(*history_file.forget(self._path, number))


@contextlib.contextmanager
def _source(place: DaemonPlace) -> Iterator[Source]:
    """Connect to the daemon; if none runs here, read the file that it would write."""
    try:
        connected = place.connect()
    except (DaemonUnreachable, ConfigError) as exc:
        if place.url:
            raise
        file = _file_of(place, exc)
        terminal.warn(f"no daemon answers: read from {file}")
        try:
            is_alone = not config_file.is_given("cluster", "servers", place.path)
            yield HistoryOfFile(Path(file), is_alone=is_alone)
        except HistoryUnavailable as unavailable:
            raise DaemonUnreachable(f"{exc}; and {unavailable}") from unavailable
        return
    with connected as daemon:
        yield daemon


def _file_of(place: DaemonPlace, why: Exception) -> str:
    file = config_file.load_history(place.path, place.asterisk).file
    if not file:
        raise why
    return file


def _fields(given: Mapping[str, str], failed: bool, limit: int) -> dict[str, str]:
    """Return the fields of a search; the times become seconds since 1970."""
    now = datetime.now().astimezone()
    fields = {name.capitalize(): value for name, value in given.items() if value}
    for name in ("Since", "Until"):
        if name in fields:
            try:
                fields[name] = repr(seconds_of(fields[name], now, is_end=name == "Until"))
            except ValueError as exc:
                text = f"expected {exc}, got {given[name.lower()]!r}"
                raise click.BadParameter(text, param_hint=f"--{name.lower()}") from None
    if failed:
        fields["Failed"] = "yes"
    return {**fields, "Limit": str(min(limit or _PAGE, _PAGE))}


def _all_pages(source: Source, fields: dict[str, str], limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` entries, 0: all, page by page."""
    entries, cursor = source.history(fields)
    while cursor and not 0 < limit <= len(entries):
        more, cursor = source.history({**fields, "Cursor": cursor})
        entries += more
    return entries[: limit or None]


def _filters(command: _Command) -> _Command:
    """Add the options that say what to search for."""
    helps = {
        "channel": (
            "NAME",
            "Of this channel, or of this phone (PJSIP/100), or with this uniqueid.",
        ),
        "caller": ("WHO", "Of a caller: a number, or words of a name."),
        "host": ("HOST", "To this server: its host name, or @NAME of a profile."),
        "reason": ("REASON", "With this reason, such as hangup, sink-gone, or refused."),
        "text": ("WORDS", "With these words, or beginnings of words, anywhere."),
        "since": ("TIME", "Ended since then: 2h, today, 14:30, 2026-11-28, 2026-11-28T14:30."),
        "until": ("TIME", "Ended before then; a day means its end."),
    }
    for name, (metavar, text) in reversed(helps.items()):
        command = click.option(f"--{name}", default="", metavar=metavar, help=text)(command)
    return command


@click.command(short_help="Show what became of forks that have ended.")
@click.argument("fork_id", metavar="[ID]", default="")
@_filters
@click.option("--failed", is_flag=True, help="Only what failed, or was refused.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="How many at most, the newest; 0: all.",
)
@click.option("--causes", is_flag=True, help="Show what failed, grouped by cause.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--wide", is_flag=True, help="Print one line per fork on any terminal.")
@click.option("--forget", default="", metavar="NUMBER", help="Remove a caller, for good.")
@click.option("--yes", is_flag=True, help="Do not ask before that.")
@of_any_asterisk
def history(place: DaemonPlace, **given: Any) -> None:
    """Show forks that have ended and starts that were refused, the newest first.

    With ID, or its first eight characters, show one of them with all that has happened to it.
    The daemon is asked; if none runs, its file is read.

    --forget removes all entries of calls from a number; where other calls mention it, in a
    name, a channel or what a server said, *** stands in its place. With - it is read from
    standard input. Entries whose number was masked ([history] mask_numbers) are not found.
    In a cluster this is done at every controller that is known, or with --asterisk at those of
    that Asterisk; one that does not answer is named, and the exit code is 1.
    """
    with exit_codes():
        _run(_Wish(**given), lambda: _source(place))


class _Wish:
    """What the command line asks for."""

    def __init__(
        self,
        fork_id: str,
        failed: bool,
        limit: int,
        causes: bool,
        as_json: bool,
        wide: bool,
        forget: str,
        yes: bool,
        **filters: str,
    ) -> None:
        self.fork_id = fork_id
        self.fields = _fields(filters, failed, limit)
        self.limit = limit
        self.causes = causes
        self.as_json = as_json
        self.wide = wide
        self.forget = forget
        self.yes = yes
        named = {name for name, value in filters.items() if value} | (
            {"failed"} if failed else set()
        )
        self._refuse_both(named)

    def _refuse_both(self, named: set[str]) -> None:
        """Refuse options that have no effect together."""
        ways = {"ID": self.fork_id, "--causes": self.causes, "--forget": self.forget}
        chosen = [name for name, value in ways.items() if value]
        if len(chosen) > 1:
            raise click.UsageError(f"{' and '.join(chosen)} do not go together")
        if chosen and (more := named - ({"since"} if self.causes else set())):
            option = f"--{min(more)}"
            raise click.UsageError(f"{chosen[0]} and {option} do not go together")


def _run(wish: _Wish, source: Callable[[], AbstractContextManager[Source]]) -> None:
    if wish.forget:
        _forget(wish, source)
        return
    with source() as asked:
        if wish.fork_id:
            _show_one(wish, asked)
        elif wish.causes:
            found = asked.causes(float(wish.fields.get("Since", "0")))
            terminal.say(_as_json(found) if wish.as_json else causes_table(found))
        else:
            entries = _all_pages(asked, wish.fields, wish.limit)
            width = terminal_width(sys.stdout.isatty() and not wish.wide)
            terminal.say(_as_json(entries) if wish.as_json else table(entries, width))
        for name, why in asked.missing.items():
            terminal.warn(printable(f"the history of {name} is missing: {why}", "?"))


def _show_one(wish: _Wish, source: Source) -> None:
    entries, _ = source.history({"AudioForkID": wish.fork_id})
    if not entries:
        shown = printable(wish.fork_id, "?")
        raise RequestRefused(f"no entry, or more than one, with the id {shown}: audiofork history")
    terminal.say(_as_json(entries[0]) if wish.as_json else details(entries[0]))


def _forget(wish: _Wish, source: Callable[[], AbstractContextManager[Source]]) -> None:
    number = wish.forget
    if number == "-":  # arguments are visible in the list of processes
        number = sys.stdin.readline().strip()
    if not is_number(number):
        raise click.BadParameter("expected a number", param_hint="--forget")
    if not wish.yes:
        question = "Remove all entries of calls from this number for good"
        if len(digits_of(number)) >= LEAST_IN_TEXT:
            question += (
                ", and blank it where other calls mention it (names, channels, texts of servers)"
            )
        click.confirm(f"{question}?", abort=True, err=True)
    with source() as asked:
        forgetting = asked.forget(number)
    _show_forgetting(wish, forgetting, asked.missing)


def _show_forgetting(wish: _Wish, done: Forgetting, missing: Mapping[str, str]) -> None:
    """Say what was removed, and where it may not have been: then the exit code is 1."""
    if wish.as_json:
        counts = {"removed": done.removed, "blanked": done.blanked}
        each = {
            name: {"removed": removed, "blanked": blanked}
            for name, (removed, blanked) in done.controllers.items()
        }
        is_cluster = bool(each or missing)
        of_each = {"controllers": each, "missing": missing} if is_cluster else {}
        terminal.say(_as_json(counts | of_each))
    elif done.controllers or missing:
        for name, one in done.controllers.items():
            terminal.say(printable(f"{name}: {_removed(*one)}", "?"))
    else:
        terminal.say(_removed(done.removed, done.blanked))
    if missing:
        lines = [
            f"the history of {name} may still have the number: {why}"
            for name, why in missing.items()
        ]
        lines.append("Repeat this command when it can be asked: it removes what is left.")
        terminal.fail("\n".join(printable(line, "?") for line in lines), terminal.EXIT_FAILED)


def _removed(removed: int, blanked: int) -> str:
    others = f", the number blanked in {blanked} others" if blanked else ""
    return f"{removed} entries removed{others}"


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2)
