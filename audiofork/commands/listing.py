"""The command list: formats forks as a table or as JSON, with frames per second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from audiofork.commands.tables import aligned, wrapped
from audiofork.commands.waiting import clock_time, duration, next_attempt, outlook
from audiofork.log import without_query
from audiofork.text import printable

Fork = dict[str, Any]
"""A fork with the fields of ForkView."""

_NUMBERS = frozenset({"RATE", "AGE", "IN", "SENT", "DROPPED", "IN/S", "SENT/S"})
_COLUMNS = (
    *("ID", "CHANNEL", "DIRECTION", "TAP", "RATE", "STATE", "MUTED", "AGE"),
    *("IN", "SENT", "DROPPED", "URL", "NEXT", "LAST ERROR"),
)
_WATCHED_COLUMNS = (*_COLUMNS[:11], "IN/S", "SENT/S", *_COLUMNS[11:])
_OF_CLUSTER = {"ASTERISK": "asterisk", "RELAY": "relay_host"}
_NARROW_COLUMNS = ("ID", "CHANNEL", "STATE", "AGE", "SENT", "DROPPED")
_WATCHED_NARROW_COLUMNS = (*_NARROW_COLUMNS, "SENT/S")


@dataclass(frozen=True, slots=True)
class Flow:
    """The frames per second of a fork, between two looks."""

    frames_in: float
    frames_sent: float
    frames_dropped: float


class Flows:
    """Computes the frames per second of forks since the previous look."""

    def __init__(self) -> None:
        self._before: dict[str, Fork] = {}
        self._flows: dict[str, Flow] = {}

    def look(self, forks: list[Fork]) -> None:
        """Add the forks of a look."""
        now = {fork["id"]: fork for fork in forks}
        pairs = (
            (self._before[fork_id], now[fork_id]) for fork_id in now if fork_id in self._before
        )
        flows = {after["id"]: _flow(before, after) for before, after in pairs}
        self._flows = {fork_id: flow for fork_id, flow in flows.items() if flow is not None}
        self._before = now

    def of(self, fork: Fork) -> Flow | None:
        """Return the flow of a fork; None if it is new, or its counters have restarted."""
        return self._flows.get(fork["id"])

    @property
    def total(self) -> Flow:
        """The sum of all."""
        return Flow(
            sum(flow.frames_in for flow in self._flows.values()),
            sum(flow.frames_sent for flow in self._flows.values()),
            sum(flow.frames_dropped for flow in self._flows.values()),
        )


def _flow(before: Fork, after: Fork) -> Flow | None:
    seconds = after["age_s"] - before["age_s"]
    names = ("frames_in", "frames_sent", "frames_dropped")
    more = [after[name] - before[name] for name in names]
    # Counters restart with the daemon. But frames that a broken connection has given back no longer
    # count as sent, so a slightly lower number is no restart.
    if seconds <= 0 or more[0] < 0:
        return None
    return Flow(*(max(0, count) / seconds for count in more))


def as_json(forks: list[Fork]) -> str:
    """Return forks as a JSON array, with the fields of ForkView."""
    return json.dumps(forks, indent=2)


def table(
    forks: list[Fork], legs_left: int = 0, width: int | None = None, flows: Flows | None = None
) -> str:
    """Return forks as lines of text with a heading; URLs without their query.

    Args:
        forks: The forks, oldest first.
        legs_left: How many legs of ended forks Asterisk still has.
        width: The columns of the terminal: if a line for each fork does not fit, a fork has short
            columns, and its URL and its error on lines of their own. None: one line for each.
        flows: Shows frames a second, if given.
    """
    left = f"\n{legs_left} legs of ended forks stay until their channels have media or end"
    return (_rows(forks, width, flows) if forks else "no forks") + (left if legs_left else "")


def missing_lines(missing: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each Asterisk whose forks are not in a list of all of them."""
    for asterisk, error in missing.items():
        yield printable(f"the forks of {asterisk} are missing: {error}", "?")


def summary(forks: list[Fork], flows: Flows) -> str:
    """Return two lines: the numbers of forks by state, and the total frames per second."""
    states = Counter(str(fork["state"]) for fork in forks)
    of_them = ", ".join(f"{count} {printable(state, '?')}" for state, count in states.items())
    total = flows.total
    return (
        f"{len(forks)} forks{f' ({of_them})' if of_them else ''}\n"
        f"frames a second: {total.frames_in:.0f} in, {total.frames_sent:.0f} sent, "
        f"{total.frames_dropped:.0f} dropped"
    )


