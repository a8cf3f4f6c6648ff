"""What the HTTP door needs of the daemon's other parts. What is None is not there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from audiofork.doors.event_stream import EventRing
from audiofork.doors.http.answers import Status
from audiofork.forks.following import StartNews
from audiofork.forks.history import HistoryQuery
from audiofork.forks.requests import Request
from audiofork.forks.view import ForkView
from audiofork.link.messages import EndReason


class Levels(Protocol):
    """The levels of a fork, 0 to 32767; -1: it does not have that side."""

    @property
    def in_peak(self) -> int: ...
    @property
    def in_rms(self) -> int: ...
    @property
    def out_peak(self) -> int: ...
    @property
    def out_rms(self) -> int: ...


class Heard(Protocol):
    """Some 100 ms of a fork's audio: slin, interleaved if there are two channels."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def sides(self) -> Sequence[str]: ...
    @property
    def samples(self) -> bytes: ...


class Watching(Protocol):
    """Lets others see and hear what forks carry; see forks/watching.py."""

    def subscribe_levels(
        self, on_levels: Callable[[Mapping[str, Levels]], None], /
    ) -> Callable[[], None]: ...

    def listen(
        self,
        fork_id: str,
        on_audio: Callable[[Heard], None],
        /,
        *,
        who: str,
        on_end: Callable[[EndReason], None],
    ) -> Callable[[], None]:
        """Pass a fork's audio on, and log who listens; raises RequestRefused."""


class Moment(Protocol):
    """One thing that has happened to a fork; see forks/timelines.py."""

    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...


class Timelines(Protocol):
    """What has happened to each running fork; see forks/timelines.py."""

    def of(self, fork_id: str) -> Sequence[Moment]: ...


class Series(Protocol):
    """What has happened in each minute; see forks/series.py. Its items have Minute's fields."""

    def minutes(self, hours: int) -> Sequence[Any]: ...


class History(Protocol):
    """The forks that have ended; see forks/history.py. Its items have the fields of answers.py.

    Each method raises HistoryUnavailable (an AudioForkError) where the file cannot be used, and
    `search` raises ValueError for a cursor that is none.
    """

    async def search(self, query: HistoryQuery) -> tuple[Sequence[Any], str]: ...
    async def entry(self, fork_id: str) -> Any | None: ...
    async def causes(self, since: float) -> Sequence[Any]: ...


class Histories(Protocol):
    """Those of a whole cluster, in place of one; see doors/http/cluster_history.py.

    Each answer says who has not answered, too, and why. Raises as `History`.
    """

    async def search(
        self, query: HistoryQuery, asterisk: str
    ) -> tuple[Sequence[Any], str, Mapping[str, str]]:
        """Return entries of an Asterisk, empty: of each; and the next cursor."""

    async def entry(self, fork_id: str) -> Any | None: ...
    async def causes(self, since: float) -> tuple[Sequence[Any], Mapping[str, str]]: ...


class Metrics(Protocol):
    """All metrics as text; see doors/metrics.py."""

    async def render(self, *, open_metrics: bool = False) -> str: ...


class Cluster(Protocol):
    """The whole cluster, in place of one daemon; see doors/http/whole_cluster.py.

    Attributes:
        missing: Each Asterisk whose forks were not told of when the forks were asked for last, and
            why.
    """

    @property
    def missing(self) -> Mapping[str, str]: ...

    def asterisk_of(self, fork_id: str) -> str:
        """Return the Asterisk of a fork that was listed last; empty: unknown."""

    async def find(self, fork_id: str) -> str:
        """Return the Asterisk that has a fork; raises RequestRefused or NobodyLeads."""

    async def start(
        self, request: Request, asterisk: str, *, waits: bool
    ) -> tuple[str, AsyncGenerator[StartNews, None] | None]:
        """Start a fork; return its id, and its progress if that is waited for."""

    async def timeline(self, fork_id: str) -> Sequence[Moment]:
        """Return what has happened to a fork; raises as `find`."""

    async def minutes(self, hours: int) -> tuple[Sequence[Any], Mapping[str, str]]:
        """Return what has happened in each minute, and what is missing in that."""


RunCheck = Callable[[Mapping[str, str]], AsyncGenerator[dict[str, Any], None]]


@dataclass(frozen=True)
class Parts:
    """The parts that the door asks.

    Attributes:
        ask: Grants a request and returns the ids of its forks; raises RequestRefused or AmiError.
        views: Returns all forks; raises TimeoutError.
        follow: Yields the progress of a start, by the fork's id.
        status: Returns the state of Asterisk and of the relays.
        profiles: Returns the names of the profiles.
        stream: What happens to forks.
        check: Runs a check; see doors/check_process.py.
        legs_left: Returns how many legs of ended forks Asterisk still has.
        cluster: The whole cluster; None: there is none.
    """

    ask: Callable[[Request], Awaitable[list[str]]]
    views: Callable[[], Awaitable[list[ForkView]]]
    follow: Callable[[str], AsyncGenerator[StartNews, None]]
    status: Callable[[], Status]
    profiles: Callable[[], Sequence[str]]
    stream: EventRing
    check: RunCheck | None = None
    legs_left: Callable[[], int] = lambda: 0
    watching: Watching | None = None
    timelines: Timelines | None = None
    series: Series | None = None
    history: History | None = None
    histories: Histories | None = None
    metrics: Metrics | None = None
    cluster: Cluster | None = None
