"""Defines the interface of the relay for the control plane, whatever transport lies between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from audiofork.config import Address, Config
from audiofork.link.messages import (
    Command,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeldFork,
    Report,
    SendCommand,
    SendReport,
)
from audiofork.text import A_BUG

log = logging.getLogger(__name__)


class WorkerState(NamedTuple):
    """One of the configured workers, as it is now.

    Attributes:
        address: Where it accepts legs, or did, or will.
        is_up: Whether it does.
        forks: How many forks it has.
        rtt_s: How long its event loop took to answer lately, in seconds; 0: unknown, or it is the
            daemon's own.
        pid: Its process; 0: there is none, or it is the daemon's own.
        name: Of the relay host; empty: it is on this host.
    """

    address: Address
    is_up: bool
    forks: int
    rtt_s: float = 0.0
    pid: int = 0
    name: str = ""


HostOf = Callable[[str], str]
"""`Relay.host_of`."""


def this_host(_fork_id: str) -> str:
    """Implement `HostOf` for a relay on this host."""
    return ""


UntilExpected = Callable[[str], Awaitable[bool]]
"""`Relay.until_expected`."""


async def expected_at_once(_fork_id: str) -> bool:
    """Implement `UntilExpected` for a relay that executes each command before the next event."""
    return True


class Relay(Protocol):
    """Relays the forks that it is sent. Owned by the daemon; `close` ends it.

    Each implementation is built with a `SendReport`, the handler of its reports. It calls the
    handler for one report at a time, in order, from the event loop: neither within `send` nor
    within a callback of a transport. An exception of the handler is logged with the name of the
    report, and has no other effect. `Reports` does all of that.
    """

    async def start(self) -> Address:
        """Listen for legs; return the address, or the first of several.

        Raises:
            CannotListen: An address cannot be used; nothing is left running.
        """

    def send(self, command: Command) -> None:
        """Pass a command to the relay; does not wait or raise.

        Commands for one fork are executed in order. A command for a fork that does not exist, or
        has ended, has no effect.
        """

    def configure(self, config: Config) -> None:
        """Apply a configuration to the forks that begin from now on, but not its addresses.

        Raises:
            ConfigError: The relay cannot use it; the old configuration stays.
        """

    @property
    def addresses(self) -> Sequence[Address]:
        """All addresses that Asterisk connects legs to."""

    def address_of(self, fork_id: str) -> Address:
        """Return the address for the legs of a fork; for one that has ended, any of `addresses`."""

    def host_of(self, fork_id: str) -> str:
        """Return the name of the relay host that a fork is on; empty: this host, or none."""

    async def until_expected(self, fork_id: str) -> bool:
        """Return when the legs of a fork that were announced so far are expected.

        Only then may Asterisk be asked for them: a leg that comes sooner is refused. By then all
        that had happened to the fork is reported.

        Returns:
            Whether the relay has answered: it returns all the same, after a while, when it does
            not.
        """

    @property
    def outlives_daemon(self) -> bool:
        """Whether forks that `close` finds go on, and are held for the next daemon."""

    @property
    def held(self) -> Mapping[str, HeldFork] | None:
        """The forks that an earlier daemon has left, by id; None: that is not known yet.

        Each is to be adopted by `Adopt`, or ended by `EndFork`, whose report is passed over. If it
        is not known when `start` has returned, a `RelaysFound` follows.
        """

    @property
    def workers(self) -> Sequence[WorkerState]:
        """All workers as they are now, always in the same order."""

    async def close(self) -> None:
        """End all forks, or leave them to the next daemon; return when all reports were delivered.

        May be called twice.
        """


class Reports:
    """Delivers reports to their handler as `Relay` promises.

    Each is delivered in a callback of its own, and the event loop keeps the order of callbacks.
    Reports are rare, so this may cost something: no frame passes here.

    Args:
        handle: Called with each report.
    """

    def __init__(self, handle: SendReport) -> None:
        self._handle = handle
        self._closed = False

    def put(self, report: Report) -> None:
        """Deliver a report in a later callback of the event loop, after the caller has returned."""
        self.put_made(lambda: report)

    def put_made(self, make: Callable[[], Report | None]) -> None:
        """Make a report when its turn comes, and deliver it at once.

        For a report that must be true when it is delivered: one that is made now may be out of date
        by then.

        Args:
            make: Returns the report, or None if there is nothing to report any more.
        """
        asyncio.get_running_loop().call_soon(self._deliver, make)

    def _deliver(self, make: Callable[[], Report | None]) -> None:
        report = None if self._closed else make()
        if report is None:
            return
        try:
            self._handle(report)
        except Exception:
            log.exception("%s could not be handled", type(report).__name__)

    async def close(self) -> None:
        """Return when all reports so far are delivered; later ones are dropped."""
        await asyncio.sleep(0)  # callbacks run in order: this task goes on after all of theirs
        self._closed = True


def give(command: Command, handle: SendCommand, report: SendReport) -> None:
    """Call the handler of a worker with a command.

    An exception of the handler is a bug and is logged. If the command was to begin a fork, the end
    of the fork is reported too: no other report of it would follow.

    Args:
        command: The command.
        handle: The handler of the worker.
        report: Called with the end of the fork.
    """
    try:
        handle(command)
    except Exception:
        log.exception("%s could not be handled", type(command).__name__)
        if isinstance(command, ForkSpec):
            report(ForkEnded(command.fork_id, EndReason.FAULT, A_BUG, ForkStats()))
