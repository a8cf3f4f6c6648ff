"""Daemons of their own beside ARI: killed, cut off, and in a set-up that lacks something."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, ari_conf, ari_settings, dialplan, manager_conf
from testbed.proxy import Proxy
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import (
    DIALPLAN,
    Target,
    channels,
    counts_blocks,
    only_channels,
    place_call,
    start_fork,
    start_fork_heard,
)

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(400, seed=11)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=12)


async def test_legs_of_a_killed_daemon_are_swept_and_its_forks_taken_up(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Killed by a signal it cannot hear; stopped instead of closed, its sockets stay open."""
    with Daemon(asterisk, {"ari": ari_settings(asterisk)}) as daemon:
        target = await place_call(ami, caller)
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/"), "D(stereo)L(16000)")
        await recorder.wait_messages("/", 10)
        daemon.signal(signal.SIGSTOP)  # so that the legs stay for the other one to find
        with Daemon(asterisk, {"ari": ari_settings(asterisk)}) as other:
            await other.says("hung up 2 legs that an earlier run left behind")
        daemon.signal(signal.SIGCONT)
        daemon.kill()
        daemon.start()
        await recorder.wait(lambda r: r.path == "/" and len(r.messages) > 10 and not r.closed)
        assert {len(m) for m in recorder.at("/")[-1].messages} == {1280}
        await target.call.hangup()
    await only_channels(ami)


# --- ARI away ---


@pytest.fixture
async def ari_proxy(asterisk: Asterisk) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", asterisk.http_port)) as proxy:
        yield proxy


@contextlib.contextmanager
def daemon_behind(asterisk: Asterisk, proxy: Proxy, tap: str = "auto") -> Iterator[Daemon]:
    port = f"http://127.0.0.1:{asterisk.http_port}/"
    settings = {
        "ari": ari_settings(asterisk).replace(port, f"http://127.0.0.1:{proxy.port}/"),
        "asterisk": f"port = {asterisk.ami_port}\nsecret = testbed-secret\ntap = {tap}\n",
    }
    with Daemon(asterisk, settings) as one:
        yield one


@counts_blocks
async def test_forks_go_on_while_ari_is_cut_and_new_ones_fall_back_to_chanspy(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder, ari_proxy: Proxy
) -> None:
    with daemon_behind(asterisk, ari_proxy) as daemon:
        target = await place_call(ami, caller)
        await start_fork_heard(ami, target, recorder.url("/goes-on"), "D(in)")
        ari_proxy.refuse()
        ari_proxy.cut()
        await daemon.says("no connection to ARI")
        playing = target.call.play(BLOCKS + 5 * WARM_UP)  # ten seconds and a half
        start_fork(ami, target.channel, recorder.url("/falls-back"), "D(both)L(16000,8000)")
        start_fork(ami, target.channel, recorder.url("/refused"), "D(both)L(16000)")
        refused = await ami.wait_user_event("AudioForkFailed", WsServer=recorder.url("/refused"))
        assert refused["Reason"].startswith("D(both), 16000 Hz: no connection to ARI at")
        fallen = await recorder.wait_messages("/falls-back", 10)
        assert {len(message) for message in fallen.messages} == {320}
        await daemon.says("8000 Hz in place of 16000: no connection to ARI at")
        await playing
        ari_proxy.accept()
        await daemon.says("connected to ARI", times=2)
        start_fork(ami, target.channel, recorder.url("/wide-again"), "D(both)L(16000,8000)")
        wide = await recorder.wait_messages("/wide-again", 10)
        assert {len(message) for message in wide.messages} == {640}
        await target.call.hangup()
        recording = await recorder.wait_closed("/goes-on")
        assert report(find_blocks(recording.audio, HEARD), 400).intact
    await only_channels(ami)


async def test_new_forks_are_refused_while_ari_is_cut_where_the_snoop_is_required(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder, ari_proxy: Proxy
) -> None:
    with daemon_behind(asterisk, ari_proxy, "snoop") as daemon:
        target = await place_call(ami, caller)
        ari_proxy.refuse()
        ari_proxy.cut()
        await daemon.says("no connection to ARI")
        action_id = start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert failed["Reason"].startswith("D(in): no connection to ARI at")
        await target.call.hangup()
    await only_channels(ami)


async def test_ari_is_back_after_asterisk_was_restarted(
    caller: SipUser, recorder: Recorder
) -> None:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with (
        Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one,
        Daemon(one, {"ari": ari_settings(one)}) as daemon,
    ):
        await daemon.says("connected to ARI")
        async with SipUser("caller", ("127.0.0.1", one.sip_port)) as user, AmiClient(one) as ami:
            target = await stream(ami, user, recorder, "/before")
            await asyncio.to_thread(one.restart)
            await recorder.wait_closed("/before")
            target.call.ended.set()
        await daemon.says("connected to ARI", times=2)
        async with SipUser("caller", ("127.0.0.1", one.sip_port)) as user, AmiClient(one) as ami:
            target = await stream(ami, user, recorder, "/after")
            await target.call.hangup()
            await recorder.wait_closed("/after")
            await only_channels(ami)


async def stream(ami: AmiClient, caller: SipUser, recorder: Recorder, path: str) -> Target:
    """Place a call and fork it by the snoop tap; return when audio flows."""
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url(path), "D(both)")
    await recorder.wait_messages(path, 10)
    assert any(name.startswith("Snoop/") for name in await channels(ami))
    return target


# --- What an administrator has not set up ---


async def test_missing_context_ends_the_fork_at_once_and_says_what_to_do(
    recorder: Recorder,
) -> None:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with (
        Asterisk(dialplan=DIALPLAN, config=config) as one,
        Daemon(one, {"ari": ari_settings(one)}),
    ):
        async with SipUser("caller", ("127.0.0.1", one.sip_port)) as user, AmiClient(one) as ami:
            target = await place_call(ami, user)
            target.call.talk()
            action_id = start_fork(ami, target.channel, recorder.url("/"), "D(both)")
            failed = await ami.wait_user_event("AudioForkFailed", timeout_s=2, ActionID=action_id)
            assert failed["Reason"] == "leg-failed"
            assert "the context audiofork-leg of extensions_audiofork.conf" in failed["Detail"]
            await only_channels(ami, target.channel)
            await target.call.hangup()
