"""A phone conversation of vocode, which reads Twilio's Media Streams with its own code.

    .venv-vocode/bin/python testbed/clients/vocode_server.py

Ours are only the parts that vocode leaves to its users: a transcriber, which tells what it is
given, and a synthesizer that is never asked. Prints a line of JSON for all that happens: {"port":
N}, then for each call {"audio": BASE64} of mu-law, and {"ended": true, "stream": SID}.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
import types
from typing import Any

# vocode fetches a file when it is imported, and needs PortAudio; for phone calls it uses neither.
import nltk

nltk.download = lambda *_: None
sys.modules["sounddevice"] = types.ModuleType("sounddevice")

import uvicorn  # noqa: E402
from fastapi import FastAPI, WebSocket  # noqa: E402
from vocode.streaming.agent.echo_agent import EchoAgent  # noqa: E402
from vocode.streaming.models.agent import EchoAgentConfig  # noqa: E402
from vocode.streaming.models.synthesizer import SynthesizerConfig  # noqa: E402
from vocode.streaming.models.telephony import TwilioConfig  # noqa: E402
from vocode.streaming.models.transcriber import TranscriberConfig  # noqa: E402
from vocode.streaming.synthesizer.base_synthesizer import BaseSynthesizer  # noqa: E402
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


class Teller(BaseAsyncTranscriber[TranscriberConfig]):
    """Tells of the audio that vocode has taken out of Twilio's messages."""

    async def _run_loop(self) -> None:
        while True:
            say(audio=base64.b64encode(await self.input_queue.get()).decode())


class Factory:
    """Makes the parts of a conversation."""

    def create_transcriber(self, config: TranscriberConfig) -> Teller:
        return Teller(config)

    def create_agent(self, config: EchoAgentConfig) -> EchoAgent:
        return EchoAgent(config)

    def create_synthesizer(self, config: SynthesizerConfig) -> BaseSynthesizer:
        return BaseSynthesizer(config)


@app.websocket("/")
async def serve(websocket: WebSocket) -> None:
    """Hold the conversation of one call."""
    await websocket.accept()
    factory = Factory()
    conversation = TwilioPhoneConversation(
        *("inbound", "+49301234", "100", "h", InMemoryConfigManager(), EchoAgentConfig()),
        TranscriberConfig.from_telephone_input_device(),
        SynthesizerConfig.from_telephone_output_device(),
        *("CA0", factory, factory, factory),
        TwilioConfig(account_sid="AC0", auth_token="none"),
    )
    await conversation.attach_ws_and_start(websocket)
    say(ended=True, stream=conversation.output_device.stream_sid)


async def main() -> None:
    """Serve until the process is ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    say(port=listener.getsockname()[1])
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
