"""Twilio's Media Streams: JSON texts, audio in base64 of mu-law at 8000 Hz."""

from __future__ import annotations

import audioop
import json
from audioop import lin2ulaw, ulaw2lin
from binascii import b2a_base64
from collections.abc import Sequence
from typing import Any

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Direction, ForkSpec, Metadata, ServerCommand
from audiofork.relay.formats import from_server
from audiofork.relay.formats.base import (
    Audio,
    Command,
    Dtmf,
    Mark,
    Meaning,
    Message,
    MessageFormat,
    Text,
)
from audiofork.relay.formats.from_server import json_object, member
from audiofork.twilio_sids import sids_of

SAMPLE_RATE = 8000
_TRACKS = {
    Direction.IN: ("inbound",),
    Direction.OUT: ("outbound",),
    Direction.BOTH: ("inbound",),  # the two mixed; Twilio has no name for that
    Direction.STEREO: ("inbound", "outbound"),
}


class TwilioFormat(MessageFormat):
    """Messages as Twilio's `<Start><Stream>` and `<Connect><Stream>` send them.

    On each connection `connected` and `start` come first, and sequence numbers and chunks begin
    anew; time stamps keep to the clock of the fork.

    Args:
        spec: The fork.
    """

    def __init__(self, spec: ForkSpec) -> None:
        metadata = spec.metadata or Metadata()
        self._metadata = metadata
        self._tracks = _TRACKS[spec.direction]
        self._sids = sids_of(spec.fork_id, metadata.call)
        self._sequence = 0
        self._chunk = 0
        # A template: json.dumps for each frame would take three times as long.
        self._media = tuple(
            '{"event":"media","sequenceNumber":"%d","media":{"track":"'  # noqa: UP031
            + track
            + '","chunk":"%d","timestamp":"%d","payload":"%s"},"streamSid":"'
            + f'{self._sids.stream}"}}'
            for track in self._tracks
        )

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        self._sequence = self._chunk = 0
        start = {
            "accountSid": self._sids.account,
            "streamSid": self._sids.stream,
            "callSid": self._sids.call,
            "tracks": list(self._tracks),
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": SAMPLE_RATE, "channels": 1},
            "customParameters": self._parameters(),
        }
        return (
            json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}),
            self._numbered("start", start),
        )

    def _parameters(self) -> dict[str, str]:
        call = self._metadata.call
        numbers = {
            "from_number": call.get("caller_number", ""),
            "to_number": call.get("dnid") or call.get("exten", ""),
        }
        return {**numbers, **self._metadata.params}

    def _numbered(self, event: str, content: dict[str, Any]) -> str:
        self._sequence += 1
        head = {"event": event, "sequenceNumber": str(self._sequence)}
        return json.dumps({**head, event: content, "streamSid": self._sids.stream})

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:
        samples = frames[0] if len(frames) == 1 else b"".join(frames)
        self._chunk += 1
        if len(self._media) == 1:
            return (self._track(self._media[0], samples, number),)
        left, right = audioop.tomono(samples, 2, 1, 0), audioop.tomono(samples, 2, 0, 1)
        inbound, outbound = self._media
        return self._track(inbound, left, number), self._track(outbound, right, number)

    def _track(self, template: str, samples: bytes, number: int) -> str:
        self._sequence = sequence = self._sequence + 1
        payload = b2a_base64(lin2ulaw(samples, 2), newline=False).decode()
        return template % (sequence, self._chunk, number * PTIME_MS, payload)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (self._numbered("dtmf", {"track": "inbound_track", "digit": key.digit}),)

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (self._numbered("mark", {"name": mark.name}),)

    def closing(self, reason: str, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002
        sids = {"accountSid": self._sids.account, "callSid": self._sids.call}
        return (self._numbered("stop", sids),)

    def meaning(self, message: Message) -> Meaning:
        if not isinstance(message, str):
            return None
        found = json_object(message)
        match found.get("event"):
            case "media":
                payload = from_server.base64_bytes(member(found, "media"), "payload")
                return Audio(ulaw2lin(payload, 2), SAMPLE_RATE) if payload else None
            case "mark":
                return Command(ServerCommand.MARK, from_server.text(member(found, "mark"), "name"))
            case "clear":
                return Command(ServerCommand.CLEAR)
        return Text(message)

    def payload_bytes(self, frame_bytes: int) -> int:
        tracks = len(self._tracks)
        # A sample is two bytes of slin, one of mu-law, four thirds of one in base64.
        return frame_bytes * 2 // 3 + tracks * (len(self._media[0]) + 12)
