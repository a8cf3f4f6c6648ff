"""Which relay hosts there are, in a bucket of NATS: for who comes, and has heard of none yet.

Beats tell who lives and who is dead; where the bucket cannot be used, they do alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from audiofork.cluster.beats import SUBJECT, Beat, beat_of
from audiofork.cluster.broker import Broker
from audiofork.cluster.buckets import HOSTS, HOSTS_TTL_S
from audiofork.config_cluster import is_name
from audiofork.errors import BrokerUnavailable, NoMessage
from audiofork.log import CounterLine

log = logging.getLogger(__name__)

PUT_INTERVAL_S = HOSTS_TTL_S / 3
# Of somebody who fills the bucket; a cluster has fewer.
MOST_READ = 1000
# Orders for another run are for an earlier one of this host, unless they go on for so long.
NAMESAKE_S = 30.0
_PAUSE_S = 5.0  # they come at least each second
# NATS that has just come back keeps nothing for a moment.
_READ_WAITS_S = (0.0, 0.5, 1.0, 2.0, 4.0)


def key_subject(name: str) -> str:
    """Return what a relay host writes its registration to."""
    return f"$KV.{HOSTS}.{name}"


class Presence:
    """Tells the cluster that a relay host is there: by beats, and by its registration.

    Owned by the relay host. NATS does not say whether it keeps what is written there.

    Args:
        publish: Sends a message; drops it while there is no connection.
        clock: Returns the time in seconds.

    Attributes:
        run_id: Distinguishes its runs.
    """

    def __init__(
        self, publish: Callable[[str, bytes], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run_id = str(uuid.uuid4())
        self._publish = publish
        self._clock = clock
        self._written: Beat | None = None
        self._written_at = 0.0
        self._namesake_since = self._namesake_at = float("-inf")
        self._is_told = False

    def tell(self, beat: Beat) -> None:
        """Send a beat, and register where that is due: a last beat takes the registration back."""
        self._publish(f"{SUBJECT}.{beat.name}", beat.encode())
        if self._is_due(beat):
            self._publish(key_subject(beat.name), beat.encode())
            self._written, self._written_at = beat, self._clock()

    def _is_due(self, beat: Beat) -> bool:
        before = self._written
        if before is None or self._clock() - self._written_at >= PUT_INTERVAL_S:
            return True
        return beat.is_last or beat.is_draining != before.is_draining

    def renew(self) -> None:
        """Register with the next beat: the broker is there from now on."""
        self._written = None

    def on_namesake(self) -> None:
        """Note that a controller has ordered something of another run with our name."""
        now = self._clock()
        if now - self._namesake_at > _PAUSE_S:
            self._namesake_since = now
        self._namesake_at = now
        if now - self._namesake_since >= NAMESAKE_S and not self._is_told:
            self._is_told = True
            log.error(
                "another relay host has the name of this one, and gets the forks: give one another "
                "[cluster] name"
            )


class Registered:
    """Reads who is registered when it starts, whenever the broker is back, and now and then.

    Owned by a controller. It makes the bucket if there is none, or none any more. A fault has no
    other effect than a line in the log.

    Args:
        broker: The connection to the broker.
        note: Called with the last beat that each has written.
    """

    def __init__(self, broker: Broker, note: Callable[[Beat], None]) -> None:
        self._broker = broker
        self._note = note
        self._strange = CounterLine(log, f"entries of the bucket {HOSTS} without effect")
        self._reading: asyncio.Task[None] | None = None
        self._was_there = False
        self._is_told = False

    def start(self) -> None:
        """Begin to read; never waits."""
        self._broker.on_change(self._on_broker)
        self._on_broker(True)

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 (of `Broker.on_change`)
        if self._reading is not None:
            self._reading.cancel()
        self._reading = asyncio.create_task(self._read_on()) if is_up else None

    async def _read_on(self) -> None:
        while True:
            await self._read()
            await asyncio.sleep(HOSTS_TTL_S)

    async def _read(self) -> None:
        fault = ""
        for wait_s in _READ_WAITS_S:
            await asyncio.sleep(wait_s)
            try:
                await self._read_once()
                self._is_told = False
                return
            except BrokerUnavailable as exc:
                fault = str(exc)
        if not self._is_told:
            self._is_told = True
            log.warning("who is registered in the bucket %s is not known: %s", HOSTS, fault)

    async def _read_once(self) -> None:
        bucket = await self._broker.bucket(HOSTS, was_there=self._was_there)
        self._was_there = True
        keys = [key for key in await self._broker.keys(HOSTS) if is_name(key)]
        for key, value in (await self._broker.values(bucket, keys[:MOST_READ])).items():
            try:
                self._note(registered(key, value))
            except NoMessage as exc:
                self._strange.count(f"{key}: {exc}")

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def registered(key: str, value: bytes) -> Beat:
    """Return the last beat that a relay host has written to its key.

    Raises:
        NoMessage: It is none, or not of the host whose key it is.
    """
    return beat_of(f"{SUBJECT}.{key}", value)
