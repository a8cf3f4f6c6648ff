"""Asterisk's chan_websocket, with JSON control."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Codec, Direction, ForkSpec, Metadata, ServerCommand
from audiofork.relay.formats import from_server
from audiofork.relay.formats.base import BufferLevel, Command, Dtmf, Mark, Meaning, Message, Text
from audiofork.relay.formats.binary import BinaryFormat
from audiofork.relay.formats.codecs import BITS
from audiofork.relay.formats.from_server import json_object


class ChanWebSocketFormat(BinaryFormat):
    """Asterisk's chan_websocket with JSON control: MEDIA_START, then binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec, spec.sample_rate)
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
        return self._event("DTMF_END", digit=key.digit)

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        event, _, correlation_id = mark.name.partition(" ")
        return self._event(event, **({"correlation_id": correlation_id} if correlation_id else {}))

    def buffer_level(self, level: BufferLevel) -> Sequence[Message]:
        return self._event("MEDIA_XOFF" if level.is_high else "MEDIA_XON")

    def _event(self, event: str, **more: str) -> Sequence[Message]:
        return (json.dumps({"event": event, "channel_id": self._start["channel_id"], **more}),)

    def meaning_of_text(self, text: str) -> Meaning:
        """Return what a command means, in JSON or as plain text."""
        found = json_object(text)
        name, _, parameter = text.strip().partition(" ")
        if found:
            name, parameter = (from_server.text(found, key) for key in ("command", _PARAMETER))
        if name == "SET_MEDIA_DIRECTION":
            direction = from_server.text(found, "direction") or parameter
            return Command(ServerCommand.PAUSE if direction == "out" else ServerCommand.RESUME)
        if name in _MARKS:
            return Command(ServerCommand.MARK, f"{_MARKS[name]} {parameter}".rstrip())
        if name in _COMMANDS:
            return Command(_COMMANDS[name])
        return None if name in _WITHOUT_EFFECT else Text(text)


_PARAMETER = "correlation_id"
_COMMANDS = {"FLUSH_MEDIA": ServerCommand.CLEAR, "HANGUP": ServerCommand.HANGUP}
# What is told back once all audio before has been played.
_MARKS = {
    "MARK_MEDIA": "MEDIA_MARK_PROCESSED",
    "STOP_MEDIA_BUFFERING": "MEDIA_BUFFERING_COMPLETED",
    "REPORT_QUEUE_DRAINED": "QUEUE_DRAINED",
}
# All audio is buffered and framed here, and the call is answered already.
_WITHOUT_EFFECT = frozenset({"START_MEDIA_BUFFERING", "ANSWER"})
