"""Measures what forks cost a real Asterisk and the daemon beside it, and how fast they start.

    python -m bench.beside_asterisk [--calls 100] [--seconds 5] [--rounds 3] [--tap NAME]
        [--rows NAME,...] [--compiled] [--json]

A private Asterisk, the daemon as users run it, SIP calls that speak and hear their echo, and the
sink of the benchmark, which takes next to nothing. One fork of each call, by turns: in, both and
stereo by the daemon; and in and both by Asterisk alone: a channel of chan_websocket that runs
ChanSpy, and app_audiofork, the module in C, where Asterisk has it. Before and after each there are
the calls alone, and what they take is taken off: the machine's speed changes by the minute. Then
forks are started at a steady rate, and many at once; a start is measured from the request to the
first message at the server. All that by each tap, unless one is named. With --compiled the daemon's
hot path is compiled, as in a wheel. Exits with 1 if a fork was refused, or did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench import build
from bench.program import ProgramFailed
from bench.progress import telling
from bench.stage import KINDS, Load, Stage, Starts, rivals, staged
from testbed.asterisk import (
    AsteriskFailed,
    AsteriskUnavailable,
    Installation,
    find_installation,
)

TAPS = ("chanspy", "snoop")
STARTS = "starts"
ROWS = (*KINDS, STARTS)
# The row of app_audiofork. Where it is not measured, the others are compared with what a fork of it
# took of a core once, on another machine: 0.20 to 0.26 %, on Asterisk 20.4.0 with 50 calls.
MODULE = "module-in"
MODULE_PERCENT = 0.235


@dataclass(frozen=True)
class Cost:
    """CPU that one fork takes, in percent of a core."""

    asterisk: float
    daemon: float

    @property
    def whole(self) -> float:
        return self.asterisk + self.daemon


@dataclass(frozen=True)
class Spread:
    """The median of a figure in all rounds, with the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return that of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f} to {self.most:.3f})"


@dataclass(frozen=True)
class Row:
    """What one fork takes, in percent of a core.

    Attributes:
        to_module: The whole, in multiples of what the module in C takes.
        messages: Messages of a fork that the server got in a second: 50, unless the machine is
            too slow. `message_bytes` is the audio in each.
        daemon_kib: Memory of the daemon.
    """

    what: str
    asterisk: Spread
    daemon: Spread
    whole: Spread
    to_module: Spread
    messages: float
    message_bytes: float
    daemon_kib: int


@dataclass(frozen=True)
class Rest:
    """The calls alone: all that Asterisk and the daemon take, in percent of a core."""

    asterisk: Spread
    daemon: Spread
    daemon_kib: int


@dataclass(frozen=True)
class Measured:
    """All that was measured by one tap; `hot_path` is the daemon's: compiled, or Python."""

    tap: str
    calls: int
    hot_path: str
    alone: Rest
    rows: list[Row]
    starts: list[Starts]

    @property
    def all_started(self) -> bool:
        return all(one.started == one.asked and not one.refused for one in self.starts)


def cost(load: Load, before: Load, after: Load, forks: int) -> Cost:
    """Return what one fork takes, from the loads of all and of the calls alone around it."""

    def of_one(percent: Callable[[Load], float]) -> float:
        return (percent(load) - (percent(before) + percent(after)) / 2) / forks

    return Cost(
        of_one(lambda load: load.asterisk_percent), of_one(lambda load: load.daemon_percent)
    )


def row(
    what: str, loads: list[Load], costs: list[Cost], module: Sequence[float], forks: int
) -> Row:
    """Return the row of the table from all rounds; a rival's is Asterisk alone.

    Args:
        what: The kind of forks.
        loads: Of each round, as `costs`.
        costs: What one fork took.
        module: What one of the module took in the same rounds; empty: it was not measured.
        forks: How many there were.
    """
    if KINDS[what].rival:
        costs = [Cost(one.asterisk, 0.0) for one in costs]
    whole = Spread.of([one.whole for one in costs])
    modules = module or [MODULE_PERCENT] * len(costs)
    ratios = [one.whole / percent for one, percent in zip(costs, modules, strict=True)]
    return Row(
        what=what,
        asterisk=Spread.of([one.asterisk for one in costs]),
        daemon=Spread.of([one.daemon for one in costs]),
        whole=whole,
        to_module=Spread.of(ratios),
        messages=statistics.median(load.messages for load in loads) / forks,
        message_bytes=loads[-1].message_bytes,
        daemon_kib=loads[-1].daemon_kib,
    )


