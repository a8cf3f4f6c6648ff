"""Who leads for an Asterisk, noted in that itself, for controllers that the broker cannot reach."""

from __future__ import annotations

from audiofork.asterisk.ami import Ami

VARIABLE = "AUDIOFORK_EPOCH"


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
