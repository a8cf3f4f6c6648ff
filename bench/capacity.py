"""Measures how many forks one, two and four relay processes relay before frames are late.

    python -m bench.capacity [--share PERCENT] [--seconds S] [--compiled]

A machine of two cores has none left for several relay processes beside the generator and the sink.
So each relay process is held to a share of a core, which leaves the others room, and what is
compared is one share with two and four. A number of forks is relayed if not more than one frame in
10,000 came more than 20 ms late and none was lost; the machine is shared, so the better of two
tries counts. Takes 4 to 5 minutes. Exits with 2 where no CPU quota can be set.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from bench import build, measure, quota, rows
from bench.program import ProgramFailed
from bench.quota import NoQuota
from bench.rows import Bench, Result, Row, Span

WORKERS = (1, 2, 4)
SHARE_PERCENT = 20
MAX_LATE = 1e-4
TRIES = 2
FIRST_FORKS = 64
MOST_FORKS = 4000
# A search ends when the answer is known to one part in so many.
FINENESS = 24
SPAN = Span(warm_s=1.0, measured_s=3.0)
LIMIT_S = 270.0  # then no more turns are begun


class Search:
    """Encloses the most forks that are good: doubles until they are not, then halves the gap.

    Attributes:
        good: The most forks that were good; 0: none.
        bad: The fewest that were too many; None: none were.
    """

    def __init__(self) -> None:
        self.good = 0
        self.bad: int | None = None

    def __str__(self) -> str:
        return f"{self.good} forks" + (f", not {self.bad}" if self.bad is not None else "")

    @property
    def done(self) -> bool:
        """Whether the search is over."""
        if self.bad is None:
            return self.good >= MOST_FORKS
        return self.bad - self.good <= max(1, self.bad // FINENESS)

    @property
    def forks(self) -> int:
        """The next number of forks to try."""
        if self.bad is not None:
            return (self.good + self.bad) // 2
        return min(2 * self.good, MOST_FORKS) or FIRST_FORKS

    def note(self, is_good: bool) -> None:
        """Take what came of trying `forks`."""
        if is_good:
            self.good = self.forks
        else:
            self.bad = self.forks


def in_time(result: Result) -> bool:
    """Return whether the relay kept up."""
    return result.intact and result.late <= MAX_LATE * result.frames


class Trial:
    """Tries numbers of forks with so many relay processes, each held to its share.

    Args:
        tools: The compiled programs.
        folder: For files; has to stay.
        source: The tree whose relay is tried.
        span: How long each try is.
        workers: Relay processes.
        share_percent: What each of them gets of a core.
    """

    def __init__(
        self,
        tools: build.Tools,
        folder: Path,
        source: Path,
        span: Span,
        workers: int,
        share_percent: int,
    ) -> None:
        self._bench = Bench(tools, folder, span, hold=self._hold)
        self._workers = workers
        self._share_percent = share_percent
        self._start = rows.audiofork_relay(source, apart=True)

    def _hold(self, pid: int) -> AbstractContextManager[None]:
        """Hold the relay processes, not the process that shares the forks out."""
        return quota.held(measure.tree(pid)[1:], self._share_percent)

    def is_good(self, forks: int) -> bool:
        """Return whether this number of forks is relayed in time; prints each try."""
        return any(self._try(Row(forks, workers=self._workers)) for _ in range(TRIES))

    def _try(self, row: Row) -> bool:
        result = self._bench.run("audiofork", self._start, row)
        print(line(result), flush=True)
        return in_time(result)


HEAD = "processes  forks  us/frame  p99 ms   max ms   late   lost  others CPU %"


def line(result: Result) -> str:
    """Return a try as a line of the table; the others are the generator and the sink."""
    others_percent = result.generator["cpu_percent"] + result.sink_cpu_percent
    return (
        f"{result.row.workers:9} {result.row.forks:6} {result.cpu_us:9.1f} "
        f"{result.p99_us / 1000:7.1f} {result.max_us / 1000:8.1f} {result.late:6} {result.lost:6} "
        f"{others_percent:13.0f}" + ("" if in_time(result) else "  too late")
    )


def search_by_turns(
    tries: Mapping[int, Callable[[int], bool]], until: float = math.inf
) -> dict[int, Search]:
    """Search for each number of relay processes, so that what the machine does hits all alike.

    Args:
        tries: What tells whether so many forks are good, by the number of processes.
        until: When to begin no more turns, and end with what is known; as time.monotonic().
    """
    searches = {workers: Search() for workers in tries}
    while time.monotonic() < until and not all(search.done for search in searches.values()):
        for workers, search in searches.items():
            if not search.done:
                search.note(tries[workers](search.forks))
    return searches


def report(searches: dict[int, Search], share_percent: int) -> None:
    """Print the answer."""
    print(f"\nWith {share_percent} % of a core for each relay process:")
    for workers, search in searches.items():
        print(f"{workers} {'process' if workers == 1 else 'processes'}: {search}")
    one = searches[1].good
    for workers in WORKERS[1:] if one else ():
        print(f"ratio of {workers} to one: {searches[workers].good / one:.2f}")


def run(options: argparse.Namespace) -> int:
    """Search, print, return the exit code."""
    quota.settings(quota.hierarchy(), options.share)  # fails here rather than after a minute
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no cgroup may stay behind
    measure.go_first()
    span = Span(SPAN.warm_s, options.seconds)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="audiofork-bench-") as name:
        tools, folder = build.tools(), Path(name)
        source = build.compiled(folder / "compiled") if options.compiled else rows.ROOT
        tries = {
            workers: Trial(tools, folder, source, span, workers, options.share).is_good
            for workers in WORKERS
        }
        report(search_by_turns(tries, time.monotonic() + LIMIT_S), options.share)
    return 0


def share(text: str) -> int:
    """Return a share in percent of a core."""
    percent = int(text)
    if not quota.LEAST_PERCENT <= percent <= 100:
        raise argparse.ArgumentTypeError(f"expected {quota.LEAST_PERCENT} to 100, got {percent}")
    return percent


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="How many forks are relayed in time.")
    parser.add_argument("--share", type=share, default=SHARE_PERCENT, help="percent of a core")
    parser.add_argument("--seconds", type=float, default=SPAN.measured_s, help="of each try")
    parser.add_argument("--compiled", action="store_true", help="compile the hot path")
    options = parser.parse_args()
    try:
        sys.exit(run(options))
    except NoQuota as exc:
        print(f"bench: {exc}", file=sys.stderr)
        sys.exit(2)
    except (build.CannotBuild, ProgramFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
