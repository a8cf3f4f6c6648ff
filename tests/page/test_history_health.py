"""The views of what was: ended forks, what failed today, the last hours, and the check."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_history_is_searched_page_by_page(page: Page, stand_in: StandIn) -> None:
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    entries = page.get_by_role("table", name="Ended forks").locator("tbody tr")
    await expect(entries).to_have_count(50)
    await page.get_by_role("button", name="Older").click()
    await expect(entries).to_have_count(100)
    await expect(page.locator(":focus")).to_have_attribute(
        "href", f"#/history/{stand_in.entries[50]['fork_id']}"
    )
    await page.get_by_label("Reason").select_option("sink-gone")
    await page.get_by_label("Caller").fill("grace")
    await page.keyboard.press("Enter")
    wanted = [
        one
        for one in stand_in.entries
        if one["reason"] == "sink-gone" and "Grace" in one["caller_name"]
    ]
    await expect(entries).to_have_count(len(wanted))
    await expect(page.get_by_role("button", name="Older")).to_be_hidden()


async def test_causes_of_failures_lead_to_the_latest_entry(page: Page, stand_in: StandIn) -> None:
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="History").click()
    cause = page.get_by_role("table", name="What failed today").get_by_role("row").nth(1)
    await expect(cause).to_contain_text("20")
    await expect(cause).to_contain_text("sink-refused the server answered 401 Unauthorized")
    await cause.get_by_role("link").click()
    panel = page.locator(".panel")
    await expect(panel).to_contain_text("failed sink-refused: the server answered 401")
    await expect(panel.get_by_role("region", name="Timeline")).to_contain_text("requested")
    await expect(panel.get_by_role("region", name="Texts of the server")).to_contain_text(
        "Good morning"
    )
    await page.keyboard.press("Escape")
    await expect(panel).to_have_count(0)


async def test_texts_that_were_not_kept_are_told_by_their_number(
    page: Page, stand_in: StandIn
) -> None:
    entry = stand_in.entries[0]
    moment = {"at": entry["ended_at"], "kind": "message", "text": "a text"}
    entry["timeline"] = [moment, moment]
    await sign_in(page, stand_in.url)
    await page.goto(f"{stand_in.url}#/history/{entry['fork_id']}")
    await expect(page.locator(".panel")).to_contain_text("sent 2 texts, of which none was kept")


async def test_no_history_is_told_in_words(page: Page, stand_in: StandIn) -> None:
    await sign_in(page, stand_in.url)
    await expect(page.get_by_text("No call is forked now.")).to_be_visible()
    stand_in.broken = "/api/"
    await page.get_by_role("link", name="History").click()
    await expect(page.get_by_role("status").get_by_text("cannot be read")).to_have_text(
        "The history cannot be read: Asterisk is away"
    )


async def test_health_shows_the_last_hours_and_the_findings_with_remedies(
    page: Page, stand_in: StandIn
) -> None:
    await sign_in(page, stand_in.url)
    await page.get_by_role("link", name="Health").click()
    for title in ("Starts", "Failed or refused", "Reconnects", "Dropped"):
        plot = page.get_by_role("img", name=title)
        await expect(plot).to_have_attribute("aria-label", re.compile("in 6 hours, at most"))
        assert await plot.locator("rect").count() > 0
    await page.get_by_label("How many hours").select_option("24")
    await expect(page.get_by_role("img", name="Starts")).to_have_attribute(
        "aria-label", re.compile("in 24 hours")
    )
    findings = page.locator(".findings li")
    await expect(findings).to_have_count(5)
    await expect(findings.first).to_contain_text("fault")
    await expect(findings.first.locator(".remedy")).to_contain_text("asterisk -rx 'manager reload'")
    await expect(page.get_by_text("1 fault, at")).to_be_visible()
    await expect(page.get_by_role("table", name="Relays")).to_contain_text("relay 2runs5 forks")
