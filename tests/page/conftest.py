"""A headless Chromium, one for all tests of a process, and the page of a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from testbed.browser import Browser, Page, browser_for_tests, watched_page
from tests.page.stand_in import OPERATOR, StandIn


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with browser_for_tests() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def stand_in() -> AsyncIterator[StandIn]:
    """The daemon's stand-in; a test adds its forks."""
    async with StandIn() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, stand_in: StandIn) -> AsyncIterator[Page]:
    """The page, not signed in; fails if it reports an error, or loads something from elsewhere."""
    async with watched_page(browser, stand_in.url) as one:
        yield one


async def sign_in(page: Page, url: str, token: str = OPERATOR) -> None:
    """Open the page, and sign in."""
    await page.goto(url)
    await page.get_by_label("Token").fill(token)
    await page.keyboard.press("Enter")
    await page.get_by_role("navigation", name="Views").wait_for()
