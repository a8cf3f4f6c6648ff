"""A fake Asterisk for the check, with AMI and ARI, that connects legs."""

from __future__ import annotations

import asyncio
import re
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
from testbed.daemon import ETC
from tests.asterisk.test_ari import PASSWORD, FakeAri, starts
from tests.control_plane import FakeAsterisk, block, response

PAIR = TONE.to_bytes(2, "little") + b"\0\0"
PAIRS = encode(Kind.SLIN, PAIR * 160)
MIX = encode(Kind.SLIN, PAIR[:2] * 160)
NARROWBAND = "chanspy_pairs = narrowband\n"


class SpiedAsterisk(FakeAsterisk):
    """A FakeAsterisk that connects legs, as far as a check can tell.

    Attributes:
        pace_s: Time between two frames of the leg that spies; 0: it sends none.
        frame: The frame to send instead of pairs with D, and of the mix without.
        echo: The answer to each frame that it gets.
        brings_legs: Whether it reacts to an Originate.
        is_unfiltered: Whether it sends events with a seeming empty line in a value.
        tells_of_keys: Whether it reports the key that it was told to feign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers["Getvar"] = lambda action: response(action, f"Value: {int(time.time())}")
        self.answers["ModuleCheck"] = lambda action: denied(action)
        self.answers["ShowDialPlan"] = dialplan_of()
        self.answers["UserEvent"] = self._raise
        self.answers["Originate"] = self._originate
        self.answers["PlayDTMF"] = self._press
        self.pace_s = 0.02
        self.frame = b""
        self.echo = b""
        self.brings_legs = True
        self.is_unfiltered = False
        self.tells_of_keys = True
        self._tasks: list[asyncio.Task[None]] = []

    def _raise(self, action: dict[str, str]) -> bytes | None:
        if action["userevent"] == "AudioFork" and (self.is_unfiltered or "value" not in action):
            lines = [f"{name}: {action[name]}" for name in ("command", "audioforkid")]
            self.connections[-1].send(block("Event: UserEvent", "UserEvent: AudioFork", *lines))
        return response(action)

    def _press(self, action: dict[str, str]) -> bytes:
        if self.tells_of_keys:
            lines = ["Digit: 1", "DurationMs: 100", "Direction: Received"]
            uniqueid = f"Uniqueid: {action['channel']}"
            self.connections[-1].send(block("Event: DTMFEnd", uniqueid, *lines))
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


Row = dict[str, str]


def rows_of(text: str) -> list[Row]:
    """Return the priorities of a dialplan as ShowDialPlan lists them."""
    rows: list[Row] = []
    context = extension = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"\[(.+)\]", line):
            context = found[1]
        elif found := re.fullmatch(
            r"(?:exten => (\w+),1| same => n)(?:\((\w+)\))?,(\w+)\((.*)\)", line
        ):
            priority = "1" if found[1] else str(int(rows[-1]["Priority"]) + 1)
            extension = found[1] or extension
            row = {"Context": context, "Extension": extension, "Priority": priority}
            row |= {"ExtensionLabel": found[2]} if found[2] else {}
            rows.append(row | {"Application": found[3], "AppData": found[4]})
        else:
            assert not line or line.startswith(";"), line
    return rows


def shipped_rows(text: str = "") -> list[Row]:
    """Return what Asterisk lists of the shipped dialplan, or of another text in its place."""
    return rows_of(text or (ETC / "asterisk/extensions_audiofork.conf").read_text())


def dialplan_of(
    *lines: str, shipped: Sequence[Row] | None = None
) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to ShowDialPlan.

    Args:
        lines: What the priorities of a context of calls run.
        shipped: What there is of the shipped dialplan; None: all of it.
    """
    calls = [
        {
            **{"Context": "calls", "Extension": "_X.", "Priority": str(number)},
            **{"Application": line.partition("(")[0], "AppData": line.partition("(")[2][:-1]},
        }
        for number, line in enumerate(lines, 1)
    ]
    rows = [*(shipped_rows() if shipped is None else shipped), *calls]

    def answer(action: dict[str, str]) -> bytes:
        wanted = [row for row in rows if action.get("context", row["Context"]) == row["Context"]]
        if not wanted:
            return response(action, "Message: Did not find context", ok=False)
        event = ("Event: ListDialplan", f"ActionID: {action['id']}")
        done = block("Event: ShowDialPlanComplete", f"ActionID: {action['id']}")
        told = [block(*event, *(f"{name}: {row[name]}" for name in row)) for row in wanted]
        return b"".join([response(action, "EventList: start"), *told, done])

    return answer


def version_of(text: str) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to CoreSettings of an Asterisk of that version."""
    return lambda action: response(action, f"AsteriskVersion: {text}")


def denied(action: dict[str, str]) -> bytes:
    return response(action, "Message: Permission denied", ok=False)


class SnoopedAri(FakeAri):
    """A FakeAri that connects snoop legs, as far as a check can tell.

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
