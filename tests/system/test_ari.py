"""The connection to ARI, against a real Asterisk with the shipped ARI user."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from audiofork.asterisk.ari import Ari, segment
from audiofork.config import AriConfig
from audiofork.errors import AriLoginRefused, AriRefused, AriUnavailable
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import SECRET, ari_conf, manager_conf
from testbed.sip import SipUser
from tests.asterisk.test_ari import running
from tests.system.conftest import DIALPLAN, Target, no_channels, place_call

pytestmark = pytest.mark.asterisk

# Where a snoop channel goes on, when it has left our application.
TAP = """
[tap]
exten => s,1,UserEvent(Tapped,Value: ${AUDIOFORK_TEST})
 same => n,Wait(600)
"""
READER = f"""
[reader]
type = user
read_only = yes
password = {SECRET}
password_format = plain
"""
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, which may be restarted."""
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf() + READER}
    with Asterisk(dialplan=DIALPLAN + TAP, config=config) as one:
        yield one


def config(asterisk: Asterisk, **settings: Any) -> AriConfig:
    url = f"http://127.0.0.1:{asterisk.http_port}/ari"
    return AriConfig(**{"url": url, "password": SECRET, **settings})


@pytest.fixture
async def link(asterisk: Asterisk) -> AsyncIterator[Ari]:
    """One that runs and is ready."""
    async with Ari(config(asterisk)) as ari, running(ari):
        await wait_until(lambda: ari.ready)
        yield ari


@pytest.fixture
async def target(ami: AmiClient, caller: SipUser) -> AsyncIterator[Target]:
    """A call, with no channel left after the test."""
    one = await place_call(ami, caller)
    yield one
    await one.call.hangup()
    await no_channels(ami)


async def wait_until(condition: Callable[[], object], limit_s: float = 5) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def snoop(link: Ari, target: Target, app: str = "audiofork") -> str:
    """Have a snoop channel made; return its id when it has come."""
    # Of one length: Asterisk refuses an id that another one begins with.
    snoop_id = f"audiofork-{next(_numbers):04}"
    with link.starting(snoop_id) as started:
        path = f"/channels/{segment(target.uniqueid)}/snoop/{snoop_id}"
        channel = await link.post(path, spy="in", app=app)
        assert channel["id"] == snoop_id
        async with asyncio.timeout(20):
            await started
    return snoop_id


async def variable(link: Ari, channel: str, name: str) -> str:
    """Read a variable; an older Asterisk sets it a moment after it has said so."""
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await link.get(f"/channels/{channel}/variable", variable=name)
            except AriRefused:
                await asyncio.sleep(0.02)
            else:
                value: str = answer["value"]
                return value


async def test_link_of_the_shipped_user_comes_up_and_may_write(link: Ari) -> None:
    assert link.status.startswith("connected to ARI at http://127.0.0.1:")
    assert (await link.get("/asterisk/ping"))["ping"] == "pong"
    await link.check_rights()


async def test_snoop_channel_of_a_call_is_awaited_and_sent_into_the_dialplan_with_a_variable(
    link: Ari, ami: AmiClient, target: Target
) -> None:
    snoop_id = await snoop(link, target)
    value = "a b+c%41&d=;/?é"
    await link.post(f"/channels/{snoop_id}/variable", variable="AUDIOFORK_TEST", value=value)
    assert await variable(link, snoop_id, "AUDIOFORK_TEST") == value
    went_on = await link.post(
        f"/channels/{snoop_id}/continue", context="tap", extension="s", priority="1"
    )
    assert went_on is None
    assert (await ami.wait_user_event("Tapped"))["Value"] == value
    await link.delete(f"/channels/{snoop_id}")


async def test_many_snoop_channels_at_once_each_come(link: Ari, target: Target) -> None:
    snoop_ids = await asyncio.gather(*(snoop(link, target) for _ in range(50)))
    await asyncio.gather(*(link.delete(f"/channels/{snoop_id}") for snoop_id in snoop_ids))


