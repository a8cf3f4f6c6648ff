"""Our own format: JSON texts for all that happens; audio stays binary."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.audiosocket import PTIME_MS
from audiofork.link.messages import Direction, ForkSpec, ServerCommand
from audiofork.relay.formats import from_server
from audiofork.relay.formats.base import (
    BufferLevel,
    Cleared,
    Command,
    Dtmf,
    Mark,
    Meaning,
    Message,
    Mute,
    Text,
)
from audiofork.relay.formats.description import Description
from audiofork.relay.formats.from_server import json_object
from audiofork.relay.formats.raw import RawFormat

# Most changes of the muted sides that a broken connection may give back.
_MOST_MUTES = 100


class JsonFormat(RawFormat):
    """Raw with its texts, and one for each gap, each key that is pressed, and each mute.

    docs/json-format.asyncapi.yaml describes them all.

    Args:
        spec: The fork.
        frame_ms: Audio in a full message, in milliseconds.
    """

    def __init__(self, spec: ForkSpec, frame_ms: int) -> None:
        super().__init__(spec.codec, Description(spec, frame_ms), spec.sample_rate)
        self._has_in = spec.direction is not Direction.OUT
        self._has_out = spec.direction is not Direction.IN
        # Which sides are muted, by the frame from which on they are; ascending. More than the last:
        # a next connection may begin before changes that the server has not acknowledged.
        self._mutes: dict[int, list[str]] = {0: []}
        self._told: list[str] = []  # what the server of this connection takes for muted

    def opening(self, number: int, dropped: int) -> Sequence[Message]:
        for over in [start for start in self._mutes if start <= number][:-1]:
            del self._mutes[over]
        self._told = next(iter(self._mutes.values()))
        assert self._description is not None
        return (self._description.start(number, dropped, muted=self._told),)

    def gap(self, number: int, frames: int) -> Sequence[Message]:
        return (_text("gap", number - frames, lost_ms=frames * PTIME_MS),)

    def dtmf(self, key: Dtmf, number: int) -> Sequence[Message]:
        return (_text("dtmf", number, digit=key.digit, duration_ms=key.duration_ms),)

    def mute(self, mute: Mute, number: int) -> Sequence[Message]:
        """Tell which of the sides that the audio has are muted, if that has changed."""
        muted = ["in"] * (self._has_in and mute.is_in) + ["out"] * (self._has_out and mute.is_out)
        if muted == self._told:
            return ()
        self._told = self._mutes[number] = muted
        if len(self._mutes) > _MOST_MUTES:
            del self._mutes[next(iter(self._mutes))]
        return (_text("mute", number, muted=muted),)

    def mark(self, mark: Mark, number: int) -> Sequence[Message]:
        return (_text("mark", number, name=mark.name),)

    def cleared(self, cleared: Cleared) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        return (json.dumps({"event": "cleared"}),)

    def buffer_level(self, level: BufferLevel) -> Sequence[Message]:
        return (json.dumps({"event": "buffer", "state": "high" if level.is_high else "low"}),)

    def meaning_of_text(self, text: str) -> Meaning:
        """Return the command that a text holds; a text without one is for the fork's readers."""
        found = json_object(text)
        command = _COMMANDS.get(from_server.text(found, "command"))
        if command is None:
            return Text(text)
        return Command(command, from_server.text(found, _VALUES.get(command, "")))


_COMMANDS = {
    command.value: command for command in ServerCommand if command is not ServerCommand.AUDIO
}
# Which member of a command has its argument.
_VALUES = {
    ServerCommand.MARK: "name",
    ServerCommand.DTMF: "digits",
    ServerCommand.TRANSFER: "to",
}


def _text(event: str, number: int, **content: object) -> str:
    """Return the text of an event before the frame of this number."""
    return json.dumps({"event": event, "position_ms": number * PTIME_MS, **content})
