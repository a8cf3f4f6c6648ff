"""A party that hears nothing from Asterisk hears no server either, unless silence is sent to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from audiofork.asterisk.taps.ways import Wish
from audiofork.link.messages import Direction
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.sip import SipUser
from tests.system.conftest import DIALPLAN, counts_blocks, place_call
from tests.system.test_speak import BLOCKS, LEAST, PARTY, QUIET, Line, blocks_in, line

__all__ = ["line"]

pytestmark = [pytest.mark.asterisk, counts_blocks]


@pytest.fixture(scope="module", params=["no", "yes"])
def transmit_silence(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture(scope="module")
def asterisk(transmit_silence: str) -> Iterator[Asterisk]:
    config = {
        "manager.conf": manager_conf(),
        "ari.conf": ari_conf(),
        "asterisk.conf": f"transmit_silence = {transmit_silence}\n",
    }
    with Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one:
        yield one


@pytest.mark.parametrize("tap", ["snoop", "chanspy"])
async def test_party_in_wait_hears_the_server_only_where_silence_is_transmitted(
    ami: AmiClient, caller: SipUser, line: Line, tap: str, transmit_silence: str
) -> None:
    target = await place_call(ami, caller, "wait")
    target.call.play(QUIET, loop=True)
    target.call.recording = True
    await line.attach(target, tap, Wish(Direction.IN, audience=PARTY))
    await line.say(BLOCKS)
    if transmit_silence == "yes":
        await target.call.wait_received(target.call.rtp.packets_received + 25)
    heard = blocks_in(target.call, BLOCKS, decode)
    assert LEAST[tap] <= heard if transmit_silence == "yes" else heard == 0
    await target.call.hangup()
