"""What somebody who looks sees of real calls, and what somebody who listens hears.

The daemon runs in the test's own process, so that the test is what a door is.
"""

from __future__ import annotations

import asyncio
import audioop
import contextlib
import math
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from audiofork import config_file
from audiofork.asterisk.versions import UNKNOWN
from audiofork.daemon import Daemon
from audiofork.link.messages import EndReason, HeardAudio, LegPart, Levels
from audiofork.link.processes import RelayProcesses
from audiofork.link.workers import ProcessWorker
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.bots import BOT
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    needs_pairs,
    needs_whole_in,
    no_channels,
    place_call,
    set_globals,
    settings_of,
    start_fork,
)
from tests.system.servers import server
from tests.system.test_connect_audio import echo_binary

pytestmark = pytest.mark.asterisk

AMPLITUDE = 8000
WAIT_S = 20.0
BLOCKS = make_blocks(150, seed=171)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=172)


def tone() -> list[bytes]:
    """Return a second of 1000 Hz, in µ-law packets of 20 ms."""
    samples = [round(AMPLITUDE * math.sin(math.tau * n / 8)) for n in range(8000)]
    ulaw = audioop.lin2ulaw(struct.pack("<8000h", *samples), 2)
    return [ulaw[start : start + 160] for start in range(0, 8000, 160)]


TONE = tone()
PEAK, RMS = audioop.max(decode(TONE[0]), 2), audioop.rms(decode(TONE[0]), 2)


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


@contextlib.asynccontextmanager
async def running(
    asterisk: Asterisk, folder: Path, relay: str = "workers = 1\n"
) -> AsyncIterator[Daemon]:
    """Run a daemon in this process."""
    sections = {
        **settings_of("chanspy", asterisk),
        "audiosocket": "listen = 127.0.0.1:0\n",
        "control": f"socket = {folder}/control.sock\n",
        "daemon": f"journal = {folder}/journal.sqlite3\n",
        "relay": relay,
    }
    path = folder / "audiofork.ini"
    path.write_text("".join(f"[{name}]\n{text}" for name, text in sections.items()))
    daemon = Daemon(path, config_file.load(path))
    run = asyncio.create_task(daemon.run())
    try:
        await until(lambda: daemon.ready.is_set() and daemon.ami.version != UNKNOWN)
        yield daemon
    finally:
        daemon._stop.set()
        await run


