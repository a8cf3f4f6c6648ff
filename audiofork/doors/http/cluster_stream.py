"""What happens to the forks of a whole cluster, in one stream."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from audiofork.doors.event_stream import RESET, EventRing, StreamEvent

log = logging.getLogger(__name__)


class ToldEvent:
    """An event with its JSON; see `StreamEvent`."""

    __slots__ = ("fork_id", "json", "name", "number")

    def __init__(self, number: int, name: str, fork_id: str, text: str) -> None:
        self.number = number
        self.name = name
        self.fork_id = fork_id
        self.json = text

    @property
    def text_size(self) -> int:
        """How many characters it may hold of a server's text."""
        return len(self.json)


class _OfDaemon:
    """An event of our own daemon, with the name of its Asterisk; see `StreamEvent`."""

    __slots__ = ("_asterisk", "_event", "number")

    def __init__(self, number: int, event: StreamEvent, asterisk: str) -> None:
        self.number = number
        self._event = event
        self._asterisk = asterisk

    @property
    def name(self) -> str:
        return self._event.name

    @property
    def fork_id(self) -> str:
        return self._event.fork_id

    @property
    def json(self) -> str:
        return with_asterisk(self._event.json, self._asterisk)

    @property
    def text_size(self) -> int:
        return self._event.text_size


def with_asterisk(text: str, asterisk: str) -> str:
    """Return a JSON object, which is not empty, with the name of an Asterisk in front."""
    return f'{{"asterisk":{json.dumps(asterisk)},{text[1:]}'


class ClusterStream(EventRing):
    """Numbers the events of all that lead, as this controller hears of them.

    Args:
        run_id: The id of this run of the controller.
    """

    def add(self, name: str, fork_id: str, text: str) -> None:
        """Keep an event of another controller."""
        self.keep(ToldEvent(self.last + 1, name, fork_id, text))

    def follow(self, stream: EventRing, asterisk: str) -> Callable[[], None]:
        """Keep the events of our own daemon from now on; return what ends that."""
        return stream.subscribe(lambda event: self.keep(_OfDaemon(self.last + 1, event, asterisk)))

    def gap(self) -> None:
        """Tell that events may be missing: whoever reads them asks for the forks again."""
        self.forget()
        self.keep(ToldEvent(self.last + 1, RESET, "", "{}"))
