"""Keys by a connection of their own, to a server that is the test's."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from audiofork.asterisk.keypad import KEY_MS, Keypad
from audiofork.errors import AmiActionFailed, AmiLoginRefused, AmiUnavailable
from tests.control_plane import AmiRun, FakeAsterisk, response


@pytest.fixture
async def keypad(run_ami: Callable[..., AmiRun]) -> AsyncIterator[Keypad]:
    run = run_ami()
    await run.up()
    keypad = Keypad(run.ami.another)
    yield keypad
    await keypad.close()


async def test_first_key_opens_a_connection_that_the_others_use(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    assert len(asterisk.connections) == 1
    for key in "1#":
        await keypad.play("1.1", key)
    assert len(asterisk.connections) == 2
    for key in "1#":
        action = await asterisk.received("PlayDTMF")
        assert (action["channel"], action["digit"]) == ("1.1", key)
        assert action["duration"] == str(KEY_MS)


async def test_key_waits_until_the_one_before_has_sounded(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    asterisk.answers["PlayDTMF"] = lambda _: None
    first = asyncio.create_task(keypad.play("1.1", "1"))
    second = asyncio.create_task(keypad.play("2.2", "2"))
    action = await asterisk.received("PlayDTMF")
    assert asterisk.count("PlayDTMF") == 1
    asterisk.answers["PlayDTMF"] = response
    asterisk.send(response(action))
    await asyncio.gather(first, second)
    assert (await asterisk.received("PlayDTMF"))["channel"] == "2.2"


async def test_key_that_is_refused_says_why_and_the_next_is_played(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    asterisk.answers["PlayDTMF"] = lambda action: response(action, "Message: no", ok=False)
    with pytest.raises(AmiActionFailed, match="PlayDTMF: no"):
        await keypad.play("1.1", "1")
    asterisk.answers["PlayDTMF"] = response
    await keypad.play("1.1", "2")
    assert len(asterisk.connections) == 2


async def test_lost_connection_fails_a_key_and_is_opened_again_for_the_next(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    await keypad.play("1.1", "1")
    asterisk.connections[-1].drop()
    await asterisk.connections[-1].closed.wait()
    with pytest.raises(AmiUnavailable):
        await keypad.play("1.1", "2")
    await keypad.play("1.1", "3")
    assert len(asterisk.connections) == 3


async def test_connection_is_closed_and_opened_again_for_a_key(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    await keypad.play("1.1", "1")
    await keypad.close()
    async with asyncio.timeout(5):
        await asterisk.connections[-1].closed.wait()
    await keypad.play("1.1", "2")
    assert len(asterisk.connections) == 3


async def test_second_login_that_is_refused_is_told_with_the_remedy(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    asterisk.answers["Login"] = lambda action: response(
        action, "Message: Login Already In Use", ok=False
    )
    with pytest.raises(AmiLoginRefused, match="Login Already In Use; .*allowmultiplelogin = yes"):
        await keypad.play("1.1", "1")


async def test_asterisk_that_is_away_is_told_and_missed_no_longer_when_it_is_back(
    asterisk: FakeAsterisk, keypad: Keypad
) -> None:
    await asterisk.stop()
    with pytest.raises(AmiUnavailable, match="no further connection to Asterisk: .*refused"):
        await keypad.play("1.1", "1")
    await asterisk.start()
    await keypad.play("1.1", "1")
    assert asterisk.count("PlayDTMF") == 1
