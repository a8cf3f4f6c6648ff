"""Look-ups of the channels that requests name, and of their callers.

The former are limited in number, and take fair turns.

A client may send any number of requests for channels that do not exist, and each costs Asterisk
an action.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from audiofork.asterisk.channels import Channels, Target
from audiofork.errors import Refusal, RequestRefused
from audiofork.forks.call_info import CALLER
from audiofork.forks.fairness import FairQueue
from audiofork.forks.requests import Origin

AT_ONCE = 50
LONGEST_WAIT_S = 5.0
# Most look-ups that wait. One origin needs no more than this; through one door, all starts of a
# second may come at the same moment.
WAITING_OF_ORIGIN = 100
WAITING_OF_DOOR = 1000
TOO_MANY = "too many requests at once"


class LookUps:
    """Limits and queues the look-ups of channels; owned by the registry of forks.

    Args:
        channels: Asks Asterisk about channels.
        asks_callers: Whether somebody wants to know who calls; else Asterisk is not asked.
    """

    def __init__(self, channels: Channels, *, asks_callers: bool = False) -> None:
        self._channels = channels
        self._asks_callers = asks_callers
        self._under_way = 0
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def find(self, target: Target, origin: Origin) -> tuple[str, str]:
        """Wait for the origin's turn; return the name and uniqueid of a channel.

        Raises:
            RequestRefused: The channel does not exist, or too many requests wait, or this one has
                waited for LONGEST_WAIT_S.
            AmiError: Asterisk cannot be asked.
        """
        async with self._turn(origin):
            return await self._channels.look_up(target)

    async def caller_of(self, uniqueid: str) -> tuple[str, str]:
        """Return the caller's number and name; empty where nobody wants to know them.

        Raises:
            NoSuchChannel: The channel is gone.
            AmiError: Asterisk cannot be asked.
        """
        if not self._asks_callers:
            return "", ""
        number, name = await self._channels.at_once(uniqueid, CALLER.values())
        return number, name

    @asynccontextmanager
    async def _turn(self, origin: Origin) -> AsyncIterator[None]:
        if self._under_way >= AT_ONCE:
            await self._wait(origin)
        else:
            self._under_way += 1
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, origin: Origin) -> None:
        own, of_door = self._waiting.waiting(origin)
        if own >= WAITING_OF_ORIGIN or of_door >= WAITING_OF_DOOR:
            raise RequestRefused(TOO_MANY, Refusal.RATE)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(origin, turn)
        has_come = False
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await turn
            has_come = True
        except TimeoutError:
            raise RequestRefused(TOO_MANY, Refusal.RATE) from None
        finally:
            if not has_come:
                self._give_up(origin, turn)

    def _give_up(self, origin: Origin, turn: asyncio.Future[None]) -> None:
        """Stop waiting; if the turn has come at the same moment, pass it on."""
        if turn.done() and not turn.cancelled():
            self._pass_on()
        self._waiting.remove(origin, turn)

    def _pass_on(self) -> None:
        """Give the turn to the next look-up that waits, if any."""
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # else its task was just cancelled
                turn.set_result(None)
                return
        self._under_way -= 1
