"""What a web server is told of forks in Twilio's format, of real calls."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.doors.test_twilio_callback import served
from tests.relay.peers import until
from tests.system.conftest import place_call, start_fork

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

WARM_UP = make_blocks(50, seed=63)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Return a free port; it is bound, or somebody else's connection might get it."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture(scope="module")
def settings(port: int) -> dict[str, str]:
    return {
        "twilio": f"status_callback = http://127.0.0.1:{port}/status?key=hunter2\n",
        "websocket": "format = twilio\n",
    }


async def test_stream_without_option_x_is_posted_with_the_sids_that_its_server_got(
    ami: AmiClient, caller: SipUser, recorder: Recorder, daemon: Daemon, port: int
) -> None:
    async with served(port=port) as web:
        target = await place_call(ami, caller)
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        await target.call.play(WARM_UP)
        await target.call.hangup()
        recording = await recorder.wait_closed("/")
        await until(lambda: len(web.forms) >= 2)
    texts = [json.loads(one) for one in recording.messages if isinstance(one, str)]
    start = next(one["start"] for one in texts if one["event"] == "start")
    assert [form["StreamEvent"] for form in web.forms] == ["stream-started", "stream-stopped"]
    for form in web.forms:
        assert form["AccountSid"] == start["accountSid"]
        assert form["CallSid"] == start["callSid"]
        assert form["StreamSid"] == form["StreamName"] == start["streamSid"]
    assert "hunter2" not in daemon.log()


async def test_reload_counts_for_the_format_of_new_forks(
    ami: AmiClient, caller: SipUser, recorder: Recorder, daemon: Daemon
) -> None:
    before = daemon.config.read_text()
    daemon.config.write_text(before.replace("format = twilio", "format = vonage"))
    await daemon.reload("reloaded")
    target = await place_call(ami, caller)
    start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await target.call.play(WARM_UP)
    await target.call.hangup()
    (first, *_) = (await recorder.wait_closed("/")).messages
    daemon.config.write_text(before)
    await daemon.reload("reloaded", times=2)
    assert json.loads(first)["event"] == "websocket:connected"


async def test_end_of_the_daemon_still_tells_of_the_streams_that_it_ends(
    ami: AmiClient, caller: SipUser, recorder: Recorder, daemon: Daemon, port: int
) -> None:
    async with served(port=port) as web:
        target = await place_call(ami, caller)
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        await until(lambda: len(web.forms) >= 1)
        await asyncio.to_thread(daemon.stop)  # which asks this loop
        assert [form["StreamEvent"] for form in web.forms] == ["stream-started", "stream-stopped"]
        await target.call.hangup()
    await asyncio.to_thread(daemon.start)
