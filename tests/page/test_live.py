"""The live table: forks come and go, their meters move, and nothing of a caller is markup."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from tests.page import synthetic
from tests.page.conftest import sign_in
from tests.page.stand_in import StandIn

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = "<img src=x onerror=alert(1)><b>Bobby</b>"


def rows(page: Page) -> Locator:
    return page.locator(".forks tbody tr:not([hidden])")


def row_of(page: Page, text: str) -> Locator:
    return rows(page).filter(has_text=text)


async def callers(page: Page) -> list[str]:
    return await page.locator(".forks tbody tr:not([hidden]) a").all_inner_texts()


async def test_fork_appears_when_it_is_requested_and_goes_when_it_has_ended(
    page: Page, stand_in: StandIn
) -> None:
    await sign_in(page, stand_in.url)
    await expect(page.get_by_text("No call is forked now.")).to_be_visible()
    one = synthetic.fork(1, state="requested", age_s=0.0, caller_name="Ada")
    stand_in.request(one)
    await row_of(page, "requested").wait_for()
    await row_of(page, "Ada").wait_for()  # which the event does not tell

    one["state"] = "streaming"
    stand_in.emit("fork.started", one)
    await expect(row_of(page, "Ada").get_by_text("streaming")).to_be_visible()

    stand_in.end(one, "hangup")
    await expect(row_of(page, "Ada").get_by_text("ended")).to_be_visible()
    await expect(rows(page)).to_have_count(0)


async def test_state_of_a_fork_has_its_reason(page: Page, stand_in: StandIn) -> None:
    one = stand_in.add(synthetic.fork(1))
    await sign_in(page, stand_in.url)
    await expect(rows(page)).to_have_count(1)
    one |= {
        "state": "reconnecting",
        "waits_for": "the server",
        "last_error": "connection refused",
        "attempt": 2,
        "next_attempt_s": 1.0,
    }
    detail = "connection refused"
    stand_in.emit("fork.reconnecting", one, detail=detail, attempt=2, was_streaming=True)
    await expect(rows(page).locator(".status")).to_have_text(
        "reconnecting connection refused, waits for the server, attempt 2"
    )


async def meters_of(page: Page) -> list[str | None]:
    return [
        await page.get_by_role("meter", name=f"Level {side}").first.get_attribute("aria-valuetext")
        for side in ("in", "out")
    ]


async def test_meters_say_the_level_of_each_side(page: Page, stand_in: StandIn) -> None:
    one = stand_in.add(synthetic.fork(1))
    stand_in.fixed[one["id"]] = [16384, 3277, 0, 0]
    await sign_in(page, stand_in.url)
    first = page.get_by_role("meter", name="Level in").first
    await expect(first).to_have_attribute("aria-valuetext", "-20 dB")
    await expect(first).to_have_css("background-size", "67% 100%, 2px 100%, auto")
    assert await meters_of(page) == ["-20 dB", "silence"]
    one["muted"] = "read"
    stand_in.fixed[one["id"]] = [0, 0, -1, -1]
    stand_in.emit("fork.muted", one, **{"in": True, "out": False})
    await expect(first).to_have_attribute("aria-valuetext", "muted, silence")
    await expect(first).to_have_css("background-size", "0% 100%, 0px 100%, auto")
    assert (await meters_of(page))[1] == "not forked"


async def test_rows_exist_only_in_sight_and_all_can_be_reached(
    page: Page, stand_in: StandIn
) -> None:
    for number in range(1000):
        stand_in.add(
            synthetic.fork(number, age_s=float(number + 1), caller_name=f"Caller {number}")
        )
    await sign_in(page, stand_in.url)
    table = page.get_by_role("table", name="Forks")
    await expect(table).to_have_attribute("aria-rowcount", "1001")
    await expect(page.get_by_text("1,000 forks", exact=True)).to_be_visible()
    assert await rows(page).count() < 60
    assert (await callers(page))[0] == "Caller 0"

    await page.locator(".scroller").evaluate("(one) => { one.scrollTop = one.scrollHeight; }")
    last = row_of(page, "Caller 999")
    await expect(last).to_be_in_viewport()
    await expect(last).to_have_attribute("aria-rowindex", "1001")


async def test_keyboard_reaches_rows_and_escape_returns_to_the_one_that_was_open(
    page: Page, stand_in: StandIn
) -> None:
    for number in range(300):
        stand_in.add(
            synthetic.fork(number, age_s=float(number + 1), caller_name=f"Caller {number}")
        )
    await sign_in(page, stand_in.url)
    await row_of(page, "Caller 0").first.wait_for()
    await page.locator("th.dropped button").focus()
    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("Caller 0")
    for _ in range(3):
        await page.keyboard.press("ArrowDown")
    await expect(page.locator(":focus")).to_have_text("Caller 3")
    await page.keyboard.press("End")
    await expect(page.locator(":focus")).to_have_text("Caller 299")
    await expect(page.locator(":focus")).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(page.locator(":focus")).to_have_text("Caller 299 " + number_of(stand_in, 299))
    await page.keyboard.press("Escape")
    await expect(page.locator(".panel")).to_have_count(0)
    await expect(page.locator(":focus")).to_have_text("Caller 299")


def number_of(stand_in: StandIn, place: int) -> str:
    return str(list(stand_in.forks.values())[place]["caller_number"])


async def test_focus_stays_at_its_fork_when_rows_come_above(page: Page, stand_in: StandIn) -> None:
    stand_in.add(synthetic.fork(1, age_s=60.0, caller_name="Ada"))
    await sign_in(page, stand_in.url)
    await row_of(page, "Ada").get_by_role("link").focus()
    stand_in.request(synthetic.fork(2, age_s=0.0, caller_name="Newcomer"))
    await row_of(page, "Newcomer").wait_for()
    assert await callers(page) == ["Newcomer", "Ada"]
    await expect(page.locator(":focus")).to_have_text("Ada")


async def test_table_is_sorted_and_filtered(page: Page, stand_in: StandIn) -> None:
    for number, (name, rtt_ms) in enumerate([("Cleo", 3.0), ("Ada", 90.0), ("Bert", 20.0)]):
        stand_in.add(synthetic.fork(number, caller_name=name, rtt_ms=rtt_ms, state="streaming"))
    await sign_in(page, stand_in.url)
    await expect(rows(page)).to_have_count(3)
    await page.get_by_role("button", name="Caller").click()
    await expect(page.locator("th.caller")).to_have_attribute("aria-sort", "ascending")
    await eventually(page, ["Ada", "Bert", "Cleo"])
    await page.get_by_role("button", name="Latency").click()
    await eventually(page, ["Ada", "Bert", "Cleo"])
    await page.get_by_role("button", name="Latency").click()
    await eventually(page, ["Cleo", "Bert", "Ada"])
    await page.get_by_label("Filter").fill("bert streaming")
    await eventually(page, ["Bert"])
    await expect(page.get_by_text("1 of 3 forks")).to_be_visible()
    await page.get_by_label("Which forks").select_option("Not streaming")
    await expect(page.get_by_text("No fork fits the filter.")).to_be_visible()


async def eventually(page: Page, wanted: list[str]) -> None:
    async with asyncio.timeout(5):
        while await callers(page) != wanted:  # noqa: ASYNC110 (a page has no event)
            await asyncio.sleep(0.02)


async def test_nothing_of_a_caller_or_server_is_markup(page: Page, stand_in: StandIn) -> None:
    names = ("caller_name", "caller_number", "last_error", "waits_for", "host")
    foreign: dict[str, Any] = dict.fromkeys(names, MARKUP)
    one = stand_in.add(synthetic.fork(1, **foreign, state="reconnecting", url=f"ws://{MARKUP}/"))
    stand_in.entries = [synthetic.entry(3) | {"detail": MARKUP, "caller_name": MARKUP}]
    stand_in.status["asterisk"] = {"up": False, "version": "", "text": MARKUP, "rtt_ms": 0}
    await sign_in(page, stand_in.url)
    await rows(page).get_by_role("link").click()
    await expect(page.get_by_role("heading", level=2, name=MARKUP)).to_be_visible()
    stand_in.emit("fork.message", one, text=MARKUP)
    stand_in.emit("fork.failed", None, detail=MARKUP, reason=MARKUP)
    await expect(page.locator(".transcript").get_by_text(MARKUP)).to_be_visible()
    await expect(page.locator(".notice").get_by_text(MARKUP)).to_be_visible()
    await expect(page.locator("#state").get_by_text(MARKUP)).to_be_visible()
    assert await page.locator("main img, main b:text-is('Bobby')").count() == 0
    await page.get_by_role("link", name="History").click()
    await expect(page.locator(".causes").get_by_text(MARKUP)).to_be_visible()
    await expect(page.locator(".history table").last.get_by_role("link")).to_have_text(MARKUP)
    assert await page.locator("main img, main b:text-is('Bobby')").count() == 0


async def test_text_that_turns_the_direction_or_is_huge_does_no_harm(
    page: Page, stand_in: StandIn
) -> None:
    stand_in.add(synthetic.fork(1, caller_name="\u202eevil\x07\u2066", channel="x" * 100_000))
    await sign_in(page, stand_in.url)
    assert await rows(page).get_by_role("link").inner_text() == "\ufffdevil\ufffd\ufffd"
    assert len(await page.locator("td.channel").first.inner_text()) < 400


async def test_what_goes_wrong_is_told_and_a_flood_of_it_is_summed_up(
    page: Page, stand_in: StandIn
) -> None:
    one = stand_in.add(synthetic.fork(1))
    await sign_in(page, stand_in.url)
    await expect(rows(page)).to_have_count(1)
    for _ in range(50):
        stand_in.emit("fork.refused", None, request="start", detail="too many forks")
    stand_in.end(one, "sink-gone", failed=True, detail="no answer")
    stand_in.emit("attack", None, kind="wrong-uuid", detail="127.0.0.1", count=1)
    notices = page.get_by_role("log", name="Notices").locator("p")
    await expect(notices.last).to_contain_text(re.compile(r"wrong-uuid, 127.0.0.1. And \d\d more."))
    assert await notices.count() <= 2
