"""Keeps what the next daemon needs to know of each fork, so that its relay process may go on alone.

Most of it is what the reports to the daemon have said. It is kept as what stands, and not as a list
of what was said: a daemon that is killed may not have read the last of that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from audiofork.link.messages import (
    Adopt,
    Command,
    CommandAsked,
    EndFork,
    ExpectLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    HeldFork,
    Leave,
    LegAttached,
    LegLost,
    LegPart,
    SinkMessage,
    SinkOpened,
    SinkRetrying,
    Streaming,
)

log = logging.getLogger(__name__)

# Texts of a fork's server, and what it asks for, that wait for the next daemon. Further ones are
# dropped, and counted.
MOST_WAITING = 100
# A daemon has noted an end after some milliseconds, on a busy machine and a slow disk a second.
JUST_ENDED_S = 2.0
MOST_JUST_ENDED = 200


@dataclass(slots=True)
class _Standing:
    """What stands of a fork.

    Attributes:
        has_daemon: Whether the daemon that is there has ordered or adopted it.
        leg_ids: The ids of its legs' channels, by part.
        legs: What was said last of each leg that was ordered and came.
        retrying: What was said last of a connection that is missing.
        waiting: What the next daemon has to act on.
        dropped: How much more of that there was.
    """

    spec: ForkSpec
    has_daemon: bool = True
    leg_ids: dict[LegPart, str] = field(default_factory=dict)
    legs: dict[LegPart, LegAttached | LegLost] = field(default_factory=dict)
    opened: SinkOpened | None = None
    streaming: Streaming | None = None
    retrying: SinkRetrying | None = None
    waiting: deque[SinkMessage | CommandAsked] = field(default_factory=deque)
    dropped: int = 0
    ended: ForkEnded | None = None

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
        elif isinstance(report, SinkMessage | CommandAsked):
            self._let_wait(report)
        else:  # SinkResumed
            self.retrying = None

    def _let_wait(self, report: SinkMessage | CommandAsked) -> None:
        if self.has_daemon:
            return
        if len(self.waiting) < MOST_WAITING:
            self.waiting.append(report)
        else:
            self.dropped += 1

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

    def __len__(self) -> int:
        return len(self._forks)

    def held(self) -> tuple[HeldFork, ...]:
        """Return the forks that no daemon has, oldest first."""
        return tuple(_held(one) for one in self._forks.values() if not one.has_daemon)

    def on_daemon_gone(self) -> None:
        """Keep what happens from now on."""
        earliest = self._clock() - JUST_ENDED_S
        for ended_at, standing in self._just_ended:
            if ended_at >= earliest:
                self._forks[standing.spec.fork_id] = standing
        self._just_ended.clear()
        for standing in self._forks.values():
            standing.has_daemon = False

    def on_command(self, command: Command) -> list[ForkReport]:
        """Note a command of the daemon; return what to report to it at once."""
        if isinstance(command, ForkSpec):
            self._forks[command.fork_id] = _Standing(command)
        elif isinstance(command, ExpectLeg | EndFork | Adopt | Leave):
            standing = self._forks.get(command.fork_id)
            if standing is not None:
                return self._on_command(standing, command)
        return []

    def _on_command(
        self, standing: _Standing, command: ExpectLeg | EndFork | Adopt | Leave
    ) -> list[ForkReport]:
        if isinstance(command, ExpectLeg):
            standing.leg_ids[command.part] = command.leg_id
            standing.legs.pop(command.part, None)
            return []
        if isinstance(command, Leave):
            standing.has_daemon = False
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

    @staticmethod
    def _told_anew(standing: _Standing) -> list[ForkReport]:
        reports = list(standing.reports())
        if standing.dropped:
            log.warning(
                "fork %s: %d messages of its server are lost: %d came while there was no daemon",
                *(standing.spec.fork_id, standing.dropped, MOST_WAITING + standing.dropped),
            )
        standing.waiting.clear()
        standing.dropped = 0
        return reports

    def on_report(self, report: ForkReport) -> bool:
        """Note a report; return whether the daemon is to get it."""
        standing = self._forks.get(report.fork_id)
        if standing is None:
            return True
        standing.note(report)
        if standing.has_daemon and standing.ended is not None:
            self._forget(standing)
        return standing.has_daemon

    def _forget(self, standing: _Standing) -> None:
        """Forget a fork whose end is reported."""
        del self._forks[standing.spec.fork_id]
        self._just_ended.append((self._clock(), standing))


def _held(standing: _Standing) -> HeldFork:
    spec = standing.spec
    leg_ids = {part.value: leg_id for part, leg_id in standing.leg_ids.items()}
    has_ended = standing.ended is not None
    return HeldFork(spec.fork_id, spec.way, spec.legs, spec.sample_rate, leg_ids, has_ended)
