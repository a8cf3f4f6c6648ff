"""The command line; no logic here."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import uvloop

from audiofork import __version__, config, log
from audiofork.daemon import Daemon
from audiofork.errors import ConfigError

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


def _fail(message: str, code: int) -> None:
    click.echo(f"audiofork: {message}", err=True)
    sys.exit(code)
