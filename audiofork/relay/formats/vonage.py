"""Vonage's Voice API."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.link.messages import ForkSpec, ServerCommand
from audiofork.relay.formats.base import Cleared, Command, Dtmf, Mark, Meaning, Message, Text
from audiofork.relay.formats.binary import BinaryFormat, told_of
from audiofork.relay.formats.from_server import as_json, json_object


class VonageFormat(BinaryFormat):
    """Vonage's Voice API: a text `websocket:connected`, then L16 in binary messages."""

    def __init__(self, spec: ForkSpec) -> None:
        super().__init__(spec.codec, spec.sample_rate)
        self._headers = told_of(spec)

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        kind = {"content-type": f"audio/l16;rate={self.sample_rate}"}
        own = {"event": "websocket:connected", **kind}  # whatever a parameter is called
        return (json.dumps({**self._headers, **own}),)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        pressed = {"digit": key.digit, "duration": key.duration_ms}
        return (json.dumps({"event": "websocket:dtmf", **pressed}),)

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps({"event": "websocket:notify", "payload": json.loads(mark.name)}),)

    def cleared(self, cleared: Cleared) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps({"event": "websocket:cleared"}),)

    def meaning_of_text(self, text: str) -> Meaning:
        found = json_object(text)
        match found.get("action"):
            case "clear":
                return Command(ServerCommand.CLEAR)
            case "notify":
                # It comes back as it was, so the mark's name is the payload itself.
                return Command(ServerCommand.MARK, as_json(found.get("payload")))
        return Text(text)
