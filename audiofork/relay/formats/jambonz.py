"""jambonz's `listen`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from audiofork.link.messages import ForkSpec, Metadata
from audiofork.relay.formats.base import Dtmf, Message
from audiofork.relay.formats.binary import BinaryFormat


class JambonzFormat(BinaryFormat):
    """jambonz's `listen`: a text of the call's attributes, then L16 in binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec)
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
