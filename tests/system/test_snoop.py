"""What the snoop tap alone promises: every frame of both sides, wideband, legs one by one."""

from __future__ import annotations

import array
import asyncio
import audioop
import uuid
from pathlib import Path
from typing import Any

import pytest

from audiofork.asterisk.ari import Ari
from audiofork.asterisk.taps.base import LegOrder
from audiofork.asterisk.taps.snoop import SnoopTap
from audiofork.asterisk.taps.ways import Site, Wish, best_way
from audiofork.asterisk.versions import Version
from audiofork.commands.probe import OneAddress
from audiofork.config import Address, AriConfig
from audiofork.link.messages import Direction, LegPart
from audiofork.relay import beep
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, peak, report, slin_blocks
from testbed.daemon import SECRET, Daemon
from testbed.recorder import Recorder
from testbed.rtp import SLIN16, sent_indices, swap_bytes
from testbed.sip import SipUser
from tests.relay.peers import until
from tests.system.conftest import (
    channels,
    counts_blocks,
    only_channels,
    place_call,
    set_globals,
    start_fork,
    write_slin,
)

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(250, seed=11)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=12)
WIDE = slin_blocks(300, seed=13, sample_rate=16000)
WIDE_SILENCE = bytes(640)

# How the caller sends: milliseconds of jitter, of talk, of silence (DTX).
CALLERS = {
    "no-jitter": (0, 0, 0),
    "jitter-80": (80, 0, 0),
    "jitter-200": (200, 0, 0),
    "dtx": (0, 500, 500),
}


@pytest.fixture(scope="module")
def tap() -> str:
    return "snoop"


@pytest.fixture(params=CALLERS)
def how(request: pytest.FixtureRequest) -> dict[str, int]:
    jitter_ms, talk_ms, silent_ms = CALLERS[request.param]
    return {"jitter_ms": jitter_ms, "talk_ms": talk_ms, "silent_ms": silent_ms}


def sides(stereo: bytes) -> tuple[bytes, bytes]:
    """Return in and out."""
    return audioop.tomono(stereo, 2, 1, 0), audioop.tomono(stereo, 2, 0, 1)


# --- Every frame ---


@counts_blocks
@pytest.mark.parametrize("how", ["dtx"], indirect=True)  # test_audio.py has the others
async def test_in_keeps_every_block_that_was_sent(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, how: dict[str, Any]
) -> None:
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await target.call.play(WARM_UP)
    await target.call.play(BLOCKS + WARM_UP, **how, seed=1)
    await asyncio.sleep(0.3)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    sent = sent_indices(250, how["talk_ms"], how["silent_ms"])
    assert report(find_blocks(recording.audio, HEARD), sent).intact


@pytest.mark.parametrize("direction", ["out", "stereo"])
@counts_blocks
async def test_out_keeps_every_block_of_a_file_whatever_the_caller_sends(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
    how: dict[str, Any],
    direction: str,
) -> None:
    """In stereo both sides are whole: what the caller says meanwhile as well."""
    played = slin_blocks(250, seed=14)
    file = write_slin(tmp_path / "known", played)
    options = f"D({direction})"
    await set_globals(ami, FILE=file, WSSERVER=recorder.url("/"), OPTIONS=options, LEAD="1")
    target = await place_call(ami, caller, "play")
    await recorder.wait_messages("/", 1)
    await target.call.play(BLOCKS + WARM_UP, **how, seed=2)
    await asyncio.sleep(1.5)
    await target.call.hangup()
    audio = (await recorder.wait_closed("/")).audio
    spoken, heard = sides(audio) if direction == "stereo" else (b"", audio)
    assert report(find_blocks(heard, played), 250).intact
    if spoken:
        sent = sent_indices(250, how["talk_ms"], how["silent_ms"])
        assert report(find_blocks(spoken, HEARD), sent).intact
        assert find_blocks(spoken, played) == find_blocks(heard, HEARD) == []


@counts_blocks
async def test_both_has_every_block_of_both_sides(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
    how: dict[str, Any],
) -> None:
    played = slin_blocks(250, seed=15, limit=1)
    file = write_slin(tmp_path / "known", played)
    await set_globals(ami, FILE=file, WSSERVER=recorder.url("/"), OPTIONS="D(both)", LEAD="1")
    target = await place_call(ami, caller, "play")
    await recorder.wait_messages("/", 1)
    await target.call.play(BLOCKS + WARM_UP, **how, seed=3)
    await asyncio.sleep(1.5)
    await target.call.hangup()
    spoken, heard = parted((await recorder.wait_closed("/")).audio)
    assert report(find_blocks(heard, played), 250).intact
    sent = sent_indices(250, how["talk_ms"], how["silent_ms"])
    assert report(find_blocks(spoken, HEARD), sent).intact


