"""Expects legs of the command `check`, reports when they come, and hangs them up at once.

So a check can verify that Asterisk reaches this daemon, and no log reports its leg as a stranger.
No fork is involved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from audiofork.link.messages import CheckLeg, SendReport
from audiofork.relay.leg_uuids import REMEMBERED_S
from audiofork.relay.pipeline import LegHandle

# Most legs expected at the same time: whoever may raise a user event may request them.
MAX_EXPECTED = 16


class Issuer(Protocol):
    """The part of the listener that is used here."""

    def issue(self, leg_uuid: str, owner: _CheckLeg) -> None: ...
    def withdraw(self, leg_uuid: str) -> None: ...


class CheckLegs:
    """The expected legs of checks; owned by the worker.

    Args:
        listener: Accepts the legs.
        report: Called with a CheckLeg when a leg is expected, and with another when it has come.
    """

    def __init__(self, listener: Issuer, report: SendReport) -> None:
        self._listener = listener
        self._report = report
        self._expected: dict[str, asyncio.TimerHandle] = {}  # oldest first

    def expect(self, leg_uuid: str) -> None:
        """Accept a leg with this UUID once, during the next few seconds."""
        if leg_uuid in self._expected:
            return
        if len(self._expected) >= MAX_EXPECTED:
            self._withdraw(next(iter(self._expected)))
        loop = asyncio.get_running_loop()
        self._expected[leg_uuid] = loop.call_later(REMEMBERED_S, self._withdraw, leg_uuid)
        self._listener.issue(leg_uuid, _CheckLeg(lambda: self._on_came(leg_uuid)))
        self._report(CheckLeg(leg_uuid, has_come=False))

    def close(self) -> None:
        """Stop expecting legs."""
        for leg_uuid in list(self._expected):
            self._withdraw(leg_uuid)

    def _on_came(self, leg_uuid: str) -> None:
        self._expected.pop(leg_uuid).cancel()
        self._report(CheckLeg(leg_uuid, has_come=True))

    def _withdraw(self, leg_uuid: str) -> None:
        self._expected.pop(leg_uuid).cancel()
        self._listener.withdraw(leg_uuid)


class _CheckLeg:
    """Implements `LegOwner`: hangs up its leg as soon as it has come."""

    def __init__(self, on_came: Callable[[], None]) -> None:
        self._on_came = on_came
        self.on_audio: Callable[[bytes], None] = lambda _frame: None

    def attach(self, leg: LegHandle) -> None:
        leg.hang_up()
        self._on_came()

    def on_batch_read(self, is_late: bool) -> int:  # noqa: ARG002 (of LegOwner)
        return 0

    def on_leg_closed(self, *, contested: bool = False) -> None: ...
