"""Makes the screenshots of the README: `make screenshots`.

python -m tests.page.screenshots docs/images
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from playwright.async_api import Page, ViewportSize

from testbed.browser import chromium
from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn

SIZE: ViewportSize = {"width": 1280, "height": 720}
WAVE_S = 30  # what the waveform shows


async def _take(page: Page, folder: Path, name: str) -> None:
    path = folder / f"page-{name}.png"
    await page.mouse.move(0, 0)
    await page.screenshot(path=path)
    print(f"{path}, {path.stat().st_size // 1024} KiB", flush=True)


async def _make(folder: Path) -> None:
    async with StandIn() as stand_in, chromium("--hide-scrollbars") as browser:
        for number in range(42):
            stand_in.add(synthetic.fork(number))
        looked_at = stand_in.add(
            synthetic.fork(55, caller_name="Ada Byron", age_s=40.0, direction="stereo")
        )
        page = await browser.new_page(viewport=SIZE, color_scheme="light")
        await sign_in(page, stand_in.url)
        await page.get_by_role("button", name="State").click()
        await page.locator(".forks tbody a").first.wait_for()
        await asyncio.sleep(2)
        await _take(page, folder, "live")
        await page.goto(f"{stand_in.url}#/forks/{looked_at['id']}")
        print(f"drawing a waveform of {WAVE_S} s ...", flush=True)
        await asyncio.sleep(WAVE_S)
        await _take(page, folder, "fork")
        await page.emulate_media(color_scheme="dark")
        await _take(page, folder, "dark")
        await page.goto(f"{stand_in.url}#/health")
        await page.locator(".findings li").first.wait_for()
        await _take(page, folder, "health")


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(prog="python -m tests.page.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_make(folder))


if __name__ == "__main__":
    main()
