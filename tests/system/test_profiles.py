"""Forks to servers that the configuration names, on the real Asterisk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.ami import AmiClient
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call, set_globals

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(50, seed=71)


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
