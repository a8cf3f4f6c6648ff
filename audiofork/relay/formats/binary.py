"""What the formats have in common whose audio is binary messages."""

from __future__ import annotations

from collections.abc import Sequence

from audiofork.link.messages import Codec, ForkSpec, Metadata
from audiofork.relay.formats.base import Audio, Meaning, Message, MessageFormat, Text
from audiofork.relay.formats.codecs import BITS, decoder, encoder


class BinaryFormat(MessageFormat):
    """Sends frames in binary messages, and takes the server's binary messages for audio.

    Passes the server's text messages on.

    Args:
        codec: What the audio is encoded in, in both directions.
        sample_rate: In Hz, of the audio in both directions.
    """

    def __init__(self, codec: Codec = Codec.SLIN, sample_rate: int = 8000) -> None:
        self.is_verbatim = codec is Codec.SLIN
        self.codec = codec
        self.sample_rate = sample_rate
        self._encode = encoder(codec)
        self._decode = decoder(codec)

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:  # noqa: ARG002
        return (self._encode(b"".join(frames)),)

    def payload_bytes(self, frame_bytes: int) -> int:
        return frame_bytes * BITS[self.codec] // 16

    def meaning(self, message: Message) -> Meaning:
        if isinstance(message, str):
            return self.meaning_of_text(message)
        return Audio(self._decode(message), self.sample_rate)

    def meaning_of_text(self, text: str) -> Meaning:
        """Return what a text message of the server means; never raises."""
        return Text(text)


def told_of(spec: ForkSpec) -> dict[str, str]:
    """Return the fields of the call and the parameters in one; a parameter goes first."""
    metadata = spec.metadata or Metadata()
    return {**metadata.call, **metadata.params}