async def test_no_events_come_but_the_start_of_channels(
    link: Ari, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    on_event = Ari._on_event

    def note(ari: Ari, data: Any) -> None:
        seen.append(data)
        on_event(ari, data)

    monkeypatch.setattr(Ari, "_on_event", note)
    first = await snoop(link, target)
    await link.post(f"/channels/{first}/variable", variable="A", value="b")
    await link.post(f"/channels/{first}/continue", context="tap", extension="s", priority="1")
    await link.delete(f"/channels/{first}")
    second = await snoop(link, target)  # what the first caused has come before this one's start
    await link.delete(f"/channels/{second}")
    assert len(seen) == 2
    assert all('"type":"StasisStart"' in event for event in seen)


@pytest.mark.parametrize("uniqueid", ["1700000000.1", "a/b", "..", "a b?c=%41#é"])
async def test_unknown_channel_is_refused_with_404(link: Ari, uniqueid: str) -> None:
    with pytest.raises(AriRefused) as caught:
        await link.post(f"/channels/{segment(uniqueid)}/snoop/x", spy="in", app="audiofork")
    assert (caught.value.status, caught.value.message) == (404, "Provided channel was not found")


async def test_wrong_password_is_said(asterisk: Asterisk) -> None:
    async with Ari(config(asterisk, password="wrong")) as ari, running(ari):
        await wait_until(lambda: "refused audiofork: Unauthorized; check [ari]" in ari.status)
        assert not ari.ready
        with pytest.raises(AriLoginRefused, match="Authentication required"):
            await ari.check_rights()


async def test_user_that_may_only_read_is_said_before_the_first_fork(asterisk: Asterisk) -> None:
    async with Ari(config(asterisk, username="reader")) as ari, running(ari):
        await wait_until(lambda: "refused reader: Write access denied; check" in ari.status)
        assert not ari.ready
        with pytest.raises(AriLoginRefused, match="read_only has to be no"):
            await ari.check_rights()


async def test_path_that_is_not_ari_s_is_said(asterisk: Asterisk) -> None:
    url = f"http://127.0.0.1:{asterisk.http_port}"
    async with Ari(config(asterisk, url=url)) as ari, running(ari):
        await wait_until(lambda: "404: Not Found; check [ari] url" in ari.status)
        with pytest.raises(AriRefused, match="404: Not Found"):
            await ari.check_rights()


async def test_link_that_asterisk_answers_pings_on_is_kept(
    asterisk: Asterisk, caplog: pytest.LogCaptureFixture
) -> None:
    async with Ari(config(asterisk, ping_interval=0.2)) as ari, running(ari):
        await wait_until(lambda: ari.ready)
        await asyncio.sleep(1)
        assert ari.ready
    assert "no connection" not in caplog.text


async def test_two_daemons_with_one_name_are_told(asterisk: Asterisk, link: Ari) -> None:
    async with Ari(config(asterisk)) as other, running(other):
        told = "another program took the ARI application audiofork"
        await wait_until(lambda: told in link.status)
        await wait_until(lambda: other.ready)


async def test_two_daemons_with_two_names_have_their_own_channels(
    asterisk: Asterisk, link: Ari, target: Target
) -> None:
    async with Ari(config(asterisk, app="audiofork-2")) as other, running(other):
        await wait_until(lambda: other.ready)
        for snoop_id in (await snoop(link, target), await snoop(other, target, "audiofork-2")):
            await link.delete(f"/channels/{snoop_id}")
        assert link.ready


async def test_asterisk_that_restarts_is_noticed_at_once_and_the_link_comes_back(
    asterisk: Asterisk, link: Ari
) -> None:
    with link.starting("audiofork-never") as started:
        asterisk.kill()
        with pytest.raises(AriUnavailable):
            async with asyncio.timeout(20):
                await started
    with pytest.raises(AriUnavailable):
        await link.get("/asterisk/ping")
    await asyncio.to_thread(asterisk.restart)
    await wait_until(lambda: link.ready, 15)
    async with (
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as one,
    ):
        target = await place_call(ami, one)
        await snoop(link, target)
        await target.call.hangup()
        await no_channels(ami)
