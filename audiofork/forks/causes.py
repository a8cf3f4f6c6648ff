"""Folds the details of failures, so that those of one cause are equal."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200
# What stays: the status of an answer, a close code, an address. The rest of the groups is folded.
_FOLDED = re.compile(
    r"(?P<kept>HTTP \d{3}\b|\bwith \d{4}\b|\b\d{1,3}(?:\.\d{1,3}){3}\b)"
    r"|(?P<id>\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{8,}\b)"
    r"|(?<![A-Za-z])\d+(?:\.\d+)?",
    re.IGNORECASE,
)


def cause_of(detail: str) -> str:
    """Return a detail with numbers as N, and ids as ...; names of hosts and HTTP statuses stay."""
    return _FOLDED.sub(_folded, detail)[:MOST_CHARACTERS]


def _folded(found: re.Match[str]) -> str:
    if found["kept"]:
        return found["kept"]
    return "..." if found["id"] else "N"
