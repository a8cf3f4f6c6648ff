"""Measures calls whose other party is a WebSocket server: delays, lost frames, clear, CPU.

    python -m bench.bots [--calls 10 50 100] [--seconds 60] [--tries 100]

A private Asterisk, the daemon as users run it, SIP calls that speak numbered blocks, with a pause
every few seconds as people make them, and a server process that sends them back and notes when each
came. So each way has its own delay; the way back has a prebuffer of 20 ms. All of it passes through
Asterisk and RTP: what they add themselves is seen in the same calls with Asterisk's own Echo(), in
which neither daemon nor server have a part. Callers and server stand for other machines, so they go
first where the system lets them (as root). The last number of calls lasts for all the seconds, the
others for 10. Then a server is interrupted, in its middle, so many times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import overload

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bench import measure
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, AsteriskFailed, AsteriskUnavailable
from testbed.blocks import FRAMES_PER_S, ULAW_BYTES, decode, make_blocks
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.progress import Telling, say
from testbed.sip import Call, SipUser

DIALPLAN = """
[testbed]
exten => _bot.,1,Answer()
 same => n,Gosub(audiofork,connect,1(${BOT_URL}${EXTEN},${BOT_OPTIONS}))
exten => _echo.,1,Answer()
 same => n,Echo()
"""
SHORT_S = 10
# All at once would make the server late with its first frames, and so heard late for good.
BETWEEN_CALLS_S = 0.0513  # and not all at the same moment of 20 ms
# After so long nothing counts any more that made frames late in the beginning.
SETTLE_S = 4.0
ON_ITS_WAY_S = 0.5
PHRASE, PAUSE = 5 * FRAMES_PER_S, FRAMES_PER_S  # in frames: what is said, and the silence after it
NICE = -15  # of the callers and the server
LATE_S = 0.040  # after the packet before; 20 ms are usual
SPEECH_BLOCKS = 150  # what the server that is interrupted says at a time
INTERRUPTED = 10  # calls at once
SILENCE = b"\xff" * ULAW_BYTES  # mu-law


# --- The server ---


class EchoServer:
    """Sends back what it gets, in a process of its own, and notes when each block came.

    Args:
        blocks: The blocks to be noted, as slin.
    """

    def __init__(self, blocks: Sequence[bytes]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, blocks), daemon=True
        )
        self._process.start()
        self.url = f"ws://127.0.0.1:{self._pipe.recv()}/"

    def take(self) -> dict[str, dict[int, float]]:
        """Return when each block came, by path and number, as time.monotonic(); forget it."""
        self._pipe.send("take")
        stamps: dict[str, dict[int, float]] = self._pipe.recv()
        return stamps

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, blocks: Sequence[bytes]) -> None:
    uvloop.run(_echo(pipe, {block: number for number, block in enumerate(blocks)}))


async def _echo(pipe: Connection, numbers: dict[bytes, int]) -> None:
    stamps: dict[str, dict[int, float]] = {}
    gc.disable()  # what it would look through is the stamps

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                now = time.monotonic()
                await connection.send(message)
                if isinstance(message, bytes) and (number := numbers.get(message)) is not None:
                    stamps.setdefault(path, {})[number] = now

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            await asyncio.to_thread(pipe.send, dict(stamps))
            stamps.clear()


# --- Calls that speak ---


class Speech(Sequence[bytes]):
    """Numbered payloads that note when each is fetched, just before it is sent.

    Before `begin` and between phrases they are silence, as of a phone that sends all the time.

    Attributes:
        sent: time.monotonic() of each, by its number.
    """

    def __init__(self, blocks: Sequence[bytes]) -> None:
        self._blocks = blocks
        self._fetched = 0
        self._first: int | None = None
        self.sent: dict[int, float] = {}

    def begin(self) -> None:
        """Let the payload that is fetched next be the first of those with a number."""
        self._first = self._fetched

    def __len__(self) -> int:
        if self._first is None:
            return sys.maxsize
        return self._first + len(self._blocks) + (len(self._blocks) - 1) // PHRASE * PAUSE

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        assert isinstance(index, int)
        self._fetched = index + 1
        if self._first is None or index < self._first:
            return SILENCE
        phrase, within = divmod(index - self._first, PHRASE + PAUSE)
        if within >= PHRASE:
            return SILENCE
        number = phrase * PHRASE + within
        self.sent[number] = time.monotonic()
        return self._blocks[number]


@dataclass
class Talk:
    """A call, what it says, and the server's path."""

    call: Call
    path: str
    speech: Speech


@dataclass(frozen=True)
class Delays:
    """Delays in ms, sorted."""

    ms: Sequence[float]

    def __str__(self) -> str:
        if not self.ms:
            return f"{'-':>6} {'-':>7} {'-':>7}"
        return f"{self._at(0.5):6.1f} {self._at(0.99):7.1f} {self._at(1.0):7.1f}"

    def _at(self, part: float) -> float:
        return self.ms[int(part * (len(self.ms) - 1))]

    @classmethod
    def between(cls, pairs: Sequence[tuple[float, float]]) -> Delays:
        return cls(sorted(1000 * (after - before) for before, after in pairs))


