"""No promise rests on a wall clock: those of two hosts differ, and each may be set."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "audiofork"

ALLOWED = {
    "commands/check.py": "compares it with Asterisk's",
    "commands/check_cluster.py": "compares it with those of the relay hosts",
    "commands/history_command.py": "takes times as people give them",
    "doors/event_stream.py": "tells clients when an event was",
    "doors/http/status_api.py": "tells when a check was",
    "doors/twilio_callback.py": "tells a server when an event was",
    "forks/fork.py": "notes when a fork was requested; its age comes from its relay, if one has it",
    "forks/history.py": "notes when a fork began and ended",
    "forks/history_writer.py": "forgets what is older than so many days",
    "forks/series.py": "counts by the minute",
    "forks/timelines.py": "notes when something happened",
    "relay/host.py": "tells it for the check",
    "system.py": "tells since when a process runs",
}
"""Who reads the wall clock, and what for."""

WALL = {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime")}
WALL |= {("time", "CLOCK_REALTIME"), ("datetime", "now"), ("datetime", "utcnow")}
WALL |= {("datetime", "today"), ("date", "today")}


def reads_wall_clock(path: Path) -> bool:
    """Return whether a module reads a wall clock."""
    used: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add((node.value.id, node.attr))
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            used |= {("time", alias.name) for alias in node.names}
    return bool(used & WALL)


def test_wall_clocks_are_read_only_where_people_are_told_a_time() -> None:
    reading = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if reads_wall_clock(path)
    }
    assert reading == set(ALLOWED)
