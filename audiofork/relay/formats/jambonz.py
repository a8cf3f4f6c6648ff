"""jambonz's `listen`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from audiofork.config import SAMPLE_RATES
from audiofork.link.messages import ForkSpec, Metadata, ServerCommand
from audiofork.relay.formats import from_server
from audiofork.relay.formats.base import Audio, Command, Dtmf, Mark, Meaning, Message, Text
from audiofork.relay.formats.binary import BinaryFormat
from audiofork.relay.formats.from_server import json_object, member


class JambonzFormat(BinaryFormat):
    """jambonz's `listen`: a text of the call's attributes, then L16 in binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec, spec.sample_rate)
        metadata = spec.metadata or Metadata()
        call = metadata.call
        self._attributes: dict[str, Any] = {
            "callSid": call.get("uniqueid", ""),
            "direction": "inbound",
            "from": call.get("caller_number", ""),
            "to": call.get("dnid") or call.get("exten", ""),
            "callId": call.get("sip_call_id", ""),
            "callerName": call.get("caller_name", ""),
            "sampleRate": spec.sample_rate,
            "mixType": {"stereo": "stereo", "both": "mixed"}.get(spec.direction.value, "mono"),
            "metadata": metadata.params,
        }

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps(self._attributes),)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        pressed = {"dtmf": key.digit, "duration": str(key.duration_ms)}
        return (json.dumps({"event": "dtmf", **pressed}),)

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps({"type": "mark", "data": {"name": mark.name, "event": "playout"}}),)

    def meaning_of_text(self, text: str) -> Meaning:
        found = json_object(text)
        data = member(found, "data")
        match found.get("type"):
            case "playAudio":
                return _file(data)
            case "killAudio":
                return Command(ServerCommand.CLEAR)
            case "mark":
                return Command(ServerCommand.MARK, from_server.text(data, "name"))
            case "disconnect":
                return Command(ServerCommand.HANGUP)
        return Text(text)


def _file(data: dict[str, Any]) -> Audio | None:
    """Return the audio that `playAudio` holds whole; None if it is of another kind than raw."""
    samples = from_server.base64_bytes(data, "audioContent")
    rate = str(data.get("sampleRate"))
    if data.get("audioContentType") != "raw" or not samples or rate not in _RATES:
        return None
    return Audio(samples, _RATES[rate])


_RATES = {str(rate): rate for rate in SAMPLE_RATES}
