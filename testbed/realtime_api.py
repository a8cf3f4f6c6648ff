"""A stand-in for OpenAI's Realtime API, which checks each message of its client strictly.

The fields are those of the types of the package openai on PyPI, openai/types/realtime; what the
order of messages has to be is said there, too. It hears speech by its level, and says what the test
has it say, faster than real time, as the API does.
"""

from __future__ import annotations

import asyncio
import audioop
import base64
import binascii
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from websockets.asyncio.server import ServerConnection

from testbed.speech_services import KEY, Fault, SpeechService

Object = dict[str, Any]

LOUD = 500  # of 32767: the level of speech
SILENCE_MS = 200  # after which speech is over
DELTA_MS = 200  # of audio in one message
MAX_APPEND_BYTES = 15 << 20

# --- The messages of a client --------------------------------------------------------------------
# A shape is a type, a tuple of the values that are allowed, a list of one shape, or the fields of
# an object, of which those with a ? may be left out.

_FORMAT = {"type": ("audio/pcm", "audio/pcmu", "audio/pcma"), "rate?": (24000,)}
_TURN_DETECTION = {
    "type": ("server_vad", "semantic_vad"),
    "create_response?": bool,
    "eagerness?": ("low", "medium", "high", "auto"),
    "idle_timeout_ms?": int,
    "interrupt_response?": bool,
    "prefix_padding_ms?": int,
    "silence_duration_ms?": int,
    "threshold?": float,
}
_INPUT = {
    "format?": _FORMAT,
    "noise_reduction?": {"type": ("near_field", "far_field")},
    "transcription?": {"model": str, "language?": str, "prompt?": str},
    "turn_detection?": _TURN_DETECTION,
}
_SESSION = {
    "type": ("realtime",),
    "audio?": {"input?": _INPUT, "output?": {"format?": _FORMAT, "speed?": float, "voice?": str}},
    "include?": [("item.input_audio_transcription.logprobs",)],
    "instructions?": str,
    "max_output_tokens?": int,
    "model?": str,
    "output_modalities?": [("audio", "text")],
    "parallel_tool_calls?": bool,
    "tool_choice?": str,
    "tools?": [{"type": ("function",), "name": str, "description?": str, "parameters?": dict}],
    "truncation?": str,
}
_TRANSCRIPTION = {"type": ("transcription",), "audio?": {"input?": _INPUT}}
_OUTPUT = {"type": ("function_call_output",), "call_id": str, "output": str, "id?": str}
_EVENTS: dict[str, Object] = {
    "session.update": {"session": _SESSION},
    "input_audio_buffer.append": {"audio": str},
    "conversation.item.truncate": {"item_id": str, "content_index": int, "audio_end_ms": int},
    "conversation.item.create": {"item": _OUTPUT, "previous_item_id?": str},
    "response.create": {"response?": {"instructions?": str}},
}


def check_event(event: Object) -> None:
    """Raise Fault unless the API would understand a message of its client."""
    kind = event.get("type")
    if kind not in _EVENTS:
        raise Fault(f"type: {kind!r}")
    fields = {"type": (kind,), "event_id?": str, **_EVENTS[kind]}
    if kind == "session.update" and event.get("session", {}).get("type") == "transcription":
        fields["session"] = _TRANSCRIPTION
    check(event, fields, kind)


def check(value: object, shape: Any, path: str) -> None:
    """Raise Fault unless a value has a shape."""
    if isinstance(shape, dict):
        _check_object(value, shape, path)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise Fault(f"{path}: {value!r} is no list")
        for one in value:
            check(one, shape[0], f"{path}[]")
    elif isinstance(shape, tuple):
        if value not in shape:
            raise Fault(f"{path}: {value!r}, expected one of {shape}")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        raise Fault(f"{path}: {value!r} is no {shape.__name__}")


def _check_object(value: object, fields: Object, path: str) -> None:
    if not isinstance(value, dict):
        raise Fault(f"{path}: {value!r} is no object")
    names = {name.rstrip("?") for name in fields}
    if unknown := value.keys() - names:
        raise Fault(f"{path}: unknown {sorted(unknown)}")
    for name, shape in fields.items():
        if name.rstrip("?") in value:
            check(value[name.rstrip("?")], shape, f"{path}.{name.rstrip('?')}")
        elif not name.endswith("?"):
            raise Fault(f"{path}: no {name}")


# --- The server ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """The call of a tool by the model."""

    name: str
    arguments: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """What the model says in one response.

    Attributes:
        slin: At 8000 Hz; empty: nothing.
        transcript: The same in words.
        calls: Tools that it calls after that.
    """

    slin: bytes = b""
    transcript: str = ""
    calls: tuple[Call, ...] = ()


