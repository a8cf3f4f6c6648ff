"""Who is there: each relay host, and each controller, tells again and again how it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from audiofork.config import Address
from audiofork.config_cluster import is_name
from audiofork.config_values import address
from audiofork.errors import NoMessage
from audiofork.reading_json import parsed_json

SUBJECT = "audiofork.beat"
CONTROL_SUBJECT = "audiofork.beat-control"
BEATS_IN_DEAD_TIME = 4
# Of a controller; nothing depends on its beats but what people see.
CONTROL_BEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class Beat:
    """A relay host as it is now.

    Attributes:
        name: Its name in the cluster.
        run_id: Distinguishes its runs.
        listen: The address that Asterisk connects legs to.
        zone: Where it is; empty: unknown.
        capacity: The most forks that it takes.
        forks: How many it has.
        cpu: The part of a core that its process used lately.
        version: Of this package.
        is_draining: Whether it takes no more forks.
        is_last: Whether it ends now.
        clock: What its clock says, in seconds since 1970; 0: it does not tell. For `check` alone.
        frames_a_second: Of all its forks, as `ForkSpec.frames_a_second`; 0 with forks: it does not
            tell.
        moves_calls: Whether it is drained, and calls whose other party is a server are to go, too.
    """

    name: str
    run_id: str
    listen: str
    zone: str = ""
    capacity: int = 0
    forks: int = 0
    cpu: float = 0.0
    version: str = ""
    is_draining: bool = False
    is_last: bool = False
    clock: float = 0.0
    frames_a_second: int = 0
    moves_calls: bool = False

    @property
    def address(self) -> Address:
        """The address in its parts."""
        found: Address = address(self.listen)
        return found

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True)
class ControlBeat:
    """A controller as it is now.

    Attributes:
        name: Its name in the cluster.
        asterisk: What the cluster calls its Asterisk.
        run_id: Distinguishes its runs.
        leads: Whether it leads; else it stands by.
        since_s: For how many seconds it does.
        epoch: The number of its leadership; 0: it does not lead.
        server: The NATS server that it is connected to.
        version: Of this package.
        is_last: Whether it ends now.
    """

    name: str
    asterisk: str
    run_id: str
    leads: bool = False
    since_s: float = 0.0
    epoch: int = 0
    server: str = ""
    version: str = ""
    is_last: bool = False

    @property
    def subject(self) -> str:
        """What it is sent to."""
        return f"{CONTROL_SUBJECT}.{self.asterisk}.{self.name}"

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


_KINDS = {"str": str, "int": int, "float": float, "bool": bool}
MAX_CHARACTERS = 300
MAX_NUMBER = 2**53
_Beat = TypeVar("_Beat", Beat, ControlBeat)


def beat_of(subject: str, payload: bytes) -> Beat:
    """Return the beat in a message. Fields of a later version are passed over.

    Raises:
        NoMessage: It is none, or is not of the host whose subject it came by.
    """
    beat = _decode(Beat, payload)
    if subject != f"{SUBJECT}.{beat.name}":
        raise NoMessage(f"it says that it is of {beat.name}")
    try:
        _ = beat.address
    except ValueError as exc:
        raise NoMessage(f"listen: expected {exc}") from None
    return beat


def control_beat_of(subject: str, payload: bytes) -> ControlBeat:
    """Return the beat of a controller in a message; raises as `beat_of`."""
    beat = _decode(ControlBeat, payload)
    if not is_name(beat.asterisk):
        raise NoMessage("the name of its Asterisk cannot be one")
    if subject != beat.subject:
        raise NoMessage(f"it says that it is of {beat.name}")
    return beat


def _decode(kind: type[_Beat], payload: bytes) -> _Beat:
    try:
        values: Any = parsed_json(payload)
    except ValueError:
        raise NoMessage("no JSON") from None
    if not isinstance(values, dict):
        raise NoMessage("no beat")
    known = {one.name: _KINDS[str(one.type)] for one in fields(kind)}
    found = {name: value for name, value in values.items() if name in known}
    for name, value in found.items():
        if type(value) is int and known[name] is float:
            found[name] = value = float(min(value, MAX_NUMBER))
        if type(value) is not known[name] or not _is_usual(value):
            raise NoMessage(f"{name} has another type, or is too long or too great")
    try:
        beat = kind(**found)
    except TypeError:
        raise NoMessage("a field is missing") from None
    if not is_name(beat.name):  # it becomes a part of subjects
        raise NoMessage("its name cannot be one")
    return beat


def _is_usual(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS and value.isprintable()
    return isinstance(value, int | float) and 0 <= value <= MAX_NUMBER  # not a number is not


class Seen:
    """When each relay host was heard of last.

    A host is dead when nothing was heard of it for some time, although the broker has heard us
    meanwhile: where that is away, nothing is heard of anybody.

    Args:
        dead_after_s: How long that may be.
        heard_at: Returns when the broker has last heard us.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, dead_after_s: float, heard_at: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._dead_after_s = dead_after_s
        self._heard_at = heard_at
        self._clock = clock
        self._at: dict[str, float] = {}

    def note(self, name: str) -> None:
        """Note that a host is there."""
        self._at[name] = self._clock()

    def is_alive(self, name: str) -> bool:
        """Return whether a host was heard, and was not told dead since."""
        return name in self._at

    def forget(self, name: str) -> None:
        """Wait for no more of a host: it has ended in order."""
        self._at.pop(name, None)

    def forget_times(self) -> None:
        """Give all hosts their time anew: the broker was away."""
        now = self._clock()
        for name in self._at:
            self._at[name] = now

    def dead(self) -> list[str]:
        """Return the hosts that are dead, once."""
        now = min(self._clock(), self._heard_at())
        found = [name for name, at in self._at.items() if now - at > self._dead_after_s]
        for name in found:
            del self._at[name]
        return found
