"""The command line; no logic here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import uvloop

from audiofork import __version__, config, config_file, log
from audiofork.commands.buckets_command import buckets_command
from audiofork.commands.check_command import check
from audiofork.commands.cluster_command import cluster_command, drain_command
from audiofork.commands.daemon_options import (
    DEFAULT_CONFIG,
    DaemonPlace,
    config_option,
    of_any_asterisk,
)
from audiofork.commands.history_command import history_command
from audiofork.commands.list_command import list_command
from audiofork.commands.migrate_command import migrate_command
from audiofork.commands.receive_command import receive
from audiofork.commands.roles import exits_of, need_cluster, of_relay_host
from audiofork.commands.setup.command import setup
from audiofork.commands.sweep import sweep as sweeping
from audiofork.commands.terminal import (
    EXIT_CODES,
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    Amount,
    columns_of_stderr,
    fail,
    say,
    show,
    warn,
)
from audiofork.commands.waiting import Progress, interrupted, wait
from audiofork.daemon import Daemon
from audiofork.doors.control_answers import MAX_LINE_BYTES
from audiofork.doors.daemon_client import DaemonClient
from audiofork.errors import (
    AmiError,
    AmiUnavailable,
    AudioForkError,
    ConfigError,
    DaemonRuns,
    DaemonUnreachable,
)
from audiofork.text import why

if TYPE_CHECKING:
    from audiofork.relay.host import MakeDoor

# Longer than a fork, by default, tries to reach an absent server.
START_TIMEOUT_S = 30.0

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Commands(click.Group):
    """The commands; the help of each ends with the exit codes, which all commands share."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.epilog = cmd.epilog or EXIT_CODES
        super().add_command(cmd, name)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES
)
@click.version_option(__version__, prog_name="audiofork")
def main() -> None:
    """Sends the audio of live Asterisk calls to WebSocket servers.

    To begin: `audiofork setup` connects it to the Asterisk of this machine, `audiofork check` tests
    everything that it needs, `audiofork receive` is a server to send a first call to.
    """


main.add_command(setup)


@main.command()
@config_option
def run(path: Path) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    with exits_of(path):
        loaded = config_file.load(path)
        config_file.refuse_unknown_variables(loaded)
        log.set_up(loaded.log)
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

    log.set_up(config.LogConfig())
    try:
        detached.run(path)
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)


def _run_host(path: Path) -> None:
    """Run a relay host of a cluster."""
    with exits_of(path):
        from audiofork.relay import host

        loaded = of_relay_host(path)
        log.set_up(loaded.log)
        host.run(loaded, lambda: of_relay_host(path), _host_door_of(loaded.http))


def _host_door_of(http: config.HttpConfig) -> MakeDoor | None:
    """Return what makes the HTTP door of a relay host; None: it is to have none."""
    if http.listen is None and not http.socket:
        return None
    from audiofork.doors.http.host_door import HostDoor  # its imports take 14 MB of memory

    return HostDoor


@main.command(short_help="Run a controller of a cluster.")
@config_option
def control(path: Path) -> None:
    """Run a controller of the cluster that [cluster] of the configuration names, until SIGTERM.

    It does what `audiofork run` does, but for the relay, which are relay hosts (`audiofork relay`).
    Of several controllers of an Asterisk one leads; the others stand by, and one of them goes on
    when that dies.
    """
    with exits_of(path):
        loaded = config_file.load(path)
        config_file.refuse_unknown_variables(loaded)
        need_cluster(loaded)
        log.set_up(loaded.log)
        uvloop.run(_control(path, loaded))


async def _control(path: Path, loaded: config.Config) -> None:
    from audiofork.control import Control

    await Control(path, loaded).run()


async def _run(path: Path, loaded: config.Config) -> None:
    await Daemon(path, loaded).run()


main.add_command(check)


@main.command()
@config_option
def sweep(path: Path) -> None:
    """Hang up the legs that a dead daemon has left in Asterisk.

    A daemon does this itself at its start; use this for one that does not come back. Exit code 1:
    the daemon runs; 4: Asterisk cannot be reached.
    """
    try:
        loaded = config_file.load(path, secrets_of=["asterisk"])
        count = uvloop.run(sweeping(loaded))
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)
    except DaemonRuns as exc:
        fail(str(exc), EXIT_FAILED)
    except (OSError, TimeoutError, ValueError, AmiError) as exc:
        fail(f"Asterisk cannot be asked: {why(exc)}", EXIT_UNREACHABLE)
    say(f"{count} legs hung up")
    if not (loaded.audiosocket.advertise or loaded.audiosocket.listen).port:
        say("legs by ChanSpy cannot be recognized if the port changes: set [audiosocket] listen")


# --- The commands that ask the daemon ------------------------------------------------------------