@dataclass
class Truncation:
    """What a client has told of an item that was cut off, which is so long."""

    audio_end_ms: int
    duration_ms: float


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "audio/pcmu": lambda audio: audioop.ulaw2lin(audio, 2),
    "audio/pcma": lambda audio: audioop.alaw2lin(audio, 2),
    "audio/pcm": lambda audio: audioop.ratecv(audio, 2, 1, 24000, 8000, None)[0],
}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "audio/pcmu": lambda slin: audioop.lin2ulaw(slin, 2),
    "audio/pcma": lambda slin: audioop.lin2alaw(slin, 2),
    "audio/pcm": lambda slin: audioop.ratecv(slin, 2, 1, 8000, 24000, None)[0],
}
BYTES_IN_MS = {"audio/pcmu": 8, "audio/pcma": 8, "audio/pcm": 48}


class RealtimeApi(SpeechService):
    """A server of the API on 127.0.0.1, whose model says what `turns` have, one in each response.

    Attributes:
        turns: What the model says next; with nothing left it is silent.
        is_beta: Whether it uses the names of the API's beta where they differ.
        refusal: With what error it answers the session; empty: it accepts it.
        sessions: The sessions of all connections.
        caller_slin: What the caller has said, slin at 8000 Hz.
        truncations: What was cut off.
        outputs: The answers to calls of tools, in their order.
        responses_asked: How many responses the client has asked for.
    """

    name = "openai-realtime"
    origin = "wss://api.openai.com"
    path = "/v1/realtime"
    query: ClassVar[dict[str, str]] = {"model": "gpt-realtime"}
    headers: ClassVar[dict[str, str]] = {"Authorization": f"Bearer {KEY}"}

    def __init__(self, *turns: Turn, is_beta: bool = False, refusal: str = "") -> None:
        super().__init__()
        self.turns = list(turns)
        self.is_beta = is_beta
        self.refusal = refusal
        self.sessions: list[Object] = []
        self.caller_slin = b""
        self.truncations: list[Truncation] = []
        self.outputs: list[str] = []
        self.responses_asked = 0
        self.connection: ServerConnection | None = None

    async def serve(self, connection: ServerConnection) -> None:
        self.connection = connection
        session = _Session(self, connection)
        await session.say("session.created", session={"type": "realtime"})
        try:
            async for message in connection:
                if not isinstance(message, str):
                    raise Fault("a binary message")
                await session.take(json.loads(message))
        finally:
            await session.end()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, or the client has done something wrong."""
        async with asyncio.timeout(10):
            while not condition() and not self.faults:
                self._changed.clear()
                await self._changed.wait()

    def note_change(self) -> None:
        """Have those who wait look again."""
        self._changed.set()


class _Session:
    """One connection of a client."""

    def __init__(self, api: RealtimeApi, connection: ServerConnection) -> None:
        self._api = api
        self._connection = connection
        self._ids: Iterator[int] = itertools.count(1)
        self._format = ""
        self._durations_ms: dict[str, float] = {}  # of what the model has said
        self._unanswered: list[str] = []  # calls of tools
        self._silence_ms: float | None = None  # since speech; None: nobody speaks
        self._response: asyncio.Task[None] | None = None

    async def end(self) -> None:
        if self._response is not None:
            self._response.cancel()
            await asyncio.gather(self._response, return_exceptions=True)

    async def say(self, kind: str, **fields: Any) -> None:
        if self._api.is_beta:
            kind = kind.replace("output_audio", "audio")
        event_id = f"event_{next(self._ids)}"
        await self._connection.send(json.dumps({"type": kind, "event_id": event_id, **fields}))

    async def take(self, event: Object) -> None:
        """Check a message of the client, and act on it."""
        check_event(event)
        kind = event["type"]
        if not self._format and kind != "session.update":
            raise Fault(f"{kind} before the session was accepted")
        await {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "conversation.item.truncate": self._truncate,
            "conversation.item.create": self._create,
            "response.create": self._create_response,
        }[kind](event)
        self._api.note_change()

    async def _update(self, event: Object) -> None:
        session = event["session"]
        audio = session["audio"]
        self._api.sessions.append(session)
        if "output" in audio and audio["output"]["format"] != audio["input"]["format"]:
            raise Fault("two formats")
        if self._api.refusal:
            error = {"type": "invalid_request_error", "code": "invalid_value"}
            await self.say("error", error={**error, "message": self._api.refusal})
            return
        self._format = audio["input"]["format"]["type"]
        await self.say("session.updated", session=session)

    async def _append(self, event: Object) -> None:
        try:
            audio = base64.b64decode(event["audio"], validate=True)
        except binascii.Error:
            raise Fault("audio that is not base64") from None
        ms, rest = divmod(len(audio), BYTES_IN_MS[self._format])
        if not ms or rest or len(audio) > MAX_APPEND_BYTES:
            raise Fault(f"{len(audio)} bytes of {self._format}")
        slin = _DECODERS[self._format](audio)
        self._api.caller_slin += slin
        self._api.audio_ms += ms
        await self._listen(slin, ms)

    async def _listen(self, slin: bytes, duration_ms: int) -> None:
        """Hear where speech begins and ends."""
        if audioop.rms(slin, 2) >= LOUD:
            if self._silence_ms is None:
                item = f"item_{next(self._ids)}"
                at = self._api.audio_ms
                await self.say("input_audio_buffer.speech_started", audio_start_ms=at, item_id=item)
            self._silence_ms = 0
        elif self._silence_ms is not None:
            self._silence_ms += duration_ms
            if self._silence_ms >= SILENCE_MS:
                self._silence_ms = None
                await self._on_silence()

    async def _on_silence(self) -> None:
        item = f"item_{next(self._ids)}"
        at = self._api.audio_ms
        await self.say("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=item)
        await self.say("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        await self.say(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            content_index=0,
            transcript="what the caller said",
            usage={"type": "duration", "seconds": 1},
        )
        self._begin_response()

    async def _create_response(self, _event: Object) -> None:
        if self._response is not None and not self._response.done():
            raise Fault("response.create while there is a response")
        self._api.responses_asked += 1
        self._begin_response()

    def _begin_response(self) -> None:
        if self._api.turns:
            self._response = asyncio.create_task(self._respond(self._api.turns.pop(0)))

    async def _respond(self, turn: Turn) -> None:
        """Say a turn; its end comes when its calls of tools were answered, and a little later."""
        response = {"id": f"resp_{next(self._ids)}", "object": "realtime.response"}
        await self.say("response.created", response={**response, "status": "in_progress"})
        where = {"response_id": response["id"], "output_index": 0}
        if turn.slin:
            await self._speak(turn, where)
        for call in turn.calls:
            await self._call(call, where)
        if turn.calls:
            await self._api.until(lambda: not self._unanswered)
            await asyncio.sleep(0.02)
        await self.say("response.done", response={**response, "status": "completed"})

    async def _speak(self, turn: Turn, where: Object) -> None:
        item = f"item_{next(self._ids)}"
        audio = _ENCODERS[self._format](turn.slin)
        self._durations_ms[item] = len(audio) / BYTES_IN_MS[self._format]
        place = {**where, "item_id": item, "content_index": 0}
        size = DELTA_MS * BYTES_IN_MS[self._format]
        for start in range(0, len(audio), size):
            delta = base64.b64encode(audio[start : start + size]).decode()
            await self.say("response.output_audio.delta", **place, delta=delta)
        await self.say("response.output_audio.done", **place)
        transcript = turn.transcript
        await self.say("response.output_audio_transcript.done", **place, transcript=transcript)
        content = [{"type": "output_audio", "transcript": transcript}]
        about = {"type": "message", "role": "assistant", "status": "completed"}
        message = {"id": item, **about, "content": content}
        await self.say("response.output_item.done", **where, item=message)

    async def _call(self, call: Call, where: Object) -> None:
        call_id = f"call_{next(self._ids)}"
        self._unanswered.append(call_id)
        item = {"id": f"item_{next(self._ids)}", "type": "function_call", "status": "completed"}
        arguments = json.dumps(call.arguments)
        done = {**item, "call_id": call_id, "name": call.name, "arguments": arguments}
        await self.say("response.output_item.done", **where, item=done)

    async def _truncate(self, event: Object) -> None:
        item, end_ms = event["item_id"], event["audio_end_ms"]
        if item not in self._durations_ms or event["content_index"] != 0:
            raise Fault(f"truncated what was not said: {item}")
        if not 0 <= end_ms <= self._durations_ms[item]:
            raise Fault(f"{self._durations_ms[item]} ms are shorter than {end_ms}")
        self._api.truncations.append(Truncation(end_ms, self._durations_ms[item]))
        self._durations_ms[item] = end_ms
        place = {"item_id": item, "content_index": 0, "audio_end_ms": end_ms}
        await self.say("conversation.item.truncated", **place)

    async def _create(self, event: Object) -> None:
        item = event["item"]
        if item["call_id"] not in self._unanswered:
            raise Fault(f"an answer to {item['call_id']}")
        self._unanswered.remove(item["call_id"])
        self._api.outputs.append(item["output"])
        await self.say("conversation.item.done", item=item, previous_item_id=None)
