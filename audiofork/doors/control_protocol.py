"""What both sides of the control socket have to know; control_answers.py describes its messages."""

from __future__ import annotations

import enum

MAX_LINE_BYTES = 65_536
# What an error begins with whose code is ASTERISK.
ASTERISK_AWAY = "Asterisk cannot be asked: "


class Code(enum.StrEnum):
    """Why a request was not granted."""

    REFUSED = "refused"
    """The request cannot be granted; `error` says why."""
    ASTERISK = "asterisk"
    """Asterisk cannot be reached, or does not answer."""
    BUSY = "busy"
    """The daemon is doing this for another client; `error` says what to do."""
    HISTORY = "history"
    """The history cannot be asked now; `error` says why."""
    CLUSTER = "cluster"
    """In a cluster: no controller that leads can be asked; `error` says why."""
    FAULT = "fault"
    """A bug in the daemon; its log has a traceback."""
