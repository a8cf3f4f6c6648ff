"""Reads what a connection brought as a server of the format does."""

from __future__ import annotations

import audioop
import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from audiofork.relay.formats.base import Message

FRAME_BYTES = 320


@dataclass
class Reader:
    """Places each frame of one connection: by positions of our texts, or by Twilio's time stamps.

    Attributes:
        placed: Each frame that came: the number of its place, and its samples.
        texts: What came beside audio.
        muted: Which sides are muted, for each frame that came.
        lost_ms: What the gaps add up to.
    """

    placed: list[tuple[int, bytes]] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)
    muted: list[list[str]] = field(default_factory=list)
    lost_ms: int = 0
    _next: int = 0
    _muted: list[str] = field(default_factory=list)

    def read(self, messages: Iterable[Message]) -> None:
        """Read messages; a text may be given as its bytes."""
        for message in messages:
            if isinstance(message, bytes) and not message.startswith(b"{"):
                self._take(message)
            else:
                self._read_text(json.loads(message))

    def _read_text(self, told: dict[str, Any]) -> None:
        if told.get("event") == "media":
            self._next = int(told["media"]["timestamp"]) // 20
            self._take(audioop.ulaw2lin(base64.b64decode(told["media"]["payload"]), 2))
            return
        self.texts.append(told)
        self._muted = told.get("muted", self._muted)
        if told.get("event") == "gap":
            assert told["position_ms"] == self._next * 20
            self.lost_ms += told["lost_ms"]
            self._next += told["lost_ms"] // 20
        elif "position_ms" in told:
            self._next = told["position_ms"] // 20

    def _take(self, audio: bytes) -> None:
        for at in range(0, len(audio), FRAME_BYTES):
            self.placed.append((self._next, audio[at : at + FRAME_BYTES]))
            self.muted.append(self._muted)
            self._next += 1
