"""The registry of forks: passes requests, events and reports to the parts that handle them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import replace

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import (
    BridgeChanged,
    ChannelHangup,
    Event,
    ForgedMessage,
    HoldChanged,
    KeyPressed,
    OriginateFailed,
)
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import fork_id_of
from audiofork.asterisk.taps.choice import Taps
from audiofork.config import SecurityConfig, WebSocketConfig
from audiofork.errors import AmiError, Refusal, RequestRefused
from audiofork.forks.admission import Admission
from audiofork.forks.bridges import Bridges
from audiofork.forks.ending import Ending
from audiofork.forks.events import (
    Attack,
    AttackKind,
    Emit,
    MessageReceived,
    Reconnecting,
    Refused,
    Started,
)
from audiofork.forks.following import StartNews, follow
from audiofork.forks.fork import Fork, restored
from audiofork.forks.holds import Holds
from audiofork.forks.journal import Entry, FileJournal, Journal
from audiofork.forks.keys import Keys
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.legs import Legs
from audiofork.forks.life_log import log_streaming
from audiofork.forks.lifecycle import Away, ForkState
from audiofork.forks.look_ups import LookUps
from audiofork.forks.lost_relays import LostRelays
from audiofork.forks.muting import Muting
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.profiles import Profiles
from audiofork.forks.recovery import Recovery
from audiofork.forks.relocation import Relocation
from audiofork.forks.requests import MuteFork, Request, StartFork, StopFork
from audiofork.forks.server_commands import ServerCommands
from audiofork.forks.starting import Starting
from audiofork.forks.statistics import Statistics
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Tasks
from audiofork.forks.view import ForkView, view_of
from audiofork.forks.waiting_calls import WaitingCalls, end_of
from audiofork.link.messages import (
    CommandAsked,
    Direction,
    EndReason,
    ForkEnded,
    ForkReport,
    ForksReport,
    ForkStats,
    HeldFork,
    LegAttached,
    LegLost,
    RelaysFound,
    RelaysReport,
    SendCommand,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    StatsTaken,
    StrangersRefused,
    Streaming,
    TakenOver,
)
from audiofork.link.relay import HostOf, UntilExpected, expected_at_once, this_host
from audiofork.text import harmless, printable

log = logging.getLogger(__name__)

VIEWS_AT_ONCE = 25  # in one turn of the event loop: about half a millisecond


class Forks:
    """All forks of the daemon.

    Owned by the daemon, which passes on the events of the AMI connection and the reports of the
    relay. It requests legs from Asterisk, sends commands to the relay, and emits events.

    Args:
        ami: The connection to Asterisk.
        taps: Chooses the tap of each fork.
        security: The rules for requests.
        send: Sends a command to the relay.
        emit: Called with each event.
        journal: Keeps the running forks on disk; None to keep nothing.
        commands: The named post-process commands; None for none. A shell command needs only the
            permission of `security`.
        profiles: The servers that requests may name; None for none.
        waits_for_hold: Whether the legs of a fork in a call on hold wait for the end of the hold.
        playout_buffer_s: Seconds of a server's audio that may wait to be played.
        asks_callers: Whether somebody wants to know who calls; else Asterisk is not asked.
        held: Returns the forks that relay processes go on with since an earlier run; None: that is
            not known yet, and a `RelaysFound` follows.
        outlives_daemon: Whether relay processes go on with forks that are kept.
        until_expected: Returns when the relay expects the legs of a fork.
        host_of: Returns the name of the relay host that a fork is on.
    """

    def __init__(
        self,
        ami: Ami,
        taps: Taps,
        security: SecurityConfig,
        send: SendCommand,
        emit: Emit,
        journal: Journal | None = None,
        *,
        commands: Commands | None = None,
        profiles: Profiles | None = None,
        waits_for_hold: bool = False,
        playout_buffer_s: float = WebSocketConfig.playout_buffer,
        asks_callers: bool = False,
        held: Callable[[], Mapping[str, HeldFork] | None] = dict,
        outlives_daemon: bool = False,
        until_expected: UntilExpected = expected_at_once,
        host_of: HostOf = this_host,
    ) -> None:
        journal = journal or FileJournal(None)
        commands = commands or Commands({})
        profiles = profiles or Profiles({})
        self._emit = emit
        tasks = Tasks()
        self._table = table = ForkTable()
        admission = Admission(security, playout_buffer_s)
        channels = Channels(ami)
        self._look_ups = look_ups = LookUps(channels, asks_callers=asks_callers)
        self._holds = Holds(channels, waits=waits_for_hold)
        leaving = LeavingLegs(channels, tasks.spawn)
        self._statistics = Statistics(send, host_of)
        self._muting = Muting(journal, send, emit)
        self._keys = Keys(table, send, emit)
        self._ending = ending = Ending(
            *(table, leaving, journal, send, emit, tasks), relay_goes_on=outlives_daemon
        )
        self._server_commands = ServerCommands(ami, channels, emit, ending.end, tasks.spawn)
        self._bridges = Bridges(channels, taps, table, send, ending.end, tasks.spawn)
        self._legs = legs = Legs(
            *(channels, self._holds, leaving, send, emit, ending.end, tasks.spawn, until_expected)
        )
        self._starting = starting = Starting(
            *(ami, taps, channels, look_ups, table, admission),
            *(leaving, legs, ending, journal, send, emit),
            *(commands, profiles),
        )
        relocation = Relocation(
            *(table, admission, channels, leaving, send, until_expected, tasks.spawn)
        )
        self._lost_relays = LostRelays(
            *(table, admission, legs, starting, ending, relocation),
            WaitingCalls(channels, ending.end, tasks.spawn),
        )
        self._recovery = Recovery(
            *(ami, taps, channels, table, admission, leaving, legs, starting, ending),
            *(lambda entry: restored(entry, commands, profiles), held, send),
        )

    @property
    def security(self) -> SecurityConfig:
        """The rules for requests; setting them applies to later requests."""
        return self._starting.admission.security

    @security.setter
    def security(self, security: SecurityConfig) -> None:
        self._starting.admission.configure(security)

    def set_playout_buffer(self, seconds: float) -> None:
        """Let so much of a server's audio wait to be played, in later forks."""
        self._starting.admission.playout_buffer_s = seconds

    def __len__(self) -> int:
        return len(self._table)

    # --- From the doors ---

    async def ask(self, request: Request) -> list[str]:
        """Execute a request.

        Returns:
            The ids of the forks it concerns: for a start, the new one, whose legs were requested.

        Raises:
            RequestRefused: It is not granted; the text says why.
            AmiError: Asterisk cannot be asked.
        """
        try:
            return await self._grant(request)
        except (RequestRefused, AmiError) as exc:
            reason = exc.reason if isinstance(exc, RequestRefused) else Refusal.ASTERISK
            self._emit(Refused(request, str(exc), reason))
            raise

    async def _grant(self, request: Request) -> list[str]:
        if isinstance(request, StartFork):
            return [(await self._starting.start(request)).id]
        self._starting.admission.check_acts()
        forks = await self._named_by(request)
        if not forks:
            raise RequestRefused(self._no_such_fork(request), Refusal.NO_SUCH_FORK)
        if isinstance(request, MuteFork):
            return await self._muting.mute_all(forks, request)
        for fork in forks:
            # The last event answers the stop, not the start.
            fork.action_id = request.action_id or fork.action_id
            self._ending.end(fork, *end_of(fork, request))
        return [fork.id for fork in forks]

    async def _named_by(self, request: StopFork | MuteFork) -> list[Fork]:
        if request.fork_id:
            fork = self._table.get(request.fork_id)
            if fork is not None:
                await fork.progress.looked_up.wait()  # its start may be refused meanwhile
            return [fork] if fork is not None and fork in self._table else []
        uniqueid = request.target.uniqueid
        if not uniqueid:
            _, uniqueid = await self._look_ups.find(request.target, request.origin)
        # Starts that came before this request may still be looking up their channel.
        await asyncio.gather(*(fork.progress.looked_up.wait() for fork in self._table.sought))
        return self._table.on_channel(uniqueid)

    def _no_such_fork(self, request: StopFork | MuteFork) -> str:
        """Return the refusal; for a part of an id, as the log shows it, it names the whole id."""
        given = request.fork_id or request.target.uniqueid
        meant = self._table.like(given)
        if meant is None:
            return "No such fork"
        channel = printable(meant.channel, "?")
        return f"No such fork {given}; did you mean {meant.id}, on channel {channel}?"

    def follow(self, fork_id: str) -> AsyncGenerator[StartNews, None]:
        """Yield the progress of a start, until audio flows or the fork has ended; see `follow`.

        Call it as soon as `ask` has returned: a fork may end in any later turn of the loop.

        Raises:
            RequestRefused: The fork does not exist, or no longer exists.
        """
        fork = self._table.get(fork_id)
        if fork is None:
            raise RequestRefused("No such fork", Refusal.NO_SUCH_FORK)
        return follow(fork, self._statistics.host_of)

    def find(self, fork_id: str) -> Fork | None:
        """Return the fork with an id; None: there is none."""
        return self._table.get(fork_id)

    async def views(self) -> list[ForkView]:
        """Return all forks, oldest first.

        Raises:
            RequestRefused: It is suspended, and does not know them.
        """
        stats = await self._statistics.latest()
        self._starting.admission.check_acts()
        views: list[ForkView] = []
        for fork in self._table:
            relay_host = self._statistics.host_of(fork.id)
            views.append(view_of(fork, stats.get(fork.id, ForkStats()), relay_host))
            if len(views) % VIEWS_AT_ONCE == 0:  # the audio of a thousand forks cannot wait
                await asyncio.sleep(0)
        return views

    async def take_stats(self) -> StatsTaken:
        """Return what the relay has counted of the running forks.

        Raises:
            TimeoutError: The relay does not answer in time.
        """
        taken = await self._statistics.take()
        for fork in self._table:
            # What this plane has refused counts like what the relay has.
            if fork.progress.commands_refused and (stats := taken.stats.get(fork.id)) is not None:
                total = stats.commands_refused + fork.progress.commands_refused
                taken.stats[fork.id] = replace(stats, commands_refused=total)
        return taken

    def count(self) -> Counter[tuple[ForkState, Direction]]:
        """Return how many forks there are, by state and direction."""
        return Counter((fork.state, fork.request.options.direction) for fork in self._table)

    @property
    def legs_left(self) -> int:
        """How many legs of ended forks cannot end in Asterisk, as their channels have no media."""
        return self._legs.leaving.stuck

    # --- From Asterisk ---

    def on_event(self, event: Event) -> None:
        """Handle an event of the AMI connection; requests come by `ask`."""
        if isinstance(event, ChannelHangup):
            self._on_hangup(event.uniqueid, is_gone=event.is_gone)
        elif isinstance(event, BridgeChanged):
            self._bridges.on_changed(event)
            self._holds.look_again()
        elif isinstance(event, HoldChanged):
            self._holds.on_changed(event)
        elif isinstance(event, KeyPressed):
            self._keys.on_pressed(event)
        elif isinstance(event, OriginateFailed):
            self._on_originate_failed(event)
        elif isinstance(event, ForgedMessage):
            self._emit(Attack(AttackKind.FORGED_EVENT, event.detail))

    def _on_hangup(self, uniqueid: str, *, is_gone: bool = True) -> None:
        if (own := self._table.get(fork_id_of(uniqueid))) is not None:
            self._legs.on_hangup(own, uniqueid, is_gone=is_gone)
        if is_gone:
            self._legs.leaving.on_gone(uniqueid)
            self._holds.forget(uniqueid)
        for fork in self._table.on_channel(uniqueid):
            self._ending.on_hangup(fork)

    def _on_originate_failed(self, event: OriginateFailed) -> None:
        fork = self._table.get(fork_id_of(event.action_id))
        if fork is not None:
            detail = f"Asterisk could not connect the leg (reason {event.reason})"
            self._legs.on_failure(fork, event.action_id, detail)

    def resume_after_login(self, entries: Iterable[Entry]) -> None:
        """Keep the forks of an earlier run until the next login, which resumes them."""
        self._recovery.entries = list(entries)

    async def on_login(self) -> Mapping[str, str]:
        """Reconcile the registry with Asterisk; called first after each login.

        Returns:
            The names of all channels that Asterisk has, by uniqueid.

        Raises:
            AmiError: The connection to Asterisk is lost again.
        """
        self._holds.forget_all()
        present = await self._recovery.after_login(self._on_hangup)
        await self._bridges.catch_up()
        # Last: forks whose channels are gone must have ended before others request legs again.
        self._legs.on_synced()
        return present

    # --- From the relay ---

    def on_report(self, report: ForksReport) -> None:
        """Handle a report of the relay."""
        if isinstance(report, StatsTaken):
            self._statistics.on_taken(report)
        elif isinstance(report, StrangersRefused):
            where = f"at the AudioSocket port, from {report.address or 'nobody'}"
            self._emit(Attack(AttackKind.WRONG_UUID, where, report.count))
        elif isinstance(report, RelaysFound):
            self._ending.tasks.spawn(self._recover_more())
        elif isinstance(report, RelaysReport):
            self._lost_relays.on_report(report)
        elif (fork := self._table.get(report.fork_id)) is None:
            log.error("report for an unknown fork: %r", report)
        else:
            self._on_fork_report(fork, report)

    async def _recover_more(self) -> None:
        """Resume the forks that have waited until it is known which of them go on."""
        with contextlib.suppress(AmiError):  # the next login resumes them
            await self.on_login()

    def _on_fork_report(self, fork: Fork, report: ForkReport) -> None:
        if isinstance(report, SinkOpened | SinkRetrying | Streaming):
            # The relay has read the fork's files and survived: this start did not kill the daemon.
            self._starting.note_attempts(fork, 0)
        if isinstance(report, LegAttached):
            self._legs.on_attached(fork, report.part)
        elif isinstance(report, SinkOpened):
            self._on_opened(fork, report)
        elif isinstance(report, Streaming):
            self._on_streaming(fork)
        elif isinstance(report, SinkRetrying):
            self._on_retrying(fork, report)
        elif isinstance(report, SinkResumed):
            self._on_resumed(fork, report)
        elif isinstance(report, SinkMessage):
            self._emit(MessageReceived(fork.info, report.text))
        elif isinstance(report, LegLost):
            self._legs.on_lost(fork, report)
        elif isinstance(report, CommandAsked):
            self._server_commands.on_asked(fork, report)
        elif isinstance(report, TakenOver):
            self._lost_relays.on_taken_over(fork, report)
        elif isinstance(report, ForkEnded):
            self._ending.on_ended(fork, report)

    def _on_opened(self, fork: Fork, report: SinkOpened) -> None:
        fork.progress.subprotocol = report.subprotocol
        if offered := fork.request.options.subprotocols:
            chosen = report.subprotocol or f"none of {', '.join(offered)}"
            fork.log.info("the server accepted the connection, subprotocol: %s", chosen)
        else:
            fork.log.debug("the server accepted the connection")
        fork.chronicle.on_server()
        if fork.connects:
            self._legs.connect(fork)
        # If audio has flowed before, this is the first connection of another relay process.
        if Away.SERVER in fork.progress.away and (resumed := fork.back(Away.SERVER)):
            self._emit(resumed)

    def _on_streaming(self, fork: Fork) -> None:
        if fork.progress.relays_lost and fork.state is not ForkState.ATTACHING:
            return  # the first frame of another relay process, not of the fork
        fork.first_frame()
        log_streaming(fork)
        after_s = (fork.chronicle.streaming_at or 0.0) - fork.chronicle.begun
        self._emit(Started(fork.info, fork.progress.subprotocol, max(0.0, after_s)))

    def _on_retrying(self, fork: Fork, report: SinkRetrying) -> None:
        was_streaming = fork.lost(Away.SERVER, report.detail, report.attempt, report.wait_s)
        fork.log.warning("attempt %d follows: %s", report.attempt, harmless(report.detail))
        self._emit(
            Reconnecting(fork.info, Away.SERVER, report.attempt, report.detail, was_streaming)
        )
        if fork.connects and fork.chronicle.server_at is None:
            # The caller waits, and the dialplan has another way.
            self._ending.end(fork, EndReason.SINK_GONE, report.detail)

    def _on_resumed(self, fork: Fork, report: SinkResumed) -> None:
        if fork.state is ForkState.RECONNECTING:
            fork.log.info("the server is back, %d frames dropped", report.frames_dropped)
        if resumed := fork.back(Away.SERVER, report.frames_dropped):
            self._emit(resumed)

    # --- The end ---

    async def shut_down(self, *, keep: bool = False) -> None:
        """Refuse new forks and end the running ones; return when all have ended.

        Args:
            keep: Whether running forks stay in the journal, so that the next start resumes them.
        """
        # First, so that no start that waits for its turn begins a fork after the others have ended.
        self._starting.admission.refuse_all("the daemon stops")
        self._ending.end_all(keep=keep)
        if not keep:
            self._recovery.end_held()
        await self._table.wait_empty()
        await self._ending.tasks.finish()

    def suspend(self, why: str, wait_s: float) -> None:
        """Forget all forks, and let starts wait, or refuse them, until `go_on`.

        Another controller may have the forks by now, so this one must leave all as it is.

        Args: as `Admission.suspend`.
        """
        self._starting.admission.suspend(why, wait_s)
        self._lost_relays.forget()
        self._ending.leave_all()
        self._recovery.entries = []

    @property
    def is_suspended(self) -> bool:
        """Whether it does nothing until `go_on`."""
        return bool(self._starting.admission.suspended)

    def go_on(self) -> None:
        """Let starts begin again."""
        self._starting.admission.resume()

    def leave(self) -> None:
        """Refuse new forks and forget the running ones: another controller has them."""
        self._starting.admission.refuse_all("another controller leads")
        self._ending.leave_all()

    async def close(self) -> None:
        """Cancel all timers and tasks that are left."""
        self._bridges.close()
        self._lost_relays.close()
        for fork in self._table:
            fork.cancel_timers()
        await self._ending.tasks.cancel()
        await self._server_commands.close()
