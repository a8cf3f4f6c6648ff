"""Vonage's Voice API."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.link.messages import ForkSpec
from audiofork.relay.formats.base import Dtmf, Event, Message
from audiofork.relay.formats.binary import BinaryFormat, told_of


class VonageFormat(BinaryFormat):
    """Vonage's Voice API: a text `websocket:connected`, then L16 in binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec)
        self._rate = spec.sample_rate
        self._headers = told_of(spec)

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        kind = {"content-type": f"audio/l16;rate={self._rate}"}
        own = {"event": "websocket:connected", **kind}  # whatever a parameter is called
        return (json.dumps({**self._headers, **own}),)

    def event(self, event: Event, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        if not isinstance(event, Dtmf):
            return ()
        key = {"digit": event.digit, "duration": event.duration_ms}
        return (json.dumps({"event": "websocket:dtmf", **key}),)
