"""The check against a feigned Asterisk: the faults that a real one cannot be made to show.

Those that it can are in tests/system/test_check.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from audiofork import config
from audiofork.asterisk.taps.ways import Site, known_faults, ways_for
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.audiosocket import SAMPLE_RATES, Decoder, Kind, encode, frame_bytes
from audiofork.commands import check_audio, probe
from audiofork.commands.check import Check, site_if_all_works, taps_of
from audiofork.commands.findings import Finding, Mark, Outcome
from audiofork.commands.probe import TONE, Probe, ProbeLeg
from audiofork.config import Address, Config
from audiofork.doors.control_socket import ControlSocket
from audiofork.errors import ConfigError
from tests.asterisk.test_ari import PASSWORD, FakeAri, answer, silence, starts
from tests.control_plane import FakeAsterisk, block, response

PAIR = TONE.to_bytes(2, "little") + b"\0\0"
PAIRS = encode(Kind.SLIN, PAIR * 160)
MIX = encode(Kind.SLIN, PAIR[:2] * 160)
NARROWBAND = "chanspy_pairs = narrowband\n"
SLOWEST_FRAMES_PER_SECOND = check_audio.SLOWEST_FRAMES_PER_SECOND


class SpiedAsterisk(FakeAsterisk):
    """A FakeAsterisk that brings legs, as far as a check can tell.

    Attributes:
        pace_s: Time between two frames of the leg that spies; 0: it sends none.
        frame: What it sends in place of pairs with D and of the mix without.
        echo: What it answers to each frame that it gets.
        brings_legs: Whether it does anything about an Originate.
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
        self._tasks: list[asyncio.Task[None]] = []

    def _raise(self, action: dict[str, str]) -> bytes | None:
        if action["userevent"] == "AudioFork":
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


def dialplan_of(*extensions: str) -> Callable[[dict[str, str]], bytes]:
    """Return the answer to ShowDialPlan of a context with these extensions."""

    def answer(action: dict[str, str]) -> bytes:
        assert action["context"] == "audiofork-leg"
        event = ("Event: ListDialplan", f"ActionID: {action['id']}")
        lines = [block(*event, f"Extension: {name}") for name in extensions]
        done = block("Event: ShowDialPlanComplete", f"ActionID: {action['id']}")
        return b"".join([response(action, "EventList: start"), *lines, done])

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


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen to a fifth of a second in place of a whole one, at whatever pace this machine has."""
    monkeypatch.setattr(check_audio, "FRAMES_WANTED", 10)
    monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", 1.0)


@pytest.fixture
def pace_judged(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge the pace as the product does."""
    monkeypatch.setattr(check_audio, "SLOWEST_FRAMES_PER_SECOND", SLOWEST_FRAMES_PER_SECOND)


@pytest.fixture
async def asterisk() -> AsyncIterator[SpiedAsterisk]:
    one = SpiedAsterisk()
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def ari(asterisk: SpiedAsterisk) -> AsyncIterator[SnoopedAri]:
    one = SnoopedAri(asterisk)
    await one.start()
    yield one
    await one.stop()


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
    return config.parse(ini, {}, source="audiofork.ini")


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


# --- All is well ---------------------------------------------------------------------------------


async def test_asterisk_as_it_should_be_has_no_fault(asterisk: SpiedAsterisk) -> None:
    outcome, findings = await findings_of(configured(asterisk))
    assert failures(findings) == []
    assert outcome == 0
    subjects = [finding.text.partition(":")[0] for finding in findings]
    assert subjects == [
        *("daemon", "open files", "ARI", "login", "rights", "clock"),
        *("requests", "AudioSocket", "audio", "hangups", "forks"),
    ]


async def test_asterisk_with_ari_as_it_should_be_has_no_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert failures(findings) == []
    assert outcome == 0
    assert [finding.text.partition(":")[0] for finding in findings] == [
        *("daemon", "open files", "ARI", "login", "rights", "clock", "requests", "dialplan"),
        *("AudioSocket", "audio", "snoop at 8000 Hz", "snoop at 16000 Hz", "hangups", "forks"),
    ]
    assert PASSWORD not in str(findings)


