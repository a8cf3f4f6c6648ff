"""Metrics of a controller of a cluster that do not depend on its daemon."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import audiofork
from audiofork.doors import metric_table as table
from audiofork.doors.exposition import Exposition
from audiofork.doors.process_metrics import write_process
from audiofork.system import usage_of

if TYPE_CHECKING:
    from audiofork.cluster.roster import Host, Roster


class ClusterState(Protocol):
    """A cluster, as a controller that leads sees it."""

    @property
    def names(self) -> tuple[str, str]:
        """Of the controller, and of its Asterisk."""

    @property
    def leads(self) -> bool: ...
    @property
    def epoch(self) -> int: ...
    @property
    def hosts(self) -> Sequence[Host]: ...


class StandbyMetrics:
    """The metrics of a controller that stands by; made only if they are asked for.

    Args:
        names: Of the controller, and of its Asterisk.
        roster: Who is in the cluster.
    """

    def __init__(self, names: tuple[str, str], roster: Roster) -> None:
        self._names = names
        self._roster = roster
        own = usage_of()
        self._started_at = own.started if own is not None else None

    def render(self, *, open_metrics: bool = False) -> str:
        """Return all metrics as text; see `exposition.py`."""
        text = Exposition(open_metrics=open_metrics)
        text.each(table.BUILD, {(audiofork.__version__, platform.python_version()): 1})
        text.each(table.CONTROLLER, {self._names: 1})
        text.one(table.LEADS, 0)
        write_hosts(text, self._roster.hosts)
        write_process(text, self._started_at)
        return text.text


def write_cluster(text: Exposition, cluster: ClusterState | None) -> None:
    """Write how this controller, which leads, and the relay hosts are; None: no cluster."""
    if cluster is None:
        for metric in table.OF_CLUSTER:
            text.one(metric, None)
        return
    text.each(table.CONTROLLER, {cluster.names: 1})
    text.one(table.LEADS, int(cluster.leads))
    text.one(table.EPOCH, cluster.epoch)
    write_hosts(text, cluster.hosts)


def write_hosts(text: Exposition, hosts: Sequence[Host]) -> None:
    """Write how the relay hosts are."""
    text.each(table.HOSTS, Counter((host.state.value,) for host in hosts))
    there = [host.beat for host in hosts if host.state.value != "dead"]
    text.each(table.HOST_FORKS, {(beat.name,): beat.forks for beat in there})
    text.each(table.HOST_CAPACITY, {(beat.name,): beat.capacity for beat in there})
    text.each(table.HOST_CPU, {(beat.name,): beat.cpu for beat in there})
