"""How forks end: asked for, reported by the relay, told after the post-process command."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Protocol

from audiofork.forks.events import Emit, Ended, Failed, Reconnecting, Stopped
from audiofork.forks.fork import Fork, entry_of
from audiofork.forks.journal import Journal
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.lifecycle import Away, ForkEvent, ForkState
from audiofork.forks.post_process import runner as post_process
from audiofork.forks.post_process.template import PostProcess
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Tasks
from audiofork.link.messages import EndFork, EndReason, ForkEnded, ForkStats, SendCommand
from audiofork.text import harmless

log = logging.getLogger(__name__)

# Asterisk closes the leg within 20 ms of a hangup; the frames of that time are still wanted. A
# target without media may keep its leg open for ever, so after this the fork ends anyway.
HANGUP_GRACE_S = 0.1

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


class End(Protocol):
    """Ends a fork: `Ending.end`."""

    def __call__(self, fork: Fork, reason: EndReason, detail: str = "") -> None: ...


class Ending:
    """Owned by the registry of forks.

    Args:
        table: The forks there are; those that have ended are removed.
        leaving: Watches the legs that ended forks leave.
        journal: Forgets forks that have ended.
        send: Commands the relay.
        emit: Takes what happens.
        tasks: Run the post-process commands.
    """

    def __init__(
        self,
        table: ForkTable,
        leaving: LeavingLegs,
        journal: Journal,
        send: SendCommand,
        emit: Emit,
        tasks: Tasks,
    ) -> None:
        self._table = table
        self._leaving = leaving
        self._journal = journal
        self._send = send
        self._emit = emit
        self._tasks = tasks

    # --- Asked for ---

    def end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        """Ask for the end of a fork; the relay reports when it has come. The first reason wins."""
        if fork.progress.end_asked is not None or fork.state is ForkState.ENDED:
            return
        fork.progress.end_asked = reason
        if fork.state is not ForkState.REQUESTED:
            self._send(EndFork(fork.id, reason, detail))

    def on_hangup(self, fork: Fork) -> None:
        """Hear that the channel of a fork is hung up; the last frames may be under way."""
        if not fork.call.hangup_seen:
            fork.call.hangup_seen = True
            loop = asyncio.get_running_loop()
            fork.call.hangup_timer = loop.call_later(
                HANGUP_GRACE_S, self.end, fork, EndReason.HANGUP
            )

    def end_all(self, *, keep: bool) -> None:
        """End all forks, since the daemon stops.

        Args:
            keep: Leave those that live in the journal, so that the next start resumes them.
        """
        if keep and not self._journal.works:
            log.warning("the forks end: they cannot be kept without a journal that works")
        elif keep:
            self._keep_all()
        for fork in self._table:
            if fork.progress.end_asked is None:
                self.end(fork, EndReason.SHUTDOWN)
            else:  # it may be delivering what waits, for which there is less time now
                self._send(EndFork(fork.id, EndReason.SHUTDOWN))

    def _keep_all(self) -> None:
        for fork in self._table:
            if fork.state is not ForkState.REQUESTED and not fork.is_ending:
                fork.progress.kept = True
                fork.progress.attempts = 0  # this run has outlived them all
                self._journal.put(entry_of(fork))
                why = "the daemon is restarted"
                self._emit(Reconnecting(fork.info, Away.DAEMON, 1, why, was_streaming=True))

    # --- Come ---

    def on_ended(self, fork: Fork, report: ForkEnded) -> None:
        """Hear that the relay has closed all of a fork."""
        if fork.progress.kept and report.reason is EndReason.SHUTDOWN:
            fork.apply(ForkEvent.END)
            fork.log.info("left for the next start after %.1f s", fork.age_s)
            self.forget(fork)
            return
        self._journal.remove(fork.id)
        self._leaving.watch(fork, fork.live_legs())
        has_failed = fork.state is ForkState.ATTACHING and report.reason in _FAILURES
        fork.apply(ForkEvent.END)
        _log_end(fork, report)
        self._emit(Ended(fork.info, report.reason, report.stats, has_failed))
        self.forget(fork)
        self._close(fork, report, has_failed=has_failed)

    def forget(self, fork: Fork) -> None:
        """Wait for nothing of a fork any more, and remove it from the table."""
        fork.cancel_timers()
        self._table.remove(fork)

    def end_unresumable(
        self, fork: Fork, reason: EndReason, detail: str, *, allow_post_process: bool
    ) -> None:
        """End a fork of an earlier run that cannot be resumed; it is not in the table."""
        fork.log.warning("ended: %s (%s)", reason, harmless(detail))
        self._journal.remove(fork.id)
        self._emit(Ended(fork.info, reason, ForkStats(), has_failed=False))
        if not allow_post_process:
            fork.post_process = None
        self._close(fork, ForkEnded(fork.id, reason, detail, ForkStats()), has_failed=False)

    # --- Told ---

    def _close(self, fork: Fork, report: ForkEnded, *, has_failed: bool) -> None:
        """Emit the last event of a fork, once its post-process command has run."""
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
            self._tasks.spawn(self._post_process(fork, fork.post_process, outcome))
        else:
            self._emit(outcome)

    async def _post_process(
        self, fork: Fork, command: PostProcess, outcome: Stopped | Failed
    ) -> None:
        """Run the post-process command, then emit the last event with its exit status."""
        status = "interrupted"  # by the end of the daemon
        try:
            status = str(await post_process.run(command, fork.call.values, fork.log))
        except OSError as exc:
            fork.log.error("the post-process command cannot be run: %s", exc)
            status = "not run"
        finally:
            self._emit(dataclasses.replace(outcome, post_process_status=status))


def _log_end(fork: Fork, report: ForkEnded) -> None:
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
    if report.stats.frames_missing:
        fork.log.warning(
            "Asterisk brought %d frames fewer than 50 a second: its timer misses ticks, or the "
            "machine is too busy (docs/asterisk.md, The timing module)",
            report.stats.frames_missing,
        )
