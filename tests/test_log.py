"""Log lines: the prefix of a fork, the line a second, the two formats."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest

from audiofork.config import LogConfig
from audiofork.log import (
    MOST_TEXTS,
    CounterLine,
    ForkLog,
    Refusals,
    Repeats,
    asterisk,
    set_up,
    without_credentials,
    without_query,
)
from tests.told_clock import Clock

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"
LIBRARIES = ("asyncio", "panoramisk", "websockets")
logger = logging.getLogger("audiofork.test")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def line(clock: Clock) -> CounterLine:
    return CounterLine(logger, "connections closed", clock)


def test_first_count_is_logged_at_once(line: CounterLine, caplog: pytest.LogCaptureFixture) -> None:
    line.count("garbage")
    assert caplog.messages == ["connections closed: 1 more, last: garbage"]
    assert caplog.records[0].levelno == logging.WARNING


def test_counts_within_a_second_are_one_line_with_the_number(
    line: CounterLine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    line.count("first")
    for number in range(1000):
        line.count(f"number {number}")
    clock.now_s += 0.999
    line.count("still too early")
    assert len(caplog.messages) == 1
    clock.now_s += 0.001
    line.count("the last")
    assert caplog.messages[1:] == ["connections closed: 1002 more, last: the last"]
    assert line.total == 1003


def test_counts_a_second_apart_are_logged_each(
    line: CounterLine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        line.count(str(number))
        clock.now_s += 1
    assert caplog.messages == [f"connections closed: 1 more, last: {n}" for n in range(3)]


def test_detail_with_percent_signs_is_text(
    line: CounterLine, caplog: pytest.LogCaptureFixture
) -> None:
    line.count("100 %d %s")
    assert caplog.messages == ["connections closed: 1 more, last: 100 %d %s"]


def test_text_that_repeats_is_due_again_after_the_interval(clock: Clock) -> None:
    repeats = Repeats(10, clock)
    assert [repeats.are_due(text) for text in ("a", "a", "b")] == [True, False, True]
    clock.now_s += 9.9
    assert not repeats.are_due("a")
    clock.now_s += 0.2
    assert repeats.are_due("a")


def test_text_that_is_told_for_good_is_due_when_all_is_forgotten(clock: Clock) -> None:
    repeats = Repeats(10, clock)
    assert repeats.are_due("a", again=False)
    clock.now_s += 1e6
    assert not repeats.are_due("a", again=False)
    repeats.forget()
    assert repeats.are_due("a", again=False)


def test_texts_that_are_ever_new_take_no_more_room(clock: Clock) -> None:
    repeats = Repeats(10, clock)
    for number in range(2 * MOST_TEXTS):
        assert repeats.are_due(str(number))
    assert len(repeats._next) <= MOST_TEXTS


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://host/path", "ws://host/path"),
        ("wss://host:8443/a/b?token=secret", "wss://host:8443/a/b?..."),
        ("ws://user:secret@host/", "ws://host/"),
        ("ws://user:se@cret@host:1/", "ws://host:1/"),
        ("ws://[::1]:80/x", "ws://[::1]:80/x"),
        ("ws://host/#secret", "ws://host/"),
        ("ws://[host/?secret", "(not a URL)"),
    ],
)
def test_without_query_hides_what_may_be_secret(url: str, shown: str) -> None:
    assert without_query(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://example.org/a?token=1", "ws://example.org/a?token=1"),
        ("ws:user:hunter2@host", "ws://..."),
        ("wss://user:hunt/er2@host/path?a=b", "wss://..."),
        ("WS://user:hunter2@host", "ws://..."),
        ("user:hunter2@host", "..."),
        ("hunter2@host", "..."),
        ("ws//user:hunter2@host", "..."),
    ],
)
def test_without_credentials_shows_of_a_url_with_an_at_no_more_than_the_scheme(
    url: str, shown: str
) -> None:
    assert without_credentials(url) == shown
    assert "hunter2" not in without_query(shown)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; what set_up changes is put back."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    yield root
    root.handlers[:], root.level = kept
    root.setLevel(kept[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_set_up_text_has_level_and_message(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(LogConfig())
    logger.info("hello %s", "world")
    logger.debug("too fine")
    assert capsys.readouterr().err.rstrip().endswith(" INFO    hello world")


def test_set_up_text_puts_the_fork_before_its_lines(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(LogConfig())
    fork_log = ForkLog(logger, FORK_ID, "Local/50%s@x-1")
    fork_log.warning("lost %d of %s", 3, "50")
    fork_log.warning("no arguments")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" WARNING fork 3f2a91c0 Local/50%s@x-1: lost 3 of 50")
    assert second.endswith(" WARNING fork 3f2a91c0 Local/50%s@x-1: no arguments")


def test_lines_of_one_of_several_asterisks_begin_with_its_name_once(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    def say() -> None:
        asterisk.set("pbx-b")
        root.warning("connected")
        root.warning("pbx-b: leading")
        ForkLog(root, FORK_ID, "PJSIP/1-1").warning("lost")

    set_up(LogConfig())
    contextvars.copy_context().run(say)
    set_up(LogConfig(format="json"))
    contextvars.copy_context().run(say)
    root.warning("elsewhere")
    text = capsys.readouterr().err.splitlines()
    assert [line.partition(" WARNING ")[2] for line in text[:3]] == [
        "pbx-b: connected",
        "pbx-b: leading",
        "pbx-b: fork 3f2a91c0 PJSIP/1-1: lost",
    ]
    lines = [json.loads(line) for line in text[3:]]
    assert [line.get("asterisk") for line in lines] == ["pbx-b", "pbx-b", "pbx-b", None]


def test_set_up_json_is_one_object_a_line(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(LogConfig(format="json"))
    ForkLog(logger, FORK_ID, "PJSIP/Zoë-1").warning("two words %d", 7)
    logger.error("plain")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time")
    assert second.pop("time")
    assert first == {
        "level": "warning",
        "logger": "audiofork.test",
        "message": "two words 7",
        "fork": FORK_ID,
        "channel": "PJSIP/Zoë-1",
    }
    assert second == {"level": "error", "logger": "audiofork.test", "message": "plain"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_fields_of_a_record_stand_in_json_alone_and_are_printable(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    set_up(LogConfig(format=form))
    fields = {"event": "ended", "detail": HOSTILE, "frames_in": 7, "legs_ms": None}
    ForkLog(logger, FORK_ID, "PJSIP/1-1").info("ended: hangup", extra={"fields": fields})
    (line,) = capsys.readouterr().err.splitlines()
    assert ("frames_in" in line) is (form == "json")
    if form == "json":
        entry = json.loads(line)
        assert (entry["fork"], entry["event"], entry["frames_in"]) == (FORK_ID, "ended", 7)
        assert entry["detail"].isprintable()
        assert entry["legs_ms"] is None


HOSTILE = "a\r\n2026-01-01 ERROR b\x1b[31m\x9b31m\u2028\x7f"


@pytest.mark.parametrize("form", ["text", "json"])
def test_set_up_lets_no_control_character_into_the_log(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Whoever names a channel could else write lines of his own, or command the terminal."""
    set_up(LogConfig(format=form))
    ForkLog(logger, FORK_ID, HOSTILE).warning("said %s", HOSTILE)
    (line,) = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert line.isprintable()
    assert line.count("a??2026-01-01 ERROR b?[31m?31m??") == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_set_up_lets_no_line_of_a_traceback_look_like_another(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    set_up(LogConfig(format=form))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    first, *others = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in [first, *others])
    assert all(line.startswith("  ") for line in others)


