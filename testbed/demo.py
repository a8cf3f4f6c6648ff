"""A call, three forks of it, three WAV files: what audiofork does, in half a minute.

    python -m testbed.demo

Starts a private Asterisk, the daemon and `audiofork receive`, places a call between two phones
that speak, and names the recordings, in ./recordings. Exit code 0 only if each one holds speech.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import wave
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from audiofork.commands.receiver import dbfs, peaks_of
from testbed.asterisk import (
    Asterisk,
    AsteriskFailed,
    AsteriskUnavailable,
    Installation,
    find_installation,
)
from testbed.daemon import Daemon, ari_conf, ari_settings, dialplan, manager_conf
from testbed.progress import Telling, say
from testbed.rtp import ULAW
from testbed.sip import Call, SipError, SipUser

RECORDINGS = Path("recordings")

CALL_S = 8.5
SHORTEST_S = 0.9 * CALL_S  # the three forks start one after the other, before anybody speaks
SPEECH_DBFS = -40.0  # the prompts peak above -12, an empty line is far below
ATTEMPT_S = 10.0  # for each step that usually takes a fraction of a second

# Prompts of asterisk-core-sounds-en; the caller speaks first, then the callee.
CALLER_SAYS = ("tt-weasels",)
CALLEE_SAYS = ("queue-youarenext",)
CALLEE_WAITS_S = 3.0

SILENCE = b"\xff" * ULAW.frame_bytes
PTIME_S = 0.020

# What is asked of each fork: option D, then what it holds, channel by channel.
FORKS = {
    "in": ("what the caller says",),
    "out": ("what the caller hears: the callee",),
    "stereo": ("both: in on the left", "out on the right"),
}

DIALPLAN = """
[testbed]
exten => demo,1,Answer()
 same => n,Gosub(audiofork,start,1({url}in,D(in)))
 same => n,Gosub(audiofork,start,1({url}out,D(out)))
 same => n,Gosub(audiofork,start,1({url}stereo,D(stereo)))
 same => n,Dial({callee})
"""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT


class DemoFailed(Exception):
    """A step of the demo failed; the text says what."""


@dataclass(frozen=True)
class Speech:
    """The u-law payloads of 20 ms that the two phones send, silence included."""

    caller: list[bytes]
    callee: list[bytes]


# --- The parts -----------------------------------------------------------------------------------


class Program:
    """A Python program as a process, whose lines are passed on to the console.

    Args:
        name: As it is called here.
        arguments: Of Python.

    Attributes:
        url: Where it listens, which its first line says; empty until it does.
    """

    def __init__(self, name: str, *arguments: str) -> None:
        self.url = ""
        self._name = name
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(ATTEMPT_S):
            said = await self._read()
        listening = re.search(r"listening on (ws://\S+/)", said)
        if listening is None:
            raise DemoFailed(f"{self._name} did not start: {said}")
        self.url = listening[1]
        self._echo = asyncio.create_task(self._pass_on())

    async def _read(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def _pass_on(self) -> None:
        while line := await self._read():
            say(f"    {line}")
            self.on_line(line)

    def on_line(self, line: str) -> None:
        """Look at a line that it has said."""

    async def stop(self) -> None:
        """End it; all it said is passed on."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self.url:
            await self._echo


