"""The options with which a command finds the daemon: by its control socket, or over HTTP."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from audiofork.doors import control_client
from audiofork.doors.daemon_client import DaemonClient

DEFAULT_CONFIG = Path("/etc/audiofork/audiofork.ini")

_Command = TypeVar("_Command", bound=Callable[..., Any])

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)
socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(readable=False, path_type=Path),
    help="The daemon's control socket; by default the one that the configuration names.",
)
_HTTP_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--url",
        "daemon_url",  # `start` has an argument of that name
        metavar="URL",
        envvar="AUDIOFORK_URL",
        help="Ask the daemon over HTTP in place of the socket: https://HOST:PORT, that of [http] "
        "listen. Default: AUDIOFORK_URL.",
    ),
    click.option(
        "--token-file",
        envvar="AUDIOFORK_TOKEN_FILE",
        type=click.Path(readable=False, path_type=Path),
        help="A file with a token of [http] tokens_file, for --url. Default: AUDIOFORK_TOKEN_FILE.",
    ),
    click.option(
        "--ca-file",
        envvar="AUDIOFORK_CA_FILE",
        type=click.Path(readable=False, path_type=Path),
        help="The authorities that may sign the certificate of --url, in PEM, in place of the "
        "system's. Default: AUDIOFORK_CA_FILE.",
    ),
)


@dataclass(frozen=True, slots=True)
class DaemonPlace:
    """Where the daemon is that a command asks.

    Attributes:
        path: The configuration file, which names the control socket.
        socket_path: The control socket; None: that of the file.
        url: Of the daemon's HTTP door; empty: the socket is asked.
        token_file, ca_file: For that door; see `http_connection.Door`.
        asterisk: In a cluster, the Asterisk that is meant; see `control_client.Client`.
    """

    path: Path
    socket_path: Path | None = None
    url: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    asterisk: str = ""

    def connect(self) -> DaemonClient:
        """Connect to the daemon.

        Raises:
            ConfigError: The configuration, or what the options name, cannot be used.
            DaemonUnreachable: The daemon is not there, or we may not ask it.
        """
        if not self.url:
            socket_path = self.socket_path or control_client.socket_of(self.path)
            return control_client.Client(socket_path, self.asterisk)
        from audiofork.doors.http_client import HttpClient
        from audiofork.doors.http_connection import Door

        return HttpClient(Door(self.url, self.token_file, str(self.ca_file or "")))


def of_the_daemon(command: _Command) -> _Command:
    """Add the options that name the daemon's control socket."""
    return config_option(socket_option(command))


def of_any_daemon(command: _Command) -> _Command:
    """Add the options that name a daemon, here or elsewhere; the command gets a DaemonPlace."""

    @functools.wraps(command)
    def with_place(
        *,
        path: Path,
        socket_path: Path | None,
        daemon_url: str | None,
        token_file: Path | None,
        ca_file: Path | None,
        **given: Any,
    ) -> Any:
        place = DaemonPlace(path, socket_path, _asked_for(daemon_url), token_file, ca_file)
        return command(place=place, **given)

    decorated: Any = with_place
    for one in reversed(_HTTP_OPTIONS):
        decorated = one(decorated)
    found: _Command = of_the_daemon(decorated)
    return found


asterisk_option = click.option(
    "--asterisk",
    metavar="NAME",
    default="",
    help="In a cluster: which Asterisk is meant, by its name there; default: that of this "
    "controller.",
)


def of_any_asterisk(command: _Command) -> _Command:
    """Add the options of `of_any_daemon`, and the one that names an Asterisk of a cluster."""

    @functools.wraps(command)
    def with_asterisk(*, place: DaemonPlace, asterisk: str, **given: Any) -> Any:
        return command(place=place_of(place, asterisk), **given)

    decorated: Any = asterisk_option(with_asterisk)
    found: _Command = of_any_daemon(decorated)
    return found


def place_of(place: DaemonPlace, asterisk: str) -> DaemonPlace:
    """Return where to ask for an Asterisk of a cluster; empty: that of the daemon itself."""
    if asterisk and place.url:
        raise click.UsageError(
            "other controllers are asked through the control socket, not with --url"
        )
    return replace(place, asterisk=asterisk)


def _asked_for(url: str | None) -> str:
    """Return the URL to ask; empty: the socket, if the command line names that."""
    source = click.get_current_context().get_parameter_source
    names_socket = any(
        source(name) is ParameterSource.COMMANDLINE for name in ("path", "socket_path")
    )
    if not url or not names_socket:
        return url or ""
    if source("daemon_url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--url asks over HTTP: it takes neither --socket nor --config")
    return ""
