"""A WebSocket server that turns forks into text while they run, and sends each text back.

    python transcribe.py --listen 127.0.0.1:8080 --engine pocketsphinx

Each party of a call gets a recogniser in a process of its own: recognition takes much CPU time, and
pocketsphinx lets no other thread run meanwhile. A recogniser that is slower than the speech loses
the oldest audio, which is counted; nobody else waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

BYTES_PER_S = 8000 * 2  # signed 16-bit little-endian samples at 8000 Hz
PAIR_BYTES = 640  # 20 ms of stereo, in left, out right; mono has 320
MAX_WAITING_BYTES = 10 * BYTES_PER_S
MAX_FEED_BYTES = BYTES_PER_S  # to a recogniser at once
TELEPHONE_MEAN = "51,12,3,9,6,-6,-2,1,0,-1,-7,-1,-2"  # cepstral mean of speech at 8 kHz
MAX_UTTERANCE_S = 15.0  # who speaks longer without a pause is cut here
PARTIAL_INTERVAL_S = 1.0  # what is not final yet is shown no more often
MAX_TEXT_BYTES = 900  # as much as AUDIOFORK_RESPONSE takes


class Engine(Protocol):
    """A speech recogniser for one party; `--engine module:Class` names another one."""

    def feed(self, pcm: bytes) -> list[str]:
        """Take audio, any length of whole samples; return the texts that became final."""

    def partial(self) -> str:
        """Return what is understood of the speech that goes on; empty in a pause."""

    def finish(self) -> list[str]:
        """Return the texts that are left at the end."""


class PocketSphinx:
    """CMU PocketSphinx with the English model that comes with it."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder, Endpointer

        # The model is for 16 kHz, and expects a wideband voice until it has heard some seconds.
        self._decoder = Decoder(samprate=16000.0, loglevel="FATAL", cmninit=TELEPHONE_MEAN)
        self._endpointer = Endpointer(sample_rate=8000)
        self._rest = b""
        self._last = 0
        self._speech_s = 0.0  # of the utterance

    def feed(self, pcm: bytes) -> list[str]:
        texts = []
        audio, size = self._rest + pcm, self._endpointer.frame_bytes
        whole = len(audio) - len(audio) % size
        for start in range(0, whole, size):
            speech = self._endpointer.process(audio[start : start + size])
            if speech is not None:
                texts += self._take(speech, final=not self._endpointer.in_speech)
        self._rest = audio[whole:]
        return texts

    def _take(self, speech: bytes, *, final: bool) -> list[str]:
        if not self._speech_s:
            self._decoder.start_utt()
        self._speech_s += len(speech) / BYTES_PER_S
        self._decoder.process_raw(self._doubled(speech))
        return self._end() if final or self._speech_s > MAX_UTTERANCE_S else []

    def _doubled(self, pcm: bytes) -> bytes:
        """Return the audio at 16 kHz, interpolated."""
        samples = array("h", pcm)
        doubled = array("h", bytes(2 * len(pcm)))
        doubled[1::2] = samples
        previous = array("h", [self._last]) + samples
        doubled[0::2] = array("h", ((a + b) // 2 for a, b in zip(previous, samples, strict=False)))
        self._last = samples[-1]
        return doubled.tobytes()

    def _end(self) -> list[str]:
        self._decoder.end_utt()
        self._speech_s = 0.0
        return self._text()

    def _text(self) -> list[str]:
        hypothesis = self._decoder.hyp()
        return [hypothesis.hypstr] if hypothesis is not None and hypothesis.hypstr else []

    def partial(self) -> str:
        return "".join(self._text()) if self._speech_s else ""

    def finish(self) -> list[str]:
        return self._end() if self._speech_s else []


# --- In the process of a recogniser --------------------------------------------------------------

_engine: Engine


def _begin(name: str) -> None:
    global _engine
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us
    threading.Thread(target=_end_with_server, daemon=True).start()
    _engine = engine_class(name)()


def _end_with_server() -> None:
    """End also if the server was killed."""
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _feed(pcm: bytes) -> tuple[list[str], str]:
    return _engine.feed(pcm), _engine.partial()


def _finish() -> tuple[list[str], str]:
    return _engine.finish(), ""


def engine_class(name: str) -> Callable[[], Engine]:
    """Return the class that `--engine` names.

    Raises:
        ImportError, AttributeError, ValueError: There is none.
    """
    if name == "pocketsphinx":
        importlib.import_module("pocketsphinx")
        return PocketSphinx
    module, class_name = name.split(":")
    found: Callable[[], Engine] = getattr(importlib.import_module(module), class_name)
    return found


# --- In the server -------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Party:
    """One party of a call: its audio on the way to a recogniser, its texts on the way back."""

    def __init__(self, label: str, prefix: str, engine: str, connection: ServerConnection) -> None:
        self._label = label
        self._prefix = prefix
        self._connection = connection
        self._waiting = bytearray()
        self._news = asyncio.Event()
        self._ended = False
        self._next_partial = 0.0
        self.dropped_bytes = 0
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(engine,))

    def add(self, pcm: bytes) -> None:
        """Take audio; never waits."""
        self._waiting += pcm
        excess = len(self._waiting) - MAX_WAITING_BYTES
        if excess > 0:
            before = self.dropped_bytes // BYTES_PER_S
            del self._waiting[:excess]
            self.dropped_bytes += excess
            if self.dropped_bytes // BYTES_PER_S > before:  # once for each second that is lost
                say(f"{self._label} too slow: {self.dropped_bytes / BYTES_PER_S:.0f} s dropped")
        self._news.set()

    def end(self) -> None:
        """No more audio will come."""
        self._ended = True
        self._news.set()

    async def run(self) -> None:
        """Recognise what comes, up to its end."""
        try:
            while self._waiting or not self._ended:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    pcm = bytes(self._waiting[:MAX_FEED_BYTES])
                    del self._waiting[:MAX_FEED_BYTES]
                    await self._tell(functools.partial(_feed, pcm))
            await self._tell(_finish)
        except BrokenProcessPool:
            say(f"{self._label} its recogniser ended unexpectedly")
            await self._connection.close(1011, "recogniser")
        finally:
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    async def _tell(self, work: Callable[[], tuple[list[str], str]]) -> None:
        texts, partial = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        for text in texts:
            line = self._prefix + " ".join(text.split())
            say(f"{self._label} {line}")
            with contextlib.suppress(ConnectionClosed):  # the last text comes after the end
                await self._connection.send(line.encode()[:MAX_TEXT_BYTES].decode(errors="ignore"))
        if partial and time.monotonic() >= self._next_partial:
            say(f"{self._label} {self._prefix}{partial} ...")
            self._next_partial = time.monotonic() + PARTIAL_INTERVAL_S


class Transcriber:
    """The handler of connections.

    Args:
        engine: As for `engine_class`.
        max_forks: How many to serve at once; others are told to come back later.
    """

    def __init__(self, engine: str, max_forks: int) -> None:
        self._engine = engine
        self._max_forks = max_forks
        self._forks = 0

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one fork."""
        if self._forks >= self._max_forks:
            await connection.close(1013, "all recognisers are busy")
            return
        self._forks += 1
        try:
            await self._serve(connection)
        finally:
            self._forks -= 1

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        url = urlsplit(connection.request.path)
        label = ascii(url.path)[1:-1]
        channels = parse_qs(url.query).get("channels", [""])[0]
        parties: list[Party] = []
        async with asyncio.TaskGroup() as recognition:
            say(f"{label} began")
            with contextlib.suppress(ConnectionClosed):
                async for message in connection:
                    if isinstance(message, str) or not message:
                        continue
                    if not parties:
                        stereo = channels == "2" or (not channels and len(message) == PAIR_BYTES)
                        for prefix in ["in: ", "out: "] if stereo else [""]:
                            parties.append(Party(label, prefix, self._engine, connection))
                            recognition.create_task(parties[-1].run())
                    pass_on(message, parties)
            for party in parties:
                party.end()
        say(f"{label} ended")


def pass_on(message: bytes, parties: list[Party]) -> None:
    """Give each party its samples; a part of a sample at the end is cut off."""
    width = 2 * len(parties)
    samples = array("h", message[: len(message) - len(message) % width])
    for number, party in enumerate(parties):
        party.add(samples[number :: len(parties)].tobytes())


async def main(host: str, port: int, engine: str, max_forks: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    handle = Transcriber(engine, max_forks).handle
    async with serve(handle, host, port, compression=None, max_size=65536) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        say(f"listening on ws://{host}:{port}/, at most {max_forks} forks")
        await stop.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turns forks into text.")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--engine", default="pocketsphinx", metavar="pocketsphinx|MODULE:CLASS")
    parser.add_argument("--max-forks", type=int, default=4 * (os.cpu_count() or 1))
    given = parser.parse_args()
    given.host, _, port = given.listen.rpartition(":")
    if not port.isdigit():
        parser.error("--listen: expected HOST:PORT")
    given.port = int(port)
    try:
        engine_class(given.engine)
    except (ImportError, AttributeError, ValueError) as exc:
        parser.error(f"--engine {given.engine}: {exc}")
    return given


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())  # where an engine of your own may be
    chosen = arguments()
    try:
        asyncio.run(main(chosen.host, chosen.port, chosen.engine, chosen.max_forks))
    except OSError as exc:
        sys.exit(f"cannot listen on {chosen.listen}: {exc.strerror}; choose with --listen")
