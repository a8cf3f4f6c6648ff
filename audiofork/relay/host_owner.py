"""What a relay host has of one Asterisk: the session with its controller, and its forks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from audiofork.errors import NoMessage
from audiofork.link.messages import (
    Command,
    EndFork,
    EndReason,
    ForkEnded,
    ForkReport,
    ForkStats,
    Listen,
    Report,
)
from audiofork.link.sessions import (
    Down,
    Drain,
    Gone,
    Hello,
    Numbers,
    Stamp,
    Superseded,
    Up,
    decode_down,
    pack,
)
from audiofork.link.stream import Held, Ping, Pong
from audiofork.log import CounterLine
from audiofork.relay.handover import Handover

log = logging.getLogger(__name__)

# A controller pings each second; a while longer than after which it counts as dead.
SILENT_S = 3.0


class Owner:
    """One Asterisk, as a relay host knows it.

    Args:
        name: Its name in the cluster.
        publish: Sends a message to its controller.
        obey: Carries out a command.
        orphan_timeout_s: How long its forks go on without a controller.
        clock: Returns the time in seconds.
        drain: Called when a controller wants the host drained, or not any more.
        silent_s: How long nothing may be heard of a controller in a session.
    """

    def __init__(
        self,
        name: str,
        publish: Callable[[bytes], None],
        obey: Callable[[Command], None],
        orphan_timeout_s: float,
        clock: Callable[[], float],
        drain: Callable[[bool], None],
        silent_s: float = SILENT_S,
    ) -> None:
        self._name = name
        self._publish = publish
        self._obey = obey
        self._orphan_timeout_s = orphan_timeout_s
        self._clock = clock
        self._drain = drain
        self._silent_s = silent_s
        self._handover = Handover(self._clock)
        self._numbers = Numbers()
        self._epoch = 0
        self._heard_at = self._clock()
        self._stale = CounterLine(
            log, f"a controller of {name} does not lead any more: messages not obeyed"
        )

    @property
    def is_led(self) -> bool:
        """Whether a controller is heard."""
        return bool(self._numbers.session)

    def on_message(self, stamp: Stamp, line: bytes) -> None:
        """Handle a message of a controller, if it is the one that leads.

        Raises:
            NoMessage: It is none that is known here.
        """
        if stamp.epoch < self._epoch:
            self._stale.count(f"its epoch is {stamp.epoch}, now it is {self._epoch}")
            self._answer_stranger(stamp, Superseded(self._epoch))
            return
        try:
            message = decode_down(line)
        except ValueError as exc:
            self._numbers.is_next(stamp)
            raise NoMessage(str(exc)) from None
        if isinstance(message, Hello):
            self._open(stamp)
        elif not self._numbers.session or stamp.session != self._numbers.session:
            self._answer_stranger(stamp, Gone())
        elif not self._numbers.is_next(stamp):
            log.warning("a message of the controller of %s is lost", self._name)
            self._tell(Gone())
            self.leave()
        else:
            self._heard_at = self._clock()
            self._on_next(message)

    def _open(self, stamp: Stamp) -> None:
        """Begin a session, in place of an earlier one."""
        self._end_session()
        self._epoch = stamp.epoch
        self._numbers.begin(stamp.session)
        self._numbers.is_next(stamp)
        self._heard_at = self._clock()
        self._tell(Held(self._handover.held()))

    def _answer_stranger(self, stamp: Stamp, message: Up) -> None:
        """Answer a message of a session that is not the one that counts."""
        self._publish(pack(Stamp(stamp.epoch, stamp.session, 0), message))

    def _on_next(self, message: Down) -> None:
        if isinstance(message, Ping):
            self._handover.on_ping()
            self._tell(Pong())
        elif isinstance(message, Drain):
            self._drain(message.is_on)
        elif not isinstance(message, Hello):
            for report in self._handover.on_command(message):
                self._tell(report)
            self._obey(message)

    # --- Towards the controller ---

    def tell(self, report: Report) -> None:
        """Report what is of no fork."""
        self._tell(report)  # type: ignore[arg-type]  # those of the control plane come never here

    def _tell(self, message: Up) -> None:
        if self._numbers.session:
            self._publish(pack(self._numbers.stamp(self._epoch), message))

    def on_report(self, report: ForkReport) -> None:
        """Note a report of a fork, and tell it where its controller is there."""
        if isinstance(report, ForkEnded):
            report = replace(report, stats=self.whole(report.fork_id, report.stats))
        if self._handover.on_report(report):
            self._tell(report)

    def whole(self, fork_id: str, stats: ForkStats) -> ForkStats:
        """Return what was counted of a fork here and at other relay hosts before."""
        return self._handover.whole(fork_id, stats)

    # --- Without one ---

    def leave(self) -> None:
        """End the session: what happens from now on is kept for the next controller."""
        if self._end_session() and (running := self._handover.running):
            log.warning(
                "there is no controller of %s: %d forks go on, for %g s at most",
                *(self._name, len(running), self._orphan_timeout_s),
            )

    def _end_session(self) -> bool:
        """End the session; return whether there was one."""
        if not self._numbers.session:
            return False
        self._numbers.end()
        self._heard_at = self._clock()
        self._handover.on_daemon_gone()
        for fork_id in self._handover.running:  # who listened is gone, too
            self._obey(Listen(fork_id, is_on=False))
        return True

    def on_time(self) -> None:
        """Notice that a controller is gone, or has been for too long."""
        silent_s = self._clock() - self._heard_at
        if self._numbers.session:
            if silent_s > self._silent_s:
                self.leave()
        elif silent_s > self._orphan_timeout_s and (running := self._handover.running):
            log.error(
                "no controller of %s came for %g s: %d forks end",
                *(self._name, self._orphan_timeout_s, len(running)),
            )
            self._heard_at = self._clock()
            for fork_id in running:
                self._obey(EndFork(fork_id, EndReason.SHUTDOWN, "no controller came"))
