"""A bot of pipecat for Twilio's Media Streams: its parser, transport, serializer and pipeline.

    .venv-pipecat/bin/python testbed/clients/pipecat_server.py

At / it only listens; at /bot it answers: it says again what it hears, at `*` all that it heard so
far once more, and any other key interrupts it. Prints a line of JSON for all that happens: {"port":
N}, then for each connection {"call": {...}}, {"audio": BASE64} of linear samples, {"digit": D} and
{"ended": true}.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.frames.frames import Frame, InputAudioRawFrame, InputDTMFFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

app = FastAPI()


def say(**what: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


class Teller(FrameProcessor):
    """Tells of each frame that the transport brings."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            say(audio=base64.b64encode(frame.audio).decode())
        elif isinstance(frame, InputDTMFFrame):
            say(digit=frame.button.value)
        await self.push_frame(frame, direction)


class Bot(FrameProcessor):
    """Says again what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = bytearray()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._heard += frame.audio
            await self._speak(frame.audio)
        elif isinstance(frame, InputDTMFFrame) and frame.button.value == "*":
            await self._speak(bytes(self._heard))
        elif isinstance(frame, InputDTMFFrame):
            await self.broadcast_interruption()
        else:
            await self.push_frame(frame, direction)

    async def _speak(self, audio: bytes) -> None:
        await self.push_frame(OutputAudioRawFrame(audio, sample_rate=8000, num_channels=1))


@app.websocket("/")
@app.websocket("/bot")
async def serve(websocket: WebSocket) -> None:
    """Run the bot for one call, as pipecat's own examples do."""
    speaks = websocket.url.path == "/bot"
    await websocket.accept()
    kind, call = await parse_telephony_websocket(websocket)
    say(call={"kind": kind, **call.model_dump(mode="json")})
    no_hang_up = TwilioFrameSerializer.InputParams(auto_hang_up=False)
    serializer = TwilioFrameSerializer(call.stream_id, call.call_id, params=no_hang_up)
    params = FastAPIWebsocketParams(
        audio_in_enabled=True, audio_out_enabled=speaks, serializer=serializer
    )
    transport = FastAPIWebsocketTransport(websocket, params)
    answers = [Bot(), transport.output()] if speaks else []
    rates = PipelineParams(audio_in_sample_rate=8000, audio_out_sample_rate=8000)
    task = PipelineTask(Pipeline([transport.input(), Teller(), *answers]), params=rates)

    async def on_disconnected(*_: object) -> None:
        await task.cancel()

    transport.add_event_handler("on_client_disconnected", on_disconnected)
    await PipelineRunner(handle_sigint=False).run(task)
    say(ended=True)


async def main() -> None:
    """Serve until the process is ended."""
    logger.remove()
    listener = socket.create_server(("127.0.0.1", 0))
    say(port=listener.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", ws="websockets-sansio")
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
