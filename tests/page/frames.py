"""Measures the frames of a page in Chromium: how they follow each other, and what they cost.

python -m tests.page.frames     # the live table with 1,000 forks, still, scrolled, with a view
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Page

from testbed.browser import chromium
from tests.page.conftest import sign_in
from tests.page.stand_in import LEVELS_S, StandIn

# How long a frame takes: from its animation callbacks, which come first, until the page is
# painted, when the message that was sent then is delivered.
_WATCH = """
async (ms) => {
  const intervals = [], costs = [], channel = new MessageChannel();
  let last = 0, began = 0;
  channel.port1.onmessage = () => costs.push(performance.now() - began);
  await new Promise((done) => {
    const first = performance.now();
    const frame = (at) => {
      if (last) intervals.push(at - last);
      last = at;
      began = performance.now();
      channel.port2.postMessage(0);
      if (began - first < ms) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  });
  return {intervals, costs};
}
"""
SCROLL = """
async (ms) => {
  const scroller = document.querySelector('.scroller');
  const first = performance.now();
  await new Promise((done) => {
    const step = () => {
      scroller.scrollTop = (scroller.scrollTop + 60) % (scroller.scrollHeight - 1000);
      if (performance.now() - first < ms) requestAnimationFrame(step);
      else done();
    };
    step();
  });
}
"""


@dataclass(frozen=True)
class Figures:
    """What frames took, in ms.

    Attributes:
        cpu_ms: CPU time of the page's main thread, in all.
        interval_ms_median, interval_ms_p99: From one frame to the next; 16.7 is each.
        cost_ms_p99: From the beginning of a frame until it is painted.
        frames: How many there were.
    """

    cpu_ms: float
    interval_ms_median: float
    interval_ms_p99: float
    cost_ms_p99: float
    frames: int

    def __str__(self) -> str:
        return (
            f"{self.frames} frames, one each {self.interval_ms_median:.1f} ms (p99 "
            f"{self.interval_ms_p99:.1f}), a frame's work p99 {self.cost_ms_p99:.1f} ms, "
            f"CPU {self.cpu_ms:.0f} ms in all"
        )


async def measured(page: Page, *, seconds: float) -> Figures:
    """Watch the frames of a page for some seconds."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = await _cpu_s(session)
    found: dict[str, list[float]] = await page.evaluate(_WATCH, seconds * 1000)
    cpu_s = await _cpu_s(session) - before
    await session.detach()
    intervals, costs = sorted(found["intervals"]), sorted(found["costs"])
    return Figures(
        cpu_s * 1000, _at(intervals, 0.5), _at(intervals, 0.99), _at(costs, 0.99), len(intervals)
    )


async def _cpu_s(session: Any) -> float:
    metrics = (await session.send("Performance.getMetrics"))["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def of_updates(seconds: float) -> float:
    """Return how many updates of levels come in some seconds."""
    return seconds / LEVELS_S


async def _main(count: int = 1000, seconds: float = 10) -> None:
    async with StandIn(count) as stand_in, chromium() as browser:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await sign_in(page, stand_in.url)
        await page.locator(".forks tbody a").first.wait_for()
        await asyncio.sleep(2)
        updates = of_updates(seconds)
        for name in ("still", "scrolled", "sorted by latency", "with a fork's view"):
            if name == "sorted by latency":
                await page.get_by_role("button", name="Latency").click()
            elif name == "with a fork's view":
                await page.locator(".forks tbody a").nth(3).click()
            work = page.evaluate(SCROLL, seconds * 1000) if name == "scrolled" else asyncio.sleep(0)
            moving = asyncio.ensure_future(work)
            figures = await measured(page, seconds=seconds)
            await moving
            print(f"{name:20} {figures}, {figures.cpu_ms / updates:.1f} an update", flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
