"""Ends forks: asks the relay, handles its report, emits the last event after the post-process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Protocol

from audiofork.forks.events import FAILURES, Emit, Ended, Failed, Parting, Reconnecting, Stopped
from audiofork.forks.fork import Fork, entry_of
from audiofork.forks.journal import Journal
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.life_log import log_ended, log_left, log_unresumable
from audiofork.forks.lifecycle import Away, ForkEvent, ForkState
from audiofork.forks.post_process import runner as post_process
from audiofork.forks.post_process.template import PostProcess
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Tasks
from audiofork.link.messages import EndFork, EndReason, ForkEnded, ForkStats, Leave, SendCommand
from audiofork.text import why

log = logging.getLogger(__name__)

# Asterisk closes the leg within 20 ms after a hangup; the frames of that time must not be lost. A
# target without media may keep its leg open for ever, so after this time the fork ends anyway.
HANGUP_GRACE_S = 0.1


class End(Protocol):
    """Ends a fork: `Ending.end`."""

    def __call__(self, fork: Fork, reason: EndReason, detail: str = "") -> None: ...


class Ending:
    """Ends forks in three steps: ask the relay, handle its report, emit the last event.

    Owned by the registry of forks.

    Args:
        table: All forks; ended ones are removed.
        leaving: Watches the legs of ended forks until Asterisk has ended them.
        journal: Ended forks are removed from it.
        send: Sends a command to the relay.
        emit: Called with each event.
        tasks: Runs the post-process commands.
        relay_goes_on: Whether kept forks go on without the daemon.

    Attributes:
        relay_goes_on: As the argument.
    """

    def __init__(
        self,
        table: ForkTable,
        leaving: LeavingLegs,
        journal: Journal,
        send: SendCommand,
        emit: Emit,
        tasks: Tasks,
        *,
        relay_goes_on: bool = False,
    ) -> None:
        self._table = table
        self._leaving = leaving
        self._journal = journal
        self._send = send
        self._emit = emit
        self.tasks = tasks
        self.relay_goes_on = relay_goes_on

    # --- Asked for ---

    def end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        """Ask the relay to end a fork; `on_ended` handles its report. The first reason is kept."""
        if fork.progress.end_asked is not None or fork.state is ForkState.ENDED:
            return
        # A fork that is still REQUESTED is unknown to the relay: Starting sees this and refuses it.
        fork.progress.end_asked = reason
        if fork.state is not ForkState.REQUESTED:
            self._send(EndFork(fork.id, reason, detail))
            self._part(fork, reason)

    def supersede(self, fork: Fork) -> None:
        """End a fork whose call has another server, for whose news its dialplan waits."""
        fork.progress.end_asked = EndReason.STOPPED
        self._send(EndFork(fork.id, EndReason.STOPPED, "the call has another server"))

    def _part(self, fork: Fork, reason: EndReason) -> None:
        if fork.connects:
            self._emit(Parting(fork.info, reason, _has_failed(fork, reason)))

    def on_hangup(self, fork: Fork) -> None:
        """Handle the hangup of a fork's channel: end the fork after HANGUP_GRACE_S."""
        if not fork.call.hangup_seen:
            fork.call.hangup_seen = True
            loop = asyncio.get_running_loop()
            fork.call.hangup_timer = loop.call_later(
                HANGUP_GRACE_S, self.end, fork, EndReason.HANGUP
            )

    def end_all(self, *, keep: bool) -> None:
        """End all forks, because the daemon stops.

        Args:
            keep: Whether running forks stay in the journal, so that the next start resumes them.
        """
        if keep and not self._journal.works:
            log.warning("ending all forks: they cannot be kept, because the journal does not work")
        elif keep:
            self._keep_all()
        for fork in self._table:
            if fork.progress.end_asked is None:
                self.end(fork, EndReason.SHUTDOWN)
            else:  # it may still be delivering frames; SHUTDOWN shortens the time for that
                self._send(EndFork(fork.id, EndReason.SHUTDOWN))

    def _keep_all(self) -> None:
        for fork in self._table:
            can_go_on = self.relay_goes_on or not fork.connects
            if fork.state is not ForkState.REQUESTED and can_go_on and not fork.is_ending:
                fork.progress.kept = True
                fork.progress.attempts = 0  # this run did not die while starting them
                self._journal.put(entry_of(fork))
                if self.relay_goes_on:
                    self._send(Leave(fork.id))
                    self._leave(fork)
                else:
                    why = "the daemon is restarted"
                    self._emit(Reconnecting(fork.info, Away.DAEMON, 1, why, was_streaming=True))

    def leave_all(self) -> None:
        """Forget the forks that have begun, and leave them as they are: another has them."""
        for fork in list(self._table):
            if fork.state is not ForkState.REQUESTED:  # else its start is refused
                self._leave(fork)

    def _leave(self, fork: Fork) -> None:
        """Forget a fork that the next run of the daemon will resume."""
        fork.apply(ForkEvent.END)
        log_left(fork)
        self.forget(fork)

    # --- Reported ---

    def on_ended(self, fork: Fork, report: ForkEnded) -> None:
        """Handle the report that the relay has closed a fork's legs and sink."""
        if fork.progress.kept and report.reason is EndReason.SHUTDOWN:
            self._leave(fork)
            return
        report = _with_refused(report, fork.progress.commands_refused)
        self._journal.remove(fork.id)
        self._leaving.watch(fork, fork.live_legs())
        has_failed = _has_failed(fork, report.reason)
        if fork.progress.end_asked is None:  # else that was told then
            self._part(fork, report.reason)
        fork.chronicle.end = report
        fork.apply(ForkEvent.END)
        log_ended(fork, report, is_failure=report.reason in FAILURES)
        self._emit(
            Ended(
                *(fork.info, report.reason, report.stats, has_failed, report.detail),
                gaps=fork.chronicle.gaps,
                gap_s=fork.chronicle.gap_s,
                relays_lost=fork.progress.relays_lost,
            )
        )
        self.forget(fork)
        self._close(fork, report, has_failed=has_failed)

    def forget(self, fork: Fork) -> None:
        """Cancel the timers of a fork, and remove it from the table."""
        fork.cancel_timers()
        self._table.remove(fork)

    def end_unresumable(
        self, fork: Fork, reason: EndReason, detail: str, *, allow_post_process: bool
    ) -> None:
        """End a fork of an earlier run that cannot be resumed; it is not in the table.

        Args:
            fork: The fork.
            reason: Why it ends.
            detail: More about the reason, for people.
            allow_post_process: Whether its post-process command may run.
        """
        log_unresumable(fork, reason, detail)
        self._journal.remove(fork.id)
        self._emit(Ended(fork.info, reason, ForkStats(), has_failed=False, detail=detail))
        if not allow_post_process:
            fork.post_process = None
        self._close(fork, ForkEnded(fork.id, reason, detail, ForkStats()), has_failed=False)

    # --- The last event ---

    def _close(self, fork: Fork, report: ForkEnded, *, has_failed: bool) -> None:
        """Emit the last event of a fork, after its post-process command, if any, has run."""
        kind = Failed if has_failed else Stopped
        outcome = kind(
            fork.info,
            report.reason,
            report.detail,
            fork.age_s,
            report.stats,
            fork.progress.relays_lost,
        )
        if fork.post_process is not None:
            self.tasks.spawn(self._post_process(fork, fork.post_process, outcome))
        else:
            self._emit(outcome)

    async def _post_process(
        self, fork: Fork, command: PostProcess, outcome: Stopped | Failed
    ) -> None:
        """Run the post-process command, then emit the last event with its exit status."""
        status = "interrupted"  # stays if the end of the daemon cancels this task
        try:
            status = str(await post_process.run(command, fork.call.values, fork.log))
        except OSError as exc:
            fork.log.error("the post-process command cannot be run: %s", why(exc))
            status = "not run"
        finally:
            self._emit(dataclasses.replace(outcome, post_process_status=status))


def _has_failed(fork: Fork, reason: EndReason) -> bool:
    return fork.state is ForkState.ATTACHING and reason in FAILURES


def _with_refused(report: ForkEnded, count: int) -> ForkEnded:
    """Return a report that also counts the commands which the relay let pass, and were refused."""
    total = report.stats.commands_refused + count
    stats = dataclasses.replace(report.stats, commands_refused=total)
    return dataclasses.replace(report, stats=stats)
