"""Sessions between a controller and a relay host over a broker, which may lose messages.

A controller opens a session with each relay host. Messages are numbered in each direction; where
one is missing the session is over, and the next one begins with what the relay host has (`Held`),
like that of a relay process with its next daemon. So nothing is sent twice, and nothing is taken
for sent that was not.

Each message carries the epoch of the controller's lease. A relay host obeys none with a lower epoch
than it has seen: its sender has led, and does not know yet that another leads.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import cast

from audiofork.errors import NoMessage
from audiofork.link.messages import (
    CheckLeg,
    Command,
    ForkReport,
    StatsTaken,
    StrangersRefused,
    WatchReport,
)
from audiofork.link.stream import Held, Ping, Pong, decode_one_of, encode
from audiofork.reading_json import parsed_json

DOWN = "audiofork.relay"
UP = "audiofork.control"
MAX_EPOCH = 2**63


@dataclass(frozen=True, slots=True)
class Hello:
    """Down, first in each session; the answer is `Held`.

    Attributes:
        version: Of this package.
    """

    version: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Down: take no more forks, so that those that are there move; or take some again.

    Attributes:
        is_on: Whether to.
    """

    is_on: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """Up: a session is over: a message is missing, or the relay host does not know it."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Up: another controller leads, or did, and this one is not obeyed.

    Attributes:
        epoch: The epoch of that other; 0: a relay host of an earlier version does not tell.
    """

    epoch: int = 0


Down = Command | Ping | Hello | Drain
Up = (
    ForkReport
    | WatchReport
    | StatsTaken
    | StrangersRefused
    | CheckLeg
    | Pong
    | Held
    | Gone
    | Superseded
)


def decode_down(line: bytes) -> Down:
    """Return the message in a line that a controller sent; raises as `stream.decode_down` does."""
    return cast(Down, decode_one_of(Down, line))


def decode_up(line: bytes) -> Up:
    """Return the message in a line of a relay host; raises as `stream.decode_down` does."""
    return cast(Up, decode_one_of(Up, line))


def down_subject(host: str, asterisk: str) -> str:
    """Return what commands for a relay host are sent to, by the controller of an Asterisk."""
    return f"{DOWN}.{host}.{asterisk}"


def up_subject(asterisk: str, host: str) -> str:
    """Return what a relay host sends its reports to, for the controller of an Asterisk."""
    return f"{UP}.{asterisk}.{host}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a message in a session carries besides.

    Attributes:
        epoch: The number of the leadership; of a report, that of its session.
        session: The session.
        number: Of the message in its direction, from 0.
    """

    epoch: int
    session: str
    number: int


def pack(stamp: Stamp, message: Down | Up) -> bytes:
    """Return a message with its stamp, as two lines of JSON."""
    return json.dumps([stamp.epoch, stamp.session, stamp.number]).encode() + b"\n" + encode(message)


def split(payload: bytes) -> tuple[Stamp, bytes]:
    """Return the stamp of a message, and its line.

    Raises:
        NoMessage: It is no message of a session.
    """
    first, _, line = payload.partition(b"\n")
    try:
        values = parsed_json(first)
    except ValueError:
        raise NoMessage("no JSON") from None
    match values:
        case [int(epoch), str(session), int(number)] if (
            0 <= epoch < MAX_EPOCH and len(session) <= 64 and bool not in map(type, values)
        ):
            return Stamp(epoch, session, number), line.rstrip(b"\n")
    raise NoMessage("no stamp")


_RUN_CHARACTERS = 31  # of an id of a run; enough to tell them apart


def new_session(run_id: str) -> str:
    """Return another session with one run of a relay host."""
    return f"{run_id[:_RUN_CHARACTERS]}-{uuid.uuid4().hex}"


def is_with(session: str, run_id: str) -> bool:
    """Return whether a session may be with a run, as far as its name says: earlier ones do not."""
    run, _, _ = session.rpartition("-")
    return not run or run == run_id[:_RUN_CHARACTERS]


class Numbers:
    """Counts the messages of a session in both directions.

    Attributes:
        session: The session; empty: there is none.
    """

    def __init__(self) -> None:
        self.session = ""
        self._sent = 0
        self._heard = 0

    def begin(self, session: str) -> None:
        """Begin another session."""
        self.session = session
        self._sent = self._heard = 0

    def end(self) -> None:
        """End the session."""
        self.session = ""

    def stamp(self, epoch: int) -> Stamp:
        """Return the stamp for the next message to send."""
        self._sent += 1
        return Stamp(epoch, self.session, self._sent - 1)

    def is_next(self, stamp: Stamp) -> bool:
        """Return whether a message that came is the next one of the session; count it."""
        if stamp.session != self.session or stamp.number != self._heard:
            return False
        self._heard += 1
        return True
