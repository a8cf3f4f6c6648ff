"""OpenAI's Realtime API, of which we are the client: JSON texts, audio in base64 both ways.

Source: the types of the package openai on PyPI, openai/types/realtime, generated from the API's
public description. The names of the API's beta are understood where they differ.
"""

from __future__ import annotations

import json
import logging
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from audiofork.link.messages import Codec, ForkSpec, ServerCommand
from audiofork.log import ForkLog
from audiofork.realtime_opening import Object, parse_opening
from audiofork.relay.formats.base import (
    Audio,
    Cleared,
    Command,
    Meaning,
    Message,
    MessageFormat,
    Reply,
    Several,
    Text,
)
from audiofork.relay.formats.codecs import BITS, decoder, encoder
from audiofork.relay.formats.from_server import as_json, base64_bytes, json_object, member, text
from audiofork.relay.formats.heard import Heard
from audiofork.text import harmless

log = logging.getLogger(__name__)

PCM_RATE = 24000  # the only one that the API takes
G711_RATE = 8000
MOST_REASON_BYTES = 123  # in a close frame (RFC 6455, 5.5)
MOST_NAME_LENGTH = 200  # of an item; some hundreds of them are kept
MOST_ERRORS = 10  # kinds of them that are logged for a fork
_UNDERSTOOD = Several(())  # and there is nothing to do
# What a server may have done in the call, as tools that its model is offered where it is granted.
_TOOLS: dict[str, tuple[ServerCommand, str, Object]] = {
    "hang_up": (
        ServerCommand.HANGUP,
        "Hang up the call. Say goodbye before.",
        {"type": "object", "properties": {}},
    ),
    "transfer": (
        ServerCommand.TRANSFER,
        "Transfer the caller to another place, of those that you know. Say so before.",
        {
            "type": "object",
            "properties": {"to": {"type": "string", "description": "context,exten,priority"}},
            "required": ["to"],
        },
    ),
}


class _Encoding(NamedTuple):
    """What audio is encoded in, both ways.

    Attributes:
        format: As the API calls it.
        codec: As we do.
        sample_rate: In Hz.
    """

    format: Object
    codec: Codec
    sample_rate: int


_G711 = {
    Codec.ULAW: _Encoding({"type": "audio/pcmu"}, Codec.ULAW, G711_RATE),
    Codec.ALAW: _Encoding({"type": "audio/pcma"}, Codec.ALAW, G711_RATE),
}
_PCM = _Encoding({"type": "audio/pcm", "rate": PCM_RATE}, Codec.SLIN, PCM_RATE)


def _encoding_of(spec: ForkSpec) -> _Encoding:
    if spec.sample_rate != G711_RATE:
        return _PCM
    return _G711.get(spec.codec, _G711[Codec.ULAW])


