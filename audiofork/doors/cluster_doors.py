"""The doors of a controller: open for as long as it runs, whether it leads or stands by."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import Config
from audiofork.doors.broker_door import BrokerDoor
from audiofork.doors.cluster_answers import ClusterAnswers
from audiofork.doors.control_answers import GiveAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.opening import open_socket
from audiofork.errors import BrokerUnavailable

log = logging.getLogger(__name__)


class ClusterDoors:
    """The control socket, and requests over the broker.

    Owned by the controller, which calls `open` once and at its end `close`.

    Args:
        config: The configuration.
        broker: The connection to the broker.
        roster: Who is in the cluster.
    """

    def __init__(self, config: Config, broker: Broker, roster: Roster) -> None:
        self._config = config
        self._broker = broker
        self._answers = ClusterAnswers(config.cluster, config.asterisk_names, broker, roster)
        self._socket: ControlSocket | None = None

    def of(
        self, asterisk: str, leads: Callable[[], bool], drain: Callable[[str, bool], bool]
    ) -> AsteriskDoors:
        """Return them as the daemon of one Asterisk sees them.

        Args:
            asterisk: The name of the Asterisk.
            leads: Returns whether nobody else can lead for it now.
            drain: Has a relay host drained, or not any more; returns whether it is there.
        """
        return AsteriskDoors(self._broker, self._answers, asterisk, leads, drain)

    async def open(self) -> None:
        """Open the control socket, if it is configured."""
        if self._config.control.socket:
            self._socket = await open_socket(Path(self._config.control.socket), self._answers)

    async def close(self) -> None:
        """Close the control socket."""
        if self._socket is not None:
            await self._socket.close()


class AsteriskDoors:
    """The doors of a controller for one Asterisk. Implements `opening.SharedDoors`.

    Its daemon calls `serve` when it leads, and then `stop_serving`. See `ClusterDoors.of`.
    """

    def __init__(
        self,
        broker: Broker,
        answers: ClusterAnswers,
        asterisk: str,
        leads: Callable[[], bool],
        drain: Callable[[str, bool], bool],
    ) -> None:
        self.drain = drain
        self._broker = broker
        self._answers = answers
        self._asterisk = asterisk
        self._leads = leads
        self._door: BrokerDoor | None = None

    async def serve(self, answers: GiveAnswers) -> None:
        """Answer requests by these, also those that come over the broker."""
        self._answers.begin_to_lead(self._asterisk, answers)
        asked = self._answers.of(self._asterisk)
        self._door = BrokerDoor(self._broker, self._asterisk, self._leads, asked)
        try:
            await self._door.open()
        except BrokerUnavailable as exc:
            log.warning("other controllers cannot pass requests on to this one: %s", exc)

    async def stop_serving(self) -> None:
        """Pass requests on to another controller again; may be called again."""
        if self._door is not None:
            await self._door.close()
            self._door = None
        self._answers.end_to_lead(self._asterisk)
