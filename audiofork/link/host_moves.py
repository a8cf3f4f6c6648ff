"""The forks that move from one relay host to another, step by step, without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from audiofork.link.host_worker import HostWorker
from audiofork.link.messages import (
    Command,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    HandedOver,
    HandOver,
    LegAttached,
    LegPart,
    Moved,
    MoveFork,
    NoteFrames,
    NotMoved,
    Report,
    SetGate,
    SetMute,
    SinkOpened,
    SinkRetrying,
    TakenOver,
    TakeOver,
)

# For so long both relays get the frames before the second takes over: of some they must know that
# they are the same.
BOTH_S = 0.6
MOVE_TIMEOUT_S = 8.0


@dataclass(eq=False)
class _Move:
    """A fork that moves.

    Attributes:
        spec: What the new host was ordered.
        old, new: The hosts.
        missing: The parts whose legs have not come to the new host.
        opened: Whether the server has accepted the new connection.
        handed_over: Whether the old host was told to stop.
        timer: Goes on with the next step, or gives the move up.
    """

    spec: ForkSpec
    old: HostWorker
    new: HostWorker
    missing: set[LegPart] = field(default_factory=set)
    opened: bool = False
    handed_over: bool = False
    timer: asyncio.TimerHandle | None = None

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.cancel()
        self.timer = asyncio.get_running_loop().call_later(seconds, what)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class HostMoves:
    """Owned by `RelayHosts`, which passes on the commands and reports of forks that move.

    Args:
        report: Called with `Moved` and `NotMoved`.
        own: Called with a fork and its new host when that has it.
    """

    def __init__(
        self, report: Callable[[Report], None], own: Callable[[str, HostWorker], None]
    ) -> None:
        self._report = report
        self._own = own
        self._moves: dict[str, _Move] = {}

    def begin(self, command: MoveFork, old: HostWorker, new: HostWorker | None) -> None:
        """Order a fork from a second host, beside the first."""
        if new is None:
            self._report(NotMoved(command.fork_id, "no other relay host can take it"))
            return
        spec = replace(command.spec, holds=True)
        move = self._moves[spec.fork_id] = _Move(spec, old, new, set(spec.legs))
        move.after(MOVE_TIMEOUT_S, lambda: self._give_up(move, "the other did not get it in time"))
        new.send(spec)
        old.send(NoteFrames(spec.fork_id))

    def new_host(self, fork_id: str) -> HostWorker | None:
        """Return the host that a fork moves to; None: it does not move."""
        move = self._moves.get(fork_id)
        return move.new if move is not None else None

    def on_command(self, command: Command) -> bool:
        """Take a command for a fork that moves; return whether it is not for the old host."""
        move = self._moves.get(command.fork_id)  # type: ignore[union-attr]  # those of forks
        if move is None:
            return False
        if isinstance(command, ExpectLeg):
            move.new.send(command)
            return True
        if isinstance(command, SetMute | SetGate):
            move.new.send(command)
        elif isinstance(command, EndFork):
            self._drop(move)
            if move.handed_over:  # the old one has ended it already
                self._own(command.fork_id, move.new)
        return False

    def on_report(self, worker: HostWorker, report: ForkReport) -> bool:
        """Take a report of a fork that moves; return whether nobody else is to get it."""
        move = self._moves.get(report.fork_id)
        if move is None or worker not in (move.old, move.new):
            return False
        if worker is move.new:
            self._on_new(move, report)
            return True
        if isinstance(report, HandedOver):
            self._on_handed_over(move, report)
            return True
        if isinstance(report, ForkEnded) and not move.handed_over:
            self._drop(move)
        return False

    def _on_new(self, move: _Move, report: ForkReport) -> None:
        if isinstance(report, TakenOver):
            self._forget(move)
            self._report(Moved(move.spec.fork_id, move.new.beat.name, report.is_exact))
        elif isinstance(report, ForkEnded | SinkRetrying):
            what = report.detail or "it has ended there"
            self._give_up(move, f"on the other: {what}")
        elif isinstance(report, LegAttached):
            move.missing.discard(report.part)
            self._look(move)
        elif isinstance(report, SinkOpened):
            move.opened = True
            self._look(move)

    def _look(self, move: _Move) -> None:
        """Let the new host take over a while after it has all that it needs."""
        if move.opened and not move.missing and not move.handed_over:
            move.after(BOTH_S, lambda: self._hand_over(move))

    def _hand_over(self, move: _Move) -> None:
        move.handed_over = True
        move.old.send(HandOver(move.spec.fork_id))
        move.after(MOVE_TIMEOUT_S, lambda: self._take_over(move, ()))

    def _on_handed_over(self, move: _Move, report: HandedOver) -> None:
        self._take_over(move, report.tail)

    def _take_over(self, move: _Move, tail: Sequence[int]) -> None:
        fork_id = move.spec.fork_id
        if (told := move.old.told.get(fork_id)) is not None:
            new = move.new.told[fork_id]
            new.opened, new.streaming = True, told.streaming
        self._own(fork_id, move.new)
        move.new.send(TakeOver(fork_id, tuple(tail)))
        move.after(MOVE_TIMEOUT_S, lambda: self._forget(move))

    def on_reopened(self, worker: HostWorker) -> None:
        """Give up what a host may have missed, as its session was over."""
        for move in list(self._moves.values()):
            if worker in (move.old, move.new) and not move.handed_over:
                self._give_up(move, f"the session with {worker} was over")

    def on_lost(self, worker: HostWorker) -> None:
        """Handle a host that is lost: what moves from it, or to it, moves no more."""
        for move in list(self._moves.values()):
            if worker is move.new:
                self._give_up(move, "the other is lost")
            elif worker is move.old:
                self._drop(move)

    def _give_up(self, move: _Move, why: str) -> None:
        self._drop(move)
        self._report(NotMoved(move.spec.fork_id, why))

    def _drop(self, move: _Move) -> None:
        """Move a fork no more; end it at the other host, unless that has it already."""
        self._forget(move)
        if not move.handed_over:
            move.new.send(EndFork(move.spec.fork_id, EndReason.MOVED))

    def _forget(self, move: _Move) -> None:
        move.cancel()
        self._moves.pop(move.spec.fork_id, None)

    def close(self) -> None:
        """Give up all that is not done."""
        for move in list(self._moves.values()):
            self._drop(move)
