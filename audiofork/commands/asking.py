"""What the commands share that ask a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from audiofork.commands.daemon_options import DaemonPlace
from audiofork.commands.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_UNREACHABLE, fail
from audiofork.doors.daemon_client import DaemonClient
from audiofork.errors import AmiUnavailable, AudioForkError, ConfigError, DaemonUnreachable


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into a message and an exit code."""
    try:
        yield
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)
    except (DaemonUnreachable, AmiUnavailable) as exc:
        fail(str(exc), EXIT_UNREACHABLE)
    except AudioForkError as exc:
        fail(str(exc), EXIT_FAILED)


@contextmanager
def daemon_at(place: DaemonPlace) -> Iterator[DaemonClient]:
    """Connect to the daemon; turn errors into a message and an exit code."""
    with exit_codes(), place.connect() as daemon:
        yield daemon
