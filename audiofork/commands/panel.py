"""Lines at the bottom of a terminal that change in place, while others scroll above them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

_CLEAR = "\x1b[J"  # from the cursor to the end of the screen


class Panel:
    """Shows lines below all else, and replaces them.

    Whoever says something meanwhile does so by `say`.

    Args:
        write: Writes a text to the terminal at once, unchanged.
        size: Returns the columns and lines of the terminal.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
    ) -> None:
        self._write = write
        self._size = size
        self._lines: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the last ones: as much of them as the terminal has room for.

        The last lines are shown if there is no room for all.
        """
        columns, height = self._size()
        before = self._up()
        self._lines = [line[: columns - 1] for line in lines[-(height - 1) :]]
        self._write(before + self._text())

    def say(self, line: str) -> None:
        """Print a line for good, above the panel."""
        self._write(f"{self._up()}{line}\n{self._text()}")

    def close(self) -> None:
        """Remove the lines."""
        before, self._lines = self._up(), []
        self._write(before)

    def _up(self) -> str:
        """Return what removes the lines that are shown."""
        return f"\x1b[{len(self._lines)}A\r{_CLEAR}" if self._lines else ""

    def _text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)
