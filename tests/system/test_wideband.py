"""Calls with wideband audio: each side comes at its own pitch, or the fork is refused and says why.

ChanSpy's option D takes 160 samples of each frame, whatever its rate: half of the audio, at half
its pitch, in calls at 16 kHz. Two frequencies, one a side, show that at once.
"""

from __future__ import annotations

import audioop
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from audiofork.asterisk.versions import CHANSPY_PAIRS
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, asterisk_settings
from testbed.recorder import Recorder
from testbed.rtp import G722, SLIN16, ULAW, Codec, swap_bytes
from testbed.sip import Call, SipUser
from testbed.tones import pitches, tone
from tests.system.conftest import Target, needs, place_call, set_globals, start_fork

pytestmark = [
    pytest.mark.asterisk,
    needs(CHANSPY_PAIRS, "ChanSpy that keeps in and out apart", site=["narrowband"]),
]

IN_HZ, OUT_HZ, PROMPT_HZ = 1000, 600, 700
# What else is looked for: half and a sixth of those, as wrong frames give them.
CANDIDATES_HZ = (100, 117, 167, 300, 350, 500, OUT_HZ, PROMPT_HZ, IN_HZ)
CODECS = {"ulaw": ULAW, "slin16": SLIN16, "g722": G722}
EXPECTED = {
    "in": ([IN_HZ],),
    "out": ([OUT_HZ],),
    "both": ([OUT_HZ, IN_HZ],),
    "stereo": ([IN_HZ], [OUT_HZ]),
}
LISTEN_MESSAGES = 60


@pytest.fixture(scope="module", params=["snoop", "chanspy", "narrowband"])
def site(request: pytest.FixtureRequest) -> str:
    """How the daemon is configured: with ARI, as shipped, or by chanspy_pairs = narrowband."""
    value: str = request.param
    return value


@pytest.fixture(scope="module")
def tap(site: str) -> str:
    return "snoop" if site == "snoop" else "chanspy"


@pytest.fixture(scope="module")
def settings(site: str, asterisk: Asterisk) -> dict[str, str]:
    return {"asterisk": asterisk_settings(asterisk)} if site == "chanspy" else {}


class Speech:
    """Makes the payloads of a tone in a codec; Asterisk itself does what is not linear."""

    def __init__(self, asterisk: Asterisk, folder: Path) -> None:
        self._asterisk = asterisk
        self._folder = folder

    def payloads(self, codec: Codec, frequency_hz: int) -> list[bytes]:
        """Return a second of a tone, in payloads of 20 ms."""
        if codec is ULAW:
            audio = audioop.lin2ulaw(tone(frequency_hz, 1), 2)
        elif codec is SLIN16:
            audio = swap_bytes(tone(frequency_hz, 1, 16000))
        else:
            audio = self._g722(frequency_hz)
        size = codec.frame_bytes
        return [audio[start : start + size] for start in range(0, len(audio), size)]

    def _g722(self, frequency_hz: int) -> bytes:
        linear = self._folder / f"{frequency_hz}.sln16"
        coded = linear.with_suffix(".g722")
        linear.write_bytes(tone(frequency_hz, 1, 16000))
        self._asterisk.cli(f"file convert {linear} {coded}")
        return coded.read_bytes()


@pytest.fixture
def speech(asterisk: Asterisk, tmp_path: Path) -> Speech:
    return Speech(asterisk, tmp_path)


@dataclass
class Dialled:
    """A call between two phones.

    Attributes:
        target: The caller's leg, which is forked.
        answered: The callee's.
    """

    target: Target
    answered: Call


@contextlib.asynccontextmanager
async def call_between(
    ami: AmiClient, caller: SipUser, asterisk: Asterisk, ours: Codec, theirs: Codec
) -> AsyncIterator[Dialled]:
    """Have two phones speak, each with a codec of its own."""
    server = ("127.0.0.1", asterisk.sip_port)
    async with SipUser("callee", server, answer=True, codecs=(theirs,)) as callee:
        await callee.register()
        target = await place_call(ami, caller, "callee", codec=ours)
        dialled = Dialled(target, await callee.incoming())
        yield dialled
        await target.call.hangup()
        await dialled.answered.wait_ended()


async def outcome(
    ami: AmiClient, recorder: Recorder, channel: str, direction: str, more: str = ""
) -> str:
    """Fork a channel for a second; return why that was refused, or nothing."""
    position = len(ami.events)
    action_id = start_fork(ami, channel, recorder.url(f"/{direction}"), f"D({direction}){more}")
    event = await ami.wait_event(
        lambda h: (
            h.get("UserEvent") in ("AudioForkStarted", "AudioForkFailed")
            and h.get("ActionID") == action_id
        ),
        after=position,
    )
    if event["UserEvent"] == "AudioForkFailed":
        return event["Reason"]
    await recorder.wait_messages(f"/{direction}", LISTEN_MESSAGES)
    stop = {"Command": "StopAudioFork", "AudioForkID": event["AudioForkID"]}
    ami.send("UserEvent", UserEvent="AudioFork", **stop)
    await recorder.wait_closed(f"/{direction}")
    return ""


