"""The legs of forks: requests them, notices their loss, requests replacements."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Container

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import LegOrder
from audiofork.asterisk.taps.connect import server_of
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
from audiofork.forks.orders import heard_by
from audiofork.forks.requests import DIALPLAN
from audiofork.forks.tasks import Spawn
from audiofork.forks.waiting_calls import GONE_ON, UNKNOWN_UUID, uuids_of
from audiofork.link.messages import (
    EndReason,
    ExpectLeg,
    HeldFork,
    LegLost,
    LegPart,
    SendCommand,
)
from audiofork.link.relay import UntilExpected
from audiofork.text import harmless

# How long after the end of a leg the hangup event of the copied channel may come.
LEG_LOSS_GRACE_S = 0.15
# How long after the hangup of a leg's own channel its connection may stay open. If it stays open
# longer, it is not the connection of that channel.
ORPHAN_TIMEOUT_S = 1.0
LEG_TIMEOUT_S = 6.0  # longer than the limit of the taps, 5 s
# Most replacements of a leg within NEW_LEGS_WINDOW_S; a leg that is lost more often ends the fork.
MAX_NEW_LEGS = 3
NEW_LEGS_WINDOW_S = 10.0
SHUTTING_DOWN = "Asterisk is shutting down"  # Asterisk's own text (main/manager.c)
CONTESTED = "somebody else presented its UUID as well"
RELAY_WAS_AWAY = "lost while its relay was away"
ORPHANED = "somebody else speaks in its place: its channel has gone"
CANNOT_ASK = "the leg was lost, and Asterisk cannot be asked"
MOVED_ON = "the call went on without the server: it was transferred, or taken elsewhere"
ASTERISK_AWAY_S = 5.0  # how long a fork without a leg waits for a connection to Asterisk


class Legs:
    """Requests the legs of forks and replaces lost ones; ends a fork whose channel is gone.

    Owned by the registry of forks, which passes on events and reports about legs.

    Args:
        channels: Asks Asterisk about channels.
        holds: Knows whether the legs of a fork must wait for the end of a hold.
        leaving: See below.
        send: Sends a command to the relay.
        emit: Called with each event.
        end: Ends a fork.
        spawn: Runs a coroutine in the background.
        until_expected: Returns when the relay expects the legs of a fork.

    Attributes:
        leaving: Watches the legs that are no longer wanted.
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
        until_expected: UntilExpected,
    ) -> None:
        self._channels = channels
        self._holds = holds
        self.leaving = leaving
        self._send = send
        self._emit = emit
        self._end = end
        self._spawn = spawn
        self._until_expected = until_expected
        # Set once the registry is reconciled after a login; replaced at the next.
        self._synced = asyncio.Event()

    def on_synced(self) -> None:
        """Wake forks that wait for the connection: a restart of Asterisk is handled by now."""
        self._synced.set()
        self._synced = asyncio.Event()

    # --- Requests ---

    def order(self, fork: Fork, *, anew: bool) -> None:
        """Request all legs of a fork.

        Args:
            fork: The fork.
            anew: Whether the fork had legs before, so that the new ones need other ids.
        """
        for leg in fork.legs.values():
            self._give_time(fork, leg, f"{leg} did not connect{' again' if leg.lost_at else ''}")
            self._ask(fork, leg, anew=anew)

    def connect(self, fork: Fork) -> None:
        """Request the leg of a connected fork, once with each relay: its server is there."""
        if not any(leg.id for leg in fork.legs.values()):
            self.order(fork, anew=any(leg.lost_at is not None for leg in fork.legs.values()))

    def adopt(self, fork: Fork, held: HeldFork, present: Container[str]) -> None:
        """Take over the legs of a fork that an earlier daemon has left to its relay process.

        Those that are not attached, or that Asterisk does not have, are requested anew: the earlier
        daemon may have died before it could, or in the midst of it.

        Args:
            fork: The fork.
            held: What the relay process has told of it.
            present: The uniqueids of all channels.
        """
        for leg in fork.legs.values():
            leg.id, leg.uuid = held.leg_ids.get(leg.part, ""), UNKNOWN_UUID
            if fork.connects and not leg.id:
                continue  # it is requested when the server is there
            # The first leg of a connected fork is an end of the call.
            is_own = not fork.connects or leg.id != fork.tap.name_leg(fork.id, leg.part, anew=False)
            leg.gone = not is_own
            leg.is_spare = fork.connects and is_own  # for what the earlier daemon knew
            self._give_time(fork, leg, f"{leg} did not connect")
            is_there = leg.part in held.attached and leg.id in present
            if is_own and not is_there and fork.uniqueid in present:
                if leg.id in present:
                    self._channels.hang_up(leg.id)
                self._ask(fork, leg, anew=True)

    def _ask(self, fork: Fork, leg: Leg, *, anew: bool) -> None:
        if leg.id and not leg.gone:
            # The earlier leg may stay in Asterisk, and a channel has room for only a few of those.
            self.leaving.watch(fork, [leg])
        leg.id = fork.tap.name_leg(fork.id, leg.part, anew=anew)
        leg.attached = False
        leg.is_spare = fork.connects and anew
        # The first is an end of the call, and no channel of its own that could be left behind.
        leg.gone = fork.connects and not anew
        leg.uuid, leg.earlier_uuid = str(uuid.uuid4()), leg.uuid
        # First the relay, then Asterisk: the relay refuses a leg whose UUID it does not know yet.
        self._send(ExpectLeg(fork.id, leg.part, leg.uuid, leg.id))
        self._spawn(self._start(fork, leg, leg.id))

    def hang_up(self, fork: Fork) -> None:
        """Ask Asterisk to hang up a fork's legs, because its relay process is gone."""
        for leg in fork.live_legs():
            self._channels.hang_up(leg.id)

    async def _start(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        await self._wait_for_hold(fork, leg, leg_id)
        if _is_wanted(fork, leg, leg_id):
            await self._until_expected(fork.id)
        if not _is_wanted(fork, leg, leg_id):
            self.leaving.on_gone(leg_id)  # it was never requested from Asterisk
            return
        try:
            await fork.tap.start(order_of(fork, leg, leg_id))
        except NoSuchChannel:
            if leg.id == leg_id:
                await self._on_target_gone(fork)
        except LegRefused as exc:
            if leg.id == leg_id:  # else another leg was requested since
                self._on_failed(fork, leg, str(exc))
        except LegUncertain as exc:
            # Asterisk may have got the request: the leg's timer ends the fork if no leg comes.
            fork.log.warning("cannot tell whether Asterisk got the request for a leg: %s", exc)

    async def _wait_for_hold(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Return when the call is not on hold, or at once if legs need not wait for that."""
        if not await self._holds.delay(fork.uniqueid):
            return
        leg.cancel_timer()  # the time limit does not count during a hold
        fork.log.info("on hold: its legs are requested when the hold is over ([asterisk] on_hold)")
        fork.chronicle.on_hold(held=True)
        await self._holds.wait_over(fork.uniqueid)
        fork.chronicle.on_hold(held=False)
        if _is_wanted(fork, leg, leg_id):
            self._give_time(fork, leg, f"{leg} did not connect")

    async def _on_target_gone(self, fork: Fork) -> None:
        if not fork.call.hangup_seen:  # the hangup event may still come
            await asyncio.sleep(LEG_LOSS_GRACE_S)
        # The channel existed if anything shows that; otherwise the request came too late.
        legs = fork.legs.values()
        had_one = any(leg.attached or leg.lost_at is not None for leg in legs)
        was_there = fork.call.hangup_seen or fork.from_earlier_run or had_one
        self._end(fork, EndReason.HANGUP if was_there else EndReason.NO_SUCH_CHANNEL)

    def _give_time(self, fork: Fork, leg: Leg, detail: str) -> None:
        """Start the time limit of a leg; the fork ends with `detail` if it does not connect."""
        leg.cancel_timer()
        end = functools.partial(self._end, fork, EndReason.LEG_FAILED, detail)
        leg.timer = asyncio.get_running_loop().call_later(LEG_TIMEOUT_S, end)

    # --- Events and reports ---

    def on_attached(self, fork: Fork, part: LegPart) -> None:
        """Handle a leg that has connected."""
        leg = fork.legs[part]
        leg.attached = True
        leg.cancel_timer()
        if leg.is_spare:
            self._spawn(self._join(fork, leg, leg.id))
        else:
            self._on_there(fork, leg)

    async def _join(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Bridge a call whose leg was lost with its new leg, if it still waits for its server."""
        why = ""
        try:
            server = await server_of(self._channels, fork.uniqueid, uuids_of(fork))
            if not server.is_of(fork.id):
                why = GONE_ON
            elif not (server.peers and await self._channels.is_bridged(leg_id)):
                await self._channels.bridge(fork.uniqueid, leg_id)
                server = await server_of(self._channels, fork.uniqueid, uuids_of(fork))
                why = "" if server.is_of(fork.id) else GONE_ON  # in that very moment
        except NoSuchChannel:
            await self._on_target_gone(fork)
            return
        except AmiError as exc:
            why = str(exc)
        if _is_wanted(fork, leg, leg_id):
            if why:
                self._end(fork, EndReason.LEG_FAILED, why)
            else:
                leg.is_spare = False
                self._on_there(fork, leg)

    def _on_there(self, fork: Fork, leg: Leg) -> None:
        if all(one.attached for one in fork.legs.values()):
            fork.chronicle.on_legs()
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
        """Handle the report of a leg that was closed, but not by the relay."""
        leg = fork.legs[report.part]
        why = CONTESTED if report.contested else "Asterisk closed it"
        if report.contested:
            self._report_attack(fork, leg, why)
        self._spawn(self._on_loss(fork, leg, why, report.frames_in))

    def _report_attack(self, fork: Fork, leg: Leg, what: str) -> None:
        detail = f"fork {fork.id} {fork.channel}: {leg}: {what}"
        self._emit(Attack(AttackKind.CONTESTED_LEG, detail))

    def on_failure(self, fork: Fork, leg_id: str, why: str) -> None:
        """Handle a leg that Asterisk could not make; no effect if it was replaced since."""
        for leg in fork.legs.values():
            if leg.id == leg_id:
                self._on_failed(fork, leg, why)

    def on_hangup(self, fork: Fork, leg_id: str, *, is_gone: bool = True) -> None:
        """Handle the hangup of a leg's channel; the relay reports the loss of its connection.

        Args:
            fork: The fork.
            leg_id: The id of the leg.
            is_gone: Whether the channel does not exist any more.
        """
        for leg in fork.legs.values():
            if leg.id == leg_id:
                leg.gone |= is_gone  # False: so far its hangup was only requested
            if leg.id == leg_id and is_gone and leg.attached:
                self._spawn(self._on_channel_gone(fork, leg, leg_id))
            if leg.id == leg_id and fork.tap.early_hangup_detail and not leg.attached:
                self._spawn(self._on_early_hangup(fork, leg, leg_id))

    async def _on_channel_gone(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """Replace a leg whose connection outlives its channel: another client has opened it."""
        await asyncio.sleep(ORPHAN_TIMEOUT_S)
        if not await self._until_expected(fork.id):
            return  # a relay that does not answer has not told either that the leg is lost
        is_lost = leg.lost_at is not None or fork.progress.relay_away
        if not is_lost and _is_wanted(fork, leg, leg_id):
            self._report_attack(fork, leg, ORPHANED)
            # 1 frame: the leg proves that the channel existed.
            await self._on_loss(fork, leg, ORPHANED, frames_in=1)

    async def _on_early_hangup(self, fork: Fork, leg: Leg, leg_id: str) -> None:
        """End the fork if its channel is gone; else treat the leg as one that did not connect."""
        end = await self._end_of(fork, 1)
        if end is not None:
            self._end(fork, *end)
        elif leg.id == leg_id and not leg.attached:
            self._on_failed(fork, leg, fork.tap.early_hangup_detail)

    def _on_failed(self, fork: Fork, leg: Leg, why: str) -> None:
        """End the fork, or replace the leg if it had connected before."""
        if fork.progress.relay_away:
            return  # all legs are requested again when another relay process has the fork
        if leg.lost_at is None or fork.connects:
            self._end(fork, EndReason.LEG_FAILED, why)
        else:
            self._spawn(self._on_loss(fork, leg, why, 1))

    async def _on_loss(self, fork: Fork, leg: Leg, why: str, frames_in: int) -> None:
        """Replace a leg if the fork's channel exists; else end the fork, with the true reason."""
        if leg.lost_at is None:
            leg.lost_at = asyncio.get_running_loop().time()
        leg_id = leg.id
        end = await self._end_of(fork, frames_in)
        if end is not None:
            self._end(fork, *end)
        elif fork.connects and _is_wanted(fork, leg, leg_id) and not await self._waits(fork):
            self._end(fork, EndReason.STOPPED, MOVED_ON)
        # Without a relay process no leg can connect, so a request now would only use up attempts.
        # All legs are requested again when another relay process has the fork.
        elif _is_wanted(fork, leg, leg_id) and not fork.progress.relay_away:
            self._replace(fork, leg, why)

    async def _waits(self, fork: Fork) -> bool:
        """Return whether a call waits for its server, whose leg was lost."""
        try:
            server = await server_of(self._channels, fork.uniqueid)
        except AmiError:
            return False
        return server.is_of(fork.id) and not server.peers

    async def _end_of(self, fork: Fork, frames_in: int) -> tuple[EndReason, str] | None:
        """Return why a fork must end after Asterisk closed its leg; None if its channel exists.

        Args:
            fork: The fork.
            frames_in: Frames that its legs have brought; 0 means that the channel may never have
                existed.
        """
        try:
            # Twice: Asterisk closes the leg before the channel that it copies is gone.
            await self._check_alive(fork)
            await asyncio.sleep(LEG_LOSS_GRACE_S)
            await self._check_alive(fork)
        except NoSuchChannel:
            if not frames_in and not fork.call.hangup_seen:
                await asyncio.sleep(LEG_LOSS_GRACE_S)  # the hangup event may still come
            never_there = not (frames_in or fork.call.hangup_seen or fork.from_earlier_run)
            return (EndReason.NO_SUCH_CHANNEL if never_there else EndReason.HANGUP), ""
        except AmiError as exc:
            # At a shutdown Asterisk hangs up all channels, and rejects actions before it sends the
            # hangup events.
            if isinstance(exc, AmiActionFailed) and exc.message == SHUTTING_DOWN:
                return EndReason.HANGUP, SHUTTING_DOWN
            if not fork.call.hangup_seen:
                return EndReason.LEG_FAILED, f"{CANNOT_ASK}: {exc}"
        return (EndReason.HANGUP, "") if fork.call.hangup_seen else None

    async def _check_alive(self, fork: Fork) -> None:
        """Return if the channel exists; wait up to ASTERISK_AWAY_S for a connection to Asterisk.

        Raises: as `Channels.check_alive`.
        """
        synced = self._synced  # taken first: a login during the question must not be missed
        try:
            await self._channels.check_alive(fork.uniqueid)
        except AmiUnavailable as exc:
            if fork.call.hangup_seen:
                raise
            # Wait until the registry is reconciled, not only for the connection: if Asterisk was
            # restarted, that must end the fork first, with its own reason.
            try:
                async with asyncio.timeout(ASTERISK_AWAY_S):
                    await synced.wait()
            except TimeoutError:
                raise exc from None
            await self._channels.check_alive(fork.uniqueid)

    # --- Replacements ---

    def _replace(self, fork: Fork, leg: Leg, why: str) -> None:
        attempt = _count_loss(leg)
        if attempt > MAX_NEW_LEGS:
            self._end(fork, EndReason.LEG_FAILED, _too_many(leg, why))
            return
        self._report_loss(fork, Away(leg.part), attempt, f"{leg} was lost: {why}")
        self._give_time(fork, leg, f"{leg} did not connect again")
        self._ask(fork, leg, anew=True)

    def _report_loss(self, fork: Fork, what: Away, attempt: int, why: str) -> None:
        """Log and emit that lost legs will be requested again."""
        fork.log.warning("%s; attempt %d follows", harmless(why), attempt)
        was_streaming = fork.lost(what, why, attempt)
        self._emit(Reconnecting(fork.info, what, attempt, why, was_streaming))

    def on_relay_back(self, fork: Fork) -> None:
        """Replace the legs that were lost while no relay process had the fork."""
        for leg in fork.legs.values():
            if leg.lost_at is not None:
                self._spawn(self._on_loss(fork, leg, RELAY_WAS_AWAY, 1))

    def lose_all(self, fork: Fork, lost_at: float, why: str) -> str:
        """Count the loss of all legs with their relay process; the caller requests them again.

        Args:
            fork: The fork.
            lost_at: When they were lost, in loop time.
            why: Why they were lost.

        Returns:
            Why the fork must end instead; empty if the legs may be requested again.
        """
        legs = fork.legs.values()
        for leg in legs:
            _count_loss(leg)
            if leg.lost_at is None and (leg.attached or not fork.connects):
                leg.lost_at = lost_at
            if fork.connects:
                leg.id = ""  # it is requested when the server is there
        # One leg is enough to end the fork: its losses are the fork's attempts.
        worst = max(legs, key=lambda leg: len(leg.losses))
        attempt = len(worst.losses)
        if attempt > MAX_NEW_LEGS:
            return _too_many(worst, why)
        self._report_loss(fork, Away.RELAY, attempt, why)
        fork.chronicle.on_gap_before(asyncio.get_running_loop().time() - lost_at)
        return ""


def _is_wanted(fork: Fork, leg: Leg, leg_id: str) -> bool:
    """Return whether a fork goes on, and this id is still that of its leg."""
    return leg.id == leg_id and not fork.is_ending and fork.state is not ForkState.ENDED


def order_of(fork: Fork, leg: Leg, leg_id: str) -> LegOrder:
    """Return what a tap needs to know about a leg."""
    return LegOrder(
        leg_id=leg_id,
        uuid=leg.uuid,
        fork_id=fork.id,
        part=leg.part,
        uniqueid=fork.uniqueid,
        connects=fork.way.connects,
        sample_rate=fork.sample_rate,
        heard_by=heard_by(fork, leg.part),
        channel=fork.channel,
        leads=fork.connects and not waits_itself(fork),
        is_spare=leg.is_spare,
    )


def waits_itself(fork: Fork) -> bool:
    """Return whether the channel's own dialplan has asked, and waits for the server."""
    origin = fork.request.origin
    return origin.door == DIALPLAN and origin.who == fork.uniqueid


def _count_loss(leg: Leg) -> int:
    """Count a loss; return how often the leg was lost within NEW_LEGS_WINDOW_S."""
    now = asyncio.get_running_loop().time()
    recent = [at for at in leg.losses if now - at < NEW_LEGS_WINDOW_S]
    leg.losses = [*recent, now]
    return len(leg.losses)


def _too_many(leg: Leg, why: str) -> str:
    return f"{leg} was lost {len(leg.losses)} times in {NEW_LEGS_WINDOW_S:g} s, last: {why}"
