"""The registry of forks: from a request to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from audiofork.asterisk.ami import (
    Ami,
    BridgeChanged,
    ChannelHangup,
    Event,
    HoldChanged,
    OriginateFailed,
    RequestReceived,
)
from audiofork.asterisk.ami_events import Announcer, Headers, harmless
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import fork_id_of
from audiofork.asterisk.taps.choice import Taps
from audiofork.config import SecurityConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    NoSuchChannel,
    RequestRefused,
)
from audiofork.forks.admission import Admission
from audiofork.forks.fork import (
    Fork,
    ForkView,
    Leg,
    effective_url,
    entry_of,
    muted_sides,
    restored,
    spec_of,
    view_of,
    why_not_muted,
    wish_of,
)
from audiofork.forks.holds import Holds
from audiofork.forks.journal import Entry, Journal
from audiofork.forks.legs import Legs
from audiofork.forks.lifecycle import ForkEvent, ForkState
from audiofork.forks.post_process import runner as post_process
from audiofork.forks.post_process.template import PostProcess, prepare
from audiofork.forks.requests import MuteFork, Request, StartFork, StopFork, parse_request
from audiofork.link.messages import (
    EndFork,
    EndReason,
    ForkEnded,
    ForkReport,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    RelayAway,
    RelayLost,
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
from audiofork.log import ForkLog, without_query

log = logging.getLogger(__name__)

# Asterisk closes the leg within 20 ms of a hangup; the frames of that time are still wanted. A
# target without media may keep its leg open for ever, so after this the fork ends anyway.
HANGUP_GRACE_S = 0.1
# A conference takes up to two seconds to follow the rates of those who have entered it.
WIDEBAND_SETTLES_S = 5.0
STATS_TIMEOUT_S = 2.0

RESTARTED = "Asterisk was restarted"
RELAY_DIED = "a relay process died"

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

    Attributes:
        left_behind: Forks of an earlier run, to be taken up when Asterisk can be asked.
        waits_for_hold: Whether the legs of a fork in a call on hold wait for its end.
    """

    def __init__(
        self,
        ami: Ami,
        taps: Taps,
        security: SecurityConfig,
        send: SendCommand,
        journal: Journal | None = None,
        *,
        waits_for_hold: bool = False,
    ) -> None:
        self.waits_for_hold = waits_for_hold
        self._admission = Admission(security)
        self.left_behind: list[Entry] = []
        self._ami = ami
        self._journal = journal or Journal(None)
        self._channels = channels = Channels(ami)
        self._announcer = Announcer(ami)
        self._taps = taps
        self._send = send
        self._legs = Legs(channels, send, self, self._spawn)
        self._holds = Holds(channels)
        self._wideband_timer: asyncio.TimerHandle | None = None
        self._entered_since = False  # since the timer was set
        self._forks: dict[str, Fork] = {}
        self._by_channel: dict[str, set[Fork]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets = itertools.count(1)
        self._stats: dict[int, asyncio.Future[dict[str, ForkStats]]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def security(self) -> SecurityConfig:
        """What requests may ask for; may be set anew."""
        return self._admission.security

    @security.setter
    def security(self, security: SecurityConfig) -> None:
        self._admission.configure(security)

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
        if isinstance(request, MuteFork):
            return await self._mute_all(forks, request)
        for fork in forks:
            fork.action_id = request.action_id or fork.action_id
            self.end(fork, EndReason.STOPPED)
        return [fork.id for fork in forks]

    async def views(self) -> list[ForkView]:
        """Return all forks, oldest first."""
        stats = await self._take_stats()
        return [view_of(fork, stats.get(fork.id, ForkStats())) for fork in self._forks.values()]

    @property
    def legs_left(self) -> int:
        """How many legs of ended forks Asterisk still has, since their channels have no media."""
        return self._legs.left_behind

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
            self._on_hangup(event.uniqueid, is_gone=event.is_gone)
        elif isinstance(event, BridgeChanged):
            self._on_bridge(event)
        elif isinstance(event, HoldChanged):
            self._holds.on_changed(event)
        elif isinstance(event, OriginateFailed):
            self._on_originate_failed(event)

    async def on_link_up(self) -> None:
        """Reconcile the registry with Asterisk; the first thing after a login."""
        self._holds.forget_all()
        self._end_forks_of_another_asterisk()
        known = list(self._by_channel)  # a younger channel may be missing in the list
        present = await self._channels.present()
        for uniqueid in known:
            if uniqueid not in present:
                self._on_hangup(uniqueid)
        await self._sweep(present)
        await self._take_up(present)
        for uniqueid in list(self._by_channel):
            await self._catch_up_with_bridge(uniqueid)
        if self._taps.narrowband:
            await self._end_if_wide(self._forks_of_pairs())
        self._legs.on_synced()

    def _end_forks_of_another_asterisk(self) -> None:
        for fork in list(self._forks.values()):
            if self._is_of_another_asterisk(fork):
                self.end(fork, EndReason.LEG_FAILED, RESTARTED)

    def _is_of_another_asterisk(self, fork: Fork) -> bool:
        runs = {fork.asterisk_started, self._ami.asterisk_started}
        return len(runs) == 2 and "" not in runs

    async def _sweep(self, present: Mapping[str, str]) -> None:
        self._legs.keep_leaving(present)
        keep = {leg.id for fork in self._forks.values() for leg in fork.legs.values()}
        keep.update(self._legs.leaving)
        swept = self._taps.left_behind(present, keep)
        try:
            for uniqueid in swept:
                with contextlib.suppress(AmiActionFailed):  # it may be gone by now
                    # Not by its name: a fork's earlier leg has the same.
                    await self._ami.action("Hangup", [("Channel", uniqueid)])
        except AmiError as exc:
            log.warning("legs that an earlier run left behind may remain: %s", exc)
            return
        if swept:
            log.warning("hung up %d legs that an earlier run left behind", len(swept))

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

    def _on_hangup(self, uniqueid: str, *, is_gone: bool = True) -> None:
        if (own := self._forks.get(fork_id_of(uniqueid))) is not None:
            self._legs.on_hangup(own, uniqueid, is_gone=is_gone)
        if is_gone:
            self._legs.on_gone(uniqueid)
            self._holds.forget(uniqueid)
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
        self._holds.look_again()
        if event.entered and self._taps.narrowband:
            self._spawn(self._look_for_wideband(event.uniqueid))
            self._look_for_wideband_later()

    def _look_for_wideband_later(self) -> None:
        """Look at all forks of pairs once more: a conference takes its time to change its rate.

        Nor does Asterisk name more than eleven members of a bridge.
        """
        if self._wideband_timer is None:
            loop = asyncio.get_running_loop()
            self._wideband_timer = loop.call_later(WIDEBAND_SETTLES_S, self._on_wideband_timer)
        else:
            self._entered_since = True

    def _on_wideband_timer(self) -> None:
        self._wideband_timer = None
        self._spawn(self._end_if_wide(self._forks_of_pairs()))
        if self._entered_since:
            self._entered_since = False
            self._look_for_wideband_later()

    def _forks_of_pairs(self) -> list[Fork]:
        return [fork for fork in self._forks.values() if LegPart.PAIRS in fork.legs]

    async def _look_for_wideband(self, uniqueid: str) -> None:
        """End the forks that a channel with wideband audio makes wrong by entering their bridge."""
        pairs = self._forks_of_pairs()
        peers: set[str] = set()
        with contextlib.suppress(NoSuchChannel, AmiError):  # it has gone, or the link has
            peers = await self._channels.bridge_peers(uniqueid) if pairs else set()
        await self._end_if_wide(
            fork for fork in pairs if fork.uniqueid == uniqueid or fork.channel in peers
        )

    async def _end_if_wide(self, forks: Iterable[Fork]) -> None:
        """End those of some forks of pairs whose calls have wideband audio."""
        for fork in forks:
            with contextlib.suppress(NoSuchChannel, AmiError):
                if wide := await self._taps.wide(fork.uniqueid):
                    why = self._taps.why_wide(wish_of(fork), wide)
                    self.end(fork, EndReason.LEG_FAILED, why)

    def _on_originate_failed(self, event: OriginateFailed) -> None:
        fork = self._forks.get(fork_id_of(event.action_id))
        if fork is not None:
            detail = f"Asterisk could not connect the leg (reason {event.reason})"
            self._legs.on_failure(fork, event.action_id, detail)

    # --- Start ---

    async def _start(self, request: StartFork) -> Fork:
        self._check(request)
        due = self._admission.book()
        fork = self._register(request)
        try:
            await self._look_up(fork)
            granted = [one for one in self._on_channel(fork.uniqueid) if one.looked_up.is_set()]
            self._admission.check_channel(len(granted))
            fork.looked_up.set()  # a stop need not wait until the start is due
            await self._admission.wait(due)
            await self._choose(fork)
            await self._legs.wait_for_room(fork)
            if fork.end_asked is not None:
                raise RequestRefused(f"ended before it began: {fork.end_asked}")
        except BaseException:
            self._forget(fork)
            fork.apply(ForkEvent.REFUSED)
            raise
        finally:
            fork.looked_up.set()
            fork.chosen.set()
        fork.apply(ForkEvent.RESOLVED)
        self._log_start(fork, "started")
        self._launch(fork)
        return fork

    async def _choose(self, fork: Fork) -> None:
        """Settle where the legs come from."""
        rates = fork.request.options.sample_rates
        fork.choice = await self._taps.choose(fork.uniqueid, wish_of(fork), rates)
        self._legs.prepare(fork)
        fork.chosen.set()

    def _launch(self, fork: Fork) -> None:
        """Let the relay get ready, and ask for the leg."""
        self._journal.put(entry_of(fork))
        if not fork.taken_up:  # else the variables are there
            self._announcer.starting(fork, fork.request.options.id_variable)
        self._order(fork, anew=fork.taken_up)

    def _order(self, fork: Fork, *, anew: bool) -> None:
        """Order a fork from the relay, and its leg from Asterisk."""
        self._send(spec_of(fork))
        if fork.id in self._forks:  # else the relay could not use its TLS files
            if fork.mute_in or fork.mute_out:
                self._send(SetMute(fork.id, fork.mute_in, fork.mute_out))
            self._legs.order(fork, anew=anew)

    async def is_held(self, fork: Fork) -> bool:
        """Tell whether a fork's legs have to wait, since its call is on hold."""
        return self.waits_for_hold and await self._holds.concern(fork.uniqueid)

    async def wait_for_hold(self, fork: Fork) -> None:
        """Return when they need not wait (any more)."""
        fork.log.info("on hold: its legs are asked for when that is over ([asterisk] on_hold)")
        await self._holds.wait_over(fork.uniqueid)

    def _check(self, request: StartFork) -> None:
        """Refuse what is plain without asking anybody."""
        self._admission.check(request, self._forks.values())

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
            started_at=time.time(),
        )
        if request.post_process:
            fork.post_process = prepare(request.post_process)
        self._forks[fork_id] = fork
        self._empty.clear()
        return fork

    async def _look_up(self, fork: Fork) -> None:
        """Ask Asterisk for the name and uniqueid of the channel: an event may say anything."""
        fork.channel, fork.uniqueid = await self._channels.look_up(fork.request.target)
        if self._taps.is_leg(fork.channel, fork.uniqueid):
            raise RequestRefused("the channel is itself the leg of a fork")
        fork.log = ForkLog(log, fork.id, fork.channel)
        fork.asterisk_started = self._ami.asterisk_started
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

    def _log_start(self, fork: Fork, what: str) -> None:
        options = fork.request.options
        fork.log.info(
            "%s, %s by %s at %d Hz to %s",
            *(what, options.direction, fork.tap.name, fork.sample_rate),
            without_query(fork.url),
        )
        if fork.choice is not None and fork.choice.note:
            fork.log.warning("%s", fork.choice.note)
        if options.ignored:
            fork.log.info("option %s is accepted and means nothing", options.ignored)
        if options.tls is not None and options.tls.insecure:
            fork.log.warning("the server's certificate is not checked: T(insecure)")

    # --- Forks of an earlier run ---

    async def _take_up(self, present: Mapping[str, str]) -> None:
        """Start the forks of an earlier run anew, as far as their channels live."""
        count, taken_up = len(self.left_behind), 0
        # What is not done when the link is lost waits for the next.
        while self.left_behind and not self._admission.refusing:
            taken_up += await self._take_up_one(self.left_behind[0], present)
            del self.left_behind[0]
        if count and not self._admission.refusing:
            log.info("of %d forks that an earlier run left, %d live", count, taken_up)

    async def _take_up_one(self, entry: Entry, present: Mapping[str, str]) -> bool:
        fork, refused = restored(entry, log)
        if self._is_of_another_asterisk(fork):
            self._lay_to_rest(fork, EndReason.LEG_FAILED, f"{RESTARTED} while the daemon was away")
            return False
        try:
            if fork.uniqueid not in present:
                raise NoSuchChannel
            if refused:
                raise RequestRefused(refused)
            await self._choose(fork)
            if self._admission.refusing:
                return False  # it stays in the journal for the next start
            self._check(fork.request)
            self._admission.check_channel(len(self._on_channel(fork.uniqueid)))
        except NoSuchChannel:
            detail = "the call ended while the daemon was away; its frames are not known"
            self._lay_to_rest(fork, EndReason.HANGUP, detail)
            return False
        except RequestRefused as exc:
            self._lay_to_rest(fork, EndReason.STOPPED, f"not taken up: {exc}")
            return False
        fork.channel = present[fork.uniqueid]
        self._forks[fork.id] = fork
        self._empty.clear()
        self._by_channel.setdefault(fork.uniqueid, set()).add(fork)
        fork.apply(ForkEvent.RESOLVED)
        self._log_start(fork, "taken up")
        self._launch(fork)
        return True

    def _lay_to_rest(self, fork: Fork, reason: EndReason, detail: str) -> None:
        """End a fork of an earlier run that cannot be taken up."""
        fork.log.warning("ended: %s (%s)", reason, harmless(detail))
        self._journal.remove(fork.id)
        self._announcer.ended(fork, reason, failed=False)
        if not self.security.allow_post_process:
            fork.post_process = None
        self._tell_end(
            fork,
            functools.partial(self._announcer.stopped, fork, reason, fork.age_s, ForkStats()),
            detail,
        )

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

    async def _mute_all(self, forks: Iterable[Fork], request: MuteFork) -> list[str]:
        """Mute all of them, or none if one cannot be: who asked believes what is acknowledged.

        Returns:
            The ids of those that have not ended meanwhile.

        Raises:
            RequestRefused: One cannot be muted like that, or all have ended.
        """
        await asyncio.gather(*(fork.chosen.wait() for fork in forks))
        forks = [fork for fork in forks if fork.state is not ForkState.ENDED]
        if not forks:
            raise RequestRefused("No such fork")
        for fork in forks:
            if why := why_not_muted(fork, *_muted_by(request, fork)):
                raise RequestRefused(f"AudioForkMute: {why}")
        for fork in forks:
            self._mute(fork, *_muted_by(request, fork))
        return [fork.id for fork in forks]

    def _mute(self, fork: Fork, mute_in: bool, mute_out: bool) -> None:
        fork.mute_in, fork.mute_out = mute_in, mute_out
        fork.log.info("muted: %s", muted_sides(fork) or "nothing")
        if fork.state is not ForkState.REQUESTED:  # else it is sent after the spec
            self._send(SetMute(fork.id, fork.mute_in, fork.mute_out))
            self._journal.put(entry_of(fork))

    # --- From the relay ---

    def on_report(self, report: Report) -> None:
        """Act on a report of the relay."""
        if isinstance(report, StatsTaken):
            answer = self._stats.get(report.ticket)
            if answer is not None and not answer.done():
                answer.set_result(report.stats)
        elif isinstance(report, RelayAway):
            self._on_relay_away(report)
        elif isinstance(report, RelayLost):
            self._on_relay_lost(report)
        elif (fork := self._forks.get(report.fork_id)) is None:
            log.error("report of a fork that is not known: %r", report)
        else:
            self._on_fork_report(fork, report)

    def _on_fork_report(self, fork: Fork, report: ForkReport) -> None:
        if isinstance(report, LegAttached):
            self._legs.on_attached(fork, report.part)
        elif isinstance(report, SinkOpened):
            self._on_opened(fork)
        elif isinstance(report, Streaming):
            self._on_streaming(fork)
        elif isinstance(report, SinkRetrying):
            self._on_retrying(fork, report)
        elif isinstance(report, SinkResumed):
            self._on_resumed(fork, report)
        elif isinstance(report, SinkMessage):
            self._announcer.message(fork, report.text)
        elif isinstance(report, LegLost):
            self._legs.on_lost(fork, report)
        else:
            self._on_ended(fork, report)

    def _on_opened(self, fork: Fork) -> None:
        fork.log.debug("the server accepted the connection")
        # Of a fork whose audio flowed it is the first connection of another relay process.
        if "server" in fork.missing and self._back(fork, "server") and not fork.missing:
            self._announcer.resumed(fork, 0)

    def _on_streaming(self, fork: Fork) -> None:
        if fork.relays_lost and fork.state is not ForkState.ATTACHING:
            return  # it is not the first frame but for the relay process
        fork.missing.discard("server")
        fork.apply(ForkEvent.FIRST_FRAME)
        self._announcer.started(fork)
        if fork.missing:
            fork.apply(ForkEvent.LOST)

    def _lost(self, fork: Fork, part: str) -> bool:
        """Note that the server or the leg is away; return whether audio had flowed."""
        was_up = fork.state is not ForkState.ATTACHING
        fork.missing.add(part)
        fork.apply(ForkEvent.LOST)
        return was_up

    def _back(self, fork: Fork, part: str) -> bool:
        """Note that it is back; return whether that is news, since audio had flowed."""
        fork.missing.discard(part)
        was_up = fork.state is ForkState.RECONNECTING
        if was_up and not fork.missing:
            fork.apply(ForkEvent.BACK)
        return was_up

    def _on_retrying(self, fork: Fork, report: SinkRetrying) -> None:
        was_up = self._lost(fork, "server")
        fork.log.warning("attempt %d follows: %s", report.attempt, harmless(report.detail))
        self._announcer.reconnecting(fork, report.attempt, report.detail, was_up=was_up)

    def _on_resumed(self, fork: Fork, report: SinkResumed) -> None:
        if self._back(fork, "server"):
            fork.log.info("the server is back, %d frames dropped", report.frames_dropped)
            is_up = not fork.missing
            self._announcer.resumed(fork, report.frames_dropped, is_up=is_up)

    def on_leg_away(self, fork: Fork, part: LegPart, attempt: int, why: str) -> None:
        """Hear that a leg was lost, and that another is asked for."""
        was_up = self._lost(fork, part)
        self._announcer.reconnecting(fork, attempt, why, was_up=was_up)

    def on_leg_back(self, fork: Fork, leg: Leg, gap_s: float) -> None:
        """Hear that it is there, and for how long there was none."""
        gap_ms = round(gap_s * 1000)
        fork.log.info("%s is back after %d ms", leg, gap_ms)
        if self._back(fork, leg.part):
            more = [("GapMs", str(gap_ms))]
            self._announcer.resumed(fork, 0, more, is_up=not fork.missing)

    # --- A relay process that was lost ---

    def _on_relay_away(self, report: RelayAway) -> None:
        for fork_id in report.fork_ids:
            if fork_id in self._forks:
                self._forks[fork_id].relay_away = True

    def _on_relay_lost(self, report: RelayLost) -> None:
        """Order its forks anew. Their old legs end as soon as they have something to send."""
        lost_at = asyncio.get_running_loop().time() - report.away_s
        for fork_id in report.fork_ids:
            fork = self._forks.get(fork_id)
            if fork is not None:
                fork.relay_away = False
                fork.relays_lost += 1
                self._replace_relay(fork, lost_at)

    def _replace_relay(self, fork: Fork, lost_at: float) -> None:
        # Not every version ends a leg with its connection; until then it may take a core.
        self._legs.hang_up(fork)
        ending = fork.end_asked or (EndReason.HANGUP if fork.hangup_seen else None)
        if ending is not None:
            self._on_ended(fork, ForkEnded(fork.id, ending, RELAY_DIED, ForkStats()))
            return
        in_vain = self._legs.lose_all(fork, lost_at, RELAY_DIED)
        if in_vain:
            self._on_ended(fork, ForkEnded(fork.id, EndReason.LEG_FAILED, in_vain, ForkStats()))
            return
        fork.missing.add("server")  # another process has yet to connect to it
        self._order(fork, anew=True)

    # --- Ended ---

    def _on_ended(self, fork: Fork, report: ForkEnded) -> None:
        if fork.kept and report.reason is EndReason.SHUTDOWN:
            fork.apply(ForkEvent.END)
            fork.log.info("left for the next start after %.1f s", fork.age_s)
            self._forget(fork)
            return
        self._journal.remove(fork.id)
        self._legs.on_fork_ended(fork)
        failed = fork.state is ForkState.ATTACHING and report.reason in _FAILURES
        fork.apply(ForkEvent.END)
        self._log_end(fork, report)
        self._announcer.ended(fork, report.reason, failed=failed)
        if failed:
            tell = functools.partial(self._announcer.failed, fork, report.reason)
        else:
            tell = functools.partial(
                self._announcer.stopped, fork, report.reason, fork.age_s, report.stats
            )
        self._forget(fork)
        self._tell_end(fork, tell, report.detail)

    def _tell_end(self, fork: Fork, tell: Callable[[Headers], None], detail: str) -> None:
        """Tell of an end, once the post-process command has run."""
        more = [("Detail", harmless(detail))] if detail else []
        if fork.relays_lost:
            more.append(("RelaysLost", str(fork.relays_lost)))
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

    def end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        """Ask for the end of a fork; the relay reports when it has come."""
        if fork.end_asked is not None or fork.state is ForkState.ENDED:
            return
        fork.end_asked = reason
        if fork.state is not ForkState.REQUESTED:
            self._send(EndFork(fork.id, reason, detail))

    async def shut_down(self, *, keep: bool = False) -> None:
        """Refuse new forks, end the running ones, return when Asterisk has been told of it.

        Args:
            keep: Leave them in the journal, so that the next start takes them up.
        """
        self._admission.refuse_all("the daemon stops")
        if keep and not self._journal.works:
            log.warning("the forks end: they cannot be kept without a journal that works")
        elif keep:
            self._keep(self._forks.values())
        for fork in list(self._forks.values()):
            if fork.end_asked is None:
                self.end(fork, EndReason.SHUTDOWN)
            else:  # it may be delivering what waits, for which there is less time now
                self._send(EndFork(fork.id, EndReason.SHUTDOWN))
        await self._empty.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `_task_done` logs them

    def _keep(self, forks: Iterable[Fork]) -> None:
        for fork in forks:
            ending = fork.hangup_seen or fork.end_asked is not None
            if fork.state is not ForkState.REQUESTED and not ending:
                fork.kept = True
                self._announcer.reconnecting(fork, 1, "the daemon is restarted", was_up=True)

    async def close(self) -> None:
        """Give up what is still under way."""
        if self._wideband_timer is not None:
            self._wideband_timer.cancel()
        for fork in self._forks.values():
            self._cancel_timers(fork)
            self._legs.forget(fork)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- Small helpers ---

    def _on_channel(self, uniqueid: str) -> list[Fork]:
        return list(self._by_channel.get(uniqueid, ()))

    def _later(self, fork: Fork, delay_s: float, reason: EndReason, detail: str = "") -> None:
        loop = asyncio.get_running_loop()
        fork.timers.append(loop.call_later(delay_s, self.end, fork, reason, detail))

    def _cancel_timers(self, fork: Fork) -> None:
        for timer in fork.timers:
            timer.cancel()
        fork.timers.clear()

    def _forget(self, fork: Fork) -> None:
        self._cancel_timers(fork)
        self._legs.forget(fork)
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


def _muted_by(request: MuteFork, fork: Fork) -> tuple[bool, bool]:
    """Return whether a fork's in and out will be muted after a request."""
    return (
        fork.mute_in if request.mute_in is None else request.mute_in,
        fork.mute_out if request.mute_out is None else request.mute_out,
    )
