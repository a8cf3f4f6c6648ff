"""What a profile adds to the messages of a fork's format; a part of `ForkSpec`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a profile has a server told, and what the server answers, around the fork's format.

    Attributes:
        opening: A text that is sent at each opening; empty: none.
        opening_answer: Audio waits until the server has sent a text with this in it; empty: audio
            does not wait.
        closing: A text that is sent before the close; empty: none.
        closing_answer: The server has sent all once it has sent a text with this in it; empty: once
            it closes the connection.
        closing_wait_s: How long to wait for that at most, in seconds.
        full_messages: Whether messages of audio that are too short are filled up with silence.
    """

    opening: str = field(default="", repr=False)
    opening_answer: str = ""
    closing: str = field(default="", repr=False)
    closing_answer: str = ""
    closing_wait_s: float = 0.0
    full_messages: bool = False


PLAIN_DIALOGUE = Dialogue()
