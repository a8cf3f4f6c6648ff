"""Prints the table of what a frame costs in this relay, in the floor and in others.

    python -m bench.run [--rows all|smallest|NAME,NAME...] [--json] [--seconds S]

Each row is run beside the floor's: only the ratio of the two says something, since the cost of a
system call differs from machine to machine and from minute to minute. Exits with 1 if a frame was
lost, came twice, out of order or changed.

A row during which other programs had much of the machine is run again, and marked with ~ if that
did not help.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench import build, measure, rows
from bench.program import ProgramFailed
from bench.rows import FRAME_MS, Bench, Result, Row, Span, StartRelay

FORKS = (50, 200, 400)
SMALLEST = Row(50)
PLAIN_ROWS = tuple(
    Row(forks, scheme, mixed)
    for scheme in ("ws", "wss")
    for mixed in (False, True)
    for forks in FORKS
)
JOINED_ROW = Row(400, joined=True)
OTHER_ROWS = (
    Row(400, workers=2),
    Row(400, mixed=True, workers=2),
    Row(400, "wss", workers=2),
    Row(200, frame_ms=100),
    Row(400, frame_ms=100),
    replace(JOINED_ROW, frame_ms=100),
    *(Row(400, form=form) for form in ("M", "json", "ulaw", "twilio")),
    Row(200, voice_ms=20),
    Row(200, voice_ms=40),
    Row(200, voice_ms=100),
    Row(400, watched=True),
)
# Each of the others comes next to the floor that it is compared with.
ROWS = tuple(
    row
    for plain in (*PLAIN_ROWS, JOINED_ROW)
    for row in (
        plain,
        *(other for other in OTHER_ROWS if replace(other.for_floor, voice_ms=0) == plain),
    )
)
# The row at which the others are compared: most of them are near the end of a core there.
PEERS_ROW = Row(200)
PEERS: tuple[tuple[str, Callable[[], build.Peer]], ...] = (
    ("picows", build.picows_peer),
    ("Node ws", build.node_peer),
    ("websockets", build.websockets_peer),
)
SPAN = Span(measured_s=4.0)
# The table comes within this time; a row takes RUN_S from start to end.
LIMIT_S = 280.0
RUN_S = 7.2
RERUNS = 2
SMALLEST_SPAN = Span(warm_s=0.5, measured_s=2.0)

# The relays that must lose nothing; the others are there to compare with.
OURS = ("audiofork", "floor")

HEAD = (
    "relay       row                us/frame   user  system  ratio  forks/core"
    "  frames/wake  p50 ms  p99 ms  late  lost  kB/fork"
)


# Not in the table: how a frame's cost depends on the number of forks.
MORE_FORKS = (10, 20, 100, 300, 1000)
MORE_ROWS = tuple(Row(forks, scheme) for scheme in ("ws", "wss") for forks in MORE_FORKS)


class UnknownRow(Exception):
    """No row has this name."""


def select(wanted: str) -> list[Row]:
    """Return the rows of a list of names, or of the words all and smallest.

    Raises:
        UnknownRow: There is none of that name; the text tells those that are.
    """
    if wanted == "all":
        return list(ROWS)
    by_name = {row.name: row for row in (*ROWS, *MORE_ROWS)} | {"smallest": SMALLEST}
    unknown = [name for name in wanted.split(",") if name not in by_name]
    if unknown:
        raise UnknownRow(f"no row {unknown[0]}; there are: all, {', '.join(by_name)}")
    return [by_name[name] for name in wanted.split(",")]


def line(result: Result, floor: Result) -> str:
    """Return a result as a line of the table."""
    user, system = "-", "-"
    if result.user_share is not None:
        user = f"{result.cpu_us * result.user_share:.1f}"
        system = f"{result.cpu_us * (1 - result.user_share):.1f}"
    ratio = result.cpu_us / floor.cpu_us if floor.cpu_us else 0.0
    # A frame that waits for the others of its message comes late, and shall.
    late = result.late if result.row.frame_ms == FRAME_MS else "-"
    p50, p99 = f"{result.p50_us / 1000:.2f}", f"{result.p99_us / 1000:.2f}"
    if result.row.is_counted:
        p50 = p99 = late = "-"
    return (
        f"{result.relay:<11} {result.row.name:<18} {result.cpu_us:8.1f} {user:>6} "
        f"{system:>7} {ratio:6.2f} {result.forks_per_core:11} "
        f"{result.frames_per_wake:12.1f} "
        f"{p50:>7} {p99:>7} {late:>5} "
        f"{result.lost:5} {result.memory_kib:8.0f}"
        + (" ~" if result.disturbed else "")
        + (f"  {result.wrong} wrong" if result.wrong else "")
    )


def peers(note: Callable[[str], None]) -> Iterator[tuple[str, StartRelay]]:
    """Yield the other relays that can be had on this machine."""
    for name, get in PEERS:
        try:
            yield name, rows.peer_relay(get())
        except build.CannotBuild as exc:
            note(f"{name} is not measured: {exc}")


class Calm:
    """Runs rows, and runs them again if others disturb them, while there is time.

    Args:
        bench: Runs a row once.
        runs: How many runs there will be at least.
        limit_s: How long all may take.

    Attributes:
        intact: Whether all frames came through in all runs.
    """

    def __init__(self, bench: Bench, runs: int, limit_s: float = LIMIT_S) -> None:
        self.bench = bench
        self.intact = True
        self._runs_left = runs
        self._until = time.monotonic() + limit_s

    def run(self, name: str, start: StartRelay, row: Row) -> Result:
        """Return the least disturbed of up to three runs."""
        results = [self._once(name, start, row)]
        self._runs_left -= 1
        while results[-1].disturbed and len(results) <= RERUNS and self._has_time():
            results.append(self._once(name, start, row))
        return min(results, key=lambda result: (result.disturbed, result.waited_percent))

    def _has_time(self) -> bool:
        return time.monotonic() + (self._runs_left + 1) * RUN_S < self._until

    def _once(self, name: str, start: StartRelay, row: Row) -> Result:
        result = self.bench.run(name, start, row)
        if name in OURS and not result.intact:
            self.intact = False
        return result


def results_of(
    calm: Calm, wanted: list[Row], with_peers: bool, note: Callable[[str], None]
) -> Iterator[tuple[Result, Result]]:
    """Yield each result with the floor's for the same row, the floor's own first."""
    others = list(peers(note)) if with_peers and PEERS_ROW in wanted else []
    floors: dict[Row, Result] = {}
    for row in wanted:
        if row.scheme == "wss" and not calm.bench.tools.has_tls:
            note(f"{row.name} is not measured: no OpenSSL headers (apt install libssl-dev)")
            continue
        if row.for_floor not in floors:
            floor = calm.run("floor", rows.floor_relay(calm.bench.tools), row.for_floor)
            floors[row.for_floor] = floor
            yield floor, floor
        relays = [("audiofork", rows.audiofork_relay()), *(others if row == PEERS_ROW else ())]
        for name, start in relays:
            yield calm.run(name, start, row), floors[row.for_floor]


def report(results: list[tuple[Result, Result]]) -> None:
    """Print what says how far the table can be trusted."""
    generators = [result.generator for result, _ in results]
    worst_p99_ms = max(one["late_p99_us"] for one in generators) / 1000
    print(
        f"\nThe generator took up to {max(one['cpu_percent'] for one in generators):.0f} % of a "
        f"core, the sink {max(result.sink_cpu_percent for result, _ in results):.0f} %; frames "
        f"were sent up to {worst_p99_ms:.1f} ms late (p99)."
    )
    for text in (*beside_raw([one for one, _ in results]), *beside_silent(results)):
        print(text)
    if any(result.disturbed for result, _ in results):
        print("~ Other programs had much of the machine: the row says little.")


def beside_raw(results: list[Result]) -> Iterator[str]:
    """Yield what the other formats of this relay cost beside raw, where both were measured."""
    ours = {result.row: result for result in results if result.relay == "audiofork"}
    for row, result in ours.items():
        raw = ours.get(replace(row, form="raw"))
        if raw is not None and raw is not result and raw.cpu_us:
            times = result.cpu_us / raw.cpu_us
            more_kb = result.memory_kib - raw.memory_kib
            yield f"{row.name} takes {times:.2f} times raw, and {more_kb:+.0f} kB a fork."


def beside_silent(results: list[tuple[Result, Result]]) -> Iterator[str]:
    """Yield what forks that speak cost beside silent ones, here and with the floor."""
    costs = {
        one.row: (one.cpu_us, floor.cpu_us) for one, floor in results if one.relay == "audiofork"
    }
    for row, (ours_us, floor_us) in costs.items():
        silent = costs.get(replace(row, voice_ms=0))
        if row.voice_ms and silent is not None and all(silent):
            yield (
                f"{row.name} takes {ours_us / silent[0]:.2f} times as much as the silent row; the "
                f"floor, which writes at once what comes, {floor_us / silent[1]:.2f} times."
            )


def as_json(results: list[tuple[Result, Result]]) -> str:
    """Return the results as a list of objects."""
    return json.dumps(
        [
            dataclasses.asdict(result)
            | {"name": result.row.name}
            | {"ratio": result.cpu_us / floor.cpu_us if floor.cpu_us else None}
            for result, floor in results
        ],
        indent=2,
    )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="What a frame costs.")
    parser.add_argument("--rows", default="all", help="all, smallest, or names with commas")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--seconds", type=float, help="measure each row for so long")
    parser.add_argument("--no-peers", action="store_true", help="leave the other relays out")
    parser.add_argument(
        "--fault",
        default="none",
        choices=("none", "skip", "double", "swap", "corrupt"),
        help="do something wrong to a frame, to see that it is found",
    )
    return parser.parse_args()


def run(options: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    wanted = select(options.rows)
    measure.go_first()
    smallest = options.rows == "smallest"
    span = SMALLEST_SPAN if smallest else SPAN
    if options.seconds:
        span = Span(span.warm_s, options.seconds)
    results = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="audiofork-bench-") as folder:
        bench = Bench(build.tools(), Path(folder), span, options.fault)
        runs = len(wanted) + len({row.for_floor for row in wanted}) + len(PEERS)
        calm = Calm(bench, runs, 0 if smallest else LIMIT_S)
        if not options.json:
            print(HEAD, flush=True)
        for result, floor in results_of(calm, wanted, not options.no_peers, notes.append):
            results.append((result, floor))
            if not options.json:
                print(line(result, floor), flush=True)
    if options.json:
        print(as_json(results))
    elif results:
        report(results)
    for text in notes:
        print(text, file=sys.stderr)
    return 0 if calm.intact else 1


def main() -> None:
    """Run as a program."""
    try:
        sys.exit(run(arguments()))
    except (build.CannotBuild, ProgramFailed, UnknownRow) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
