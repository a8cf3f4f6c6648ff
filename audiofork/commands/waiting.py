"""The command start: waits until audio flows, and says what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from audiofork.errors import DaemonUnreachable, StartFailed
from audiofork.text import printable

STREAMING, ENDED = "streaming", "ended"

_WHAT_TO_DO = {
    "hangup": "the call was hung up before any audio went to the server",
    "stopped": "somebody stopped it before any audio went to the server",
    "no-such-channel": "the call was over before the fork began",
    "sink-refused": "that is final: correct the URL, its token or the certificate, and start again",
    "sink-gone": "is the server running, and does the URL name its host and port? Then start again",
    "sink-closed": "the server was done before any audio went to it",
    "leg-failed": "Asterisk delivered no audio: `audiofork check` finds out why",
    "shutdown": "the daemon was stopped: start it (systemctl start audiofork), then the fork",
    "fault": "a bug in audiofork: please report it, with the traceback in the daemon's log",
}
_WHILE_ENDING = {
    "hangup": "The call was hung up meanwhile",
    "stopped": "Somebody stopped it meanwhile",
    "shutdown": "The daemon is being stopped",
}


class Progress:
    """Shows what a start waits for: a terminal has one changing line, a pipe one line per change.

    Args:
        write: Writes a text unchanged.
        columns: The width of the terminal; None: the output is a pipe.
    """

    def __init__(self, write: Callable[[str], None], columns: int | None) -> None:
        self._write = write
        self._columns = columns
        self._shown: object = None

    def show(self, text: str, matter: object) -> None:
        """Show a text.

        Args:
            text: The current state.
            matter: The part whose changes are shown in a pipe, for example without a countdown.
        """
        if self._columns is not None:
            self._write(f"\r\x1b[K{text[: self._columns - 1]}")  # a line that wraps would stay
        elif matter != self._shown:
            self._write(f"{text}\n")
        self._shown = matter

    def end(self) -> None:
        """Clear the line, so that others may follow."""
        if self._columns is not None and self._shown is not None:
            self._write("\r\x1b[K")


def outlook(fork: dict[str, Any]) -> str:
    """Return what a fork waits for, why, and when the next attempt is; empty if it streams."""
    waits_for = fork.get("waits_for", "")
    if not waits_for:
        return ""
    if fork.get("next_attempt_s") is None:
        return printable(f"waits for {waits_for}", "?")
    text = (
        f"has waited {duration(fork['away_s'])} for {waits_for}: {fork['last_error']}; "
        f"attempt {fork['attempt']} {next_attempt(fork)}"
    )
    return printable(text, "?")


def duration(seconds: float) -> str:
    """Return a time as text, in whole seconds or as hours, minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 60 else clock_time(seconds)


def clock_time(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def next_attempt(fork: dict[str, Any]) -> str:
    """Return when the next attempt to reach the missing part is due."""
    seconds = fork["next_attempt_s"]
    return f"in {seconds:.0f} s" if seconds >= 1 else "now"


def wait(
    fork_id: str,
    news: Iterator[dict[str, Any]],
    timeout_s: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until a fork streams; return the message about it.

    Args:
        fork_id: The id of the fork.
        news: The daemon's reports about its start; empty if it does not report.
        timeout_s: The longest time to wait, in seconds; 0: no limit.
        progress: Shows what the fork waits for.
        clock: Returns the time in seconds.

    Raises:
        StartFailed: The fork has ended, or does not stream in time.
        DaemonUnreachable: The daemon has gone away meanwhile.
    """
    deadline = clock() + timeout_s if timeout_s else float("inf")
    name = f"fork {fork_id[:8]}"
    try:
        for one in news:
            if one["result"] == STREAMING:
                return f"{name} streams, {one['ms']} ms after the request"
            if one["result"] == ENDED:
                raise StartFailed(_why_ended(fork_id, one))
            text = outlook(one["fork"])
            if clock() >= deadline:
                raise StartFailed(_why_given_up(fork_id, timeout_s, one["fork"]))
            matter = [one["fork"].get(key) for key in ("waits_for", "last_error", "attempt")]
            progress.show(f"{name} {text}", matter)
    except DaemonUnreachable as exc:
        raise DaemonUnreachable(_why_unknown(fork_id, exc)) from exc
    finally:
        progress.end()
    return (
        f"{name} was granted, but the daemon does not report when it streams (it is older than "
        "this command, or too many wait already): audiofork list"
    )


def interrupted(fork_id: str) -> str:
    """Return the message for a user who has interrupted the wait.

    Args:
        fork_id: The id of the fork; empty: the daemon has not granted it yet.
    """
    if not fork_id:
        return "interrupted before the daemon answered: audiofork list shows whether it started"
    return f"fork {fork_id} is left as it is; to end it: audiofork stop {fork_id}"


def _why_ended(fork_id: str, news: dict[str, Any]) -> str:
    reason, detail = str(news["reason"]), printable(str(news["detail"]), "?")
    because = f"{reason} ({detail})" if detail else reason
    channel = printable(str(news["fork"]["channel"]), "?")
    advice = _WHAT_TO_DO.get(reason, "the daemon's log says more")
    return f"fork {fork_id} of {channel} has ended before it streamed: {because}; {advice}"


def _why_given_up(fork_id: str, timeout_s: float, fork: dict[str, Any]) -> str:
    text = f"fork {fork_id} does not stream after {timeout_s:g} s: it {outlook(fork)}. "
    if ending := fork.get("ending", ""):
        over = _WHILE_ENDING.get(ending, "It is being ended")
        return f"{text}{over}; it continues for at most 30 s, to deliver what was said until then"
    return f"{text}It keeps trying; to end it: audiofork stop {fork_id}"


def _why_unknown(fork_id: str, exc: DaemonUnreachable) -> str:
    return (
        f"{exc}, before fork {fork_id} streamed. With [daemon] on_stop = keep it continues when "
        "the daemon is back, otherwise it has ended: audiofork list"
    )