async def rows_of(
    stage: Stage, kinds: Sequence[str], rounds: int, seconds: float
) -> tuple[Rest, list[Row]]:
    """Measure the calls alone and each kind of forks by turns."""
    loads: dict[str, list[Load]] = {kind: [] for kind in kinds}
    costs: dict[str, list[Cost]] = {kind: [] for kind in kinds}
    calls = len(stage.channels)
    alone = [await stage.load(seconds)]
    for number in range(rounds):
        for kind in kinds:
            with telling(f"{calls} calls, round {number + 1} of {rounds}: {kind}"):
                loads[kind].append(await stage.load_of(KINDS[kind], seconds))
                alone.append(await stage.load(seconds))
            costs[kind].append(cost(loads[kind][-1], alone[-2], alone[-1], calls))
    rest = Rest(
        Spread.of([load.asterisk_percent for load in alone]),
        Spread.of([load.daemon_percent for load in alone]),
        alone[0].daemon_kib,
    )
    module = [one.asterisk for one in costs.get(MODULE, [])]
    return rest, [row(kind, loads[kind], costs[kind], module, calls) for kind in kinds]


def table(measured: Measured, how: str) -> Iterator[str]:
    """Yield the lines that tell what forks cost."""
    alone = measured.alone
    yield f"{measured.calls} calls by {measured.tap}, hot path: {measured.hot_path}, {how}"
    yield f"calls alone, percent of a core: Asterisk {alone.asterisk}, daemon {alone.daemon}"
    yield ""
    yield "one fork, percent of a core: median, least and greatest; in multiples of the module's"
    heads = "".join(f"{head:<24}" for head in ("Asterisk", "daemon", "whole", "times"))
    yield f"{'row':<15}{heads} messages  bytes"
    for one in measured.rows:
        daemon = "none" if KINDS[one.what].rival else str(one.daemon)
        yield (
            f"{one.what:<15}{one.asterisk!s:<24}{daemon:<24}{one.whole!s:<24}{one.to_module!s:<24}"
            f"{one.messages:9.1f} {one.message_bytes:6.0f}"
        )
    ours = [one for one in measured.rows if not KINDS[one.what].rival]
    memory = "".join(f", {one.daemon_kib} with {one.what}" for one in ours)
    yield f"Memory of the daemon: {alone.daemon_kib} KiB without forks{memory}"


def starts_table(starts: list[Starts]) -> Iterator[str]:
    """Yield the lines that tell how forks started, if that was measured."""
    if not starts:
        return
    yield ""
    yield "starts         asked  started  refused  median ms   p99 ms   max ms"
    for one in starts:
        yield (
            f"{one.what:<14} {one.asked:5} {one.started:8} {one.refused:8} "
            f"{one.median_ms:10.0f} {one.p99_ms:8.0f} {one.max_ms:8.0f}"
        )


async def measured_by(tap: str, options: argparse.Namespace, tree: Path | None) -> Measured:
    """Measure what forks cost by one tap, and how they start."""
    kinds = [name for name in options.rows if name in KINDS]
    async with staged(options.calls, tap, tree) as stage:
        alone, rows = await rows_of(stage, kinds, options.rounds, options.seconds)
        starts = []
        if STARTS in options.rows:
            with telling(f"starts by {tap}"):
                starts = [await stage.start_steadily(), await stage.start_at_once()]
        hot_path = stage.hot_path
    return Measured(tap, options.calls, hot_path, alone, rows, starts)


def possible_rows(rows: Sequence[str], installation: Installation) -> list[str]:
    """Return the rows that can be measured: those whose module this Asterisk has."""
    missing = {KINDS[name].rival for name in rows if name in KINDS} - rivals(installation) - {""}
    for module in sorted(missing):
        print(f"bench: no {module} in this Asterisk, so no row of it", file=sys.stderr)
    return [name for name in rows if name == STARTS or KINDS[name].rival not in missing]


async def run(options: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    options.rows = possible_rows(options.rows, find_installation())
    all_measured = []
    with contextlib.ExitStack() as stack:
        tree = None
        if options.compiled:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofork-bench-"))
            tree = build.compiled(Path(folder))
        how = f"{options.rounds} rounds of {options.seconds:g} s"
        for tap in [options.tap] if options.tap else TAPS:
            measured = await measured_by(tap, options, tree)
            all_measured.append(measured)
            if not options.json:
                lines = [*table(measured, how), *starts_table(measured.starts), ""]
                print("\n".join(lines), flush=True)
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in all_measured], indent=2))
    return 0 if all(one.all_started for one in all_measured) else 1


def row_names(text: str) -> list[str]:
    """Return the names of rows in a list with commas."""
    names = text.split(",")
    for name in names:
        if name not in ROWS:
            raise argparse.ArgumentTypeError(f"no row {name}; there are: {', '.join(ROWS)}")
    return names


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What forks cost beside a real Asterisk.")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0, help="measure each turn for so long")
    parser.add_argument("--rounds", type=int, default=3, help="so many turns of each row")
    parser.add_argument("--tap", choices=TAPS, help="only by this one")
    parser.add_argument("--rows", type=row_names, default=ROWS, help=f"of {','.join(ROWS)}")
    parser.add_argument("--compiled", action="store_true", help="compile the hot path")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    try:
        sys.exit(asyncio.run(run(parser.parse_args())))
    except (build.CannotBuild, ProgramFailed, AsteriskUnavailable, AsteriskFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
