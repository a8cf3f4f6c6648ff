"""What servers of other platforms get of a real call."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest

from testbed.ami import AmiClient
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.formats.json_page import check
from tests.system.conftest import counts_blocks, place_call, start_fork_heard

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(250, seed=61)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(50, seed=62)


@pytest.fixture(scope="module")
def tap() -> str:
    return "snoop"


async def spoken(
    ami: AmiClient, caller: SipUser, recorder: Recorder, options: str, blocks: list[bytes]
) -> list[bytes | str]:
    """Fork an Echo() call while known blocks are spoken; return what the server got."""
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, recorder.url("/"), options)
    await target.call.play(blocks + WARM_UP[:10])
    await target.call.hangup()
    return (await recorder.wait_closed("/")).messages


@counts_blocks
async def test_twilio_brings_the_callers_mu_law_as_it_went_in(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    messages = await spoken(ami, caller, recorder, "D(in)x(twilio)", BLOCKS)
    assert all(isinstance(message, str) for message in messages)
    told: list[dict[str, Any]] = [json.loads(message) for message in messages]
    assert [one["event"] for one in told[:2]] == ["connected", "start"]
    assert told[-1]["event"] == "stop"
    media = [one["media"] for one in told[2:-1]]
    numbers = [int(one["sequenceNumber"]) for one in told[1:]]
    assert numbers == list(range(1, len(told)))
    stamps = [int(one["timestamp"]) for one in media]
    assert {later - earlier for earlier, later in itertools.pairwise(stamps)} == {20}
    audio = b"".join(base64.b64decode(one["payload"]) for one in media)
    found = report(find_blocks(decode(audio), HEARD), 250)
    assert found.intact
    # Not only what it decodes to: the very bytes.
    assert all(block in audio for block in BLOCKS)
    assert told[1]["start"]["customParameters"]["to_number"] == "echo"


@counts_blocks
@pytest.mark.parametrize("codec", ["ulaw", "alaw"])
async def test_raw_in_another_codec_is_half_as_long(
    ami: AmiClient, caller: SipUser, recorder: Recorder, codec: str
) -> None:
    messages = await spoken(ami, caller, recorder, f"D(in)c({codec})", BLOCKS[:100])
    assert {len(message) for message in messages} == {160}
    if codec == "ulaw":
        audio = b"".join(message for message in messages if isinstance(message, bytes))
        assert all(block in audio for block in BLOCKS[:100])


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("json", "event", "start"),
        ("vonage", "content-type", "audio/l16;rate=8000"),
        ("jambonz", "sampleRate", 8000),
        ("chan_websocket", "event", "MEDIA_START"),
    ],
)
async def test_first_message_is_the_text_of_the_format_and_then_comes_audio(
    ami: AmiClient, caller: SipUser, recorder: Recorder, name: str, field: str, value: object
) -> None:
    messages = await spoken(ami, caller, recorder, f"D(in)x({name})", BLOCKS[:50])
    first, *others = messages
    assert isinstance(first, str)
    assert json.loads(first)[field] == value
    audio = [message for message in others if isinstance(message, bytes)]
    assert {len(message) for message in audio} == {320}
    assert len(audio) >= 50


async def test_mute_is_told_where_the_silence_begins_and_ends_and_all_is_as_the_page_says(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, recorder.url("/"), "D(in)x(json)", Params="a=1")
    for state in "10":
        muted = {"Channel": target.channel, "Direction": "read", "State": state}
        ami.send("UserEvent", UserEvent="AudioFork", Command="AudioForkMute", **muted)
        await target.call.play(WARM_UP[:25])
    await target.call.hangup()
    messages = (await recorder.wait_closed("/")).messages
    told = [check(one) for one in messages if isinstance(one, str)]
    assert told == ["start", "mute", "mute", "stop"]
    begin, end = [at for at, one in enumerate(messages) if isinstance(one, str) and '"mute"' in one]
    on, off = json.loads(messages[begin]), json.loads(messages[end])
    assert (on["muted"], off["muted"]) == (["in"], [])
    # Texts at the begin: one. So a frame's place in the messages tells its position.
    assert (on["position_ms"], off["position_ms"]) == ((begin - 1) * 20, (end - 2) * 20)
    audio = [one for one in messages if isinstance(one, bytes)]
    parts = audio[: begin - 1], audio[begin - 1 : end - 2], audio[end - 2 :]
    assert [any(b"".join(part)) for part in parts] == [True, False, True]


async def test_keys_of_the_party_come_once_where_they_were_pressed(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, recorder.url("/"), "D(in)x(json)")
    for digit in "5#":
        pressed = {"Channel": target.channel, "Digit": digit, "Duration": "100", "Receive": "true"}
        await ami.action("PlayDTMF", **pressed)
        await target.call.play(WARM_UP[:25])
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    told = [json.loads(one) for one in recording.messages if isinstance(one, str)]
    keys = [one for one in told if one["event"] == "dtmf"]
    assert [one["digit"] for one in keys] == ["5", "#"]
    assert 300 <= keys[1]["position_ms"] - keys[0]["position_ms"] <= 1500
