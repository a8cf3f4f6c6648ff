"""Who leads for an Asterisk, noted in that itself, for controllers that the broker cannot reach."""

from __future__ import annotations

import asyncio
import contextlib

from audiofork.asterisk.ami import Ami
from audiofork.errors import AmiError

VARIABLE = "AUDIOFORK_EPOCH"
# A leader hears requests from its login on, and notes that it leads a moment later.
NOTED_S = 0.2


async def note(ami: Ami, epoch: int) -> None:
    """Note the number of our leadership.

    Raises: as `Ami.action`.
    """
    await ami.action("Setvar", [("Variable", VARIABLE), ("Value", str(epoch))])


async def noted(ami: Ami) -> int:
    """Return the number of the latest leadership; 0: none was noted since Asterisk started.

    Raises: as `Ami.action`.
    """
    value = (await ami.action("Getvar", [("Variable", VARIABLE)])).get("value", "")
    return int(value) if value.isascii() and value.isdigit() else 0


async def is_later(ami: Ami, epoch: int) -> bool:
    """Return whether a leadership after this one is noted, or will be in a moment."""
    await asyncio.sleep(NOTED_S)
    with contextlib.suppress(AmiError):
        return await noted(ami) > epoch
    return False
