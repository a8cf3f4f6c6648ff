"""The audio that arrives at the server is the audio of the call."""

from __future__ import annotations

import asyncio
import audioop
import itertools
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.blocks import decode, find_blocks, make_blocks, report, slin_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder, Recording
from testbed.sip import SipUser
from tests.system.conftest import (
    Target,
    counts_blocks,
    each_tap,
    needs_pairs,
    needs_whole_in,
    place_call,
    set_globals,
    start_fork_heard,
    write_slin,
)

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(250, seed=1)
HEARD = [decode(block) for block in BLOCKS]
# Spoken before the blocks until the fork streams, and after them to push the last ones through.
WARM_UP = make_blocks(25, seed=2)
SILENCE = [b"\xff" * 160]


tap = each_tap


async def fork_while_talking(
    ami: AmiClient, caller: SipUser, recorder: Recorder, direction: str
) -> Target:
    """Place a call to Echo() and fork it once the caller has sent some audio."""
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, recorder.url("/"), f"D({direction})")
    return target


@needs_pairs(jitter_ms=[0, 80])  # at a narrowband site half of them is taken where that is better
@needs_whole_in(jitter_ms=[200])
@pytest.mark.parametrize("jitter_ms", [0, 80, 200])
@counts_blocks
async def test_in_keeps_every_block_under_jitter(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, jitter_ms: int
) -> None:
    target = await fork_while_talking(ami, caller, recorder, "in")
    await target.call.play(BLOCKS + WARM_UP, jitter_ms=jitter_ms, seed=3)
    await asyncio.sleep(0.3)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert report(find_blocks(recording.audio, HEARD), 250).intact
    assert {len(message) for message in recording.messages} == {320}


@needs_pairs()
@pytest.mark.parametrize("jitter_ms", [0, 80])
@counts_blocks
async def test_out_keeps_every_block_of_a_file_under_jitter(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
    jitter_ms: int,
) -> None:
    played = slin_blocks(400, seed=4)
    file = write_slin(tmp_path / "known", played)
    await set_globals(ami, FILE=file, WSSERVER=recorder.url("/"), OPTIONS="D(out)", LEAD="0")
    target = await place_call(ami, caller, "play")
    target.call.play(WARM_UP, jitter_ms=jitter_ms, loop=True)
    recording = await recorder.wait_messages("/", 400, timeout_s=30)
    async with asyncio.timeout(30):
        while not find_blocks(recording.audio, played[-1:]):  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.5)
    await target.call.hangup()
    await recorder.wait_closed("/")
    assert report(find_blocks(recording.audio, played), 400).intact


@needs_pairs(direction=["out", "stereo"])
@pytest.mark.parametrize("direction", ["out", "both", "stereo"])
async def test_messages_come_50_a_second_in_whole_frames(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, direction: str
) -> None:
    target = await fork_while_talking(ami, caller, recorder, direction)
    target.call.talk()
    recording = await recorder.wait_messages("/", 450, timeout_s=20)
    await target.call.hangup()
    await recorder.wait_closed("/")
    span_s = recording.times[425] - recording.times[25]
    assert 400 / span_s == pytest.approx(50, rel=0.01)
    size = 640 if direction == "stereo" else 320
    assert {len(message) for message in recording.messages} == {size}


@needs_pairs()
@counts_blocks
async def test_stereo_has_in_left_and_out_right_within_one_frame(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Echo() sends back at once what it hears, so both sides carry the same blocks."""
    target = await fork_while_talking(ami, caller, recorder, "stereo")
    await target.call.play(BLOCKS + WARM_UP)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    left = audioop.tomono(recording.audio, 2, 1, 0)
    right = audioop.tomono(recording.audio, 2, 0, 1)
    assert report(find_blocks(left, HEARD), 250).intact
    assert report(find_blocks(right, HEARD), 250).intact
    shift_samples = (right.find(HEARD[100]) - left.find(HEARD[100])) // 2
    assert 0 <= shift_samples <= 160


@needs_pairs()
@counts_blocks
async def test_stereo_keeps_the_two_parties_apart(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
    tap: str,
) -> None:
    recording, played = await record_talk_over_file(ami, caller, recorder, tmp_path, "stereo")
    left = audioop.tomono(recording.audio, 2, 1, 0)
    right = audioop.tomono(recording.audio, 2, 0, 1)
    spoken = report(find_blocks(left, HEARD), 250)
    # ChanSpy drops up to one frame of in at the moment when out begins.
    assert spoken.missing <= (tap == "chanspy")
    assert not spoken.duplicated
    assert not spoken.out_of_order
    assert report(find_blocks(right, played), 250).intact
    assert find_blocks(left, played) == find_blocks(right, HEARD) == []


@counts_blocks
async def test_both_is_the_saturated_sum_of_the_two_parties(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    """Where one side is silent that is the other side itself; elsewhere the two added up."""
    recording, played = await record_talk_over_file(ami, caller, recorder, tmp_path, "both")
    spoken_alone = find_blocks(recording.audio, HEARD)
    assert len(spoken_alone) >= 40
    assert len(find_blocks(recording.audio, played)) >= 40
    last = next(block for block in spoken_alone if block + 1 not in spoken_alone)
    overlap = recording.audio[recording.audio.find(HEARD[last]) + 320 :]
    added, slips = added_up(overlap, HEARD[last + 1 :], played)
    assert added >= 100
    assert slips <= 4


def added_up(audio: bytes, spoken: list[bytes], played: list[bytes]) -> tuple[int, int]:
    """Follow two streams of blocks through their sum, until it is neither sum nor one of them.

    Where a block reaches Asterisk at the very moment of a leg's tick, the tick may miss it: then
    there is one side alone, and that side is a frame later from then on. ChanSpy drops a frame or
    two of in at the moment when out begins.

    Returns:
        How many frames were the saturated sum, and how often a frame was something else, or blocks
        were left out.
    """
    added = slips = said = heard = 0
    for start in range(0, len(audio), 320):
        frame = audio[start : start + 320]
        if said == len(spoken) or heard == len(played):
            break
        sides = itertools.product(_next_of(spoken, said), _next_of(played, heard))
        sums = {audioop.add(one, other, 2): (n, m) for (n, one), (m, other) in sides}
        alone = {other: (said, m) for m, other in _next_of(played, heard)}
        alone |= {one: (n, heard) for n, one in _next_of(spoken, said)}
        if frame in sums:
            slips += sums[frame] != (said + 1, heard + 1)
            added += 1
            said, heard = sums[frame]
        elif frame in alone:
            slips += 1
            said, heard = alone[frame]
        elif any(frame):
            break
        else:
            slips += 1
    return added, slips


def _next_of(blocks: list[bytes], position: int) -> list[tuple[int, bytes]]:
    """Return the next few blocks, each with the position after it."""
    return list(enumerate(blocks[position : position + 4], position + 1))


async def record_talk_over_file(
    ami: AmiClient, caller: SipUser, recorder: Recorder, folder: Path, direction: str
) -> tuple[Recording, list[bytes]]:
    """Play a known file to a caller who speaks known blocks, the blocks first and alone."""
    played = slin_blocks(250, seed=5)
    file = write_slin(folder / "known", played)
    options = f"D({direction})"
    await set_globals(ami, FILE=file, WSSERVER=recorder.url("/"), OPTIONS=options, LEAD="2")
    target = await place_call(ami, caller, "play")
    target.call.play(SILENCE * 10)
    await recorder.wait_messages("/", 10)
    await target.call.play(BLOCKS + SILENCE * 150)
    await target.call.hangup()
    return await recorder.wait_closed("/"), played
