"""The doors of a controller: open for as long as it runs, whether it leads or stands by."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Controller, Roster
from audiofork.config import Config, HttpConfig
from audiofork.doors.broker_door import BrokerDoor, subject_of
from audiofork.doors.cluster_answers import ClusterAnswers
from audiofork.doors.cluster_front import ClusterFront
from audiofork.doors.cluster_http import ClusterHttp
from audiofork.doors.control_answers import GiveAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.doors.history_sharing import HistoryOfCluster, Keeper, OwnHistory
from audiofork.doors.opening import open_socket
from audiofork.doors.shared_events import tell
from audiofork.errors import BrokerUnavailable

if TYPE_CHECKING:
    from audiofork.doors.ami_front import Ask
    from audiofork.doors.event_stream import EventStream
    from audiofork.doors.http.parts import Parts

log = logging.getLogger(__name__)


class ClusterDoors:
    """The control socket, the HTTP interface, and requests over the broker.

    Owned by the controller, which calls `open` once and at its end `close`.

    Args:
        config: The configuration.
        broker: The connection to the broker.
        roster: Who is in the cluster.
        run_id: The id of this run of the controller.
    """

    def __init__(self, config: Config, broker: Broker, roster: Roster, run_id: str = "") -> None:
        self._config = config
        self._broker = broker
        names, own_name = config.asterisk_names, config.cluster.own_name
        self._histories = {
            name: OwnHistory(config.of_asterisk(name).history.file) for name in names
        }
        keepers = {Keeper(name, own_name): own for name, own in self._histories.items()}
        histories = HistoryOfCluster(
            broker, own_name, keepers, lambda: [_keeper(one) for one in roster.controllers]
        )
        self._history_doors = [
            BrokerDoor(broker, subject, lambda: True, answers)
            for keeper, own in keepers.items()
            for subject, answers in ((keeper.subject, own), (keeper.forget_subject, own.forget))
        ]
        self._answers = ClusterAnswers(config.cluster, names, broker, roster, histories.answer)
        self._http = ClusterHttp(*(config, run_id, broker, roster, self._answers, histories.answer))
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
        history = self._histories[asterisk]
        front = ClusterFront(self._config.of_asterisk(asterisk), self._answers)
        return AsteriskDoors(
            *(self._broker, self._answers, self._http, history, front), asterisk, leads, drain
        )

    async def open(self) -> None:
        """Open the control socket and the HTTP interface, if they are configured.

        Raises:
            CannotListen: The address of the HTTP interface cannot be used.
            ConfigError: A file that [http] names cannot be used.
        """
        if self._config.control.socket:
            self._socket = await open_socket(Path(self._config.control.socket), self._answers)
        await self._http.open()

    async def join(self) -> None:
        """Let other controllers ask for our histories, now that the broker is there."""
        try:
            for door in self._history_doors:
                await door.open()
        except BrokerUnavailable as exc:
            log.warning("other controllers cannot search the history of this one: %s", exc)

    def reading(self, config: HttpConfig) -> Callable[[], None]:
        """Read the tokens of a configuration; return what makes them count.

        Raises:
            ConfigError: Their file cannot be used.
        """
        return self._http.reading(config)

    async def close(self) -> None:
        """Close the control socket and the HTTP interface."""
        for door in (self._socket, self._http, *self._history_doors):
            if door is not None:
                await door.close()


class AsteriskDoors:
    """The doors of a controller for one Asterisk. Implements `opening.SharedDoors`.

    Its daemon calls `serve` when it leads, and then `stop_serving`. See `ClusterDoors.of`.

    Attributes:
        history: That of this controller for the Asterisk; a daemon has it alone while it runs.
        front: The AMI front of the Asterisk.
    """

    def __init__(
        self,
        broker: Broker,
        answers: ClusterAnswers,
        http: ClusterHttp,
        history: OwnHistory,
        front: ClusterFront,
        asterisk: str,
        leads: Callable[[], bool],
        drain: Callable[[str, bool], bool],
    ) -> None:
        self.drain = drain
        self.history = history
        self.front = front
        self._broker = broker
        self._answers = answers
        self._http = http
        self._asterisk = asterisk
        self._leads = leads
        self._door: BrokerDoor | None = None
        self._end_sharing: Callable[[], None] = lambda: None

    def share(self, stream: EventStream) -> None:
        """Tell other controllers what happens to the forks of our daemon."""
        self._end_sharing = tell(self._broker, self._asterisk, stream)

    def serve_front(self, ask: Ask) -> None:
        """Have our daemon execute what clients of the AMI front ask for."""
        self.front.begin(ask)

    def serve_http(self, parts: Parts) -> None:
        """Ask our daemon, too, for the HTTP interface."""
        self._http.begin(self._asterisk, parts)

    async def serve(self, answers: GiveAnswers) -> None:
        """Answer requests by these, also those that come over the broker."""
        self._answers.begin_to_lead(self._asterisk, answers)
        self.history.begin_to_lead(answers)
        asked = self._answers.of(self._asterisk)
        self._door = BrokerDoor(self._broker, subject_of(self._asterisk), self._leads, asked)
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
        self.history.end_to_lead()
        self.front.end()
        self._end_sharing()
        self._http.end(self._asterisk)


def _keeper(controller: Controller) -> Keeper:
    return Keeper(controller.beat.asterisk, controller.beat.name)
