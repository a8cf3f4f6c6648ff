"""What the HTTP interface of a controller asks: the whole cluster, and its own daemon if it leads.

A fork's levels and its audio are there only at the controller that leads for its Asterisk.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from audiofork import __version__
from audiofork.cluster.roster import Controller, ControlState, Host, HostState, Roster
from audiofork.config import Config
from audiofork.doors import metric_table as table
from audiofork.doors.cluster_metrics import StandbyMetrics
from audiofork.doors.exposition import merged
from audiofork.doors.http.answers import (
    AriStatus,
    AsteriskStatus,
    ControllerStatus,
    RelayStatus,
    Status,
)
from audiofork.doors.http.cluster_history import AnswerHistory, ClusterHistory
from audiofork.doors.http.cluster_stream import ClusterStream
from audiofork.doors.http.parts import Heard, Levels, Parts, Watching
from audiofork.doors.http.problems import NO_SUCH_FORK, Kind, Problem
from audiofork.doors.http.whole_cluster import Ask, WholeCluster
from audiofork.errors import RequestRefused
from audiofork.forks.following import StartNews
from audiofork.link.messages import EndReason

NO_LEADER = "no controller leads for {} at the moment"


class _OnLevels(Protocol):
    def __call__(self, levels: Mapping[str, Levels], /) -> None: ...


class ClusterParts:
    """Answers for a controller, whether it leads or stands by.

    Args:
        config: The configuration; [cluster] says which Asterisk is ours.
        run_id: The id of this run of the controller.
        ask: Asks the controller that leads for an Asterisk.
        roster: Who is in the cluster.
        history: Answers a search of the history, of all controllers.
        clock: Returns the time in seconds.

    Attributes:
        stream: The events of all.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        ask: Ask,
        roster: Roster,
        history: AnswerHistory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._run_id = run_id
        self._roster = roster
        self._clock = clock
        self._began = clock()
        self._served = config.asterisk_names
        self._own: dict[str, Parts] = {}  # of our daemons, by the name of the Asterisk
        self._ends: dict[str, Callable[[], None]] = {}  # of following their events
        self._whole = WholeCluster(
            ask, self._served, lambda: roster.asterisks, config.cluster.own_name
        )
        self._watching = _OwnWatching(self._own, self._whole, self._leader)
        self._metrics = {
            name: StandbyMetrics((config.cluster.own_name, name), roster) for name in self._served
        }
        self._history = ClusterHistory(history, config.cluster.own_name)
        self.stream = ClusterStream(run_id)

    def begin(self, asterisk: str, parts: Parts) -> None:
        """Ask these of our own daemon, too, which leads for an Asterisk from now on."""
        self.end(asterisk)
        self._own[asterisk] = parts
        self._ends[asterisk] = self.stream.follow(parts.stream, asterisk)
        self._watching.begin(parts.watching)
        self.stream.gap()

    def end(self, asterisk: str) -> None:
        """Ask them no more; may be called again."""
        parts = self._own.pop(asterisk, None)
        if parts is not None:
            self._ends.pop(asterisk)()
            self._watching.end(parts.watching)
            self.stream.gap()

    def parts(self) -> Parts:
        """Return what the door asks."""
        return Parts(
            ask=self._whole.ask,
            views=self._whole.views,
            follow=_not_followed,
            status=self.status,
            profiles=self._profiles,
            stream=self.stream,
            check=self._check,
            legs_left=lambda: self._whole.legs_left,
            watching=self._watching,
            histories=self._history,
            metrics=self,
            cluster=self._whole,
        )

    def leads(self, asterisk: str) -> bool:
        """Return whether our own daemon leads for an Asterisk."""
        return asterisk in self._own

    @property
    def asterisks(self) -> Sequence[str]:
        """The names of each Asterisk of the cluster."""
        return sorted({*self._served, *self._roster.asterisks})

    # --- This controller ---

    def status(self) -> Status:
        """Return how this controller is: by its own daemon if it leads, else as others tell."""
        controllers = self._roster.controllers
        known = [
            ControllerStatus(one.beat.name, one.beat.asterisk, one.state.value)
            for one in controllers
        ]
        more: dict[str, Any] = {
            "controller": self._config.cluster.own_name,
            "controllers": known,
        }
        if self._own:
            own = {name: parts.status() for name, parts in self._own.items()}
            return dataclasses.replace(_of_all(own), **more)
        hosts = self._roster.hosts
        return Status(
            version=__version__,
            run=self._run_id,
            uptime_s=round(self._clock() - self._began, 3),
            asterisk=self._of_asterisk(),
            ari=AriStatus(False, False, "known to the controller that leads"),
            relays=[_relay(host) for host in hosts],
            forks=sum(one.beat.forks for one in hosts if one.state is not HostState.DEAD),
            counters={},
            **more,
        )

    def _of_asterisk(self) -> AsteriskStatus:
        """Return what stands for the connection to Asterisk while we stand by."""
        leaders = {name: self._leader(name) for name in self._served}
        texts = [
            f"{leader} leads for {name}, this controller stands by"
            if leader
            else NO_LEADER.format(name)
            for name, leader in leaders.items()
        ]
        return AsteriskStatus(all(leaders.values()), "", "; ".join(texts))

    def _leader(self, asterisk: str) -> str:
        """Return the name of the controller that leads for an Asterisk; empty: none is known."""
        leaders = (one.beat for one in self._roster.controllers if _leads(one))
        return next((beat.name for beat in leaders if beat.asterisk == asterisk), "")

    def _profiles(self) -> Sequence[str]:
        own = next(iter(self._own.values()), None)
        return own.profiles() if own is not None else list(self._config.profile)

    def _check(self, fields: Mapping[str, str]) -> AsyncGenerator[dict[str, Any], None]:
        """Check all that is configured here, or have the controller do that that leads for it."""
        command = {"Command": "CheckAudioFork", **fields}
        return self._whole.all_answers(next(iter(self._own), self._served[0]), command)

    async def render(self, *, open_metrics: bool = False) -> str:
        """Return the metrics of this controller alone, whoever leads; see `parts.Metrics`."""
        texts = {}
        for name in self._served:
            parts = self._own.get(name)
            if parts is not None and parts.metrics is not None:
                texts[name] = await parts.metrics.render(open_metrics=open_metrics)
            else:
                texts[name] = self._metrics[name].render(open_metrics=open_metrics)
        return merged(texts, "asterisk", table.OF_CONTROLLER)


