"""A feigned Asterisk for the check, by AMI and by ARI, that brings legs."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

from aiohttp import web

from audiofork import config_file
from audiofork.audiosocket import SAMPLE_RATES, Decoder, Kind, encode, frame_bytes
from audiofork.commands.check import Check
from audiofork.commands.findings import Finding, Mark, Outcome
from audiofork.commands.probe import TONE
from audiofork.config import Config
from tests.asterisk.test_ari import PASSWORD, FakeAri, starts
from tests.control_plane import FakeAsterisk, block, response

PAIR = TONE.to_bytes(2, "little") + b"\0\0"
PAIRS = encode(Kind.SLIN, PAIR * 160)
MIX = encode(Kind.SLIN, PAIR[:2] * 160)
NARROWBAND = "chanspy_pairs = narrowband\n"


class SpiedAsterisk(FakeAsterisk):
    """A FakeAsterisk that brings legs, as far as a check can tell.

    Attributes:
        pace_s: Time between two frames of the leg that spies; 0: it sends none.
        frame: What it sends in place of pairs with D and of the mix without.
        echo: What it answers to each frame that it gets.
        brings_legs: Whether it does anything about an Originate.
        is_unfiltered: Whether it sends events with what looks like an empty line in a value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers["Getvar"] = lambda action: response(action, f"Value: {int(time.time())}")
        self.answers["ModuleCheck"] = lambda action: denied(action)
        self.answers["ShowDialPlan"] = dialplan_of("narrow", "wide")
        self.answers["UserEvent"] = self._raise
        self.answers["Originate"] = self._originate
        self.pace_s = 0.02
        self.frame = b""
        self.echo = b""
        self.brings_legs = True
        self.is_unfiltered = False
        self._tasks: list[asyncio.Task[None]] = []

    def _raise(self, action: dict[str, str]) -> bytes | None:
        if action["userevent"] == "AudioFork" and (self.is_unfiltered or "value" not in action):
            lines = [f"{name}: {action[name]}" for name in ("command", "audioforkid")]
            self.connections[-1].send(block("Event: UserEvent", "UserEvent: AudioFork", *lines))
        return response(action)

    def _originate(self, action: dict[str, str]) -> bytes:
        if "channel" not in action:
            return response(action, "Message: Channel not specified", ok=False)
        if self.brings_legs:
            self._tasks.append(asyncio.create_task(self._leg(action)))
        return response(action)

    async def _leg(self, action: dict[str, str]) -> None:
        _, address, leg_id, _ = action["channel"].split("/")
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(encode(Kind.UUID, uuid.UUID(leg_id).bytes))
        options = action.get("data", "").rpartition(",")[2]
        frame = self.frame or (PAIRS if "D" in options else MIX)
        sending = asyncio.create_task(self._send(writer, frame))
        if action["application"] != "ChanSpy":
            sending.cancel()
        decoder = Decoder()
        try:
            while chunk := await reader.read(65_536):
                if action["application"] == "ChanSpy" and self.echo:
                    for _ in decoder.feed(chunk):
                        writer.write(self.echo)
        except OSError:
            pass
        finally:
            sending.cancel()
            writer.close()
        self.connections[-1].send(block("Event: Hangup", f"Uniqueid: {action['channelid']}"))

    async def _send(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        while self.pace_s:
            await asyncio.sleep(self.pace_s)
            writer.write(frame)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().stop()


def dialplan_of(*extensions: str, lines: Sequence[str] = ()) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to ShowDialPlan.

    Args:
        extensions: Those of the context for legs.
        lines: What the priorities of another context run.
    """

    def answer(action: dict[str, str]) -> bytes:
        event = ("Event: ListDialplan", f"ActionID: {action['id']}")
        leg_lines = [block(*event, f"Extension: {name}") for name in extensions]
        others = [
            block(
                *event,
                *("Context: calls", "Extension: _X.", f"Priority: {number}"),
                *(
                    "Application: " + line.partition("(")[0],
                    f"AppData: {line.partition('(')[2][:-1]}",
                ),
            )
            for number, line in enumerate(lines, 1)
        ]
        lines_of = leg_lines if action.get("context") == "audiofork-leg" else [*leg_lines, *others]
        done = block("Event: ShowDialPlanComplete", f"ActionID: {action['id']}")
        return b"".join([response(action, "EventList: start"), *lines_of, done])

    return answer


def version_of(text: str) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to CoreSettings of an Asterisk of that version."""
    return lambda action: response(action, f"AsteriskVersion: {text}")


def denied(action: dict[str, str]) -> bytes:
    return response(action, "Message: Permission denied", ok=False)


class SnoopedAri(FakeAri):
    """A FakeAri that brings snoop legs, as far as a check can tell.

    Attributes:
        asterisk: Tells of hangups.
        pace_s: Time between two frames of a leg.
        sample: What they are made of, besides the rate that is asked for.
        ends: Extensions whose legs end before they connect.
        dialled: What the extension `wide` was to dial: the codecs.
        apps: The applications whose events were asked for.
    """

    def __init__(self, asterisk: SpiedAsterisk) -> None:
        super().__init__()
        self.asterisk = asterisk
        self.pace_s = 0.02
        self.sample = TONE.to_bytes(2, "little")
        self.ends: set[str] = set()
        self.dialled: list[str] = []
        self.apps: list[str] = []
        self._variables: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.split("/")
        match parts[3:]:
            case _ if request.path in self.answers:
                pass
            case []:
                self.apps += request.query.getall("app", [])
            case [_, "snoop", leg_id]:
                await self.send(starts(leg_id))
            case [leg_id, "variable"]:
                self._variables[leg_id] = request.query["value"]
            case [leg_id, "continue"]:
                self._tasks.append(
                    asyncio.create_task(self._leg(leg_id, request.query["extension"]))
                )
        return await super()._serve(request)

    async def _leg(self, leg_id: str, extension: str) -> None:
        """Do as the shipped dialplan does."""
        if extension in self.ends:
            self._hang_up(leg_id)
            return
        if extension == "narrow":
            leg_uuid, address = self._variables[leg_id].split(",")
            kind = Kind.SLIN
        else:
            _, address, leg_uuid, codec = self._variables[leg_id].split("/")
            self.dialled.append(codec)
            kind = {"c(slin)": Kind.SLIN, "c(slin16)": Kind.SLIN16}[codec]
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(encode(Kind.UUID, uuid.UUID(leg_uuid).bytes))
        frame = encode(kind, self.sample * (frame_bytes(SAMPLE_RATES[kind]) // 2))
        sending = asyncio.create_task(self._send(writer, frame))
        try:
            await reader.read()
        except OSError:
            pass
        finally:
            sending.cancel()
            writer.close()
        self._hang_up(leg_id)

    async def _send(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        while self.pace_s:
            writer.write(frame)
            await asyncio.sleep(self.pace_s)

    def _hang_up(self, leg_id: str) -> None:
        self.asterisk.send(block("Event: Hangup", f"Uniqueid: {leg_id}"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().stop()


def ari_section(ari: FakeAri, more: str = "") -> str:
    return f"url = http://127.0.0.1:{ari.port}/ari\npassword = {PASSWORD}\n{more}"


def asterisk_section(asterisk: FakeAsterisk, more: str) -> str:
    return f"port = {asterisk.port}\nsecret = x\n{more}"


def configured(asterisk: FakeAsterisk | None = None, /, **sections: str) -> Config:
    port = asterisk.port if asterisk is not None else 9
    texts = {
        "asterisk": f"port = {port}\nsecret = x\n",
        "audiosocket": "listen = 127.0.0.1:0\n",
        "control": "socket =\n",
        **sections,
    }
    ini = "".join(f"[{name}]\n{text}" for name, text in texts.items())
    return config_file.parse(ini, {}, source="audiofork.ini")


async def findings_of(
    settings: Config, clock: Callable[[], float] = time.time
) -> tuple[Outcome, list[Finding]]:
    findings: list[Finding] = []
    outcome = await Check(settings, findings.append, clock).run()
    return outcome, findings


def failures(findings: list[Finding]) -> list[str]:
    failed = [finding for finding in findings if finding.mark is Mark.FAIL]
    assert all(finding.remedy for finding in failed)
    return [finding.text for finding in failed]
