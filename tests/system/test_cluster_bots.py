"""Calls whose other party is a server move from a relay host that is drained, by a bridge."""

from __future__ import annotations

import asyncio
import audioop
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from audiofork.asterisk.versions import AUDIOSOCKET_RATES
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report, slin_blocks
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.rtp import SLIN16, ULAW, Codec, swap_bytes
from tests.relay.peers import until
from tests.system.bots import BOT, went_on
from tests.system.cluster import Cluster, clustered
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    listed_channels,
    needs,
    place_call,
    set_globals,
)
from tests.system.scene import Scene, staged
from tests.system.test_cli import command
from tests.system.test_cluster import leads

pytestmark = [pytest.mark.asterisk, pytest.mark.nats]

SETTINGS = {
    "cluster": "dead_after = 2\ndrain_timeout = 16\n",  # calls may stay for a second
    "relay": "orphan_timeout = 20\n",
    "security": "allow_speak = ws://127.0.0.1\n",
}
SAID = [decode(block) for block in make_blocks(100, seed=8)]


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


@pytest.fixture
async def scene(asterisk: Asterisk, recorder: Recorder) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, {}) as one:
        yield one


@pytest.fixture
def cluster(asterisk: Asterisk) -> Iterator[Cluster]:
    with clustered(asterisk, SETTINGS) as one:
        yield one


async def begun(cluster: Cluster) -> tuple[Daemon, Daemon]:
    """Return the relay host r1, and a controller that leads."""
    first, controller = cluster.relay("r1"), cluster.controller("c1")
    await leads(controller)
    return first, controller


async def call_bot(scene: Scene[Recorder], options: str = "", codec: Codec = ULAW) -> Target:
    """Call the recorder, and let it hear something."""
    await set_globals(scene.ami, BOT_URL=scene.server.url("/bot"), BOT_OPTIONS=options)
    target = await place_call(scene.ami, scene.caller, "bot", codec)
    target.call.recording = True
    talk = target.call.play(spoken(blocks_of(codec, 50, seed=3), codec), loop=True)
    await scene.server.wait_messages("/bot", 20)
    talk.cancel()
    return target


def blocks_of(codec: Codec, count: int, seed: int) -> list[bytes]:
    """Return blocks as they are heard after such a codec, as slin."""
    if codec is ULAW:
        return [decode(block) for block in make_blocks(count, seed)]
    return slin_blocks(count, seed, sample_rate=codec.sample_rate)


def spoken(blocks: Sequence[bytes], codec: Codec) -> list[bytes]:
    """Return blocks as they are sent by such a codec."""
    return [audioop.lin2ulaw(one, 2) if codec is ULAW else swap_bytes(one) for one in blocks]


async def connections(scene: Scene[Recorder], count: int) -> None:
    """Wait until the last of so many connections gets audio, and the earlier ones are closed."""

    def are_there() -> bool:
        *before, last = scene.server.recordings
        is_new = len(before) == count - 1 and len(last.audio) > 0
        return is_new and all(one.closed for one in before)

    await until(are_there, 20)


@counts_blocks
@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ("", ULAW),
        pytest.param(
            *("L(16000)", SLIN16), marks=needs(AUDIOSOCKET_RATES, "AudioSocket legs at 16000 Hz")
        ),
    ],
    ids=["narrow", "wide"],
)
async def test_call_to_a_bot_moves_and_moves_again_without_a_gap_in_either_direction(
    scene: Scene[Recorder], cluster: Cluster, options: str, codec: Codec
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene, options, codec)
    second = cluster.relay("r2")
    heard, said = blocks_of(codec, 600, seed=7), blocks_of(codec, 100, seed=8)
    warm_up = spoken(blocks_of(codec, 50, seed=2), codec)
    speaking = asyncio.ensure_future(target.call.play([*warm_up, *spoken(heard, codec)]))
    await asyncio.sleep(1)
    assert await command(controller, "drain", "r1") == (0, "")
    await connections(scene, 2)
    assert await command(controller, "drain", "r1", "--undo") == (0, "")
    await asyncio.sleep(1)
    second.signal(signal.SIGTERM)
    await connections(scene, 3)
    await until(lambda: second.exit_code is not None, 20)
    assert second.exit_code == 0
    connection = scene.server.recordings[-1].connection
    assert connection is not None
    await connection.send(b"".join(said))
    await speaking
    await target.call.play(warm_up)
    played = target.call.received_audio()
    played = decode(played) if codec is ULAW else swap_bytes(played)
    assert report(find_blocks(played, said), len(said)).intact
    audio = b"".join(one.audio for one in scene.server.recordings)
    assert report(find_blocks(audio, heard), len(heard)).intact
    for one in scene.server.recordings[:2]:
        assert (one.close_code, one.close_reason) == (1001, "moved")
    assert "some frames may be missing" not in controller.log()
    await scene.legs(1)
    await connection.close(1000, "thanks")
    back = await went_on(scene.ami)
    assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
    await scene.legs(0)
    await target.call.hangup()
    assert "Traceback" not in controller.log() + first.log()