async def test_running_daemons_application_is_not_taken_from_it(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    settings = configured(asterisk, ari=ari_section(ari, "app = ours\n"))
    await findings_of(settings)
    assert ari.apps == ["ours-check"]
    assert [asked for asked in ari.asked if "ours" in asked.replace("ours-check", "")] == []


def test_module_costs_a_daemon_without_ari_no_aiohttp() -> None:
    code = "import sys; import audiofork.commands.check; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_finding_is_a_line_and_its_remedy_stands_indented_below() -> None:
    remedy = "word " * 40
    lines = str(Finding(Mark.FAIL, "audio: none comes", remedy)).splitlines()
    assert lines[0] == "FAIL  audio: none comes"
    assert len(lines) == 4
    assert all(line.startswith("        word") and len(line) <= 92 for line in lines[1:])
    assert str(Finding(Mark.OK, "login")) == "ok    login"


def test_lines_of_a_file_in_a_remedy_are_kept_as_they_are() -> None:
    remedy = f"In http.conf:\n  [general]\n  enabled = yes\n{'to-be-copied ' * 8}"
    assert str(Finding(Mark.FAIL, "ARI", remedy)).splitlines()[1:] == [
        "        In http.conf:",
        "          [general]",
        "          enabled = yes",
        "        " + "to-be-copied " * 5 + "to-be-copied",
        "        to-be-copied to-be-copied",
    ]


# --- The way to Asterisk -------------------------------------------------------------------------


async def test_port_without_a_listener_is_unreachable() -> None:
    outcome, findings = await findings_of(configured())
    assert outcome == 4
    assert failures(findings)[0].startswith("Asterisk at 127.0.0.1:9: ")
    assert "manager.conf: enabled = yes" in findings[-1].remedy


async def test_peer_that_answers_nothing_is_unreachable(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.ami.ACTION_TIMEOUT_S", 0.05)
    asterisk.answers["Login"] = lambda action: None
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 4
    assert "Login: no answer within" in failures(findings)[0]


async def test_asterisk_that_goes_meanwhile_is_unreachable(asterisk: SpiedAsterisk) -> None:
    def drop(action: dict[str, str]) -> None:
        asterisk.connections[-1].drop()

    asterisk.answers["Getvar"] = drop
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 4
    assert "the link to Asterisk was lost" in failures(findings)[0]


async def test_certificate_that_is_not_trusted_is_unreachable_and_names_ca_file() -> None:
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_tls)
    asterisk = FakeAsterisk(server_tls)
    await asterisk.start()
    text = f"port = {asterisk.port}\nsecret = x\ntls = yes\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    await asterisk.stop()
    assert outcome == 4
    assert "certificate" in failures(findings)[0]
    assert "ca_file" in findings[-1].remedy


async def test_secret_that_no_line_can_hold_is_not_quoted(asterisk: SpiedAsterisk) -> None:
    text = f"port = {asterisk.port}\nsecret = {'x' * 1100}\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    assert outcome == 4
    assert "Secret is longer than 1024 bytes" in failures(findings)[0]
    assert "xxx" not in str(findings)


async def test_missing_secret_is_a_fault_without_a_login(asterisk: SpiedAsterisk) -> None:
    text = f"port = {asterisk.port}\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    assert outcome == 1
    assert failures(findings) == ["login: no secret is configured"]
    assert "AUDIOFORK_ASTERISK_SECRET_FILE" in findings[-1].remedy
    assert asterisk.actions == []


# --- The audio -----------------------------------------------------------------------------------


async def audio_of(asterisk: SpiedAsterisk, more: str = "") -> Finding:
    """Return the only fault of the audio; `more` is of the section [asterisk]."""
    text = asterisk_section(asterisk, more)
    outcome, findings = await findings_of(configured(asterisk=text))
    assert outcome == 1
    findings = [finding for finding in findings if finding.mark is Mark.FAIL]
    (found,) = [finding for finding in findings if finding.text.startswith("audio:")]
    assert found.mark is Mark.FAIL
    return found


async def test_mono_frames_mean_that_chanspy_has_no_d(asterisk: SpiedAsterisk) -> None:
    asterisk.frame = MIX
    found = await audio_of(asterisk, NARROWBAND)
    assert found.text == "audio: the ChanSpy of Asterisk 22.5.2 has no option D"
    assert "18.22, 20.7, 21.2, 22 or later" in found.remedy


@pytest.mark.usefixtures("pace_judged")
async def test_half_the_pace_is_a_fault(asterisk: SpiedAsterisk) -> None:
    asterisk.pace_s = 0.04
    found = await audio_of(asterisk)
    assert found.text.endswith("frames a second, not 50")
    assert "too busy" in found.remedy


@pytest.mark.parametrize(
    ("apart_s", "fault"),
    [(1 / 50, ""), (1 / 45.1, ""), (1 / 44.9, "44.9 frames a second, not 50")],
)
@pytest.mark.usefixtures("pace_judged")
def test_45_frames_a_second_are_the_fewest(apart_s: float, fault: str) -> None:
    leg = ProbeLeg(None)  # type: ignore[arg-type]
    leg.frames = [(100 + n * apart_s, MIX) for n in range(10)]
    assert check_audio._too_slow(leg) == fault


async def test_audio_that_stays_away_after_a_few_frames_is_a_fault(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 0.25)
    asterisk.pace_s = 0.1
    assert (await audio_of(asterisk)).text == "audio: 2 frames within 0.25 s, not 50 a second"


async def test_silence_that_answers_each_frame_means_no_timing_source(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 0.1)
    asterisk.pace_s = 0
    asterisk.echo = MIX
    found = await audio_of(asterisk)
    assert found.text == "audio: none comes of itself: Asterisk has no timing source"
    assert "module load res_timing_timerfd.so" in found.remedy


async def test_silence_that_answers_nothing_is_a_fault(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 0.1)
    asterisk.pace_s = 0
    assert (await audio_of(asterisk)).text == "audio: none comes"


@pytest.mark.parametrize(
    "frame",
    [bytes(320), TONE.to_bytes(2, "big") * 160, PAIR * 160, PAIR * 80, PAIR[:2] * 320],
    ids=["silence", "bytes-swapped", "pairs", "another-tone", "wide"],
)
async def test_mix_that_is_not_what_the_target_was_sent_is_a_fault(
    asterisk: SpiedAsterisk, frame: bytes
) -> None:
    asterisk.frame = encode(Kind.SLIN, frame)
    assert "not what the target was sent" in (await audio_of(asterisk)).text


@pytest.mark.parametrize("pair", [bytes(4), PAIR[::-1], b"\0\0" + PAIR[:2], PAIR[:2] * 2], ids=repr)
async def test_pairs_that_are_not_what_the_target_was_sent_are_a_fault(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch, pair: bytes
) -> None:
    monkeypatch.setattr("tests.commands.test_check.PAIRS", encode(Kind.SLIN, pair * 160))
    found = await audio_of(asterisk, NARROWBAND)
    assert "not what the target was sent" in found.text


async def test_pairs_of_chanspy_are_tried_only_where_they_are_used(
    asterisk: SpiedAsterisk,
) -> None:
    for more, options in ("", ["qulES"]), (NARROWBAND, ["qulES", "qulDES"]):
        asterisk.actions.clear()
        _, findings = await findings_of(configured(asterisk=asterisk_section(asterisk, more)))
        assert failures(findings) == []
        tried = [
            action["data"].rpartition(",")[2]
            for action in asterisk.actions
            if action.get("application") == "ChanSpy"
        ]
        assert tried == options
        heard = [finding.text for finding in findings if finding.text.startswith("audio: ")]
        assert [text.rpartition(", ")[2] for text in heard] == [
            "in and out mixed by ChanSpy",
            "in and out apart by ChanSpy's D",
        ][: len(options)]


async def test_leg_that_never_comes_is_a_fault_after_its_time(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LEG_TIMEOUT_S", 0.05)
    monkeypatch.setattr(probe, "EVENT_TIMEOUT_S", 0.05)
    asterisk.brings_legs = False
    _, findings = await findings_of(configured(asterisk))
    (failed,) = failures(findings)
    assert "no leg came within 0.05 s" in failed
    (remedy,) = [finding.remedy for finding in findings if finding.mark is Mark.FAIL]
    assert "advertise" in remedy
    assert "Without read = call" in remedy


async def test_leg_that_ends_somewhere_else_is_a_fault(asterisk: SpiedAsterisk) -> None:
    """Another server takes the connection and closes it."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        text = f"listen = 127.0.0.1:0\nadvertise = 127.0.0.1:{port}\n"
        outcome, findings = await findings_of(configured(asterisk, audiosocket=text))
    assert outcome == 1
    (failed,) = failures(findings)
    assert failed.endswith(f"127.0.0.1:{port}: the leg went somewhere else, and ended there")


async def test_originate_that_is_refused_is_told_in_asterisks_words(
    asterisk: SpiedAsterisk,
) -> None:
    def refuse(action: dict[str, str]) -> bytes:
        message = "Originate Access Forbidden" if "channel" in action else "Channel not specified"
        return response(action, f"Message: {message}", ok=False)

    asterisk.answers["Originate"] = refuse
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    assert failures(findings)[0].endswith(": Originate Access Forbidden")


# --- ARI -----------------------------------------------------------------------------------------


async def ari_fault(asterisk: SpiedAsterisk, section: str, /, **sections: str) -> Finding:
    """Return the only fault, which is of ARI; all that AMI gives is checked all the same."""
    outcome, findings = await findings_of(configured(asterisk, ari=section, **sections))
    assert outcome == 1
    (found,) = [finding for finding in findings if finding.mark is Mark.FAIL]
    subjects = [finding.text.partition(":")[0] for finding in findings]
    assert "audio" in subjects
    assert not any(subject.startswith("snoop at") for subject in subjects)
    assert PASSWORD not in str(findings)
    return found


async def test_ari_that_is_not_configured_is_no_fault_and_says_how_to_have_it(
    asterisk: SpiedAsterisk,
) -> None:
    _, findings = await findings_of(configured(asterisk))
    assert findings[2].mark is Mark.SKIP
    assert findings[2].text == ("ARI: not configured ([ari] url): legs come by ChanSpy, at 8000 Hz")
    assert findings[-1].text == (
        "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute of one "
        "side"
    )
    assert "\n  [ari]\n  url = http://127.0.0.1:8088/ari\n  password = " in findings[-1].remedy


async def test_ari_that_is_not_wanted_is_left_alone(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    text = asterisk_section(asterisk, "tap = chanspy\n")
    outcome, findings = await findings_of(configured(asterisk=text, ari=ari_section(ari)))
    assert outcome == 0
    assert findings[2].mark is Mark.SKIP
    assert findings[2].text == (
        "ARI: not used ([asterisk] tap = chanspy): legs come by ChanSpy, at 8000 Hz"
    )
    assert ari.asked == []
    assert asterisk.count("ShowDialPlan") == 0


@pytest.mark.parametrize("rate", [16000, 0])
async def test_wideband_without_ari_is_a_fault_that_names_both(
    asterisk: SpiedAsterisk, rate: int
) -> None:
    websocket = f"sample_rate = {rate}\n"
    found = await ari_fault(asterisk, "", websocket=websocket)
    assert found.text == (
        f"ARI: not configured ([ari] url), but [websocket] sample_rate = {rate} needs it"
    )
    assert "url = http://" in found.remedy
    assert "set [websocket] sample_rate = 8000" in found.remedy
    text = asterisk_section(asterisk, "tap = chanspy\n")
    found = await ari_fault(asterisk, "", websocket=websocket, asterisk=text)
    assert found.text.startswith("ARI: not used ([asterisk] tap = chanspy), but [websocket] sa")


async def test_missing_password_is_a_fault_without_a_login(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    section = ari_section(ari).replace(PASSWORD, "")
    found = await ari_fault(asterisk, section)
    assert found.text == "ARI: no password is configured"
    assert "AUDIOFORK_ARI_PASSWORD_FILE" in found.remedy
    assert ari.asked == []


@pytest.mark.parametrize(
    ("url", "lines"),
    [
        ("http://127.0.0.1:9/ari", ["bindaddr = 127.0.0.1", "bindport = 9"]),
        ("http://localhost:9/ari", ["bindaddr = 127.0.0.1", "bindport = 9"]),
        ("https://127.0.0.1:9/ari", ["tlsenable = yes", "tlsbindaddr = 127.0.0.1:9"]),
        ("https://[::1]:9/ari", ["tlsenable = yes", "tlsbindaddr = [::1]:9"]),
    ],
)
async def test_ari_that_does_not_listen_is_a_fault_with_the_lines_of_http_conf(
    asterisk: SpiedAsterisk, url: str, lines: list[str]
) -> None:
    found = await ari_fault(asterisk, f"url = {url}\npassword = {PASSWORD}\n")
    assert found.text == f"ARI at {url}: Connection refused"
    assert "In http.conf:" in found.remedy
    for line in ("[general]", "enabled = yes", *lines, 'asterisk -rx "module reload http"'):
        assert f"\n  {line}\n" in found.remedy


async def test_ari_that_does_not_answer_is_a_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.ari.REQUEST_TIMEOUT_S", 0.05)
    ari.answers["/ari/channels/audiofork-check"] = silence
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.endswith("/ari: no answer within 0.05 s")
    assert "In http.conf:" in found.remedy


async def test_neither_asterisk_nor_ari_there_is_unreachable() -> None:
    ari = "url = http://127.0.0.1:9/ari\npassword = x\n"
    outcome, findings = await findings_of(configured(ari=ari))
    assert outcome == 4
    assert len(failures(findings)) == 2


@pytest.mark.parametrize(
    ("status", "message", "text", "lines"),
    [
        (
            401,
            "Authentication required",
            "ARI: Asterisk's REST interface refused audiofork: Authentication required",
            ["[audiofork]", "type = user", "read_only = no", "password = (that of [ari])"],
        ),
        (
            403,
            "Write access denied",
            "ARI: Asterisk's REST interface refused audiofork: Write access denied",
            ["[audiofork]", "read_only = no"],
        ),
        (404, "Not Found", "404: Not Found", ["[general]", "enabled = yes"]),
        (
            404,
            "Resource not found",
            "404: Resource not found",
            ['asterisk -rx "module load res_ari_channels.so"'],
        ),
        (500, "Failed", "500: Failed", ["enabled = yes"]),
    ],
    ids=["login", "read-only", "off", "module", "other"],
)
async def test_ari_that_refuses_is_a_fault_with_the_lines_of_ari_conf(
    asterisk: SpiedAsterisk,
    ari: SnoopedAri,
    status: int,
    message: str,
    text: str,
    lines: list[str],
) -> None:
    refusal = answer(status, f'{{"message": "{message}"}}')
    ari.answers["/ari/channels/audiofork-check"] = refusal
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.endswith(text)
    assert "ari.conf" in found.remedy
    for line in (*lines, 'asterisk -rx "module reload res_ari.so"'):
        assert f"\n  {line}\n" in f"{found.remedy}\n"
    assert ("type = user" in found.remedy) == (status == 401)


@pytest.mark.parametrize("path", ["/ari/events", "/ari/applications/audiofork-check/eventFilter"])
async def test_link_that_does_not_come_up_is_a_fault_that_names_the_modules(
    asterisk: SpiedAsterisk, ari: SnoopedAri, path: str
) -> None:
    ari.answers[path] = answer(404, '{"message": "Resource not found"}')
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.startswith("snoop: no link to ARI at http://127.0.0.1:")
    assert 'asterisk -rx "module load res_ari_events.so"' in found.remedy
    assert 'asterisk -rx "module load res_ari_applications.so"' in found.remedy


async def test_snoop_that_is_refused_is_said_once_for_both_rates(
    asterisk: SpiedAsterisk, ari: SnoopedAri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.taps.snoop.ENTER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(ari, "send", nothing)
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text == "snoop: ARI: the leg did not enter audiofork-check in time"
    assert 'asterisk -rx "module load app_stasis.so"' in found.remedy


async def nothing(*_: object) -> None: ...


# --- What legs by ARI are sent to ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("extensions", "what"),
    [(["narrow"], "has no extension wide"), (["s"], "has no extension narrow and wide")],
)
async def test_missing_extension_is_a_fault_without_a_snoop(
    asterisk: SpiedAsterisk, ari: SnoopedAri, extensions: list[str], what: str
) -> None:
    asterisk.answers["ShowDialPlan"] = dialplan_of(*extensions)
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text == f"dialplan: the context audiofork-leg {what}"
    assert "\n  #include extensions_audiofork.conf\n" in found.remedy
    assert found.remedy.endswith('\n  asterisk -rx "dialplan reload"')
    assert ari.apps == []


async def test_missing_context_is_a_fault_also_while_ari_is_away(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["ShowDialPlan"] = lambda action: response(
        action, "Message: Did not find context audiofork-leg", ok=False
    )
    ari = "url = http://127.0.0.1:9/ari\npassword = x\n"
    _, findings = await findings_of(configured(asterisk, ari=ari))
    assert failures(findings)[1:] == ["dialplan: the context audiofork-leg is missing"]


async def test_dialplan_that_may_not_be_looked_into_is_tried(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    asterisk.answers["ShowDialPlan"] = denied
    ari.ends = {"wide"}
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert outcome == 1
    assert Finding(Mark.SKIP, "dialplan: to look into it needs write = reporting") in findings
    assert failures(findings) == ["snoop at 16000 Hz: the leg ended before it connected"]


# --- Legs by ARI ---------------------------------------------------------------------------------


async def snoop_faults(asterisk: SpiedAsterisk, ari: SnoopedAri) -> list[Finding]:
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert outcome == 1
    return [finding for finding in findings if finding.mark is Mark.FAIL]


@pytest.mark.parametrize(
    ("extension", "rate", "module"),
    [("narrow", 8000, "app_audiosocket.so"), ("wide", 16000, "app_dial.so")],
)
async def test_leg_that_ends_in_the_dialplan_names_what_runs_there(
    asterisk: SpiedAsterisk, ari: SnoopedAri, extension: str, rate: int, module: str
) -> None:
    ari.ends = {extension}
    (found,) = await snoop_faults(asterisk, ari)
    assert found.text == f"snoop at {rate} Hz: the leg ended before it connected"
    assert f'\n  asterisk -rx "module load {module}"\n' in found.remedy
    assert "#include extensions_audiofork.conf" in found.remedy


@pytest.mark.usefixtures("pace_judged")
async def test_snoop_at_half_the_pace_is_a_fault(asterisk: SpiedAsterisk, ari: SnoopedAri) -> None:
    asterisk.pace_s = 0.002  # fast enough on a loaded machine too
    ari.pace_s = 0.04
    narrow, wide = await snoop_faults(asterisk, ari)
    assert narrow.text.startswith("snoop at 8000 Hz: ")
    assert wide.text.startswith("snoop at 16000 Hz: ")
    for found in (narrow, wide):
        assert found.text.endswith("frames a second, not 50")
        assert "too busy" in found.remedy


async def test_silent_snoop_is_a_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 0.3)
    ari.pace_s = 0
    narrow, _ = await snoop_faults(asterisk, ari)
    assert narrow.text == "snoop at 8000 Hz: 0 frames within 0.3 s, not 50 a second"


@pytest.mark.parametrize(
    "sample", [bytes(2), TONE.to_bytes(2, "big"), TONE.to_bytes(2, "little") * 2], ids=repr
)
async def test_snoop_that_brings_something_else_is_a_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri, sample: bytes
) -> None:
    ari.sample = sample
    narrow, wide = await snoop_faults(asterisk, ari)
    assert narrow.text == "snoop at 8000 Hz: what comes is not what the target was sent"
    assert wide.text == "snoop at 16000 Hz: what comes is not what the target was sent"


async def test_resampled_tone_that_is_a_little_off_is_no_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    ari.sample = (TONE - 43).to_bytes(2, "little")
    _, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert failures(findings) == []


async def test_chanspy_is_not_tried_where_the_snoop_is_required(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    asterisk.frame = encode(Kind.SLIN, bytes(320))  # its ChanSpy has no D
    text = asterisk_section(asterisk, "tap = snoop\n")
    outcome, findings = await findings_of(configured(asterisk=text, ari=ari_section(ari)))
    assert outcome == 0
    assert Finding(Mark.SKIP, "audio: ChanSpy is not used ([asterisk] tap = snoop)") in findings
    assert any(finding.text.startswith("snoop at 16000 Hz: ") for finding in findings)
    assert "ChanSpy" not in str(asterisk.actions)


@pytest.mark.parametrize(
    ("tap", "module", "is_needed"),
    [
        *(("auto", "app_chanspy.so", True), ("auto", "app_stasis.so", True)),
        *(("snoop", "app_chanspy.so", False), ("snoop", "res_ari_events.so", True)),
        *(("chanspy", "app_chanspy.so", True), ("chanspy", "app_dial.so", False)),
    ],
)
async def test_modules_that_are_missed_are_those_of_the_taps_that_are_used(
    asterisk: SpiedAsterisk, ari: SnoopedAri, tap: str, module: str, is_needed: bool
) -> None:
    asterisk.answers["ModuleCheck"] = lambda action: response(action, ok=action["module"] != module)
    text = asterisk_section(asterisk, f"tap = {tap}\n")
    _, findings = await findings_of(configured(asterisk=text, ari=ari_section(ari)))
    assert failures(findings) == ([f"modules: {module} not loaded"] if is_needed else [])


# --- What forks get ------------------------------------------------------------------------------


async def told_of_forks(
    asterisk: SpiedAsterisk, version: str = "22.5.2", more: str = "", /, ari: str = ""
) -> Finding:
    """Return the line that says it, the last one."""
    asterisk.answers["CoreSettings"] = version_of(version)
    text = asterisk_section(asterisk, more)
    _, findings = await findings_of(configured(asterisk=text, ari=ari))
    assert [one.text for one in findings if one.text.startswith("forks: ")] == [findings[-1].text]
    return findings[-1]


async def test_all_directions_are_had_by_ari(asterisk: SpiedAsterisk, ari: SnoopedAri) -> None:
    found = await told_of_forks(asterisk, ari=ari_section(ari))
    text = "forks: in by snoop, out by snoop, both by snoop, stereo by snoop"
    assert found == Finding(Mark.OK, text)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "20.7.0",
            Finding(
                Mark.OK, "forks: in by chanspy, out by chanspy, both by chanspy, stereo by chanspy"
            ),
        ),
        (
            "20.5.0",
            Finding(
                Mark.SKIP,
                "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute "
                "of one side",
            ),
        ),
    ],
)
async def test_without_ari_what_is_had_at_a_narrowband_site_depends_on_the_version(
    asterisk: SpiedAsterisk, version: str, expected: Finding
) -> None:
    found = await told_of_forks(asterisk, version, NARROWBAND)
    assert (found.mark, found.text) == (expected.mark, expected.text)
    assert bool(found.remedy) == (found.mark is Mark.SKIP)


async def test_directions_that_ari_would_bring_are_refused_while_it_cannot(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    ari.ends = {"narrow"}
    found = await told_of_forks(asterisk, ari=ari_section(ari))
    assert found == Finding(
        Mark.SKIP,
        "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute of one "
        "side",
    )


async def test_nothing_is_had_where_ari_is_required_and_cannot(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    ari.ends = {"wide"}
    found = await told_of_forks(asterisk, "22.5.2", "tap = snoop\n", ari=ari_section(ari))
    assert found.mark is not Mark.OK
    assert found.text == (
        "forks: in and out and both and stereo are refused, so is the mute of one side"
    )


@pytest.mark.parametrize(("version", "count"), [("22.10.1", 0), ("22.11.0-rc1", 1), ("20.7.0", 2)])
async def test_known_faults_of_the_version_follow_the_login_and_are_no_failures(
    asterisk: SpiedAsterisk, version: str, count: int
) -> None:
    faults = known_faults(Version.parse(version))
    assert len(faults) == count
    asterisk.answers["CoreSettings"] = version_of(version)
    outcome, findings = await findings_of(configured(asterisk))
    assert (outcome, failures(findings)) == (0, [])
    texts = [finding.text for finding in findings]
    login = texts.index(f"login: audiofork, Asterisk {version}")
    assert texts[login + 1 : login + 1 + len(faults)] == [
        f"Asterisk {version}: {fault}" for fault in faults
    ]
    assert sum(text.startswith("Asterisk ") for text in texts) == len(faults)
    assert {findings[login + 1 + n].mark for n in range(len(faults))} <= {Mark.SKIP}


async def test_version_that_is_not_told_has_no_known_faults(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["CoreSettings"] = denied
    _, findings = await findings_of(configured(asterisk))
    assert "login: audiofork, Asterisk (version unknown)" in [one.text for one in findings]
    assert not [one for one in findings if one.text.startswith("Asterisk ")]


@pytest.mark.parametrize(
    ("version", "dialled"),
    [("20.13.0", ["c(slin)", "c(slin16)"]), ("20.14.0", ["c(slin16)"])],
)
async def test_narrow_leg_by_ari_is_tried_as_the_version_has_it(
    asterisk: SpiedAsterisk, ari: SnoopedAri, version: str, dialled: list[str]
) -> None:
    asterisk.answers["CoreSettings"] = version_of(version)
    _, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert failures(findings) == []
    assert sorted(ari.dialled) == dialled


async def test_narrow_leg_by_dial_that_ends_names_what_dials(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    asterisk.answers["CoreSettings"] = version_of("20.13.0")
    ari.ends = {"wide"}
    narrow, wide = await snoop_faults(asterisk, ari)
    assert narrow.text == "snoop at 8000 Hz: the leg ended before it connected"
    assert wide.text == "snoop at 16000 Hz: the leg ended before it connected"
    for found in (narrow, wide):
        assert '\n  asterisk -rx "module load app_dial.so"\n' in found.remedy


# --- Only the ways to get audio -------------------------------------------------------------------


async def test_taps_are_those_of_the_version_that_is_asked_for(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["CoreSettings"] = version_of("20.13.0")
    settings = configured(asterisk)
    lines = await taps_of(settings)
    assert lines == ways_for(site_if_all_works(settings, Version.parse("20.13.0")))
    assert lines[0].startswith("Asterisk 20.13.0; ")
    assert [action["action"] for action in asterisk.actions] == ["Login", "CoreSettings"]


async def test_taps_of_a_version_that_is_not_told_are_those_of_the_latest(
    asterisk: SpiedAsterisk,
) -> None:
    asterisk.answers["CoreSettings"] = denied
    settings = configured(asterisk)
    assert await taps_of(settings) == ways_for(site_if_all_works(settings, UNKNOWN))


async def test_taps_without_asterisk_raise_why() -> None:
    with pytest.raises(OSError):
        await taps_of(configured())


@pytest.mark.parametrize(
    ("more", "url", "site"),
    [
        ("", "", ("set up [ari] (audiofork check tells how)", "", False)),
        ("", "http://127.0.0.1:8088/ari", ("", "", False)),
        (
            "tap = chanspy\n" + NARROWBAND,
            "http://127.0.0.1:8088/ari",
            ("[asterisk] tap = chanspy rules ARI out", "", True),
        ),
        (
            "tap = snoop\n",
            "http://127.0.0.1:8088/ari",
            ("", "is ruled out ([asterisk] tap = snoop)", False),
        ),
    ],
)
def test_site_is_what_is_configured(more: str, url: str, site: tuple[str, str, bool]) -> None:
    settings = configured(asterisk=more, ari=f"url = {url}\npassword = x\n" if url else "")
    assert site_if_all_works(settings, UNKNOWN) == Site(UNKNOWN, *site)


# --- This machine --------------------------------------------------------------------------------


async def test_listen_address_of_another_machine_is_a_fault(asterisk: SpiedAsterisk) -> None:
    settings = configured(asterisk, audiosocket="listen = 192.0.2.1:9093\n")
    outcome, findings = await findings_of(settings)
    assert outcome == 1
    assert failures(findings)[0].startswith("AudioSocket: cannot listen on 192.0.2.1:9093: ")


async def test_port_of_another_program_is_a_fault(asterisk: SpiedAsterisk, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = configured(
            asterisk, audiosocket=f"listen = {listen}\n", control=f"socket = {tmp_path}/c.sock\n"
        )
        outcome, findings = await findings_of(settings)
    assert outcome == 1
    assert failures(findings) == [f"AudioSocket: another program listens on {listen}"]


async def test_too_low_a_file_limit_is_a_fault_with_the_number_to_set(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 5399))
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    assert failures(findings) == [
        "open files: a process started here may have 5399, max_forks = 1000 takes 5400"
    ]
    assert "LimitNOFILE=5400" in findings[1].remedy


@pytest.mark.parametrize("limit", [5400, resource.RLIM_INFINITY])
async def test_file_limit_that_is_enough_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, limit))
    _, findings = await findings_of(configured(asterisk="port = 9\n"))
    assert findings[1].mark is Mark.OK


async def test_running_daemon_is_counted_and_its_own_limit_is_looked_at(tmp_path: Path) -> None:
    async def nothing(*_: object) -> list[str]:
        return []

    control = ControlSocket(tmp_path / "c.sock", nothing, nothing)  # type: ignore[arg-type]
    await control.start()
    _, findings = await findings_of(configured(control=f"socket = {tmp_path}/c.sock\n"))
    await control.close()
    assert findings[0].text == "daemon: runs, 0 forks"
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert findings[1].text.startswith(f"open files: the daemon may have {soft}")


async def test_daemon_that_does_not_run_is_no_fault(tmp_path: Path) -> None:
    _, findings = await findings_of(configured(control=f"socket = {tmp_path}/c.sock\n"))
    assert findings[0].mark is Mark.SKIP


@pytest.mark.parametrize(("ahead_s", "which"), [(-10, "behind"), (10, "ahead of")])
async def test_clock_that_differs_is_a_fault(
    asterisk: SpiedAsterisk, ahead_s: float, which: str
) -> None:
    outcome, findings = await findings_of(configured(asterisk), lambda: time.time() + ahead_s)
    assert outcome == 1
    assert failures(findings)[0].startswith("clock: ")
    assert f" s {which} Asterisk's" in failures(findings)[0]


@pytest.mark.parametrize("ahead_s", [-1.4, 1.4])
async def test_clock_that_differs_by_less_than_asterisk_tells_is_no_fault(
    asterisk: SpiedAsterisk, ahead_s: float
) -> None:
    _, findings = await findings_of(configured(asterisk), lambda: time.time() + ahead_s)
    assert failures(findings) == []


def test_configuration_that_the_daemon_could_not_use_is_refused(tmp_path: Path) -> None:
    settings = configured(websocket=f"ca_list_file = {tmp_path}/none.pem\n")
    with pytest.raises(ConfigError):
        Check(settings, print)


# --- The probe -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def probing() -> AsyncIterator[tuple[Probe, Address]]:
    one = Probe()
    yield one, await one.start(Address("127.0.0.1", 0))
    await one.close()


async def test_probe_closes_what_it_did_not_expect() -> None:
    async with probing() as (one, address):
        for data in (b"GET / HTTP/1.1\r\n\r\n", encode(Kind.UUID, bytes(16))):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(data)
            async with asyncio.timeout(2):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()


async def test_probe_keeps_the_frames_of_an_expected_leg_until_it_is_closed() -> None:
    leg_id = str(uuid.uuid4())
    async with probing() as (one, address):
        expected = one.expect(leg_id)
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(encode(Kind.UUID, uuid.UUID(leg_id).bytes) + PAIRS * 3)
        leg: ProbeLeg = await expected
        await leg.wait_frames(3, 2)
        assert len(leg.frames) == 3
        assert not leg.closed
        writer.close()
        await leg.wait_frames(4, 2)
        assert leg.closed
        assert len(leg.frames) == 3
