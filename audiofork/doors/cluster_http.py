"""The HTTP interface of a controller: open for as long as it runs, whether it leads or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from audiofork.cluster.broker import Broker
from audiofork.cluster.roster import Roster
from audiofork.config import Config, HttpConfig
from audiofork.doors.cluster_answers import AnswerHistory, ClusterAnswers
from audiofork.doors.shared_events import EventHearing

if TYPE_CHECKING:
    from audiofork.doors.http.cluster_parts import ClusterParts
    from audiofork.doors.http.door import HttpDoor
    from audiofork.doors.http.parts import Parts


class ClusterHttp:
    """Opens the door, and hears what it shows; does nothing where none is configured.

    Args:
        config: The configuration.
        run_id: The id of this run of the controller.
        broker: The connection to the broker.
        roster: Who is in the cluster.
        answers: Asks the controller that leads for an Asterisk.
        history: Answers a search of the history, of all controllers.

    Attributes:
        door: The door; None: it is not open.
        parts: What it asks.
        hearing: Hears the events.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        broker: Broker,
        roster: Roster,
        answers: ClusterAnswers,
        history: AnswerHistory,
    ) -> None:
        self._config = config
        self._run_id = run_id
        self._broker = broker
        self._roster = roster
        self._answers = answers
        self._history = history
        self.door: HttpDoor | None = None
        self.parts: ClusterParts | None = None
        self.hearing: EventHearing | None = None

    async def open(self) -> None:
        """Open the door, if it is configured.

        Raises:
            CannotListen: Its address cannot be used.
            ConfigError: A file that [http] names cannot be used.
        """
        if not self._config.http.is_open:
            return
        from audiofork.doors.http.cluster_parts import ClusterParts
        from audiofork.doors.http.door import HttpDoor  # its imports take 14 MB of memory

        self.parts = parts = ClusterParts(
            *(self._config, self._run_id, self._answers.ask, self._roster), self._history
        )
        self.door = HttpDoor(self._config.http, parts.parts())
        await self.door.start()
        self.hearing = EventHearing(
            self._broker, lambda: parts.asterisks, parts.leads, parts.stream
        )
        self.hearing.start()

    def begin(self, asterisk: str, parts: Parts) -> None:
        """Ask our daemon, too, which leads for an Asterisk."""
        if self.parts is not None:
            self.parts.begin(asterisk, parts)

    def end(self, asterisk: str) -> None:
        """Ask it no more; may be called again."""
        if self.parts is not None:
            self.parts.end(asterisk)

    def reading(self, config: HttpConfig) -> Callable[[], None]:
        """Read the tokens of a configuration; return what makes them count.

        Raises:
            ConfigError: Their file cannot be used.
        """
        return self.door.reading_tokens(config) if self.door is not None else lambda: None

    async def close(self) -> None:
        """Close the door."""
        for one in (self.door, self.hearing):
            if one is not None:
                await one.close()
