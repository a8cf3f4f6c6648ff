import pytest

from audiofork.asterisk.ami_protocol import BridgeChanged, KeyPressed
from audiofork.forks.events import Pressed
from audiofork.link.messages import PressKey
from tests.control_plane import NAME, UNIQUEID, Rig

KEY = KeyPressed(UNIQUEID, "5", 90)


def keys(rig: Rig) -> list[PressKey]:
    return [command for command in rig.sent if isinstance(command, PressKey)]


@pytest.mark.parametrize("name", ["json", "twilio", "vonage", "jambonz", "chan_websocket"])
async def test_key_goes_to_the_server_of_each_format_that_has_a_way(rig: Rig, name: str) -> None:
    fork_id = await rig.stream(options=f"D(in)x({name})")
    rig.forks.on_event(KEY)
    assert keys(rig) == [PressKey(fork_id, "5", 90)]
    assert [event for event in rig.events if isinstance(event, Pressed)]
    assert [view.keys for view in await rig.forks.views()] == [1]


@pytest.mark.parametrize("options", ["", "M", "D(out)x(json)", "bx(json)"])
async def test_key_goes_to_no_other_server(rig: Rig, options: str) -> None:
    await rig.stream(options=options)
    rig.forks.on_event(KEY)
    assert not keys(rig)


async def test_key_of_another_channel_goes_nowhere(rig: Rig) -> None:
    await rig.stream(options="D(in)x(json)")
    rig.forks.on_event(KeyPressed("2.2", "5", 90))
    assert not keys(rig)


async def test_keys_are_muted_with_what_the_party_says(rig: Rig) -> None:
    await rig.stream(options="D(stereo)x(json)")
    mute = {"command": "AudioForkMute", "channel": NAME, "direction": "read"}
    await rig.ask(**mute, state="on")
    rig.forks.on_event(KEY)
    assert not keys(rig)
    await rig.ask(**mute, state="off")
    rig.forks.on_event(KEY)
    assert len(keys(rig)) == 1


async def test_keys_of_a_fork_with_option_b_count_while_the_channel_is_bridged(rig: Rig) -> None:
    await rig.stream(options="D(in)bx(json)")
    rig.forks.on_event(BridgeChanged(UNIQUEID, entered=True))
    rig.forks.on_event(KEY)
    assert len(keys(rig)) == 1


async def test_keys_of_a_fork_that_ends_are_not_told(rig: Rig) -> None:
    await rig.stream(options="D(in)x(json)")
    await rig.ask(command="StopAudioFork", channel=NAME)
    rig.forks.on_event(KEY)
    assert not keys(rig)