class _OwnWatching:
    """Levels and audio of the forks of our own daemons. Implements `parts.Watching`.

    Args:
        own: The parts of our daemons, by the name of the Asterisk.
        whole: Knows which Asterisk has a fork.
        leader: Returns who leads for an Asterisk; empty: nobody is known.
    """

    def __init__(
        self, own: Mapping[str, Parts], whole: WholeCluster, leader: Callable[[str], str]
    ) -> None:
        self._own = own
        self._whole = whole
        self._leader = leader
        self._viewers: dict[_OnLevels, None] = {}
        self._ends: dict[tuple[int, _OnLevels], Callable[[], None]] = {}

    def begin(self, watching: Watching | None) -> None:
        """Have those who look see the levels of a daemon, too."""
        for viewer in self._viewers if watching is not None else ():
            self._look(watching, viewer)

    def _look(self, watching: Watching | None, viewer: _OnLevels) -> None:
        if watching is not None:
            self._ends[id(watching), viewer] = watching.subscribe_levels(viewer)

    def end(self, watching: Watching | None) -> None:
        """Have them see those no more."""
        for key in [one for one in self._ends if one[0] == id(watching)]:
            self._ends.pop(key)()

    def subscribe_levels(self, on_levels: _OnLevels, /) -> Callable[[], None]:
        self._viewers[on_levels] = None
        for parts in self._own.values():
            self._look(parts.watching, on_levels)

        def stop() -> None:
            self._viewers.pop(on_levels, None)
            for key in [one for one in self._ends if one[1] == on_levels]:
                self._ends.pop(key)()

        return stop

    def listen(
        self,
        fork_id: str,
        on_audio: Callable[[Heard], None],
        /,
        *,
        who: str,
        on_end: Callable[[EndReason], None],
    ) -> Callable[[], None]:
        asterisk = self._whole.asterisk_of(fork_id)
        if not asterisk:
            raise RequestRefused(NO_SUCH_FORK)
        parts = self._own.get(asterisk)
        if parts is not None and parts.watching is not None:
            return parts.watching.listen(fork_id, on_audio, who=who, on_end=on_end)
        leader = self._leader(asterisk)
        if not leader:
            text = NO_LEADER.format(asterisk)
            raise Problem(503, text, Kind.CONTROLLER_AWAY, {"Retry-After": "2"})
        text = f"the fork is one of {asterisk}: ask the controller {leader}, which leads for that"
        raise Problem(421, text, Kind.OTHER_CONTROLLER)


def _of_all(own: Mapping[str, Status]) -> Status:
    """Return the state of several daemons as one, by the names of their Asterisks."""
    states = list(own.values())
    if len(states) == 1:
        return states[0]
    worst = min((one.asterisk for one in states), key=lambda one: one.up)
    text = "; ".join(f"{name}: {one.asterisk.text}" for name, one in own.items())
    counters: dict[str, Any] = {}
    for one in states:
        for name, value in one.counters.items():
            if isinstance(value, Mapping):
                counters[name] = dict(Counter(counters.get(name, {})) + Counter(value))
            else:
                counters[name] = counters.get(name, 0) + value
    return dataclasses.replace(
        states[0],
        asterisk=dataclasses.replace(worst, text=text),
        forks=sum(one.forks for one in states),
        counters=counters,
    )


def _leads(controller: Controller) -> bool:
    return controller.state is ControlState.LEADS


def _relay(host: Host) -> RelayStatus:
    return RelayStatus(host.beat.name, host.state is not HostState.DEAD, host.beat.forks)


async def _not_followed(_fork_id: str) -> AsyncGenerator[StartNews, None]:
    """Yield nothing: a start in a cluster has its progress with it."""
    none: tuple[StartNews, ...] = ()
    for one in none:
        yield one
