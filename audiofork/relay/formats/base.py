"""The interface of a format of WebSocket messages, and what messages can mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from audiofork.link.messages import ServerCommand

# A WebSocket message: bytes are a binary one, str is a text.
Message = bytes | str


@dataclass(frozen=True, slots=True)
class Dtmf:
    """The channel's party pressed a key.

    Attributes:
        digit: 0 to 9, *, #, A to D.
        duration_ms: How long it was pressed, in milliseconds.
    """

    digit: str
    duration_ms: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """The server's audio was played up to a mark that the server has set."""

    name: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """What waited to be played was dropped, as the server has asked.

    Attributes:
        lost_ms: How much of the server's latest audio was not played: what was dropped now, and
            what did not fit in since nothing waited last. In milliseconds.
    """

    lost_ms: int = 0


@dataclass(frozen=True, slots=True)
class BufferLevel:
    """So much of the server's audio waits to be played that more would soon be dropped.

    Attributes:
        is_high: Whether the server should wait; False: it need not any more.
    """

    is_high: bool


@dataclass(frozen=True, slots=True)
class Mute:
    """From here on these sides of the audio are silence, or are not any more.

    Attributes:
        is_in: Whether what the channel's own party says is muted.
        is_out: Whether what that party hears is muted.
    """

    is_in: bool
    is_out: bool


# What happens in a call, apart from audio, and is reported to the server.
Event = Dtmf | Mark | Mute | Cleared | BufferLevel


@dataclass(slots=True)  # not frozen: one is made for each message, in a third of the time
class Audio:
    """The server sends audio for the call.

    Attributes:
        samples: slin: int16 little-endian, mono; any number of bytes, also an odd one.
        sample_rate: In Hz.
    """

    samples: bytes
    sample_rate: int


@dataclass(frozen=True, slots=True)
class Command:
    """The server wants something done.

    Attributes:
        command: What it wants; not AUDIO.
        value: The name of a mark, keys, a place to transfer to; empty if it has none.
        after_audio: Whether to wait until the audio that came before it was played. A CLEAR drops
            it with that audio. For HANGUP, DTMF and TRANSFER.
    """

    command: ServerCommand
    value: str = ""
    after_audio: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """The server sends a text for the readers of the fork's events."""

    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The format itself answers the server.

    Attributes:
        messages: Sent at once, unless the connection is closing or full; never on another one.
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Several:
    """The message means several things, in this order."""

    meanings: tuple[Audio | Command | Text | Reply, ...]


# What a message of the server means; None: nothing comes of it, and it is counted.
Meaning = Audio | Command | Text | Reply | Several | None


class MessageFormat(ABC):
    """Encodes the messages of one fork, and decodes the messages of its server.

    It does no I/O and keeps its own counters, for example of messages. Owned by the fork's sink; an
    instance serves all connections of one fork, one after the other, and no other fork.

    Frames are numbered from 0 in the order in which the fork brings them. Lost frames have numbers
    too, so 20 ms times the number is the time of a frame since the fork began. When a connection
    breaks, the frames and events that its server has not acknowledged are encoded again, after the
    opening of the next connection.

    Attributes:
        is_verbatim: Whether a message of audio is binary and is just its frames. A message of one
            frame is then sent without a call of `audio()`.
        must_answer: Whether audio waits until the server has answered the opening.
        is_answered: Whether the server has answered the opening of this connection.
        refusal: Why the server does not take the opening of this connection, and would not take it
            another time; empty: it may.
        said: The server's latest text on this connection that was no answer to the opening, while
            audio waits for one; empty: there was none.
        closing_wait_s: How long the server is listened to after `closing()`, in seconds.
        has_finished: Whether the server has sent all on this connection.
    """

    is_verbatim: bool = False
    must_answer: bool = False
    is_answered: bool = False
    refusal: str = ""
    said: str = ""
    closing_wait_s: float = 0.0
    has_finished: bool = False

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the first messages on each connection.

        Args:
            number: The number of the first frame that follows.
            dropped: How many of the frames before it the server will never get.
        """
        return ()

    def gap(self, number: int, frames: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that tell of lost frames; none if the format has none for it.

        Those that were lost before an opening are told there.

        Args:
            number: The number of the first frame after the gap.
            frames: How many before it were lost.
        """
        return ()

    @abstractmethod
    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        """Return the messages of one or several frames.

        Args:
            frames: 20 ms of slin each, all of the same size.
            number: The number of the first of them.
        """

    def event(self, event: Event, number: int) -> Sequence[Message]:
        """Return the messages of an event: what the method of its kind returns.

        Args:
            event: The event.
            number: The number of the frame that follows the event.
        """
        match event:
            case Dtmf():
                return self.dtmf(event, number)
            case Mark():
                return self.mark(event, number)
            case Mute():
                return self.mute(event, number)
            case Cleared():
                return self.cleared(event)
            case BufferLevel():
                return self.buffer_level(event)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that tell of a pressed key; none if the format has none for it."""
        return ()

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that tell that a mark was reached; none if it has none for it."""
        return ()

    def mute(self, mute: Mute, number: int) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that tell which sides are muted now; none if it has none for it."""
        return ()

    def cleared(self, cleared: Cleared) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that tell of a clear that was done; none if it has none for it."""
        return ()

    def buffer_level(self, level: BufferLevel) -> Sequence[Message]:  # noqa: ARG002 (for others)
        """Return the messages that slow a server down, or let it go on; none if it has none."""
        return ()

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002
        """Return the last messages, before the close frame with the same reason.

        Args:
            reason: Why the fork ended.
            number: How many frames there were in all; `dropped` as in `opening`.
            dropped: See `number`.
        """
        return ()

    @abstractmethod
    def meaning(self, message: Message) -> Meaning:
        """Return what a message of the server means; never raises."""

    def payload_bytes(self, frame_bytes: int) -> int:
        """Return the approximate bytes of a message of one frame, for the latency budget."""
        return frame_bytes