@dataclass(frozen=True)
class Row:
    """What became of the blocks of some calls that spoke at the same time.

    Attributes:
        there: From the caller to the server; `back`: from the server to the caller.
        round_trip: From the caller to himself.
        spoken: Blocks; `lost`: those that he never heard.
        late: Packets that came to him over LATE_S after the one before, until he heard the last.
        short: Packets of another length than 20 ms.
    """

    what: str
    there: Delays
    back: Delays
    round_trip: Delays
    spoken: int
    lost: int
    late: int
    short: int
    daemon_percent: float
    asterisk_percent: float


class Stage:
    """The parts."""

    def __init__(
        self, asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, seconds: int
    ) -> None:
        self._pids = asterisk.pid, daemon.pid
        self.ami = ami
        self._caller = caller
        self._blocks = make_blocks(seconds * FRAMES_PER_S, seed=90)
        self._numbers = {block: number for number, block in enumerate(self._blocks)}
        self.server = EchoServer([decode(block) for block in self._blocks])
        self._serial = itertools.count()

    async def point_to(self, url: str, options: str = "") -> None:
        """Let calls of bots go to a server."""
        for name, value in (("BOT_URL", url), ("BOT_OPTIONS", options)):
            await self.ami.action("Setvar", Variable=name, Value=value)

    async def call(self, kind: str) -> tuple[Call, str]:
        """Call an extension of this kind; return the call and the path of its server."""
        name = f"{kind}{next(self._serial)}"
        call = await self._caller.call(name, timeout_s=15)
        return call, f"/{name}"

    async def measured(self, kind: str, calls: int, seconds: int) -> Row:
        """Place calls, let them speak, hang them up; return what became of it."""
        blocks = self._blocks[: seconds * FRAMES_PER_S]
        talks, speaks = [], []
        for _ in range(calls):
            talk = Talk(*await self.call(kind), Speech(blocks))
            speaks.append(talk.call.play(talk.speech))
            talks.append(talk)
            await asyncio.sleep(BETWEEN_CALLS_S)
        gc.collect()
        gc.disable()  # a collection would make all that is sent meanwhile late
        # Looks through the threads of Asterisk: no time for that when the calls speak.
        before, began = [measure.cpu(pid) for pid in self._pids], time.monotonic()
        await asyncio.sleep(SETTLE_S)
        for talk in talks:
            talk.call.recording = True
            talk.speech.begin()
        await asyncio.gather(*speaks)
        await asyncio.sleep(ON_ITS_WAY_S)
        for talk in talks:  # before this process is busy with the results
            talk.call.recording = False
        gc.enable()
        span_s = time.monotonic() - began
        used = [
            100 * (measure.cpu(pid) - cpu).total_s / span_s
            for pid, cpu in zip(self._pids, before, strict=True)
        ]
        stamps = self.server.take()
        await asyncio.gather(*(one.call.hangup(10) for one in talks))
        return self._row(f"{calls} {kind}", talks, stamps, used)

    def _row(
        self,
        what: str,
        talks: Sequence[Talk],
        stamps: dict[str, dict[int, float]],
        used: Sequence[float],
    ) -> Row:
        there: list[tuple[float, float]] = []
        back: list[tuple[float, float]] = []
        trips: list[tuple[float, float]] = []
        late = short = 0
        for talk in talks:
            sent, came = talk.speech.sent, stamps.get(talk.path, {})
            heard = self._heard(talk.call)
            there += [(sent[number], at) for number, at in came.items()]
            back += [(came[number], at) for number, at in heard.items() if number in came]
            trips += [(sent[number], at) for number, at in heard.items()]
            packets = talk.call.received
            last = max(heard.values(), default=0.0)
            late += sum(
                b.at_s - a.at_s > LATE_S for a, b in itertools.pairwise(packets) if b.at_s <= last
            )
            short += sum(len(one.payload) != ULAW_BYTES for one in packets)
        spoken = sum(len(talk.speech.sent) for talk in talks)
        return Row(
            what=what,
            there=Delays.between(there),
            back=Delays.between(back),
            round_trip=Delays.between(trips),
            spoken=spoken,
            lost=spoken - len(trips),
            late=late,
            short=short,
            asterisk_percent=used[0],
            daemon_percent=used[1],
        )

    def _heard(self, call: Call) -> dict[int, float]:
        numbers = ((self._numbers.get(one.payload), one.at_s) for one in call.received)
        return {number: at_s for number, at_s in numbers if number is not None}


# --- A server that is interrupted ---


