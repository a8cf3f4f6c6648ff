"""Carries the messages of messages.py over a socket, to a relay process and back.

Between hosts the same lines go over a broker: see sessions.py.

A message is one line of JSON: the name of its class, and its fields. The type hints of the classes
say what fields may contain, so a new field needs no change here.

A detached relay process may have another version of this package than the daemon. So a field that
is not known is passed over, one that is missing has its default, and a message that is not
understood is logged and has no effect.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import enum
import functools
import json
import logging
import operator
import socket
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Generic, NamedTuple, TypeVar, cast

from audiofork.config import (
    Address,
    AudioSocketConfig,
    Config,
    LogConfig,
    RelayConfig,
    SecurityConfig,
    WebSocketConfig,
)
from audiofork.link.messages import (
    CheckLeg,
    Command,
    ForkReport,
    HeldFork,
    StatsTaken,
    StrangersRefused,
    WatchReport,
)
from audiofork.reading_json import parsed_json
from audiofork.text import printable

log = logging.getLogger(__name__)

# How many bytes may wait for a peer that does not read, and how long a message may be. The longest
# message, the statistics of a thousand forks, is far shorter.
MAX_WAITING_BYTES = 8 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Configure:
    """Down, first and at each reload: the part of the configuration that a relay needs.

    The rest is left out, above all the login to Asterisk.
    """

    audiosocket: AudioSocketConfig
    websocket: WebSocketConfig
    security: SecurityConfig
    log: LogConfig
    relay: RelayConfig = RelayConfig()

    @classmethod
    def of(cls, config: Config) -> Configure:
        """Return the message with this part of a configuration."""
        return cls(config.audiosocket, config.websocket, config.security, config.log, config.relay)

    @property
    def config(self) -> Config:
        """A configuration with this part, and the defaults for the rest."""
        return Config(
            audiosocket=self.audiosocket,
            websocket=self.websocket,
            security=self.security,
            log=self.log,
            relay=self.relay,
        )


@dataclass(frozen=True, slots=True)
class Ping:
    """Down: answer with `Pong`."""


@dataclass(frozen=True, slots=True)
class Close:
    """Down: end all forks in order, then exit."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Up: the answer to `Ping`: the event loop of the relay process runs."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Up: the relay process accepts legs at this address."""

    address: Address


@dataclass(frozen=True, slots=True)
class NotListening:
    """Up: the relay process cannot listen.

    Attributes:
        number: The errno of the failure; 0: there is none.
        text: The failure as text.
    """

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Held:
    """Up, first, from a detached relay process.

    Attributes:
        forks: Those that an earlier daemon has left to it.
        is_service: Whether somebody else than a daemon has started it, such as systemd.
    """

    forks: tuple[HeldFork, ...]
    is_service: bool = True


_SCALARS = frozenset({int, float, str, bool})
Down = Command | Configure | Ping | Close
Up = (
    ForkReport
    | WatchReport
    | StatsTaken
    | StrangersRefused
    | CheckLeg
    | Pong
    | Listening
    | NotListening
    | Held
)


# --- Messages as lines ---------------------------------------------------------------------------


def encode(message: object) -> bytes:
    """Return a message as a line of JSON, with its line feed."""
    entry = [type(message).__name__, _plain(message)]
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a value as types that JSON has."""
    kind: Any = type(value)
    if kind in _SCALARS:
        return value
    if (flat := _flat(kind)) is not None:
        return dict(zip(flat.names, flat.values(value), strict=True))
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, (IPv4Network, IPv6Network)) else value


class NotUnderstood(ValueError):
    """Raised for a message that this version does not know; the text shows none of its values."""


def decode_down(line: bytes) -> Down:
    """Return the message in a line that the control plane sent.

    Raises:
        NotUnderstood: The line holds a message of another version, or with unexpected values.
        ValueError: The line holds no message at all; the text shows nothing of it.
    """
    return cast(Down, decode_one_of(Down, line))


def decode_up(line: bytes) -> Up:
    """Return the message in a line that a relay process sent; raises as `decode_down` does."""
    return cast(Up, decode_one_of(Up, line))


@functools.cache
def _classes(messages: object) -> dict[str, type[Any]]:
    return {one.__name__: one for one in typing.get_args(messages)}


