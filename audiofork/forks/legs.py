"""The legs of forks: asks for them, watches for their loss, asks for others in their place."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Container, Coroutine, Iterable
from typing import Any, Protocol

from audiofork.asterisk.ami_events import harmless
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import LegOrder
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiUnavailable,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.fork import Fork, Leg
from audiofork.forks.lifecycle import ForkState
from audiofork.link.messages import EndReason, LegLost, LegPart, ReopenLeg, SendCommand

# How long after a leg's end the news of its channel's hangup may come.
LEG_LOSS_GRACE_S = 0.15
LEG_TIMEOUT_S = 6.0  # a tap's own limit is 5 s
# So many new legs in that time in place of a lost one; what loses more is no accident.
MAX_NEW_LEGS = 3
NEW_LEGS_WINDOW_S = 10.0
SHUTTING_DOWN = "Asterisk is shutting down"  # Asterisk's words (main/manager.c)
CANNOT_ASK = "the leg was lost, and Asterisk cannot be asked"
# A leg that was hung up is gone within 25 ms, but one whose channel has no media cannot go before
# that has some (asterisk#978). More than so many for one channel are not left there.
LEAVE_TIMEOUT_S = 1.0
MAX_LEGS_LEFT = 2
ASTERISK_AWAY_S = 5.0  # so long a fork without a leg waits to ask Asterisk about its channel

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Registry(Protocol):
    """What the registry of forks does about what becomes of legs."""

    async def is_held(self, fork: Fork) -> bool:
        """Tell whether a fork's legs have to wait, since its call is on hold."""

    async def wait_for_hold(self, fork: Fork) -> None:
        """Return when they need not wait (any more)."""

    def end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        """End the fork."""

    def on_leg_away(self, fork: Fork, part: LegPart, attempt: int, why: str) -> None:
        """Hear that a leg was lost, and that another is asked for."""

    def on_leg_back(self, fork: Fork, leg: Leg, gap_s: float) -> None:
        """Hear that it is there, and for how long there was none."""


