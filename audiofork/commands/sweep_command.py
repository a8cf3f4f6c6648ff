"""The command line of `sweep`."""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from audiofork import config_file
from audiofork.commands.daemon_options import config_option
from audiofork.commands.sweep import sweep as sweeping
from audiofork.commands.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_UNREACHABLE, fail, say
from audiofork.errors import AmiError, ConfigError, DaemonRuns
from audiofork.text import why


@click.command()
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
