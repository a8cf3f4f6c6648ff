"""Describes a fork to its server: the JSON texts `start` and `stop`."""

from __future__ import annotations

import json
from typing import Any

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Codec, Direction, ForkSpec, Metadata

VERSION = 1
_ENCODINGS: dict[Codec, dict[str, Any]] = {
    Codec.SLIN: {"encoding": "slin", "bits": 16, "byte_order": "little"},
    Codec.ULAW: {"encoding": "ulaw", "bits": 8},
    Codec.ALAW: {"encoding": "alaw", "bits": 8},
}
# What each channel of the audio is, in their order.
_TRACKS = {
    Direction.IN: ["in"],
    Direction.OUT: ["out"],
    Direction.BOTH: ["mixed"],
    Direction.STEREO: ["in", "out"],
}


class Description:
    """What the texts of one fork say; counts its connections.

    Times are in milliseconds of the fork: `position_ms` is where the audio that follows begins,
    `dropped_ms` is how much of what lies before it the server never got. So a server can tell where
    each millisecond of the call is, whatever was lost.

    Args:
        spec: The fork.
        frame_ms: Audio in a full message, in milliseconds.
    """

    def __init__(self, spec: ForkSpec, frame_ms: int) -> None:
        self._openings = 0
        metadata = spec.metadata or Metadata()
        tracks = _TRACKS[spec.direction]
        self._fork: dict[str, Any] = {
            "fork_id": spec.fork_id,
            "resumed": metadata.resumed,
            "direction": spec.direction.value,
            "tracks": tracks,
            "audio": {
                **_ENCODINGS[spec.codec],
                "sample_rate": spec.sample_rate,
                "channels": len(tracks),
                "message_ms": frame_ms,
            },
            "call": metadata.call,
            "params": metadata.params,
        }

    def start(self, number: int, dropped: int, **more: object) -> str:
        """Return the text of an opening.

        Args:
            number: As for `MessageFormat.opening`, as `dropped`.
            dropped: See `number`.
            more: What the format says besides.
        """
        reconnects = self._openings
        self._openings += 1
        place = {"reconnects": reconnects, **_place(number, dropped)}
        return json.dumps({"event": "start", "version": VERSION, **place, **more, **self._fork})

    def stop(self, reason: str, number: int, dropped: int) -> str:
        """Return the text before the close; for the arguments see `MessageFormat.closing`."""
        return json.dumps({"event": "stop", "reason": reason, **_place(number, dropped)})


def _place(number: int, dropped: int) -> dict[str, int]:
    return {"position_ms": number * PTIME_MS, "dropped_ms": dropped * PTIME_MS}
