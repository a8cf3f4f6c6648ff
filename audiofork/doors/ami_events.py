"""Reports the events of forks to Asterisk, as AMI events and channel variables.

Variables are always set before the event that reports the same change.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from unicodedata import category

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import NO_SUCH_CHANNEL
from audiofork.asterisk.taps import connect
from audiofork.errors import AmiActionFailed, AmiError
from audiofork.forks.events import (
    Attack,
    CommandHandled,
    DomainEvent,
    Ended,
    Failed,
    ForkInfo,
    MessageReceived,
    Muted,
    Parting,
    Pressed,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.fairness import Allowance
from audiofork.forks.requests import CONNECT, DIALPLAN, UNKNOWN, Origin
from audiofork.log import Refusals, without_credentials, without_query
from audiofork.text import harmless

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 900  # a line of AMI has 1024 at most, with the name of its header
# How many refused requests are answered per second: each answer is an event for all AMI clients.
ANSWERS_TO_ORIGIN = 20
ANSWERS_TO_DOOR = 100
# Unicode categories of control characters, surrogates, and separators of lines and paragraphs.
# Joiners and the spaces of other scripts are kept.
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})

Headers = list[tuple[str, str]]


class AmiEvents:
    """Sends an AMI event and sets channel variables for each event of a fork; does not wait.

    Owned by the daemon, which subscribes `on_event` to the events of forks.

    Args:
        ami: The connection to Asterisk.
        tells_keys: Whether there is an event for each key that a party presses.
    """

    def __init__(self, ami: Ami, *, tells_keys: bool = False) -> None:
        self._ami = ami
        self._tells_keys = tells_keys
        self._answers = Allowance(ANSWERS_TO_ORIGIN, ANSWERS_TO_DOOR)
        self._refusals: dict[str, Refusals] = {}  # by door

    def on_event(self, event: DomainEvent) -> None:
        """Report an event of a fork to Asterisk."""
        match event:
            case Requested():
                self._requested(event)
            case Started():
                self._started(event)
            case Reconnecting():
                self._reconnecting(event)
            case Resumed():
                self._resumed(event)
            case MessageReceived():
                self._message(event)
            case Pressed() if self._tells_keys:
                more = [("Digit", event.digit), ("DurationMs", str(event.duration_ms))]
                self._raise(event.fork, "AudioForkDtmf", more)
            case CommandHandled():
                self._command_handled(event)
            case Parting():
                self._tell_end(event)
                self._set(event.fork.uniqueid, connect.STATUS, _status_of(event))
            case Ended() if not event.fork.connects:  # else the call has a next one, perhaps
                self._tell_end(event)
            case Failed():
                self._failed(event)
            case Stopped():
                self._stopped(event)
            case Pressed() | Muted() | Ended() | Refused() | Attack():
                pass  # the door answers the requester; an attack only goes to the log

    def _requested(self, event: Requested) -> None:
        fork = event.fork
        if fork.from_earlier_run:
            return  # the channel has the variables since then
        self._set(fork.uniqueid, "AUDIOFORK_ID", fork.id)
        if id_variable := event.request.options.id_variable:
            self._set(fork.uniqueid, id_variable, fork.id)
        self._set(fork.uniqueid, "AUDIOFORK_WSSERVER", fork.url)
        self._set(fork.uniqueid, f"AUDIOFORK_WSSERVER_{fork.id.replace('-', '_')}", fork.url)
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STARTING")
        if fork.connects:
            self._set(fork.uniqueid, connect.FORK, fork.id)
            self._set(fork.uniqueid, connect.STATUS, "STARTING")

    def _started(self, event: Started) -> None:
        fork = event.fork
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STREAMING")
        more = [("SampleRate", str(fork.sample_rate))]
        if event.subprotocol:
            more.append(("Subprotocol", event.subprotocol))
        self._raise(fork, "AudioForkStarted", [*more, *_taken_up(fork)])

    def _reconnecting(self, event: Reconnecting) -> None:
        if event.was_streaming:
            self._set(event.fork.uniqueid, "AUDIOFORK_STATUS", "RECONNECTING")
        more = [("Attempt", str(event.attempt)), ("Reason", harmless(event.why))]
        self._raise(event.fork, "AudioForkReconnecting", more)

    def _resumed(self, event: Resumed) -> None:
        if event.is_streaming:
            self._set(event.fork.uniqueid, "AUDIOFORK_STATUS", "STREAMING")
        more = [("FramesDropped", str(event.frames_dropped))]
        if event.gap_ms is not None:
            more.append(("GapMs", str(event.gap_ms)))
        self._raise(event.fork, "AudioForkResumed", more)

    def _message(self, event: MessageReceived) -> None:
        clean = without_controls(event.text).encode()[:MAX_RESPONSE_BYTES]
        shown = clean.decode(errors="ignore")
        self._set(event.fork.uniqueid, "AUDIOFORK_RESPONSE", shown)
        self._raise(event.fork, "AudioForkMessage", [("Message", shown)])

    def _command_handled(self, event: CommandHandled) -> None:
        more = [("Command", event.command.value), ("Value", event.value)]
        more.append(("Outcome", event.outcome.value))
        if event.reason:
            more.append(("Reason", harmless(event.reason)))
        self._raise(event.fork, "AudioForkCommand", more)

    def _tell_end(self, event: Ended | Parting) -> None:
        self._set(event.fork.uniqueid, "AUDIOFORK_REASON", event.reason.value)
        self._set(event.fork.uniqueid, "AUDIOFORK_STATUS", _status_of(event))

    def _failed(self, event: Failed) -> None:
        more = [("Reason", event.reason.value), *_particulars(event)]
        self._raise(event.fork, "AudioForkFailed", more)

    def _stopped(self, event: Stopped) -> None:
        stats = event.stats
        totals = [
            ("Reason", event.reason.value),
            ("Duration", f"{event.age_s:.1f}"),
            ("FramesIn", str(stats.frames_in)),
            ("FramesSent", str(stats.frames_sent)),
            ("FramesDropped", str(stats.frames_dropped)),
            ("Reconnects", str(stats.reconnects)),
        ]
        if event.fork.speaks:
            totals += [
                ("FramesPlayed", str(stats.frames_played)),
                ("FramesCleared", str(stats.frames_cleared)),
                ("FramesUnplayed", str(stats.frames_unplayed)),
                ("Underruns", str(stats.underruns)),
            ]
        if stats.commands_refused:
            totals.append(("CommandsRefused", str(stats.commands_refused)))
        if stats.frames_missing:
            totals.append(("FramesMissing", str(stats.frames_missing)))
        if stats.messages_ignored:
            totals.append(("MessagesIgnored", str(stats.messages_ignored)))
        if stats.messages_unused:
            totals.append(("MessagesUnused", str(stats.messages_unused)))
        more = [*totals, *_taken_up(event.fork), *_particulars(event)]
        self._raise(event.fork, "AudioForkStopped", more)

    def refused(self, fields: dict[str, str], why: str, origin: Origin = UNKNOWN) -> None:
        """Answer a refused request with an event, unless there are too many of them.

        Args:
            fields: The fields of the request, by name in lower case.
            why: Why it is refused.
            origin: Who asked.
        """
        is_answered = self._answers.take(origin)
        if origin.door not in self._refusals:
            self._refusals[origin.door] = Refusals(log, _refused_by(origin.door))
        if self._refusals[origin.door].count("" if is_answered else "without an answer"):
            _log_refusal(fields, why)
        if is_answered:
            self._answer(fields, harmless(why), origin)

    def _answer(self, fields: dict[str, str], why: str, origin: Origin) -> None:
        """Send the event of a refusal, and set the variables of the channel.

        The values come from outside, so control characters in them are replaced.
        """
        safe = {name: harmless(value) for name, value in fields.items()}
        channel, uniqueid = safe.get("channel", ""), safe.get("uniqueid", "")
        is_start = safe.get("command", "").lower() not in ("stopaudiofork", "audioforkmute")
        if (channel or uniqueid) and is_start and why != NO_SUCH_CHANNEL:
            self._set(uniqueid or channel, "AUDIOFORK_REASON", why)
            self._set(uniqueid or channel, "AUDIOFORK_STATUS", "FAILED")
            if safe.get("command", "").lower() == CONNECT and origin.door == DIALPLAN:
                self._set(uniqueid or channel, connect.STATUS, "FAILED")
        headers = [
            ("AudioForkID", safe.get("audioforkid") or str(uuid.uuid4())),
            ("Channel", channel),
            ("Uniqueid", uniqueid),
            ("WsServer", _shown_url(fields)),
            ("Reason", why),
        ]
        if safe.get("actionid"):
            headers.append(("ActionID", safe["actionid"]))
        self._ami.raise_event("AudioForkFailed", headers)

    def _raise(self, fork: ForkInfo, name: str, more: Headers) -> None:
        headers = [
            ("AudioForkID", fork.id),
            ("Channel", fork.channel),
            ("Uniqueid", fork.uniqueid),
            ("WsServer", fork.url),
            *more,
        ]
        if fork.action_id:
            headers.append(("ActionID", fork.action_id))
        self._ami.raise_event(name, headers)

    def _set(self, channel: str, name: str, value: str) -> None:
        def on_error(exc: AmiError) -> None:
            # A channel that was hung up meanwhile is no reason for a warning.
            if not (isinstance(exc, AmiActionFailed) and exc.message == NO_SUCH_CHANNEL):
                log.warning("%s of %s cannot be set: %s", name, channel, exc)

        headers = [("Channel", channel), ("Variable", name), ("Value", value)]
        self._ami.post("Setvar", headers, on_error)


def _status_of(event: Ended | Parting) -> str:
    return "FAILED" if event.has_failed else "STOPPED"


def _refused_by(door: str) -> str:
    return f"requests by {door or 'user event'} refused"


def _log_refusal(fields: dict[str, str], why: str) -> None:
    url = _shown_url(fields)
    log.warning(
        "request for channel %s%s refused: %s",
        harmless(fields.get("channel") or fields.get("uniqueid") or "(none)"),
        f" to {without_query(url)}" if url else "",
        harmless(why),
    )


def _shown_url(fields: dict[str, str]) -> str:
    return harmless(without_credentials(fields.get("wsserver", "")))


def _taken_up(fork: ForkInfo) -> Headers:
    return [("TakenUp", "yes")] if fork.from_earlier_run else []


def _particulars(event: Stopped | Failed) -> Headers:
    """Return the headers that only some events of an end have."""
    headers = {
        "Detail": harmless(event.detail),
        "RelaysLost": str(event.relays_lost or ""),
        "PostProcessStatus": event.post_process_status,
    }
    return [(name, value) for name, value in headers.items() if value]


def without_controls(text: str) -> str:
    """Return the beginning of a text, on one line, without control characters."""
    kept = (character for character in text if category(character) not in _CONTROLS)
    # Of a whole message, which may have 64 KiB, that would take long.
    return "".join(itertools.islice(kept, MAX_RESPONSE_BYTES))
