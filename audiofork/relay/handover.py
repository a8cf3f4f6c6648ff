"""Keeps what the next daemon needs to know of each fork, so that its relay process may go on alone.

Most of it is what the reports to the daemon have said. It is kept as what stands, and not as a list
of what was said: a daemon that is killed may not have read the last of that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from audiofork.link.messages import (
    Adopt,
    Command,
    CommandAsked,
    CountBefore,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    ForkStats,
    HandOver,
    HeldFork,
    Leave,
    LegAttached,
    LegLost,
    LegPart,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
    TakeOver,
)

log = logging.getLogger(__name__)

# Texts of a fork's server, and what it asks for, that wait for the next daemon; and how long they
# may be in all, since they are told in one go. Further ones are dropped, and counted.
MOST_WAITING = 100
MOST_WAITING_CHARACTERS = 500_000
# A daemon has noted an end after some milliseconds, on a busy machine and a slow disk a second; as
# long as it lives, which its pings show.
JUST_ENDED_S = 2.0
MOST_JUST_ENDED = 2000


@dataclass(slots=True)
class _Standing:
    """What stands of a fork.

    Attributes:
        born: When it was requested, by the clock.
        has_daemon: Whether the daemon that is there has ordered or adopted it.
        leg_ids: The ids of its legs' channels, by part.
        legs: What was said last of each leg that was ordered and came.
        retrying: What was said last of a connection that is missing.
        waiting: What the next daemon has to act on.
        dropped: How much more of that there was.
        is_handed_over: Whether another relay was to go on with it.
        earlier: What other relays have counted of it before.
    """

    spec: ForkSpec
    born: float
    has_daemon: bool = True
    leg_ids: dict[LegPart, str] = field(default_factory=dict)
    legs: dict[LegPart, LegAttached | LegLost] = field(default_factory=dict)
    opened: SinkOpened | None = None
    streaming: Streaming | None = None
    retrying: SinkRetrying | None = None
    resumed: SinkResumed | None = None
    waiting: deque[SinkMessage | CommandAsked] = field(default_factory=deque)
    dropped: int = 0
    ended: ForkEnded | None = None
    mute_in: bool = False
    mute_out: bool = False
    is_handed_over: bool = False
    earlier: ForkStats = field(default_factory=ForkStats)

    def note(self, report: ForkReport) -> None:
        if isinstance(report, LegAttached | LegLost):
            self.legs[report.part] = report
        elif isinstance(report, SinkOpened):
            self.opened, self.retrying = report, None
        elif isinstance(report, Streaming):
            self.streaming = report
        elif isinstance(report, SinkRetrying):
            self.retrying = report
        elif isinstance(report, ForkEnded):
            self.ended = report
        elif isinstance(report, SinkResumed):
            self.resumed, self.retrying = report, None

    def reports(self) -> Iterator[ForkReport]:
        """Yield what to report to a daemon that knows nothing of it, in an order that is usual."""
        fork_id = self.spec.fork_id
        if self.opened is not None:
            yield self.opened
        for part in self.legs:
            yield LegAttached(fork_id, part)
        if self.streaming is not None:
            yield self.streaming
        if self.retrying is not None:
            yield self.retrying
        elif self.resumed is not None:
            yield self.resumed
        yield from (one for one in self.legs.values() if isinstance(one, LegLost))
        yield from self.waiting
        if self.ended is not None:
            yield self.ended


class Handover:
    """The forks of a relay process that may outlive its daemon.

    Owned by the process, which passes on all commands and reports. A fork belongs to the daemon
    that has ordered or adopted it, until that is gone; what happens to it then is kept for the next
    one. So is an end that was reported just before: the daemon may have died before it could note
    it, and the next one would begin the fork anew.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._forks: dict[str, _Standing] = {}
        self._clock = clock
        self._just_ended: deque[tuple[float, _Standing]] = deque(maxlen=MOST_JUST_ENDED)
        self._pinged = clock()
        self._waiting_characters = 0

    def __len__(self) -> int:
        return len(self._forks)

    @property
    def running(self) -> list[str]:
        """The ids of the forks that have not ended."""
        return [fork_id for fork_id, one in self._forks.items() if one.ended is None]

    def held(self) -> tuple[HeldFork, ...]:
        """Return the forks that no daemon has, oldest first."""
        now = self._clock()
        return tuple(_held(one, now) for one in self._forks.values() if not one.has_daemon)

    def on_daemon_gone(self) -> None:
        """Keep what happens from now on."""
        earliest = min(self._clock(), self._pinged) - JUST_ENDED_S
        for ended_at, standing in self._just_ended:
            if ended_at >= earliest:
                self._forks[standing.spec.fork_id] = standing
        self._just_ended.clear()
        for standing in self._forks.values():
            standing.has_daemon = False

    def on_ping(self) -> None:
        """Note that the daemon is alive."""
        self._pinged = self._clock()

    def on_command(self, command: Command) -> list[ForkReport]:
        """Note a command of the daemon; return what to report to it at once."""
        if isinstance(command, ForkSpec):
            self._forks[command.fork_id] = _Standing(command, self._clock() - command.age_s)
        elif isinstance(command, TakeOver):
            if (standing := self._forks.get(command.fork_id)) is not None:
                standing.spec = replace(standing.spec, holds=False)
        elif isinstance(command, HandOver):
            if (standing := self._forks.get(command.fork_id)) is not None:
                standing.is_handed_over = True
        elif isinstance(command, CountBefore):
            if (standing := self._forks.get(command.fork_id)) is not None:
                standing.earlier = standing.earlier.plus(command.stats)
        elif isinstance(command, ExpectLeg | EndFork | Adopt | Leave | SetMute):
            standing = self._forks.get(command.fork_id)
            if standing is not None:
                return self._on_command(standing, command)
        return []

    def _on_command(
        self, standing: _Standing, command: ExpectLeg | EndFork | Adopt | Leave | SetMute
    ) -> list[ForkReport]:
        if isinstance(command, ExpectLeg):
            standing.leg_ids[command.part] = command.leg_id
            standing.legs.pop(command.part, None)
            return []
        if isinstance(command, Leave):
            standing.has_daemon = False
            return []
        if isinstance(command, SetMute):
            if command.mute_in is not None:
                standing.mute_in = command.mute_in
            if command.mute_out is not None:
                standing.mute_out = command.mute_out
            return []
        was_held, standing.has_daemon = not standing.has_daemon, True
        reports: list[ForkReport] = []
        if isinstance(command, Adopt):
            reports = self._told_anew(standing)
        elif was_held and standing.ended is not None:
            reports = [standing.ended]
        if standing.ended is not None:
            self._forget(standing)
        return reports

    def _told_anew(self, standing: _Standing) -> list[ForkReport]:
        reports = list(standing.reports())
        if standing.dropped:
            log.warning(
                "fork %s: %d messages of its server are lost: too many came without a daemon",
                *(standing.spec.fork_id, standing.dropped),
            )
        self._waiting_characters -= sum(map(_characters_of, standing.waiting))
        standing.waiting.clear()
        standing.dropped = 0
        return reports

    def _let_wait(self, standing: _Standing, report: SinkMessage | CommandAsked) -> None:
        characters = self._waiting_characters + _characters_of(report)
        if len(standing.waiting) < MOST_WAITING and characters <= MOST_WAITING_CHARACTERS:
            standing.waiting.append(report)
            self._waiting_characters = characters
        else:
            standing.dropped += 1

    def whole(self, fork_id: str, stats: ForkStats) -> ForkStats:
        """Return what was counted of a fork here and by other relays before."""
        standing = self._forks.get(fork_id)
        return standing.earlier.plus(stats) if standing is not None else stats

    def on_report(self, report: ForkReport) -> bool:
        """Note a report; return whether the daemon is to get it."""
        standing = self._forks.get(report.fork_id)
        if standing is None:
            return True
        standing.note(report)
        if isinstance(report, SinkMessage | CommandAsked) and not standing.has_daemon:
            self._let_wait(standing, report)
        if standing.has_daemon and standing.ended is not None:
            self._forget(standing)
        return standing.has_daemon

    def _forget(self, standing: _Standing) -> None:
        """Forget a fork whose end is reported."""
        self._waiting_characters -= sum(map(_characters_of, standing.waiting))
        standing.waiting.clear()
        del self._forks[standing.spec.fork_id]
        self._just_ended.append((self._clock(), standing))


def _held(standing: _Standing, now: float) -> HeldFork:
    spec = standing.spec
    leg_ids = {part.value: leg_id for part, leg_id in standing.leg_ids.items()}
    legs = standing.legs.items()
    return HeldFork(
        *(spec.fork_id, spec.way, spec.legs, spec.sample_rate, leg_ids),
        has_ended=standing.ended is not None,
        attached=tuple(part for part, last in legs if isinstance(last, LegAttached)),
        mute_in=standing.mute_in,
        mute_out=standing.mute_out,
        is_spare=spec.holds
        or standing.is_handed_over
        or (standing.ended is not None and standing.ended.reason is EndReason.MOVED),
        turn=spec.turn,
        age_s=now - standing.born,
    )


def _characters_of(report: SinkMessage | CommandAsked) -> int:
    return len(report.text if isinstance(report, SinkMessage) else report.value)
