"""What servers are told of the call, on the real Asterisk."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from testbed.ami import AmiClient
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder, Recording
from testbed.sip import SipUser
from tests.system.conftest import Target, place_call, set_globals, start_fork

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(25, seed=51)
# Quotes, letters of other scripts, what would end a field, an argument or a header elsewhere.
ODD_NAME = 'Zoë "Z" <&>, {x}: 100%; \\ 日本'
# Within a function's parentheses, Asterisk would take what follows for `:offset:length`.
CUT_NAME = "Mallory):1:2"


async def told(recorder: Recorder, path: str = "/") -> tuple[Recording, list[dict[str, Any]]]:
    """Return what came over a connection that is closed, and the texts in it."""
    recording = await recorder.wait(lambda r: r.path.startswith(path) and bool(r.closed))
    texts = [json.loads(message) for message in recording.messages if isinstance(message, str)]
    return recording, texts


async def speak_and_hang_up(target: Target) -> None:
    await target.call.play(BLOCKS)
    await target.call.hangup()


async def test_server_is_told_of_the_call_before_the_audio_and_of_its_end_after_it(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    params = "a=1&b=%26%C3%BC&c="
    start_fork(ami, target.channel, recorder.url("/"), "D(in)M", Params=params)
    await speak_and_hang_up(target)
    recording, (start, stop) = await told(recorder)
    assert isinstance(recording.messages[0], str)
    assert isinstance(recording.messages[-1], str)
    call = start["call"]
    assert (call["channel"], call["uniqueid"]) == (target.channel, target.uniqueid)
    assert call["linkedid"] == target.uniqueid
    assert call["exten"] == "echo"
    assert call["sip_call_id"]
    assert call["native_format"] == "(ulaw)"
    assert call["call_started"].startswith("20")
    assert call["fork_id"] == start["fork_id"]
    assert start["params"] == {"a": "1", "b": "&ü", "c": ""}
    assert (start["position_ms"], start["dropped_ms"], start["reconnects"]) == (0, 0, 0)
    assert start["audio"]["sample_rate"] == 8000
    assert stop["reason"] == "hangup"
    assert stop["position_ms"] == 20 * len(recording.audio) // 320
    assert stop["dropped_ms"] == 0


async def test_gosub_tells_what_was_dialled_and_its_parameters(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Its own extension is not what was dialled."""
    await set_globals(
        ami,
        WSSERVER=recorder.url("/gosub"),
        OPTIONS="D(in)M(ticket&none)",
        AUDIOFORK_PARAM_ticket='a&b=c "d"',
    )
    target = await place_call(ami, caller, "mute")
    await speak_and_hang_up(target)
    _, (start, _) = await told(recorder, "/gosub")
    assert (start["call"]["context"], start["call"]["exten"]) == ("testbed", "mute")
    assert start["params"] == {"ticket": 'a&b=c "d"', "none": ""}


@pytest.mark.parametrize("name", [ODD_NAME, CUT_NAME, "x" * 600], ids=["odd", "cut", "long"])
async def test_whatever_a_caller_calls_himself_changes_no_other_field(
    ami: AmiClient, caller: SipUser, recorder: Recorder, name: str
) -> None:
    target = await place_call(ami, caller)
    for variable, value in (("CALLERID(name)", name), ("CHANNEL(accountcode)", "7")):
        await ami.action("Setvar", Channel=target.channel, Variable=variable, Value=value)
    start_fork(ami, target.channel, recorder.url("/"), "D(in)M")
    await speak_and_hang_up(target)
    _, (start, _) = await told(recorder)
    assert name.startswith(start["call"]["caller_name"])
    assert len(start["call"]["caller_name"]) >= min(len(name), 79)  # as Asterisk keeps it
    assert start["call"]["account_code"] == "7"
    assert start["call"]["linkedid"] == target.uniqueid


async def test_fields_of_the_url_hold_the_call_percent_encoded(
    ami: AmiClient, caller: SipUser, recorder: Recorder, daemon: Daemon
) -> None:
    target = await place_call(ami, caller)
    await ami.action(
        "Setvar", Channel=target.channel, Variable="CALLERID(name)", Value="a/../b&x=1 ü"
    )
    url = recorder.url("/in/{caller_name}/?id={uniqueid}&from={caller_name}")
    action_id = start_fork(ami, target.channel, url, "D(in)")
    await speak_and_hang_up(target)
    recording, texts = await told(recorder, "/in/")
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert not texts
    parts = urlsplit(recording.path)
    assert parts.path == "/in/a_.._b%26x%3D1%20%C3%BC/"
    assert parse_qs(parts.query) == {"id": [target.uniqueid], "from": ["a/../b&x=1 ü"]}
    assert stopped["WsServer"] == recorder.url(recording.path)
    assert "{" not in daemon.log()
