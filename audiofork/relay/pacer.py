"""Calls all that play audio every 20 ms, by one timer."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable
from typing import Protocol

from audiofork.audiosocket import PTIME_S

log = logging.getLogger(__name__)

# Players are spread over so many phases of 20 ms, so that not all write at the same moment.
PHASES = 10
SLOT_S = PTIME_S / PHASES

_TOLERANCE = 1e-6  # of a slot: times are sums of floats


class Player(Protocol):
    """What plays audio."""

    def tick(self, now: float) -> None:
        """Play 20 ms.

        Args:
            now: The time in seconds at which this was due.
        """


class Pacer:
    """Calls players every 20 ms, each in one of PHASES phases; owned by a worker.

    Phases are slots of 2 ms on the event loop's clock, so nothing drifts. A call that is late by
    more than 20 ms is left out: a player is never called twice to catch up. While there are no
    players there is no timer.
    """

    def __init__(self) -> None:
        self._phases: list[dict[Player, None]] = [{} for _ in range(PHASES)]
        self._phase_of: dict[Player, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._slot = 0  # the number of the one that the timer waits for
        self._served = -1  # the last one whose players were called

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop: to look it up is a system call in Python 3.11, too much for a frame."""
        return asyncio.get_running_loop()

    @property
    def now(self) -> Callable[[], float]:
        """What returns the time in seconds, of the clock that players are called by."""
        return self._loop.time

    def place(self, player: Player, at: float) -> None:
        """Call a player within 2 ms from a time in seconds on, and every 20 ms before and after.

        If the players of that slot were called already, which is so for 2 ms, it has the next one.
        """
        slot = math.ceil(at / SLOT_S - _TOLERANCE)
        self._put(player, (slot + (slot == self._served)) % PHASES)

    def place_anywhere(self, player: Player) -> None:
        """Call a player every 20 ms, with the fewest others."""
        self._put(player, min(range(PHASES), key=lambda phase: len(self._phases[phase])))

    def _put(self, player: Player, phase: int) -> None:
        self.remove(player)
        self._phases[phase][player] = None
        self._phase_of[player] = phase
        past = max(self._served, math.ceil(self.now() / SLOT_S - _TOLERANCE) - 1)
        following = self._next_slot(past)
        if self._timer is None or following < self._slot:
            self._wait(following)

    def remove(self, player: Player) -> None:
        """Call a player no more; no effect if it is not called anyway."""
        phase = self._phase_of.pop(player, None)
        if phase is not None:
            del self._phases[phase][player]
            if not self._phase_of:
                self._stop()

    def __contains__(self, player: Player) -> bool:
        return player in self._phase_of

    def _next_slot(self, slot: int) -> int:
        """Return the first slot after one that has players."""
        return next(after for after in range(slot + 1, slot + 1 + PHASES) if self._at(after))

    def _at(self, slot: int) -> dict[Player, None]:
        return self._phases[slot % PHASES]

    def _wait(self, slot: int) -> None:
        self._stop()
        self._slot = slot
        self._timer = self._loop.call_at(slot * SLOT_S, self._on_due)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_due(self) -> None:
        self._timer = None
        for slot in self._due_slots():
            self._served = slot
            now = slot * SLOT_S
            for player in list(self._at(slot)):
                try:
                    player.tick(now)
                except Exception:  # noqa: BLE001 (logged; the others must not miss their turn)
                    log.exception("a player failed, and is called no more")
                    self.remove(player)
        if self._phase_of:
            self._wait(self._next_slot(self._served))

    def _due_slots(self) -> range:
        """Return the slots that are due, of each phase only the last: it has to do for all."""
        last = max(self._slot, math.floor(self.now() / SLOT_S + _TOLERANCE))
        return range(max(self._slot, last - PHASES + 1), last + 1)
