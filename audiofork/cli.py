"""The command line; no logic here."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import ssl
import sys
from pathlib import Path

import click
import uvloop

from audiofork import __version__, config, log
from audiofork.daemon import Daemon
from audiofork.errors import ConfigError, ReceiverError
from audiofork.process import lift_file_limit
from audiofork.receiver import Receiver, tls_context

EXIT_FAILED = 1
EXIT_CONFIG = 3

DEFAULT_CONFIG = Path("/etc/audiofork/audiofork.ini")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="audiofork")
def main() -> None:
    """Sends the audio of live Asterisk calls to WebSocket servers."""


@main.command()
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)
def run(path: Path) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    try:
        loaded = config.load(path)
        log.set_up(loaded.log)
        uvloop.run(_run(path, loaded))
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except OSError as exc:
        _fail(f"cannot listen on {loaded.audiosocket.listen}: {exc.strerror}", EXIT_FAILED)


async def _run(path: Path, loaded: config.Config) -> None:
    await Daemon(path, loaded).run()


def _address(context: click.Context, parameter: click.Parameter, value: str) -> config.Address:
    try:
        return config.address(value)
    except ValueError as exc:
        raise click.BadParameter(f"expected {exc}, got {value!r}") from exc


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
def receive(
    listen: config.Address,
    directory: Path,
    quiet: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Write each fork that comes in to a WAV file, and show how loud it is.

    A file is named by the time and by the path of the URL, or by the channel if the URL has one:
    ws://127.0.0.1:8080/?channel=${CHANNEL}. With channels=1 or channels=2 in the URL messages of
    any size are taken for mono or stereo; without, those of 640 bytes are stereo.
    """
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert")
    try:
        tls = tls_context(tls_cert, tls_key) if tls_cert else None
        uvloop.run(_receive(Receiver(directory, _say, levels=not quiet), listen, directory, tls))
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


def _say(line: str) -> None:
    """Print a line; when nobody reads any more, or cannot, the work goes on all the same."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        click.echo(line)
    except OSError:
        sys.stdout = open(os.devnull, "w")


def _fail(message: str, code: int) -> None:
    click.echo(f"audiofork: {message}", err=True)
    sys.exit(code)
