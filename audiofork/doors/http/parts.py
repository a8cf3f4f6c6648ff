"""What the HTTP door needs of the daemon's other parts. What is None is not there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from audiofork.doors.event_stream import EventStream
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


class Metrics(Protocol):
    """All metrics as text; see doors/metrics.py."""

    async def render(self, *, open_metrics: bool = False) -> str: ...


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
    """

    ask: Callable[[Request], Awaitable[list[str]]]
    views: Callable[[], Awaitable[list[ForkView]]]
    follow: Callable[[str], AsyncGenerator[StartNews, None]]
    status: Callable[[], Status]
    profiles: Callable[[], Sequence[str]]
    stream: EventStream
    check: RunCheck | None = None
    legs_left: Callable[[], int] = lambda: 0
    watching: Watching | None = None
    timelines: Timelines | None = None
    series: Series | None = None
    history: History | None = None
    metrics: Metrics | None = None