def _or_line(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return a value of the command line; for a dash, the next line of standard input."""
    if value != "-":
        return value
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES).decode(errors="replace").strip()
    if not line:
        raise click.BadParameter("standard input has no line for it")
    return line


def _starts(command: _Command) -> _Command:
    """Add what commands take that start a fork."""
    for parameter in reversed(_START_PARAMETERS):
        command = parameter(command)
    return of_any_asterisk(command)


_START_PARAMETERS: tuple[Callable[[Any], Any], ...] = (
    click.argument("channel"),
    click.argument("url", callback=_or_line, is_eager=True),  # so its line is the first
    click.option(
        "--options",
        default="",
        callback=_or_line,
        metavar="OPTIONS",
        help="The option string, for example D(in); - reads it from standard input.",
    ),
    click.option(
        "--post-process",
        default="",
        metavar="COMMAND",
        help="A command to run when the fork has ended, if the configuration allows it.",
    ),
    click.option(
        "--params",
        default="",
        metavar="NAME=VALUE&...",
        help="Parameters for the server, percent-encoded; with option M or x.",
    ),
    click.option(
        "--timeout",
        type=Amount(),
        metavar="SECONDS",
        default=START_TIMEOUT_S,
        show_default=True,
        help="The longest time to wait; 0: no limit.",
    ),
    click.option("--no-wait", is_flag=True, help="Do not wait until audio flows."),
)


@main.command(short_help="Send the audio of a channel to a WebSocket server.")
@_starts
def start(channel: str, url: str, timeout: float, no_wait: bool, **more: Any) -> None:
    """Send the audio of CHANNEL (a name or a uniqueid) to URL; prints the id of the fork.

    Then it waits until audio flows, and says on standard error what it waits for. Exit code 0:
    audio flows; 1: the fork was refused, has ended, or has no audio yet (it keeps trying); 3: the
    configuration cannot be used; 4: the daemon or Asterisk cannot be reached; 130: Ctrl-C, which
    leaves the fork as it is.

    If URL is -, it is read from standard input, one line; if OPTIONS is -, the options are read
    from the next line. Arguments are visible in the list of processes, so pass a URL that contains
    a token, and options A and H, in this way.
    """
    _begin("StartAudioFork", channel, url, timeout, no_wait=no_wait, **more)


@main.command(short_help="Make a WebSocket server the other party of a call.")
@_starts
def connect(channel: str, url: str, timeout: float, no_wait: bool, **more: Any) -> None:
    """Make the server at URL the other party of CHANNEL (a name or a uniqueid); prints an id.

    The channel leaves its place in the dialplan as soon as the server is there, and whom it talked
    to. When the server is done, the call goes on where the channel variable AUDIOFORK_NEXT says
    (context,exten,priority), else it is hung up. If the server is not there, nothing happens to the
    call. All else is as with `start`, exit codes too.
    """
    _begin("ConnectAudioFork", channel, url, timeout, no_wait=no_wait, **more)


def _begin(
    command: str,
    channel: str,
    url: str,
    timeout: float,
    *,
    options: str,
    post_process: str,
    params: str,
    no_wait: bool,
    place: DaemonPlace,
) -> None:
    """Start a fork, and wait until its audio flows."""
    wishes = {"Command": command, "Options": options, "PostProcess": post_process, "Params": params}
    with _daemon(place) as daemon:
        if no_wait:
            say(daemon.start(channel, url, **wishes))
            return
        fork_id = ""
        try:
            fork_id, news = daemon.start_and_follow(channel, url, **wishes)
            say(fork_id)
            warn(wait(fork_id, news, timeout, Progress(show, columns_of_stderr())))
        except KeyboardInterrupt:
            fail(interrupted(fork_id), EXIT_INTERRUPTED)


@main.command(short_help="Stop a fork, or every fork of a channel.")
@click.argument("target")
@of_any_asterisk
def stop(target: str, place: DaemonPlace) -> None:
    """Stop the fork with the id TARGET, or every fork of the channel TARGET.

    A UUID is an id; anything else is a channel's name or uniqueid. Prints the ids.
    """
    with _daemon(place) as daemon:
        _say_each(daemon.stop(target))


@main.command(short_help="Replace a fork's audio with silence, or restore it.")
@click.argument("target")
@click.argument("state", type=click.Choice(["on", "off"], case_sensitive=False))
@click.option(
    "--direction",
    type=click.Choice(["read", "write", "both"], case_sensitive=False),
    default="both",
    show_default=True,
    help="read: what the party says; write: what it hears.",
)
@of_any_asterisk
def mute(target: str, state: str, direction: str, place: DaemonPlace) -> None:
    """Replace the audio of the fork with the id TARGET with silence, or restore it.

    With a channel's name or uniqueid as TARGET, every fork of the channel. Prints the ids.
    """
    with _daemon(place) as daemon:
        _say_each(daemon.mute(target, direction, state == "on"))


@contextmanager
def _daemon(place: DaemonPlace) -> Iterator[DaemonClient]:
    """Connect to the daemon; turn errors into a message and an exit code."""
    with _exit_codes(), place.connect() as daemon:
        yield daemon


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn errors into a message and an exit code."""
    try:
        yield
    except ConfigError as exc:
        fail(str(exc), EXIT_CONFIG)
    except (DaemonUnreachable, AmiUnavailable) as exc:
        fail(str(exc), EXIT_UNREACHABLE)
    except AudioForkError as exc:
        fail(str(exc), EXIT_FAILED)


def _say_each(lines: list[str]) -> None:
    for line in lines:
        say(line)


main.add_command(list_command(_exit_codes))
main.add_command(cluster_command(_exit_codes))
main.add_command(drain_command(_exit_codes))
main.add_command(buckets_command)
main.add_command(history_command(_exit_codes))
main.add_command(receive)
main.add_command(migrate_command(say, warn))
