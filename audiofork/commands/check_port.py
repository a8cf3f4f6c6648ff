"""What the command `check` finds out of who listens where Asterisk connects legs to."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import CHECK_COMMAND, CheckRaised, Event
from audiofork.commands import remedies
from audiofork.commands.findings import Findings
from audiofork.commands.probe import Events, ProbeLegs
from audiofork.config import Address, Config
from audiofork.doors.check_answers import CAME, READY

ANSWER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class KnownDaemon:
    """What the control socket tells of the daemon.

    Attributes:
        runs: Whether one answers there, or may.
        run_id: Who it is; empty: not known.
    """

    runs: bool = False
    run_id: str = ""


class Reached(enum.Enum):
    """What comes of having Asterisk connect to an address."""

    NOT_EXPECTED = enum.auto()
    """The daemon does not say that it expects the leg, so Asterisk was not asked for it."""
    ELSEWHERE = enum.auto()
    """Something was reached; the daemon does not say that the leg has come."""
    BY_ANOTHER = enum.auto()
    """Another daemon says that the leg has come."""
    YES = enum.auto()


class Knocking:
    """Has Asterisk connect to addresses, and the daemon say that it was reached.

    Args:
        events: What Asterisk tells.
        run_id: The daemon; empty: any that says so.
    """

    def __init__(self, events: Events, run_id: str) -> None:
        self._events = events
        self._run_id = run_id

    async def knock(self, ami: Ami, legs: ProbeLegs, address: Address) -> Reached:
        """Have Asterisk connect to an address.

        Raises:
            LegFailed: It does not reach it.
            AmiError: It cannot be asked.
        """
        token, leg_uuid = str(uuid.uuid4()), str(uuid.uuid4())
        ami.raise_event(
            "AudioFork",
            [("Command", CHECK_COMMAND), ("AudioForkID", token), ("LegUUID", leg_uuid)],
        )
        ours = self._run_id
        if await self._answer(lambda one: _says(one, token, READY, ours)) is None:
            return Reached.NOT_EXPECTED
        await legs.knock(address, leg_uuid)
        came = await self._answer(lambda one: _says(one, token, CAME, ""))
        if came is None:
            return Reached.ELSEWHERE
        return Reached.BY_ANOTHER if ours and came.run != ours else Reached.YES

    async def _answer(self, matches: Callable[[CheckRaised], bool]) -> CheckRaised | None:
        def is_it(event: Event) -> bool:
            return isinstance(event, CheckRaised) and matches(event)

        event = await self._events.first(is_it, ANSWER_TIMEOUT_S)
        return event if isinstance(event, CheckRaised) else None


class PortCheck:
    """Has Asterisk connect to the port, and the daemon say that it was reached.

    Args:
        config: What the daemon would run with.
        findings: Gets what comes of it.
        events: What Asterisk tells.
        daemon: What is known of the daemon.
    """

    def __init__(
        self, config: Config, findings: Findings, events: Events, daemon: KnownDaemon
    ) -> None:
        self._config = config
        self._findings = findings
        self._knocking = Knocking(events, daemon.run_id)
        self._daemon = daemon

    async def run(self, ami: Ami, legs: ProbeLegs) -> bool:
        """Return whether it is the daemon that listens, on each port of its relay processes.

        Raises:
            LegFailed: Asterisk does not reach a port.
            AmiError: Asterisk cannot be asked.
        """
        audiosocket = self._config.audiosocket
        first = audiosocket.advertise or audiosocket.listen
        addresses = [first.of_worker(number) for number in range(self._config.relay.workers)]
        for address in addresses:
            reached = await self._knocking.knock(ami, legs, address)
            if reached is not Reached.YES:
                self._findings.fail(f"AudioSocket: {self._fault(reached, address)}", remedies.TAKEN)
                return False
        where = " and ".join(map(str, addresses))
        self._findings.ok(f"AudioSocket: Asterisk reaches the daemon at {where}, which says so")
        self._check_socket(first)
        return True

    def _fault(self, reached: Reached, address: Address) -> str:
        if reached is Reached.NOT_EXPECTED:
            who = "the daemon" if self._daemon.run_id else "a daemon of this Asterisk"
            return f"a program listens on {address}, and {who} does not say that it is"
        if reached is Reached.ELSEWHERE:
            return f"it is not the daemon that listens on {address}"
        return f"another daemon listens on {address}"

    def _check_socket(self, address: Address) -> None:
        """See whether the daemon of the port is one that can be asked, if it should be."""
        path = self._config.control.socket
        if path and not self._daemon.runs:
            text = f"daemon: one listens on {address}, but not on [control] socket {path}"
            self._findings.fail(text, remedies.OTHER_SOCKET)


def _says(event: CheckRaised, token: str, answer: str, run: str) -> bool:
    return event.token == token and event.answer == answer and run in ("", event.run)