def _rows(forks: list[Fork], width: int | None, flows: Flows | None) -> str:
    columns = _with_places(_WATCHED_COLUMNS if flows else _COLUMNS, forks)
    cells = [_cells(fork, flows) for fork in forks]
    lines = aligned(columns, cells, _NUMBERS)
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    short = [{**one, "ID": one["ID"][:8]} for one in cells]
    return "\n".join(_narrow_rows(forks, short, width, bool(flows)))


def _with_places(columns: tuple[str, ...], forks: list[Fork]) -> tuple[str, ...]:
    """Return columns with those that only the forks of a cluster need, after the channel's."""
    needed = (name for name, field in _OF_CLUSTER.items() if any(map(_has(field), forks)))
    return (*columns[:2], *needed, *columns[2:])


def _has(field: str) -> Callable[[Fork], bool]:
    return lambda fork: bool(fork.get(field))


def _narrow_rows(
    forks: list[Fork], cells: list[dict[str, str]], width: int, watched: bool
) -> Iterator[str]:
    """Yield lines for a narrow terminal: what does not fit a fork's line follows below it."""
    columns = _WATCHED_NARROW_COLUMNS if watched else _NARROW_COLUMNS
    heading, *lines = aligned(columns, cells, _NUMBERS)
    below = ["URL"]
    if max(map(len, lines)) > width:
        heading, *lines = aligned(
            tuple(name for name in columns if name != "CHANNEL"), cells, _NUMBERS
        )
        below = ["CHANNEL", "URL"]
    yield heading
    for fork, line, one in zip(forks, lines, cells, strict=True):
        yield line
        yield from wrapped([*(one[name] for name in below), _place(fork), _trouble(fork)], width)


def _place(fork: Fork) -> str:
    """Return where in the cluster a fork is; empty: there is no cluster."""
    asterisk, host = (printable(str(fork.get(name, "")), "?") for name in _OF_CLUSTER.values())
    told = (asterisk and f"Asterisk {asterisk}", host and f"relay host {host}")
    return ", ".join(filter(None, told))


def _trouble(fork: Fork) -> str:
    """Return what a fork waits for and why, or its last error."""
    if text := outlook(fork):
        return text
    error = printable(fork.get("last_error", ""), "?")
    return f"last error: {error}, {duration(fork['last_error_s'])} ago" if error else ""


def _cells(fork: Fork, flows: Flows | None) -> dict[str, str]:
    flow = flows.of(fork) if flows else None
    cells = {
        "ID": fork["id"],
        "CHANNEL": fork["channel"],
        "DIRECTION": fork["direction"],
        "TAP": fork["tap"] or "-",
        "RATE": fork["sample_rate"] or "-",
        "STATE": fork["state"],
        "MUTED": fork["muted"] or "-",
        "AGE": clock_time(fork["age_s"]),
        "IN": fork["frames_in"],
        "SENT": fork["frames_sent"],
        "DROPPED": fork["frames_dropped"],
        "IN/S": f"{flow.frames_in:.0f}" if flow else "-",
        "SENT/S": f"{flow.frames_sent:.0f}" if flow else "-",
        "URL": without_query(fork["url"]),
        "NEXT": _next(fork),
        "LAST ERROR": _last_error(fork),
        **{name: fork.get(field) or "-" for name, field in _OF_CLUSTER.items()},
    }
    return {name: printable(str(cell), "?") for name, cell in cells.items()}


def _next(fork: Fork) -> str:
    return "-" if fork.get("next_attempt_s") is None else next_attempt(fork)


def _last_error(fork: Fork) -> str:
    """Return the cell: the error, with the part that has it or the time since."""
    waits_for, error = fork.get("waits_for", ""), fork.get("last_error", "")
    if not error:
        return f"none yet, waits for {waits_for}" if waits_for else "-"
    if fork["away_s"] is None:
        return f"{error} ({duration(fork['last_error_s'])} ago)"
    return f"{waits_for}, for {duration(fork['away_s'])}: {error}"
