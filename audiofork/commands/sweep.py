"""Hangs up the legs that a dead daemon left behind: the command `sweep`.

A daemon does this itself when it starts; this is for one that will not be started again soon.
Before Asterisk 20.14, 21.9 and 22.4, a leg whose connection has ended may use a whole core while
its channel is silent.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from audiofork.asterisk.ami import connected
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import dials, is_leg, is_snoop_leg
from audiofork.config import Address, Config
from audiofork.doors.control_client import Client
from audiofork.errors import AmiActionFailed, DaemonRuns, DaemonUnreachable

_OF_A_CLUSTER = (
    "[cluster]: the legs may be those of a controller on another host; the one that leads hangs up "
    "what is left"
)
_RUNS = "the daemon runs, so the legs are wanted; it sweeps at its start itself"


async def sweep(config: Config) -> int:
    """Hang up all legs of the daemon with this configuration; return how many were hung up.

    Raises:
        DaemonRuns: The daemon runs, or may run.
        OSError, TimeoutError, ValueError, AmiError: Asterisk cannot be asked.
    """
    _check_dead(config)
    addresses = _addresses(config)
    async with connected(config.asterisk, lambda _: None) as ami:
        present = await Channels(ami).present()
        legs = [
            uniqueid
            for uniqueid, name in present.items()
            if (is_leg(uniqueid) and dials(name, addresses))
            or (config.ari.url and is_snoop_leg(name, uniqueid, config.ari.app))
        ]
        count = 0
        for uniqueid in legs:
            with contextlib.suppress(AmiActionFailed):  # the leg has ended meanwhile
                await ami.action("Hangup", [("Channel", uniqueid)])
                count += 1
    return count


def _check_dead(config: Config) -> None:
    """Raise DaemonRuns unless it is certain that the daemon does not run."""
    if config.cluster.servers:
        raise DaemonRuns(_OF_A_CLUSTER)
    if config.control.socket:
        try:
            with Client(Path(config.control.socket)):
                raise DaemonRuns(_RUNS)
        except DaemonUnreachable as exc:
            if not isinstance(exc.__cause__, FileNotFoundError | ConnectionRefusedError):
                raise DaemonRuns(f"it is not known whether the daemon runs: {exc}") from exc
    listen = config.audiosocket.listen
    try:
        socket.create_server((listen.host, listen.port)).close()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise DaemonRuns(f"something listens on {listen}: {_RUNS}") from exc


def _addresses(config: Config) -> list[Address]:
    """Return the addresses that Asterisk dials for the relay processes; none if the port is 0."""
    first = config.audiosocket.advertise or config.audiosocket.listen
    workers = config.relay.workers if first.port else 0
    return [first.of_worker(number) for number in range(workers)]
