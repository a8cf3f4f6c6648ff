"""Measures what viewers of the HTTP interface cost the forks: `make bench-viewers`.

    python -m bench.viewers [--forks N] [--pairs N] [--viewers N] [--listeners N] [--seconds S]

Runs the relay with the interface in its own process, as the daemon does, without viewers and with
them, by turns: each viewer gets the levels of all forks five times a second, their statistics, and
the texts of their servers, each listener the audio of a fork. Then so many viewers ask for all of
it and read nothing: how much the daemon and the kernel hold for each of them, and when they are
dropped. Exits with 1 if a frame was lost, or a viewer that reads nothing cost more than it may.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import build, measure
from bench.program import Answer, Program, ProgramFailed
from bench.rows import ROOT, Bench, Result, Row, Setting, Span

FORKS = 1000
VIEWERS, LISTENERS = 20, 2
# The door has a limit of viewers, and one of connections from one address.
UNREAD = 50
PAIRS = 3
SECONDS = 5.0
MAX_UNREAD_KIB = 256
# The door drops one that takes nothing for 10 s.
UNREAD_S = 13.0


@dataclass(frozen=True)
class Crowd:
    """Who looks: viewers, listeners, and viewers that read nothing."""

    viewers: int = 0
    listeners: int = 0
    unread: int = 0

    def __bool__(self) -> bool:
        return bool(self.viewers or self.listeners or self.unread)

    @property
    def arguments(self) -> list[str]:
        """The arguments of bench.viewer_crowd."""
        numbers = vars(self).items()
        return [part for name, number in numbers for part in (f"--{name}", str(number))]


class WatchedRelay(Program):
    """The relay with its HTTP interface, and who looks at it.

    Args:
        setting: Of the relay.
        tokens: The file of tokens; `token` is one of them.
        crowd: Who looks.

    Attributes:
        got: What they have got, once the relay has ended.
        port: Of the interface.
    """

    def __init__(self, setting: Setting, tokens: Path, token: str, crowd: Crowd) -> None:
        row = setting.row
        command: list[str | Path] = [sys.executable, "-m", "bench.relay_only", *setting.arguments]
        command += ["--uuids", setting.uuids_file, "--workers", str(row.workers)]
        super().__init__([*command, "--door", tokens], {"PYTHONPATH": str(ROOT)}, ROOT)
        self._first = setting.uuids_file.read_text().split()[0]
        self._token = token
        self._crowd = crowd
        self._looking: Program | None = None
        self.got: Answer = {}
        self.port = 0

    def hear(self, timeout_s: float = 10.0) -> Answer:
        """Return its next line; after the first, with its ports, they begin to look."""
        answer = super().hear(timeout_s)
        if "door" in answer:
            self.port = int(answer["door"])
            if self._crowd:
                who = [str(self.port), self._token, self._first, *self._crowd.arguments]
                self._looking = Program([sys.executable, "-m", "bench.viewer_crowd", *who])
                self._looking.hear(30)
        return answer

    def __exit__(self, *exc: object) -> None:
        if self._looking is not None:
            with contextlib.suppress(ProgramFailed):
                self.got = self._looking.ask()
            self._looking.__exit__(None, None, None)
        super().__exit__(None, None, None)


@dataclass(frozen=True)
class Run:
    """One run: what became of the frames, and what the viewers got."""

    result: Result
    got: Answer


class Trial:
    """Runs a row with viewers and without.

    Args:
        bench: Runs rows.
        row: The row.
        folder: For the tokens; has to stay.
    """

    def __init__(self, bench: Bench, row: Row, folder: Path) -> None:
        self._bench = bench
        self._row = row
        self._token = secrets.token_hex(24)
        self._tokens = folder / "tokens"
        self._tokens.touch(0o600)
        self._tokens.write_text(f"bench listen {self._token}\n")

    def run(self, crowd: Crowd) -> Run:
        """Run it beside who looks."""
        started: list[WatchedRelay] = []

        def start(setting: Setting) -> WatchedRelay:
            started.append(WatchedRelay(setting, self._tokens, self._token, crowd))
            return started[0]

        result = self._bench.run("viewers" if crowd else "alone", start, self._row)
        return Run(result, started[0].got)

    def unread(self, crowd: Crowd) -> Unread:
        """Let viewers that read nothing come to a relay that works, and see what they cost."""
        found: list[Unread] = []

        @contextlib.contextmanager
        def look(pid: int) -> Iterator[None]:
            (relay,) = started
            found.append(_watch(pid, relay.port, self._token, crowd))
            yield

        started: list[WatchedRelay] = []

        def start(setting: Setting) -> WatchedRelay:
            # One that reads is there before: what the daemon needs for the first is not theirs.
            one = Crowd(viewers=1)
            started.append(WatchedRelay(setting, self._tokens, self._token, one))
            return started[0]

        span = Span(self._bench.span.warm_s, UNREAD_S + self._bench.span.measured_s)
        with self._bench.with_span(span, look) as bench:
            result = bench.run("unread", start, self._row)
        return found[0].with_result(result)


@dataclass(frozen=True)
class Unread:
    """What viewers that read nothing have cost.

    Attributes:
        viewers: How many there were.
        daemon_kib: What the daemon's memory grew by at most, for each.
        kernel_kib: What the kernel held for each at most, of what it sends.
        dropped_s: When the last was dropped; None: not in UNREAD_S.
        result: What became of the frames meanwhile.
    """

    viewers: int
    daemon_kib: float
    kernel_kib: float
    dropped_s: float | None
    result: Result | None = field(default=None)

    def with_result(self, result: Result) -> Unread:
        """Return it with what became of the frames."""
        return Unread(self.viewers, self.daemon_kib, self.kernel_kib, self.dropped_s, result)

    @property
    def is_fine(self) -> bool:
        """Whether they cost what they may, were dropped, and no frame was lost."""
        cost = self.daemon_kib + self.kernel_kib
        intact = self.result is not None and self.result.intact
        return cost <= MAX_UNREAD_KIB and self.dropped_s is not None and intact

    def __str__(self) -> str:
        when = f"{self.dropped_s or 0:.1f} s"
        dropped = "not dropped" if self.dropped_s is None else f"dropped after {when}"
        lost = "?" if self.result is None else self.result.lost
        return (
            f"{self.viewers} viewers that read nothing: for each the daemon holds "
            f"{self.daemon_kib:.0f} KiB and the kernel {self.kernel_kib:.0f} KiB at most, all "
            f"{dropped}; {lost} frames lost"
        )


def _watch(pid: int, port: int, token: str, crowd: Crowd) -> Unread:
    """Let them come, and look until all are dropped."""
    before_kib = measure.memory_kib(pid)
    daemon_kib = kernel_kib = 0.0
    command = [sys.executable, "-m", "bench.viewer_crowd", str(port), token, "-", *crowd.arguments]
    dropped_s = None
    with Program(command) as looking:
        looking.hear(30)
        began = time.monotonic()
        while (elapsed_s := time.monotonic() - began) < UNREAD_S:
            time.sleep(0.1)
            daemon_kib = max(daemon_kib, measure.memory_kib(pid) - before_kib)
            queues = queued_kib(port)
            kernel_kib = max(kernel_kib, sum(queues))
            if measure.connections_of(pid, port) == 1:  # the one that reads
                dropped_s = elapsed_s
                break
    return Unread(crowd.unread, daemon_kib / crowd.unread, kernel_kib / crowd.unread, dropped_s)


def queued_kib(port: int) -> list[float]:
    """Return what the kernel holds of what is sent from a port of loopback, by connection."""
    return [int(row[4].partition(":")[0], 16) / 1024 for row in measure.tcp_rows(port)]


HEAD = (
    "run       forks  us/frame  waited %  p50 ms   p99 ms   max ms   late  lost  wrong  viewers got"
)


def line(run: Run) -> str:
    """Return a run as a line of the table."""
    result, got = run.result, run.got
    told = ""
    if got:
        told = (
            f"{got['levels'] / got['seconds']:.0f} levels/s, gap {got['longest_gap_s']:.2f} s, "
            f"{got['viewer_bytes'] / got['seconds'] / 1e6:.1f} MB/s, {got['lost']:.0f} dropped"
        )
    return (
        f"{result.relay:9} {result.row.forks:5} {result.cpu_us:9.1f} "
        f"{result.waited_percent:9.0f} {result.p50_us / 1000:7.2f} "
        f"{result.p99_us / 1000:8.2f} {result.max_us / 1000:8.1f} {result.late:6} "
        f"{result.lost:5} {result.wrong:6}  {told}"
    )


def report(pairs: list[tuple[Run, Run]]) -> None:
    """Print the ratios of the pairs, with viewers to without, and their spread."""
    for name in ("p99_us", "cpu_us"):
        ratios = [getattr(b.result, name) / getattr(a.result, name) for a, b in pairs]
        print(
            f"{name.removesuffix('_us')}: with viewers {statistics.median(ratios):.2f} times that "
            f"without, {min(ratios):.2f} to {max(ratios):.2f}"
        )
    if any(one.result.disturbed for pair in pairs for one in pair):
        print("the machine was busy with other programs: ratios of single runs mean little")
    alone = [a.result.p99_us for a, _ in pairs]
    print(f"p99 without viewers: {min(alone) / 1000:.2f} to {max(alone) / 1000:.2f} ms")


def run(options: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    measure.go_first()
    crowd = Crowd(options.viewers, options.listeners)
    with tempfile.TemporaryDirectory(prefix="audiofork-bench-") as name:
        folder = Path(name)
        bench = Bench(build.tools(), folder, Span(1.0, options.seconds))
        trial = Trial(bench, Row(options.forks), folder)
        print(HEAD, flush=True)
        pairs: list[tuple[Run, Run]] = []
        for turn in range(options.pairs):
            order = [Crowd(), crowd] if turn % 2 == 0 else [crowd, Crowd()]
            runs = {bool(one): trial.run(one) for one in order}
            for one in (False, True):
                print(line(runs[one]), flush=True)
            pairs.append((runs[False], runs[True]))
        report(pairs)
        is_fine = _try_unread(trial, options.unread) if options.unread else True
    intact = all(one.result.intact for pair in pairs for one in pair)
    return 0 if intact and is_fine else 1


def _try_unread(trial: Trial, count: int) -> bool:
    unread = trial.unread(Crowd(unread=count))
    print(unread)
    return unread.is_fine


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What viewers cost the forks.")
    parser.add_argument("--forks", type=int, default=FORKS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--viewers", type=int, default=VIEWERS)
    parser.add_argument("--listeners", type=int, default=LISTENERS)
    parser.add_argument("--unread", type=int, default=UNREAD, help="viewers that read nothing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each run")
    try:
        sys.exit(run(parser.parse_args()))
    except (build.CannotBuild, ProgramFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
