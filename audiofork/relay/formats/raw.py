"""The format of app_audiofork: binary messages of slin, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from audiofork.relay.formats.base import Meaning, Message, MessageFormat, Text


class RawFormat(MessageFormat):
    """Frames as they are. A text of the server is a text; its binary messages mean nothing."""

    is_verbatim: ClassVar[bool] = True

    def audio(self, frames: Sequence[bytes], number: int) -> bytes:  # noqa: ARG002 (of the base)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def meaning(self, message: Message) -> Meaning:
        return Text(message) if isinstance(message, str) else None
