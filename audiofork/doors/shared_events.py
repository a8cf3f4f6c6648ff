"""What happens to forks, from the controller that leads to those that show it.

Each event is one message to `audiofork.events.ASTERISK`, as JSON:

    {"run": "0d0d...", "number": 17, "name": "fork.started", "event": {"at": 1700000000.25, ...}}

`number` rises by one with each, in each run of the daemon: so whoever hears them sees a gap. Nobody
waits for who does not hear them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from audiofork.cluster.broker import Broker
from audiofork.doors.event_stream import EventStream, StreamEvent
from audiofork.doors.http.cluster_stream import ClusterStream, with_asterisk
from audiofork.doors.rendering import NAMES
from audiofork.doors.told import MAX_NUMBER, is_id, json_object
from audiofork.errors import BrokerUnavailable, NoMessage
from audiofork.text import printable

log = logging.getLogger(__name__)

SUBJECT = "audiofork.events"
# The longest event has 8,000 characters of a server's text, each of up to 12 bytes in JSON.
MAX_BYTES = 128 * 1024
MOST_FIELDS = 50
# How often it is looked whether there is another Asterisk.
LOOK_S = 1.0
_EVENTS = frozenset(NAMES.values())


def tell(broker: Broker, asterisk: str, stream: EventStream) -> Callable[[], None]:
    """Publish the events of an Asterisk's forks from now on; return what ends that."""
    subject = f"{SUBJECT}.{asterisk}"

    def publish(event: StreamEvent) -> None:
        if broker.is_up:
            head = f'{{"run":"{stream.run_id}","number":{event.number},"name":"{event.name}"'
            broker.publish(subject, f'{head},"event":{event.json}}}'.encode())

    return stream.subscribe(publish)


class EventHearing:
    """Hears the events of each Asterisk, and keeps them for those who read the stream.

    Owned by the controller, which calls `start` once and then `close`.

    Args:
        broker: The connection to the broker.
        asterisks: Returns the names of each Asterisk of the cluster.
        is_own: Returns whether our own daemon leads for one: its events come without the broker.
        stream: What keeps the events.
    """

    def __init__(
        self,
        broker: Broker,
        asterisks: Callable[[], Sequence[str]],
        is_own: Callable[[str], bool],
        stream: ClusterStream,
    ) -> None:
        self._broker = broker
        self._asterisks = asterisks
        self._is_own = is_own
        self._stream = stream
        self._heard: dict[str, tuple[str, int] | None] = {}  # the latest of each: run and number
        self._looking: asyncio.Task[None] | None = None
        self._forget_broker: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to hear events, as soon as the broker is there."""
        self._forget_broker = self._broker.on_change(self._on_broker)
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Hear no more; the subscriptions end with the connection."""
        self._forget_broker()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for name in self._asterisks():
                if name not in self._heard and self._broker.is_up:
                    with contextlib.suppress(BrokerUnavailable):  # then the next look tries again
                        await self._hear(name)
            await asyncio.sleep(LOOK_S)

    async def _hear(self, asterisk: str) -> None:
        await self._broker.subscribe(f"{SUBJECT}.{asterisk}", self.on_message)
        await self._broker.flush()
        self._heard[asterisk] = None
        self._stream.gap()  # what was before is not known

    def _on_broker(self, _is_up: bool) -> None:  # noqa: FBT001 (of `Broker.on_change`)
        self._heard = dict.fromkeys(self._heard)
        self._stream.gap()

    def on_message(self, subject: str, payload: bytes) -> None:
        """Keep an event.

        Raises:
            NoMessage: It is none.
        """
        asterisk = subject.rpartition(".")[2]
        if self._is_own(asterisk) or not payload:  # `audiofork check` tries whether it may send
            return
        if len(payload) > MAX_BYTES:
            raise NoMessage("an event is too long")
        fields = json_object(payload)
        run, number, name = (fields.get(one) for one in ("run", "number", "name"))
        if type(run) is not str or type(number) is not int or name not in _EVENTS:
            raise NoMessage("no event")
        event = _event_in(fields.get("event"))
        latest = self._heard.get(asterisk)
        if latest is not None and latest != (run, number - 1):
            self._stream.gap()
        self._heard[asterisk] = run, number
        fork = event.get("fork")
        text = json.dumps(event, separators=(",", ":"))
        self._stream.add(name, fork["id"] if fork else "", with_asterisk(text, asterisk))


def _event_in(event: object) -> dict[str, Any]:
    """Return the fields of an event; texts of others than servers have no control characters.

    Raises:
        NoMessage: It is none.
    """
    if not isinstance(event, dict) or len(event) > MOST_FIELDS or "at" not in event:
        raise NoMessage("no event")
    found = {
        name: value if name == "text" and isinstance(value, str) else _plain(value)
        for name, value in event.items()
        if name not in ("fork", "asterisk")
    }
    if type(found["at"]) not in (int, float):
        raise NoMessage("no time of an event")
    return {"at": found.pop("at"), "fork": _fork_in(event.get("fork")), **found}


def _fork_in(fork: object) -> dict[str, str] | None:
    if fork is None:
        return None
    if not isinstance(fork, dict) or len(fork) > MOST_FIELDS:
        raise NoMessage("no fork of an event")
    found = {name: _plain(value) for name, value in fork.items()}
    # Of a stop that was refused, the id is what somebody has asked for.
    if not isinstance(found.get("id"), str) or any(type(one) is not str for one in found.values()):
        raise NoMessage("no fork of an event")
    if not is_id(found["id"]):
        found["id"] = ""
    return found


def _plain(value: object) -> Any:
    if isinstance(value, str):
        return printable(value, "?")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) <= MAX_NUMBER:
        return value
    raise NoMessage("a field of an event has another type")
