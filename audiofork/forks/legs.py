"""The legs of forks: asks for them, watches for their loss, asks for others in their place."""

from __future__ import annotations

import asyncio
import functools
import uuid

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import LegOrder
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiUnavailable,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
)
from audiofork.forks.ending import End
from audiofork.forks.events import Attack, AttackKind, Emit, Reconnecting
from audiofork.forks.fork import Fork, Leg
from audiofork.forks.holds import Holds
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.lifecycle import Away, ForkState
from audiofork.forks.tasks import Spawn
from audiofork.link.messages import EndReason, ExpectLeg, LegLost, LegPart, SendCommand
from audiofork.text import harmless

# How long after a leg's end the news of its channel's hangup may come.
LEG_LOSS_GRACE_S = 0.15
# How long after the hangup of a leg's channel its connection, if it was that channel's, may go on.
ORPHAN_TIMEOUT_S = 1.0
LEG_TIMEOUT_S = 6.0  # a tap's own limit is 5 s
# So many new legs in that time in place of a lost one; what loses more is no accident.
MAX_NEW_LEGS = 3
NEW_LEGS_WINDOW_S = 10.0
SHUTTING_DOWN = "Asterisk is shutting down"  # Asterisk's words (main/manager.c)
CONTESTED = "somebody else presented its UUID as well"
ORPHANED = "somebody else speaks in its place: its channel has gone"
CANNOT_ASK = "the leg was lost, and Asterisk cannot be asked"
ASTERISK_AWAY_S = 5.0  # so long a fork without a leg waits to ask Asterisk about its channel


