"""What the check finds out of the audio, and of each tap that brings it."""

from __future__ import annotations

import asyncio
import re

import pytest

from audiofork.audiosocket import Kind, encode
from audiofork.commands import check_audio, probe, remedies
from audiofork.commands.findings import Finding, Mark
from audiofork.commands.probe import TONE, ProbeLeg
from tests.asterisk.test_ari import Answer, answer
from tests.commands.checked import (
    MIX,
    NARROWBAND,
    PAIR,
    SnoopedAri,
    SpiedAsterisk,
    ari_section,
    asterisk_section,
    configured,
    failures,
    findings_of,
    version_of,
)
from tests.control_plane import response

pytestmark = pytest.mark.usefixtures("short")


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
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 1.25)
    asterisk.pace_s = 0.25
    text = (await audio_of(asterisk)).text  # four frames, unless the machine is busy
    assert re.fullmatch(r"audio: [1-6] frames within 1\.25 s, not 50 a second", text)


async def test_silence_that_answers_each_frame_means_no_timing_source(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_audio, "AUDIO_TIMEOUT_S", 0.1)
    asterisk.pace_s = 0
    asterisk.echo = MIX
    found = await audio_of(asterisk)
    assert found.text == "audio: none comes of itself: Asterisk has no timing source"
    assert "module load res_timing_pthread.so" in found.remedy


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
    monkeypatch.setattr("tests.commands.checked.PAIRS", encode(Kind.SLIN, pair * 160))
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


@pytest.mark.parametrize(
    ("answer_of_ari", "told"),
    [
        (answer(200, '{"name": "res_timing_timerfd.so", "status": "Running"}'), True),
        (answer(200, '{"name": "res_timing_timerfd.so", "status": "Not Running"}'), False),
        (answer(404, '{"message": "Module could not be found"}'), False),
    ],
    ids=["running", "not-running", "not-there"],
)
async def test_timing_module_that_loses_ticks_is_told_and_is_no_failure(
    asterisk: SpiedAsterisk, ari: SnoopedAri, answer_of_ari: Answer, told: bool
) -> None:
    ari.answers["/ari/asterisk/modules/res_timing_timerfd.so"] = answer_of_ari
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert outcome == 0
    assert (Finding(Mark.SKIP, remedies.TICKS_ARE_LOST) in findings) == told


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
    asterisk.pace_s = 0.002  # fast enough on a loaded machine too
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
