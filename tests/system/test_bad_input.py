"""Bad input gets a clear error, on the real Asterisk, and disturbs nothing else."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import Target, channels, only_channels, place_call, start_fork

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_urls = ws://127.0.0.1 wss://*.example.org\n"}


@asynccontextmanager
async def undisturbed_fork(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> AsyncIterator[Target]:
    """A call with a fork, which must stream on, without a gap, through what is done meanwhile."""
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/undisturbed"))
    recording = await recorder.wait_messages("/undisturbed", 5)
    yield target
    await recorder.wait_messages("/undisturbed", len(recording.messages) + 10)
    gaps_s = [after - before for before, after in pairwise(recording.times)]
    assert max(gaps_s) < 1.5  # what blocks the daemon does so for longer
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert stopped["FramesSent"] == str(len(recording.messages))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Channel": "PJSIP/nobody-00000000"}, "No such channel"),
        ({"Uniqueid": "1.1"}, "No such channel"),
        ({"WsServer": "http://127.0.0.1/"}, "WsServer: the scheme must be ws or wss"),
        ({"WsServer": "127.0.0.1:80"}, "WsServer: the scheme must be ws or wss"),
        ({"WsServer": "ws:///path"}, "WsServer: no host"),
        ({"WsServer": "ws://u:p@127.0.0.1/"}, "WsServer: credentials are not allowed in a URL"),
        ({"WsServer": "ws://127.0.0.1/#f"}, "WsServer: a fragment is not allowed"),
        (
            {"WsServer": "ws://192.0.2.1/"},
            "WsServer: not among the URLs of [security] allow_urls: name its server there",
        ),
        ({"WsServer": "ws://127.0.0.1/\x01"}, "WsServer: control characters are not allowed"),
        ({"WsServer": "ws://127.0.0.1/\rx"}, "WsServer: control characters are not allowed"),
        ({"Options": "D(both)\x7f"}, "Options: control characters are not allowed"),
        (
            {"Options": "Q"},
            "Options: unknown option 'Q'; there are D T R r F L b B p P k v V W H A s M x c i S a",
        ),
        ({"Options": "D(sideways)"}, "Options: D takes in, out, both or stereo, not 'sideways'"),
        ({"Options": "D"}, "Options: D takes in, out, both or stereo, not nothing"),
        ({"Options": "D(in"}, "Options: missing closing parenthesis of option 'D'"),
        ({"WsServer": ""}, "WsServer: missing"),
        ({"Channel": ""}, "No channel specified"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, dict) else "",
)
async def test_bad_request_is_refused_with_its_reason(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    fields: dict[str, str],
    reason: str,
) -> None:
    async with undisturbed_fork(ami, caller, recorder) as target:
        request = {
            "UserEvent": "AudioFork",
            "Channel": target.channel,
            "WsServer": recorder.url("/refused"),
        } | fields
        if "Uniqueid" in fields:
            del request["Channel"]
        action_id = ami.send("UserEvent", action_id=f"bad-{uuid.uuid4()}", **request)
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert failed["Reason"] == reason
        assert len([name for name in await channels(ami) if name.startswith("Audio")]) == 1
        assert not recorder.at("/refused")


async def test_line_feed_from_the_dialplan_is_refused(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    """Asterisk puts the values of UserEvent() into its events as they are."""
    target = await place_call(ami, caller, "inject")
    failed = await ami.wait_user_event("AudioForkFailed", Uniqueid=target.uniqueid)
    assert failed["Reason"] == "WsServer: control characters are not allowed"
    assert await ami.variable(target.channel, "AUDIOFORK_STATUS") == "FAILED"
    await target.call.hangup()


async def test_leg_as_target_is_refused(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with undisturbed_fork(ami, caller, recorder):
        leg = next(name for name in await channels(ami) if name.startswith("AudioSocket/"))
        action_id = start_fork(ami, leg, recorder.url("/refused"))
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert failed["Reason"] == "the channel is itself the leg of a fork"


async def test_stop_of_an_unknown_fork_is_answered(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with undisturbed_fork(ami, caller, recorder):
        ami.send(
            "UserEvent",
            action_id="stop-unknown",
            UserEvent="AudioFork",
            Command="StopAudioFork",
            AudioForkID=str(uuid.uuid4()),
        )
        failed = await ami.wait_user_event("AudioForkFailed", ActionID="stop-unknown")
        assert failed["Reason"] == "No such fork"


async def test_channel_that_goes_before_its_leg_comes_ends_with_hangup(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    action_id = start_fork(ami, target.channel, recorder.url("/"))
    await asyncio.gather(ami.action("Hangup", Channel=target.channel), target.call.wait_ended())
    ended = await ami.wait_event(
        lambda headers: (
            headers.get("ActionID") == action_id
            and headers.get("UserEvent", "").startswith("AudioFork")
            and "Reason" in headers
        )
    )
    assert ended["Reason"] in ("hangup", "no-such-channel", "No such channel")
    await only_channels(ami)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\x01\x00\x10" + uuid.uuid4().bytes, "unknown or used UUID"),
        (b"\x10\x01\x40" + bytes(320), "message 0x10 before the UUID"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "announces"),
        (b"\x01\x00\x04abcd", "message 0x01 has 4 bytes, expected 16"),
        (b"\x10\xff\xff", "announces 65535 bytes"),
        (b"\x01\x00", "no UUID within 2 s"),
        (b"", "no UUID within 2 s"),
    ],
    ids=["unknown", "audio-first", "http", "short-uuid", "oversized", "half-header", "nothing"],
)
async def test_stranger_at_the_audiosocket_port_is_closed(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    sent: bytes,
    why: str,
) -> None:
    async with undisturbed_fork(ami, caller, recorder):
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.audiosocket_port)
        began = loop.time()
        writer.write(sent)
        assert await reader.read() in (b"", b"\x00\x00\x00")
        assert loop.time() - began < 3
        writer.close()
        await asyncio.sleep(1)  # the log line comes once a second at most
    assert why in daemon.log()


async def test_uuid_of_a_running_fork_lets_no_second_connection_in(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with undisturbed_fork(ami, caller, recorder) as target:
        fork_id = await ami.variable(target.channel, "AUDIOFORK_ID")
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.audiosocket_port)
        writer.write(b"\x01\x00\x10" + uuid.UUID(fork_id).bytes)
        assert await reader.read() == b"\x00\x00\x00"
        writer.close()


async def test_server_that_sends_too_much_is_closed_with_1009(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/"), "r(1)")
    recording = await recorder.wait_messages("/", 5)
    assert recording.connection is not None
    await recording.connection.send("x" * 65_537)
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    await recorder.wait_closed("/")
    assert recording.close_code == 1009
    assert stopped["Reason"] == "sink-gone"
    await target.call.hangup()


async def test_server_that_sends_invalid_text_loses_its_link_alone(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A text message that is no UTF-8 is closed with 1007, as RFC 6455 has it."""
    async with undisturbed_fork(ami, caller, recorder) as target:
        action_id = start_fork(ami, target.channel, recorder.url("/"), "r(1)")
        recording = await recorder.wait_messages("/", 5)
        assert recording.connection is not None
        recording.connection.protocol.send_text(b"\xff\xfe")
        recording.connection.send_data()
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
        assert stopped["Reason"] == "sink-gone"
        await recorder.wait_closed("/")
        assert recording.close_code == 1007


async def test_largest_text_of_a_server_is_cut_to_what_a_variable_takes(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with undisturbed_fork(ami, caller, recorder) as target:
        action_id = start_fork(ami, target.channel, recorder.url("/"))
        recording = await recorder.wait_messages("/", 5)
        assert recording.connection is not None
        await recording.connection.send("\r\n\0" + "é" * 32_766)
        message = await ami.wait_user_event("AudioForkMessage", ActionID=action_id)
        assert message["Message"] == "é" * 450
        assert await ami.variable(target.channel, "AUDIOFORK_RESPONSE") == "é" * 450
