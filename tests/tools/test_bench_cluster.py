"""The benchmark of a cluster runs, and sees what it is to see. No test asserts how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cluster_table import FailOver, Level, Rest, Starts, table

ROOT = Path(__file__).parents[2]
FORKS, ASTERISKS = 20, 2


def bench(*arguments: str) -> str:
    """Return what the benchmark of a small cluster prints."""
    small = ["--forks", FORKS, "--asterisks", ASTERISKS, "--relays", 3, "--servers", 1]
    command = [sys.executable, "-m", "bench.cluster", *map(str, small), "--seconds", "1"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
def test_forks_of_a_small_cluster_start_and_go_on_when_a_relay_and_a_controller_are_killed() -> (
    None
):
    first, last = json.loads(bench("--json"))
    assert (first["forks"], last["forks"]) == (FORKS // 10, FORKS)
    assert last["relay"]["forks"] == last["fullest"] >= FORKS / 3
    assert last["controller"]["forks"] == FORKS / ASTERISKS
    for killed in ("relay", "controller"):
        assert 0 < last[killed]["first_s"] <= last[killed]["last_s"]
    starts: dict[str, Any] = last["starts"]
    for name in ("a_second", "median_ms", "controller_ms", "relay_ms", "server_ms", "kib"):
        assert starts[name] > 0, name
    # Each start is written down; the forks of a bucket are few beside its leases.
    assert starts["writes"] > 0.5
    assert starts["messages"] > 10
    for name in ("messages", "kib", "writes", "leader_percent", "server_mib"):
        assert last["rest"][name] > 0, name


def level(forks: int, messages: float) -> Level:
    """Return a level whose figures are the same but for the messages at rest."""
    starts = Starts(*[1.0] * 10)
    rest = Rest(*[0.0, messages, *[1.0] * 9])
    return Level(forks, starts, rest, 1, 2, 0, FailOver(1, 0.1, 0.2, 0.3), FailOver(1, 1, 2, 3))


def test_table_tells_what_of_a_figure_is_one_forks_and_how_it_has_grown() -> None:
    rows = {
        line[:42].strip(): line[42:].split()
        for line in table([level(10, 50.0), level(100, 75.0)]).splitlines()
    }
    assert rows["forks"] == ["10", "100", "ratio"]
    assert rows["messages"] == ["50", "75", "1.50"]
    assert rows["messages a fork"] == ["5.000", "0.750", "0.15"]
    assert rows["at rest, a second: KV writes"] == ["0", "0", "-"]