class OpenAiRealtimeFormat(MessageFormat):
    """A session of the API for each connection; audio waits until the server has accepted it.

    What is told of the conversation are short JSON texts: transcripts, calls of tools, errors. Each
    call of a tool is answered, so that the model goes on.

    Args:
        spec: The fork; its opening is that of `parse_opening`.
    """

    must_answer = True

    def __init__(self, spec: ForkSpec) -> None:
        self.is_answered = False
        self._log = ForkLog(log, spec.fork_id, spec.channel)
        self._logged: set[str] = set()  # errors
        self._encoding = _encoding_of(spec)
        self._encode = encoder(self._encoding.codec)
        self._decode = decoder(self._encoding.codec)
        self._commands = spec.commands
        opening = parse_opening(spec.dialogue.opening)
        session = self._session(opening.session)
        self._opening = tuple(
            json.dumps(event)
            for event in ({"type": "session.update", "session": session}, *opening.events)
        )
        self._is_cut_off_by_speech = _interrupts(session)
        self._heard = Heard()
        self._wants_response = False  # once the one that runs is done
        self._meanings: dict[str, Callable[[Object], Meaning]] = {
            "session.updated": self._on_accepted,
            "response.output_audio.delta": self._on_audio,
            "response.audio.delta": self._on_audio,
            "input_audio_buffer.speech_started": self._on_speech,
            "conversation.item.input_audio_transcription.completed": _transcript_of("caller"),
            "response.output_audio_transcript.done": _transcript_of("bot"),
            "response.audio_transcript.done": _transcript_of("bot"),
            "response.output_item.done": self._on_item,
            "response.done": self._on_response_done,
            "error": lambda event: self._on_error(event.get("error")),
        }

    # --- To the server ---

    def _session(self, wished: Object) -> Object:
        """Return a session with the formats of audio, and with the tools that are granted."""
        session = {"type": "realtime", **wished}
        talks = session["type"] == "realtime"
        audio = dict(session.get("audio", {}))
        for side in ("input", "output") if talks else ("input",):
            audio[side] = {**audio.get(side, {}), "format": self._encoding.format}
        tools = [*session.get("tools", []), *self._own_tools(session.get("tools", []))]
        return {**session, "audio": audio, **({"tools": tools} if tools and talks else {})}

    def _own_tools(self, others: list[Object]) -> list[Object]:
        """Return the tools that the profile grants and does not describe itself."""
        taken = {tool.get("name") for tool in others}
        return [
            {"type": "function", "name": name, "description": description, "parameters": parameters}
            for name, (command, description, parameters) in _TOOLS.items()
            if command in self._commands and name not in taken
        ]

    def opening(self, number: int, dropped: int) -> Sequence[Message]:  # noqa: ARG002 (of the base)
        self.is_answered = self._wants_response = False
        self.refusal = ""
        self._heard = Heard()
        return self._opening

    def audio(self, frames: Sequence[bytes], number: int) -> Sequence[Message]:  # noqa: ARG002
        samples = frames[0] if len(frames) == 1 else b"".join(frames)
        encoded = b2a_base64(self._encode(samples), newline=False).decode()
        return ('{"type":"input_audio_buffer.append","audio":"' + encoded + '"}',)

    def cleared(self, cleared: Cleared) -> Sequence[Message]:
        """Tell the server what its caller has not heard of it."""
        return tuple(
            _event(
                "conversation.item.truncate",
                item_id=item.item_id,
                content_index=item.content_index,
                audio_end_ms=heard_ms,
            )
            for item, heard_ms in self._heard.cut(cleared.lost_ms)
        )

    def payload_bytes(self, frame_bytes: int) -> int:
        return frame_bytes * BITS[self._encoding.codec] // 16 * 4 // 3 + 50

    # --- From the server ---

    def meaning(self, message: Message) -> Meaning:
        if not isinstance(message, str):
            return None
        event = json_object(message)
        meaning = self._meanings.get(text(event, "type"))
        if meaning is not None:
            return meaning(event)
        return _UNDERSTOOD if text(event, "type") else Text(message)

    def _on_accepted(self, _event: Object) -> None:
        self.is_answered = True

    def _on_audio(self, event: Object) -> Meaning:
        """Play audio, unless it is of an item whose rest the caller did not want to hear."""
        encoded = base64_bytes(event, "delta")
        if encoded is None:
            return None
        index = event.get("content_index")
        duration_ms = len(encoded) * 8000 / BITS[self._encoding.codec] / self._encoding.sample_rate
        part = (text(event, "item_id"), index if isinstance(index, int) else 0)
        if len(part[0]) > MOST_NAME_LENGTH:
            return None
        if not self._heard.add(*part, duration_ms):
            return None
        return Audio(self._decode(encoded), self._encoding.sample_rate)

    def _on_speech(self, _event: Object) -> Meaning:
        return Command(ServerCommand.CLEAR) if self._is_cut_off_by_speech else None

    def _on_item(self, event: Object) -> Meaning:
        """Answer the call of a tool that is complete; do it where it is ours and granted."""
        item = member(event, "item")
        is_call = item.get("type") == "function_call"
        if not is_call or item.get("status", "completed") != "completed":
            return None
        name = text(item, "name")
        arguments = json_object(text(item, "arguments"))
        call = f'"name": {json.dumps(name)}, "arguments": {as_json(arguments)}'
        told = Text(f'{{"event": "tool_call", {call}}}')
        command, output = self._command_of(name, arguments)
        answer = {"type": "function_call_output", "call_id": text(item, "call_id")}
        reply = Reply((_event("conversation.item.create", item={**answer, "output": output}),))
        if command is not None:
            return Several((told, reply, command))
        self._wants_response = True
        return Several((told, reply))

    def _command_of(self, name: str, arguments: Object) -> tuple[Command | None, str]:
        """Return what the call of a tool asks for, if it may, and what the model is told."""
        if name not in _TOOLS:
            return None, "Passed on to the telephone system. There is no result."
        command = _TOOLS[name][0]
        if command not in self._commands:
            return None, f"Refused: {name} is not allowed in this call."
        if command is ServerCommand.HANGUP:
            return Command(command, after_audio=True), "The call is being hung up."
        place = text(arguments, "to")
        if not place:
            return None, 'Refused: expected {"to": "context,exten,priority"}.'
        return Command(command, place, after_audio=True), "The call is being transferred."

    def _on_response_done(self, event: Object) -> Meaning:
        """Ask for the next response if a tool was answered; tell why this one has failed."""
        response = member(event, "response")
        details = member(response, "status_details")
        failure = self._on_error(details["error"]) if details.get("error") else None
        wants_response, self._wants_response = self._wants_response, False
        # One that the caller has broken off by speaking: the server goes on after that by itself.
        if not wants_response or response.get("status", "completed") != "completed":
            return failure
        reply = Reply((_event("response.create"),))
        return Several((failure, reply)) if failure else reply

    def _on_error(self, error: object) -> Text:
        """Tell an error; log the first of its kind."""
        known = error if isinstance(error, dict) else {}
        kind = text(known, "code") or text(known, "type")
        message = text(known, "message")
        if kind not in self._logged and len(self._logged) < MOST_ERRORS:
            self._logged.add(kind)
            self._log.warning("the server reports an error: %s", harmless(f"{kind}: {message}"))
        if not self.is_answered and text(known, "type") == "invalid_request_error":
            reason = harmless(f"{kind}: {message}").encode()[:MOST_REASON_BYTES]
            self.refusal = reason.decode(errors="ignore")
        return _told("error", code=kind, message=message)


# --- JSON ----------------------------------------------------------------------------------------


def _event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def _told(event: str, **fields: Any) -> Text:
    return Text(json.dumps({"event": event, **fields}, ensure_ascii=False))


def _transcript_of(speaker: str) -> Callable[[Object], Meaning]:
    def meaning(event: Object) -> Meaning:
        said = text(event, "transcript").strip()
        return _told("transcript", speaker=speaker, text=said) if said else None

    return meaning


def _interrupts(session: Object) -> bool:
    """Return whether the server stops speaking when its caller begins to."""
    detection = member(member(member(session, "audio"), "input"), "turn_detection")
    return detection.get("interrupt_response") is not False
