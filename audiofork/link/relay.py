"""The interface of the relay for the control plane, the same for each transport of the link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from audiofork.config import Address, Config
from audiofork.link.messages import (
    Command,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    Report,
    SendCommand,
    SendReport,
)
from audiofork.text import A_BUG

log = logging.getLogger(__name__)


class Relay(Protocol):
    """Relays the forks that it is told of. Owned by the daemon; `close` ends it.

    Each implementation is given a `SendReport` when it is built, the handler of its reports. It
    calls the handler for one report at a time, in their order, from the event loop alone: neither
    within `send` nor within a callback of a transport. What the handler raises is logged, with the
    name of the report, and goes no further. `Reports` does all of that.
    """

    async def start(self) -> Address:
        """Listen for legs; return the address, of several the first.

        Raises:
            CannotListen: An address cannot be had; nothing is left running.
        """

    def send(self, command: Command) -> None:
        """Pass a command on; never waits, and never raises.

        Commands for one fork arrive in their order. One for a fork that there is not, or is no
        more, has no effect.
        """

    def configure(self, config: Config) -> None:
        """Take the settings for forks from now on; where legs come stays.

        Raises:
            ConfigError: The relay could not use it; nothing has changed.
        """

    @property
    def addresses(self) -> Sequence[Address]:
        """All addresses that Asterisk connects legs to."""

    def address_of(self, fork_id: str) -> Address:
        """Return the address for the legs of a fork; for a fork that is gone, any of them."""

    async def close(self) -> None:
        """End all forks and stop listening; every report has been delivered then.

        May be called twice.
        """


class Reports:
    """Delivers reports to their handler as `Relay` promises.

    Each is a callback of the event loop, which calls them in the order of the calls of `put`.
    Reports are rare: the way of a frame does not pass here.

    Args:
        handle: Gets each report.
    """

    def __init__(self, handle: SendReport) -> None:
        self._handle = handle
        self._closed = False

    def put(self, report: Report) -> None:
        """Deliver a report in a later callback of the event loop, after the caller has returned."""
        self.put_made(lambda: report)

    def put_made(self, make: Callable[[], Report | None]) -> None:
        """Have a report made when its turn has come, and delivered at once.

        For what must be true when it is heard: a report that was `put` may be out of date by then.

        Args:
            make: Returns the report; None: there is nothing to report.
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
        """Let what was put so far be delivered; what comes later is dropped."""
        await asyncio.sleep(0)  # callbacks are called in order, and the next one is ours
        self._closed = True


def give(command: Command, handle: SendCommand, report: SendReport) -> None:
    """Pass a command to the worker.

    An exception is a bug: it is logged, and ends a fork that should begin, because no other report
    of that fork would follow.
    """
    try:
        handle(command)
    except Exception:
        log.exception("%s could not be handled", type(command).__name__)
        if isinstance(command, ForkSpec):
            report(ForkEnded(command.fork_id, EndReason.FAULT, A_BUG, ForkStats()))
