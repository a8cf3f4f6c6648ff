"""What the benchmark of the control plane has measured, and the table of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from bench.control_plane_calls import Told

# The shipped dialplan waits no longer for a fork.
LATE_S = 1.0


@dataclass(frozen=True)
class Used:
    """What was used, until a moment or between two: seconds of CPU, and bytes written to files.

    Attributes:
        s: The moment, or the time between.
        control_s: Of the process of the control plane; `loop_s` of its event loop, `journal_s`
            of the thread that writes the journal, the rest above all of the history's.
        relay_s: Of the processes of the relay.
    """

    s: float
    control_s: float
    loop_s: float
    journal_s: float
    relay_s: float
    asterisk_s: float
    journal_bytes: int
    history_bytes: int

    def __sub__(self, other: Used) -> Used:
        return Used(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Rest:
    """CPU while no fork starts or ends, in percent of a core: medians of several windows.

    Attributes:
        control_percent: Of the control plane; between `least_percent` and `most_percent`.
        control_kib: Its memory.
    """

    what: str
    forks: int
    control_percent: float
    least_percent: float
    most_percent: float
    relay_percent: float
    asterisk_percent: float
    control_kib: int

    def fork_us(self, alone: Rest) -> float:
        """Return the CPU time of the control plane in us for a fork and second.

        Args:
            alone: The same without forks.
        """
        return 1e4 * (self.control_percent - alone.control_percent) / max(1, self.forks)


@dataclass(frozen=True)
class Starts:
    """How forks started, each with the end of another; in ms from the request until audio flowed.

    Attributes:
        began: Calls; each asks for a fork.
        asked: Requests that Asterisk has told of; those that started, were refused, and took longer
            than the dialplan waits.
        control_ms: CPU time of the control plane for one, of which `loop_ms` and `journal_ms` are
            those of `Used`; of the relay and of Asterisk likewise. Nothing of it is used at rest.
        journal_bytes, history_bytes: Written for one.
        control_percent: CPU of the control plane meanwhile, all of it.
        control_kib: Its memory before, some times meanwhile, and at the end.
    """

    seconds: float
    began: int
    asked: int
    started: int
    refused: int
    late: int
    median_ms: float
    p99_ms: float
    max_ms: float
    control_ms: float
    loop_ms: float
    journal_ms: float
    relay_ms: float
    asterisk_ms: float
    control_percent: float
    journal_bytes: float
    history_bytes: float
    control_kib: tuple[int, ...]

    @property
    def is_fine(self) -> bool:
        """Whether every call got its fork."""
        return self.began == self.asked == self.started and not self.refused


def rest_of(what: str, forks: int, windows: Sequence[Used], control_kib: int) -> Rest:
    """Return what was used at rest."""
    control = [100 * one.control_s / one.s for one in windows]
    return Rest(
        what,
        forks,
        statistics.median(control),
        min(control),
        max(control),
        statistics.median(100 * one.relay_s / one.s for one in windows),
        statistics.median(100 * one.asterisk_s / one.s for one in windows),
        control_kib,
    )


def starts_of(
    began: Iterable[str],
    told: Told,
    meanwhile: Used,
    used: Used,
    rest: Rest,
    control_kib: Sequence[int],
) -> Starts:
    """Return how forks started.

    Args:
        began: The uniqueids of the calls.
        told: What was told of their forks.
        meanwhile: What was used while calls began.
        used: Likewise, until all of them had their forks.
        rest: What is used all the same.
        control_kib: See `Starts`.
    """
    calls = list(began)
    took_ms = [
        1000 * (told.started[one] - told.asked[one])
        for one in calls
        if one in told.asked and one in told.started
    ]
    took_ms.sort()

    def cpu_ms(used_s: float, rest_percent: float) -> float:
        return 1000 * (used_s - used.s * rest_percent / 100) / len(calls)

    return Starts(
        seconds=meanwhile.s,
        began=len(calls),
        asked=sum(one in told.asked for one in calls),
        started=len(took_ms),
        refused=sum(one in told.failed for one in calls),
        late=sum(one > 1000 * LATE_S for one in took_ms),
        median_ms=statistics.median(took_ms) if took_ms else 0.0,
        p99_ms=took_ms[int(0.99 * (len(took_ms) - 1))] if took_ms else 0.0,
        max_ms=took_ms[-1] if took_ms else 0.0,
        control_ms=cpu_ms(used.control_s, rest.control_percent),
        loop_ms=cpu_ms(used.loop_s, rest.control_percent),
        journal_ms=cpu_ms(used.journal_s, 0.0),
        relay_ms=cpu_ms(used.relay_s, rest.relay_percent),
        asterisk_ms=cpu_ms(used.asterisk_s, rest.asterisk_percent),
        control_percent=100 * meanwhile.control_s / meanwhile.s,
        journal_bytes=used.journal_bytes / len(calls),
        history_bytes=used.history_bytes / len(calls),
        control_kib=tuple(control_kib),
    )


HEAD = (
    "at rest; CPU in percent           control plane                   relay Asterisk  control\n"
    "of a core                  forks    CPU   least    most  us/fork    CPU      CPU      KiB"
)


def rest_table(rests: Sequence[Rest]) -> str:
    """Return what was used at rest, the first line without forks."""
    lines = [
        f"{one.what:<25} {one.forks:6} {one.control_percent:6.2f} {one.least_percent:7.2f} "
        f"{one.most_percent:7.2f} {one.fork_us(rests[0]):8.2f} {one.relay_percent:6.1f} "
        f"{one.asterisk_percent:8.1f} {one.control_kib:8}"
        for one in rests
    ]
    return "\n".join([HEAD, *lines])


def starts_table(one: Starts) -> str:
    """Return how forks started."""
    kib = ", ".join(str(number) for number in one.control_kib[1:])
    return (
        f"{one.began / one.seconds:.0f} calls a second for {one.seconds:.0f} s, each with a fork "
        f"and the end of another\n"
        f"asked {one.asked}, started {one.started}, refused {one.refused}, "
        f"later than {LATE_S:g} s {one.late}; "
        f"ms: median {one.median_ms:.0f}, p99 {one.p99_ms:.0f}, max {one.max_ms:.0f}\n"
        f"CPU for one, ms: control plane {one.control_ms:.2f} (event loop {one.loop_ms:.2f}, "
        f"journal {one.journal_ms:.2f}), relay {one.relay_ms:.2f}, Asterisk {one.asterisk_ms:.2f}\n"
        f"CPU of the control plane meanwhile: {one.control_percent:.1f} % of a core\n"
        f"written for one, bytes: journal {one.journal_bytes:.0f}, "
        f"history {one.history_bytes:.0f}\n"
        f"memory of the control plane, KiB: {one.control_kib[0]} before, {kib}"
    )