class Interruptions:
    """Interrupts servers in the middle of what they say.

    Attributes:
        silent: When `clear` was sent, and when the caller heard the last sound.
        answered: The same, and when the mark and `cleared` were there.
        unanswered: How often one of them did not come.
    """

    def __init__(self) -> None:
        self.silent: list[tuple[float, float]] = []
        self.answered: list[tuple[float, float]] = []
        self.unanswered = 0
        self._connections: dict[str, asyncio.Future[ServerConnection]] = {}
        self._speech = b"".join(decode(one) for one in make_blocks(SPEECH_BLOCKS, seed=92))

    async def handle(self, connection: ServerConnection) -> None:
        """Serve a connection until it is closed; `interrupt` speaks over it."""
        assert connection.request is not None
        self._connection(connection.request.path).set_result(connection)
        await connection.wait_closed()

    def _connection(self, path: str) -> asyncio.Future[ServerConnection]:
        new = asyncio.get_running_loop().create_future
        return self._connections.setdefault(path, new())

    async def interrupt(self, call: Call, path: str, tries: int) -> None:
        """Let the server of a call speak and be interrupted, again and again."""
        connection = await self._connection(path)
        call.recording = True
        call.talk()
        for number in range(tries):
            await connection.send(self._speech)
            await connection.send(json.dumps({"command": "mark", "name": str(number)}))
            await asyncio.sleep(0.5 + 0.007 * number)
            asked = time.monotonic()
            await connection.send('{"command": "clear"}')
            await self._wait_answer(connection, str(number), asked)
            await asyncio.sleep(0.3)
            sounds = [one.at_s for one in call.received if any(decode(one.payload))]
            self.silent.append((asked, max(sounds[-1], asked)))
            call.received.clear()

    async def _wait_answer(self, connection: ServerConnection, name: str, asked: float) -> None:
        wanted = {("mark", name), ("cleared", "")}
        try:
            async with asyncio.timeout(5):
                while wanted:
                    message = await connection.recv()
                    if isinstance(message, str):
                        told = json.loads(message)
                        wanted.discard((told["event"], told.get("name", "")))
        except TimeoutError:
            self.unanswered += 1
        else:
            self.answered.append((asked, time.monotonic()))


async def interrupted(stage: Stage, tries: int) -> bool:
    """Interrupt servers; print how soon they are silent; return whether all was answered."""
    all_of_it = Interruptions()
    async with serve(all_of_it.handle, "127.0.0.1", 0, compression=None) as server:
        await stage.point_to(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "x(json)")
        calls = [await stage.call("bot") for _ in range(INTERRUPTED)]
        await asyncio.gather(
            *(all_of_it.interrupt(*one, max(1, tries // INTERRUPTED)) for one in calls)
        )
        await asyncio.gather(*(call.hangup(10) for call, _ in calls))
    say(f"\n{len(all_of_it.silent)} times interrupted, {all_of_it.unanswered} without an answer")
    say("ms from `clear` to:                           p50     p99     max")
    say(f"the last sound that the caller hears       {Delays.between(all_of_it.silent)}")
    say(f"mark and `cleared` at the server           {Delays.between(all_of_it.answered)}")
    return not all_of_it.unanswered


# --- The program ---

HEAD = f"""
ms                to the server           back from it            round trip              \
blocks    lost   late  short  CPU % of a core
{"calls":<10} {"p50":>6} {"p99":>7} {"max":>7}  {"p50":>6} {"p99":>7} {"max":>7}  \
{"p50":>6} {"p99":>7} {"max":>7}  {"":24} daemon  Asterisk"""


def show(row: Row) -> None:
    """Print a row of the table."""
    say(
        f"{row.what:<10} {row.there}  {row.back}  {row.round_trip} {row.spoken:8} {row.lost:6} "
        f"{row.late:6} {row.short:5} {row.daemon_percent:8.1f} {row.asterisk_percent:9.1f}"
    )


@contextlib.asynccontextmanager
async def staged(seconds: int) -> AsyncIterator[Stage]:
    """Set everything up."""
    with contextlib.ExitStack() as stack:
        config = {"manager.conf": manager_conf()}
        asterisk = stack.enter_context(Asterisk(dialplan=DIALPLAN + dialplan(), config=config))
        daemon = stack.enter_context(Daemon(asterisk))
        async with (
            AmiClient(asterisk) as ami,
            SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
        ):
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, NICE)  # the server's process inherits it
            stage = Stage(asterisk, daemon, ami, caller, seconds)
            stack.callback(stage.server.close)
            yield stage


async def run(options: argparse.Namespace) -> int:
    """Measure and print; return 0 if each interruption was answered."""
    async with staged(max(SHORT_S, options.seconds)) as stage:
        rows = []
        for calls in options.calls:
            last = calls == options.calls[-1]
            for kind in ("echo", "bot"):
                seconds = options.seconds if last and kind == "bot" else SHORT_S
                await stage.point_to(stage.server.url)
                what = f"{calls} {kind} calls for {seconds} s"
                with Telling(partial(str, what)):
                    rows.append(await stage.measured(kind, calls, seconds))
        say(HEAD)
        for row in rows:
            show(row)
        return 0 if await interrupted(stage, options.tries) else 1


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What calls with a server cost and delay.")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--seconds", type=int, default=60, help="how long the last of them speak")
    parser.add_argument("--tries", type=int, default=100, help="interruptions")
    try:
        sys.exit(uvloop.run(run(parser.parse_args())))
    except (AsteriskUnavailable, AsteriskFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
