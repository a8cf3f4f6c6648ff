"""Moves forks from a relay host that is drained to others, with the legs of both for a moment."""

from __future__ import annotations

import asyncio
import logging
import uuid

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.connect import server_of
from audiofork.errors import AmiError, LegRefused, LegUncertain, NoSuchChannel
from audiofork.forks.admission import Admission
from audiofork.forks.fork import Fork, Leg
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.legs import order_of
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.moving import Moving
from audiofork.forks.orders import spec_of
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Spawn
from audiofork.forks.waiting_calls import uuids_of
from audiofork.link.messages import (
    ExpectLeg,
    LegPart,
    Moved,
    MoveFork,
    MoveReady,
    MoveReport,
    NotMoved,
    RelayDraining,
    SendCommand,
    SetMute,
    TakenOver,
)
from audiofork.link.relay import UntilExpected

log = logging.getLogger(__name__)


class Relocation:
    """The forks that move; owned by the registry of forks.

    Args:
        table: All forks.
        admission: Knows how many forks a second may start.
        channels: Hangs up legs.
        leaving: Watches the legs that are no longer wanted.
        send: Sends a command to the relay.
        until_expected: Returns when the relay expects the legs of a fork.
        spawn: Runs a coroutine in the background.
    """

    def __init__(
        self,
        table: ForkTable,
        admission: Admission,
        channels: Channels,
        leaving: LeavingLegs,
        send: SendCommand,
        until_expected: UntilExpected,
        spawn: Spawn,
    ) -> None:
        self._table = table
        self._channels = channels
        self._leaving = leaving
        self._send = send
        self._until_expected = until_expected
        self._spawn = spawn
        self._moving = Moving(lambda: admission.security.max_starts, self._begin)
        self._legs: dict[str, dict[LegPart, Leg]] = {}  # the new ones, by fork
        # How many forks of a host move, and how many stay for now, as was told last.
        self._told: dict[str, tuple[int, int]] = {}

    def on_report(self, report: MoveReport) -> None:
        """Handle a report of the relay."""
        if isinstance(report, RelayDraining):
            self._on_draining(report)
        elif isinstance(report, MoveReady):
            self._on_ready(report)
        else:
            legs = self._legs.pop(report.fork_id, {})
            fork = self._table.get(report.fork_id)
            if isinstance(report, NotMoved):
                self._on_not_moved(fork, report, legs)
            elif fork is not None:
                self._on_moved(fork, report, legs)

    def _on_draining(self, report: RelayDraining) -> None:
        found = [self._table.get(fork_id) for fork_id in report.fork_ids]
        forks = [fork for fork in found if fork is not None]
        moving = [one for one in forks if report.moves_calls or not one.connects]
        self._moving.add(
            [one for one in moving if _can_move(one)], asyncio.get_running_loop().time()
        )
        self._tell(report.relay_host, len(moving), len(forks) - len(moving))

    def _tell(self, relay_host: str, moving: int, staying: int) -> None:
        if (moving, staying) == self._told.get(relay_host):
            return
        self._told[relay_host] = moving, staying
        later = (
            f"; {staying} calls whose other party is a server stay for now: those that do not end "
            "move when drain_timeout is nearly over"
        )
        text = "the relay host %s is drained: %d forks are to move%s"
        log.info(text, relay_host, moving, later if staying else "")

    def _begin(self, fork: Fork, _since: float) -> None:
        if not _can_move(fork) or fork.id in self._legs:
            return
        legs = {
            part: Leg(
                *(part, fork.tap.name_leg(fork.id, part, anew=True), str(uuid.uuid4())),
                is_spare=fork.connects,
            )
            for part in fork.legs
        }
        self._legs[fork.id] = legs
        orders: list[ExpectLeg | SetMute] = [
            ExpectLeg(fork.id, leg.part, leg.uuid, leg.id) for leg in legs.values()
        ]
        if fork.mute_in or fork.mute_out:
            orders.append(SetMute(fork.id, fork.mute_in, fork.mute_out))
        self._send(MoveFork(spec_of(fork), tuple(orders), by_bridge=fork.connects))
        self._spawn(self._request(fork, legs))

    async def _request(self, fork: Fork, legs: dict[LegPart, Leg]) -> None:
        """Request the new legs; the relay gives the move up if they do not come."""
        await self._until_expected(fork.id)
        for leg in legs.values():
            if self._legs.get(fork.id) is not legs:
                return
            try:
                await fork.tap.start(order_of(fork, leg, leg.id))
            except (NoSuchChannel, LegRefused, LegUncertain) as exc:
                fork.log.warning("%s for another relay host: %s", leg, exc)

    def _on_ready(self, report: MoveReady) -> None:
        """Bridge a call with the leg that its other host has."""
        fork, legs = self._table.get(report.fork_id), self._legs.get(report.fork_id, {})
        if fork is not None and not fork.is_ending:
            for leg in legs.values():
                self._spawn(self._bridge(fork, leg))

    async def _bridge(self, fork: Fork, leg: Leg) -> None:
        why = "it was taken elsewhere"
        try:
            known = uuids_of(fork)
            if (await server_of(self._channels, fork.uniqueid, known)).is_of(fork.id):
                await self._channels.bridge(fork.uniqueid, leg.id)
                known = (*known, leg.uuid)
                if (await server_of(self._channels, fork.uniqueid, known)).is_of(fork.id):
                    return  # else it was taken elsewhere in that very moment
        except AmiError as exc:
            why = str(exc)
        fork.log.warning("it is not connected with another relay host: %s", why)
        self._channels.hang_up(leg.id)  # which ends the move, or what came of it

    def _on_moved(self, fork: Fork, report: Moved, legs: dict[LegPart, Leg]) -> None:
        for part, new in legs.items():
            leg = fork.legs[part]
            if not leg.gone:
                self._leaving.watch(fork, [leg])
            leg.id, leg.uuid, leg.attached, leg.gone = new.id, new.uuid, True, new.gone
        fork.log.info("the relay host %s has it now", report.to)

    def on_taken_over(self, fork: Fork, report: TakenOver) -> None:
        """Tell of frames that may be missing, or come twice, where the fork went on."""
        if not report.is_exact:
            fork.log.warning("some frames may be missing, or come twice, as it has moved")

    def _on_not_moved(self, fork: Fork | None, report: NotMoved, legs: dict[LegPart, Leg]) -> None:
        """Have legs hung up that are not wanted after all."""
        for leg in legs.values():
            self._channels.hang_up(leg.id)
        if fork is not None:
            self._leaving.watch(fork, legs.values())
            if not fork.is_ending:
                fork.log.warning("it stays at its relay host: %s", report.why)

    def forget(self) -> None:
        """Leave all forks that move as they are."""
        self._moving.close()
        self._legs.clear()

    def close(self) -> None:
        """Begin no more moves."""
        self._moving.close()


def _can_move(fork: Fork) -> bool:
    """Return whether a fork flows."""
    return fork.state is ForkState.STREAMING and not fork.is_ending
