"""Lines at the bottom of a terminal, which change while others scroll above them."""

from __future__ import annotations

import pytest

from audiofork.commands.panel import Panel


class Screen:
    """A terminal that obeys what a panel writes, and no more.

    Attributes:
        lines: What stands on it, without those that are empty at its end.
    """

    def __init__(self) -> None:
        self._rows = [""]
        self._row = 0

    def write(self, text: str) -> None:
        while text:
            if text.startswith("\x1b["):
                command, text = text[2:], ""
                end = next(at for at, one in enumerate(command) if one.isalpha())
                self._obey(command[:end], command[end])
                text = command[end + 1 :]
            else:
                self._put(text[0])
                text = text[1:]

    def _obey(self, number: str, what: str) -> None:
        if what == "A":
            self._row -= int(number)
        else:
            assert (what, number) == ("J", "")
            self._rows = [*self._rows[: self._row], ""]

    def _put(self, character: str) -> None:
        if character == "\n":
            self._row += 1
            self._rows += [""] * (self._row + 1 - len(self._rows))
        elif character != "\r":
            self._rows[self._row] += character

    @property
    def lines(self) -> list[str]:
        return "\n".join(self._rows).rstrip("\n").split("\n")


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def panel(screen: Screen) -> Panel:
    return Panel(screen.write, lambda: (20, 6))


def test_lines_replace_the_last_ones(screen: Screen, panel: Panel) -> None:
    panel.say("began")
    panel.show(["a 1", "b 1"])
    panel.show(["a 2", "b 2", "c 2"])
    assert screen.lines == ["began", "a 2", "b 2", "c 2"]
    panel.show(["a 3"])
    assert screen.lines == ["began", "a 3"]


def test_what_is_said_stays_above_the_lines(screen: Screen, panel: Panel) -> None:
    panel.show(["a 1"])
    panel.say("first")
    panel.say("second")
    panel.show(["a 2"])
    assert screen.lines == ["first", "second", "a 2"]


def test_nothing_is_left_when_it_is_closed(screen: Screen, panel: Panel) -> None:
    panel.say("first")
    panel.show(["a", "b"])
    panel.close()
    panel.say("last")
    panel.close()
    assert screen.lines == ["first", "last"]


def test_lines_never_wrap_and_never_fill_the_terminal(screen: Screen, panel: Panel) -> None:
    panel.show([f"{number} " + "x" * 30 for number in range(9)])
    assert screen.lines == [f"{number} " + "x" * 17 for number in range(4, 9)]


def test_each_change_is_one_write() -> None:
    written: list[str] = []
    panel = Panel(written.append, lambda: (80, 24))
    panel.show(["a"])
    panel.say("b")
    panel.show(["c"])
    assert len(written) == 3