@pytest.fixture
async def daemon(asterisk: Asterisk, ami: AmiClient, tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running(asterisk, tmp_path) as one:
        yield one
        await no_channels(ami)


async def streaming(ami: AmiClient, target: Target, url: str, options: str) -> str:
    """Fork a call; return the fork's id once it streams."""
    action_id = start_fork(ami, target.channel, url, options)
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    return started["AudioForkID"]


class Viewer:
    """Looks at the levels of one fork."""

    def __init__(self, daemon: Daemon, fork_id: str) -> None:
        self._fork_id = fork_id
        self.levels: list[Levels] = []
        self.close = daemon.watching.subscribe_levels(self._on_levels)

    def _on_levels(self, levels: Mapping[str, Levels]) -> None:
        self.levels += [levels[self._fork_id]] if self._fork_id in levels else []

    async def sees(self, condition: Callable[[Levels], bool]) -> float:
        """Wait for levels; return the seconds that it took."""
        began, first = asyncio.get_running_loop().time(), len(self.levels)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while not any(map(condition, self.levels[first:])):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert any(map(condition, self.levels[first:])), self.levels[first:]
        return asyncio.get_running_loop().time() - began


class Listener:
    """Listens to a fork; keeps what it hears."""

    def __init__(self, daemon: Daemon, fork_id: str) -> None:
        self.heard: list[HeardAudio] = []
        self.ended: asyncio.Future[EndReason] = asyncio.get_running_loop().create_future()
        self.stop = daemon.watching.listen(
            fork_id, self.heard.append, who="the test", on_end=self.ended.set_result
        )

    @property
    def samples(self) -> bytes:
        return b"".join(one.samples for one in self.heard)

    def side(self, channel: int) -> bytes:
        """Return one of the two sides."""
        return audioop.tomono(self.samples, 2, 1 - channel, channel)


@needs_pairs()
async def test_meters_move_with_a_tone_and_rest_with_silence(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait")
    fork_id = await streaming(ami, target, recorder.url("/a"), "D(stereo)")
    viewer = Viewer(daemon, fork_id)
    silent = Levels(0, 0, 0, 0)
    await viewer.sees(lambda levels: levels == silent)
    playing = target.call.play(TONE, loop=True)
    rose_s = await viewer.sees(lambda levels: levels == Levels(PEAK, RMS, 0, 0))
    await asyncio.sleep(1)
    assert all(abs(one.in_rms - RMS) < RMS / 10 for one in viewer.levels[-4:]), viewer.levels
    playing.cancel()
    fell_s = await viewer.sees(lambda levels: levels == silent)
    print(f"meters: up after {rose_s * 1000:.0f} ms, down after {fell_s * 1000:.0f} ms")
    viewer.close()
    await target.call.hangup()
    await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)


@needs_whole_in()
@counts_blocks
async def test_listener_hears_the_caller_bit_exact_and_learns_of_the_end(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "echo")
    await target.call.play(WARM_UP)
    talking = target.call.play(WARM_UP, loop=True)
    fork_id = await streaming(ami, target, recorder.url("/a"), "D(in)F(100)")
    listener = Listener(daemon, fork_id)
    talking.cancel()
    await target.call.play([*BLOCKS, *WARM_UP])
    await target.call.hangup()
    async with asyncio.timeout(WAIT_S):
        assert await listener.ended is EndReason.HANGUP
    assert {(one.sides, one.sample_rate) for one in listener.heard} == {((LegPart.IN,), 8000)}
    assert report(find_blocks(listener.samples, HEARD), len(BLOCKS)).intact
    recorded = (await recorder.wait_messages("/a", 1)).audio
    assert report(find_blocks(recorded, HEARD), len(BLOCKS)).intact


@counts_blocks
async def test_listener_of_a_connected_call_hears_the_server_beside_the_caller(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    async with server(echo_binary) as url:
        await set_globals(ami, BOT_URL=url, BOT_OPTIONS="x(json)")
        target = await place_call(ami, caller, "bot")
        talking = target.call.play(WARM_UP, loop=True)
        started = await ami.wait_user_event("AudioForkStarted", Uniqueid=target.uniqueid)
        listener = Listener(daemon, started["AudioForkID"])
        viewer = Viewer(daemon, started["AudioForkID"])
        await viewer.sees(lambda levels: levels.in_peak > 0 and levels.out_peak > 0)
        talking.cancel()
        await target.call.play([*BLOCKS, *WARM_UP])
        await asyncio.sleep(0.2)
        await viewer.sees(lambda levels: levels.in_peak == levels.out_peak == 0)
        viewer.close()
        await target.call.hangup()
        async with asyncio.timeout(WAIT_S):
            assert await listener.ended is EndReason.HANGUP
    assert {one.sides for one in listener.heard} == {(LegPart.IN, LegPart.OUT)}
    for channel in (0, 1):
        assert report(find_blocks(listener.side(channel), HEARD), len(BLOCKS)).intact


@needs_whole_in()
async def test_viewer_and_listener_go_on_when_a_relay_process_is_replaced(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    async with running(asterisk, tmp_path, relay="workers = 2\n") as daemon:
        target = await place_call(ami, caller, "echo")
        target.call.play(TONE, loop=True)
        fork_id = await streaming(ami, target, recorder.url("/a"), "D(in)")
        viewer, listener = Viewer(daemon, fork_id), Listener(daemon, fork_id)
        await viewer.sees(lambda levels: levels.in_peak == PEAK)
        await until(lambda: len(listener.heard) > 3)
        relay = daemon.relay
        assert isinstance(relay, RelayProcesses)
        worker = relay._owners[fork_id]
        assert isinstance(worker, ProcessWorker)
        process = worker.process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await ami.wait_user_event("AudioForkResumed", AudioForkID=fork_id)
        heard = len(listener.heard)
        await viewer.sees(lambda levels: levels.in_peak == PEAK)
        await until(lambda: len(listener.heard) > heard + 3)
        assert listener.heard[-1].number < len(listener.heard) * 5
        viewer.close()
        listener.stop()
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
        await no_channels(ami)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.02)
