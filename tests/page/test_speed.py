"""A thousand forks, five updates a second, and each frame in time."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from testbed.browser import watched_page
from tests.page.conftest import sign_in
from tests.page.frames import measured, of_updates
from tests.page.stand_in import StandIn

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.serial]

FRAME_MS = 16.0
FORKS = 1000


async def test_thousand_moving_forks_leave_each_frame_its_time(
    browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    async with StandIn(FORKS) as stand_in, watched_page(browser, stand_in.url) as page:
        await sign_in(page, stand_in.url)
        await page.get_by_text("1,000 forks").wait_for()
        await page.locator(".forks tbody a").first.wait_for()
        figures = await measured(page, seconds=4)
        with capsys.disabled():
            print(f"\n1,000 forks: {figures}")
        # CPU time of an update, which may take many frames: 10 to 16 ms, far more if a row were
        # made anew for each.
        assert figures.cpu_ms / of_updates(4) < 2 * FRAME_MS
        assert figures.interval_ms_median < FRAME_MS + 1
