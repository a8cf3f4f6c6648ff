"""The benchmark of the control plane runs, and counts what it is to count.

No test asserts how fast something is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import measure
from bench.control_plane_calls import Told, told_by
from bench.control_plane_table import Rest, Used, rest_of, rest_table, starts_of, starts_table

ROOT = Path(__file__).parents[2]
NOTHING = Used(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
IDLE = Rest("no fork", 0, 0.5, 0.4, 0.6, 0.0, 1.0, 50_000)
# Of 2 s, for two calls.
MEANWHILE = Used(2.0, 0.05, 0.04, 0.005, 0.02, 0.1, 600, 1000)
LONGER = Used(4.0, 0.06, 0.05, 0.005, 0.02, 0.1, 800, 1000)


def bench(*arguments: str) -> dict[str, Any]:
    """Return what the benchmark of a few forks tells."""
    small = ["--forks", "4", "--rate", "4", "--starts-for", "2.5", "--windows", "2"]
    command = [sys.executable, "-m", "bench.control_plane", *small, "--seconds", "0.3", "--json"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def check(result: dict[str, Any]) -> None:
    """Check that every fork started, and that what it cost is told."""
    assert [one["forks"] for one in result["rests"]] == [0, 4, 4, 4]
    starts = result["starts"]
    assert starts["began"] == starts["asked"] == starts["started"] == 10
    assert starts["refused"] == 0
    for name in ("control_ms", "loop_ms", "journal_ms", "journal_bytes", "history_bytes"):
        assert starts[name] > 0, name
    assert starts["control_ms"] > starts["loop_ms"] + starts["journal_ms"]


@pytest.mark.timeout(110)
def test_forks_beside_what_stands_in_for_an_asterisk_start_and_their_cost_is_told() -> None:
    check(bench())


@pytest.mark.asterisk
@pytest.mark.timeout(110)
def test_forks_beside_an_asterisk_start_and_their_cost_is_told() -> None:
    check(bench("--real"))


def test_rest_is_the_median_of_its_windows() -> None:
    windows = [replace(MEANWHILE, control_s=used_s) for used_s in (0.02, 0.06, 0.01)]
    rest = rest_of("nobody looks", 100, windows, 60_000)
    assert (rest.control_percent, rest.least_percent, rest.most_percent) == (1.0, 0.5, 3.0)
    assert (rest.relay_percent, rest.asterisk_percent) == (1.0, 5.0)
    # Half a percent more than without: 5 ms a second, of 100 forks.
    assert rest.fork_us(IDLE) == pytest.approx(50)
    assert IDLE.fork_us(IDLE) == 0


def test_starts_cost_what_is_used_beyond_the_rest() -> None:
    told = Told({"a": 1.0, "b": 2.0}, {"a": 1.1, "b": 3.5})
    starts = starts_of(["a", "b"], told, MEANWHILE, LONGER, IDLE, [50_000, 50_100])
    assert (starts.began, starts.asked, starts.started, starts.late) == (2, 2, 2, 1)
    assert starts.is_fine
    assert starts.max_ms == pytest.approx(1500)
    assert starts.median_ms == pytest.approx(800)
    assert starts.control_ms == pytest.approx(1000 * (0.06 - 0.005 * 4) / 2)
    assert starts.loop_ms == pytest.approx(1000 * (0.05 - 0.005 * 4) / 2)
    assert starts.control_percent == pytest.approx(2.5)
    assert (starts.journal_bytes, starts.history_bytes) == (400, 500)


def test_refused_and_missing_starts_are_no_success_and_other_calls_do_not_count() -> None:
    told = Told({"a": 1.0, "earlier": 1.0}, {"earlier": 1.1}, {"a"})
    starts = starts_of(["a", "b"], told, MEANWHILE, LONGER, IDLE, [50_000])
    assert (starts.began, starts.asked, starts.started, starts.refused) == (2, 1, 0, 1)
    assert not starts.is_fine


def test_events_of_ami_tell_when_each_fork_was_asked_for_and_what_became_of_it() -> None:
    of_a, of_b = {"Event": "UserEvent", "Uniqueid": "a"}, {"Event": "UserEvent", "Uniqueid": "b"}
    told = told_by(
        [
            (0.5, {"Event": "FullyBooted"}),
            (1.0, {**of_a, "UserEvent": "AudioFork"}),
            (1.1, {**of_a, "UserEvent": "AudioForkStarted"}),
            (2.0, {**of_b, "UserEvent": "AudioFork"}),
            (2.1, {**of_b, "UserEvent": "AudioForkFailed"}),
        ]
    )
    assert told == Told({"a": 1.0, "b": 2.0}, {"a": 1.1}, {"b"})


def test_tables_tell_each_figure() -> None:
    lines = rest_table([IDLE, replace(IDLE, what="a page is open", forks=10)]).splitlines()
    assert lines[2].split() == "no fork 0 0.50 0.40 0.60 0.00 0.0 1.0 50000".split()
    assert lines[3].split()[:5] == ["a", "page", "is", "open", "10"]
    starts = starts_of(["a"], Told(), MEANWHILE, LONGER, IDLE, [50_000, 50_100, 50_200])
    text = starts_table(starts)
    assert "asked 0, started 0, refused 0, later than 1 s 0" in text
    assert "journal 800, history 1000" in text
    assert "KiB: 50000 before, 50100, 50200" in text


def test_what_was_used_is_the_difference_of_each_part() -> None:
    assert MEANWHILE - MEANWHILE == NOTHING
    assert (LONGER - MEANWHILE).journal_bytes == 200


def test_cpu_of_a_process_has_that_of_threads_that_have_ended() -> None:
    before = measure.own_cpu_s(os.getpid())
    ran: list[float] = []

    def spin() -> None:
        while measure.threads(os.getpid())[threading.get_native_id()].cpu_s < 0.2:
            pass
        ran.append(measure.threads(os.getpid())[threading.get_native_id()].cpu_s)

    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert measure.own_cpu_s(os.getpid()) - before >= ran[0]


def test_bytes_that_a_thread_writes_are_its_own(tmp_path: Path) -> None:
    told: dict[str, int] = {}

    def write() -> None:
        number = threading.get_native_id()
        before = measure.threads(os.getpid())[number].written_bytes
        (tmp_path / "file").write_bytes(bytes(10_000))
        told["bytes"] = measure.threads(os.getpid())[number].written_bytes - before

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert told["bytes"] == 10_000
