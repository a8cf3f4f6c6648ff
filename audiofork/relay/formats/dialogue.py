"""Adds to any format what a profile has a server told, and what it waits for the server to say."""

from __future__ import annotations

from collections.abc import Sequence

from audiofork.audiosocket import PTIME_MS
from audiofork.link.dialogue import Dialogue
from audiofork.relay.formats.base import Event, Meaning, Message, MessageFormat

# In the closing text: how many messages of audio the connection has carried.
MESSAGES = "{messages}"


class WithDialogue(MessageFormat):
    """A format, with a text after its opening, one before the close, and what answers them.

    Args:
        inner: The format.
        dialogue: What is said; the closing text goes before the format's own last messages.
        frame_ms: Audio in a full message, in milliseconds.
    """

    def __init__(self, inner: MessageFormat, dialogue: Dialogue, frame_ms: int) -> None:
        self._inner = inner
        self._dialogue = dialogue
        self._frames = frame_ms // PTIME_MS if dialogue.full_messages else 0
        self._messages = 0
        # Verbatim messages do not come by here, so they could not be counted.
        self.is_verbatim = inner.is_verbatim and MESSAGES not in dialogue.closing
        self.must_answer = bool(dialogue.opening_answer)
        self.is_answered = False
        self.closing_wait_s = dialogue.closing_wait_s if dialogue.closing else 0.0
        self.has_finished = False

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        self._messages = 0
        self.is_answered = self.has_finished = False
        self.said = ""
        own = self._dialogue.opening
        return (*self._inner.opening(number, dropped), *([own] if own else []))

    def gap(self, number: int, frames: int) -> Sequence[Message]:
        return self._inner.gap(number, frames)

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        self._messages += 1
        silence = [bytes(len(frames[0]))] * (self._frames - len(frames))
        return self._inner.audio((*frames, *silence), number)

    def event(self, event: Event, number: int) -> Sequence[Message]:
        return self._inner.event(event, number)

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:
        own = self._dialogue.closing.replace(MESSAGES, str(self._messages))
        return (*([own] if own else []), *self._inner.closing(reason, number, dropped))

    def meaning(self, message: Message) -> Meaning:
        if isinstance(message, str):
            self.is_answered |= _is_in(self._dialogue.opening_answer, message)
            self.said = message if self.must_answer and not self.is_answered else ""
            self.has_finished |= _is_in(self._dialogue.closing_answer, message)
        return self._inner.meaning(message)

    def payload_bytes(self, frame_bytes: int) -> int:
        return self._inner.payload_bytes(frame_bytes)


def _is_in(answer: str, message: str) -> bool:
    return bool(answer) and answer in message
