"""What a phone does with a call whose other party is a server: hold, transfers; its records."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.peers import until
from tests.system.bots import BOT, went_on
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    no_channels,
    place_call,
    set_globals,
)

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

# Columns of cdr_csv's rows.
DESTINATION_CHANNEL, LAST_APPLICATION, DISPOSITION = 6, 7, 14
# Channel events of a connected call that its server ends.
CHANNEL_EVENTS = [
    ("caller", "CHAN_START"),
    ("caller", "ANSWER"),
    ("server", "CHAN_START"),
    ("server", "ANSWER"),
    ("server", "BRIDGE_ENTER"),
    ("caller", "BRIDGE_ENTER"),
    ("server", "BRIDGE_EXIT"),
    ("caller", "BRIDGE_EXIT"),
    ("server", "HANGUP"),
    ("server", "CHAN_END"),
    ("caller", "HANGUP"),
    ("caller", "CHAN_END"),
    ("caller", "LINKEDID_END"),
]


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {
        "manager.conf": manager_conf(),
        "ari.conf": ari_conf(),
        "modules.conf": "load = cel_manager.so",
        "cel.conf": "[general]\nenable = yes\nevents = ALL\n[manager]\nenabled = yes",
    }
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def connected(ami: AmiClient, caller: SipUser, recorder: Recorder) -> Target:
    """Place a call with a server, which hears it."""
    await set_globals(ami, BOT_URL=recorder.url("/bot"), BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    target.call.talk()
    await recorder.wait_messages("/bot", 25)
    return target


async def left_by_its_server(ami: AmiClient, caller: SipUser, recorder: Recorder) -> Target:
    """Place a call with a server that closes, and hang up when the dialplan goes on."""
    target = await connected(ami, caller, recorder)
    recording = recorder.at("/bot")[0]
    assert recording.connection is not None
    await recording.connection.close()
    await went_on(ami)
    await target.call.hangup()
    return target


@counts_blocks
async def test_hold_by_the_phone_leaves_the_server_in_the_call_and_lets_it_hear_the_phone(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    blocks = make_blocks(100, seed=81)
    await set_globals(ami, BOT_URL=recorder.url("/bot"), BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    await target.call.play(make_blocks(25, seed=82))
    position = len(ami.events)
    await target.call.offer(hold=True)
    await ami.wait_event(lambda h: h.get("Event") == "Hold", after=position)
    await target.call.play(blocks[:50])  # as music of its own
    await target.call.offer()
    await target.call.play(blocks[50:] + make_blocks(25, seed=82))
    assert not target.call.ended.is_set()
    await target.call.hangup()
    recording = await recorder.wait_closed("/bot")
    assert report(find_blocks(recording.audio, [decode(one) for one in blocks]), 100).intact
    assert not any(h.get("UserEvent") == "Back" for _, h in ami.events[position:])


async def test_blind_transfer_by_the_phone_ends_the_server_s_part(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await connected(ami, caller, recorder)
    position = len(ami.events)
    await target.call.refer("echo")
    stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "hangup"
    assert (await recorder.wait_closed("/bot")).close_reason == "hangup"
    transferred = await ami.wait_event(lambda h: h.get("Event") == "BlindTransfer", after=position)
    assert transferred["Result"] == "Success"
    await no_channels(ami)


async def test_attended_transfer_by_the_phone_ends_the_server_s_part_and_the_other_call(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with SipUser("callee", ("127.0.0.1", asterisk.sip_port), answer=True) as callee:
        await callee.register()
        target = await connected(ami, caller, recorder)
        position = len(ami.events)
        other = await place_call(ami, caller, "callee")
        answered = await callee.incoming()
        answered.talk()
        other.call.talk()
        await ami.wait_event(
            lambda h: h.get("Event") == "BridgeEnter" and h["Channel"] == other.channel,
            after=position,
        )
        await target.call.refer_replaces(other.call)
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
        assert stopped["Reason"] == "hangup"
        await answered.wait_ended()
    await no_channels(ami)


async def test_connected_call_leaves_a_record_of_its_time_with_the_server_and_one_of_the_rest(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    before = len(asterisk.cdr_rows())
    await left_by_its_server(ami, caller, recorder)
    await no_channels(ami)
    await until(lambda: len(asterisk.cdr_rows()) >= before + 2)
    rows = list(csv.reader(asterisk.cdr_rows()[before:]))
    assert [row[LAST_APPLICATION] for row in rows] == ["Dial", "Wait"]
    assert rows[0][DESTINATION_CHANNEL].startswith("AudioSocket/")
    assert rows[1][DESTINATION_CHANNEL] == ""
    assert [row[DISPOSITION] for row in rows] == ["ANSWERED", "ANSWERED"]


async def test_connected_call_has_the_channel_events_of_any_dial(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    position = len(ami.events)
    target = await left_by_its_server(ami, caller, recorder)
    await ami.wait_event(lambda h: h.get("EventName") == "LINKEDID_END", after=position)
    events = [
        ("caller" if h["Channel"] == target.channel else "server", h["EventName"])
        for _, h in ami.events[position:]
        if h.get("Event") == "CEL"
    ]
    # Asterisk tells the two channels of a bridge in either order.
    assert sorted(events) == sorted(CHANNEL_EVENTS)
    assert [one for one in events if one[0] == "caller"] == [
        one for one in CHANNEL_EVENTS if one[0] == "caller"
    ]
