"""Recovers forks: after a login to Asterisk, and from the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import fork_id_of
from audiofork.asterisk.taps.choice import Taps
from audiofork.asterisk.taps.connect import Server, server_of
from audiofork.errors import AmiActionFailed, AmiError, NoSuchChannel, RequestRefused
from audiofork.forks.admission import Admission
from audiofork.forks.ending import Ending
from audiofork.forks.fork import Fork
from audiofork.forks.journal import Entry
from audiofork.forks.leaving import LeavingLegs
from audiofork.forks.legs import Legs
from audiofork.forks.post_process.commands import is_named
from audiofork.forks.starting import Starting
from audiofork.forks.table import ForkTable
from audiofork.link.messages import (
    EndFork,
    EndReason,
    HeldFork,
    SendCommand,
)
from audiofork.text import A_BUG

log = logging.getLogger(__name__)

RESTARTED = "Asterisk was restarted"
LOST = "fork %s of an earlier run is lost"
NO_WAY = "not resumed: its legs cannot be made any more as they were ([asterisk] tap, [ari])"
# A fork whose start kills the daemon must not kill it again and again, with all other forks.
MAX_ATTEMPTS = 2
# Of so many forks Asterisk is asked at once who calls.
AT_ONCE = 50


class Recovery:
    """Reconciles the forks with Asterisk, and resumes forks of an earlier run.

    Owned by the registry of forks.

    Args:
        ami: Knows the current run of Asterisk; hangs up legs.
        taps: Recognizes the legs of this daemon.
        channels: Asks Asterisk about channels.
        table: All forks.
        admission: Grants or refuses starts.
        leaving: Watches the legs that were hung up.
        legs: Requests and replaces the legs of forks.
        starting: Starts forks again.
        ending: Ends forks that cannot be resumed.
        restore: Returns the fork of an entry, and why it is refused; see `restored`.
        held: Returns the forks that relay processes go on with since an earlier run; None: that is
            not known yet, and forks wait for it.
        send: Sends a command to the relay.

    Attributes:
        entries: Forks of an earlier run that are not resumed yet.
    """

    def __init__(
        self,
        ami: Ami,
        taps: Taps,
        channels: Channels,
        table: ForkTable,
        admission: Admission,
        leaving: LeavingLegs,
        legs: Legs,
        starting: Starting,
        ending: Ending,
        restore: Callable[[Entry], tuple[Fork, str]],
        held: Callable[[], Mapping[str, HeldFork] | None],
        send: SendCommand,
    ) -> None:
        self.entries: list[Entry] = []
        self._ami = ami
        self._taps = taps
        self._channels = channels
        self._table = table
        self._admission = admission
        self._leaving = leaving
        self._legs = legs
        self._starting = starting
        self._ending = ending
        self._restore = restore
        self._turn = asyncio.Lock()
        self._held = held
        self._send = send

    # --- After a login ---

    async def after_login(self, on_gone: Callable[[str], None]) -> Mapping[str, str]:
        """Reconcile the forks with the channels that Asterisk has.

        Args:
            on_gone: Called with the uniqueid of each forked channel that was hung up meanwhile.

        Returns:
            The names of these channels, by uniqueid.

        Raises:
            AmiError: The connection to Asterisk is lost again.
        """
        async with self._turn:  # relays may be found during a login
            return await self._reconcile(on_gone)

    async def _reconcile(self, on_gone: Callable[[str], None]) -> Mapping[str, str]:
        self._end_forks_of_another_asterisk()
        # Taken before the list: a channel that is added later may be missing in the list.
        known = self._table.uniqueids
        present = await self._channels.present()
        for uniqueid in known:
            if uniqueid not in present:
                on_gone(uniqueid)
        if (held := self._held()) is None:
            await self._sweep(present, {one.fork_id for one in self.entries}, set())
            if self.entries:
                log.warning("%d forks wait until a relay host is heard of", len(self.entries))
            return present
        anew = {one.fork_id for one in self.entries} - held.keys()
        await self._sweep(present, set(), anew)
        await self._resume(present)
        return present

    def _end_forks_of_another_asterisk(self) -> None:
        """End the forks whose channels belonged to an earlier run of Asterisk."""
        for fork in self._table:
            if self._is_of_another_asterisk(fork):
                self._ending.end(fork, EndReason.LEG_FAILED, RESTARTED)

    def _is_of_another_asterisk(self, fork: Fork) -> bool:
        runs = {fork.call.asterisk_started, self._ami.asterisk_started}
        return len(runs) == 2 and "" not in runs

    async def _sweep(
        self, present: Mapping[str, str], waiting: Collection[str], anew: Collection[str]
    ) -> None:
        """Hang up the legs of this daemon that belong to no fork.

        Args:
            present: Names of all channels, by uniqueid.
            waiting: The ids of forks that may go on somewhere.
            anew: Those of forks that begin anew as no relay that is heard goes on with them. One
                that is not heard may: in a cluster its host may be cut off, and Asterisk is not.
        """
        self._leaving.reconcile(present)
        keep = {leg.id for fork in self._table for leg in fork.legs.values()}
        keep.update(self._leaving.ids)
        keep.update(_legs_of(waiting, present))
        every_held = (self._held() or {}).values()
        keep.update(leg_id for held in every_held for leg_id in held.leg_ids.values())
        strays = self._taps.stray_legs(present, keep)
        swept = list(dict.fromkeys([*strays, *_legs_of(anew, present)]))
        try:
            for uniqueid in swept:
                with contextlib.suppress(AmiActionFailed):  # the channel may be gone by now
                    # By uniqueid, because an earlier leg of a fork has the same channel name.
                    await self._ami.action("Hangup", [("Channel", uniqueid)])
        except AmiError as exc:
            log.warning("legs that an earlier run left behind may remain: %s", exc)
            return
        if swept:
            log.warning("hung up %d legs that an earlier run left behind", len(swept))

    # --- From the journal ---

    async def _resume(self, present: Mapping[str, str]) -> None:
        """Resume the forks of an earlier run whose channels exist; end the others.

        Args:
            present: Names of all channels, by uniqueid.

        Raises:
            AmiError: The connection is lost again; the remaining entries wait for the next login.
        """
        entries = self.entries
        count, resumed = len(entries), 0
        # Those first that go on meanwhile: nobody acts on what happens to them.
        held = self._held() or {}
        entries.sort(key=lambda entry: entry.fork_id not in held)
        adopted = await self._adopt_all(entries, held, present)
        while entries and not self._admission.is_closed:
            try:
                resumed += await self._resume_one(entries[0], present)
            except AmiError:
                raise
            except Exception:  # one entry must not keep all others from their forks
                log.exception(LOST, entries[0].fork_id)
                self._give_up(entries[0])
            del entries[0]
        if self._admission.is_closed:
            return
        if count:
            log.info(
                "resumed %d of the %d forks that an earlier run left, and found %d that went on",
                *(resumed, count, adopted),
            )
        self._end_unknown()

    def _give_up(self, entry: Entry) -> None:
        """End a fork that cannot be resumed, because of a bug."""
        self._send(EndFork(entry.fork_id, EndReason.FAULT, A_BUG))
        self._starting.forget(entry)

    async def _adopt_all(
        self, entries: list[Entry], held: Mapping[str, HeldFork], present: Mapping[str, str]
    ) -> int:
        """Take over the forks that went on, also to end them; return how many go on.

        Raises: as `_resume`.
        """
        adopted = 0
        while some := [entry for entry in entries[:AT_ONCE] if entry.fork_id in held]:
            # Asked together: a thousand answers, one after the other, would take too long.
            callers = await asyncio.gather(*map(self._caller_of, some), return_exceptions=True)
            for entry, caller in zip(some, callers, strict=True):
                if self._admission.is_closed:
                    return adopted
                try:
                    if isinstance(caller, BaseException):
                        raise caller
                    adopted += self._adopt(entry, held[entry.fork_id], caller, present)
                except AmiError:
                    raise
                except Exception:  # as above
                    log.exception(LOST, entry.fork_id)
                    self._give_up(entry)
                del entries[0]
        return adopted

    async def _caller_of(self, entry: Entry) -> tuple[str, str]:
        """Return the number and the name of a fork's caller; empty if nobody wants to know."""
        with contextlib.suppress(NoSuchChannel):
            return await self._starting.caller_of(entry.uniqueid, entry.call)
        return "", ""

    def _adopt(
        self, entry: Entry, held: HeldFork, caller: tuple[str, str], present: Mapping[str, str]
    ) -> bool:
        """Take over a fork that went on, also to end it; return whether it goes on."""
        fork, refused = self._restore(entry)
        choice = self._taps.made_before(held, fork.request.options.direction)
        if choice is None:
            self._send(EndFork(fork.id, EndReason.STOPPED, NO_WAY))
            self._end(fork, EndReason.STOPPED, NO_WAY)
            return False
        if not refused:
            refused = self._why_refused(fork)
        fork.call.caller = caller
        self._starting.adopt(fork, choice, held, present)
        if self._is_of_another_asterisk(fork):
            self._ending.end(fork, EndReason.LEG_FAILED, RESTARTED)
        elif fork.uniqueid not in present:
            self._ending.on_hangup(fork)
        elif refused:
            self._ending.end(fork, EndReason.STOPPED, f"not resumed: {refused}")
        else:
            fork.call.channel = present[fork.uniqueid]
            return True
        return False

    def _why_refused(self, fork: Fork) -> str:
        """Return why the request of a fork would be refused now; empty if not."""
        try:
            self._admission.check_rules(fork.request)
        except RequestRefused as exc:
            return str(exc)
        return ""

    def end_held(self, detail: str = "") -> None:
        """End the forks that go on, and that were not adopted."""
        for fork_id in list(self._held() or ()):
            self._send(EndFork(fork_id, EndReason.SHUTDOWN, detail))

    def _end_unknown(self) -> None:
        """End the forks that go on, and that the journal does not know."""
        unknown = [one for one in (self._held() or {}).values() if not one.has_ended]
        self.end_held("the journal does not know it")
        if unknown:
            log.warning(
                "ended %d forks that went on: the journal does not know them: %s",
                *(len(unknown), ", ".join(sorted(one.fork_id[:8] for one in unknown))),
            )

    async def _resume_one(self, entry: Entry, present: Mapping[str, str]) -> bool:
        """Resume a fork, or end it; return whether it was resumed."""
        fork, refused = self._restore(entry)
        if self._is_of_another_asterisk(fork):
            self._end(fork, EndReason.LEG_FAILED, f"{RESTARTED} while the daemon was away")
            return False
        try:
            if fork.uniqueid not in present:
                raise NoSuchChannel
            server = await self._server_of(fork)
            if entry.connects and not server.is_of(fork.id):
                # Its call may have another server by now, and variables of that.
                fork.log.warning("not resumed: the call went on without its server")
                self._starting.forget(entry)
                return False
            if refused:
                raise RequestRefused(refused)
            if entry.attempts >= MAX_ATTEMPTS:
                raise RequestRefused(
                    f"the daemon died {entry.attempts} times in a row while it was being started"
                )
            # Written before the start: if it kills the daemon, the next run must know.
            self._starting.note_attempts(fork, entry.attempts + 1)
            await self._starting.know_caller(fork)
            await self._starting.choose(fork)
            if self._admission.is_closed:  # the daemon stops: the next run will resume it
                self._starting.note_attempts(fork, entry.attempts)
                return False
            self._admission.check(fork.request, self._table)
            self._admission.check_room(fork.uniqueid, self._table)
        except NoSuchChannel:
            detail = "the call ended while the daemon was away; its frames are not known"
            self._end(fork, EndReason.HANGUP, detail)
            return False
        except RequestRefused as exc:
            self._end(fork, EndReason.STOPPED, f"not resumed: {exc}")
            return False
        fork.call.channel = present[fork.uniqueid]
        if fork.connects and not server.polls:
            for leg in fork.legs.values():
                leg.lost_at = asyncio.get_running_loop().time()
        self._starting.resume(fork)
        return True

    async def _server_of(self, fork: Fork) -> Server:
        return await server_of(self._channels, fork.uniqueid) if fork.connects else Server()

    def _end(self, fork: Fork, reason: EndReason, detail: str) -> None:
        named = is_named(fork.request.post_process)
        allowed = named or self._admission.security.allow_post_process
        self._ending.end_unresumable(fork, reason, detail, allow_post_process=allowed)


def _legs_of(fork_ids: Collection[str], present: Mapping[str, str]) -> list[str]:
    """Return the legs of forks among the channels."""
    return [leg_id for leg_id in present if fork_id_of(leg_id) in fork_ids]
