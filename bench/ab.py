"""Compares the relay of this tree with that of another revision, or with the floor.

    python -m bench.ab --base REV|floor [--row NAME] [--base-row NAME] [--pairs N] [--at-once]
        [--compiled]

Runs the two by turns, so that what the machine does meanwhile hits both, and prints the median of
the ratios with the least and the greatest: a difference smaller than that spread is none. On a
machine that others use, --at-once runs both at the same time, each with load of its own. The base
can run another row: that shows what the difference of the two rows costs. With --compiled the
hot path of this tree is compiled, as in a wheel; that of the base is Python.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import build, measure, rows
from bench.program import ProgramFailed
from bench.rows import Bench, Result, Row, StartRelay
from bench.run import UnknownRow, select

FLOOR = "floor"


class NoSuchRevision(Exception):
    """git does not know the revision, or this is no git repository."""


@dataclass(frozen=True)
class Pair:
    """A row with the base, and one with this tree: usually the same."""

    base: Result
    head: Result

    @property
    def ratio(self) -> float:
        return self.head.cpu_us / self.base.cpu_us


def check_out(revision: str, folder: Path) -> None:
    """Write the files of a revision into a folder; git keeps no note of it.

    Raises:
        NoSuchRevision: It cannot be had.
    """
    done = subprocess.run(["git", "archive", revision], cwd=rows.ROOT, capture_output=True)
    if done.returncode != 0:
        raise NoSuchRevision(done.stderr.decode(errors="replace").strip())
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def start_of_base(base: str, bench: Bench, folder: Path) -> StartRelay:
    """Return how the base is started; a revision is written into a new folder."""
    if base == FLOOR:
        return rows.floor_relay(bench.tools)
    folder.mkdir()
    check_out(base, folder)
    return rows.audiofork_relay(folder)


def measure_pair(
    bench: Bench, starts: dict[str, StartRelay], rows_of: dict[str, Row], turn: int, at_once: bool
) -> Pair:
    """Run base and head, at once or every other time in the other order."""
    names = ["base", "head"] if turn % 2 == 0 else ["head", "base"]
    with ThreadPoolExecutor(2 if at_once else 1) as threads:
        runs = {
            name: threads.submit(bench.run, name, starts[name], rows_of[name]) for name in names
        }
        return Pair(runs["base"].result(), runs["head"].result())


def line(number: int, pair: Pair) -> str:
    """Return a pair as a line of the table."""
    mark = " ~" if pair.base.disturbed or pair.head.disturbed else ""
    return (
        f"{number:4} {pair.base.cpu_us:9.1f} {pair.head.cpu_us:9.1f} {pair.ratio:9.3f}"
        f" {pair.base.p99_us / 1000:12.2f} {pair.head.p99_us / 1000:12.2f}{mark}"
    )


def report(pairs: list[Pair]) -> None:
    """Print the median and the spread."""
    ratios = [pair.ratio for pair in pairs]
    users = {"base": [pair.base for pair in pairs], "head": [pair.head for pair in pairs]}
    for name, results in users.items():
        user_us = [one.cpu_us * one.user_share for one in results if one.user_share is not None]
        if user_us:
            print(f"{name}: {statistics.median(user_us):.1f} us of user code (median)")
    median = statistics.median(ratios)
    print(f"\nhead/base {median:.3f} (median), {min(ratios):.3f} to {max(ratios):.3f}")
    if min(ratios) <= 1 <= max(ratios):
        print("No difference that these pairs can show.")


def run(options: argparse.Namespace) -> int:
    """Compare, print, return the exit code."""
    (row,) = select(options.row)
    (base_row,) = select(options.base_row or options.row)
    if options.base == FLOOR:
        base_row = base_row.for_floor
    measure.go_first()
    with tempfile.TemporaryDirectory(prefix="audiofork-bench-") as name:
        folder = Path(name)
        bench = Bench(build.tools(), folder)
        starts = {"base": start_of_base(options.base, bench, folder / "base")}
        head = build.compiled(folder / "head") if options.compiled else rows.ROOT
        starts["head"] = rows.audiofork_relay(head)
        beside = "" if row == base_row else f" beside {base_row.name}"
        print(f"{row.name}{beside}, us per frame and p99 in ms")
        print("pair      base      head head/base     base p99     head p99", flush=True)
        pairs = []
        for turn in range(options.pairs):
            rows_of = {"base": base_row, "head": row}
            pairs.append(measure_pair(bench, starts, rows_of, turn, options.at_once))
            print(line(turn + 1, pairs[-1]), flush=True)
    report(pairs)
    return 0 if all(pair.head.intact for pair in pairs) else 1


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="This tree's relay against another revision's.")
    parser.add_argument("--base", required=True, help="a revision of git, or floor: the C relay")
    parser.add_argument("--row", default="200-ws-mono")
    parser.add_argument("--base-row", help="what the base runs in place of it")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--at-once", action="store_true", help="run both at the same time")
    parser.add_argument("--compiled", action="store_true", help="compile the hot path of this tree")
    try:
        sys.exit(run(parser.parse_args()))
    except (build.CannotBuild, NoSuchRevision, ProgramFailed, UnknownRow) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
