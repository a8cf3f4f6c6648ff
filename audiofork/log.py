"""Logging: set-up, the per-fork prefix, and lines that come once a second at most."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from audiofork.config import LogConfig


class ForkLog(logging.LoggerAdapter[logging.Logger]):
    """Puts `fork 3f2a91c0 PJSIP/100-0000002a: ` before each line."""

    def __init__(self, logger: logging.Logger, fork_id: str, channel: str) -> None:
        super().__init__(logger, {"fork": fork_id, "channel": channel})
        self._prefix = f"fork {fork_id[:8]} {channel}: "

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the prefix to a message, and the fork to its record."""
        kwargs["extra"] = self.extra
        return self._prefix.replace("%", "%%") + str(msg), kwargs


class CounterLine:
    """Logs that something happened, at most once a second, with how often it did.

    For what a peer can cause at will: a flood of it must not become a flood in the log.
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

    def count(self, detail: str) -> None:
        """Count one more; `detail` says what was special about this one."""
        self.total += 1
        self._unsaid += 1
        now = self._clock()
        if now < self._next:
            return
        self._log.warning("%s: %d more, last: %s", self._what, self._unsaid, detail)
        self._next = now + 1
        self._unsaid = 0


def without_query(url: str) -> str:
    """Return a URL as it may stand in a log: queries carry tokens."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("fork", "channel"):
            if hasattr(record, key):
                entry[key] = getattr(record, key)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up(config: LogConfig) -> None:
    """Send the log to standard error in the configured form; may be called again."""
    handler = logging.StreamHandler()
    if config.format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # What these libraries say at lower levels, this package says in its own words.
    for library in ("asyncio", "panoramisk", "websockets"):
        logging.getLogger(library).setLevel(logging.WARNING)