def parted(mix: bytes) -> tuple[bytes, bytes]:
    """Take a sum apart: samples that were u-law are multiples of 4, the others -1, 0 or 1."""
    samples = array.array("h", mix)
    small = array.array("h", ((sample + 1) % 4 - 1 for sample in samples))
    large = array.array("h", (sample - part for sample, part in zip(samples, small, strict=True)))
    return large.tobytes(), small.tobytes()


# --- Wideband ---


@pytest.mark.parametrize("options", ["D(in)L(16000)", "D(in)L(0)"])
@counts_blocks
async def test_wideband_in_is_bit_exact(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, options: str
) -> None:
    target = await place_call(ami, caller, codec=SLIN16)
    action_id = start_fork(ami, target.channel, recorder.url("/"), options)
    silence = target.call.play([WIDE_SILENCE], loop=True)
    await recorder.wait_messages("/", 10)
    silence.cancel()
    await target.call.play([swap_bytes(block) for block in WIDE] + [WIDE_SILENCE] * 25)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert report(find_blocks(recording.audio, WIDE), 300).intact
    assert {len(message) for message in recording.messages} == {640}
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    assert started["SampleRate"] == "16000"


@counts_blocks
async def test_wideband_stereo_of_a_file_is_bit_exact_on_both_sides(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    played = slin_blocks(300, seed=16, sample_rate=16000)
    file = write_slin(tmp_path / "known", played, ".sln16")
    options = "D(stereo)L(16000)"
    await set_globals(ami, FILE=file, WSSERVER=recorder.url("/"), OPTIONS=options, LEAD="1")
    target = await place_call(ami, caller, "play", codec=SLIN16)
    await recorder.wait_messages("/", 1)
    await target.call.play([swap_bytes(block) for block in WIDE] + [WIDE_SILENCE] * 100)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    left, right = sides(recording.audio)
    assert report(find_blocks(left, WIDE), 300).intact
    assert report(find_blocks(right, played), 300).intact
    assert {len(message) for message in recording.messages} == {1280}


@counts_blocks
async def test_wideband_takes_volume_and_longer_messages(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait", codec=SLIN16)
    start_fork(ami, target.channel, recorder.url("/"), "D(stereo)L(16000)F(60)v(1)")
    silence = target.call.play([WIDE_SILENCE], loop=True)
    await recorder.wait_messages("/", 10)
    silence.cancel()
    await target.call.play([swap_bytes(block) for block in WIDE] + [WIDE_SILENCE] * 25)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    left, right = sides(recording.audio)
    louder = [audioop.mul(block, 2, 2) for block in WIDE]
    assert report(find_blocks(left, louder), 300).intact
    assert not any(right)
    lengths = [len(message) for message in recording.messages[:-1]]
    assert set(lengths) <= {1280, 2560, 3840}
    # On a busy machine frames wait so long for their message that it goes out without the rest.
    assert lengths.count(3840) > 0.8 * len(lengths)


async def test_wideband_beep_and_mute(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """The beep that the party hears is as loud as at 8000 Hz, and a fifth of a second long."""
    target = await place_call(ami, caller, codec=SLIN16)
    target.call.recording = True
    target.call.play([WIDE_SILENCE], loop=True)
    await asyncio.sleep(0.3)
    start_fork(ami, target.channel, recorder.url("/"), "D(both)L(16000)p")
    await recorder.wait_messages("/", 50)
    ami.send(
        "UserEvent",
        UserEvent="AudioFork",
        Command="AudioForkMute",
        Channel=target.channel,
        Direction="both",
        State="1",
    )
    await daemon.says("muted: both")
    seen = len(recorder.at("/")[0].messages) + 10
    await recorder.wait_messages("/", seen + 25)
    peaks = [peak(swap_bytes(one.payload)) for one in target.call.received]
    loud = [level for level in peaks if level > 100]
    assert max(loud) == pytest.approx(beep.AMPLITUDE, rel=0.1)
    assert 9 <= len(loud) <= 12
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert set(recording.messages[seen:]) == {WIDE_SILENCE}


async def test_own_rate_of_a_narrow_channel_is_8000(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), "D(in)L(0)")
    recording = await recorder.wait_messages("/", 10)
    assert {len(message) for message in recording.messages} == {320}
    await target.call.hangup()
    await recorder.wait_closed("/")


# --- One leg of two ---


@counts_blocks
async def test_lost_leg_of_one_side_comes_back_while_the_other_goes_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait")
    action_id = start_fork(ami, target.channel, recorder.url("/"), "D(stereo)")
    await target.call.play(WARM_UP)
    playing = target.call.play(BLOCKS + WARM_UP)
    await asyncio.sleep(2)
    for uniqueid in await channels(ami, "Uniqueid"):
        if uniqueid.endswith("-out"):
            await ami.action("Hangup", Channel=uniqueid)
    away = await ami.wait_user_event("AudioForkReconnecting", ActionID=action_id)
    back = await ami.wait_user_event("AudioForkResumed", ActionID=action_id)
    await playing
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert away["Reason"] == "the leg of out was lost: Asterisk closed it"
    assert int(back["GapMs"]) < 1000
    left, right = sides(recording.audio)
    assert report(find_blocks(left, HEARD), 250).intact
    assert not any(right)


# --- Hygiene ---


async def test_fork_leaves_no_call_record_and_no_channel(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    rows = len(asterisk.cdr_rows())
    target = await place_call(ami, caller)
    target.call.talk()
    for number, options in enumerate(("D(both)", "D(stereo)L(16000)")):
        start_fork(ami, target.channel, recorder.url(f"/{number}"), options)
        await recorder.wait_messages(f"/{number}", 10)
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=target.channel)
    await only_channels(ami, target.channel)
    await target.call.hangup()
    await only_channels(ami)
    await until(lambda: len(asterisk.cdr_rows()) > rows)
    assert len(asterisk.cdr_rows()) == rows + 1


class CountingAri(Ari):
    """Counts the events that come."""

    events = 0

    def _on_event(self, data: Any) -> None:
        self.events += 1
        super()._on_event(data)


async def test_a_hundred_legs_are_told_of_by_one_event_each_and_by_no_more(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    config = AriConfig(
        url=f"http://127.0.0.1:{asterisk.http_port}/ari", password=SECRET, app="count"
    )
    legs = []
    server = await asyncio.start_server(
        lambda reader, writer: legs.append((reader, writer)), "127.0.0.1", 0, limit=1 << 24
    )
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    async with CountingAri(config) as ari:
        running = asyncio.create_task(ari.run())
        await ari.wait_ready(5)
        tap = SnoopTap(ari, config, OneAddress(address))
        version = Version.parse(asterisk.installation.version)
        way = best_way(Wish(Direction.IN), Site(version))
        assert way is not None
        targets = [await place_call(ami, caller) for _ in range(20)]
        for target in targets:
            target.call.talk()
            for _ in range(5):
                fork_id = str(uuid.uuid4())
                leg_id = tap.name_leg(fork_id, LegPart.IN, anew=False)
                await tap.start(
                    LegOrder(
                        leg_id=leg_id,
                        uuid=str(uuid.uuid4()),
                        fork_id=fork_id,
                        part=LegPart.IN,
                        uniqueid=target.uniqueid,
                        connects=way.connects,
                        sample_rate=8000,
                    )
                )
        assert ari.events == 100
        await asyncio.sleep(5)
        assert len(legs) == 100
        for target in targets:
            await target.call.hangup()
        await only_channels(ami)
        await ari.get("/asterisk/ping")
        assert ari.events == 100
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    for _, writer in legs:
        writer.close()
    server.close()


@pytest.mark.parametrize("options", ["D(stereo)", "D(stereo)F(200)"])
@counts_blocks
async def test_sides_of_an_echo_stay_as_far_apart_as_they_are(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, options: str
) -> None:
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), options)
    await target.call.play(WARM_UP)
    await target.call.play(BLOCKS + WARM_UP)
    await asyncio.sleep(0.5)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    left, right = sides(recording.audio)
    for side in (left, right):
        f = find_blocks(side, HEARD)
        print("missing", sorted(set(range(250)) - set(f)), len(side) // 320)
    for side in (left, right):
        assert report(find_blocks(side, HEARD), 250).intact
    apart = {(right.find(block) - left.find(block)) // 320 for block in HEARD}
    assert max(apart) - min(apart) <= 1
    if "F" in options:
        whole = [len(message) for message in recording.messages[1:-1]]
        assert whole.count(10 * 640) >= 0.9 * len(whole)
