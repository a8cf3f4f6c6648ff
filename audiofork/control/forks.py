"""The registry of forks: from a request to its end, and what Asterisk is told of it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from audiofork.config import SecurityConfig
from audiofork.control.ami import (
    Ami,
    ChannelHangup,
    Event,
    OriginateFailed,
    RequestReceived,
)
from audiofork.control.lifecycle import ForkEvent, ForkState, next_state
from audiofork.control.requests import StartFork, StopFork, Target, parse_request
from audiofork.control.tap.base import Tap
from audiofork.control.urls import check_url
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.log import ForkLog, without_query
from audiofork.model import (
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    Report,
    SendCommand,
    SinkOpened,
    Streaming,
)

log = logging.getLogger(__name__)

# Asterisk closes the leg within 20 ms of a hangup; the frames of that time are still wanted. A
# target without media may keep its leg open for ever, so after this the fork ends anyway.
HANGUP_GRACE_S = 0.1
# How long after a leg's end the news of its channel's hangup may come.
LEG_LOSS_GRACE_S = 0.15
LEG_TIMEOUT_S = 6.0  # the Originate's own limit is 5 s
MAX_REASON_CHARACTERS = 200
NO_SUCH_CHANNEL = str(NoSuchChannel())  # Asterisk's words as well as ours

# What makes a fork that never streamed a failure; the other reasons are ordinary ends.
_FAILURES = frozenset(
    {
        EndReason.SINK_REFUSED,
        EndReason.SINK_GONE,
        EndReason.LEG_FAILED,
        EndReason.NO_SUCH_CHANNEL,
        EndReason.FAULT,
    }
)


@dataclass(slots=True, eq=False)
class Fork:
    """One fork, from its request to its end."""

    id: str
    request: StartFork
    channel: str
    uniqueid: str
    log: ForkLog
    started: float
    state: ForkState = ForkState.REQUESTED
    hangup_seen: bool = False
    end_asked: EndReason | None = None
    action_id: str = ""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    looked_up: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, event: ForkEvent) -> None:
        """Move on; the only place where the state changes."""
        following = next_state(self.state, event)
        self.log.debug("= %s -> %s", self.state.name, following.name)
        self.state = following


class Forks:
    """All forks of the daemon.

    Owned by the daemon, which feeds it events of the AMI link and reports of the relay. It
    answers by AMI (events, channel variables) and commands the relay.
    """

    def __init__(self, ami: Ami, tap: Tap, security: SecurityConfig, send: SendCommand) -> None:
        self.security = security
        self._ami = ami
        self._tap = tap
        self._send = send
        self._forks: dict[str, Fork] = {}
        self._by_channel: dict[str, set[Fork]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = ""
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._forks)

    # --- From Asterisk ---

    def on_event(self, event: Event) -> None:
        """Act on an event of the AMI link."""
        if isinstance(event, RequestReceived):
            self._on_request(event.fields)
        elif isinstance(event, ChannelHangup):
            self._on_hangup(event.uniqueid)
        elif isinstance(event, OriginateFailed):
            self._on_originate_failed(event)

    async def on_link_up(self) -> None:
        """Clear away what an earlier run left behind; the first thing after a login."""
        if self._forks:
            return  # legs of running forks look like those of an earlier run
        swept = await self._tap.sweep()
        if swept:
            log.warning("hung up %d legs that an earlier run left behind", swept)

    def _on_request(self, fields: dict[str, str]) -> None:
        try:
            request = parse_request(fields)
        except RequestRefused as exc:
            self._refuse_fields(fields, str(exc))
            return
        if isinstance(request, StartFork):
            self._start(request)
        else:
            self._spawn(self._stop(request))

    def _on_hangup(self, uniqueid: str) -> None:
        for fork in self._on_channel(uniqueid):
            if not fork.hangup_seen:
                fork.hangup_seen = True
                self._later(fork, HANGUP_GRACE_S, EndReason.HANGUP)

    def _on_originate_failed(self, event: OriginateFailed) -> None:
        for fork in self._forks.values():
            if event.action_id.endswith(fork.id) and self._tap.is_leg(event.action_id):
                detail = f"Asterisk could not connect the leg (reason {event.reason})"
                self._end(fork, EndReason.LEG_FAILED, detail)
                break

    # --- Start ---

    def _start(self, request: StartFork) -> None:
        fork_id = str(uuid.uuid4())
        target = request.target
        fork = Fork(
            id=fork_id,
            request=request,
            channel=target.channel,
            uniqueid=target.uniqueid,
            log=ForkLog(log, fork_id, target.channel or target.uniqueid),
            started=time.monotonic(),
            action_id=request.action_id,
        )
        self._forks[fork_id] = fork
        self._empty.clear()
        self._spawn(self._begin(fork))

    async def _begin(self, fork: Fork) -> None:
        try:
            self._check(fork)
            await self._resolve(fork)
            self._check_channel(fork)
        except RequestRefused as exc:
            self._refuse(fork, str(exc))
            return
        except AmiError as exc:
            self._refuse(fork, f"Asterisk cannot be asked: {exc}")
            return
        finally:
            fork.looked_up.set()
        request = fork.request
        direction = request.options.direction
        fork.apply(ForkEvent.RESOLVED)
        self._send(ForkSpec(fork.id, fork.channel, request.url, direction))
        self._later(fork, LEG_TIMEOUT_S, EndReason.LEG_FAILED, "the leg did not connect")
        self._set_start_variables(fork)
        fork.log.info("started, %s to %s", direction, without_query(request.url))
        try:
            await self._tap.start(fork.id, fork.uniqueid, direction)
        except AmiError as exc:
            self._end(fork, EndReason.LEG_FAILED, str(exc))

    def _check(self, fork: Fork) -> None:
        if self._refusing:
            raise RequestRefused(self._refusing)
        if len(self._forks) > self.security.max_forks:
            raise RequestRefused(f"{self.security.max_forks} forks run already (max_forks)")
        check_url(fork.request.url, self.security.allow_urls)

    async def _resolve(self, fork: Fork) -> None:
        """Ask Asterisk for the name and uniqueid of the channel: an event may say anything."""
        fork.channel, fork.uniqueid = await self._look_up(fork.request.target)
        fork.log = ForkLog(log, fork.id, fork.channel)
        self._by_channel.setdefault(fork.uniqueid, set()).add(fork)

    async def _look_up(self, target: Target) -> tuple[str, str]:
        """Return name and uniqueid of a channel.

        Raises:
            NoSuchChannel: Asterisk does not have it.
            AmiError: Asterisk cannot be asked.
        """
        key = target.uniqueid or target.channel
        name, uniqueid = await asyncio.gather(
            self._ask(key, "CHANNEL(name)"), self._ask(key, "CHANNEL(uniqueid)")
        )
        return name, uniqueid

    async def _ask(self, channel: str, expression: str) -> str:
        headers = [("Channel", channel), ("Variable", expression)]
        try:
            answer = await self._ami.action("Getvar", headers)
        except AmiActionFailed as exc:
            if exc.message == NO_SUCH_CHANNEL:
                raise NoSuchChannel from None
            raise
        value = answer.get("value", "")
        if not value:
            raise NoSuchChannel
        return value

    def _check_channel(self, fork: Fork) -> None:
        if self._tap.is_leg(fork.uniqueid):
            raise RequestRefused("the channel is itself the leg of a fork")
        if fork.end_asked is not None:
            raise RequestRefused(f"ended before it began: {fork.end_asked}")

    def _set_start_variables(self, fork: Fork) -> None:
        url = fork.request.url
        self._set(fork.uniqueid, "AUDIOFORK_ID", fork.id)
        self._set(fork.uniqueid, "AUDIOFORK_WSSERVER", url)
        self._set(fork.uniqueid, f"AUDIOFORK_WSSERVER_{fork.id.replace('-', '_')}", url)
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STARTING")

    # --- Refusal ---

    def _refuse(self, fork: Fork, why: str) -> None:
        self._forget(fork)
        self._cancel_timers(fork)
        fork.apply(ForkEvent.REFUSED)
        fork.log.warning("refused: %s", why)
        why = _printable(why)
        self._set_end_variables(fork, why, "FAILED")
        self._raise_failed(fork, why, "")
        self._set_emptiness()

    def _refuse_fields(self, fields: dict[str, str], why: str) -> None:
        """Answer a request that could not even be parsed, with what of it is harmless."""
        safe = {name: _printable(value) for name, value in fields.items()}
        channel, uniqueid = safe.get("channel", ""), safe.get("uniqueid", "")
        log.warning("request for channel %s refused: %s", channel or uniqueid or "(none)", why)
        headers = [
            ("AudioForkID", safe.get("audioforkid", "")),
            ("Channel", channel),
            ("Uniqueid", uniqueid),
            ("WsServer", safe.get("wsserver", "")),
            ("Reason", _printable(why)),
        ]
        if safe.get("actionid"):
            headers.append(("ActionID", safe["actionid"]))
        is_stop = safe.get("command", "").lower() == "stopaudiofork"
        if (channel or uniqueid) and not is_stop:
            self._set(uniqueid or channel, "AUDIOFORK_REASON", _printable(why))
            self._set(uniqueid or channel, "AUDIOFORK_STATUS", "FAILED")
        self._ami.raise_event("AudioForkFailed", headers)

    # --- Stop ---

    async def _stop(self, request: StopFork) -> None:
        try:
            forks = await self._named_by(request)
        except (RequestRefused, AmiError) as exc:
            self._refuse_stop(request, str(exc))
            return
        if not forks:
            self._refuse_stop(request, "No such fork")
        for fork in forks:
            fork.action_id = request.action_id or fork.action_id
            self._end(fork, EndReason.STOPPED)

    async def _named_by(self, request: StopFork) -> list[Fork]:
        if request.fork_id:
            fork = self._forks.get(request.fork_id)
            return [fork] if fork is not None else []
        uniqueid = request.target.uniqueid
        if not uniqueid:
            _, uniqueid = await self._look_up(request.target)
        # A start that came just before may still be asking what its channel is.
        await asyncio.gather(*(fork.looked_up.wait() for fork in self._forks.values()))
        return self._on_channel(uniqueid)

    def _refuse_stop(self, request: StopFork, why: str) -> None:
        fields = {
            "command": "StopAudioFork",
            "channel": request.target.channel,
            "uniqueid": request.target.uniqueid,
            "audioforkid": request.fork_id,
            "actionid": request.action_id,
        }
        self._refuse_fields(fields, why)

    # --- From the relay ---

    def on_report(self, report: Report) -> None:
        """Act on a report of the relay."""
        fork = self._forks.get(report.fork_id)
        if fork is None:
            log.error("report of a fork that is not known: %r", report)
        elif isinstance(report, LegAttached):
            self._on_attached(fork)
        elif isinstance(report, SinkOpened):
            fork.log.debug("the server accepted the connection")
        elif isinstance(report, Streaming):
            self._on_streaming(fork)
        elif isinstance(report, LegLost):
            self._spawn(self._explain_leg_loss(fork, report.frames_in))
        else:
            self._on_ended(fork, report)

    def _on_attached(self, fork: Fork) -> None:
        self._cancel_timers(fork)
        if fork.hangup_seen:
            self._later(fork, HANGUP_GRACE_S, EndReason.HANGUP)

    def _on_streaming(self, fork: Fork) -> None:
        fork.apply(ForkEvent.FIRST_FRAME)
        self._set(fork.uniqueid, "AUDIOFORK_STATUS", "STREAMING")
        self._raise(fork, "AudioForkStarted", [])

    async def _explain_leg_loss(self, fork: Fork, frames_in: int) -> None:
        """End a fork whose leg Asterisk closed, with the reason that is true."""
        try:
            await self._ask(fork.uniqueid, "CHANNEL(uniqueid)")
            await asyncio.sleep(LEG_LOSS_GRACE_S)
            await self._ask(fork.uniqueid, "CHANNEL(uniqueid)")
            reason = EndReason.HANGUP if fork.hangup_seen else EndReason.LEG_FAILED
        except NoSuchChannel:
            never_there = not frames_in and not fork.hangup_seen
            reason = EndReason.NO_SUCH_CHANNEL if never_there else EndReason.HANGUP
        except AmiError:
            reason = EndReason.HANGUP if fork.hangup_seen else EndReason.LEG_FAILED
        detail = "Asterisk closed the leg" if reason is EndReason.LEG_FAILED else ""
        self._end(fork, reason, detail)

    def _on_ended(self, fork: Fork, report: ForkEnded) -> None:
        self._forget(fork)
        self._cancel_timers(fork)
        failed = fork.state is ForkState.ATTACHING and report.reason in _FAILURES
        fork.apply(ForkEvent.END)
        self._log_end(fork, report)
        detail = _printable(report.detail)
        self._set_end_variables(fork, report.reason.value, "FAILED" if failed else "STOPPED")
        if failed:
            self._raise_failed(fork, report.reason.value, detail)
        else:
            self._raise_stopped(fork, report.reason, detail, report.stats)
        self._set_emptiness()

    def _log_end(self, fork: Fork, report: ForkEnded) -> None:
        ordinary = report.reason not in _FAILURES
        fork.log.log(
            logging.INFO if ordinary else logging.WARNING,
            "ended: %s%s, %.1f s, frames %d in, %d sent, %d dropped",
            report.reason,
            f" ({_printable(report.detail)})" if report.detail else "",
            self._age(fork),
            report.stats.frames_in,
            report.stats.frames_sent,
            report.stats.frames_dropped,
        )

    # --- The end ---

    def _end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        """Ask for the end of a fork; the relay reports when it has come."""
        if fork.end_asked is not None or fork.state is ForkState.ENDED:
            return
        fork.end_asked = reason
        if fork.state is not ForkState.REQUESTED:
            self._send(EndFork(fork.id, reason, detail))

    async def shut_down(self) -> None:
        """Refuse new forks, end the running ones, return when Asterisk has been told of it."""
        self._refusing = "the daemon stops"
        for fork in list(self._forks.values()):
            self._end(fork, EndReason.SHUTDOWN)
        await self._empty.wait()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Give up what is still under way."""
        for fork in self._forks.values():
            self._cancel_timers(fork)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- Small helpers ---

    def _on_channel(self, uniqueid: str) -> list[Fork]:
        return list(self._by_channel.get(uniqueid, ()))

    def _set_emptiness(self) -> None:
        if not self._forks:
            self._empty.set()

    def _later(self, fork: Fork, delay_s: float, reason: EndReason, detail: str = "") -> None:
        loop = asyncio.get_running_loop()
        fork.timers.append(loop.call_later(delay_s, self._end, fork, reason, detail))

    def _cancel_timers(self, fork: Fork) -> None:
        for timer in fork.timers:
            timer.cancel()
        fork.timers.clear()

    def _forget(self, fork: Fork) -> None:
        del self._forks[fork.id]
        on_channel = self._by_channel.get(fork.uniqueid, set())
        on_channel.discard(fork)
        if not on_channel:
            self._by_channel.pop(fork.uniqueid, None)

    def _age(self, fork: Fork) -> float:
        return time.monotonic() - fork.started

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a fault of the daemon", exc_info=exc)

    # --- What Asterisk is told ---

    def _raise(self, fork: Fork, name: str, more: list[tuple[str, str]]) -> None:
        headers = [
            ("AudioForkID", fork.id),
            ("Channel", fork.channel),
            ("Uniqueid", fork.uniqueid),
            ("WsServer", fork.request.url),
            *more,
        ]
        if fork.action_id:
            headers.append(("ActionID", fork.action_id))
        self._ami.raise_event(name, headers)

    def _raise_failed(self, fork: Fork, reason: str, detail: str) -> None:
        more = [("Reason", reason)]
        if detail:
            more.append(("Detail", detail))
        self._raise(fork, "AudioForkFailed", more)

    def _raise_stopped(self, fork: Fork, reason: EndReason, detail: str, stats: ForkStats) -> None:
        more = [
            ("Reason", reason.value),
            ("Duration", f"{self._age(fork):.1f}"),
            ("FramesIn", str(stats.frames_in)),
            ("FramesSent", str(stats.frames_sent)),
            ("FramesDropped", str(stats.frames_dropped)),
            ("Reconnects", "0"),
        ]
        if detail:
            more.append(("Detail", detail))
        self._raise(fork, "AudioForkStopped", more)

    def _set_end_variables(self, fork: Fork, reason: str, status: str) -> None:
        channel = fork.uniqueid or fork.channel
        self._set(channel, "AUDIOFORK_REASON", reason)
        self._set(channel, "AUDIOFORK_STATUS", status)

    def _set(self, channel: str, name: str, value: str) -> None:
        """Set a channel variable; always before the event of the same news."""

        def on_error(exc: AmiError) -> None:
            # The channel may well be gone by now.
            if not (isinstance(exc, AmiActionFailed) and exc.message == NO_SUCH_CHANNEL):
                log.warning("%s of %s cannot be set: %s", name, channel, exc)

        headers = [("Channel", channel), ("Variable", name), ("Value", value)]
        self._ami.post("Setvar", headers, on_error)


def _printable(text: str) -> str:
    """Return what of a text may stand in an AMI header: servers and events send anything."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean[:MAX_REASON_CHARACTERS]
