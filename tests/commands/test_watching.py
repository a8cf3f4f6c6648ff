"""The command list --watch: looks in place on a terminal, one after another in a pipe."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from audiofork.commands.watching import Screen, Watch, is_terminal
from audiofork.doors.daemon_client import Listing
from audiofork.errors import DaemonFault, DaemonUnreachable
from tests.commands.test_listing import AWAY, fork
from tests.commands.views import VIEW

Forks = list[dict[str, Any]]


class Looks:
    """A daemon whose looks are told; after the last one somebody presses Ctrl-C.

    Attributes:
        connects: How often it was connected to.
        warned: What was said beside the looks.
    """

    def __init__(self, *looks: Forks | Exception) -> None:
        self._looks = iter(looks)
        self.connects = 0
        self.warned: list[str] = []

    @contextlib.contextmanager
    def connect(self) -> Iterator[Any]:
        self.connects += 1
        yield self

    def listing(self) -> Listing:
        look = next(self._looks, None)
        if look is None:
            raise KeyboardInterrupt
        if isinstance(look, Exception):
            raise look
        return Listing(look)

    def watch(self, screen: Screen, **how: bool) -> None:
        connect: Callable[[], AbstractContextManager[Any]] = self.connect
        with pytest.raises(KeyboardInterrupt):
            Watch(connect, screen, self.warned.append, **how).run()


@pytest.fixture(autouse=True)
def size(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def choose(columns: int, lines: int) -> None:
        monkeypatch.setattr(
            "shutil.get_terminal_size", lambda **_: os.terminal_size((columns, lines))
        )

    choose(80, 24)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return choose


def screens(written: str) -> list[list[str]]:
    """Return the lines of each look that was drawn on a terminal."""
    begin, rest = written[:14], written[14:]
    assert begin == "\x1b[?1049h\x1b[?25l"
    assert rest.endswith("\x1b[?25h\x1b[?1049l")
    looks = rest.removesuffix("\x1b[?25h\x1b[?1049l").split("\x1b[H")[1:]
    for look in looks:
        assert look.endswith("\x1b[K\x1b[J")
        assert look.count("\r\n") == look.count("\n") == look.count("\x1b[K") - 1
    return [re.sub(r"\x1b\[[KJ]", "", look).split("\r\n") for look in looks]


def test_terminal_shows_each_look_in_the_place_of_the_last_and_is_left_as_it_was() -> None:
    out = io.StringIO()
    Looks([fork()], [fork(age_s=3724.9, frames_sent=1040)], []).watch(Screen(out, in_place=True))
    first, second, third = screens(out.getvalue())
    assert first[0].endswith("  1 forks (1 streaming)")
    assert first[1] == "frames a second: 0 in, 0 sent, 0 dropped"
    assert second[1] == "frames a second: 0 in, 50 sent, 0 dropped"
    assert first[3].split()[:2] == ["ID", "CHANNEL"]
    assert third[3:] == ["no forks"]


def test_terminal_is_left_as_it_was_also_by_a_fault() -> None:
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError):
        Looks([], ZeroDivisionError()).watch(Screen(out, in_place=True))
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_terminal_without_room_for_all_shows_those_with_a_problem_and_says_how_many_lines_it_lacks(
    size: Callable[[int, int], None],
) -> None:
    size(80, 10)
    out = io.StringIO()
    forks = [*({**fork(), "id": f"{n:08}-0"} for n in range(50)), {**fork(AWAY), "id": "away0000"}]
    Looks(forks).watch(Screen(out, in_place=True))
    (look,) = screens(out.getvalue())
    assert len(look) == 10
    assert all(len(line) <= 80 for line in look)
    assert look[4].startswith("away0000")
    assert look[-1] == "... 99 more lines: audiofork list shows all"


def test_pipe_gets_one_table_after_another_without_commands_for_a_terminal() -> None:
    out = io.StringIO()
    Looks([fork()], []).watch(Screen(out, in_place=False))
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("frames a second") == 2
    assert out.getvalue().count("PJSIP/100-0000002a") == 1


def test_pipe_gets_one_json_array_after_another() -> None:
    out = io.StringIO()
    Looks([fork()], []).watch(Screen(out, in_place=False), as_json=True)
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(out.getvalue())
    assert first[0]["id"] == VIEW.id
    assert json.loads(out.getvalue()[end:]) == []


@pytest.mark.parametrize(
    "trouble", [DaemonUnreachable("it is gone"), DaemonFault("a fault of the daemon")]
)
def test_daemon_that_goes_is_told_on_the_screen_until_it_is_back(trouble: Exception) -> None:
    out = io.StringIO()
    looks = Looks([], [], trouble, trouble, [fork()])
    looks.watch(Screen(out, in_place=True))
    shown = screens(out.getvalue())
    assert [look[0] for look in shown[2:4]] == [str(trouble)] * 2
    assert "trying again each second" in shown[2][2]
    assert "1 forks" in shown[4][0]
    assert looks.warned == []
    assert looks.connects == 4  # the first look, then again after each trouble


def test_daemon_that_goes_is_told_once_beside_the_tables_of_a_pipe_and_once_that_it_is_back() -> (
    None
):
    out = io.StringIO()
    looks = Looks([], DaemonUnreachable("gone"), DaemonUnreachable("gone"), [], [])
    looks.watch(Screen(out, in_place=False))
    assert looks.warned == ["gone; trying again each second", "the daemon is back"]
    assert out.getvalue().count("no forks") == 3


def test_daemon_that_is_not_there_at_the_first_look_is_an_error() -> None:
    out = io.StringIO()
    watch = Watch(Looks(DaemonUnreachable("gone")).connect, Screen(out, in_place=True), print)
    with pytest.raises(DaemonUnreachable):
        watch.run()
    assert out.getvalue() == ""


def test_watch_ends_when_nobody_reads_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = open(writing, "w")  # noqa: SIM115 (it cannot be closed in order)
    Watch(Looks([], []).connect, Screen(out, in_place=False), print).run()
    with contextlib.suppress(BrokenPipeError):
        out.close()


@pytest.mark.parametrize(("term", "expected"), [("xterm", True), ("dumb", False), ("", False)])
def test_look_is_shown_in_place_where_the_terminal_can(term: str, expected: bool) -> None:
    main, end = pty.openpty()
    with open(main, "rb"), open(end, "w") as out:
        assert is_terminal(out, term) is expected
    assert is_terminal(io.StringIO(), "xterm") is False


def test_asterisk_whose_forks_are_missing_is_named_above_the_table() -> None:
    class Partial(Looks):
        def listing(self) -> Listing:
            return super().listing()._replace(missing={"pbx-b": "nobody leads"})

    out = io.StringIO()
    Partial([]).watch(Screen(out, in_place=False))
    assert "0 dropped\nthe forks of pbx-b are missing: nobody leads\n\nno forks" in out.getvalue()
    looks = Partial([])
    looks.watch(Screen(io.StringIO(), in_place=False), as_json=True)
    assert looks.warned == ["the forks of pbx-b are missing: nobody leads"]
