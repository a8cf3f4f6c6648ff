"""A call to a bot that needs no network, and that its caller cuts off, in half a minute.

    python -m testbed.demo_bot

Starts a private Asterisk, the daemon, `audiofork receive` and examples/voice-bot, has a phone call
the bot, and names the recordings, in ./recordings. Exit code 0 only if the bot has understood its
caller and fell silent when the caller spoke.
"""

from __future__ import annotations

import asyncio
import audioop
import importlib.util
import io
import shlex
import subprocess
import sys
import textwrap
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import soxr

from testbed.asterisk import Asterisk, Installation
from testbed.demo import (
    ATTEMPT_S,
    PTIME_S,
    SILENCE,
    DemoFailed,
    Program,
    Receiver,
    asterisk_and_daemon,
    conclude,
    main,
    recordings,
    running,
)
from testbed.espeak import EspeakUnavailable, find_espeak
from testbed.progress import say
from testbed.rtp import ULAW, Received
from testbed.sip import Call, SipUser

BOT = Path(__file__).parents[1] / "examples/voice-bot/bot.py"

QUESTION, INTERRUPTION, FAREWELL = "tell me a story", "what is the time", "goodbye"
LISTENS_S = 4.0  # to the story, before the caller has had enough
PAUSE_S = 0.7  # after which the other one has finished
SPEECH_DBFS = -40.0
LOUD, AUDIBLE = 328, 33  # of 32768: that level, and one at which the softest sounds begin
SHORTEST_S = 12.0
# From the caller's first sound: the bot hears 90 ms of voice, and a phone 20 ms of what was said.
CUT_OFF_S = 0.5

FORKS = {"caller": ("what the caller says",), "bot": ("what the caller hears: the bot",)}

DIALPLAN = """
[testbed]
exten => demo,1,Answer()
 same => n,Gosub(audiofork,start,1({receiver}caller,D(in)))
 same => n,Gosub(audiofork,start,1({receiver}bot,D(out)))
 same => n,Gosub(audiofork,connect,1({bot},x(json)))
 same => n,Verbose(0,the bot has left: ${{AUDIOFORK_STATUS}} ${{AUDIOFORK_REASON}})
"""


class Bot(Program):
    """examples/voice-bot on a free port.

    Attributes:
        asked: What it has understood, in the order in which it was asked.
    """

    def __init__(self, espeak: Sequence[str]) -> None:
        super().__init__("the bot", str(BOT), "--port", "0", "--espeak", shlex.join(espeak))
        self.asked: list[str] = []

    def on_line(self, line: str) -> None:
        _, mark, question = line.partition(" asked: ")
        if mark:
            self.asked.append(question)


class Caller:
    """Speaks to the bot over the telephone, and listens to it.

    Args:
        call: The call.
        voice: Makes the payloads of 20 ms that say a text.
    """

    def __init__(self, call: Call, voice: Callable[[str], list[bytes]]) -> None:
        self._call = call
        self._voice = voice
        self._since_s = time.monotonic()
        self._quiet = call.play([SILENCE], loop=True)
        call.recording = True

    async def says(self, text: str) -> float:
        """Say a text; return when it began, by time.monotonic()."""
        say(f"    The caller says: {text}")
        payloads = self._voice(text)
        self._quiet.cancel()
        began_s = time.monotonic()
        await self._call.play(payloads)
        self._since_s = time.monotonic()
        self._quiet = self._call.play([SILENCE], loop=True)
        return began_s

    async def hears(self, seconds: float = 0.0) -> None:
        """Listen to what the bot says now, to its end or for so long."""
        await self._until(lambda: self._speech())
        began_s = self._speech()[0].at_s
        if seconds:
            await self._until(lambda: time.monotonic() > began_s + seconds)
        else:
            await self._until(lambda: time.monotonic() > self._speech()[-1].at_s + PAUSE_S)

    def last_heard(self, after_s: float, before_s: float) -> float:
        """Return when the last sound of the bot came within a time."""
        within = [one for one in self._call.received if after_s <= one.at_s < before_s]
        heard = [one.at_s for one in within if _peak(one.payload) >= AUDIBLE]
        if not heard:
            raise DemoFailed("the bot was silent already when its caller broke in")
        return heard[-1]

    async def hung_up(self) -> None:
        """Wait until the other side has hung up."""
        await self._call.wait_ended(ATTEMPT_S)

    def _speech(self) -> list[Received]:
        return [one for one in self._loud() if one.at_s > self._since_s]

    def _loud(self) -> list[Received]:
        return [one for one in self._call.received if _peak(one.payload) >= LOUD]

    async def _until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(2 * ATTEMPT_S):
            while not condition():  # noqa: ASYNC110 (what comes by RTP has no event)
                if self._call.ended.is_set():
                    raise DemoFailed("the call was hung up before its end")
                await asyncio.sleep(PTIME_S)


