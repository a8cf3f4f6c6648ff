"""The state of what the daemon consists of and depends on, for those who look."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from audiofork import __version__
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.reconnecting import ReconnectingClient
from audiofork.asterisk.versions import UNKNOWN
from audiofork.doors.http.answers import AriStatus, AsteriskStatus, RelayStatus, Status
from audiofork.forks.counters import Counters
from audiofork.link.relay import Relay

if TYPE_CHECKING:
    from audiofork.asterisk.ari import Ari


class SystemState:
    """Looks at the connections to Asterisk, the relays and the counters.

    Args:
        ami: The connection to Asterisk.
        ari: That to its REST interface; None: it is not configured.
        relay: What relays the audio.
        counters: What has happened to forks.
        count_forks: Returns how many forks there are.
        run_id: Identifies this run of the daemon.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        ami: Ami,
        ari: Ari | None,
        relay: Relay,
        counters: Counters,
        count_forks: Callable[[], int],
        run_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ami = ami
        self._ari = ari
        self._relay = relay
        self._counters = counters
        self._count_forks = count_forks
        self._run_id = run_id
        self._clock = clock
        self._began = clock()

    def status(self) -> Status:
        """Return the state as it is now."""
        ami = self._ami
        version = "" if ami.version == UNKNOWN else str(ami.version)
        relays = [
            RelayStatus(worker.name or str(worker.address), worker.is_up, worker.forks)
            for worker in self._relay.workers
        ]
        return Status(
            version=__version__,
            run=self._run_id,
            uptime_s=round(self._clock() - self._began, 3),
            asterisk=AsteriskStatus(ami.is_up, version, ami.status, _rtt_ms(ami)),
            ari=self._of_ari(),
            relays=relays,
            forks=self._count_forks(),
            counters=_plain(self._counters),
        )

    def _of_ari(self) -> AriStatus:
        if self._ari is None:
            return AriStatus(False, False, "not configured")
        return AriStatus(True, self._ari.is_up, self._ari.status, _rtt_ms(self._ari))


def _plain(counters: Counters) -> dict[str, Any]:
    """Return the counters as a dictionary; `asdict` would count the pairs of a Counter anew."""
    values = {one.name: getattr(counters, one.name) for one in dataclasses.fields(counters)}
    return {
        name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()
    }


def _rtt_ms(connection: ReconnectingClient) -> float | None:
    """Return how long the last answer took; None: it is not known."""
    return round(connection.rtt_s * 1000, 3) if connection.rtt_s else None