class Receiver(Program):
    """`audiofork receive` on a free port, for so many forks."""

    def __init__(self, forks: int) -> None:
        arguments = ("--listen", "127.0.0.1:0", "--directory", str(RECORDINGS))
        super().__init__("`audiofork receive`", "-m", "audiofork", "receive", *arguments)
        self._forks = forks
        self._ended = asyncio.Semaphore(0)

    def on_line(self, line: str) -> None:
        if ": ended, " in line:
            self._ended.release()

    async def wait_ended(self) -> None:
        """Wait until all forks have ended and their files are complete, or never came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ATTEMPT_S):
                for _ in range(self._forks):
                    await self._ended.acquire()


ProgramT = TypeVar("ProgramT", bound=Program)


@contextlib.asynccontextmanager
async def running(program: ProgramT) -> AsyncIterator[ProgramT]:
    """Run a program; it ends in any case."""
    try:
        await program.start()
        yield program
    finally:
        await program.stop()


def tell_of_the_fetch() -> None:
    """Show the progress of the download of Asterisk on the console."""
    shown = logging.StreamHandler(sys.stdout)
    shown.setFormatter(logging.Formatter("  %(message)s"))
    for name in ("testbed.asterisk", "testbed.debian"):
        logging.getLogger(name).addHandler(shown)
        logging.getLogger(name).setLevel(logging.INFO)


def speech(asterisk: Asterisk) -> Speech:
    """Return what the phones say, of the same length each."""
    caller = prompts(asterisk, CALLER_SAYS)
    callee = [SILENCE] * round(CALLEE_WAITS_S / PTIME_S) + prompts(asterisk, CALLEE_SAYS)
    length = round(CALL_S / PTIME_S)
    return Speech(*((payloads + [SILENCE] * length)[:length] for payloads in (caller, callee)))


def prompts(asterisk: Asterisk, names: Sequence[str]) -> list[bytes]:
    """Return prompts, one after the other, as u-law payloads of 20 ms."""
    audio = b"".join(prompt(asterisk, name) for name in names)
    size = ULAW.frame_bytes
    return [audio[i : i + size].ljust(size, b"\xff") for i in range(0, len(audio), size)]


def prompt(asterisk: Asterisk, name: str) -> bytes:
    """Return a prompt as u-law at 8000 Hz.

    Raises:
        DemoFailed: This Asterisk does not have it.
    """
    sounds = asterisk.installation.prompts
    for file in sorted(sounds.glob(f"{name}.*")):
        with tempfile.TemporaryDirectory() as folder:
            converted = Path(folder, f"{name}.ulaw")
            # Asterisk knows all the formats that its packages of sounds come in.
            asterisk.cli(f"file convert {file} {converted}")
            if converted.exists():
                return converted.read_bytes()
    raise DemoFailed(f"no prompt {name} in {sounds}: install asterisk-core-sounds-en")


# --- The call ------------------------------------------------------------------------------------


async def demo(installation: Installation) -> None:
    """Run the whole demo.

    Raises:
        DemoFailed: A recording is missing or silent, or there is no call.
    """
    before = recordings()
    async with running(Receiver(len(FORKS))) as receiver:
        lines = DIALPLAN.format(url=receiver.url, callee=installation.callee)
        with asterisk_and_daemon(installation, lines) as asterisk:
            explain(lines)
            await place_call(asterisk, speech(asterisk))
            await receiver.wait_ended()
            found = conclude(recordings() - before, FORKS, SHORTEST_S)
            say(f"\nListen:  play {found['stereo']}   (sox; or aplay, ffplay, any audio player)")
            say("Stopping Asterisk and the daemon ...")


@contextlib.contextmanager
def asterisk_and_daemon(installation: Installation, lines: str) -> Iterator[Asterisk]:
    """Run a private Asterisk with a dialplan, and the daemon beside it.

    Raises:
        DemoFailed: The call fails; with the daemon's log.
    """
    with contextlib.ExitStack() as stack:
        with Telling(lambda: "still starting") as telling:
            telling.say(f"Starting a private Asterisk {installation.version} ...")
            asterisk = stack.enter_context(private_asterisk(installation, lines))
            telling.say("Starting the daemon, audiofork run ...")
            daemon = Daemon(asterisk, {"ari": ari_settings(asterisk)})
            stack.push(daemon)  # before the start, which may fail half-way
            daemon.start()
        try:
            yield asterisk
        except (SipError, TimeoutError, DemoFailed) as exc:
            what = str(exc) or "no call came about in time"
            raise DemoFailed(f"{what}\n\nThe daemon said:\n{daemon.log()}") from exc


def private_asterisk(installation: Installation, lines: str) -> Asterisk:
    """Return an Asterisk, not started, with the files that audiofork comes with."""
    config = {"manager.conf": manager_conf(installation.version), "ari.conf": ari_conf()}
    return Asterisk(installation, dialplan=lines + dialplan(), config=config)


def explain(lines: str) -> None:
    """Show the dialplan, and say what will be seen."""
    said = lines.strip().partition("\n")[2]
    say(f"\nA caller dials `demo`. The dialplan:\n\n{textwrap.indent(said, '    ')}")
    say(
        "\nThe caller's channel gets three forks, each to a WebSocket server: here "
        "`audiofork receive`,\nwhich shows the peak of each second, from -60 dBFS (no bar) to 0 "
        f"(full).\nFor {CALLEE_WAITS_S:g} s the caller speaks, then the callee.\n"
    )


async def place_call(asterisk: Asterisk, said: Speech) -> None:
    server = ("127.0.0.1", asterisk.sip_port)
    async with (
        SipUser("callee", server, answer=True) as callee,
        SipUser("caller", server) as caller,
    ):
        await callee.register()
        call = await caller.call("demo", timeout_s=ATTEMPT_S)
        # A phone sends all the time: the fork `in` waits for the party's first audio.
        waiting = call.play([SILENCE], loop=True)
        answered = await callee.incoming(ATTEMPT_S)
        waiting.cancel()
        await talk(call, answered, said)
        await call.hangup()


async def talk(call: Call, answered: Call, said: Speech) -> None:
    """Let both phones speak at once; one that is hung up early is a failure."""
    await asyncio.gather(call.play(said.caller), answered.play(said.callee))
    if call.ended.is_set():
        raise DemoFailed("the call was hung up before its end")


# --- The recordings ------------------------------------------------------------------------------


def recordings() -> set[Path]:
    return set(RECORDINGS.glob("*.wav"))


def conclude(
    new: set[Path], forks: Mapping[str, Sequence[str]], shortest_s: float
) -> dict[str, Path]:
    """Name the recordings and what is in them; return them by the name of their fork.

    Args:
        new: Those of the demo.
        forks: What each fork holds, channel by channel.
        shortest_s: How long each has to be.

    Raises:
        DemoFailed: One is missing, too short or silent.
    """
    say("\nThe call is over; these are its recordings:\n")
    found = {name: recording(name, new) for name in forks}
    for name, path in found.items():
        for line in described(path, forks[name], shortest_s):
            say(f"    {line}")
    return found


def recording(name: str, new: set[Path]) -> Path:
    """Return the recording of a fork."""
    for path in new:
        if re.fullmatch(rf"\d+-\d+-{name}(-\d+)?\.wav", path.name):
            return path
    raise DemoFailed(f"the fork `{name}` left no recording in {RECORDINGS}")


def described(path: Path, holds: Sequence[str], shortest_s: float) -> list[str]:
    """Return a line for each channel of a recording; see `conclude`.

    Raises:
        DemoFailed: It is not what it should be.
    """
    with wave.open(str(path)) as file:
        channels, duration_s = file.getnchannels(), file.getnframes() / file.getframerate()
        audio = file.readframes(file.getnframes())
    if duration_s < shortest_s:
        raise DemoFailed(f"{path}: expected {shortest_s:g} s or more, got {duration_s:.1f} s")
    if channels != len(holds):
        raise DemoFailed(f"{path}: expected {len(holds)} channels, got {channels}")
    levels_dbfs = [dbfs(peak) for peak in peaks_of(audio, channels)]
    if min(levels_dbfs) < SPEECH_DBFS:
        raise DemoFailed(f"{path} is silent: peak {min(levels_dbfs):.1f} dBFS")
    width = len(str(RECORDINGS / "20260131-142501-stereo.wav"))
    head = f"{path!s:<{width}}  {duration_s:4.1f} s"
    heads = [head, " " * len(head)]
    return [
        f"{head}  {level:5.1f} dBFS  {what}"
        for head, level, what in zip(heads, levels_dbfs, holds, strict=False)
    ]


def main(shown: Callable[[Installation], Coroutine[None, None, None]]) -> int:
    """Run a demo; return its exit code."""
    # A stop by another process or a closed terminal is cleaned up after like a Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        say("Looking for Asterisk; the first time it is fetched, which takes a minute ...")
        tell_of_the_fetch()
        installation = find_installation()
        asyncio.run(shown(installation))
    except KeyboardInterrupt:
        say("\nInterrupted; nothing is left running.")
        return EXIT_INTERRUPTED
    except (DemoFailed, AsteriskUnavailable, AsteriskFailed, RuntimeError, OSError) as exc:
        print(f"\nThe demo failed: {exc}", file=sys.stderr)
        return EXIT_FAILED
    say("Nothing is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main(demo))
