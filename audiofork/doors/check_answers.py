"""Proves to a check that Asterisk connects legs to this daemon.

A check names the UUID of a leg in a user event that does nothing else (`AudioForkCheck`). The
daemon answers that it expects that leg, and answers again when the leg has come. Each answer
contains the id of this run of the daemon, which the control socket reports as well. So neither
another program on the port nor another daemon of the same Asterisk can be mistaken for this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from audiofork.asterisk.ami_protocol import CHECK_COMMAND, CheckRaised
from audiofork.link.messages import CheckLeg, ExpectCheckLeg, SendCommand

READY = "ready"
CAME = "came"
MAX_ASKED = 16  # at once; the relay expects as many

RaiseEvent = Callable[[str, Iterable[tuple[str, str]]], None]


class CheckAnswers:
    """Answers the checks that announce themselves over AMI; owned by the daemon.

    Args:
        raise_event: Sends a user event to Asterisk.
        send: Passes commands to the relay.
        workers: Returns how many workers of the relay work: each must expect the leg.
        run_id: Identifies this run of the daemon; different at each start.
    """

    def __init__(
        self, raise_event: RaiseEvent, send: SendCommand, workers: Callable[[], int], run_id: str
    ) -> None:
        self._raise = raise_event
        self._send = send
        self._workers = workers
        self._run_id = run_id
        self._asked: dict[str, _Asked] = {}  # by the leg's UUID, oldest first

    def on_raised(self, event: CheckRaised) -> None:
        """Expect the leg of a check, if the event names one."""
        leg_uuid = _canonical(event.leg_uuid)
        if event.answer or not leg_uuid or leg_uuid in self._asked:
            return
        while len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[leg_uuid] = _Asked(event.token, self._workers())
        self._send(ExpectCheckLeg(leg_uuid))

    def on_report(self, report: CheckLeg) -> None:
        """Answer that a leg is expected, or has come."""
        asked = self._asked.get(report.leg_uuid)
        if asked is None:
            return
        if report.has_come:
            del self._asked[report.leg_uuid]
            self._answer(asked, CAME)
            return
        asked.missing -= 1
        if asked.missing == 0:
            self._answer(asked, READY)

    def _answer(self, asked: _Asked, answer: str) -> None:
        self._raise(
            "AudioFork",
            [
                ("Command", CHECK_COMMAND),
                ("AudioForkID", asked.token),
                ("Answer", answer),
                ("Run", self._run_id),
            ],
        )


class _Asked:
    """The question of a check: its token, and how many workers do not expect its leg yet."""

    def __init__(self, token: str, missing: int) -> None:
        self.token = token
        self.missing = missing


def _canonical(text: str) -> str:
    """Return a UUID in its canonical form; empty if the text is not a UUID."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return ""
