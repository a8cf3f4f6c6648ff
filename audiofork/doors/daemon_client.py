"""What the command line asks the daemon for, whichever way it is reached.

`control_client.py` asks over the control socket, `http_client.py` over HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from audiofork.errors import RequestRefused
from audiofork.text import printable

# The daemon waits at most 5 s for an answer from Asterisk, and a start needs two answers.
ANSWER_TIMEOUT_S = 15.0
# Stands for each Asterisk of a cluster, in place of a name.
EVERY_ASTERISK = "*"


class Listing(NamedTuple):
    """All forks.

    Attributes:
        forks: The forks, each with the fields of ForkView.
        legs_left: How many legs of ended forks Asterisk still has.
        missing: Of several in a cluster, those whose forks are not there, with the reason.
    """

    forks: list[dict[str, Any]]
    legs_left: int = 0
    missing: Mapping[str, str] = {}


class Forgetting(NamedTuple):
    """What all histories that were asked have forgotten of a caller.

    Attributes:
        removed: How many entries were removed.
        blanked: In how many others the number was blanked.
        controllers: In a cluster, both of each controller, by ASTERISK/NAME.
    """

    removed: int
    blanked: int
    controllers: Mapping[str, tuple[int, int]] = {}


class DaemonClient(Protocol):
    """A connection to the daemon; a context manager.

    Every method raises DaemonUnreachable if the daemon is not there, goes away, or may not be
    asked; RequestRefused with the daemon's words; AmiUnavailable if the daemon does not reach
    Asterisk; DaemonBusy, and DaemonFault.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def start(self, channel: str, url: str, **wishes: str) -> str:
        """Start a fork on a channel, by name or uniqueid; return its id.

        Args:
            channel: The channel.
            url: Where its audio goes.
            wishes: Further fields of the request: Options, PostProcess, Params; another Command.
        """

    def start_and_follow(
        self, channel: str, url: str, **wishes: str
    ) -> tuple[str, Iterator[dict[str, Any]]]:
        """Start a fork, as `start`; return its id, and an iterator over the progress of its start.

        The iterator yields the fields of StartNews at least once a second; the last ones say that
        the fork streams or has ended. It yields nothing if the daemon does not report progress.
        """

    def stop(self, target: str) -> list[str]:
        """Stop the fork with this id, or every fork of a channel; return their ids."""

    def mute(self, target: str, direction: str, on: bool) -> list[str]:
        """Mute or unmute a fork, or every fork of a channel; return their ids.

        Args:
            target: As for `stop`.
            direction: read, write or both.
            on: Whether to mute.
        """

    def listing(self) -> Listing:
        """Return all forks."""

    missing: dict[str, str]

    def history(self, fields: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
        """Return entries of the history, and the cursor of the next page.

        Args:
            fields: What to search for; see history_answers.py.

        Raises:
            HistoryUnavailable: The daemon cannot ask its history.
        """

    def causes(self, since: float) -> list[dict[str, Any]]:
        """Return the causes of failures since a time, in seconds since 1970; see `history`."""

    def forget(self, number: str) -> Forgetting:
        """Remove a caller from the history, in a cluster from those of all; see `history`."""


_WHERE_THEY_ARE: Mapping[str, str] = {
    "No such channel": 'asterisk -rx "core show channels concise" lists the full names',
    "No such fork": "audiofork list shows all forks",
}


@contextmanager
def named(target: str) -> Iterator[None]:
    """Add the missing fork or channel to a refusal, and where to look for the right one.

    The daemon's own texts are those of app_audiofork, which name nothing.
    """
    try:
        yield
    except RequestRefused as exc:
        if (text := str(exc)) not in _WHERE_THEY_ARE:
            raise
        told = f"{text}: {printable(target, '?')}; {_WHERE_THEY_ARE[text]}"
        raise RequestRefused(told) from exc


def fork_id_of(target: str) -> str:
    """Return the id of a fork that a user has named; empty: the text is no UUID, so no id."""
    try:
        return str(uuid.UUID(target))
    except ValueError:
        return ""


def is_channel_name(channel: str) -> bool:
    """Return whether a text is the name of a channel: every name has a slash, a uniqueid none."""
    return "/" in channel
