"""The format of app_audiofork: binary messages of audio; texts around it if they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from audiofork.link.messages import Codec
from audiofork.relay.formats.base import Message
from audiofork.relay.formats.binary import BinaryFormat
from audiofork.relay.formats.description import Description


class RawFormat(BinaryFormat):
    """Sends audio alone, or a text at each opening and one before the close besides.

    Args:
        codec: What the audio is encoded in.
        description: What the texts say; None: there are none.
        sample_rate: In Hz.
    """

    def __init__(
        self,
        codec: Codec = Codec.SLIN,
        description: Description | None = None,
        sample_rate: int = 8000,
    ) -> None:
        super().__init__(codec, sample_rate)
        self._description = description

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        return (self._description.start(number, dropped),) if self._description else ()

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:
        return (self._description.stop(reason, number, dropped),) if self._description else ()
