"""Asterisk's chan_websocket, with JSON control."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Codec, Direction, ForkSpec, Metadata
from audiofork.relay.formats.base import Dtmf, Message
from audiofork.relay.formats.binary import BinaryFormat
from audiofork.relay.formats.codecs import BITS


class ChanWebSocketFormat(BinaryFormat):
    """Asterisk's chan_websocket with JSON control: MEDIA_START, then binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec)
        metadata = spec.metadata or Metadata()
        rate = "" if spec.sample_rate == 8000 else str(spec.sample_rate // 1000)
        name = f"slin{rate}" if spec.codec is Codec.SLIN else spec.codec.value
        samples = (
            spec.sample_rate * PTIME_MS // 1000 * (2 if spec.direction is Direction.STEREO else 1)
        )
        self._start = {
            "event": "MEDIA_START",
            "connection_id": spec.fork_id,
            "channel": spec.channel,
            "channel_id": metadata.call.get("uniqueid", ""),
            "format": name,
            "optimal_frame_size": samples * BITS[self.codec] // 8,
            "ptime": PTIME_MS,
            "channel_variables": metadata.params,
        }

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps(self._start),)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        channel = {"channel_id": self._start["channel_id"]}
        return (json.dumps({"event": "DTMF_END", "digit": key.digit, **channel}),)
