"""Legs of the command `check`: expected, told of when they come, and hung up at once.

So a check can see that it is this daemon that Asterisk reaches, and no log calls its leg a
stranger. No fork has a part in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from audiofork.link.messages import CheckLeg, SendReport
from audiofork.relay.leg_uuids import REMEMBERED_S
from audiofork.relay.pipeline import LegHandle

# At once; whoever may raise a user event may ask for them.
MAX_EXPECTED = 16


class Issuer(Protocol):
    """What the listener does."""

    def issue(self, leg_uuid: str, owner: _CheckLeg) -> None: ...
    def withdraw(self, leg_uuid: str) -> None: ...


class CheckLegs:
    """The legs of checks that are expected; owned by the worker.

    Args:
        listener: Accepts them.
        report: Gets a CheckLeg when one is expected, and another when it has come.
    """

    def __init__(self, listener: Issuer, report: SendReport) -> None:
        self._listener = listener
        self._report = report
        self._expected: dict[str, asyncio.TimerHandle] = {}  # oldest first

    def expect(self, leg_uuid: str) -> None:
        """Accept a leg with this UUID, once, for some seconds."""
        if leg_uuid in self._expected:
            return
        if len(self._expected) >= MAX_EXPECTED:
            self._withdraw(next(iter(self._expected)))
        loop = asyncio.get_running_loop()
        self._expected[leg_uuid] = loop.call_later(REMEMBERED_S, self._withdraw, leg_uuid)
        self._listener.issue(leg_uuid, _CheckLeg(lambda: self._on_came(leg_uuid)))
        self._report(CheckLeg(leg_uuid, has_come=False))

    def close(self) -> None:
        """Expect none any more."""
        for leg_uuid in list(self._expected):
            self._withdraw(leg_uuid)

    def _on_came(self, leg_uuid: str) -> None:
        self._expected.pop(leg_uuid).cancel()
        self._report(CheckLeg(leg_uuid, has_come=True))

    def _withdraw(self, leg_uuid: str) -> None:
        self._expected.pop(leg_uuid).cancel()
        self._listener.withdraw(leg_uuid)


class _CheckLeg:
    """Implements `LegOwner`: hangs its leg up as soon as that has come."""

    def __init__(self, on_came: Callable[[], None]) -> None:
        self._on_came = on_came
        self.on_audio: Callable[[bytes], None] = lambda _frame: None

    def attach(self, leg: LegHandle) -> None:
        leg.hang_up()
        self._on_came()

    def on_batch_read(self, *, is_late: bool) -> int:  # noqa: ARG002 (of LegOwner)
        return 0

    def on_leg_closed(self, *, contested: bool = False) -> None: ...
