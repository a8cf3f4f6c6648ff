"""The command lines of `start`, `connect`, `stop` and `mute`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from audiofork.commands.asking import daemon_at
from audiofork.commands.daemon_options import DaemonPlace, of_any_asterisk
from audiofork.commands.terminal import (
    EXIT_INTERRUPTED,
    Amount,
    columns_of_stderr,
    fail,
    say,
    show,
    warn,
)
from audiofork.commands.waiting import Progress, interrupted, wait
from audiofork.doors.control_protocol import MAX_LINE_BYTES

# Longer than a fork, by default, tries to reach an absent server.
START_TIMEOUT_S = 30.0

_Command = TypeVar("_Command", bound=Callable[..., Any])


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


@click.command(short_help="Send the audio of a channel to a WebSocket server.")
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


@click.command(short_help="Make a WebSocket server the other party of a call.")
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
    with daemon_at(place) as daemon:
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


@click.command(short_help="Stop a fork, or every fork of a channel.")
@click.argument("target")
@of_any_asterisk
def stop(target: str, place: DaemonPlace) -> None:
    """Stop the fork with the id TARGET, or every fork of the channel TARGET.

    A UUID is an id; anything else is a channel's name or uniqueid. Prints the ids.
    """
    with daemon_at(place) as daemon:
        _say_each(daemon.stop(target))


@click.command(short_help="Replace a fork's audio with silence, or restore it.")
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
    with daemon_at(place) as daemon:
        _say_each(daemon.mute(target, direction, state == "on"))


def _say_each(lines: list[str]) -> None:
    for line in lines:
        say(line)
