"""Runs the relay on other hosts: finds them by their beats, and distributes the forks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nats.aio.subscription import Subscription

from audiofork.cluster.beats import Beat, Seen
from audiofork.cluster.broker import FAULTS, Broker
from audiofork.cluster.lease import Lease
from audiofork.cluster.roster import MOST_KNOWN, HostState, Roster
from audiofork.cluster.wandering import FIRST_WAIT_S
from audiofork.config import Address, ClusterConfig, Config
from audiofork.errors import NoMessage
from audiofork.link.host_moves import HostMoves
from audiofork.link.host_worker import HostWorker
from audiofork.link.messages import (
    Adopt,
    Command,
    CountBefore,
    EndReason,
    ExpectCheckLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    ForkStats,
    HeldFork,
    MoveFork,
    RelayBack,
    RelayDraining,
    RelaysFound,
    SendReport,
    SinkMessage,
    StatsTaken,
    TakeLevels,
    TakeStats,
)
from audiofork.link.owed_orders import OwedOrders
from audiofork.link.sessions import (
    UP,
    Drain,
    Gone,
    Superseded,
    Up,
    decode_up,
    down_subject,
    split,
)
from audiofork.link.sharing import SharedRelay
from audiofork.link.stream import Held, Pong
from audiofork.link.workers import RelayWorker

log = logging.getLogger(__name__)

NO_HOST = "no relay host is there that can take it"
# All may be at one NATS server that is cut off: they go on, and leave it (cluster/wandering.py).
NO_HOST_TIMEOUT_S = 2 * FIRST_WAIT_S
NOWHERE = Address("127.0.0.1", 0)
TICK_S = 0.05
TURN_BITS = 32  # more than any leader orders forks
# At the start, for what the hosts hold.
FIND_TIMEOUT_S = 0.3
# How long forks wait for a host that lives and has not answered by then; as parts of `dead_after`.
SLOW_TIMES = 4
# How often the forks of a host that is drained are asked to move.
DRAIN_INTERVAL_S = 2.0
# How long Asterisk is not asked for a leg while the relay host does not answer.
EXPECT_TIMEOUT_S = 3.0
Everywhere = ForkSpec | TakeStats | TakeLevels | ExpectCheckLeg
"""The commands that are not for a fork that there is."""


class RelayHosts(SharedRelay):
    """Implements `Relay` by relay hosts that are found over the broker.

    A host that dies, or is cut off, gives its forks to others. While the broker is away, all forks
    go on where they are, and none can start.

    Args:
        config: The configuration.
        broker: The connection to the broker.
        lease: That of the Asterisk, which we hold.
        roster: Knows the relay hosts, as it has heard of them while we stood by.
        report: Called with each report.
    """

    def __init__(
        self, config: Config, broker: Broker, lease: Lease, roster: Roster, report: SendReport
    ) -> None:
        super().__init__(report, NO_HOST, NO_HOST_TIMEOUT_S)
        self._config: ClusterConfig = config.cluster
        self._broker = broker
        self._lease = lease
        self._roster = roster
        self._workers: dict[str, HostWorker] = {}  # by name
        self._moves = HostMoves(self._reports.put, self._own)
        self._owed = OwedOrders()
        loop = asyncio.get_running_loop()
        self._seen = Seen(self._config.dead_after, lambda: lease.renewed_at, loop.time)
        # The loop time until which hosts are looked for; None: no longer. See `find`.
        self._look_until: float | None = math.inf
        self._closed = False
        self._watching: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._turns = 0
        self._leave: list[Callable[[], None]] = []

    def _all_workers(self) -> Sequence[HostWorker]:
        return list(self._workers.values())

    # --- Towards the daemon ---

    async def start(self) -> Address:
        """Find the relay hosts, and what they hold of the forks of this Asterisk."""
        self._leave.append(self._broker.on_change(lambda _is_up: self._suspend()))
        subject = f"{UP}.{self._config.asterisk}.*"
        self._subscription = await self._broker.subscribe(subject, self._on_payload)
        self._leave.append(self._roster.listen(self._on_beat))
        self._watching = asyncio.create_task(self._watch())
        await self.find()
        log.info("%d relay hosts are there", len(self._listening()))
        return self.addresses[0] if self._workers else NOWHERE

    async def find(self) -> None:
        """Return when the relay hosts that are there have answered, or it takes them long.

        One that lives and has not answered may have forks; and if there is none, all may be cut
        off: they go on, and come. Until they have answered, and for a while at most, it is not
        known what is `held`.
        """
        await asyncio.sleep(self._roster.is_complete_in_s)
        for host in self._roster.hosts:
            if host.state is not HostState.DEAD:
                self._on_beat(host.beat)
        openings = [worker.opened.wait() for worker in self._workers.values()]
        with contextlib.suppress(TimeoutError):  # those that have died do not answer
            async with asyncio.timeout(FIND_TIMEOUT_S):
                await asyncio.gather(*openings)
        silent = self._living() - {worker.name for worker in self._listening()}
        now = asyncio.get_running_loop().time()
        if not self._listening():
            log.warning("no relay host is heard of: running forks wait for theirs")
            self._look_until = now + NO_HOST_TIMEOUT_S
        elif silent:
            log.warning("running forks wait for what %s may have", ", ".join(sorted(silent)[:10]))
            self._look_until = now + SLOW_TIMES * self._config.dead_after
        else:
            self._look_until = None

    def _look_on(self) -> None:
        """Report when all relay hosts that may come have come, or it took them too long."""
        until, now = self._look_until, asyncio.get_running_loop().time()
        if until in (None, math.inf) or (now < until and not self._are_all_here()):
            return
        self._look_until = None
        log.info("%d relay hosts are there by now", len(self._listening()))
        self._reports.put(RelaysFound())

    def _are_all_here(self) -> bool:
        """Return whether each relay host that was there a moment ago has told what it holds."""
        open_ = {worker.name for worker in self._listening()}
        return bool(open_) and not (self._living() | self._roster.missing) - open_

    def _living(self) -> set[str]:
        """Return the names of the relay hosts that are heard of."""
        return {host.beat.name for host in self._roster.hosts if host.state is not HostState.DEAD}

    @property
    def held(self) -> Mapping[str, HeldFork] | None:
        return super().held if self._look_until is None else None

    def configure(self, config: Config) -> None:
        """Let the legs of later forks come from other addresses; relay hosts have own files."""
        self._config = replace(self._config, legs_from=config.cluster.legs_from)

    async def until_expected(self, fork_id: str) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPECT_TIMEOUT_S):
                while (host := self._host_of(fork_id)) is not None:
                    if await host.is_reached():
                        return True
                    await host.opened.wait()
        return False

    def _host_of(self, fork_id: str) -> HostWorker | None:
        """Return the host that the next leg of a fork is for."""
        owner = self._moves.new_host(fork_id) or self._owners.get(fork_id)
        return owner if isinstance(owner, HostWorker) else None

    @property
    def outlives_daemon(self) -> bool:
        return True

    def address_of(self, fork_id: str) -> Address:
        host = self._host_of(fork_id)
        if host is not None:
            return host.leg_address
        return self.addresses[0] if self._workers else NOWHERE

    def send(self, command: Command) -> None:
        if isinstance(command, MoveFork):
            old = self._owners.get(command.fork_id)
            assert old is None or isinstance(old, HostWorker)
            spec = self._completed(command.spec)
            new = self._least(spec, self._with_room())
            self._moves.begin(replace(command, spec=spec), old, new)
            return
        if not isinstance(command, Everywhere):
            self._moves.on_command(command)
            if command.fork_id in self._orphaned:
                for worker in self._workers.values():
                    worker.note_order(command)
        super().send(command)
        if isinstance(command, Adopt):
            self._tell_count(command.fork_id)
            for order in self._owed.take(command.fork_id):
                super().send(order)

    def drain(self, name: str, *, is_on: bool) -> bool:
        """Have a relay host drained, or not any more; return whether it is there."""
        host = self._workers.get(name)
        return host is not None and host.tell(Drain(is_on))

    def _own(self, fork_id: str, worker: HostWorker) -> None:
        """Let another host have a fork."""
        if (before := self._owners.get(fork_id)) is not None:
            before.forks.discard(fork_id)
        self._owners[fork_id] = worker
        worker.forks.add(fork_id)

    def _begin(self, spec: ForkSpec) -> None:
        super()._begin(self._completed(spec))
        self._tell_count(spec.fork_id)

    def _completed(self, spec: ForkSpec) -> ForkSpec:
        """Return an order with what only a relay host needs to know."""
        self._turns += 1
        turn = (self._lease.epoch << TURN_BITS) + self._turns
        return replace(spec, turn=turn, legs_from=self._config.legs_from)

    def _choose(self, spec: ForkSpec) -> HostWorker | None:
        chosen = self._least(spec, self._with_room())
        if chosen is None and any(spec.fork_id in one.told for one in self._all_workers()):
            # It runs: one that is drained is better than its end.
            chosen = self._least(spec, [one for one in self._all_workers() if one.is_able])
        return chosen

    def _with_room(self) -> list[HostWorker]:
        return [one for one in self._all_workers() if one.has_room]

    def _least(self, spec: ForkSpec, able: Sequence[HostWorker]) -> HostWorker | None:
        """Give a fork to that of some hosts with the least load; return it, or None."""
        # One that was cut off may still be ending what it had.
        free = [one for one in able if not one.has(spec.fork_id)]
        zone = self._config.zone
        chosen = min(free, key=lambda one: (one.beat.zone != zone, one.load), default=None)
        if chosen is not None:
            chosen.on_given(spec)
        return chosen

    async def close(self) -> None:
        """Leave the forks that were not ended to the next controller."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for leave in self._leave:
            leave()
        if self._subscription is not None:
            with contextlib.suppress(*FAULTS):
                await self._subscription.unsubscribe()
        self._moves.close()
        for worker in self._workers.values():
            worker.end()
        await self._close_sharing()

    # --- The hosts ---

    def _on_beat(self, beat: Beat) -> None:
        if self._closed or not self._lease.is_held:
            return
        worker, now = self._workers.get(beat.name), asyncio.get_running_loop().time()
        if worker is None:
            if beat.is_last:
                return
            worker = self._add(beat)
        elif not worker.runs.count(beat, now, is_alive=self._seen.is_alive(beat.name)):
            return
        elif worker.beat.run_id != beat.run_id:
            self._lose(worker, "it was started anew")
        self._seen.note(beat.name)
        if beat.is_last:
            self._seen.forget(beat.name)
            worker.heard_at = now
            self._lose(worker, "it has ended")
            return
        worker.on_beat(beat)
        if beat.is_draining:
            self._drain(worker)

    def _add(self, beat: Beat) -> HostWorker:
        """Take another relay host; where there are too many, forget those that are dead."""
        if len(self._workers) >= MOST_KNOWN:
            self._workers = {
                name: one
                for name, one in self._workers.items()
                if self._seen.is_alive(name) or one.forks
            }
        if len(self._workers) >= MOST_KNOWN:
            raise NoMessage(f"there are {MOST_KNOWN} others already")
        subject = down_subject(beat.name, self._config.asterisk)
        worker = HostWorker(
            beat, lambda message: self._broker.publish(subject, message), lambda: self._lease.epoch
        )
        self._workers[beat.name] = worker
        return worker

    def _drain(self, worker: HostWorker) -> None:
        """Have the forks of a host moved; now and then again, since some cannot be yet."""
        now = asyncio.get_running_loop().time()
        if worker.forks and self._with_room() and now - worker.drained_at >= DRAIN_INTERVAL_S:
            worker.drained_at = now
            calls_too = worker.beat.moves_calls
            self._reports.put(RelayDraining(tuple(worker.forks), worker.name, calls_too))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self._lease.is_held:
                self._suspend()
            elif self._broker.is_up:
                for name in self._seen.dead():
                    self._lose(self._workers[name], "no sign of life")
                self._look_on()

    def _suspend(self) -> None:
        """End all sessions: another controller may lead; forks go on where they are."""
        self._seen.forget_times()
        for worker in self._workers.values():
            worker.end()

    def _lose(self, worker: HostWorker, why: str) -> None:
        level = logging.ERROR if worker.forks else logging.WARNING
        log.log(level, "%s is lost: %s; it had %d forks", worker, why, len(worker.forks))
        self._moves.on_lost(worker)
        worker.end()
        now = asyncio.get_running_loop().time()
        self._on_worker_lost(worker, now - worker.heard_at)
        worker.forget_told(but=self._orphaned)  # with which it may come back

    def forget(self) -> None:
        """Forget which host has which fork; `find` finds them as after an earlier controller."""
        self._look_until = math.inf
        self._suspend()
        self._moves.close()
        for worker in self._workers.values():
            self._owed.keep(worker.told)
            worker.forget()
        self._forget_forks()

    # --- From the hosts ---

    def _on_payload(self, subject: str, payload: bytes) -> None:
        worker = self._workers.get(subject.rpartition(".")[2])
        if worker is None or self._closed:
            return
        stamp, line = split(payload)
        if stamp.session != worker.numbers.session or not stamp.session:
            return  # of an earlier one
        if not worker.numbers.is_next(stamp):
            worker.on_lost()
            return
        worker.on_answer()
        try:
            message = decode_up(line)
        except ValueError as exc:
            raise NoMessage(str(exc)) from None
        self._on_message(worker, message)

    def _on_message(self, worker: HostWorker, message: Up) -> None:
        if isinstance(message, Held):
            self._on_held(worker, message)
        elif isinstance(message, Gone):
            worker.open()
        elif isinstance(message, Superseded):
            self._lease.outbid(message.epoch)
            worker.on_superseded()
        elif isinstance(message, Pong):
            worker.on_pong()
        elif not isinstance(message, ForkReport):
            self._on_report(worker, message)
        else:
            self._on_fork_report(worker, message)

    def _on_fork_report(self, worker: HostWorker, report: ForkReport) -> None:
        if isinstance(report, ForkEnded):
            worker.told.pop(report.fork_id, None)
        if self._moves.on_report(worker, report):
            return
        if report.fork_id in worker.leftovers:
            self._on_leftover(worker, report)
        elif isinstance(report, ForkEnded) and report.reason is EndReason.MOVED:
            if report.fork_id in worker.forks:  # nobody else has it, whatever went wrong
                self._orphan(worker, [report.fork_id])
                self._look_after_orphans()
            self._note_earlier(report)
        elif worker.is_news(report):
            self._on_report(worker, report)

    def _on_leftover(self, worker: HostWorker, report: ForkReport) -> None:
        """Handle a report of a fork that another host has, and that ends here."""
        if isinstance(report, ForkEnded):
            worker.leftovers.discard(report.fork_id)
            self._note_earlier(report)
        elif isinstance(report, SinkMessage) and report.fork_id in self._owners:
            self._reports.put(report)  # what its server says of the last audio of this connection

    def _note_earlier(self, report: ForkEnded) -> None:
        """Let the next host of a fork know what its earlier one has counted."""
        if report.stats != ForkStats():
            self._moves.keep_count(CountBefore(report.fork_id, report.stats))
            self._tell_count(report.fork_id)

    def _tell_count(self, fork_id: str) -> None:
        """Tell the host of a fork what its earlier one has counted, if there is a way to it."""
        owner = self._owners.get(fork_id)
        is_reached = isinstance(owner, HostWorker) and owner.is_open
        if is_reached and (count := self._moves.take_count(fork_id)) is not None:
            super().send(count)

    def _on_stats(self, worker: RelayWorker, taken: StatsTaken) -> StatsTaken:
        own = {
            fork_id: stats
            for fork_id, stats in taken.stats.items()
            if self._owners.get(fork_id) is worker
        }
        return replace(taken, stats=own)

    def _on_held(self, worker: HostWorker, message: Held) -> None:
        """Compare what a host has with what it should have."""
        worker.on_opened()
        last_turn = (self._lease.epoch << TURN_BITS) + self._turns
        true = [one for one in message.forks if one.turn <= last_turn]
        worker.refuse([one.fork_id for one in message.forks if one.turn > last_turn])
        held = {one.fork_id: one for one in true}
        self._moves.on_reopened(worker, held)
        worker.leftovers = {
            one.fork_id for one in true if one.is_spare and one.fork_id not in worker.forks
        }
        for fork_id in worker.leftovers:
            del held[fork_id]
        back = [fork_id for fork_id in held if fork_id in self._orphaned]
        for fork_id in back:  # it was lost for a moment, and no other could take them
            del self._orphaned[fork_id]
            self._owners[fork_id] = worker
            worker.forks.add(fork_id)
        if back:
            self._reports.put(RelayBack(tuple(back)))
        ours = worker.forks - worker.held.keys()
        self._orphan(worker, list(ours - held.keys()))
        for fork_id in ours & held.keys():
            worker.resume(held[fork_id])
            self._tell_count(fork_id)
        self._on_others(worker, [held[fork_id] for fork_id in held.keys() - ours])
        worker.end_leftovers()
        worker.forget_told(but=worker.forks)
        self._look_after_orphans()

    def _on_others(self, worker: HostWorker, others: Sequence[HeldFork]) -> None:
        """Keep forks of an earlier controller for the registry; end those that are elsewhere."""
        waiting = set(worker.held)
        for fork_id in waiting:  # some may have ended
            worker.forks.discard(fork_id)
            self._owners.pop(fork_id, None)
        wanted = [one for one in others if self._look_until is not None or one.fork_id in waiting]
        kept = [one for one in wanted if self._has_no_later(one)]
        self._take_held(worker, Held(tuple(map(self._owed.counted_in, kept))))
        worker.leftovers.update(one.fork_id for one in others if one not in kept)

    def _has_no_later(self, held: HeldFork) -> bool:
        """Return whether no other host holds a fork since later; have an earlier one end it."""
        other = self._owners.get(held.fork_id)
        if not isinstance(other, HostWorker):
            return True
        if held.fork_id not in other.held or other.held[held.fork_id].turn > held.turn:
            return False
        del other.held[held.fork_id]
        other.forks.discard(held.fork_id)
        other.leftovers.add(held.fork_id)
        other.end_leftovers()
        return True
