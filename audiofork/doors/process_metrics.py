"""Metrics of a process, with the names that Prometheus has for them."""

from __future__ import annotations

from audiofork.doors import metric_table as table
from audiofork.doors.exposition import Exposition
from audiofork.system import file_limit, open_files, usage_of


def write_process(text: Exposition, started_at: float | None) -> None:
    """Write what this process uses.

    Args:
        text: The text.
        started_at: When it was started, in seconds since 1970; None: unknown.
    """
    usage = usage_of()
    text.one(table.CPU, usage and usage.cpu_s)
    text.one(table.MEMORY, usage and usage.resident_bytes)
    text.one(table.VIRTUAL, usage and usage.virtual_bytes)
    text.one(table.FILES, open_files())
    text.one(table.MOST_FILES, file_limit())
    text.one(table.STARTED_AT, started_at)
