"""One leg of a fork, as this plane knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from audiofork.link.messages import LegPart


@dataclass(slots=True, eq=False)
class Leg:
    """One leg of a fork.

    Attributes:
        part: What it brings.
        id: The id of the leg that was requested last.
        uuid: What that leg presents to the relay; only Asterisk may know it, so no log shows it.
        earlier_uuid: What the one before presented.
        attached: Whether it has connected.
        gone: Whether its channel has ended.
        is_spare: Whether its call has yet to be bridged with it; see `LegOrder`.
        lost_at: The loop time when it was lost; None if it is not lost, or has not come yet.
        losses: Loop times of the latest losses.
        timer: Ends the fork if the leg does not connect in time.
    """

    part: LegPart
    id: str = ""
    uuid: str = field(default="", repr=False)
    earlier_uuid: str = field(default="", repr=False)
    attached: bool = False
    gone: bool = False
    is_spare: bool = False
    lost_at: float | None = None
    losses: list[float] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"the leg of {self.part}" if self.part in (LegPart.IN, LegPart.OUT) else "the leg"

    def cancel_timer(self) -> None:
        """Stop the time limit of the connect."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