@counts_blocks
async def test_server_that_greets_on_each_connection_is_heard_in_whole_after_a_move(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    _, controller = await begun(cluster)
    target = await call_bot(scene)
    second = cluster.relay("r2")
    target.call.talk()
    greeted = asyncio.create_task(greet(scene))
    assert await command(controller, "drain", "r1") == (0, "")
    await connections(scene, 2)
    await greeted
    await asyncio.sleep(3)
    played = decode(target.call.received_audio())
    assert report(find_blocks(played, SAID), len(SAID)).intact
    await target.call.hangup()
    stopped = await scene.ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "hangup"
    await scene.legs(0)
    assert "Traceback" not in second.log()


async def greet(scene: Scene[Recorder]) -> None:
    """Speak over the second connection as soon as it is there."""
    await until(lambda: len(scene.server.recordings) == 2, 20)
    await until(lambda: scene.server.recordings[1].connection is not None, 20)
    connection = scene.server.recordings[1].connection
    assert connection is not None
    await connection.send(b"".join(SAID))


async def test_call_goes_on_with_its_first_host_where_the_other_gets_no_leg(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    _, controller = await begun(cluster)
    target = await call_bot(scene)
    cluster.relay("r2", audiosocket="allow = 192.0.2.1\n")  # lets no leg in
    target.call.talk()
    assert await command(controller, "drain", "r1") == (0, "")
    stays = "it stays at its relay host: the other was not ready"
    await until(lambda: stays in controller.log(), 30)
    before = len(scene.server.recordings[0].messages)
    await until(lambda: len(scene.server.recordings[0].messages) > before + 50, 20)
    assert not scene.server.recordings[0].closed
    await scene.legs(1)
    await target.call.hangup()
    stopped = await scene.ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "hangup"
    await scene.legs(0)


@pytest.mark.parametrize("is_gone", [True, False], ids=["next controller", "same controller"])
async def test_call_that_has_moved_is_taken_up_and_ends_as_any(
    scene: Scene[Recorder], cluster: Cluster, is_gone: bool
) -> None:
    _, controller = await begun(cluster)
    target = await call_bot(scene)
    cluster.relay("r2")
    target.call.talk()
    assert await command(controller, "drain", "r1") == (0, "")
    await connections(scene, 2)
    if is_gone:
        controller.kill()
        controller = cluster.controller("c2")
        await leads(controller)
        await until(lambda: "found 1 that went on" in controller.log(), 20)
    messages = len(scene.server.recordings[1].messages)
    await until(lambda: len(scene.server.recordings[1].messages) > messages + 100, 20)
    await scene.legs(1)
    await command(controller, "stop", target.channel)
    back = await went_on(scene.ami)
    assert (back["Status"], back["Why"]) == ("STOPPED", "stopped")
    await scene.legs(0)
    await target.call.hangup()


async def test_call_to_a_bot_whose_relay_host_is_killed_has_another_and_ends_as_any(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene)
    cluster.relay("r2")
    target.call.talk()
    first.kill()
    await until(lambda: len(scene.server.recordings) == 2, 20)
    again = scene.server.recordings[1]
    await until(lambda: len(again.messages) > 100, 20)
    resumed = await scene.ami.wait_user_event("AudioForkResumed", Uniqueid=target.uniqueid)
    print(f"a gap of {resumed['GapMs']} ms")
    assert again.connection is not None
    await again.connection.send(b"".join(SAID))
    await asyncio.sleep(3)
    played = decode(target.call.received_audio())
    assert report(find_blocks(played, SAID), len(SAID)).intact
    await scene.legs(1)
    assert not any(h.get("UserEvent") == "Back" for _, h in scene.ami.events)
    await again.connection.close(1000, "thanks")
    back = await went_on(scene.ami)
    assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
    await scene.legs(0)
    await target.call.hangup()
    assert "Traceback" not in controller.log()


async def test_call_to_a_bot_whose_relay_host_hangs_is_taken_from_there(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene)
    cluster.relay("r2")
    target.call.talk()
    first.signal(signal.SIGSTOP)  # its leg stays, and brings nothing
    await until(lambda: len(scene.server.recordings) == 2, 20)
    again = scene.server.recordings[1]
    await until(lambda: len(again.messages) > 100, 20)
    await scene.legs(1)
    first.signal(signal.SIGCONT)
    await until(lambda: bool(scene.server.recordings[0].closed), 20)
    messages = len(again.messages)
    await until(lambda: len(again.messages) > messages + 50, 20)
    await scene.legs(1)
    await target.call.hangup()
    stopped = await scene.ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "hangup"
    await scene.legs(0)


async def test_call_to_a_bot_goes_on_in_the_dialplan_where_no_other_relay_host_is_there(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene)
    target.call.talk()
    first.kill()
    back = await went_on(scene.ami)
    assert back["Status"] == "STOPPED"
    second = cluster.relay("r2")
    failed = await scene.ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert failed["Reason"] == "leg-failed"
    await scene.legs(0)
    await target.call.hangup()
    assert "Traceback" not in controller.log() + second.log()


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
async def test_call_that_was_taken_elsewhere_after_its_relay_host_died_is_left_there(
    scene: Scene[Recorder], cluster: Cluster, is_late: bool
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene)
    target.call.talk()
    if not is_late:
        cluster.relay("r2")
    first.signal(signal.SIGSTOP)
    place = {"Context": "testbed", "Exten": "agent", "Priority": "1"}
    await scene.ami.action("Redirect", Channel=target.channel, **place)
    await scene.ami.wait_event(lambda h: h.get("UserEvent") == "Agent")
    if is_late:
        await controller.says("is lost: no sign of life")
        cluster.relay("r2")
    stopped = await scene.ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "leg-failed"
    await scene.legs(0)
    (own,) = [h for h in await listed_channels(scene.ami) if h["Uniqueid"] == target.uniqueid]
    assert own["BridgeId"]  # with the agent
    first.kill()
    await target.call.hangup()


async def test_call_whose_server_is_lost_with_its_relay_host_may_have_another_server_at_once(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    first, controller = await begun(cluster)
    urls = {"BOT_URL": scene.server.url("/bot"), "NEXT_BOT_URL": scene.server.url("/next")}
    await set_globals(scene.ami, BOT_OPTIONS="", **urls)
    target = await place_call(scene.ami, scene.caller, "bot-and-next-bot")
    target.call.talk()
    await scene.server.wait_messages("/bot", 20)
    first.kill()
    await scene.ami.wait_event(lambda h: h.get("UserEvent") == "Back")
    back = await scene.ami.wait_event(lambda h: h.get("UserEvent") == "BackAgain")
    assert (back["Status"], back["Why"]) != ("FAILED", "the channel is connected already")
    await target.call.hangup()


async def test_call_outlives_more_relay_hosts_than_it_could_wait_for_at_once(
    scene: Scene[Recorder], cluster: Cluster
) -> None:
    hosts = [cluster.relay("r1"), cluster.relay("r2")]
    controller = cluster.controller("c1")
    await controller.says("connected to Asterisk")
    target = await call_bot(scene)
    target.call.talk()
    for number in (1, 2, 3):
        (leg,) = await scene.legs(1)
        (own,) = [one for one in hosts if f":{port_of(one)}-" in leg]
        hosts.remove(own)
        own.kill()
        await until(lambda: len(scene.server.recordings) == number + 1, 20)  # noqa: B023 (awaited)
        again = scene.server.recordings[number]
        await until(lambda: len(again.messages) > 100, 20)  # noqa: B023
        hosts.append(cluster.relay(f"r{number + 2}"))
    assert not any(h.get("UserEvent") == "Back" for _, h in scene.ami.events)
    await target.call.hangup()
    await scene.legs(0)


def port_of(host: Daemon) -> str:
    found = re.search(r"for Asterisk's audio on [\d.]+:(\d+)", host.log())
    assert found is not None
    return found[1]


@pytest.mark.parametrize("event", ["Newchannel", "BridgeEnter"])
async def test_call_that_comes_back_as_its_controller_dies_is_looked_after_by_the_next(
    scene: Scene[Recorder], cluster: Cluster, event: str
) -> None:
    first, controller = await begun(cluster)
    target = await call_bot(scene)
    cluster.relay("r2")
    second = cluster.controller("c2")
    target.call.talk()
    position = len(scene.ami.events)
    assert await command(controller, "drain", "r1") == (0, "")
    await scene.ami.wait_event(
        lambda h: h.get("Event") == event and h.get("Channel", "").startswith("AudioSocket/"),
        after=position,
    )
    controller.kill()
    await leads(second)
    await until(lambda: is_last_heard(scene), 30)
    await scene.legs(1)
    assert not any(h.get("UserEvent") == "Back" for _, h in scene.ami.events)
    await target.call.hangup()
    await scene.legs(0)
    assert "Traceback" not in second.log() + first.log()


def is_last_heard(scene: Scene[Recorder]) -> bool:
    """Return whether audio comes over the latest connection alone, by now for some seconds."""
    *before, last = scene.server.recordings
    return not last.closed and len(last.messages) > 200 and all(one.closed for one in before)
