"""What the formats have in common whose audio is binary messages."""

from __future__ import annotations

from collections.abc import Sequence

from audiofork.link.messages import Codec, ForkSpec, Metadata
from audiofork.relay.formats.base import Meaning, Message, MessageFormat, Text
from audiofork.relay.formats.codecs import BITS, encoder


class BinaryFormat(MessageFormat):
    """Sends frames in binary messages. Passes the server's text messages on; ignores binary ones.

    Args:
        codec: What the audio is encoded in.
    """

    def __init__(self, codec: Codec = Codec.SLIN) -> None:
        self.is_verbatim = codec is Codec.SLIN
        self.codec = codec
        self._encode = encoder(codec)

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:  # noqa: ARG002
        return (self._encode(b"".join(frames)),)

    def payload_bytes(self, frame_bytes: int) -> int:
        return frame_bytes * BITS[self.codec] // 16

    def meaning(self, message: Message) -> Meaning:
        return Text(message) if isinstance(message, str) else None


def told_of(spec: ForkSpec) -> dict[str, str]:
    """Return the fields of the call and the parameters in one; a parameter goes first."""
    metadata = spec.metadata or Metadata()
    return {**metadata.call, **metadata.params}