def _peak(payload: bytes) -> int:
    return audioop.max(audioop.ulaw2lin(payload, 2), 2)


def voice_of(espeak: Sequence[str]) -> Callable[[str], list[bytes]]:
    """Return what makes u-law payloads of 20 ms of a text, from its first sound on."""

    def speak(text: str) -> list[bytes]:
        command = [*espeak, "-v", "en-us+f3", "-s", "130", "--stdout", text]
        spoken = subprocess.run(command, check=True, capture_output=True).stdout
        with wave.open(io.BytesIO(spoken)) as file:
            rate, samples = file.getframerate(), file.readframes(file.getnframes())
        slin = soxr.resample(numpy.frombuffer(samples, "<i2"), rate, ULAW.sample_rate).tobytes()
        ulaw, size = audioop.lin2ulaw(slin, 2), ULAW.frame_bytes
        payloads = [ulaw[at : at + size].ljust(size, b"\xff") for at in range(0, len(ulaw), size)]
        first = next(n for n, payload in enumerate(payloads) if _peak(payload) >= AUDIBLE)
        return payloads[first:]

    return speak


# --- The demo ------------------------------------------------------------------------------------


async def demo(installation: Installation) -> None:
    """Show all of it.

    Raises:
        DemoFailed: The bot did not understand, or did not stop, or there is no call.
    """
    before = recordings()
    if importlib.util.find_spec("pocketsphinx") is None:
        raise DemoFailed(
            "pocketsphinx has no wheel for this Python: make PYTHON=python3.12 demo-bot"
        )
    try:
        espeak = find_espeak()
    except EspeakUnavailable as exc:
        raise DemoFailed(str(exc)) from exc
    async with running(Receiver(len(FORKS))) as receiver, running(Bot(espeak)) as bot:
        lines = DIALPLAN.format(receiver=receiver.url, bot=bot.url)
        with asterisk_and_daemon(installation, lines) as asterisk:
            explain(lines)
            cut_off_s = await place_call(asterisk, voice_of(espeak))
            await receiver.wait_ended()
            found = conclude(recordings() - before, FORKS, SHORTEST_S)
            check(bot.asked, cut_off_s)
            say(f"\nListen:  play -M {found['caller']} {found['bot']}   (sox)")
            say("Stopping Asterisk and the daemon ...")


def explain(lines: str) -> None:
    """Show the dialplan, and say what will be seen."""
    said = lines.strip().partition("\n")[2]
    say(f"\nA caller dials `demo`. The dialplan:\n\n{textwrap.indent(said, '    ')}")
    say(
        "\nThe last Gosub gives the call to the bot, a WebSocket server: examples/voice-bot.\n"
        "Two forks go to `audiofork receive`, which shows the peak of each second, from -60 dBFS\n"
        "(no bar) to 0 (full). The caller asks for a story, and has enough of it after "
        f"{LISTENS_S:g} s.\n"
    )


async def place_call(asterisk: Asterisk, voice: Callable[[str], list[bytes]]) -> float:
    """Let a phone talk with the bot; return how long the bot went on when its caller broke in."""
    async with SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user:
        call = await user.call("demo", timeout_s=ATTEMPT_S)
        caller = Caller(call, voice)
        await caller.hears()
        await caller.says(QUESTION)
        await caller.hears(LISTENS_S)
        began_s = await caller.says(INTERRUPTION)
        cut_off_s = caller.last_heard(began_s, time.monotonic()) - began_s
        await caller.hears()
        await caller.says(FAREWELL)
        await caller.hung_up()
        return cut_off_s


def check(asked: Sequence[str], cut_off_s: float) -> None:
    """Say what came of it.

    Raises:
        DemoFailed: The bot has not understood, or not stopped.
    """
    said = [QUESTION, INTERRUPTION, FAREWELL]
    if list(asked) != said:
        raise DemoFailed(f"the bot has understood {asked}, expected {said}")
    cut_off = f"the last sound of the bot came {cut_off_s * 1000:.0f} ms after its caller broke in"
    if cut_off_s > CUT_OFF_S:
        raise DemoFailed(f"{cut_off}, expected {CUT_OFF_S * 1000:.0f} at most")
    say(f"\nThe bot has understood all three questions; {cut_off}.")


if __name__ == "__main__":
    sys.exit(main(demo))