class Legs:
    """Owned by the registry of forks, which tells what it hears of legs.

    Args:
        channels: What Asterisk is asked.
        holds: Tells whether the legs of a fork have to wait.
        leaving: Watches those that are not wanted any more.
        send: Commands the relay.
        emit: Takes what happens.
        end: Ends a fork.
        spawn: Runs what has to wait.
    """

    def __init__(
        self,
        channels: Channels,
        holds: Holds,
        leaving: LeavingLegs,
        send: SendCommand,
        emit: Emit,
        end: End,
        spawn: Spawn,
    ) -> None:
        self._channels = channels
        self._holds = holds
        self._leaving = leaving
        self._send = send
        self._emit = emit
        self._end = end
        self._spawn = spawn
        # Set once the registry is reconciled after a login; replaced at the next.
        self._synced = asyncio.Event()

    def on_synced(self) -> None:
        """Let those go on that wait for the link: a restart of Asterisk would be known by now."""
        self._synced.set()
        self._synced = asyncio.Event()

    # --- To ask for them ---

    def order(self, fork: Fork, *, anew: bool) -> None:
        """Ask for all legs of a fork; `anew`: there have been some."""
        for leg in fork.legs.values():
            self._give_time(fork, leg, f"{leg} did not connect{' again' if leg.lost_at else ''}")
            self._ask(fork, leg, anew=anew)

    def _ask(self, fork: Fork, leg: Leg, *, anew: bool) -> None:
        if leg.id and not leg.gone:
            self._leaving.watch(fork, [leg])
        leg.id = fork.tap.name_leg(fork.id, leg.part, anew=anew)
        leg.attached = leg.gone = False
        leg.uuid = str(uuid.uuid4())
        self._send(ExpectLeg(fork.id, leg.part, leg.uuid))
        self._spawn(self._start(fork, leg, leg.id))

    def hang_up(self, fork: Fork) -> None:
        """Have Asterisk hang up a fork's legs, whose relay process cannot any more."""
        for leg in fork.live_legs():
            self._channels.hang_up(leg.id)

    async def _start(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        await self._wait_for_hold(fork, leg, leg_id)
        if not _is_wanted(fork, leg, leg_id):
            self._leaving.on_gone(leg_id)  # Asterisk never heard of it
            return
        try:
            await fork.tap.start(_order_of(fork, leg, leg_id))
        except NoSuchChannel:
            if leg.id == leg_id:
                await self._on_target_gone(fork)
        except LegRefused as exc:
            if leg.id == leg_id:  # else another was asked for since
                self._on_failed(fork, leg, str(exc))
        except LegUncertain as exc:
            # Asterisk may have heard it all the same: the leg comes in time or it does not.
            fork.log.warning("asked for a leg, but: %s", exc)

    async def _wait_for_hold(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Return when the call is not on hold, or legs need not wait for that."""
        if not await self._holds.delay(fork.uniqueid):
            return
        leg.cancel_timer()  # for so long none is late
        fork.log.info("on hold: its legs are asked for when that is over ([asterisk] on_hold)")
        await self._holds.wait_over(fork.uniqueid)
        if _is_wanted(fork, leg, leg_id):
            self._give_time(fork, leg, f"{leg} did not connect")

    async def _on_target_gone(self, fork: Fork) -> None:
        if not fork.call.hangup_seen:  # the news of its hangup may be under way
            await asyncio.sleep(LEG_LOSS_GRACE_S)
        legs = fork.legs.values()
        had_one = any(leg.attached or leg.lost_at is not None for leg in legs)
        was_there = fork.call.hangup_seen or fork.from_earlier_run or had_one
        self._end(fork, EndReason.HANGUP if was_there else EndReason.NO_SUCH_CHANNEL)

    def _give_time(self, fork: Fork, leg: Leg, detail: str) -> None:
        """End the fork if the leg does not come in time."""
        leg.cancel_timer()
        end = functools.partial(self._end, fork, EndReason.LEG_FAILED, detail)
        leg.timer = asyncio.get_running_loop().call_later(LEG_TIMEOUT_S, end)

    # --- What becomes of them ---

    def on_attached(self, fork: Fork, part: LegPart) -> None:
        """Hear that a leg has connected."""
        leg = fork.legs[part]
        leg.attached = True
        leg.cancel_timer()
        if leg.lost_at is not None:
            gap_s = asyncio.get_running_loop().time() - leg.lost_at
            leg.lost_at = None
            self._on_back(fork, leg, gap_s)

    def _on_back(self, fork: Fork, leg: Leg, gap_s: float) -> None:
        gap_ms = round(gap_s * 1000)
        fork.log.info("%s is back after %d ms", leg, gap_ms)
        if resumed := fork.back(Away(leg.part), gap_ms=gap_ms):
            self._emit(resumed)

    def on_lost(self, fork: Fork, report: LegLost) -> None:
        """Hear that a leg is closed."""
        leg = fork.legs[report.part]
        why = CONTESTED if report.contested else "Asterisk closed it"
        if report.contested:
            self._report_attack(fork, leg, why)
        self._spawn(self._on_loss(fork, leg, why, report.frames_in))

    def _report_attack(self, fork: Fork, leg: Leg, what: str) -> None:
        detail = f"fork {fork.id} {fork.channel}: {leg}: {what}"
        self._emit(Attack(AttackKind.CONTESTED_LEG, detail))

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
            if leg.id == leg_id and is_gone and leg.attached:
                self._spawn(self._on_channel_gone(fork, leg, leg_id))
            if leg.id == leg_id and fork.tap.early_hangup_detail and not leg.attached:
                self._spawn(self._on_early_hangup(fork, leg, leg_id))

    async def _on_channel_gone(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Ask for another leg if the connection outlives the channel: it was never that one's."""
        await asyncio.sleep(ORPHAN_TIMEOUT_S)
        is_lost = leg.lost_at is not None or fork.progress.relay_away
        if not is_lost and _is_wanted(fork, leg, leg_id):
            self._report_attack(fork, leg, ORPHANED)
            await self._on_loss(fork, leg, ORPHANED, 1)

    async def _on_early_hangup(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Tell a leg that never connected from one that ended with its target."""
        end = await self._end_of(fork, 1)
        if end is not None:
            self._end(fork, *end)
        elif leg.id == leg_id and not leg.attached:
            self._on_failed(fork, leg, fork.tap.early_hangup_detail)

    def _on_failed(self, fork: Fork, leg: Leg, why: str) -> None:
        """Hear that a leg does not come about."""
        if fork.progress.relay_away:
            return  # all legs are ordered anew with a relay process
        if leg.lost_at is None:
            self._end(fork, EndReason.LEG_FAILED, why)
        else:
            self._spawn(self._on_loss(fork, leg, why, 1))

    async def _on_loss(self, fork: Fork, leg: Leg, why: str, frames_in: int) -> None:
        """Ask for another leg if the channel lives; else end the fork, with the true reason."""
        if leg.lost_at is None:
            leg.lost_at = asyncio.get_running_loop().time()
        leg_id = leg.id
        end = await self._end_of(fork, frames_in)
        if end is not None:
            self._end(fork, *end)
        # Without a relay process all legs are ordered anew with another one; a leg that is asked
        # for before finds nobody, and would soon have used up the attempts.
        elif _is_wanted(fork, leg, leg_id) and not fork.progress.relay_away:
            self._replace(fork, leg, why)

    async def _end_of(self, fork: Fork, frames_in: int) -> tuple[EndReason, str] | None:
        """Return why a fork ends whose leg Asterisk closed; None if its channel lives."""
        try:
            await self._check_alive(fork)
            await asyncio.sleep(LEG_LOSS_GRACE_S)
            await self._check_alive(fork)
        except NoSuchChannel:
            if not frames_in and not fork.call.hangup_seen:
                await asyncio.sleep(LEG_LOSS_GRACE_S)  # the news of its hangup may be under way
            never_there = not (frames_in or fork.call.hangup_seen or fork.from_earlier_run)
            return (EndReason.NO_SUCH_CHANNEL if never_there else EndReason.HANGUP), ""
        except AmiError as exc:
            # It hangs up all channels then, and refuses to speak of them before it says so.
            if isinstance(exc, AmiActionFailed) and exc.message == SHUTTING_DOWN:
                return EndReason.HANGUP, SHUTTING_DOWN
            if not fork.call.hangup_seen:
                return EndReason.LEG_FAILED, f"{CANNOT_ASK}: {exc}"
        return (EndReason.HANGUP, "") if fork.call.hangup_seen else None

    async def _check_alive(self, fork: Fork) -> None:
        """Return if the channel lives; if the link to Asterisk is away, wait for it.

        Raises: as `Channels.check_alive`.
        """
        synced = self._synced
        try:
            await self._channels.check_alive(fork.uniqueid)
        except AmiUnavailable as exc:
            if fork.call.hangup_seen:
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
            self._end(fork, EndReason.LEG_FAILED, _too_many(leg, why))
            return
        self._report_loss(fork, Away(leg.part), attempt, f"{leg} was lost: {why}")
        self._give_time(fork, leg, f"{leg} did not connect again")
        self._ask(fork, leg, anew=True)

    def _report_loss(self, fork: Fork, what: Away, attempt: int, why: str) -> None:
        """Tell that legs will be asked for in place of lost ones."""
        fork.log.warning("%s; attempt %d follows", harmless(why), attempt)
        was_streaming = fork.lost(what)
        self._emit(Reconnecting(fork.info, what, attempt, why, was_streaming))

    def lose_all(self, fork: Fork, lost_at: float, why: str) -> str:
        """Note that all legs went with their relay process; they are to be ordered anew.

        Args:
            lost_at: When, in loop time.

        Returns:
            Why that is in vain; empty: it is not.
        """
        legs = fork.legs.values()
        for leg in legs:
            _count_loss(leg)
            if leg.lost_at is None:
                leg.lost_at = lost_at
        worst = max(legs, key=lambda leg: len(leg.losses))
        attempt = len(worst.losses)
        if attempt > MAX_NEW_LEGS:
            return _too_many(worst, why)
        self._report_loss(fork, Away.RELAY, attempt, why)
        return ""


def _is_wanted(fork: Fork, leg: Leg, leg_id: str) -> bool:
    """Return whether a fork goes on, and its leg is still the one of this id."""
    return leg.id == leg_id and not fork.is_ending and fork.state is not ForkState.ENDED


def _order_of(fork: Fork, leg: Leg, leg_id: str) -> LegOrder:
    """Return what a tap has to know of a leg."""
    return LegOrder(
        leg_id=leg_id,
        uuid=leg.uuid,
        fork_id=fork.id,
        part=leg.part,
        uniqueid=fork.uniqueid,
        connects=fork.way.connects,
        sample_rate=fork.sample_rate,
        # The first one speaks for all.
        speaks=fork.request.options.beeps.any and leg.part is next(iter(fork.legs)),
    )


def _count_loss(leg: Leg) -> int:
    """Return how often a leg was lost of late, this time included."""
    now = asyncio.get_running_loop().time()
    recent = [at for at in leg.losses if now - at < NEW_LEGS_WINDOW_S]
    leg.losses = [*recent, now]
    return len(leg.losses)


def _too_many(leg: Leg, why: str) -> str:
    return f"{leg} was lost {len(leg.losses)} times in {NEW_LEGS_WINDOW_S:g} s, last: {why}"
