"""Orders that relay hosts may have missed when NATS went away: they count when it is back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from audiofork.link.messages import Command, EndFork, HeldFork, SetMute
from audiofork.link.told import Told

MOST_KEPT = 10_000


class OwedOrders:
    """Who was to be muted, and what was to end; each once more than needed, which does no harm."""

    def __init__(self) -> None:
        self._by_fork: dict[str, list[SetMute | EndFork]] = {}

    def keep(self, told: Mapping[str, Told]) -> None:
        """Keep what was ordered last of some forks, whose hosts are forgotten now."""
        for fork_id, one in told.items():
            orders = [
                order for order in one.ordered.values() if isinstance(order, SetMute | EndFork)
            ]
            if orders:
                self._by_fork[fork_id] = orders
        while len(self._by_fork) > MOST_KEPT:  # of those that ended before they were found
            del self._by_fork[next(iter(self._by_fork))]

    def counted_in(self, held: HeldFork) -> HeldFork:
        """Return a fork that a host holds as it will be when it has these orders."""
        for order in self._by_fork.get(held.fork_id, ()):
            if isinstance(order, SetMute):
                held = replace(
                    held,
                    mute_in=held.mute_in if order.mute_in is None else order.mute_in,
                    mute_out=held.mute_out if order.mute_out is None else order.mute_out,
                )
        return held

    def take(self, fork_id: str) -> list[Command]:
        """Return what to order of a fork that was found again, once."""
        return [*self._by_fork.pop(fork_id, ())]
