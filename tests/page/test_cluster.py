"""The live table of a cluster: where each fork is, and what is missing."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = "<img src=x onerror=alert(1)>"


async def test_nothing_of_a_cluster_is_shown_without_one(page: Page, stand_in: StandIn) -> None:
    stand_in.add(synthetic.fork(1, asterisk="", relay_host=""))
    await sign_in(page, stand_in.url)
    await expect(page.get_by_role("row").nth(1)).to_be_visible()
    for title in ("Asterisk", "Relay host"):
        await expect(page.get_by_role("columnheader", name=title)).to_have_count(0)
    await expect(page.locator("#sort option:not([hidden])")).to_have_count(11)
    await expect(page.locator(".missing")).to_be_hidden()
    await page.locator(".forks tbody a").first.click()
    await expect(page.get_by_role("heading", level=2).last).to_be_visible()
    await expect(page.locator(".facts dt", has_text="Asterisk")).to_have_count(0)


async def test_each_fork_of_a_cluster_has_its_asterisk_and_its_relay_host(
    page: Page, stand_in: StandIn
) -> None:
    await page.set_viewport_size({"width": 1600, "height": 800})
    stand_in.add(synthetic.fork(1, asterisk="pbx-a", relay_host="r1"))
    stand_in.add(synthetic.fork(2, asterisk="pbx-b", relay_host=MARKUP))
    await sign_in(page, stand_in.url)
    await expect(page.locator(".forks tbody tr:not([hidden])")).to_have_count(2)
    places = page.locator(".forks tbody tr:not([hidden]) :is(td.asterisk, td.relay)")
    assert sorted(await places.all_inner_texts()) == sorted(["pbx-a", "r1", "pbx-b", MARKUP])
    await page.get_by_role("button", name="Asterisk").click()
    await expect(page.locator(".forks td.asterisk").first).to_have_text("pbx-a")
    await page.get_by_label("Filter").fill("pbx-b")
    await expect(page.locator(".forks tbody tr:not([hidden])")).to_have_count(1)
    await page.locator(".forks tbody a").first.click()
    await expect(page.locator(".facts div", has_text="Asterisk")).to_contain_text("pbx-b")


async def test_fork_that_is_requested_shows_its_asterisk_at_once(
    page: Page, stand_in: StandIn
) -> None:
    await sign_in(page, stand_in.url)
    await expect(page.get_by_text("No call is forked now.")).to_be_visible()
    stand_in.slow_s = 60.0
    one = synthetic.fork(1, state="requested", asterisk="pbx-a", relay_host="r1")
    stand_in.add(one)
    stand_in.emit("fork.requested", one, asterisk="pbx-a")
    await expect(page.locator(".forks td.asterisk").first).to_have_text("pbx-a")


async def test_what_is_missing_is_told_until_it_is_there(page: Page, stand_in: StandIn) -> None:
    stand_in.missing = {"pbx-b": f"no controller of pbx-b leads {MARKUP}"}
    await sign_in(page, stand_in.url)
    told = page.get_by_text("The forks of pbx-b are missing: no controller of pbx-b leads")
    await expect(told).to_be_visible()
    await expect(told).to_contain_text(MARKUP)
    stand_in.missing = {}
    stand_in.add(synthetic.fork(1, asterisk="pbx-b"))
    await expect(told).to_be_hidden(timeout=30_000)
    await expect(page.locator(".forks tbody tr:not([hidden])")).to_have_count(1)
