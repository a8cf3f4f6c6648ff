"""The format of app_audiofork: binary messages of slin only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from audiofork.relay.formats.base import Meaning, Message, MessageFormat, Text


class RawFormat(MessageFormat):
    """Sends frames unchanged. Passes the server's text messages on; ignores binary ones."""

    is_verbatim: ClassVar[bool] = True

    def audio(self, frames: Sequence[bytes], number: int) -> bytes:  # noqa: ARG002 (of the base)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def meaning(self, message: Message) -> Meaning:
        return Text(message) if isinstance(message, str) else None
