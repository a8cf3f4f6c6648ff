"""Stand-ins for speech services: each checks what the service's public document demands.

Where the facts come from is said in the service's file in etc/profiles. A stand-in sends its last
result after the closing text, as the services do, and needs a moment for it.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

KEY = "k3y-4711"
WORK_S = 0.1
RATE_HZ = 8000
LAST = "the last words"


class Fault(Exception):
    """The client has not done what the document demands."""


class SpeechService:
    """A service on 127.0.0.1, which takes one connection after the other.

    Attributes:
        name: Of its file in etc/profiles, and of the profile in it.
        origin: Scheme and host, as in that file.
        port: Where the stand-in listens.
        faults: What a client did wrong.
        audio_ms: How much audio has come.
        close_code: What the client closed the last connection with.
    """

    name: ClassVar[str]
    origin: ClassVar[str]
    path: ClassVar[str] = "/"
    query: ClassVar[dict[str, str]] = {}
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.port = 0
        self.faults: list[str] = []
        self.audio_ms = 0
        self.close_code: int | None = None
        self._changed = asyncio.Event()
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._handle, "127.0.0.1", 0, process_request=self._check_request, compression=None
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def heard(self, audio_ms: int) -> None:
        """Wait until so much audio has come, or the client has done something wrong."""
        async with asyncio.timeout(10):
            while self.audio_ms < audio_ms and not self.faults:
                self._changed.clear()
                await self._changed.wait()

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        for name, value in self.headers.items():
            if request.headers.get_all(name) != [value]:
                return self._refuse(connection, HTTPStatus.UNAUTHORIZED, f"header {name}")
        if parts.path != self.path or not self.query.items() <= query.items():
            return self._refuse(connection, HTTPStatus.BAD_REQUEST, f"request {request.path}")
        return None

    def _refuse(self, connection: ServerConnection, status: HTTPStatus, why: str) -> Response:
        self._note(why)
        return connection.respond(status, why)

    def _note(self, fault: str) -> None:
        self.faults.append(fault)
        self._changed.set()

    async def _handle(self, connection: ServerConnection) -> None:
        try:
            await self.serve(connection)
        except Fault as exc:
            self._note(str(exc))
            await connection.close(1008, str(exc))
        except ConnectionClosed as exc:
            self._note(f"connection closed too early: {exc}")
        except ValueError as exc:
            self._note(f"no JSON: {exc}")
        self.close_code = connection.close_code

    async def serve(self, connection: ServerConnection) -> None:
        """Serve a connection; raise Fault where the client does something wrong."""
        raise NotImplementedError

    def take(self, audio: bytes) -> int:
        """Count a message of audio; return how many milliseconds it has."""
        if not audio or len(audio) % 2:
            raise Fault(f"{len(audio)} bytes of audio")
        audio_ms = len(audio) * 500 // RATE_HZ
        self.audio_ms += audio_ms
        self._changed.set()
        return audio_ms


async def _say(connection: ServerConnection, **what: Any) -> None:
    await connection.send(json.dumps(what))


def _demand(got: object, expected: object) -> None:
    if got != expected:
        raise Fault(f"got {got!r}, expected {expected!r}")


class Vosk(SpeechService):
    name = "vosk"
    origin = "ws://127.0.0.1:2700"

    async def serve(self, connection: ServerConnection) -> None:
        _demand(json.loads(await connection.recv()), {"config": {"sample_rate": RATE_HZ}})
        while isinstance(message := await connection.recv(), bytes):
            self.take(message)
            await _say(connection, partial="")
        _demand(message, '{"eof" : 1}')  # the server compares it so
        await asyncio.sleep(WORK_S)
        await _say(connection, result=[], text=LAST)


class Deepgram(SpeechService):
    name = "deepgram"
    origin = "wss://api.deepgram.com"
    path = "/v1/listen"
    query: ClassVar[dict[str, str]] = {
        "encoding": "linear16",
        "sample_rate": str(RATE_HZ),
        "channels": "1",
        "model": "nova-3",
    }
    headers: ClassVar[dict[str, str]] = {"Authorization": f"Token {KEY}"}

    async def serve(self, connection: ServerConnection) -> None:
        while isinstance(message := await connection.recv(), bytes):
            self.take(message)
        _demand(json.loads(message), {"type": "CloseStream"})
        await asyncio.sleep(WORK_S)
        await _say(connection, type="Results", is_final=True, transcript=LAST)
        await _say(connection, type="Metadata")


class AssemblyAI(SpeechService):
    name = "assemblyai"
    origin = "wss://streaming.assemblyai.com"
    path = "/v3/ws"
    query: ClassVar[dict[str, str]] = {
        "encoding": "pcm_s16le",
        "sample_rate": str(RATE_HZ),
        "speech_model": "universal-streaming-english",
    }
    headers: ClassVar[dict[str, str]] = {"Authorization": KEY}

    async def serve(self, connection: ServerConnection) -> None:
        await _say(connection, type="Begin")
        while isinstance(message := await connection.recv(), bytes):
            if not 50 <= (audio_ms := self.take(message)) <= 1000:
                raise Fault(f"a message of {audio_ms} ms")
        _demand(json.loads(message), {"type": "Terminate"})
        await asyncio.sleep(WORK_S)
        await _say(connection, type="Turn", end_of_turn=True, transcript=LAST)
        await _say(connection, type="Termination")


class Speechmatics(SpeechService):
    name = "speechmatics"
    origin = "wss://eu.rt.speechmatics.com"
    path = "/v2/"
    headers: ClassVar[dict[str, str]] = {"Authorization": f"Bearer {KEY}"}

    async def serve(self, connection: ServerConnection) -> None:
        start = json.loads(await connection.recv())
        _demand(start["message"], "StartRecognition")
        audio = {"type": "raw", "encoding": "pcm_s16le", "sample_rate": RATE_HZ}
        _demand(start["audio_format"], audio)
        _demand(start["transcription_config"]["language"], "en")
        await self._start(connection)
        count = 0
        while isinstance(message := await connection.recv(), bytes):
            self.take(message)
            count += 1
            await _say(connection, message="AudioAdded", seq_no=count)
        _demand(json.loads(message), {"message": "EndOfStream", "last_seq_no": count})
        await asyncio.sleep(WORK_S)
        await _say(connection, message="AddTranscript", metadata={"transcript": LAST})
        await _say(connection, message="EndOfTranscript")
        await connection.wait_closed()

    async def _start(self, connection: ServerConnection) -> None:
        """Take a while to start, and see that nothing is sent meanwhile."""
        try:
            async with asyncio.timeout(10 * WORK_S):
                message = await connection.recv()
        except TimeoutError:
            await _say(connection, message="RecognitionStarted", id="1")
        else:
            raise Fault(f"{len(message)} bytes before RecognitionStarted")


SERVICES: tuple[type[SpeechService], ...] = (Vosk, Deepgram, AssemblyAI, Speechmatics)
