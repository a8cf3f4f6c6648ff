"""What Asterisk is told of forks: events, and variables of the target channel.

Variables are always set before the event of the same news.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from typing import Protocol
from unicodedata import category

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import NO_SUCH_CHANNEL
from audiofork.errors import AmiActionFailed, AmiError
from audiofork.link.messages import EndReason, ForkStats
from audiofork.log import without_query
from audiofork.text import printable

log = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 200
MAX_RESPONSE_BYTES = 900  # a line of AMI holds 1024 with its name
# Control characters, surrogates, and what ends a line or paragraph. Joiners and the blanks of
# other scripts are text.
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})

Headers = list[tuple[str, str]]


class Announced(Protocol):
    """What is told of every fork."""

    @property
    def id(self) -> str: ...
    @property
    def channel(self) -> str: ...
    @property
    def uniqueid(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def action_id(self) -> str: ...
    @property
    def taken_up(self) -> bool: ...
    @property
    def sample_rate(self) -> int: ...


class Announcer:
    """Raises events and sets variables; never waits."""

    def __init__(self, ami: Ami) -> None:
        self._ami = ami

    def starting(self, fork: Announced, id_variable: str) -> None:
        """Tell that a fork begins."""
        self._set(fork.uniqueid, "AUDIOFORK_ID", fork.id)
        if id_variable:
            self._set(fork.uniqueid, id_variable, fork.id)
        self._set(fork.uniqueid, "AUDIOFORK_WSSERVER", fork.url)
        self._set(fork.uniqueid, f"AUDIOFORK_WSSERVER_{fork.id.replace('-', '_')}", fork.url)
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STARTING")

    def started(self, fork: Announced) -> None:
        """Tell that audio flows."""
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STREAMING")
        rate = ("SampleRate", str(fork.sample_rate))
        self._raise(fork, "AudioForkStarted", [rate, *_taken_up(fork)])

    def reconnecting(self, fork: Announced, attempt: int, reason: str, *, was_up: bool) -> None:
        """Tell that audio does not get through: the server is away, or the leg, or we are."""
        if was_up:
            self._set(fork.uniqueid, "AUDIOFORK_STATUS", "RECONNECTING")
        more = [("Attempt", str(attempt)), ("Reason", harmless(reason))]
        self._raise(fork, "AudioForkReconnecting", more)

    def resumed(
        self,
        fork: Announced,
        frames_dropped: int,
        more: Headers | None = None,
        *,
        is_up: bool = True,
    ) -> None:
        """Tell that the server is back, or the leg; `is_up`: that all is well again."""
        if is_up:
            self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STREAMING")
        dropped = ("FramesDropped", str(frames_dropped))
        self._raise(fork, "AudioForkResumed", [dropped, *(more or [])])

    def message(self, fork: Announced, text: str) -> None:
        """Tell what the server has said."""
        clean = without_controls(text).encode()[:MAX_RESPONSE_BYTES]
        shown = clean.decode(errors="ignore")
        self._set(fork.uniqueid, "AUDIOFORK_RESPONSE", shown)
        self._raise(fork, "AudioForkMessage", [("Message", shown)])

    def ended(self, fork: Announced, reason: EndReason, *, failed: bool) -> None:
        """Set the variables of an end; `failed` or `stopped` raises the event."""
        self._set(fork.uniqueid, "AUDIOFORK_REASON", reason.value)
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "FAILED" if failed else "STOPPED")

    def failed(self, fork: Announced, reason: EndReason, more: Headers) -> None:
        """Tell that a fork ended before audio flowed."""
        self._raise(fork, "AudioForkFailed", [("Reason", reason.value), *more])

    def stopped(
        self, fork: Announced, reason: EndReason, age_s: float, stats: ForkStats, more: Headers
    ) -> None:
        """Tell that a fork ended, with its totals."""
        totals = [
            ("Reason", reason.value),
            ("Duration", f"{age_s:.1f}"),
            ("FramesIn", str(stats.frames_in)),
            ("FramesSent", str(stats.frames_sent)),
            ("FramesDropped", str(stats.frames_dropped)),
            ("Reconnects", str(stats.reconnects)),
        ]
        if stats.messages_ignored:
            totals.append(("MessagesIgnored", str(stats.messages_ignored)))
        self._raise(fork, "AudioForkStopped", [*totals, *_taken_up(fork), *more])

    def refused(self, fields: dict[str, str], why: str) -> None:
        """Answer a request that is not granted, with what of it is harmless."""
        safe = {name: harmless(value) for name, value in fields.items()}
        why = harmless(why)
        channel, uniqueid = safe.get("channel", ""), safe.get("uniqueid", "")
        url = safe.get("wsserver", "")
        where = f" to {without_query(url)}" if url else ""
        log.warning(
            "request for channel %s%s refused: %s", channel or uniqueid or "(none)", where, why
        )
        is_start = safe.get("command", "").lower() not in ("stopaudiofork", "audioforkmute")
        if (channel or uniqueid) and is_start:
            self._set(uniqueid or channel, "AUDIOFORK_REASON", why)
            self._set(uniqueid or channel, "AUDIOFORK_STATUS", "FAILED")
        headers = [
            ("AudioForkID", safe.get("audioforkid") or str(uuid.uuid4())),
            ("Channel", channel),
            ("Uniqueid", uniqueid),
            ("WsServer", url),
            ("Reason", why),
        ]
        if safe.get("actionid"):
            headers.append(("ActionID", safe["actionid"]))
        self._ami.raise_event("AudioForkFailed", headers)

    def _raise(self, fork: Announced, name: str, more: Headers | None = None) -> None:
        headers = [
            ("AudioForkID", fork.id),
            ("Channel", fork.channel),
            ("Uniqueid", fork.uniqueid),
            ("WsServer", fork.url),
            *(more or []),
        ]
        if fork.action_id:
            headers.append(("ActionID", fork.action_id))
        self._ami.raise_event(name, headers)

    def _set(self, channel: str, name: str, value: str) -> None:
        def on_error(exc: AmiError) -> None:
            # The channel may well be gone by now.
            if not (isinstance(exc, AmiActionFailed) and exc.message == NO_SUCH_CHANNEL):
                log.warning("%s of %s cannot be set: %s", name, channel, exc)

        headers = [("Channel", channel), ("Variable", name), ("Value", value)]
        self._ami.post("Setvar", headers, on_error)


def _taken_up(fork: Announced) -> Headers:
    return [("TakenUp", "yes")] if fork.taken_up else []


def harmless(text: str) -> str:
    """Return what of a text may stand in an AMI header: servers and events send anything."""
    return printable(text, "?")[:MAX_REASON_CHARACTERS]


def without_controls(text: str) -> str:
    """Return the beginning of a text, on one line, without control characters."""
    kept = (character for character in text if category(character) not in _CONTROLS)
    return "".join(itertools.islice(kept, MAX_RESPONSE_BYTES))  # 64 KiB would take its time
