"""What each format of a fork's WebSocket messages has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

# A WebSocket message: bytes are a binary one, str is a text.
Message = bytes | str


@dataclass(frozen=True, slots=True)
class Dtmf:
    """The channel's party has pressed a key.

    Attributes:
        digit: 0 to 9, *, #, A to D.
    """

    digit: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The server's audio has been played up to a place that the server has named."""

    name: str


# What happens in a call beside its audio, and is told to the server.
Event = Dtmf | Mark


@dataclass(frozen=True, slots=True)
class Audio:
    """The server sends audio for the call.

    Attributes:
        samples: slin: int16 little-endian, mono, at the fork's sample rate; any length.
    """

    samples: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """The server wants something done.

    Attributes:
        name: What: "mark" or "clear", say.
        value: What with; empty where the name says it all.
    """

    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """The server sends a text for whoever listens to the fork's events."""

    text: str


# What a message of the server means; None: nothing that concerns us.
Meaning = Audio | Command | Text | None


class MessageFormat(ABC):
    """Decides what goes over the WebSocket of one fork, and what a message of the server means.

    It does no I/O and keeps its own counters, of messages, say. Owned by the fork's sink; an
    instance serves all connections of one fork, one after the other, and no other fork.

    Frames are numbered from 0 on as the fork brings them. Those that are lost have numbers, too,
    so 20 ms times the number is the time of a frame since the fork began. A connection that
    breaks gives back what its server has not acknowledged: the same frames and events are then
    asked for again, after the opening of the next connection.

    Attributes:
        is_verbatim: A message of audio is binary and consists of its frames as they are. A frame
            that is a message of its own is then sent without a call of `audio()`.
    """

    is_verbatim: ClassVar[bool] = False

    def opening(self) -> Sequence[Message]:
        """Return what a server gets first, over each connection anew."""
        return ()

    @abstractmethod
    def audio(self, frames: Sequence[bytes], number: int) -> Message:
        """Return the message of one or several frames.

        Args:
            frames: 20 ms of slin each, all of the same size.
            number: That of the first of them.
        """

    def event(self, event: Event, number: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages of an event; none where the format has no word for it.

        Args:
            number: That of the frame before which the event came.
        """
        return ()

    def closing(self, reason: str) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return what a server gets last, before the close frame with the same reason."""
        return ()

    @abstractmethod
    def meaning(self, message: Message) -> Meaning:
        """Return what a message of the server means; never raises, whatever it holds."""

    def payload_bytes(self, frame_bytes: int) -> int:
        """Return about how long the message of one frame is; the latency budget follows from it."""
        return frame_bytes
