"""The command line; no logic here."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import uvloop

from audiofork import __version__, config, config_file, config_values, log
from audiofork.commands import migrate as migration
from audiofork.commands.check import Check, taps_of
from audiofork.commands.findings import Finding, Mark
from audiofork.commands.receiver import Receiver, tls_context
from audiofork.commands.receiver_limits import GIB, Limits
from audiofork.commands.setup.command import setup
from audiofork.commands.sweep import sweep as sweeping
from audiofork.daemon import Daemon
from audiofork.doors import control_client as client
from audiofork.doors.control_socket import MAX_LINE_BYTES
from audiofork.errors import (
    AmiError,
    AmiUnavailable,
    AudioForkError,
    CannotListen,
    ConfigError,
    DaemonRuns,
    DaemonUnreachable,
    ReceiverError,
)
from audiofork.system import lift_file_limit
from audiofork.text import why

EXIT_FAILED = 1
EXIT_CONFIG = 3
EXIT_UNREACHABLE = 4

DEFAULT_CONFIG = Path("/etc/audiofork/audiofork.ini")
WATCH_INTERVAL_S = 1.0

_Command = TypeVar("_Command", bound=Callable[..., Any])

_config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)
_socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="The daemon's control socket, in place of the one that the configuration names.",
)


def _of_the_daemon(command: _Command) -> _Command:
    """Add the options that say which daemon is meant."""
    return _config_option(_socket_option(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="audiofork")
def main() -> None:
    """Sends the audio of live Asterisk calls to WebSocket servers."""


main.add_command(setup)


@main.command()
@_config_option
def run(path: Path) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    try:
        loaded = config_file.load(path)
        log.set_up(loaded.log)
        uvloop.run(_run(path, loaded))
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except CannotListen as exc:
        _fail(str(exc), EXIT_FAILED)


async def _run(path: Path, loaded: config.Config) -> None:
    await Daemon(path, loaded).run()


@main.command()
@click.option("--taps", is_flag=True, help="Only print the ways to get audio, the best first.")
@_config_option
def check(taps: bool, path: Path) -> None:
    """Try what the daemon will need, and say what to do about each fault.

    Asterisk opens a channel to here and spies on it. That takes two or three seconds, disturbs no
    call. Exit code 0: all is well; 1: there are faults; 3: the configuration cannot be used; 4:
    Asterisk cannot be reached.
    """
    try:
        loaded = config_file.load(path)
        if taps:
            _print_taps(loaded)
            return
        one = Check(loaded, lambda finding: _say(str(finding)))
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    _say(str(Finding(Mark.OK, f"configuration: {path}")))
    sys.exit(uvloop.run(one.run()))


def _print_taps(loaded: config.Config) -> None:
    try:
        _say_each(uvloop.run(taps_of(loaded)))
    except (OSError, TimeoutError, ValueError, AmiError) as exc:
        _fail(f"Asterisk cannot be asked for its version: {why(exc)}", EXIT_UNREACHABLE)


@main.command()
@_config_option
def sweep(path: Path) -> None:
    """Hang up the legs that a dead daemon has left in Asterisk.

    A daemon does that at its start; this is for one that does not come back. Exit code 1: the
    daemon runs; 4: Asterisk cannot be reached.
    """
    try:
        loaded = config_file.load(path)
        count = uvloop.run(sweeping(loaded))
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except DaemonRuns as exc:
        _fail(str(exc), EXIT_FAILED)
    except (OSError, TimeoutError, ValueError, AmiError) as exc:
        _fail(f"Asterisk cannot be asked: {why(exc)}", EXIT_UNREACHABLE)
    _say(f"{count} legs hung up")
    if not (loaded.audiosocket.advertise or loaded.audiosocket.listen).port:
        _say("legs by ChanSpy are not known by a port that changes: set [audiosocket] listen")


# --- The commands that ask the daemon ------------------------------------------------------------


def _url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Return the URL of a command line, or the line of standard input that it stands for."""
    if value != "-":
        return value
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES).decode(errors="replace").strip()
    if not line:
        raise click.BadParameter("there is none on standard input")
    return line


@main.command()
@click.argument("channel")
@click.argument("url", callback=_url)
@click.option("--options", default="", metavar="OPTIONS", help="The option string, D(in) say.")
@click.option(
    "--post-process",
    default="",
    metavar="COMMAND",
    help="What to run when the fork has ended, if the configuration allows it.",
)
@_of_the_daemon
def start(
    channel: str,
    url: str,
    options: str,
    post_process: str,
    path: Path,
    socket_path: Path | None,
) -> None:
    """Send the audio of CHANNEL (a name or a uniqueid) to URL; prints the id of the fork.

    With - for URL it is read from standard input, one line. Arguments show in the list of
    processes, so give a URL that holds a token in this way.
    """
    with _daemon(path, socket_path) as daemon:
        _say(daemon.start(channel, url, options, post_process))


@main.command()
@click.argument("target")
@_of_the_daemon
def stop(target: str, path: Path, socket_path: Path | None) -> None:
    """Stop the fork with the id TARGET, or every fork of the channel TARGET.

    What is a UUID is an id; everything else is a channel's name or uniqueid. Prints the ids.
    """
    with _daemon(path, socket_path) as daemon:
        _say_each(daemon.stop(target))


