"""A fork's own view: its events and texts as they come, listening, mute and stop."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from testbed import hearing
from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import LOOKER, TONES_HZ, StandIn
from tests.page.synthetic import Fork

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def open_fork(page: Page, stand_in: StandIn, *token: str) -> Fork:
    """Open the view of a new fork."""
    one = stand_in.add(synthetic.fork(1, caller_name="Ada", direction="stereo"))
    await sign_in(page, stand_in.url, *token)
    await page.get_by_role("link", name="Ada").click()
    await expect(
        page.get_by_role("region", name="Timeline").get_by_text("requested")
    ).to_be_attached()
    return one


async def test_timeline_and_transcript_go_on_as_things_happen(
    page: Page, stand_in: StandIn
) -> None:
    one = await open_fork(page, stand_in)
    timeline = page.get_by_role("region", name="Timeline").get_by_role("listitem")
    transcript = page.get_by_role("region", name="Texts of the server").get_by_role("listitem")
    before = await timeline.count()
    await expect(transcript).to_have_count(len(synthetic.TEXTS))

    stand_in.emit("fork.dtmf", one, digit="5", duration_ms=120)
    await expect(timeline.last).to_contain_text("dtmfkey 5, 120 ms")
    stand_in.emit(
        "fork.reconnecting", one, what="server", attempt=1, detail="reset", was_streaming=True
    )
    await expect(timeline.last).to_contain_text("reconnectingthe server, attempt 1, reset")
    stand_in.emit("fork.resumed", one, what="server", gap_ms=420, frames_dropped=21)
    await expect(timeline.last).to_contain_text("the server, a gap of 420 ms, 420 ms dropped")
    for text in ('{"partial": "good"}', '{"partial": "good mor"}', '{"text": "Good morning"}'):
        stand_in.emit("fork.message", one, text=text)
    await expect(transcript).to_have_count(len(synthetic.TEXTS) + 1)
    await expect(transcript.last).to_contain_text("Good morning")
    stand_in.emit("fork.message", one, text="no JSON")
    await expect(transcript.last).to_contain_text("no JSON")
    await expect(timeline).to_have_count(before + 7)
    await expect(
        page.get_by_role("region", name="Timeline").get_by_text("requested")
    ).to_have_count(1)


async def test_event_that_comes_while_the_timeline_is_asked_for_is_shown_once(
    page: Page, stand_in: StandIn
) -> None:
    one = stand_in.add(synthetic.fork(1, caller_name="Ada"))
    await sign_in(page, stand_in.url)
    stand_in.slow_s = 0.5
    await page.get_by_role("link", name="Ada").click()
    await page.locator(".panel").wait_for()
    known = synthetic.timeline(one)
    stand_in.emit("fork.dtmf", one, at=known[-1]["at"], digit="7", duration_ms=100)
    stand_in.emit("fork.dtmf", one, at=known[-1]["at"] + 1, digit="8", duration_ms=100)
    timeline = page.get_by_role("region", name="Timeline").get_by_role("listitem")
    await expect(timeline).to_have_count(len(known) + 1)
    await expect(timeline.last).to_contain_text("key 8")


async def test_waveform_is_drawn_from_levels(page: Page, stand_in: StandIn) -> None:
    stand_in.fixed[synthetic.fork(1)["id"]] = [16384, 8192, 0, 0]
    await open_fork(page, stand_in)
    drawn = """(canvas) => {
        const {width, height} = canvas;
        const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
        const colored = (from, to) => data.slice(from * width * 4, to * width * 4)
            .filter((value, at) => at % 4 === 3 && value > 200).length;
        const middle = Math.floor(height / 2);
        return [colored(0, middle - 2), colored(middle + 2, height)];
    }"""
    wave = page.locator("canvas.wave")
    handle = await wave.element_handle()
    await page.wait_for_function(f"(one) => ({drawn})(one)[0] > 500", arg=handle)
    assert (await wave.evaluate(drawn))[1] == 0


async def test_listening_plays_each_side_until_it_is_stopped(page: Page, stand_in: StandIn) -> None:
    await hearing.tap(page)
    await open_fork(page, stand_in)
    await page.get_by_role("button", name="Listen").click()
    await hearing.wait_tones(page, TONES_HZ["in"], TONES_HZ["out"])
    await expect(page.get_by_text("in and out, 8 kHz; in is left, out is right")).to_be_visible()
    await page.get_by_role("button", name="Stop listening").click()
    assert await hearing.tones(page) == []
    await expect(page.get_by_role("button", name="Listen")).to_have_attribute(
        "aria-pressed", "false"
    )


async def test_listening_ends_with_the_fork(page: Page, stand_in: StandIn) -> None:
    one = await open_fork(page, stand_in)
    await page.get_by_role("button", name="Listen").click()
    await expect(page.get_by_text("in and out, 8 kHz")).to_be_visible()
    stand_in.end(one)
    await expect(page.get_by_text("Listening ended: stopped")).to_be_visible()
    await expect(page.get_by_role("button", name="Listen")).to_be_disabled()
    await expect(page.get_by_role("link", name="Look in the history")).to_be_visible()


async def test_each_side_is_muted_and_heard_again(page: Page, stand_in: StandIn) -> None:
    one = await open_fork(page, stand_in)
    button = page.get_by_role("button", name="Mute out")
    for is_muted in (True, False):
        await button.click()
        await expect(button).to_have_attribute("aria-pressed", json.dumps(is_muted))
        assert stand_in.asked[-1] == ("PATCH", one["id"], {"mute": {"out": is_muted}})


async def test_fork_is_stopped_only_after_a_confirmation(page: Page, stand_in: StandIn) -> None:
    one = await open_fork(page, stand_in)
    await page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Stop the fork of Ada?")
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(page.locator(".panel")).to_be_visible()
    assert stand_in.asked == []
    await page.get_by_role("button", name="Stop").click()
    await dialog.get_by_role("button", name="Stop it").click()
    await expect(page.get_by_text("This fork has ended.")).to_be_visible()
    assert stand_in.asked == [("DELETE", one["id"], None)]


async def test_refused_order_is_told_in_words(page: Page, stand_in: StandIn) -> None:
    await open_fork(page, stand_in)
    stand_in.broken = "/api/"
    await page.get_by_role("button", name="Mute in").click()
    await expect(page.get_by_text("It cannot be muted: Asterisk is away")).to_be_visible()


async def test_what_a_token_may_not_do_is_not_shown(page: Page, stand_in: StandIn) -> None:
    await open_fork(page, stand_in, LOOKER)
    assert await page.locator(".panel button").count() == 0


async def test_unknown_fork_is_told_with_a_way_to_the_history(
    page: Page, stand_in: StandIn
) -> None:
    await sign_in(page, stand_in.url)
    await page.goto(f"{stand_in.url}#/forks/00000000-0000-4000-8000-000000000000")
    await expect(page.get_by_text("There is no such fork now.")).to_be_visible()


async def test_relay_host_of_a_cluster_is_named_and_there_is_none_without_one(
    page: Page, stand_in: StandIn
) -> None:
    one = stand_in.add(synthetic.fork(1, caller_name="Ada", relay_host="r1"))
    stand_in.add(synthetic.fork(2, caller_name="Grace"))
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="Ada").click()
    term = page.get_by_role("term").filter(has_text="Relay host")
    await expect(term).to_be_visible()
    await expect(page.locator("dd").get_by_text(one["relay_host"], exact=True)).to_be_visible()
    await page.go_back()
    await page.get_by_role("link", name="Grace").click()
    await expect(page.get_by_text("Uniqueid")).to_be_visible()
    await expect(term).to_have_count(0)
