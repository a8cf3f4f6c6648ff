"""What the benchmark of a cluster has measured, and the table of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Starts:
    """How the last tenth of the forks started; from the request until audio was told to flow.

    Attributes:
        a_second: How many, by all Asterisks together.
        controller_ms: CPU time of the controllers for one; of the relay hosts and of all NATS
            servers likewise.
        writes: Entries written to streams for one.
        messages: Messages of clients for one, `kib` their payloads.
        between_kib: Payloads that went from server to server for one.
    """

    a_second: float
    median_ms: float
    p99_ms: float
    controller_ms: float
    relay_ms: float
    server_ms: float
    writes: float
    messages: float
    kib: float
    between_kib: float


@dataclass(frozen=True)
class Rest:
    """What passes in a second while no fork starts or ends, and CPU in percent of a core.

    Attributes:
        leader_percent: Of one controller that leads; the others of one of their kind, likewise.
        fork_kib: Memory of a controller for a fork.
        server_mib: Memory of one NATS server.
    """

    writes: float
    messages: float
    kib: float
    between_kib: float
    stored_mib: float
    leader_percent: float
    standby_percent: float
    relay_percent: float
    server_percent: float
    fork_kib: float
    server_mib: float


@dataclass(frozen=True)
class FailOver:
    """What happened when a program was killed.

    Attributes:
        forks: How many it had.
        first_s, last_s: Seconds until the first and the last of them was told to go on.
        median_s: Until half of them were.
    """

    forks: int
    first_s: float
    median_s: float
    last_s: float


@dataclass(frozen=True)
class Level:
    """All that was measured with a number of forks.

    Attributes:
        emptiest, fullest: The fewest and the most forks that a relay host had.
        alarms: How often a relay host or a controller was taken for dead that was not.
        relay, controller: What happened when these were killed.
    """

    forks: int
    starts: Starts
    rest: Rest
    emptiest: int
    fullest: int
    alarms: int
    relay: FailOver
    controller: FailOver


Row = tuple[str, Callable[[Level], float], int]
ROWS: tuple[Row, ...] = (
    ("starts a second", lambda one: one.starts.a_second, 0),
    ("  median, ms", lambda one: one.starts.median_ms, 0),
    ("  p99, ms", lambda one: one.starts.p99_ms, 0),
    ("  CPU for one, ms: controller", lambda one: one.starts.controller_ms, 2),
    ("    relay host", lambda one: one.starts.relay_ms, 2),
    ("    NATS servers", lambda one: one.starts.server_ms, 2),
    ("  KV writes for one", lambda one: one.starts.writes, 2),
    ("  messages for one", lambda one: one.starts.messages, 1),
    ("  KiB for one", lambda one: one.starts.kib, 1),
    ("  KiB between servers for one", lambda one: one.starts.between_kib, 1),
    ("KV writes a second while starting", lambda one: one.starts.writes * one.starts.a_second, 0),
    ("at rest, a second: KV writes", lambda one: one.rest.writes, 0),
    ("  messages", lambda one: one.rest.messages, 0),
    ("  messages a fork", lambda one: one.rest.messages / one.forks, 3),
    ("  KiB", lambda one: one.rest.kib, 0),
    ("  bytes a fork", lambda one: 1024 * one.rest.kib / one.forks, 1),
    ("  KiB between servers", lambda one: one.rest.between_kib, 0),
    ("CPU at rest, %: a controller that leads", lambda one: one.rest.leader_percent, 1),
    ("  one that stands by", lambda one: one.rest.standby_percent, 1),
    ("  a relay host, without its audio", lambda one: one.rest.relay_percent, 1),
    ("  a NATS server", lambda one: one.rest.server_percent, 1),
    ("memory of a controller for a fork, KiB", lambda one: one.rest.fork_kib, 1),
    ("memory of a NATS server, MiB", lambda one: one.rest.server_mib, 0),
    ("stored by NATS, one copy, MiB", lambda one: one.rest.stored_mib, 2),
    ("forks of the emptiest relay host", lambda one: one.emptiest, 0),
    ("  of the fullest", lambda one: one.fullest, 0),
    ("relay host killed: its forks", lambda one: one.relay.forks, 0),
    ("  the first goes on after, s", lambda one: one.relay.first_s, 2),
    ("  half of them", lambda one: one.relay.median_s, 2),
    ("  the last", lambda one: one.relay.last_s, 2),
    ("controller killed: its forks", lambda one: one.controller.forks, 0),
    ("  the first is found after, s", lambda one: one.controller.first_s, 2),
    ("  half of them", lambda one: one.controller.median_s, 2),
    ("  the last", lambda one: one.controller.last_s, 2),
    ("false alarms", lambda one: one.alarms, 0),
)


def table(levels: list[Level]) -> str:
    """Return all that was measured, a row for each measure, with the growth in the last column."""
    lines = ["forks".ljust(42) + "".join(f"{one.forks:10}" for one in levels) + "     ratio"]
    for name, value, places in ROWS:
        values = [value(one) for one in levels]
        ratio = f"{values[-1] / values[0]:10.2f}" if values[0] else "         -"
        lines.append(name.ljust(42) + "".join(f"{one:10.{places}f}" for one in values) + ratio)
    return "\n".join(lines)
