"""Formats the history: entries as a table, one with its timeline, causes of failures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from audiofork.commands.tables import aligned, wrapped
from audiofork.commands.times import shown
from audiofork.commands.waiting import clock_time
from audiofork.text import printable

Entry = dict[str, Any]
"""An entry with the fields of forks.history.Entry."""

_NUMBERS = frozenset({"TIME", "SENT", "DROPPED", "COUNT"})
_COLUMNS = ("ENDED", "ID", "CHANNEL", "CALLER", "SERVER", "TIME", "SENT", "DROPPED", "REASON")
_NARROW = ("ENDED", "ID", "CHANNEL", "TIME", "REASON")
_PLACE = {"ASTERISK": "asterisk", "CONTROLLER": "controller"}
"""Where there is a cluster: the columns that say whose entry it is."""
_OF_CAUSES = ("COUNT", "LATEST", "REASON", "ID", "DETAIL")
_FIELDS = {
    "channel": "channel",
    "uniqueid": "uniqueid",
    "caller": "caller",
    "url": "server",
    "direction": "direction",
    "tap": "tap",
    "sample_rate": "sample rate",
    "format": "format",
    "asterisk": "Asterisk",
    "controller": "controller",
}


def table(entries: list[Entry], width: int | None = None) -> str:
    """Return entries as lines of text with a heading.

    Args:
        entries: The entries, newest first.
        width: The columns of the terminal: if a line for each does not fit, an entry has short
            columns, and the rest on lines of its own. None: one line for each.
    """
    if not entries:
        return "no entries"
    cells = [_cells(entry) for entry in entries]
    places = _PLACE if any(one["ASTERISK"] for one in cells) else ()
    columns = (*_COLUMNS[:3], *places, *_COLUMNS[3:], "DETAIL")
    lines = aligned(columns, cells, _NUMBERS)
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    return "\n".join(_narrow_rows([{**one, "ID": one["ID"][:8]} for one in cells], width))


def _narrow_rows(cells: list[dict[str, str]], width: int) -> Iterator[str]:
    heading, *lines = aligned(_NARROW, cells, _NUMBERS)
    yield heading
    for line, one in zip(lines, cells, strict=True):
        yield line
        more = ", ".join(
            one[name] for name in ("CALLER", "SERVER", *_PLACE) if one[name] not in ("", "-")
        )
        yield from wrapped([more, one["DETAIL"]], width)


def _cells(entry: Entry) -> dict[str, str]:
    totals = entry["totals"]
    cells = {
        "ENDED": shown(entry["ended_at"]),
        "ID": entry["fork_id"],
        "CHANNEL": entry["channel"] or entry["uniqueid"] or "-",
        "CALLER": _caller(entry) or "-",
        "SERVER": entry["url"] or "-",
        "TIME": clock_time(totals["duration_s"]) if "duration_s" in totals else "-",
        "SENT": totals.get("frames_sent", "-"),
        "DROPPED": totals.get("frames_dropped", "-"),
        "REASON": entry["reason"],
        "DETAIL": entry["detail"],
        **{name: entry.get(field, "") for name, field in _PLACE.items()},
    }
    return {name: printable(str(cell), "?") for name, cell in cells.items()}


def _caller(entry: Entry) -> str:
    number, name = entry["caller_number"], entry["caller_name"]
    return f"{name} <{number}>" if name and number and name != number else name or number


def details(entry: Entry) -> str:
    """Return all that there is of an entry, with its timeline."""
    values = {**entry, "caller": _caller(entry)}
    lines = [f"fork {entry['fork_id']}"]
    lines += [f"  {name:<12} {values[key]}" for key, name in _FIELDS.items() if values.get(key)]
    reason, detail = entry["reason"], entry["detail"]
    lines.append(f"  {'ended':<12} {reason}{f': {detail}' if detail else ''}")
    totals = [f"{name} {value:g}" for name, value in entry["totals"].items() if value]
    if totals:
        lines.append(f"  {'totals':<12} {', '.join(totals)}")
    if entry["timeline"]:
        lines += ["", *_timeline(entry)]
    return "\n".join(printable(line, "?") for line in lines)


def _timeline(entry: Entry) -> Iterator[str]:
    began = entry["requested_at"]
    for moment in entry["timeline"]:
        after = f"+{max(0.0, moment['at'] - began):.1f} s"
        yield f"  {shown(moment['at'])}  {after:>10}  {moment['kind']:<12}  {moment['text']}"


def causes_table(causes: list[dict[str, Any]]) -> str:
    """Return the causes of failures as lines of text with a heading, the most frequent first.

    Args:
        causes: Each with the fields of forks.history.Cause.
    """
    if not causes:
        return "no failures"
    cells = [
        {
            "COUNT": str(cause["count"]),
            "LATEST": shown(cause["latest_at"]),
            "REASON": printable(cause["reason"], "?"),
            "ID": printable(cause["fork_id"][:8], "?"),
            "DETAIL": printable(cause["detail"], "?"),
        }
        for cause in causes
    ]
    return "\n".join(aligned(_OF_CAUSES, cells, _NUMBERS))


def terminal_width(is_terminal: bool) -> int | None:
    """Return the columns of the terminal; None if the output is none."""
    return shutil.get_terminal_size().columns if is_terminal else None
