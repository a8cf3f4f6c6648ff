"""The page of a real daemon, in a real browser, while real calls are forked."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Locator, Page, expect

from testbed import hearing
from testbed.ami import AmiClient
from testbed.browser import browser_for_tests, watched_page
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.rtp import SLIN, swap_bytes
from testbed.sip import SipUser
from testbed.tones import tone
from tests.system.conftest import Target, place_call, start_fork

pytestmark = pytest.mark.asterisk

TOKEN = "token-of-the-tests-0123456789"
MARKUP = "<img src=x onerror=alert(1)><b>Bobby</b>"
TONE_HZ = 1000
SOON_MS = 1500


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("page")
    tokens = folder / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"tests view,listen,control {TOKEN}\n")
    return {
        "http": f"listen = 127.0.0.1:0\ntokens_file = {tokens}\n",
        "history": f"file = {folder}/history.sqlite3\ntexts = yes\n",
    }


@pytest.fixture
async def page(daemon: Daemon) -> AsyncIterator[Page]:
    """The page of the daemon, signed in."""
    found = re.search(r"HTTP interface on (http://\S+)", daemon.log())
    assert found is not None
    url = f"{found[1]}/"
    async with browser_for_tests() as browser, watched_page(browser, url) as one:
        await hearing.tap(one)
        await one.goto(url)
        await one.get_by_label("Token").fill(TOKEN)
        await one.keyboard.press("Enter")
        await one.get_by_text("No call is forked now.").wait_for()
        yield one


def row_of(page: Page, target: Target) -> Locator:
    return page.locator(".forks tbody tr:not([hidden])").filter(has_text=target.channel)


async def open_fork(page: Page, ami: AmiClient, target: Target, recorder: Recorder) -> None:
    """Fork what the caller says, who must say something, and open the view of the fork."""
    start_fork(ami, target.channel, recorder.url(), "D(in)")
    await expect(row_of(page, target).get_by_text("streaming")).to_be_visible()
    await row_of(page, target).get_by_role("link").click()
    await expect(page.get_by_role("region", name="Timeline")).to_contain_text("started")


def play_tone(target: Target) -> asyncio.Future[int]:
    """Let the caller play a tone for ever, or until the future is cancelled."""
    samples = swap_bytes(tone(TONE_HZ, 1.0))
    size = SLIN.frame_bytes
    packets = [samples[at : at + size] for at in range(0, len(samples), size)]
    return target.call.play(packets, loop=True)


async def test_fork_appears_by_itself_and_nothing_of_its_caller_is_markup(
    page: Page, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    variable = "CALLERID(name)"
    await ami.action("Setvar", Channel=target.channel, Variable=variable, Value=MARKUP)
    began = time.monotonic()
    start_fork(ami, target.channel, recorder.url())
    await row_of(page, target).wait_for()
    took_s = time.monotonic() - began
    print(f"a fork appears after {took_s * 1000:.0f} ms")
    await expect(row_of(page, target).get_by_role("link")).to_have_text(MARKUP)
    await row_of(page, target).get_by_role("link").click()
    await expect(page.get_by_role("heading", level=2).filter(has_text=MARKUP)).to_be_visible()
    assert await page.locator("main img, main b:text-is('Bobby')").count() == 0
    await target.call.hangup()
    await expect(page.get_by_text("This fork has ended.")).to_be_visible()


async def test_meters_move_with_a_tone_and_rest_with_silence(
    page: Page, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait", SLIN)
    playing = play_tone(target)
    await open_fork(page, ami, target, recorder)
    meter = page.locator(".panel").get_by_role("meter", name="Level in")
    # A quarter of full scale is -12 dB at the peak, and a sine's RMS is 3 dB lower.
    loud = re.compile(r"-1[456] dB")
    await expect(meter).to_have_attribute("aria-valuetext", loud, timeout=SOON_MS)
    playing.cancel()
    await expect(meter).to_have_attribute("aria-valuetext", "silence", timeout=SOON_MS)
    await target.call.hangup()


async def test_listening_plays_what_the_caller_plays(
    page: Page, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait", SLIN)
    play_tone(target)
    await open_fork(page, ami, target, recorder)
    await page.get_by_role("button", name="Listen").click()
    await hearing.wait_tones(page, TONE_HZ)
    await page.get_by_role("button", name="Stop listening").click()
    assert await hearing.tones(page) == []
    await target.call.hangup()


async def test_stopping_ends_the_fork_and_not_the_call(
    page: Page, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, codec=SLIN)
    play_tone(target)
    await open_fork(page, ami, target, recorder)
    position = len(ami.events)
    await page.get_by_role("button", name="Stop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
    stopped = await ami.wait_user_event("AudioForkStopped", after=position)
    assert stopped["Reason"] == "stopped"
    await expect(page.get_by_text("This fork has ended.")).to_be_visible()
    assert not target.call.ended.is_set()
    await target.call.hangup()


async def test_what_the_server_says_is_a_transcript_and_stays_in_the_history(
    page: Page, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, codec=SLIN)
    play_tone(target)
    await open_fork(page, ami, target, recorder)
    connection = recorder.recordings[-1].connection
    assert connection is not None
    await connection.send('{"text": "Good <b>morning</b>"}')
    said = page.get_by_role("region", name="Texts of the server")
    await expect(said).to_contain_text("Good <b>morning</b>")
    await page.get_by_role("button", name="Mute in").click()
    await expect(page.get_by_role("region", name="Timeline")).to_contain_text("muted")
    await target.call.hangup()
    await page.get_by_role("link", name="Look in the history").click()
    entry = page.locator(".panel")
    await expect(entry).to_contain_text("ended hangup")
    await expect(entry.get_by_role("region", name="Timeline")).to_contain_text("audio flows")
    await expect(said).to_contain_text("Good <b>morning</b>")
    await page.keyboard.press("Escape")
    entries = page.get_by_role("table", name="Ended forks").locator("tbody tr")
    await expect(entries.filter(has_text=target.channel)).to_have_count(1)
