"""The forks that move from one relay host to another, step by step, without a gap."""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace

from audiofork.link.fork_spec import LEG_FRAMES_A_SECOND
from audiofork.link.host_worker import HostWorker
from audiofork.link.messages import (
    Command,
    CountBefore,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    FrameCame,
    HandedOver,
    HandOver,
    LegAttached,
    LegLost,
    LegPart,
    Listen,
    Moved,
    MoveFork,
    MoveReady,
    NoteFrames,
    NotMoved,
    Report,
    SetGate,
    SetMute,
    SinkOpened,
    SinkRetrying,
    TakeOver,
    TellFrame,
)

# For so long both relays get the frames before the second takes over: of some they must know that
# they are the same.
BOTH_S = 0.6
MOVE_TIMEOUT_S = 8.0
# Two legs do not bring a frame at the same moment: rather one twice than none.
SPARE_FRAMES = 2
# A party that says nothing for so long says nothing that a bridge could lose.
FRAME_WAIT_S = 0.1
MOST_COUNTS = 10_000


class Phase(enum.Enum):
    """How far a move is. At any moment one of the two hosts is the fork's owner."""

    BESIDE = "beside"
    """The old host is the owner, and sends; the new one keeps what comes."""
    HANDING = "handing"
    """The old host was told to stop; the new one is the owner, and waits to hear where to go on."""


