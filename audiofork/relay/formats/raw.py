"""The format of app_audiofork: binary messages of slin; texts around them if they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from audiofork.relay.formats.base import Meaning, Message, MessageFormat, Text
from audiofork.relay.formats.description import Description


class RawFormat(MessageFormat):
    """Sends frames unchanged. Passes the server's text messages on; ignores binary ones.

    Args:
        description: Tells the server of the fork, in a text at each opening and one before the
            close; None: it is told nothing.
    """

    is_verbatim: ClassVar[bool] = True

    def __init__(self, description: Description | None = None) -> None:
        self._description = description

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        return (self._description.start(number, dropped),) if self._description else ()

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:
        return (self._description.stop(reason, number, dropped),) if self._description else ()

    def audio(self, frames: Sequence[bytes], number: int) -> bytes:  # noqa: ARG002 (of the base)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def meaning(self, message: Message) -> Meaning:
        return Text(message) if isinstance(message, str) else None