def heard(recorder: Recorder, direction: str) -> tuple[list[int], ...]:
    """Return the pitches on each side of what the last fork of a direction brought."""
    audio = recorder.at(f"/{direction}")[-1].audio
    sides = [audio]
    if direction == "stereo":
        sides = [audioop.tomono(audio, 2, *side) for side in ((1, 0), (0, 1))]
    # The last half second: the first frames of a fork may be silence.
    return tuple(pitches(side[-8000:], CANDIDATES_HZ) for side in sides)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ulaw", "ulaw"),
        ("slin16", "slin16"),
        ("slin16", "ulaw"),
        ("ulaw", "slin16"),
        ("g722", "g722"),
        ("g722", "ulaw"),
        ("ulaw", "g722"),
    ],
)
async def test_each_side_comes_at_its_pitch_or_the_fork_is_refused(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    asterisk: Asterisk,
    speech: Speech,
    site: str,
    ours: str,
    theirs: str,
) -> None:
    wide = {ours, theirs} != {"ulaw"}
    async with call_between(ami, caller, asterisk, CODECS[ours], CODECS[theirs]) as dialled:
        dialled.target.call.play(speech.payloads(CODECS[ours], IN_HZ), loop=True)
        dialled.answered.play(speech.payloads(CODECS[theirs], OUT_HZ), loop=True)
        for direction, expected in EXPECTED.items():
            why = await outcome(ami, recorder, dialled.target.channel, direction)
            if site == "chanspy" and direction in ("out", "stereo"):
                assert "set up [ari]" in why
                assert "chanspy_pairs = narrowband" in why
            elif site == "narrowband" and direction in ("out", "stereo") and wide:
                assert "the call has wideband audio" in why
                assert "set up [ari]" in why
            else:
                assert why == ""
                assert heard(recorder, direction) == expected


# Who declares the site narrow has no such prompts.
@pytest.mark.parametrize("site", ["snoop", "chanspy"], indirect=True, scope="module")
async def test_prompt_at_16_khz_leaves_a_mu_law_call_as_it_is(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    speech: Speech,
    site: str,
    tmp_path: Path,
) -> None:
    """Once a frame at 16 kHz has passed, ChanSpy's hook is at that rate for good."""
    (tmp_path / "prompt.sln16").write_bytes(tone(PROMPT_HZ, 2, 16000))
    await set_globals(ami, FILE=str(tmp_path / "prompt"), WSSERVER=recorder.url("/prompted"))
    await set_globals(ami, OPTIONS="D(both)", LEAD="0.5")
    target = await place_call(ami, caller, "play")
    target.call.play(speech.payloads(ULAW, IN_HZ), loop=True)
    recording = await recorder.wait_messages("/prompted", 200)
    audio = recording.audio
    prompted = [
        start
        for start in range(0, len(audio) - 8000, 1600)
        if pitches(audio[start : start + 8000], CANDIDATES_HZ) == [PROMPT_HZ, IN_HZ]
    ]
    assert len(prompted) >= 8
    assert pitches(audio[-8000:], CANDIDATES_HZ) == [IN_HZ]
    for direction in ("in", "both"):
        assert await outcome(ami, recorder, target.channel, direction) == ""
        assert heard(recorder, direction) == ([IN_HZ],)
    await target.call.hangup()


# Not where the site is declared to have no wideband audio: then it is not what it says.
@pytest.mark.parametrize("site", ["snoop", "chanspy"], indirect=True, scope="module")
async def test_codec_that_changes_and_changes_back_in_mid_call_changes_no_pitch(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    asterisk: Asterisk,
    speech: Speech,
    site: str,
) -> None:
    async with call_between(ami, caller, asterisk, ULAW, ULAW) as dialled:
        call = dialled.target.call
        dialled.answered.play(speech.payloads(ULAW, OUT_HZ), loop=True)
        speaking = call.play(speech.payloads(ULAW, IN_HZ), loop=True)
        start_fork(ami, dialled.target.channel, recorder.url("/whole"), "D(both)")
        await recorder.wait_messages("/whole", 50)
        for codec in (SLIN16, ULAW):
            speaking.cancel()
            await call.offer(codec)
            speaking = call.play(speech.payloads(codec, IN_HZ), loop=True)
            count = len(recorder.at("/whole")[0].messages)
            recording = await recorder.wait_messages("/whole", count + 75)
            assert pitches(recording.audio[-8000:], CANDIDATES_HZ) == [OUT_HZ, IN_HZ]
        for direction, expected in EXPECTED.items():
            if site == "snoop" or direction in ("in", "both") and site == "chanspy":
                assert await outcome(ami, recorder, dialled.target.channel, direction) == ""
                assert heard(recorder, direction) == expected


@pytest.mark.parametrize("site", ["narrowband"], indirect=True, scope="module")
async def test_wideband_party_that_enters_the_bridge_ends_a_narrowband_fork_with_the_reason(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    asterisk: Asterisk,
    speech: Speech,
    site: str,
) -> None:
    server = ("127.0.0.1", asterisk.sip_port)
    async with SipUser("callee", server, answer=True, codecs=(SLIN16,)) as callee:
        await callee.register()
        position = len(ami.events)
        target = await place_call(ami, caller, "third")
        start_fork(ami, target.channel, recorder.url("/"), "D(stereo)")
        target.call.play(speech.payloads(ULAW, IN_HZ), loop=True)
        await recorder.wait_messages("/", 10)
        where = {"Context": "testbed", "Exten": "callee", "Priority": "1"}
        await ami.action("Redirect", Channel=target.channel, **where)
        event = await ami.wait_event(
            lambda h: h.get("UserEvent") == "AudioForkStopped", after=position
        )
        assert event["Reason"] == "leg-failed"
        assert "wideband audio (slin16)" in event["Detail"]
        await target.call.hangup()