def test_set_up_json_carries_the_traceback(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(LogConfig(format="json"))
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        logger.exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("by nothing")


def test_set_up_twice_logs_once(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogConfig(format="json"))
    set_up(LogConfig())
    logger.warning("once")
    assert capsys.readouterr().err.count("once") == 1
    assert len(root.handlers) == 1


@pytest.mark.parametrize(
    ("level", "library_level"),
    [
        ("debug", logging.WARNING),
        ("info", logging.WARNING),
        ("warning", logging.WARNING),
        ("error", logging.ERROR),
    ],
)
def test_set_up_keeps_libraries_to_warnings_and_to_the_level(
    root: logging.Logger, level: str, library_level: int
) -> None:
    set_up(LogConfig(level=level))
    assert root.level == logging.getLevelName(level.upper())
    assert {logging.getLogger(name).getEffectiveLevel() for name in LIBRARIES} == {library_level}


# --- What may come as a flood ---------------------------------------------------------------------


@pytest.fixture
async def second(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Let a second pass for the timers of the loop."""
    loop, now_s = asyncio.get_running_loop(), [1000.0]
    monkeypatch.setattr(loop, "time", lambda: now_s[0])

    async def passes() -> None:
        now_s[0] += 1.001
        for _ in range(3):
            await asyncio.sleep(0)

    return passes


async def test_flood_is_one_line_and_then_one_a_second(
    second: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    refusals = Refusals(logger, "requests refused")
    logged = [refusals.count("without an answer" if number > 9 else "") for number in range(1000)]
    assert logged == [True] + [False] * 999
    assert caplog.messages == []
    await second()
    assert caplog.messages == [
        "... and 999 more requests refused in the last second, 990 without an answer"
    ]
    assert not refusals.count()
    await second()
    assert caplog.messages[1:] == ["... and 1 more requests refused in the last second"]


async def test_lines_that_are_seldom_are_logged_each(
    second: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    refusals = Refusals(logger, "requests refused")
    for _ in range(3):
        assert refusals.count()
        await second()
    assert caplog.messages == []


@pytest.mark.parametrize("hide", [without_query, without_credentials])
def test_name_of_a_profile_is_no_secret(hide: Callable[[str], str]) -> None:
    assert hide("@speech") == "@speech"
    assert "S3CRET" not in hide("@S3CRET@host/")