class Legs:
    """Owned by the registry of forks, which tells what it hears of legs.

    Args:
        channels: What Asterisk is asked.
        send: Commands the relay.
        registry: Hears what becomes of legs.
        spawn: Runs what has to wait.
    """

    def __init__(
        self, channels: Channels, send: SendCommand, registry: Registry, spawn: Spawn
    ) -> None:
        self._channels = channels
        self._send = send
        self._registry = registry
        self._spawn = spawn
        # Set once the registry is reconciled after a login; replaced at the next.
        self._synced = asyncio.Event()
        # Legs of ended forks that Asterisk still has: when each was hung up, by uniqueid of the
        # channel that they listen to, and by id.
        self._leaving: dict[str, dict[str, float]] = {}
        self._left = asyncio.Event()  # one of them is gone; another for each

    def on_synced(self) -> None:
        """Let those go on that wait for the link: a restart of Asterisk would be known by now."""
        self._synced.set()
        self._synced = asyncio.Event()

    # --- Those that were hung up ---

    @property
    def left_behind(self) -> int:
        """How many legs of ended forks cannot end yet: their channels have no media."""
        latest = asyncio.get_running_loop().time() - LEAVE_TIMEOUT_S
        return sum(at <= latest for legs in self._leaving.values() for at in legs.values())

    @property
    def leaving(self) -> list[str]:
        """The ids of the legs of ended forks that Asterisk still has."""
        return [leg_id for legs in self._leaving.values() for leg_id in legs]

    def on_fork_ended(self, fork: Fork) -> None:
        """Hear that the relay has hung up all legs of a fork; see whether they go."""
        self._leave(fork, [leg for leg in fork.legs.values() if leg.id and not leg.gone])

    def _leave(self, fork: Fork, legs: Iterable[Leg]) -> None:
        """Watch legs that nobody wants any more, also those that have yet to connect."""
        now = asyncio.get_running_loop().time()
        there = {leg.id: now for leg in legs}
        if there and not fork.hangup_seen:
            self._leaving.setdefault(fork.uniqueid, {}).update(there)
            loop = asyncio.get_running_loop()
            loop.call_later(LEAVE_TIMEOUT_S, self._on_leave_timeout, fork, set(there))

    def _on_leave_timeout(self, fork: Fork, leg_ids: set[str]) -> None:
        if leg_ids & self._leaving.get(fork.uniqueid, {}).keys():
            self._spawn(self._tell_left(fork, leg_ids))

    async def _tell_left(self, fork: Fork, leg_ids: set[str]) -> None:
        with contextlib.suppress(AmiError):  # the next login will tell
            self.keep_leaving(await self._channels.present())
        left = leg_ids & self._leaving.get(fork.uniqueid, {}).keys()
        if left:
            fork.log.warning(
                "%d legs stay in Asterisk until their channel has media or ends (asterisk#978)",
                len(left),
            )

    def on_gone(self, uniqueid: str) -> None:
        """Hear that a channel does not exist any more: a leg's, or one that legs listened to."""
        self._leaving.pop(uniqueid, None)
        for target, legs in list(self._leaving.items()):
            if legs.pop(uniqueid, None) is not None and not legs:
                del self._leaving[target]
        self._left.set()
        self._left = asyncio.Event()

    def keep_leaving(self, present: Container[str]) -> None:
        """Forget the leaving legs that are not among the channels there are."""
        for leg_id in self.leaving:
            if leg_id not in present:
                self.on_gone(leg_id)

    async def wait_for_room(self, fork: Fork) -> None:
        """Return when no more than MAX_LEGS_LEFT legs could be left to a fork's channel.

        Raises:
            RequestRefused: Those that are leaving do not go.
        """
        if self._has_room(fork):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                while not self._has_room(fork):
                    await self._left.wait()
        # The news of their end may be held back by a filter. (Asterisk answers for no channel that
        # is being hung up, but lists it.)
        self.keep_leaving(await self._channels.present())
        if not self._has_room(fork):
            raise RequestRefused(
                f"{len(self._leaving[fork.uniqueid])} legs of earlier forks of the channel cannot "
                "end before it has media (asterisk#978), and no more are left there"
            )

    def _has_room(self, fork: Fork) -> bool:
        leaving = len(self._leaving.get(fork.uniqueid, ()))
        return not leaving or leaving + len(fork.legs) <= MAX_LEGS_LEFT

    # --- To ask for them ---

    def prepare(self, fork: Fork) -> None:
        """Settle what the fork's legs bring."""
        parts = fork.way.parts[fork.request.options.direction]
        fork.legs = {part: Leg(part) for part in parts}

    def order(self, fork: Fork, *, anew: bool) -> None:
        """Ask for all legs of a fork; `anew`: there have been some."""
        for leg in fork.legs.values():
            self._give_time(fork, leg, f"{leg} did not connect{' again' if leg.lost_at else ''}")
            self._ask(fork, leg, anew=anew)

    def _ask(self, fork: Fork, leg: Leg, *, anew: bool) -> None:
        if leg.id and not leg.gone:
            self._leave(fork, [leg])
        leg.id = fork.tap.name_leg(fork.id, leg.part, anew=anew)
        leg.attached = leg.gone = False
        self._spawn(self._start(fork, leg, leg.id))

    def hang_up(self, fork: Fork) -> None:
        """Have Asterisk hang up a fork's legs, whose relay process cannot any more."""
        for leg in fork.legs.values():
            if leg.id and not leg.gone:
                self._channels.hang_up(leg.id)

    async def _start(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        options = fork.request.options
        order = LegOrder(
            leg_id=leg_id,
            fork_id=fork.id,
            part=leg.part,
            uniqueid=fork.uniqueid,
            connects=fork.way.connects,
            sample_rate=fork.sample_rate,
            # The first one speaks for all.
            speaks=options.beeps.any and leg.part is next(iter(fork.legs)),
        )
        if await self._registry.is_held(fork):
            self._cancel_timer(leg)  # for so long none is late
            await self._registry.wait_for_hold(fork)
            if leg.id != leg_id or fork.end_asked is not None or fork.hangup_seen:
                return
            self._give_time(fork, leg, f"{leg} did not connect")
        try:
            await fork.tap.start(order)
        except NoSuchChannel:
            if leg.id == leg_id:
                await self._on_target_gone(fork)
        except LegRefused as exc:
            if leg.id == leg_id:  # else another was asked for since
                self._on_failed(fork, leg, str(exc))
        except LegUncertain as exc:
            # Asterisk may have heard it all the same: the leg comes in time or it does not.
            fork.log.warning("asked for a leg, but: %s", exc)

    async def _on_target_gone(self, fork: Fork) -> None:
        if not fork.hangup_seen:  # the news of its hangup may be under way
            await asyncio.sleep(LEG_LOSS_GRACE_S)
        legs = fork.legs.values()
        had_one = any(leg.attached or leg.lost_at is not None for leg in legs)
        was_there = fork.hangup_seen or fork.taken_up or had_one
        self._registry.end(fork, EndReason.HANGUP if was_there else EndReason.NO_SUCH_CHANNEL)

    def _give_time(self, fork: Fork, leg: Leg, detail: str) -> None:
        """End the fork if the leg does not come in time."""
        self._cancel_timer(leg)
        end = functools.partial(self._registry.end, fork, EndReason.LEG_FAILED, detail)
        leg.timer = asyncio.get_running_loop().call_later(LEG_TIMEOUT_S, end)

    def _cancel_timer(self, leg: Leg) -> None:
        if leg.timer is not None:
            leg.timer.cancel()
            leg.timer = None

    def forget(self, fork: Fork) -> None:
        """Wait for no leg of a fork any more."""
        for leg in fork.legs.values():
            self._cancel_timer(leg)

    # --- What becomes of them ---

    def on_attached(self, fork: Fork, part: LegPart) -> None:
        """Hear that a leg has connected."""
        leg = fork.legs[part]
        leg.attached = True
        self._cancel_timer(leg)
        if leg.lost_at is not None:
            gap_s = asyncio.get_running_loop().time() - leg.lost_at
            leg.lost_at = None
            self._registry.on_leg_back(fork, leg, gap_s)

    def on_lost(self, fork: Fork, report: LegLost) -> None:
        """Hear that Asterisk closed a leg."""
        leg = fork.legs[report.part]
        self._spawn(self._on_loss(fork, leg, "Asterisk closed it", report.frames_in))

    def on_failure(self, fork: Fork, leg_id: str, why: str) -> None:
        """Hear that a leg of this id does not come about; an earlier one is no news."""
        for leg in fork.legs.values():
            if leg.id == leg_id:
                self._on_failed(fork, leg, why)

    def on_hangup(self, fork: Fork, leg_id: str, *, is_gone: bool = True) -> None:
        """Hear that a leg of this id was hung up; that it was lost, the relay tells."""
        for leg in fork.legs.values():
            if leg.id == leg_id:
                leg.gone |= is_gone
            if leg.id == leg_id and fork.tap.early_hangup_detail and not leg.attached:
                self._spawn(self._on_early_hangup(fork, leg, leg_id))

    async def _on_early_hangup(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Tell a leg that never connected from one that ended with its target."""
        end = await self._end_of(fork, 1)
        if end is not None:
            self._registry.end(fork, *end)
        elif leg.id == leg_id and not leg.attached:
            self._on_failed(fork, leg, fork.tap.early_hangup_detail)

    def _on_failed(self, fork: Fork, leg: Leg, why: str) -> None:
        """Hear that a leg does not come about."""
        if fork.relay_away:
            return  # all legs are ordered anew with a relay process
        if leg.lost_at is None:
            self._registry.end(fork, EndReason.LEG_FAILED, why)
        else:
            self._spawn(self._on_loss(fork, leg, why, 1))

    async def _on_loss(self, fork: Fork, leg: Leg, why: str, frames_in: int) -> None:
        """Ask for another leg if the channel lives; else end the fork, with the true reason."""
        if leg.lost_at is None:
            leg.lost_at = asyncio.get_running_loop().time()
        leg_id = leg.id
        end = await self._end_of(fork, frames_in)
        if end is not None:
            self._registry.end(fork, *end)
        elif fork.end_asked is None and fork.state is not ForkState.ENDED:
            # Else the relay has died since, and all legs are ordered anew with another process; one
            # that is asked for before finds nobody, and would soon have used up the attempts.
            if leg.id == leg_id and not fork.relay_away:
                self._replace(fork, leg, why)

    async def _end_of(self, fork: Fork, frames_in: int) -> tuple[EndReason, str] | None:
        """Return why a fork ends whose leg Asterisk closed; None if its channel lives."""
        try:
            await self._check_alive(fork)
            await asyncio.sleep(LEG_LOSS_GRACE_S)
            await self._check_alive(fork)
        except NoSuchChannel:
            if not frames_in and not fork.hangup_seen:
                await asyncio.sleep(LEG_LOSS_GRACE_S)  # the news of its hangup may be under way
            never_there = not (frames_in or fork.hangup_seen or fork.taken_up)
            return (EndReason.NO_SUCH_CHANNEL if never_there else EndReason.HANGUP), ""
        except AmiError as exc:
            # It hangs up all channels then, and refuses to speak of them before it says so.
            if isinstance(exc, AmiActionFailed) and exc.message == SHUTTING_DOWN:
                return EndReason.HANGUP, SHUTTING_DOWN
            if not fork.hangup_seen:
                return EndReason.LEG_FAILED, f"{CANNOT_ASK}: {exc}"
        return (EndReason.HANGUP, "") if fork.hangup_seen else None

    async def _check_alive(self, fork: Fork) -> None:
        """Return if the channel lives; if the link to Asterisk is away, wait for it.

        Raises: as `Channels.check_alive`.
        """
        synced = self._synced
        try:
            await self._channels.check_alive(fork.uniqueid)
        except AmiUnavailable as exc:
            if fork.hangup_seen:
                raise
            # Not just for the link: what is made of a restart must come first.
            try:
                async with asyncio.timeout(ASTERISK_AWAY_S):
                    await synced.wait()
            except TimeoutError:
                raise exc from None
            await self._channels.check_alive(fork.uniqueid)

    # --- Others in their place ---

    def _replace(self, fork: Fork, leg: Leg, why: str) -> None:
        attempt = _count_loss(leg)
        if attempt > MAX_NEW_LEGS:
            self._registry.end(fork, EndReason.LEG_FAILED, _too_many(leg, why))
            return
        self._tell_loss(fork, leg, attempt, f"{leg} was lost: {why}")
        self._send(ReopenLeg(fork.id, leg.part))
        self._ask(fork, leg, anew=True)

    def _tell_loss(self, fork: Fork, leg: Leg, attempt: int, why: str) -> None:
        """Tell that another leg will be asked for, and give it its time."""
        fork.log.warning("%s; attempt %d follows", harmless(why), attempt)
        self._registry.on_leg_away(fork, leg.part, attempt, why)
        self._give_time(fork, leg, f"{leg} did not connect again")

    def lose_all(self, fork: Fork, lost_at: float, why: str) -> str:
        """Note that all legs went with their relay process; they are to be ordered anew.

        Args:
            lost_at: When, in loop time.

        Returns:
            Why that is in vain; empty: it is not.
        """
        attempt = 0
        for leg in fork.legs.values():
            attempt = max(attempt, _count_loss(leg))
            if attempt > MAX_NEW_LEGS:
                return _too_many(leg, why)
            if leg.lost_at is None:
                leg.lost_at = lost_at
        self._tell_loss(fork, leg, attempt, why)
        fork.missing.update(fork.legs)
        return ""


def _count_loss(leg: Leg) -> int:
    """Return how often a leg was lost of late, this time included."""
    now = asyncio.get_running_loop().time()
    recent = [at for at in leg.losses if now - at < NEW_LEGS_WINDOW_S]
    leg.losses = [*recent, now]
    return len(leg.losses)


def _too_many(leg: Leg, why: str) -> str:
    return f"{leg} was lost {len(leg.losses)} times in {NEW_LEGS_WINDOW_S:g} s, last: {why}"
