"""Signing in, and what happens when the daemon, the session or the connection goes away."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn
from tests.page.test_live import row_of, rows

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_unknown_token_is_told_and_a_known_one_signs_in_and_out(
    page: Page, stand_in: StandIn
) -> None:
    await page.goto(stand_in.url)
    await page.get_by_label("Token").fill("nobody's")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("This token is not known.")
    await expect(page.get_by_role("navigation")).to_have_count(0)
    await sign_in(page, stand_in.url)
    await expect(page.get_by_text("operator")).to_be_visible()
    await page.reload()
    await expect(page.get_by_text("operator")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("alert")).to_have_text("You have signed out.")
    await page.reload()
    await expect(page.get_by_label("Token")).to_be_visible()


async def test_session_that_ends_leads_back_to_signing_in(page: Page, stand_in: StandIn) -> None:
    await sign_in(page, stand_in.url)
    stand_in.sign_out_all()
    stand_in.cut()
    await expect(page.get_by_text("Your session has ended. Sign in again.")).to_be_visible()


async def test_state_of_asterisk_and_relays_is_said_in_words(page: Page, stand_in: StandIn) -> None:
    stand_in.status["asterisk"] |= {"up": False, "text": "connection refused"}
    stand_in.status["ari"] = {"configured": False, "up": False, "text": "", "rtt_ms": 0}
    stand_in.status["relays"][1]["up"] = False
    await sign_in(page, stand_in.url)
    state = page.get_by_role("list", name="State").get_by_role("listitem")
    await expect(state.nth(0)).to_have_text("Asterisk is away: connection refused")
    await expect(state.nth(1)).to_have_text("ARI not configured")
    await expect(state.nth(2)).to_have_text("1 of 2 relays runs")


async def test_list_that_cannot_be_read_is_told_and_asked_for_again(
    page: Page, stand_in: StandIn
) -> None:
    stand_in.broken = "/api/v1/forks"
    stand_in.add(synthetic.fork(1, caller_name="Ada"))
    await sign_in(page, stand_in.url)
    await expect(
        page.get_by_text("The list cannot be read: Asterisk is away. Trying again …")
    ).to_be_visible()
    stand_in.broken = ""
    await row_of(page, "Ada").wait_for()


async def test_lost_connection_is_told_and_what_was_missed_comes_with_the_next(
    page: Page, stand_in: StandIn
) -> None:
    one = stand_in.add(synthetic.fork(1, caller_name="Ada"))
    await sign_in(page, stand_in.url)
    await expect(rows(page)).to_have_count(1)
    stand_in.emit("fork.dtmf", one, digit="1", duration_ms=100)  # from here on it resumes
    stand_in.broken = "/api/"
    stand_in.cut()
    trouble = page.get_by_role("alert")
    await expect(trouble).to_contain_text("What is shown may be old")
    asked = await counted(page, "forks?")
    stand_in.request(synthetic.fork(2, caller_name="Missed"))
    stand_in.broken = ""
    await row_of(page, "Missed").wait_for()
    await expect(trouble).to_be_hidden()
    assert await counted(page, "forks?") == asked  # no list, the event alone
    assert await counted(page, "forks/") > 0


async def counted(page: Page, part: str) -> int:
    """Return how often the page has asked for something."""
    names = "performance.getEntriesByType('resource').map((one) => one.name)"
    return sum(f"/api/v1/{part}" in name for name in await page.evaluate(names))


async def test_list_is_loaded_again_after_a_restart_of_the_daemon(
    page: Page, stand_in: StandIn
) -> None:
    one = stand_in.add(synthetic.fork(1, caller_name="Ada"))
    await sign_in(page, stand_in.url)
    await row_of(page, "Ada").wait_for()
    stand_in.emit("fork.dtmf", one, digit="1", duration_ms=100)
    stand_in.forks.clear()
    stand_in.add(synthetic.fork(2, caller_name="Bert"))
    stand_in.restart()
    await row_of(page, "Bert").wait_for()
    await expect(rows(page)).to_have_count(1)
