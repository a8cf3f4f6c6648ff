"""The page of a cluster: where each fork is or was, and what is missing."""

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


# --- The history ---------------------------------------------------------------------------------


def spread(stand_in: StandIn) -> None:
    """Have the entries be those of two Asterisks, of which one has two controllers."""
    places = [("pbx-a", "c1"), ("pbx-b", "b1"), ("pbx-a", MARKUP)]
    for number, one in enumerate(stand_in.entries):
        one["asterisk"], one["controller"] = places[number % 3]
    stand_in.status["controllers"] = [
        {"name": name, "asterisk": asterisk, "state": "stands by"} for asterisk, name in places
    ]


async def test_nothing_of_a_cluster_is_in_the_history_without_one(
    page: Page, stand_in: StandIn
) -> None:
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    table = page.get_by_role("table", name="Ended forks")
    await expect(table.locator("tbody tr")).to_have_count(50)
    await expect(table.get_by_role("columnheader")).to_have_count(8)
    await expect(page.locator("select[name=asterisk]")).to_be_hidden()
    await expect(page.locator(".history .missing")).to_be_hidden()
    await table.locator("tbody a").first.click()
    await expect(page.locator(".facts dt", has_text="Ended")).to_be_visible()
    await expect(page.locator(".facts dt", has_text="Controller")).to_have_count(0)


async def test_each_entry_of_a_cluster_has_its_asterisk_and_controller_and_one_can_be_chosen(
    page: Page, stand_in: StandIn
) -> None:
    spread(stand_in)
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    table = page.get_by_role("table", name="Ended forks")
    await expect(table.get_by_role("columnheader")).to_have_count(10)
    rows = table.locator("tbody tr")
    await expect(rows.nth(0).locator("td.of-cluster")).to_have_text(["pbx-a", "c1"])
    await expect(rows.nth(2).locator("td.of-cluster")).to_have_text(["pbx-a", MARKUP])
    choice = page.get_by_role("search").get_by_label("Asterisk")
    await expect(choice.locator("option")).to_have_text(["Any", "pbx-a", "pbx-b"])
    await choice.select_option("pbx-b")
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Search").click()
    await expect(rows).to_have_count(47)
    assert set(await rows.locator("td.of-cluster").all_inner_texts()) == {"pbx-b", "b1"}
    await rows.locator("a").first.click()
    await expect(page.locator(".facts div", has_text="Controller")).to_contain_text("b1")
    await expect(page.locator(".facts div", has_text="Asterisk")).to_contain_text("pbx-b")


async def test_cluster_of_one_asterisk_offers_no_choice(page: Page, stand_in: StandIn) -> None:
    spread(stand_in)
    for one in stand_in.status["controllers"]:
        one["asterisk"] = "pbx-a"
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    table = page.get_by_role("table", name="Ended forks")
    await expect(table.get_by_role("columnheader")).to_have_count(10)
    await expect(page.locator("select[name=asterisk]")).to_be_hidden()


async def test_history_that_is_missing_is_told_until_it_is_there(
    page: Page, stand_in: StandIn
) -> None:
    stand_in.silent = {"pbx-b/b1": f"nobody answers {MARKUP}"}
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    told = page.get_by_text("The history of pbx-b/b1 is missing: nobody answers")
    await expect(told).to_have_count(1)
    await expect(told).to_contain_text(MARKUP)
    stand_in.silent = {}
    await page.get_by_role("button", name="Search").click()
    await expect(told).to_be_hidden()
