"""Adds texts of a profile to any format."""

from __future__ import annotations

from collections.abc import Sequence

from audiofork.relay.formats.base import Event, Meaning, Message, MessageFormat


class WithTexts(MessageFormat):
    """A format, and a text after its opening and one before the close.

    Args:
        inner: The format.
        opening: Sent on each connection; empty: nothing.
        closing: Sent before the format's own last messages; empty: nothing.
    """

    def __init__(self, inner: MessageFormat, opening: str, closing: str) -> None:
        self._inner = inner
        self._opening = (opening,) if opening else ()
        self._closing = (closing,) if closing else ()
        self.is_verbatim = inner.is_verbatim

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        return (*self._inner.opening(number, dropped), *self._opening)

    def gap(self, number: int, frames: int) -> Sequence[Message]:
        return self._inner.gap(number, frames)

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        return self._inner.audio(frames, number)

    def event(self, event: Event, number: int) -> Sequence[Message]:
        return self._inner.event(event, number)

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:
        return (*self._closing, *self._inner.closing(reason, number, dropped))

    def meaning(self, message: Message) -> Meaning:
        return self._inner.meaning(message)

    def payload_bytes(self, frame_bytes: int) -> int:
        return self._inner.payload_bytes(frame_bytes)
