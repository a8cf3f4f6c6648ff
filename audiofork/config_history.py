"""The options of the history of ended forks."""

from __future__ import annotations

from dataclasses import dataclass

from audiofork.config_values import number, text, whole, yes_or_no
from audiofork.config_values import option as _option


@dataclass(frozen=True)
class HistoryConfig:
    """The history: what became of forks that have ended, for `audiofork history`."""

    file: str = _option(
        "/var/lib/audiofork/history.sqlite3",
        text,
        "The file that records ended forks and refused starts, with the numbers and names of "
        "callers; empty: none. Only its owner may read it.",
    )
    keep_days: float = _option(
        "30", number(0.01, 36500), "The days that an entry is kept; then it is removed for good."
    )
    max_rows: int = _option(
        "1000000",
        whole(1, 100_000_000),
        "The most entries that are kept; the oldest are removed. A million take some 1.3 GB.",
    )
    queries: bool = _option(
        "no", yes_or_no, "Whether URLs are kept with their queries, which may hold tokens."
    )
    texts: bool = _option(
        "no",
        yes_or_no,
        "Whether the texts that servers send are kept; often they are what was said in the call.",
    )
    mask_numbers: bool = _option(
        "no",
        yes_or_no,
        "Whether only the last digits of callers' numbers are kept. Such entries cannot be found "
        "by number, nor removed by audiofork history --forget.",
    )
