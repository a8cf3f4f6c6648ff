"""One of the workers of the relay that are somewhere else: in a process, or on another host."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from itertools import zip_longest
from time import perf_counter
from typing import NamedTuple

from audiofork.config import Address
from audiofork.errors import CannotListen
from audiofork.link.messages import Command, HeldFork
from audiofork.link.relay_process import RelayProcess
from audiofork.link.stream import Down, Link, Ping, Up


class Latency(NamedTuple):
    """The latencies of `StatsTaken`: how many took no longer than each bound, and all together."""

    counts: tuple[int, ...]
    sum_s: float

    def plus(self, other: Latency) -> Latency:
        """Return the latencies of both; either may have measured none."""
        counts = [sum(pair) for pair in zip_longest(self.counts, other.counts, fillvalue=0)]
        return Latency(tuple(counts), self.sum_s + other.sum_s)


NO_LATENCY = Latency((), 0.0)


class RelayWorker(ABC):
    """A worker that may die, and what it relays.

    Attributes:
        listen: Where it accepts legs, or did, or will.
        advertise: The address that Asterisk connects to, if it is a different one.
        address: Where it listens; None: it does not listen.
        forks: The ids of the forks that it relays.
        held: Those of them that an earlier daemon has left, and this one has not adopted.
        latency: What it has last reported of latencies; see `StatsTaken`.
        rtt_s: How long the answer to the latest answered ping took, in seconds; 0: there is none.
    """

    def __init__(self, listen: Address, advertise: Address | None = None) -> None:
        self.listen = listen
        self.advertise = advertise
        self.address: Address | None = None
        self.forks: set[str] = set()
        self.held: dict[str, HeldFork] = {}
        self.latency = NO_LATENCY
        self.rtt_s = 0.0

    @property
    def leg_address(self) -> Address:
        """Where Asterisk connects legs to."""
        return self.advertise or self.listen

    @property
    def name(self) -> str:
        """Of the relay host; empty: it is on this host."""
        return ""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process, if that is on this host, which may have just ended; 0: there is none."""

    @abstractmethod
    def send(self, command: Command) -> None:
        """Send it a command, unless there is no way to it; never waits."""


class ProcessWorker(RelayWorker):
    """One of the configured workers, and the process that does its work at the moment.

    Attributes:
        open_process: Starts its process, or finds it.
        wanted: The configured address; port 0 stands for any. In `listen` it is the port that the
            first process got.
        started: Done when the first process listens; fails if it cannot.
        unanswered: The number of pings since the last answer.
        pinged: The perf_counter() of the first ping that is not answered, or of the latest.
    """

    def __init__(
        self,
        listen: Address,
        advertise: Address | None,
        open_process: Callable[[], Awaitable[RelayProcess]],
    ) -> None:
        super().__init__(listen, advertise)
        self.open_process = open_process
        self.wanted = listen
        self.link: Link[Up] | None = None
        self.process: RelayProcess | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unanswered = 0
        self.pinged = 0.0

    @property
    def pid(self) -> int:
        """Its process, which may have just ended; 0: there is none yet."""
        return self.process.pid if self.process is not None else 0

    def __str__(self) -> str:
        return f"relay process {self.pid or 'none'} at {self.listen}"

    def send(self, command: Down) -> None:
        if self.link is not None:
            self.link.send(command)

    def ping(self) -> None:
        if not self.unanswered:
            self.pinged = perf_counter()
        self.unanswered += 1
        self.send(Ping())

    def on_pong(self) -> None:
        if self.unanswered:
            self.rtt_s = perf_counter() - self.pinged
        self.unanswered = 0

    def fail_start(self, why: OSError) -> None:
        """Fail the start of the relay, if it is still waited for."""
        if not self.started.done():
            exc = CannotListen("[audiosocket] listen", self.listen, why)
            self.started.set_exception(exc)
