"""The command list --watch: refreshes the list each second, in place."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from audiofork.commands.listing import Flows, as_json, missing_lines, summary, table
from audiofork.errors import AudioForkError

if TYPE_CHECKING:
    from audiofork.doors.daemon_client import DaemonClient, Listing

INTERVAL_S = 1.0
# The alternate screen of the terminal, so that the earlier lines stay; and no cursor.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """Shows looks: in place on a terminal, otherwise one after another."""

    def __init__(self, out: TextIO, *, in_place: bool) -> None:
        self._out = out
        self._in_place = in_place

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Use the screen, and restore it afterwards."""
        self._write(_ENTER if self._in_place else "")
        try:
            yield
        finally:
            self._write(_LEAVE if self._in_place else "")

    @property
    def size(self) -> tuple[int, int] | None:
        """The columns and lines of the terminal; None if the output has no limits."""
        columns, lines = shutil.get_terminal_size()
        return (columns, lines) if self._in_place else None

    def show(self, text: str) -> None:
        """Show a look, in one write so that nothing flickers.

        Raises:
            OSError: Nobody reads any more.
        """
        if (size := self.size) is None:
            self._write(f"{text}\n")
            return
        lines = _fitting(text.split("\n"), *size)
        self._write(_HOME + f"{_END_OF_LINE}\r\n".join(lines) + _END_OF_LINE + _END_OF_SCREEN)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _fitting(lines: list[str], columns: int, height: int) -> list[str]:
    """Return the lines for which a terminal has room, with a note on the number of others."""
    if len(lines) > height:
        more = len(lines) - height + 1
        lines = [*lines[: height - 1], f"... {more} more lines: audiofork list shows all"]
    return [line[:columns] for line in lines]


class Watch:
    """Looks at the forks each second, also while the daemon restarts.

    Args:
        connect: Connects to the daemon.
        screen: Shows the looks.
        warn: Reports, where looks follow one another, that the daemon cannot be asked.
        as_json: Whether to show JSON instead of a table.
        wide: Whether to show one line per fork, however long.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[DaemonClient]],
        screen: Screen,
        warn: Callable[[str], None],
        *,
        as_json: bool = False,
        wide: bool = False,
    ) -> None:
        self._connect = connect
        self._screen = screen
        self._warn = warn
        self._as_json = as_json
        self._wide = wide
        self._flows = Flows()
        self._trouble = ""

    def run(self) -> None:
        """Look until an interrupt, or until nobody reads the output any more.

        Raises:
            AudioForkError: The daemon could not be asked at the first look.
        """
        with self._connect() as daemon:  # who begins wants to know that there is none
            first = daemon.listing()
        with contextlib.suppress(OSError), self._screen.entered():
            self._show(first)
            while True:
                time.sleep(INTERVAL_S)
                try:
                    with self._connect() as daemon:
                        self._look_on(daemon)
                except AudioForkError as exc:
                    self._tell(str(exc))

    def _look_on(self, daemon: DaemonClient) -> None:
        """Look over one connection, as long as it lasts."""
        while True:
            looked = daemon.listing()
            if self._trouble:
                self._tell("")
            self._show(looked)
            time.sleep(INTERVAL_S)

    def _tell(self, trouble: str) -> None:
        """Report why the daemon cannot be asked; or, with an empty text, that it can be again."""
        if self._screen.size is not None:
            if trouble:  # else the next look is shown at once
                self._screen.show(f"{trouble}\n\ntrying again each second; Ctrl-C to quit")
        elif trouble != self._trouble:
            self._warn(f"{trouble}; trying again each second" if trouble else "the daemon is back")
        self._trouble = trouble

    def _show(self, looked: Listing) -> None:
        forks = looked.forks
        if self._as_json:
            self._screen.show(as_json(forks))
            for line in missing_lines(looked.missing):
                self._warn(line)
            return
        self._flows.look(forks)
        size = self._screen.size
        if size is not None:  # those that have a problem first: there may not be room for all
            forks = sorted(forks, key=lambda fork: bool(fork["state"] == "streaming"))
        width = None if size is None or self._wide else size[0]
        shown = table(forks, looked.legs_left, width, self._flows)
        lines = (summary(forks, self._flows), *missing_lines(looked.missing))
        heading = f"{time.strftime('%H:%M:%S')}  " + "\n".join(lines)
        self._screen.show(f"{heading}\n\n{shown}" + ("" if size else "\n"))


def is_terminal(out: TextIO, term: str) -> bool:
    """Return whether looks can be shown in place.

    Args:
        out: The output.
        term: The value of TERM in the environment.
    """
    return out.isatty() and term not in ("", "dumb")
