"""Every view can be used by anybody: axe finds nothing, and a phone is wide enough."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from testbed.browser import DESKTOP, axe_script, watched_page
from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHONE = {"width": 360, "height": 740}


async def each_view(page: Page, stand_in: StandIn) -> Any:
    """Open one view after the other; yield the name of each when it is there."""
    await page.goto(stand_in.url)
    await page.get_by_label("Token").wait_for()
    yield "sign-in"
    await sign_in(page, stand_in.url)
    await page.locator(".forks tbody a").first.wait_for()
    yield "live"
    await page.get_by_role("link", name="Alice").click()
    await page.get_by_role("region", name="Timeline").get_by_text("started").wait_for()
    yield "fork"
    await page.get_by_role("button", name="Stop").click()
    await page.get_by_role("dialog").wait_for()
    yield "dialog"
    await page.keyboard.press("Escape")
    await page.goto(f"{stand_in.url}#/history/{stand_in.entries[3]['fork_id']}")
    await page.get_by_role("region", name="Timeline").wait_for()
    yield "entry"
    await page.keyboard.press("Escape")
    await page.locator(".history tbody tr").nth(20).wait_for()
    yield "history"
    await page.get_by_role("link", name="Health").click()
    await page.locator(".findings li").first.wait_for()
    yield "health"


def add_forks(stand_in: StandIn) -> None:
    for number in range(12):
        stand_in.add(synthetic.fork(number))
    stand_in.add(synthetic.fork(30, caller_name="Alice", age_s=1.0))
    stand_in.status["relays"][1]["up"] = False


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)],
    ids=["light", "dark", "phone"],
)
async def test_axe_finds_nothing_in_any_view(
    browser: Browser, stand_in: StandIn, scheme: str, size: dict[str, int]
) -> None:
    script = axe_script().read_text()
    add_forks(stand_in)
    async with watched_page(
        browser, stand_in.url, color_scheme=scheme, viewport=size, reduced_motion="reduce"
    ) as page:
        async for view in each_view(page, stand_in):
            await page.evaluate(script)  # by the debugger, which the page's policy does not concern
            report = await page.evaluate("axe.run({resultTypes: ['violations']})")
            found = [
                (one["id"], node["target"], node["failureSummary"])
                for one in report["violations"]
                for node in one["nodes"]
            ]
            assert found == [], view


async def test_no_view_is_wider_than_a_phone(browser: Browser, stand_in: StandIn) -> None:
    add_forks(stand_in)
    async with watched_page(browser, stand_in.url, viewport=PHONE) as page:
        async for view in each_view(page, stand_in):
            wide = """() => [document.documentElement, ...document.querySelectorAll('body *')]
                .filter((one) => !one.closest('thead, .hidden, .skip, .forks td > *')
                    && (one.getBoundingClientRect().right > innerWidth + 1
                        || one === document.documentElement && one.scrollWidth > innerWidth))
                .map((one) => one.tagName + '.' + one.className)"""
            assert await page.evaluate(wide) == [], view


async def test_nothing_moves_for_whoever_wants_no_motion(
    browser: Browser, stand_in: StandIn
) -> None:
    async with watched_page(browser, stand_in.url, reduced_motion="reduce") as page:
        await sign_in(page, stand_in.url)
        await expect(page.get_by_text("No call is forked now.")).to_be_visible()
        stand_in.emit("attack", None, kind="wrong-uuid", detail="127.0.0.1", count=1)
        await page.locator(".notice").wait_for()
        assert await page.evaluate("document.getAnimations().length") == 0
