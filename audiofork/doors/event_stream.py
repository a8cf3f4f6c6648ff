"""The latest events of forks, numbered, so that a reader who was away can go on where it was.

Events are rendered only when somebody reads them: without readers each costs a place in the ring.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from audiofork.doors.rendering import (
    MAX_MESSAGE_CHARACTERS,
    NAMES,
    event_fields,
)
from audiofork.forks.events import DomainEvent, MessageReceived

log = logging.getLogger(__name__)

RESET = "reset"
"""The name of the event that says that others are missing: ask for the forks again."""
MAX_EVENTS = 2000
# Of texts of servers, in all events together: 2,000 of the longest would take 64 MB.
MAX_TEXT_CHARACTERS = 2_000_000


class StreamEvent(Protocol):
    """An event with its number.

    Attributes:
        number: From 1 in each run of the program.
        name: What happened: fork.started, for example.
        fork_id: Of which fork; empty: of none.
    """

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fork_id(self) -> str: ...

    @property
    def json(self) -> str:
        """What happened as JSON: in one line, ASCII only."""

    @property
    def text_size(self) -> int:
        """How many characters of a server's text it holds."""


class OwnEvent:
    """An event of this daemon; see `StreamEvent`."""

    __slots__ = ("_event", "_json", "_tells_keys", "at", "fork_id", "name", "number")

    def __init__(self, number: int, event: DomainEvent, at: float, tells_keys: bool) -> None:
        self.number = number
        self.name = NAMES[type(event)]
        self.at = at
        fork = getattr(event, "fork", None)
        self.fork_id: str = fork.id if fork is not None else ""
        self._event = event
        self._tells_keys = tells_keys
        self._json = ""

    @property
    def json(self) -> str:
        """What happened; rendered at the first reading."""
        if not self._json:
            fields = {
                "at": round(self.at, 3),
                **event_fields(self._event, tells_keys=self._tells_keys),
            }
            self._json = json.dumps(fields, separators=(",", ":"))
        return self._json

    @property
    def text_size(self) -> int:
        """How many characters of a server's text it holds."""
        return len(self._event.text) if isinstance(self._event, MessageReceived) else 0


OnEvent = Callable[[StreamEvent], None]


class EventRing:
    """Keeps the latest events, and passes them to readers.

    Args:
        run_id: The id of this run of the program, part of each event's id.

    Attributes:
        run_id: That id.
        last: The number of the latest event.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._ring: deque[StreamEvent] = deque()
        self._text_size = 0
        self._readers: dict[object, OnEvent] = {}
        self.last = 0

    def keep(self, one: StreamEvent) -> None:
        """Keep an event, whose number is the next one, and pass it on."""
        self.last = one.number
        self._ring.append(one)
        self._text_size += one.text_size
        while len(self._ring) > MAX_EVENTS or self._text_size > MAX_TEXT_CHARACTERS:
            self._text_size -= self._ring.popleft().text_size
        for reader in list(self._readers.values()):
            try:
                reader(one)
            except Exception:
                log.exception("a reader of events failed on %s", one.name)

    def forget(self) -> None:
        """Keep no event of those so far."""
        self._ring.clear()
        self._text_size = 0

    def subscribe(self, reader: OnEvent) -> Callable[[], None]:
        """Call a reader with each event from now on; return what ends that."""
        key = object()
        self._readers[key] = reader

        def unsubscribe() -> None:
            self._readers.pop(key, None)

        return unsubscribe

    def id_of(self, number: int) -> str:
        """Return the id of the event with a number; 0: that of the moment before the first."""
        return f"{self.run_id}-{number}"

    def number_of(self, event_id: str) -> int | None:
        """Return the number of an event by its id, if what followed it is still known."""
        run_id, _, number = event_id.rpartition("-")
        if run_id != self.run_id or not number.isascii() or not number.isdigit():
            return None
        found = int(number[:18])
        return found if self.last - len(self._ring) <= found <= self.last else None

    def after(self, number: int, most: int) -> list[StreamEvent]:
        """Return up to `most` events that came after the one with this number."""
        skipped = max(0, number - (self.last - len(self._ring)))
        return list(islice(self._ring, skipped, skipped + most))


class EventStream(EventRing):
    """Numbers the events of forks; owned by the daemon, which subscribes `on_event` to them.

    Args:
        run_id: The id of this run of the daemon.
        tells_keys: Whether it may be told which keys a party pressed.
        clock: Returns the time in seconds since 1970.
    """

    def __init__(
        self, run_id: str, *, tells_keys: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(run_id)
        self._tells_keys = tells_keys
        self._clock = clock

    def on_event(self, event: DomainEvent) -> None:
        """Keep an event and pass it on."""
        if type(event) not in NAMES:
            return
        if isinstance(event, MessageReceived) and len(event.text) > MAX_MESSAGE_CHARACTERS:
            # One more, so that it is seen to be cut.
            event = dataclasses.replace(event, text=event.text[: MAX_MESSAGE_CHARACTERS + 1])
        self.keep(OwnEvent(self.last + 1, event, self._clock(), self._tells_keys))
