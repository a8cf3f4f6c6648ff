"""Opens pages in a headless Chromium, for tests; see `chromium.py` for where that comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

from testbed.chromium import ChromiumUnavailable, find_chromium
from testbed.clients.process import NODE_MODULES

__all__ = ["Browser", "Page", "axe_script", "browser_for_tests", "chromium", "watched_page"]

# A sandbox of its own cannot be had by root, nor in most containers; a page may play at once, as
# one may that was clicked.
ARGUMENTS = ("--no-sandbox", "--autoplay-policy=no-user-gesture-required")
TIMEOUT_MS = 10_000
DESKTOP = {"width": 1280, "height": 760}


@asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """Run a Chromium.

    Raises:
        ChromiumUnavailable: It is not to be had.
    """
    program = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=[*ARGUMENTS, *arguments], timeout=60_000
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def browser_for_tests() -> AsyncIterator[Browser]:
    """Run a Chromium, or skip the test and say why there is none."""
    try:
        find_chromium()
    except ChromiumUnavailable as exc:
        pytest.skip(str(exc))
    async with chromium() as one:
        yield one


@asynccontextmanager
async def watched_page(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """Open a page in a context of its own, and close it.

    Fails if its code fails, if it breaks its Content-Security-Policy, or asks another server.

    Args:
        browser: The browser.
        url: The only place that it may load anything from.
        context: Options of the context, as color_scheme.
    """
    faults: list[str] = []
    async with await browser.new_context(**{"viewport": DESKTOP, **context}) as one:
        page = await one.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: faults.extend(_faults(message.type, message.text)))
        page.on("request", lambda request: faults.extend(_strange(request.url, url)))
        yield page
    assert not faults


def _faults(kind: str, text: str) -> list[str]:
    # That is how the browser tells of each answer 401, among others.
    is_fault = kind == "error" and not text.startswith("Failed to load resource")
    return [f"console: {text}"] if is_fault else []


def _strange(asked: str, url: str) -> list[str]:
    own = (url, url.replace("http", "ws", 1), "data:", "blob:")
    return [] if asked.startswith(own) else [f"loaded from elsewhere: {asked}"]


def axe_script() -> Path:
    """Return the file of axe-core; skip the test if it is not installed."""
    script = NODE_MODULES / "axe-core/axe.min.js"
    if not script.exists():
        pytest.skip("axe-core is not installed: make clients")
    return script
