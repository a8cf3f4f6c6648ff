"""What a daemon's journal holds, as it stands on disk."""

from __future__ import annotations

import asyncio
import re

from testbed.daemon import Daemon


def in_journal(daemon: Daemon, pattern: str) -> bool:
    """Return whether a file of the journal holds what matches a pattern anywhere."""
    files = daemon.journal.parent.glob(daemon.journal.name + "*")
    return any(re.search(pattern.encode(), file.read_bytes(), re.DOTALL) for file in files)


async def until(daemon: Daemon, pattern: str, *, is_there: bool) -> None:
    """Wait until a file of the journal holds what matches a pattern, or none does."""
    async with asyncio.timeout(20):
        while in_journal(daemon, pattern) is not is_there:  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.02)
