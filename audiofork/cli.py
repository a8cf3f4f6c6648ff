"""The command line: the commands that run the daemon and its parts, and where the others are."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from audiofork import __version__, config, config_file, log
from audiofork.commands.daemon_options import DEFAULT_CONFIG, config_option
from audiofork.commands.roles import exits_of, need_cluster, need_one_asterisk, of_relay_host
from audiofork.commands.terminal import EXIT_CODES, EXIT_CONFIG, fail
from audiofork.errors import ConfigError
from audiofork.system import hot_path

if TYPE_CHECKING:
    from audiofork.relay.host import MakeDoor

# Each is imported when it is asked for: to import all takes longer than most of them run.
_ELSEWHERE = {
    "buckets": "buckets_command:buckets",
    "check": "check_command:check",
    "cluster": "cluster_command:cluster",
    "connect": "fork_commands:connect",
    "drain": "cluster_command:drain",
    "history": "history_command:history",
    "list": "list_command:list_forks",
    "migrate": "migrate_command:migrate",
    "mute": "fork_commands:mute",
    "receive": "receive_command:receive",
    "setup": "setup.command:setup",
    "start": "fork_commands:start",
    "stop": "fork_commands:stop",
    "sweep": "sweep_command:sweep",
}
"""In which module of audiofork/commands a command is, and its name there."""


class _Commands(MutableMapping[str, click.Command]):
    """All commands; the help of each ends with the exit codes, which they share."""

    def __init__(self) -> None:
        self._imported: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._imported:
            module, _, attribute = _ELSEWHERE[name].partition(":")
            found = importlib.import_module(f"audiofork.commands.{module}")
            self[name] = getattr(found, attribute)
        return self._imported[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        command.epilog = command.epilog or EXIT_CODES
        self._imported[name] = command

    def __delitem__(self, name: str) -> None:
        del self._imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**_ELSEWHERE, **self._imported})

    def __len__(self) -> int:
        return len({**_ELSEWHERE, **self._imported})


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.version_option(
    __version__,
    prog_name="audiofork",
    message=f"%(prog)s, version %(version)s, hot path: {hot_path()}",
)
def main() -> None:
    """Sends the audio of live Asterisk calls to WebSocket servers.

    To begin: `audiofork setup` connects it to the Asterisk of this machine, `audiofork check` tests
    everything that it needs, `audiofork receive` is a server to send a first call to.
    """


def _set_up_log(settings: config.LogConfig) -> None:
    """Set up the log of what runs until it is stopped; the first line says what that is."""
    log.set_up(settings)
    logging.getLogger(__name__).info("audiofork %s, hot path: %s", __version__, hot_path())


@main.command()
@config_option
def run(path: Path) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    with exits_of(path):
        loaded = config_file.load(path)
        config_file.refuse_unknown_variables(loaded)
        need_one_asterisk(loaded)
        _set_up_log(loaded.log)
        uvloop.run(_run(path, loaded))


@main.command(short_help="Run a relay for daemons: of this host, or of a cluster.")
@click.argument("path", metavar="[SOCKET]", required=False, type=click.Path(path_type=Path))
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file, without SOCKET.",
)
def relay(path: Path | None, config_path: Path) -> None:
    """Run a relay process that the daemon comes to, until SIGTERM.

    With SOCKET it waits there for the daemon of this host, for audiofork-relay@.service, where
    [relay] detached = yes. It needs no configuration: the daemon tells it what it has to know,
    which is no secret of Asterisk.

    Without SOCKET it is a relay host of the cluster that [cluster] of the configuration names; it
    needs no login to Asterisk.
    """
    if path is None:
        _run_host(config_path)
        return
    from audiofork.relay import detached

    _set_up_log(config.LogConfig())
    try:
        detached.run(path)
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)


def _run_host(path: Path) -> None:
    """Run a relay host of a cluster."""
    with exits_of(path):
        from audiofork.relay import host

        loaded = of_relay_host(path)
        _set_up_log(loaded.log)
        host.run(loaded, lambda: of_relay_host(path), _host_door_of(loaded.http))


def _host_door_of(http: config.HttpConfig) -> MakeDoor | None:
    """Return what makes the HTTP door of a relay host; None: it is to have none."""
    if not http.is_open:
        return None
    from audiofork.doors.http.host_door import HostDoor  # its imports take 14 MB of memory

    return HostDoor


@main.command(short_help="Run a controller of a cluster.")
@config_option
def control(path: Path) -> None:
    """Run a controller of the cluster that [cluster] of the configuration names, until SIGTERM.

    It does what `audiofork run` does, but for the relay, which are relay hosts (`audiofork relay`).
    Of several controllers of an Asterisk one leads; the others stand by, and one of them goes on
    when that dies. A controller may serve several Asterisks, each for itself.
    """
    with exits_of(path):
        loaded = config_file.load(path)
        config_file.refuse_unknown_variables(loaded)
        need_cluster(loaded)
        _set_up_log(loaded.log)
        uvloop.run(_control(path, loaded))


async def _control(path: Path, loaded: config.Config) -> None:
    from audiofork.control import Control

    await Control(path, loaded).run()


async def _run(path: Path, loaded: config.Config) -> None:
    from audiofork.daemon import Daemon

    await Daemon(path, loaded).run()