@dataclass(eq=False)
class _Move:
    """A fork that moves.

    Attributes:
        spec: What the new host was ordered.
        old, new: The hosts.
        by_bridge: As in `MoveFork`.
        is_ready: Whether the call may have been bridged with the new leg.
        missing: The parts whose legs are not connected to the new host.
        opened: Whether the server has accepted the new connection.
        phase: How far it is.
        handed_at: The loop time at which the old host was told to stop.
        timer: Goes on with the next step, or gives the move up.
    """

    spec: ForkSpec
    old: HostWorker
    new: HostWorker
    by_bridge: bool
    missing: set[LegPart] = field(default_factory=set)
    is_ready: bool = False
    opened: bool = False
    phase: Phase = Phase.BESIDE
    handed_at: float = math.inf
    timer: asyncio.TimerHandle | None = None

    @property
    def fork_id(self) -> str:
        return self.spec.fork_id

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.cancel()
        self.timer = asyncio.get_running_loop().call_later(seconds, what)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class HostMoves:
    """Owned by `RelayHosts`, which passes on the commands and reports of forks that move.

    A move is forgotten as soon as the new host is told to take over: all that follows is of a fork
    like any other. Until then:

    ===============================  ==============================  ==============================
    what happens                     BESIDE: the old one owns it     HANDING: the new one owns it
    ===============================  ==============================  ==============================
    new: all legs and server there   HANDING, after BOTH_S           -
    new: leg or server lost, ended   given up: the fork stays        as of any fork
    new: dead                        given up: the fork stays        lost, as any fork
    new: its session was over        given up: the fork stays        waits, or lost if it has it not
    old: tells its tail              -                               the new one takes over
    old: leg or server lost          given up: it is dealt with      -
                                     where it is
    old: ended                       given up: the fork has ended    takes over without a tail
    old: ended, as the host ends     takes over without a tail       takes over without a tail
    old: dead                        takes over without a tail       takes over without a tail
    old: its session was over        given up: the fork stays        takes over without a tail
    old: does not answer in time     -                               takes over without a tail
    new: is not ready in time        given up: the fork stays        -
    a leg is ordered anew            given up: it is of the old one  of the new one
    mute, gate                       both get it                     the new one gets it
    end of the fork                  given up: the old one ends it   takes over, and ends
    we are to stop                   given up: the fork stays        takes over without a tail
    ===============================  ==============================  ==============================

    A call whose other party is the server has one leg at any moment, and is moved by a bridge: when
    the new host is ready, `MoveReady` asks for that, and the loss of the old leg tells that it was
    done; it is HANDING then. Until it is ready, the fork stays with an old host that ends or dies.

    Where the new one takes over without a tail it goes on with what has come since the old one was
    told to stop, or was heard last: some frames may come twice then, where it has died those of a
    beat's time, and few may be missing.

    Args:
        report: Called with `MoveReady`, `Moved`, `NotMoved`, and `LegLost` for legs that have yet
            to come.
        own: Called with a fork and its new host when that is its owner.
    """

    def __init__(
        self, report: Callable[[Report], None], own: Callable[[str, HostWorker], None]
    ) -> None:
        self._report = report
        self._own = own
        self._moves: dict[str, _Move] = {}
        self._counts: dict[str, CountBefore] = {}

    def keep_count(self, count: CountBefore) -> None:
        """Keep what the host of a fork has counted until another host has the fork."""
        self._counts[count.fork_id] = count
        if len(self._counts) > MOST_COUNTS:  # of those that ended before that
            del self._counts[next(iter(self._counts))]

    def take_count(self, fork_id: str) -> CountBefore | None:
        """Return what is kept of a fork, once; None: nothing."""
        return self._counts.pop(fork_id, None)

    def begin(self, command: MoveFork, old: HostWorker | None, new: HostWorker | None) -> None:
        """Order a fork from a second host, beside the first; None: there is none."""
        if command.fork_id in self._moves:
            self._report(NotMoved(command.fork_id, "it moves already"))
        elif old is None:
            self._report(NotMoved(command.fork_id, "its relay host is lost"))
        elif new is None:
            self._report(NotMoved(command.fork_id, "no other relay host can take it"))
        else:
            spec = replace(command.spec, holds=True)
            move = self._moves[spec.fork_id] = _Move(
                *(spec, old, new, command.by_bridge), set(spec.legs)
            )
            move.after(MOVE_TIMEOUT_S, lambda: self._give_up(move, "the other was not ready"))
            for order in (spec, *command.orders):
                new.send(order)
            old.send(NoteFrames(spec.fork_id))

    def new_host(self, fork_id: str) -> HostWorker | None:
        """Return the host that a fork moves to; None: it does not move."""
        move = self._moves.get(fork_id)
        return move.new if move is not None else None

    # --- What is ordered and reported of a fork that moves ---

    def on_command(self, command: Command) -> None:
        """Handle a command for a fork before its owner gets it."""
        move = self._moves.get(command.fork_id)  # type: ignore[union-attr]  # those of forks
        if move is None:
            return
        if move.phase is Phase.HANDING:
            if isinstance(command, EndFork):
                self._take_over(move)
        elif isinstance(command, SetMute | SetGate):
            move.new.send(command)
        elif isinstance(command, ExpectLeg):
            self._give_up(move, "one of its legs is made anew")
        elif isinstance(command, EndFork):
            self._give_up(move, "it ends")

    def on_report(self, worker: HostWorker, report: ForkReport) -> bool:
        """Take a report of a fork that moves; return whether nobody else is to get it."""
        move = self._moves.get(report.fork_id)
        if move is None or worker not in (move.old, move.new):
            return False
        if move.phase is Phase.HANDING:
            return self._on_handing(move, worker, report)
        if worker is move.old:
            return self._on_old(move, report)
        self._on_new(move, report)
        return True

    def _on_old(self, move: _Move, report: ForkReport) -> bool:
        if isinstance(report, FrameCame):
            if not move.is_ready:
                self._let_bridge(move)
            return True
        if isinstance(report, LegLost) and move.is_ready:
            self._hand_over(move)  # the call has been bridged with the new leg
            return True
        has_moved = isinstance(report, ForkEnded) and report.reason is EndReason.MOVED
        if has_moved and _can_go_on(move):
            self._hand_over(move)  # the host did not wait for it
            self._take_over(move)
        elif isinstance(report, ForkEnded | SinkRetrying | LegLost):
            self._give_up(move, "it has ended, or does not flow any more")
        return False

    def _on_new(self, move: _Move, report: ForkReport) -> None:
        if isinstance(report, ForkEnded):
            self._give_up(move, f"it has ended on the other: {report.detail or report.reason}")
            move.new.leftovers.discard(move.fork_id)
        elif isinstance(report, SinkRetrying):
            self._give_up(move, f"the other has no connection to the server: {report.detail}")
        elif isinstance(report, LegLost):
            self._give_up(move, "the other has lost a leg of it")
        elif isinstance(report, LegAttached):
            move.missing.discard(report.part)
            self._look(move)
        elif isinstance(report, SinkOpened):
            move.opened = True
            self._look(move)

    def _on_handing(self, move: _Move, worker: HostWorker, report: ForkReport) -> bool:
        if worker is move.new:
            if isinstance(report, ForkEnded):
                self._forget(move)
            return False
        if isinstance(report, HandedOver):
            self._take_over(move, report.tail, report.other_tail)
            return True
        if isinstance(report, ForkEnded):  # for a reason of its own, before it was told to stop
            self._take_over(move)
        return False

    # --- The steps ---

    def _look(self, move: _Move) -> None:
        """Let the new host take over a while after it has all that it needs."""
        if move.opened and not move.missing:
            move.after(0 if move.by_bridge else BOTH_S, lambda: self._ask_new(move))

    def _ask_new(self, move: _Move) -> None:
        """Let the new host take over if it answers: it may be dead, and that not seen yet."""
        move.after(MOVE_TIMEOUT_S, lambda: self._give_up(move, "the other does not answer"))

        def on_answer(answer: asyncio.Future[bool]) -> None:
            is_wanted = self._moves.get(move.fork_id) is move and move.phase is Phase.BESIDE
            if is_wanted and not answer.cancelled() and answer.result():
                self._go_on(move)

        move.new.ping().add_done_callback(on_answer)

    def _go_on(self, move: _Move) -> None:
        """Go on with a new host that is ready."""
        if not move.by_bridge:
            self._hand_over(move)
        elif not move.is_ready:
            # Asterisk loses a frame that comes just as it bridges: one has to have come before.
            move.old.send(TellFrame(move.fork_id))
            move.after(FRAME_WAIT_S, lambda: self._let_bridge(move))

    def _let_bridge(self, move: _Move) -> None:
        move.is_ready = True
        move.after(MOVE_TIMEOUT_S, lambda: self._give_up(move, "the call was not bridged"))
        self._report(MoveReady(move.fork_id))

    def _hand_over(self, move: _Move) -> None:
        """Make the new host the owner, and tell the old one to stop."""
        fork_id, old, new = move.fork_id, move.old, move.new
        move.phase = Phase.HANDING
        move.handed_at = asyncio.get_running_loop().time()
        move.after(MOVE_TIMEOUT_S, lambda: self._take_over(move))
        before = old.told.get(fork_id)
        told = new.told[fork_id]
        told.opened = told.streaming = True  # that of the old one was reported
        told.attached = {part for part in move.spec.legs if part not in move.missing}
        if before is not None:
            for order in before.ordered.values():
                if isinstance(order, Listen):
                    new.send(order)
        old.leftovers.add(fork_id)
        old.send(HandOver(fork_id))
        self._own(fork_id, new)
        self._report(Moved(fork_id, new.name))
        for part in sorted(move.missing):
            self._report(LegLost(fork_id, part, frames_in=1))  # the first host had some

    def _take_over(self, move: _Move, *tails: tuple[int, ...], since: float = math.inf) -> None:
        """Let the new host go on.

        Args:
            move: The move.
            tails: What the old one has told.
            since: The loop time at which it has stopped, if that was before it was told to.
        """
        self._forget(move)
        latest_s = asyncio.get_running_loop().time() - min(since, move.handed_at)
        latest = math.ceil(latest_s * LEG_FRAMES_A_SECOND) + SPARE_FRAMES
        tail, other_tail, *_ = *tails, (), ()
        move.new.send(TakeOver(move.fork_id, tail, other_tail, latest, is_whole=move.by_bridge))

    def _give_up(self, move: _Move, why: str) -> None:
        """Leave a fork where it is, and end it at the other host."""
        self._forget(move)
        move.new.leftovers.add(move.fork_id)
        move.new.send(EndFork(move.fork_id, EndReason.MOVED))
        self._report(NotMoved(move.fork_id, why))

    def _forget(self, move: _Move) -> None:
        move.cancel()
        self._moves.pop(move.fork_id, None)

    # --- Hosts that are lost, or were not heard for a while ---

    def _of(self, worker: HostWorker) -> list[_Move]:
        return [one for one in self._moves.values() if worker in (one.old, one.new)]

    def on_reopened(self, worker: HostWorker, held: Container[str]) -> None:
        """Handle a host whose session was over: it may have missed commands, and we reports.

        Args:
            worker: The host.
            held: The ids of the forks that it has.
        """
        for move in self._of(worker):
            if move.phase is Phase.BESIDE:
                self._give_up(move, f"the session with {worker} was over")
            elif worker is move.old:
                self._take_over(move)
            elif move.fork_id not in held:
                self._forget(move)

    def on_lost(self, worker: HostWorker) -> None:
        """Handle a host that is lost, before its forks are taken for lost."""
        for move in self._of(worker):
            if worker is move.old and not _can_go_on(move):
                self._give_up(move, "its relay host is lost")
            elif worker is move.old:
                if move.phase is Phase.BESIDE:
                    self._hand_over(move)
                self._take_over(move, since=worker.heard_at)
            elif move.phase is Phase.BESIDE:
                self._give_up(move, "the other is lost")
            else:
                self._forget(move)

    def close(self) -> None:
        """Let each fork that moves have one host."""
        for move in list(self._moves.values()):
            if move.phase is Phase.BESIDE:
                self._give_up(move, "the controller leaves")
            else:
                self._take_over(move)


def _can_go_on(move: _Move) -> bool:
    """Return whether the new host can have the fork without the old one."""
    return not move.by_bridge or move.is_ready
