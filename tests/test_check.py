"""The check against a feigned Asterisk: the faults that a real one cannot be made to show.

Those that it can are in tests/asterisk/test_check.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from audiofork import check as checking
from audiofork import config, probe
from audiofork.check import Check, Finding, Mark, Outcome
from audiofork.config import Address, Config
from audiofork.control.socket import ControlSocket
from audiofork.errors import ConfigError
from audiofork.probe import TONE, Probe, ProbeLeg
from audiofork.relay.audiosocket import Decoder, Kind, encode
from tests.control.conftest import FakeAsterisk, block, response

PAIR = TONE.to_bytes(2, "little") + b"\0\0"
PAIRS = encode(Kind.SLIN, PAIR * 160)


class SpiedAsterisk(FakeAsterisk):
    """A FakeAsterisk that brings legs, as far as a check can tell.

    Attributes:
        pace_s: Time between two frames of the leg that spies; 0: it sends none.
        frame: What it sends.
        echo: What it answers to each frame that it gets.
        brings_legs: Whether it does anything about an Originate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers["Getvar"] = lambda action: response(action, f"Value: {int(time.time())}")
        self.answers["ModuleCheck"] = lambda action: denied(action)
        self.answers["UserEvent"] = self._raise
        self.answers["Originate"] = self._originate
        self.pace_s = 0.02
        self.frame = PAIRS
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
        sending = asyncio.create_task(self._send(writer))
        if action["application"] != "ChanSpy":
            sending.cancel()
        decoder = Decoder()
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65_536):
                if action["application"] == "ChanSpy" and self.echo:
                    for _ in decoder.feed(chunk):
                        writer.write(self.echo)
        sending.cancel()
        writer.close()
        self.connections[-1].send(block("Event: Hangup", f"Uniqueid: {action['channelid']}"))

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while self.pace_s:
            await asyncio.sleep(self.pace_s)
            writer.write(self.frame)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().stop()


def denied(action: dict[str, str]) -> bytes:
    return response(action, "Message: Permission denied", ok=False)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen to a fifth of a second in place of a whole one."""
    monkeypatch.setattr(checking, "FRAMES_WANTED", 10)


@pytest.fixture
async def asterisk() -> AsyncIterator[SpiedAsterisk]:
    one = SpiedAsterisk()
    await one.start()
    yield one
    await one.stop()


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
        *("daemon", "open files", "login", "rights", "clock"),
        *("requests", "AudioSocket", "audio", "hangups"),
    ]


def test_finding_is_a_line_and_its_remedy_stands_indented_below() -> None:
    remedy = "word " * 40
    lines = str(Finding(Mark.FAIL, "audio: none comes", remedy)).splitlines()
    assert lines[0] == "FAIL  audio: none comes"
    assert len(lines) == 4
    assert all(line.startswith("        word") and len(line) <= 92 for line in lines[1:])
    assert str(Finding(Mark.OK, "login")) == "ok    login"


# --- The way to Asterisk -------------------------------------------------------------------------


async def test_port_without_a_listener_is_unreachable() -> None:
    outcome, findings = await findings_of(configured())
    assert outcome == 4
    assert failures(findings)[0].startswith("Asterisk at 127.0.0.1:9: ")
    assert "manager.conf: enabled = yes" in findings[-1].remedy


async def test_peer_that_answers_nothing_is_unreachable(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.control.ami.ACTION_TIMEOUT_S", 0.05)
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


async def audio_of(asterisk: SpiedAsterisk) -> Finding:
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    (found,) = [finding for finding in findings if finding.text.startswith("audio:")]
    assert found.mark is Mark.FAIL
    return found


async def test_mono_frames_mean_that_chanspy_has_no_d(asterisk: SpiedAsterisk) -> None:
    asterisk.frame = encode(Kind.SLIN, bytes(320))
    found = await audio_of(asterisk)
    assert found.text == "audio: the ChanSpy of Asterisk 22.5.2 has no option D"
    assert "18.22, 20.7, 21.2, 22 or later" in found.remedy


async def test_half_the_pace_is_a_fault(asterisk: SpiedAsterisk) -> None:
    asterisk.pace_s = 0.04
    found = await audio_of(asterisk)
    assert found.text.endswith("frames a second, not 50")
    assert "too busy" in found.remedy


async def test_audio_that_stays_away_after_a_few_frames_is_a_fault(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "AUDIO_TIMEOUT_S", 0.25)
    asterisk.pace_s = 0.1
    assert (await audio_of(asterisk)).text == "audio: 2 frames within 0.25 s, not 50 a second"


async def test_silence_that_answers_each_frame_means_no_timing_source(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "AUDIO_TIMEOUT_S", 0.1)
    asterisk.pace_s = 0
    asterisk.echo = PAIRS
    found = await audio_of(asterisk)
    assert found.text == "audio: none comes of itself: Asterisk has no timing source"
    assert "module load res_timing_timerfd.so" in found.remedy


async def test_silence_that_answers_nothing_is_a_fault(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "AUDIO_TIMEOUT_S", 0.1)
    asterisk.pace_s = 0
    assert (await audio_of(asterisk)).text == "audio: none comes"


@pytest.mark.parametrize("pair", [bytes(4), PAIR[::-1], b"\0\0" + PAIR[:2], PAIR[:2] * 2], ids=repr)
async def test_audio_that_is_not_the_targets_is_a_fault(
    asterisk: SpiedAsterisk, pair: bytes
) -> None:
    asterisk.frame = encode(Kind.SLIN, pair * 160)
    assert "not what the target was sent" in (await audio_of(asterisk)).text


async def test_leg_that_never_comes_is_a_fault_after_its_time(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LEG_TIMEOUT_S", 0.05)
    monkeypatch.setattr(checking, "EVENT_TIMEOUT_S", 0.05)
    asterisk.brings_legs = False
    _, findings = await findings_of(configured(asterisk))
    (failed,) = failures(findings)
    assert "no leg came within 0.05 s" in failed
    (remedy,) = [finding.remedy for finding in findings if finding.remedy]
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
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 4399))
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    assert failures(findings) == [
        "open files: a process started here may have 4399, max_forks = 1000 takes 4400"
    ]
    assert "LimitNOFILE=4400" in findings[1].remedy


@pytest.mark.parametrize("limit", [4400, resource.RLIM_INFINITY])
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
