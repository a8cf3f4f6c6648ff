"""Vonage's Voice API."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.link.messages import ForkSpec
from audiofork.relay.formats.base import Dtmf, Message
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

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        pressed = {"digit": key.digit, "duration": key.duration_ms}
        return (json.dumps({"event": "websocket:dtmf", **pressed}),)
