"""A bot that owns a call: it understands some questions, answers, and lets its caller break in.

    python bot.py --port 8090

It needs no network: PocketSphinx hears, espeak-ng speaks. The call's options are x(json).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import shlex
import time
import wave

import numpy
import soxr
from pocketsphinx import Decoder, Endpointer, Vad
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

RATE = 8000  # in Hz, of the fork; PocketSphinx's English model is for twice as much
MEAN = "51,12,3,9,6,-6,-2,1,0,-1,-7,-1,-2"  # cepstral mean of speech over the telephone
BARGE_IN_FRAMES = 3  # of 30 ms, one after the other, with a voice in them

GREETING, GOODBYE = "Hello. Ask me how I am, for a story, or for the time.", "goodbye"
ANSWERS = {
    "how are you today": "I am fine, thank you.",
    "what is the time": "It is {time}.",
    "tell me a story": "Once upon a time there was a telephone exchange that everybody liked. All "
    "day long it put people through to each other, and at night it counted the calls, from the "
    "first one to the last one, and was content. One day somebody asked it how it was.",
    GOODBYE: "Goodbye.",
}
GRAMMAR = f"#JSGF V1.0;\ngrammar questions;\npublic <question> = {' | '.join(ANSWERS)};\n"


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


class Ears:
    def __init__(self) -> None:
        self._decoder = Decoder(samprate=2.0 * RATE, lm=None, loglevel="FATAL", cmninit=MEAN)
        self._decoder.add_jsgf_string("questions", GRAMMAR)
        self._decoder.activate_search("questions")
        self._endpointer = Endpointer(sample_rate=RATE)
        self._vad = Vad(sample_rate=RATE)
        self._rest = b""
        self._voiced = 0
        self._in_utterance = False

    def hear(self, samples: bytes) -> tuple[bool, list[str]]:
        """Return whether somebody has just begun to speak, and questions; "" is not understood."""
        began, asked = False, []
        audio, size = self._rest + samples, self._endpointer.frame_bytes
        whole = len(audio) - len(audio) % size
        for start in range(0, whole, size):
            frame = audio[start : start + size]
            self._voiced = self._voiced + 1 if self._vad.is_speech(frame) else 0
            began |= self._voiced == BARGE_IN_FRAMES
            if (speech := self._endpointer.process(frame)) is not None:
                asked += self._decode(speech)
        self._rest = audio[whole:]
        return began, asked

    def _decode(self, speech: bytes) -> list[str]:
        if not self._in_utterance:
            self._decoder.start_utt()
        samples = numpy.frombuffer(speech, "<i2")
        doubled = numpy.interp(numpy.arange(0, len(samples), 0.5), range(len(samples)), samples)
        self._decoder.process_raw(doubled.astype("<i2").tobytes())
        self._in_utterance = self._endpointer.in_speech
        if self._in_utterance:
            return []
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return [hypothesis.hypstr if hypothesis is not None else ""]


class Bot:
    """One call; `espeak` is the command that runs espeak-ng."""

    def __init__(self, connection: ServerConnection, espeak: list[str]) -> None:
        self._connection = connection
        self._espeak = espeak
        self._ears = Ears()

    async def run(self) -> None:
        await self._speak(GREETING)
        async for message in self._connection:
            if isinstance(message, bytes):
                await self._listen(message)
            elif json.loads(message)["event"] == "mark":
                await self._connection.close()  # the goodbye was heard; the dialplan goes on

    async def _listen(self, samples: bytes) -> None:
        began, asked = self._ears.hear(samples)
        if began:
            say("the caller speaks")
            await self._connection.send('{"command": "clear"}')
        for question in asked:
            say(f"asked: {question or 'nothing that I understand'}")
            answer = ANSWERS.get(question, "Please say that again.")
            heard = f"You said: {question}. " if question else ""
            await self._speak(heard + answer.format(time=time.strftime("%H %M")))
            if question == GOODBYE:
                await self._connection.send('{"command": "mark", "name": "goodbye"}')

    async def _speak(self, text: str) -> None:
        """Send speech, faster than it is spoken: it waits at the other end."""
        pipe = asyncio.subprocess.PIPE
        command = [*self._espeak, "-v", "en-us", "-s", "140", "--stdin", "--stdout"]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        spoken, _ = await process.communicate(text.encode())
        with wave.open(io.BytesIO(spoken)) as file:
            samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
            audio = soxr.resample(samples, file.getframerate(), RATE)
        await self._connection.send(audio.tobytes())  # 1 MiB at most: a minute


async def main(host: str, port: int, espeak: list[str]) -> None:
    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            start = json.loads(await connection.recv())
            if start["audio"]["sample_rate"] != RATE:
                await connection.close(1008, f"this bot is for {RATE} Hz")
            say("a call begins")
            await Bot(connection, espeak).run()
        say("the call is over")

    async with serve(handle, host, port, compression=None) as server:
        say(f"listening on ws://{host}:{next(iter(server.sockets)).getsockname()[1]}/")
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answers some questions in a call.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8090, type=int)
    parser.add_argument("--espeak", default="espeak-ng", metavar="COMMAND")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(given.host, given.port, shlex.split(given.espeak)))
