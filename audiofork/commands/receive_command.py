"""The command line of `receive`."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from audiofork import config, config_values
from audiofork.commands import terminal
from audiofork.commands.panel import Panel
from audiofork.commands.receiver import Receiver, tls_context
from audiofork.commands.receiver_limits import GIB, Limits
from audiofork.commands.watching import is_terminal
from audiofork.errors import ReceiverError
from audiofork.system import lift_file_limit

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> config.Address:
    try:
        return config_values.address(value)
    except ValueError as exc:
        raise click.BadParameter(f"expected {exc}, got {value!r}") from exc


def _gib_option(name: str, default: int, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        name,
        type=terminal.Amount(),
        metavar="GIB",
        default=default / GIB,
        show_default=True,
        help=f"{text} 0: any.",
    )


@click.command(short_help="Write forks to WAV files: a server for first tests.")
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
    type=click.Path(readable=False, path_type=Path),
    default=Path("recordings"),
    show_default=True,
    help="Where the WAV files go.",
)
@click.option(
    "--quiet", is_flag=True, help="Show no levels, only the beginning and end of each fork."
)
@click.option(
    "--tls-cert",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    help="A PEM certificate: serve wss:// instead of ws://.",
)
@click.option(
    "--tls-key",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    help="The key, if it is not in the same file.",
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
    """Write each fork that connects to a WAV file, and show its level.

    Files are named by the time and by the path of the URL, or by the channel if the URL names one:
    ws://127.0.0.1:8080/?channel=${URIENCODE(${CHANNEL})}. With channels=1 or channels=2 in the URL,
    messages of any size are mono or stereo; without, messages of 640 bytes are stereo. Audio is at
    8000 Hz, or at the rate in the URL, such as rate=16000 (then 1280 bytes are stereo). When there
    is no room left, by --quota or --keep-free, forks are closed with 1008.
    """
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key needs --tls-cert")
    try:
        tls = tls_context(tls_cert, tls_key) if tls_cert else None
        limits = Limits(round(quota * GIB), round(keep_free * GIB))
        panel = None
        if not quiet and is_terminal(terminal.stdout(), os.environ.get("TERM", "")):
            panel = Panel(terminal.write)
        say = terminal.say if panel is None else panel.say
        receiver = Receiver(directory, say, levels=not quiet, limits=limits, panel=panel)
        uvloop.run(_receive(receiver, listen, directory, tls, say))
        if panel is not None:
            panel.close()
    except ReceiverError as exc:
        terminal.fail(str(exc), terminal.EXIT_FAILED)


async def _receive(
    receiver: Receiver,
    listen: config.Address,
    directory: Path,
    tls: ssl.SSLContext | None,
    say: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    lift_file_limit()
    try:
        address = await receiver.start(listen, tls)
        scheme = "wss" if tls else "ws"
        say(f"listening on {scheme}://{address}/, recording to {directory}; Ctrl-C ends")
        await stop.wait()
    finally:
        await receiver.close()