@main.command()
@click.argument("target")
@click.argument("state", type=click.Choice(["on", "off"]))
@click.option(
    "--direction",
    type=click.Choice(["read", "write", "both"]),
    default="both",
    show_default=True,
    help="read: what the party says; write: what it hears.",
)
@_of_the_daemon
def mute(target: str, state: str, direction: str, path: Path, socket_path: Path | None) -> None:
    """Put silence in place of the audio of the fork with the id TARGET, or take it away again.

    With a channel's name or uniqueid as TARGET: of every fork of the channel. Prints the ids.
    """
    with _daemon(path, socket_path) as daemon:
        _say_each(daemon.mute(target, direction, state == "on"))


@main.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="An array of JSON objects, URLs whole.")
@click.option("--watch", is_flag=True, help="Show it anew each second, until Ctrl-C.")
@_of_the_daemon
def list_forks(as_json: bool, watch: bool, path: Path, socket_path: Path | None) -> None:
    """Show the forks there are: frames of 20 ms, URLs without their query."""
    show = client.as_json if as_json else client.table
    with _daemon(path, socket_path) as daemon, contextlib.suppress(KeyboardInterrupt):
        while True:
            text = show(*daemon.listing())
            if watch:
                click.clear()
            _say(text)
            if not watch:
                break
            time.sleep(WATCH_INTERVAL_S)


@contextmanager
def _daemon(path: Path, socket_path: Path | None) -> Iterator[client.Client]:
    """Connect to the daemon; what goes wrong becomes a message and an exit code."""
    try:
        with client.Client(socket_path or client.socket_of(path)) as daemon:
            yield daemon
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except (DaemonUnreachable, AmiUnavailable) as exc:
        _fail(str(exc), EXIT_UNREACHABLE)
    except AudioForkError as exc:
        _fail(str(exc), EXIT_FAILED)


def _say_each(lines: list[str]) -> None:
    for line in lines:
        _say(line)


# --- The receiver --------------------------------------------------------------------------------


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> config.Address:
    try:
        return config_values.address(value)
    except ValueError as exc:
        raise click.BadParameter(f"expected {exc}, got {value!r}") from exc


def _gib_option(name: str, default: int, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        name,
        type=click.FloatRange(min=0),
        metavar="GIB",
        default=default / GIB,
        show_default=True,
        help=f"{text} 0: any.",
    )


@main.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8080",
    show_default=True,
    callback=_address,
    help="Where to listen; port 0: any.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("recordings"),
    show_default=True,
    help="Where the WAV files go.",
)
@click.option("--quiet", is_flag=True, help="Show no levels, only the begin and end of each fork.")
@click.option(
    "--tls-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A certificate in PEM: serve wss:// in place of ws://.",
)
@click.option(
    "--tls-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Its key, if that is not in the same file.",
)
@_gib_option("--quota", Limits.quota_bytes, "The most that may be in the directory, in GiB.")
@_gib_option("--keep-free", Limits.keep_free_bytes, "What is left free on the disk, in GiB.")
def receive(
    listen: config.Address,
    directory: Path,
    quiet: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    quota: float,
    keep_free: float,
) -> None:
    """Write each fork that comes in to a WAV file, and show how loud it is.

    A file is named by the time and by the path of the URL, or by the channel if the URL has one:
    ws://127.0.0.1:8080/?channel=${URIENCODE(${CHANNEL})}. With channels=1 or channels=2 in the URL
    messages of any size are taken for mono or stereo; without, those of 640 bytes are stereo. Audio
    is at 8000 Hz, or at what the URL says with rate=16000 (then 1280 bytes are stereo). Where there
    is no room, by --quota or --keep-free, forks are closed with 1008.
    """
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert")
    try:
        tls = tls_context(tls_cert, tls_key) if tls_cert else None
        limits = Limits(round(quota * GIB), round(keep_free * GIB))
        receiver = Receiver(directory, _say, levels=not quiet, limits=limits)
        uvloop.run(_receive(receiver, listen, directory, tls))
    except ReceiverError as exc:
        _fail(str(exc), EXIT_FAILED)


async def _receive(
    receiver: Receiver, listen: config.Address, directory: Path, tls: ssl.SSLContext | None
) -> None:
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    lift_file_limit()
    try:
        address = await receiver.start(listen, tls)
        scheme = "wss" if tls else "ws"
        _say(f"listening on {scheme}://{address}/, recording to {directory}; Ctrl-C ends")
        await stop.wait()
    finally:
        await receiver.close()


@main.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(dir_okay=False, path_type=Path),
)
@click.option("--write", is_flag=True, help="Rewrite the files; without it, only show a diff.")
def migrate(files: tuple[Path, ...], write: bool) -> None:
    """Rewrite dialplans of app_audiofork: extensions.conf, .ael, .lua.

    Prints the changes as a diff, and notes what it leaves to you.
    """
    sys.exit(migration.run(files, write=write, say=_say, warn=_warn))


def _say(line: str) -> None:
    """Print a line; when nobody reads any more, or cannot, the work goes on all the same."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        click.echo(line)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end)


def _warn(line: str) -> None:
    """Print a line on standard error; when that cannot be, the work goes on all the same."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"audiofork: {message}", err=True)
    sys.exit(code)
