"""A phone conversation of vocode, which reads Twilio's Media Streams with its own code.

    .venv-vocode/bin/python testbed/clients/vocode_server.py

Ours are only the parts that vocode leaves to its users: a transcriber, which tells what it is
given, and a synthesizer. At / the former understands nothing, and the latter is never asked; at
/bot it understands a question once it was given 20 pieces that are not silence, and that it is to
be silent at 60.
Prints a line of JSON for all that happens: {"port": N}, then for each call {"audio": BASE64} of
mu-law, {"speaks": BASE64} of what it has to say, {"ended": true, "stream": SID} and {"said": [TEXT,
WHOLE]} for each of its messages, by what vocode learnt from the marks that came back.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

# vocode fetches a file when it is imported, and needs PortAudio; for phone calls it uses neither.
import nltk

nltk.download = lambda *_: None
sys.modules["sounddevice"] = types.ModuleType("sounddevice")

import uvicorn  # noqa: E402
from fastapi import FastAPI, WebSocket  # noqa: E402
from vocode.streaming.agent.echo_agent import EchoAgent  # noqa: E402
from vocode.streaming.models.agent import EchoAgentConfig  # noqa: E402
from vocode.streaming.models.events import Sender  # noqa: E402
from vocode.streaming.models.message import BaseMessage  # noqa: E402
from vocode.streaming.models.synthesizer import SynthesizerConfig  # noqa: E402
from vocode.streaming.models.telephony import TwilioConfig  # noqa: E402
from vocode.streaming.models.transcriber import TranscriberConfig, Transcription  # noqa: E402
from vocode.streaming.synthesizer.base_synthesizer import (  # noqa: E402
    BaseSynthesizer,
    SynthesisResult,
)
from vocode.streaming.telephony.config_manager.in_memory_config_manager import (  # noqa: E402
    InMemoryConfigManager,
)
from vocode.streaming.telephony.conversation.twilio_phone_conversation import (  # noqa: E402
    TwilioPhoneConversation,
)
from vocode.streaming.transcriber.base_transcriber import BaseAsyncTranscriber  # noqa: E402

app = FastAPI()


def say(**what: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


# A short one it would take for a sign that it is listened to.
QUESTIONS = {20: "please tell me all about it", 60: "please be silent from now on"}
SILENCE = b"\xff"
PIECE_BYTES = 1600  # 200 ms
SPEECH = bytes(random.Random(93).choices([*range(16, 112), *range(144, 240)], k=20 * PIECE_BYTES))


class Teller(BaseAsyncTranscriber[TranscriberConfig]):
    """Tells of the audio that vocode has taken out of Twilio's messages."""

    questions: dict[int, str] = {}

    async def _run_loop(self) -> None:
        number = 0
        while True:
            audio = await self.input_queue.get()
            say(audio=base64.b64encode(audio).decode())
            if audio == SILENCE * len(audio):
                continue
            number += 1
            if text := self.questions.get(number):
                transcription = Transcription(message=text, confidence=1.0, is_final=True)
                self.output_queue.put_nowait(transcription)


class Listener(Teller):
    """Understands questions, too."""

    questions = QUESTIONS


class Speaker(BaseSynthesizer[SynthesizerConfig]):
    """Has the same to say to all that is no request for silence."""

    @classmethod
    def get_voice_identifier(cls, _config: SynthesizerConfig) -> str:
        return "noise"

    async def create_speech_uncached(
        self, message: BaseMessage, *_: object, **__: object
    ) -> SynthesisResult:
        speech = b"" if "silent" in message.text else SPEECH
        say(speaks=base64.b64encode(speech).decode())

        async def pieces() -> AsyncIterator[SynthesisResult.ChunkResult]:
            for start in range(0, len(speech), PIECE_BYTES):
                piece = speech[start : start + PIECE_BYTES]
                yield SynthesisResult.ChunkResult(piece, start + PIECE_BYTES == len(speech))

        return SynthesisResult(pieces(), lambda _seconds: message.text)


class Factory:
    """Makes the parts of a conversation."""

    def __init__(self, *, speaks: bool) -> None:
        self._speaks = speaks

    def create_transcriber(self, config: TranscriberConfig) -> Teller:
        return Listener(config) if self._speaks else Teller(config)

    def create_agent(self, config: EchoAgentConfig) -> EchoAgent:
        return EchoAgent(config)

    def create_synthesizer(self, config: SynthesizerConfig) -> BaseSynthesizer:
        return Speaker(config) if self._speaks else BaseSynthesizer(config)


@app.websocket("/")
@app.websocket("/bot")
async def serve(websocket: WebSocket) -> None:
    """Hold the conversation of one call."""
    await websocket.accept()
    factory = Factory(speaks=websocket.url.path == "/bot")
    conversation = TwilioPhoneConversation(
        *("inbound", "+49301234", "100", "h", InMemoryConfigManager(), EchoAgentConfig()),
        TranscriberConfig.from_telephone_input_device(),
        SynthesizerConfig.from_telephone_output_device(),
        *("CA0", factory, factory, factory),
        TwilioConfig(account_sid="AC0", auth_token="none"),
    )
    await conversation.attach_ws_and_start(websocket)
    for message in conversation.transcript.event_logs:
        if message.sender is Sender.BOT:
            say(said=[message.text, message.is_final])
    say(ended=True, stream=conversation.output_device.stream_sid)


async def main() -> None:
    """Serve until the process is ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    say(port=listener.getsockname()[1])
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