def decode_one_of(messages: object, line: bytes) -> Any:
    """Return the message in a line.

    Args:
        messages: The union of the classes that it may be of.
        line: The line.

    Raises: as `decode_down` does.
    """
    known = _classes(messages)
    try:
        entry = parsed_json(line)
    except ValueError:
        raise ValueError("no JSON") from None  # the cause quotes the line
    match entry:
        case [str(name), dict(fields)] if name in known:
            try:
                return _dataclass_of(fields, known[name])
            except ValueError as exc:
                raise NotUnderstood(str(exc)) from None
        case [str(name), dict()]:
            raise NotUnderstood(f"{printable(name[:50], '?')} is not known here")
    raise ValueError("no message")


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return a value of JSON as the type that a type hint names.

    Args:
        value: The value.
        hint: The type hint.
        where: The name of the field, for the error.

    Raises:
        ValueError: The value does not fit the hint.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _typed_by_one_of(value, arguments, where)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, arguments[1], where) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(item, arguments[0], where) for item in value)
    if origin is None and isinstance(value, dict) and dataclasses.is_dataclass(hint):
        return _dataclass_of(value, hint)
    if origin is None and isinstance(value, str):
        return _typed_text(value, hint, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} has another type")
    return value


def _typed_by_one_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    for hint in hints:
        if value is None and hint is types.NoneType:
            return None
        try:
            return _typed(value, hint, where)
        except ValueError:
            continue
    raise ValueError(f"{where} has another type")


def _typed_text(value: str, hint: type[Any], where: str) -> Any:
    if hint is str:
        return value
    if hint is bytes:
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise ValueError(f"{where} has a value that is not known") from None
    if not issubclass(hint, (enum.Enum, IPv4Network, IPv6Network)):
        raise ValueError(f"{where} has another type")
    try:
        return hint(value)
    except ValueError:
        raise ValueError(f"{where} has a value that is not known") from None


def _dataclass_of(fields: dict[str, Any], hint: Any) -> Any:
    flat = _flat(hint)
    if flat is not None and flat.fits(fields):
        return hint(**fields)
    hints = _hints(hint)
    name = hint.__name__
    if missing := _needed(hint) - fields.keys():
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    known = [key for key in hints if key in fields]
    return hint(**{key: _typed(fields[key], hints[key], f"{name}.{key}") for key in known})


class _Flat(NamedTuple):
    """A class whose fields are all numbers or texts: these take a short cut.

    The statistics of a thousand forks are such objects, and audio waits meanwhile.
    """

    names: list[str]
    types: list[type]
    values: Callable[[Any], tuple[Any, ...]]

    def fits(self, fields: dict[str, Any]) -> bool:
        """Return whether these are its fields, in their order, each of its very type."""
        return list(fields) == self.names and list(map(type, fields.values())) == self.types


@functools.cache
def _flat(of: type[Any]) -> _Flat | None:
    """Return how a class takes the short cut; None: it may not."""
    if not dataclasses.is_dataclass(of):
        return None
    hints = _hints(of)
    if len(hints) < 2 or not _SCALARS.issuperset(hints.values()):
        return None
    return _Flat(list(hints), list(hints.values()), operator.attrgetter(*hints))


@functools.cache
def _needed(of: type[Any]) -> frozenset[str]:
    """Return the names of the fields that have no default."""
    missing = dataclasses.MISSING
    return frozenset(
        one.name
        for one in dataclasses.fields(of)
        if one.default is missing and one.default_factory is missing
    )


@functools.cache
def _hints(of: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(of)


# --- The socket ----------------------------------------------------------------------------------

_Heard = TypeVar("_Heard")


class Link(asyncio.Protocol, Generic[_Heard]):
    """One end of the link between the daemon and a relay process.

    Owned by the side that sends over it. The link is closed if the peer sends what is no message,
    or does not read. A message that is not understood, and an exception in the handler of one, are
    logged.

    Args:
        decode: Makes a message of a line: `decode_down` or `decode_up`.
        on_message: Called with each message.
        on_closed: Called once, after the last message.
    """

    def __init__(
        self,
        decode: Callable[[bytes], _Heard],
        on_message: Callable[[_Heard], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._decode = decode
        self._on_message = on_message
        self._on_closed = on_closed
        self._unfinished = b""

    async def open(self, end: socket.socket) -> None:
        """Start to use a connected socket, which the link closes from now on.

        Messages may be handled before this returns.
        """
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, message: Down | Up) -> None:
        """Send a message, unless the link is closed; never waits."""
        if self._transport.is_closing():
            return
        self._transport.write(encode(message))
        if self._transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            self._give_up("the peer does not read")

    def close(self) -> None:
        """Close the link after what was written has been sent."""
        self._transport.close()

    def data_received(self, chunk: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        for line in lines:
            if not self._transport.is_closing():
                self._on_line(line)
        if len(self._unfinished) > MAX_LINE_BYTES:
            self._give_up("a message without an end")

    def _on_line(self, line: bytes) -> None:
        try:
            message = self._decode(line)
        except NotUnderstood as exc:
            log.error("a message between the daemon and a relay process has no effect: %s", exc)
            return
        except ValueError as exc:
            self._give_up(str(exc))
            return
        try:
            self._on_message(message)
        except Exception:
            log.exception("%s could not be handled", type(message).__name__)

    def _give_up(self, why: str) -> None:
        log.error("closing the link between the daemon and a relay process: %s", why)
        self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_closed()
