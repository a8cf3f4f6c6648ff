"""Logging: set-up, the prefix of a fork, and lines that appear at most once a second."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from audiofork.config import LogConfig
from audiofork.text import printable


class ForkLog(logging.LoggerAdapter[logging.Logger]):
    """Marks each record as being of a fork; the formatter shows it."""

    def __init__(self, logger: logging.Logger, fork_id: str, channel: str) -> None:
        super().__init__(logger, {"fork": fork_id, "channel": channel})

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Keep the `fields` of a record besides; the JSON format has them."""
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


class CounterLine:
    """Logs something at most once a second, with the number of times that it happened.

    For events that a peer can cause: a flood of them must not become a flood in the log.
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
        """Count occurrences; `detail` describes the last one."""
        self.total += number
        self._unsaid += number
        now = self._clock()
        if now < self._next:
            return
        self._log.warning("%s: %d more, last: %s", self._what, self._unsaid, detail)
        self._next = now + 1
        self._unsaid = 0


class Refusals:
    """Counts what may come as a flood, and says once a second how many there were.

    The first one is for its owner to log; after a second a line has the number of the others.

    Args:
        logger: Where that line goes.
        what: What they are, after a number: "requests of AMI clients refused".
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._log = logger
        self._what = what
        self._unsaid = 0
        self._notes: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def count(self, note: str = "") -> bool:
        """Count one; return whether it is to be logged.

        Args:
            note: What became of it, to be counted apart: "without an answer".
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
            # So that a flood has this line alone, each second.
            self._timer = asyncio.get_running_loop().call_later(1, self._on_second)


def without_query(url: str) -> str:
    """Return a URL as it may stand in a log: queries carry tokens, and an @ may end a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.netloc.rpartition("@")[2]
    path = "/..." if "@" in parts.path else parts.path
    return f"{parts.scheme}://{host}{path}" + ("?..." if parts.query else "")


def without_credentials(url: str) -> str:
    """Return what was given for a URL, and refused, as it may be shown.

    Of one with an @, before which a password may stand anywhere, that is the scheme at most.
    """
    if "@" not in url:
        return url
    scheme = url.partition(":")[0].lower()
    return f"{scheme}://..." if scheme in ("ws", "wss", "http", "https") else "..."


class _TextFormatter(logging.Formatter):
    """Puts `fork 3f2a91c0 PJSIP/100-0000002a: ` before the lines of a fork.

    Whatever a text holds, it is one line and commands no terminal.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(of)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fork = getattr(record, "fork", "")
        record.of = f"fork {fork[:8]} {getattr(record, 'channel', '')}: " if fork else ""
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
        for key in ("fork", "channel"):
            if hasattr(record, key):
                entry[key] = printable(getattr(record, key), "?")
        for key, value in getattr(record, "fields", {}).items():
            entry[key] = printable(value, "?") if isinstance(value, str) else value
        if record.exc_info:
            entry["exception"] = "\n".join(_printable_lines(self.formatException(record.exc_info)))
        return json.dumps(entry, ensure_ascii=False)


def set_up(config: LogConfig) -> None:
    """Send the log to standard error in the configured form; may be called again."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if config.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # What these libraries say at lower levels, this package says in its own words.
    for library in ("asyncio", "panoramisk", "websockets"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
