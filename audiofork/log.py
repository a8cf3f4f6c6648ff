"""Sets up the log; marks the lines of a fork; limits floods of lines to one a second."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from audiofork.config import LogConfig
from audiofork.text import printable

asterisk: ContextVar[str] = ContextVar("asterisk", default="")
"""Where one process serves several, the Asterisk that lines are of; lines then begin with it."""


MOST_TEXTS = 1000  # that `Repeats` knows
COMPLAINT_INTERVAL_S = 10.0
"""Of what is tried several times a second."""


class ForkLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the id and channel of a fork to each record; the formatter shows them."""

    def __init__(self, logger: logging.Logger, fork_id: str, channel: str) -> None:
        super().__init__(logger, {"fork": fork_id, "channel": channel})

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Keep the `fields` of a record; the JSON format writes them."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


class CounterLine:
    """Logs a warning at most once a second, with how often its event happened since the last one.

    For events that a peer can cause: a flood of them must not become a flood in the log.

    Args:
        logger: Where the line goes.
        what: What happened, the beginning of the line.
        clock: Returns the time in seconds; tests replace it.

    Attributes:
        total: How often the event happened in all.
    """

    def __init__(
        self,
        logger: logging.Logger,
        what: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = logger
        self._what = what
        self._clock = clock
        self._next = float("-inf")
        self._unsaid = 0
        self.total = 0

    def count(self, detail: str, number: int = 1) -> None:
        """Count some events, and log them unless a line was logged within the last second.

        Args:
            detail: Describes the last of them.
            number: How many there were.
        """
        self.total += number
        self._unsaid += number
        now = self._clock()
        if now < self._next:
            return
        self._log.warning("%s: %d more, last: %s", self._what, self._unsaid, detail)
        self._next = now + 1
        self._unsaid = 0

    def say_rest(self) -> None:
        """Log how many events no line has told of, if there are any; for the end."""
        if self._unsaid:
            self._log.warning("%s: %d more", self._what, self._unsaid)
            self._unsaid = 0


class Repeats:
    """Knows which texts the log has lately: what is tried again and again fails as often.

    Args:
        interval_s: After so many seconds a text is worth a line again.
        clock: Returns the time in seconds; tests replace it.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next: dict[str, float] = {}  # when each text may be logged again

    def are_due(self, text: str, *, again: bool = True) -> bool:
        """Return whether to log a text now.

        Args:
            text: The text.
            again: Whether it may be logged again later; else not before `forget`.
        """
        now = self._clock()
        if now < self._next.get(text, now):
            return False
        if len(self._next) >= MOST_TEXTS:
            self._next.clear()
        self._next[text] = now + self._interval_s if again else math.inf
        return True

    def forget(self) -> None:
        """Let each text be logged again."""
        self._next.clear()


class Refusals:
    """Counts refusals, which may come as a flood, and logs once a second how many there were.

    The owner logs the first one itself; a second later a line has the number of the others.

    Args:
        logger: Where that line goes.
        what: What is counted, to follow a number: "requests of AMI clients refused".
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._log = logger
        self._what = what
        self._unsaid = 0
        self._notes: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def count(self, note: str = "") -> bool:
        """Count one refusal; return whether the owner is to log it.

        Args:
            note: What is special about it, counted separately: "without an answer".
        """
        if note:
            self._notes[note] += 1
        if self._timer is not None:
            self._unsaid += 1
            return False
        self._timer = asyncio.get_running_loop().call_later(1, self._on_second)
        return True

    def _on_second(self) -> None:
        unsaid, notes, self._unsaid, self._timer = self._unsaid, self._notes, 0, None
        self._notes = Counter()
        if unsaid:
            of_them = "".join(f", {count} {note}" for note, count in notes.items())
            self._log.warning(
                "... and %d more %s in the last second%s", unsaid, self._what, of_them
            )
            # While the flood lasts, no refusal is logged but in this line, once a second.
            self._timer = asyncio.get_running_loop().call_later(1, self._on_second)


_PROFILE = re.compile(r"@[\w.-]+", re.ASCII)


def without_query(url: str) -> str:
    """Return a URL without the parts that may be secret: its query, and all before an @.

    The name of a profile, @NAME, is returned unchanged.
    """
    if _PROFILE.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.netloc.rpartition("@")[2]
    path = "/..." if "@" in parts.path else parts.path
    return f"{parts.scheme}://{host}{path}" + ("?..." if parts.query else "")


def host_of(url: str) -> str:
    """Return the host of a URL, in lower case, without its port; of a profile its name, @NAME.

    Returns nothing for what is not a URL.
    """
    if _PROFILE.fullmatch(url):
        return url
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def without_credentials(url: str) -> str:
    """Return a text that was refused as a URL, without what may be a password.

    If it contains an @, a password may be anywhere before it: then only the scheme is left.
    """
    if "@" not in url or _PROFILE.fullmatch(url):
        return url
    scheme = url.partition(":")[0].lower()
    return f"{scheme}://..." if scheme in ("ws", "wss", "http", "https") else "..."


class _TextFormatter(logging.Formatter):
    """Formats a record as a line; lines of a fork begin with `fork 3f2a91c0 PJSIP/100-0000002a: `.

    Control characters are replaced, so that no text begins a new line or controls a terminal.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(of)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fork = getattr(record, "fork", "")
        of = f"fork {fork[:8]} {getattr(record, 'channel', '')}: " if fork else ""
        # Some lines name it themselves, since they are told of each Asterisk, also of one alone.
        if (name := asterisk.get()) and not record.getMessage().startswith(f"{name}: "):
            of = f"{name}: {of}"
        record.of = of
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), "?")

    def formatException(self, ei: Any) -> str:
        # Indented, so that none of its lines looks like the beginning of a record.
        return "\n".join(f"  {line}" for line in _printable_lines(super().formatException(ei)))


def _printable_lines(traceback: str) -> list[str]:
    return [printable(line, "?") for line in traceback.split("\n")]


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), "?"),
        }
        if name := asterisk.get():
            entry["asterisk"] = name
        for key in ("fork", "channel"):
            if hasattr(record, key):
                entry[key] = printable(getattr(record, key), "?")
        for key, value in getattr(record, "fields", {}).items():
            entry[key] = printable(value, "?") if isinstance(value, str) else value
        if record.exc_info:
            entry["exception"] = "\n".join(_printable_lines(self.formatException(record.exc_info)))
        return json.dumps(entry, ensure_ascii=False)


def set_up(config: LogConfig) -> None:
    """Send the log to standard error in the configured format; may be called again."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if config.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # Below warnings, this package itself logs what these libraries would.
    for library in ("asyncio", "panoramisk", "websockets"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
