"""Forks to servers that the configuration names, on the real Asterisk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from testbed.speech_services import KEY, LAST, SERVICES, SpeechService
from tests.system.conftest import place_call, set_globals, start_fork

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(50, seed=71)
SHIPPED = Path(__file__).parent.parent.parent / "etc/profiles"


@pytest.fixture(autouse=True)
def as_before(shared_daemon: Daemon) -> Iterator[None]:
    """Leave the daemon's files as they were."""
    config = shared_daemon.config.read_text()
    yield
    shared_daemon.config.write_text(config)
    shutil.rmtree(shared_daemon.profiles, ignore_errors=True)


async def test_gosub_that_names_a_profile_knows_neither_its_url_nor_its_secret(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tmp_path: Path
) -> None:
    """Also not after a reload of a file with a fault, which keeps the profile."""
    token = tmp_path / "token"
    token.write_text("t0ken-7\n")
    config = daemon.config.read_text().replace("allow_urls", ";allow_urls")
    profile = (
        f"\n[profile:bot]\nurl = {recorder.url('/{uniqueid}?key=S3CRET')}\noptions = D(in)\n"
        f'token_file = {token}\nopening = {{"from": "{{channel}}"}}\nclosing = bye\n'
    )
    daemon.config.write_text(config + profile)
    await daemon.reload("reloaded")
    daemon.config.write_text(f"{config}{profile}\n[profile:other]\nurl = http://h/\n")
    line = f"{daemon.config}:{len((config + profile).splitlines()) + 3}"
    await daemon.reload(f"the old configuration stays: {line}: [profile:other] url: ")
    await set_globals(ami, WSSERVER="@bot", OPTIONS="")
    target = await place_call(ami, caller, "gosub")
    await target.call.play(BLOCKS)
    returned = await ami.wait_user_event("Returned", Uniqueid=target.uniqueid)
    recording = await recorder.wait(lambda r: bool(r.closed))
    await target.call.hangup()
    assert returned["Status"] == "STREAMING"
    assert recording.path == f"/{target.uniqueid}?key=S3CRET"
    assert recording.connection is not None
    assert recording.connection.request is not None
    assert recording.connection.request.headers["Authorization"] == "Bearer t0ken-7"
    first, *others = recording.messages
    assert isinstance(first, str)
    assert json.loads(first) == {"from": target.channel}
    assert others[-1] == "bye"
    assert len(recording.audio) >= 320 * 10
    stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["WsServer"] == "@bot"
    log = daemon.log()
    assert "to @bot" in log
    assert "S3CRET" not in log
    assert "t0ken-7" not in log


def put_shipped(daemon: Daemon, server: SpeechService) -> None:
    """Put the shipped file of a service into the daemon's folder, as the administrator does.

    Only its host and the folder of its key become others.
    """
    daemon.profiles.mkdir(exist_ok=True)
    text = (SHIPPED / f"{server.name}.ini").read_text(encoding="utf-8")
    assert text.count(f"url = {server.origin}/") == 1
    text = text.replace(server.origin, f"ws://127.0.0.1:{server.port}")
    text = text.replace("/etc/audiofork/profiles.d", str(daemon.profiles))
    (daemon.profiles / f"{server.name}.ini").write_text(text)
    (daemon.profiles / f"{server.name}.key").write_text(f"{KEY}\n")


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: one.name)
async def test_shipped_profile_does_what_the_service_demands_and_brings_its_last_result(
    daemon: Daemon, ami: AmiClient, caller: SipUser, service: type[SpeechService]
) -> None:
    async with service() as server:
        put_shipped(daemon, server)
        await daemon.reload("INFO    reloaded", times=daemon.log().count("INFO    reloaded") + 1)
        target = await place_call(ami, caller)
        position = len(ami.events)
        start_fork(ami, target.channel, f"@{server.name}")
        playing = target.call.play(BLOCKS, loop=True)
        await server.heard(1000)
        playing.cancel()
        await target.call.hangup()
        stopped = await ami.wait_user_event(
            "AudioForkStopped", Uniqueid=target.uniqueid, after=position
        )
    assert server.faults == []
    assert stopped["Reason"] == "hangup"
    told = [headers for _, headers in ami.events[position:] if "UserEvent" in headers]
    messages = [one["Message"] for one in told if one["UserEvent"] == "AudioForkMessage"]
    assert any(LAST in message for message in messages)
    assert told[-1] == stopped, "after the last message"
    assert server.audio_ms >= int(stopped["FramesSent"]) * 20
    assert KEY not in f"{daemon.log()}{ami.events}"
