"""The registry of forks: from a request to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from audiofork.config import SecurityConfig
from audiofork.control import post_process
from audiofork.control.ami import (
    Ami,
    BridgeChanged,
    ChannelHangup,
    Event,
    OriginateFailed,
    RequestReceived,
)
from audiofork.control.announcer import Announcer, Headers, harmless
from audiofork.control.channels import Channels
from audiofork.control.fork import (
    Fork,
    ForkView,
    effective_url,
    muted_sides,
    spec_of,
    view_of,
)
from audiofork.control.lifecycle import ForkEvent, ForkState
from audiofork.control.post_process_script import PostProcess, prepare
from audiofork.control.requests import MuteFork, Request, StartFork, StopFork, parse_request
from audiofork.control.tap.base import Tap
from audiofork.control.urls import check_url
from audiofork.errors import AmiActionFailed, AmiError, NoSuchChannel, RequestRefused
from audiofork.log import ForkLog, without_query
from audiofork.model import (
    EndFork,
    EndReason,
    ForkEnded,
    ForkReport,
    ForkStats,
    LegAttached,
    LegLost,
    Report,
    SendCommand,
    SetGate,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    StatsTaken,
    Streaming,
    TakeStats,
)

log = logging.getLogger(__name__)

# Asterisk closes the leg within 20 ms of a hangup; the frames of that time are still wanted. A
# target without media may keep its leg open for ever, so after this the fork ends anyway.
HANGUP_GRACE_S = 0.1
# How long after a leg's end the news of its channel's hangup may come.
LEG_LOSS_GRACE_S = 0.15
LEG_TIMEOUT_S = 6.0  # the Originate's own limit is 5 s
STATS_TIMEOUT_S = 2.0

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


class Forks:
    """All forks of the daemon.

    Owned by the daemon, which feeds it events of the AMI link and reports of the relay. It
    answers by AMI (events, channel variables) and commands the relay.
    """

    def __init__(self, ami: Ami, tap: Tap, security: SecurityConfig, send: SendCommand) -> None:
        self.security = security
        self._channels = Channels(ami)
        self._announcer = Announcer(ami)
        self._tap = tap
        self._send = send
        self._forks: dict[str, Fork] = {}
        self._by_channel: dict[str, set[Fork]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets = itertools.count(1)
        self._stats: dict[int, asyncio.Future[dict[str, ForkStats]]] = {}
        self._refusing = ""
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._forks)

    # --- From the doors ---

    async def ask(self, request: Request) -> list[str]:
        """Grant a request.

        Returns:
            The ids of the forks it concerns: for a start one, whose leg has been asked for.

        Raises:
            RequestRefused: It is not granted; the text says why.
            AmiError: Asterisk cannot be asked.
        """
        if isinstance(request, StartFork):
            return [(await self._start(request)).id]
        forks = await self._named_by(request)
        if not forks:
            raise RequestRefused("No such fork")
        for fork in forks:
            if isinstance(request, StopFork):
                fork.action_id = request.action_id or fork.action_id
                self._end(fork, EndReason.STOPPED)
            else:
                self._mute(fork, request)
        return [fork.id for fork in forks]

    async def views(self) -> list[ForkView]:
        """Return all forks, oldest first."""
        stats = await self._take_stats()
        return [view_of(fork, stats.get(fork.id, ForkStats())) for fork in self._forks.values()]

    async def _take_stats(self) -> dict[str, ForkStats]:
        ticket = next(self._tickets)
        answer: asyncio.Future[dict[str, ForkStats]] = asyncio.get_running_loop().create_future()
        self._stats[ticket] = answer
        self._send(TakeStats(ticket))
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await answer
        finally:
            del self._stats[ticket]

    # --- From Asterisk ---

    def on_event(self, event: Event) -> None:
        """Act on an event of the AMI link."""
        if isinstance(event, RequestReceived):
            self._spawn(self._answer(event.fields))
        elif isinstance(event, ChannelHangup):
            self._on_hangup(event.uniqueid)
        elif isinstance(event, BridgeChanged):
            self._on_bridge(event)
        elif isinstance(event, OriginateFailed):
            self._on_originate_failed(event)

    async def on_link_up(self) -> None:
        """Clear away what an earlier run left behind; the first thing after a login."""
        swept = await self._tap.sweep(self._forks.keys())
        if swept:
            log.warning("hung up %d legs that an earlier run left behind", swept)
        for uniqueid in list(self._by_channel):
            await self._catch_up_with_bridge(uniqueid)

    async def _catch_up_with_bridge(self, uniqueid: str) -> None:
        """Ask for what an event may have told while there was no link."""
        if any(fork.request.options.bridged_only for fork in self._on_channel(uniqueid)):
            with contextlib.suppress(NoSuchChannel):  # its forks end with their legs
                bridged = await self._channels.is_bridged(uniqueid)
                self._on_bridge(BridgeChanged(uniqueid, bridged))

    async def _answer(self, fields: dict[str, str]) -> None:
        """Grant the request of a user event, or answer it with an event."""
        try:
            await self.ask(parse_request(fields))
        except RequestRefused as exc:
            self._announcer.refused(fields, str(exc))
        except AmiError as exc:
            self._announcer.refused(fields, f"Asterisk cannot be asked: {exc}")
        except Exception:
            log.exception("a request could not be handled")
            self._announcer.refused(fields, "a fault of the daemon")

    def _on_hangup(self, uniqueid: str) -> None:
        for fork in self._on_channel(uniqueid):
            if not fork.hangup_seen:
                fork.hangup_seen = True
                self._later(fork, HANGUP_GRACE_S, EndReason.HANGUP)

    def _on_bridge(self, event: BridgeChanged) -> None:
        for fork in self._on_channel(event.uniqueid):
            if fork.request.options.bridged_only and fork.bridged is not event.entered:
                fork.bridged = event.entered
                if fork.state is not ForkState.REQUESTED:  # else it goes into the spec
                    self._send(SetGate(fork.id, event.entered))

    def _on_originate_failed(self, event: OriginateFailed) -> None:
        fork = self._forks.get(self._tap.fork_id_of(event.action_id))
        if fork is not None:
            detail = f"Asterisk could not connect the leg (reason {event.reason})"
            self._end(fork, EndReason.LEG_FAILED, detail)

    # --- Start ---

    async def _start(self, request: StartFork) -> Fork:
        self._check(request)
        fork = self._register(request)
        try:
            await self._look_up(fork)
        except BaseException:
            self._forget(fork)
            fork.apply(ForkEvent.REFUSED)
            raise
        finally:
            fork.looked_up.set()
        fork.apply(ForkEvent.RESOLVED)
        self._log_start(fork)
        self._announcer.starting(fork, request.options.id_variable)
        self._later(fork, LEG_TIMEOUT_S, EndReason.LEG_FAILED, "the leg did not connect")
        self._send(spec_of(fork))
        if fork.id in self._forks:  # else the relay could not use its TLS files
            self._spawn(self._attach(fork))
        return fork

    def _check(self, request: StartFork) -> None:
        """Refuse what is plain without asking anybody."""
        if self._refusing:
            raise RequestRefused(self._refusing)
        if len(self._forks) >= self.security.max_forks:
            raise RequestRefused(f"{self.security.max_forks} forks run already (max_forks)")
        check_url(effective_url(request), self.security.allow_urls)
        tls = request.options.tls
        if tls is not None and tls.insecure and not self.security.allow_insecure_tls:
            raise RequestRefused("Options: T(insecure) is not allowed (allow_insecure_tls)")
        if request.post_process and not self.security.allow_post_process:
            raise RequestRefused("PostProcess: not allowed (allow_post_process)")

    def _register(self, request: StartFork) -> Fork:
        fork_id = str(uuid.uuid4())
        target = request.target
        fork = Fork(
            id=fork_id,
            request=request,
            channel=target.channel,
            uniqueid=target.uniqueid,
            url=effective_url(request),
            log=ForkLog(log, fork_id, target.channel or target.uniqueid),
            started=time.monotonic(),
            action_id=request.action_id,
        )
        if request.post_process:
            fork.post_process = prepare(request.post_process)
        self._forks[fork_id] = fork
        self._empty.clear()
        return fork

    async def _look_up(self, fork: Fork) -> None:
        """Ask Asterisk for the name and uniqueid of the channel: an event may say anything."""
        fork.channel, fork.uniqueid = await self._channels.look_up(fork.request.target)
        if self._tap.is_leg(fork.uniqueid):
            raise RequestRefused("the channel is itself the leg of a fork")
        fork.log = ForkLog(log, fork.id, fork.channel)
        self._by_channel.setdefault(fork.uniqueid, set()).add(fork)
        if fork.post_process is not None:
            names = fork.post_process.names
            fork.values = await self._channels.values(fork.uniqueid, names)
        if fork.request.options.bridged_only:
            bridged = await self._channels.is_bridged(fork.uniqueid)
            if fork.bridged is None:  # else an event has said so meanwhile
                fork.bridged = bridged
        if fork.end_asked is not None:
            raise RequestRefused(f"ended before it began: {fork.end_asked}")

    def _log_start(self, fork: Fork) -> None:
        options = fork.request.options
        fork.log.info("started, %s to %s", options.direction, without_query(fork.url))
        if options.ignored:
            fork.log.info("option %s is accepted and means nothing", options.ignored)
        if options.tls is not None and options.tls.insecure:
            fork.log.warning("the server's certificate is not checked: T(insecure)")

    async def _attach(self, fork: Fork) -> None:
        options = fork.request.options
        try:
            await self._tap.start(
                fork.id, fork.uniqueid, options.direction, speaks=options.beeps.any
            )
        except AmiActionFailed as exc:
            self._end(fork, EndReason.LEG_FAILED, str(exc))
        except AmiError as exc:
            # Asterisk may have heard it all the same: the leg comes in time or it does not.
            fork.log.warning("asked for a leg, but: %s", exc)

    # --- Stop and mute ---

    async def _named_by(self, request: StopFork | MuteFork) -> list[Fork]:
        if request.fork_id:
            fork = self._forks.get(request.fork_id)
            if fork is not None:
                await fork.looked_up.wait()
            return [fork] if fork is not None and fork.id in self._forks else []
        uniqueid = request.target.uniqueid
        if not uniqueid:
            _, uniqueid = await self._channels.look_up(request.target)
        # A start that came just before may still be asking what its channel is.
        await asyncio.gather(*(fork.looked_up.wait() for fork in self._forks.values()))
        return self._on_channel(uniqueid)

    def _mute(self, fork: Fork, request: MuteFork) -> None:
        if request.mute_in is not None:
            fork.mute_in = request.mute_in
        if request.mute_out is not None:
            fork.mute_out = request.mute_out
        fork.log.info("muted: %s", muted_sides(fork) or "nothing")
        self._send(SetMute(fork.id, fork.mute_in, fork.mute_out))

    # --- From the relay ---

    def on_report(self, report: Report) -> None:
        """Act on a report of the relay."""
        if isinstance(report, StatsTaken):
            answer = self._stats.get(report.ticket)
            if answer is not None and not answer.done():
                answer.set_result(report.stats)
        elif (fork := self._forks.get(report.fork_id)) is None:
            log.error("report of a fork that is not known: %r", report)
        else:
            self._on_fork_report(fork, report)

    def _on_fork_report(self, fork: Fork, report: ForkReport) -> None:
        if isinstance(report, LegAttached):
            self._on_attached(fork)
        elif isinstance(report, SinkOpened):
            fork.log.debug("the server accepted the connection")
        elif isinstance(report, Streaming):
            fork.apply(ForkEvent.FIRST_FRAME)
            self._announcer.started(fork)
        elif isinstance(report, SinkRetrying):
            self._on_retrying(fork, report)
        elif isinstance(report, SinkResumed):
            self._on_resumed(fork, report)
        elif isinstance(report, SinkMessage):
            self._announcer.message(fork, report.text)
        elif isinstance(report, LegLost):
            self._spawn(self._explain_leg_loss(fork, report.frames_in))
        else:
            self._on_ended(fork, report)

    def _on_attached(self, fork: Fork) -> None:
        self._cancel_timers(fork)
        if fork.hangup_seen:
            self._later(fork, HANGUP_GRACE_S, EndReason.HANGUP)

    def _on_retrying(self, fork: Fork, report: SinkRetrying) -> None:
        was_up = fork.state is not ForkState.ATTACHING
        fork.apply(ForkEvent.SINK_LOST)
        fork.log.warning("attempt %d follows: %s", report.attempt, harmless(report.detail))
        self._announcer.reconnecting(fork, report.attempt, report.detail, was_up=was_up)

    def _on_resumed(self, fork: Fork, report: SinkResumed) -> None:
        if fork.state is ForkState.RECONNECTING:
            fork.apply(ForkEvent.SINK_BACK)
            fork.log.info("the server is back, %d frames dropped", report.frames_dropped)
            self._announcer.resumed(fork, report.frames_dropped)

    async def _explain_leg_loss(self, fork: Fork, frames_in: int) -> None:
        """End a fork whose leg Asterisk closed, with the reason that is true."""
        try:
            await self._channels.check_alive(fork.uniqueid)
            await asyncio.sleep(LEG_LOSS_GRACE_S)
            await self._channels.check_alive(fork.uniqueid)
            reason = EndReason.HANGUP if fork.hangup_seen else EndReason.LEG_FAILED
        except NoSuchChannel:
            never_there = not frames_in and not fork.hangup_seen
            reason = EndReason.NO_SUCH_CHANNEL if never_there else EndReason.HANGUP
        except AmiError:
            reason = EndReason.HANGUP if fork.hangup_seen else EndReason.LEG_FAILED
        detail = "Asterisk closed the leg" if reason is EndReason.LEG_FAILED else ""
        self._end(fork, reason, detail)

    def _on_ended(self, fork: Fork, report: ForkEnded) -> None:
        failed = fork.state is ForkState.ATTACHING and report.reason in _FAILURES
        fork.apply(ForkEvent.END)
        self._log_end(fork, report)
        self._announcer.ended(fork, report.reason, failed=failed)
        more = [("Detail", harmless(report.detail))] if report.detail else []
        if failed:
            tell = functools.partial(self._announcer.failed, fork, report.reason)
        else:
            tell = functools.partial(
                self._announcer.stopped, fork, report.reason, fork.age_s, report.stats
            )
        self._forget(fork)
        if fork.post_process is not None:
            self._spawn(self._post_process(fork, fork.post_process, tell, more))
        else:
            tell(more)

    async def _post_process(
        self, fork: Fork, command: PostProcess, tell: Callable[[Headers], None], more: Headers
    ) -> None:
        """Run the post-process command, then tell of the end with its exit status."""
        status = "interrupted"  # by the end of the daemon
        try:
            status = str(await post_process.run(command, fork.values, fork.log))
        except OSError as exc:
            fork.log.error("the post-process command cannot be run: %s", exc)
            status = "not run"
        finally:
            tell([*more, ("PostProcessStatus", status)])

    def _log_end(self, fork: Fork, report: ForkEnded) -> None:
        ordinary = report.reason not in _FAILURES
        fork.log.log(
            logging.INFO if ordinary else logging.WARNING,
            "ended: %s%s, %.1f s, frames %d in, %d sent, %d dropped, %d reconnects",
            report.reason,
            f" ({harmless(report.detail)})" if report.detail else "",
            fork.age_s,
            report.stats.frames_in,
            report.stats.frames_sent,
            report.stats.frames_dropped,
            report.stats.reconnects,
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
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `_task_done` logs them

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

    def _later(self, fork: Fork, delay_s: float, reason: EndReason, detail: str = "") -> None:
        loop = asyncio.get_running_loop()
        fork.timers.append(loop.call_later(delay_s, self._end, fork, reason, detail))

    def _cancel_timers(self, fork: Fork) -> None:
        for timer in fork.timers:
            timer.cancel()
        fork.timers.clear()

    def _forget(self, fork: Fork) -> None:
        self._cancel_timers(fork)
        del self._forks[fork.id]
        on_channel = self._by_channel.get(fork.uniqueid, set())
        on_channel.discard(fork)
        if not on_channel:
            self._by_channel.pop(fork.uniqueid, None)
        if not self._forks:
            self._empty.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a fault of the daemon", exc_info=exc)
