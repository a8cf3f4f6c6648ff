"""Hears what a page plays: the loudest frequency of each channel, by its own WebAudio."""

from __future__ import annotations

import asyncio
from typing import Any

from playwright.async_api import Page

# Whatever a page connects to the loudspeakers goes through analysers, too.
_TAP = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...more) {
  if (to instanceof AudioDestinationNode) {
    const splitter = this.context.createChannelSplitter(2);
    connect.call(this, splitter);
    window.heard = window.heard?.context === this.context ? window.heard : {
      context: this.context,
      sides: [0, 1].map(() => Object.assign(this.context.createAnalyser(), {fftSize: 8192})),
    };
    window.heard.sides.forEach((analyser, side) => connect.call(splitter, analyser, side));
  }
  return connect.call(this, to, ...more);
};
"""
_MEASURE = """
() => {
  if (!window.heard || window.heard.context.state !== 'running') return null;
  return window.heard.sides.map((analyser) => {
    const bins = new Float32Array(analyser.frequencyBinCount);
    analyser.getFloatFrequencyData(bins);
    const loudest = bins.indexOf(Math.max(...bins));
    const hz = (loudest * analyser.context.sampleRate) / analyser.fftSize;
    return {hz, db: bins[loudest]};
  });
}
"""
AUDIBLE_DB = -60.0


async def tap(page: Page) -> None:
    """Prepare a page, before it is opened, to be heard."""
    await page.add_init_script(_TAP)


async def tones(page: Page) -> list[float]:
    """Return the loudest frequency of left and right now, in Hz; 0: silence. Empty: none plays."""
    found: list[dict[str, Any]] | None = await page.evaluate(_MEASURE)
    return [side["hz"] if side["db"] > AUDIBLE_DB else 0.0 for side in found or []]


async def wait_tones(page: Page, *wanted: float, timeout_s: float = 30) -> None:
    """Wait until left and right play these frequencies, each within 10 Hz; 0: silence."""
    heard: list[float] = []
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                heard = await tones(page)
                pairs = zip(heard, wanted, strict=False)
                if heard and all(abs(one - other) < 10 for one, other in pairs):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"expected {wanted} Hz, heard {heard}") from None
