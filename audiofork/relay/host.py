"""A relay host: relays the forks of the controllers of a cluster, which it hears over the broker.

Each Asterisk has a controller that leads; a fork belongs to the Asterisk whose controller has
ordered it. While a controller is away its forks go on, and what happens to them is kept for the
next one, as by a relay process that outlives its daemon.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import uvloop

import audiofork
from audiofork import log as logs
from audiofork.cluster.beats import BEATS_IN_DEAD_TIME, Beat
from audiofork.cluster.broker import Broker
from audiofork.cluster.figures import HostFigures
from audiofork.cluster.login import inbox_of_relay
from audiofork.cluster.registration import Presence
from audiofork.cluster.wandering import Wandering
from audiofork.config import Address, Config, HttpConfig
from audiofork.errors import CannotListen, ConfigError, NoMessage
from audiofork.link.messages import (
    CheckLeg,
    Command,
    EndReason,
    ExpectCheckLeg,
    ForkEnded,
    ForkReport,
    ForkSpec,
    ForkStats,
    HeardAudio,
    LevelsTaken,
    RelaysReport,
    Report,
    SendReport,
    StatsTaken,
    StrangersRefused,
    TakeLevels,
    TakeStats,
)
from audiofork.link.relay import give
from audiofork.link.sessions import DOWN, is_with, split, up_subject
from audiofork.relay.host_checks import MOST_ASTERISKS, MOST_CHECK_LEGS, fault_of
from audiofork.relay.host_owner import SILENT_S, Owner
from audiofork.relay.host_stats import HostStats
from audiofork.relay.worker import Worker
from audiofork.system import feed_watchdog, lift_file_limit, notify, spare_collections
from audiofork.url_patterns import ANYWHERE, is_allowed

log = logging.getLogger(__name__)

TWICE = "this relay host has it already"
# Over which controllers are told how much of a core the host needs: of one beat chance tells more.
CPU_SPAN_S = 3.0
# So much of `drain_timeout` is left when calls to servers begin to move, more than they may need.
CALLS_MOVE_S = 15.0


class Door(Protocol):
    """What others ask a relay host by."""

    async def start(self) -> None:
        """Listen; raises CannotListen, ConfigError."""

    def reading_tokens(self, config: HttpConfig, /) -> Callable[[], None]:
        """Read the tokens of a configuration; return what makes them count."""

    async def close(self) -> None:
        """Stop that."""


MakeDoor = Callable[[HttpConfig, Callable[[], Awaitable[HostFigures]]], Door]


class HostedFork(Protocol):
    """What a relay host knows of a fork."""

    @property
    def spec(self) -> ForkSpec:
        """What was ordered."""


class HostedWorker(Protocol):
    """What a relay host has relayed by; see `Worker`."""

    @property
    def sessions(self) -> Mapping[str, HostedFork]:
        """The forks, by id."""

    @property
    def addresses(self) -> Sequence[Address]:
        """Those that legs connect to."""

    async def start(self) -> Address:
        """Listen for legs; raises OSError."""

    def handle(self, command: Command, /) -> None:
        """Carry out a command."""

    def configure(self, config: Config, /) -> None:
        """Let a configuration count for later forks."""

    async def close(self) -> None:
        """End all forks."""


MakeWorker = Callable[[Config, SendReport], HostedWorker]


class RelayHost:
    """Runs a worker for all controllers of a cluster; `run` returns after SIGTERM or SIGINT.

    After SIGTERM it returns when its forks have moved.

    Args:
        config: The configuration of this host.
        reload: Returns the configuration anew.
        make_door: Makes the HTTP door; None: it has none.
        make_worker: Makes what relays.

    Raises:
        ConfigError: A file that the configuration names cannot be used.
    """

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config],
        make_door: MakeDoor | None = None,
        make_worker: MakeWorker = Worker,
    ) -> None:
        self._config = config
        self._reload_config = reload
        name = config.cluster.own_name
        self._broker = Broker(
            config.cluster, f"audiofork relay {name}", inbox_of_relay(config.cluster)
        )
        self._worker = make_worker(config, self._on_report)
        self._owners: dict[str, Owner] = {}  # by Asterisk
        self._fork_owners: dict[str, Owner] = {}
        self._stats = HostStats(self._worker.handle)
        self._asking: Owner | None = None
        self._check_legs: dict[str, Owner] = {}
        self._presence = Presence(self._broker.publish)
        self._draining_since = math.inf  # loop time
        self._is_ending = False
        self._stop = asyncio.Event()
        self._door = make_door(config.http, self.figures) if make_door is not None else None

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self._config.cluster.own_name

    async def run(self) -> None:
        """Relay until told to stop.

        Raises:
            CannotListen: The address for legs cannot be used.
            ConfigError: A file that the configuration names cannot be used.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            if self._door is not None:
                await self._door.start()
            await self._relay()
        finally:
            if self._door is not None:
                await self._door.close()

    async def _relay(self) -> None:
        try:
            address = await self._worker.start()
        except OSError as exc:
            raise CannotListen(
                "[audiosocket] listen", self._config.audiosocket.listen, exc
            ) from exc
        log.info("relay host %s: listening for Asterisk's audio on %s", self.name, address)
        works = [
            asyncio.create_task(self._connect()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(feed_watchdog()),
        ]
        stopping = asyncio.create_task(self._stop.wait())
        notify("READY=1")
        running = {stopping, *works}
        while not self._stop.is_set():
            # One that fails ends all: a host without its beats would look dead, and live on.
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for work in ended:
                work.result()
        notify("STOPPING=1")
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        log.info("stopping, %d forks end or move", len(self._worker.sessions))
        await self._worker.close()
        self._presence.tell(replace(self._state(0.0), is_last=True))
        for owner in self._owners.values():
            owner.leave()
        await self._broker.close()

    def _drain(self) -> None:
        """End when the forks have moved, or it took too long; at once where it is repeated."""
        timeout_s = self._config.cluster.drain_timeout
        if self._is_ending or not self._worker.sessions or not timeout_s:
            self._stop.set()
            return
        self._is_ending = True
        self._set_draining(True)
        asyncio.get_running_loop().call_later(timeout_s, self._stop.set)

    def _set_draining(self, is_on: bool) -> None:  # noqa: FBT001 (of `Owner`)
        """Take no more forks, so that controllers move those that are here; or take some again."""
        if self._is_ending and not is_on:
            log.warning("it stays drained: it ends as soon as its forks have moved")
        elif is_on != self._is_draining:
            self._draining_since = asyncio.get_running_loop().time() if is_on else math.inf
            what = "draining" if is_on else "not drained any more"
            log.info("%s: %d forks are here", what, len(self._worker.sessions))

    @property
    def _is_draining(self) -> bool:
        return self._draining_since < math.inf

    @property
    def _moves_calls(self) -> bool:
        """Whether calls to servers had time to end, and now have as much as they need to move."""
        passed_s = asyncio.get_running_loop().time() - self._draining_since
        return passed_s >= self._config.cluster.drain_timeout - CALLS_MOVE_S

    async def _connect(self) -> None:
        self._broker.on_change(self._on_broker)
        await self._broker.connect()
        self._presence.renew()
        await self._broker.subscribe(f"{DOWN}.{self.name}.*", self._on_payload)

    async def _beat(self) -> None:
        interval_s = self._config.cluster.dead_after / BEATS_IN_DEAD_TIME
        used, at, cpu = time.process_time(), time.monotonic(), 0.0
        wandering = Wandering(time.monotonic)
        while True:
            now, now_used = time.monotonic(), time.process_time()
            passed_s = max(now - at, 1e-3)
            cpu += ((now_used - used) / passed_s - cpu) * min(1.0, passed_s / CPU_SPAN_S)
            used, at = now_used, now
            self._presence.tell(self._state(cpu))
            for owner in self._owners.values():
                owner.on_time()
            if wandering.is_due(is_heard=self._is_heard()):
                await self._broker.move()
            if self._is_ending and not self._worker.sessions:
                self._stop.set()
            await asyncio.sleep(interval_s)

    def _is_heard(self) -> bool:
        """Return whether a controller is heard, or none ever was."""
        return not self._owners or any(owner.is_led for owner in self._owners.values())

    def _state(self, cpu: float) -> Beat:
        cluster = self._config.cluster
        return Beat(
            name=self.name,
            run_id=self._presence.run_id,
            listen=str(self._worker.addresses[0]),
            zone=cluster.zone,
            capacity=cluster.capacity,
            forks=len(self._worker.sessions),
            cpu=round(cpu, 3),
            version=audiofork.__version__,
            is_draining=self._is_draining,
            moves_calls=self._moves_calls,
            clock=round(time.time(), 3),
            frames_a_second=sum(
                session.spec.frames_a_second for session in self._worker.sessions.values()
            ),
        )

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 (of `Broker.on_change`)
        if is_up:
            self._presence.renew()
            return
        for owner in self._owners.values():
            owner.leave()

    def _reload(self) -> None:
        """Apply the configuration file to new forks; if it is invalid, keep the old settings."""
        try:
            new = self._reload_config()
            door = self._door
            take_tokens = door.reading_tokens(new.http) if door is not None else lambda: None
            self._worker.configure(new)
        except ConfigError as exc:
            log.error("not reloaded, the old configuration stays: %s", exc)
            return
        self._config = replace(self._config, security=new.security)
        take_tokens()
        logs.set_up(new.log)
        log.info("reloaded; other changes to [audiosocket], [cluster] and [http] need a restart")

    async def figures(self) -> HostFigures:
        """Return how this host is."""
        report = await self._stats.take(self._worker.sessions)
        stats = report.stats
        forks = Counter(map(id, self._fork_owners.values()))
        return HostFigures(
            beat=self._state(0.0),
            is_connected=self._broker.is_up,
            forks={asterisk: forks[id(owner)] for asterisk, owner in self._owners.items()},
            controllers={asterisk: owner.is_led for asterisk, owner in self._owners.items()},
            counts=self._stats.counts(),
            waiting=sum(
                one.frames_in - one.frames_sent - one.frames_dropped for one in stats.values()
            ),
            unacked_bytes=sum(one.unacked_bytes for one in stats.values()),
            latency=report.latency,
            latency_sum_s=report.latency_sum_s,
        )

    # --- From the controllers ---

    def _on_payload(self, subject: str, payload: bytes) -> None:
        asterisk = subject.rpartition(".")[2]
        stamp, line = split(payload)
        if not is_with(stamp.session, self._presence.run_id):
            self._presence.on_namesake()
            return
        owner = self._owners.get(asterisk)
        if owner is None:
            if len(self._owners) >= MOST_ASTERISKS:
                raise NoMessage(f"there are {MOST_ASTERISKS} Asterisks already")
            self._presence.renew()  # before the first controller there was no bucket for that
            to = up_subject(asterisk, self.name)
            owner = self._owners[asterisk] = Owner(
                asterisk,
                lambda message: self._broker.publish(to, message),
                lambda command: self._obey(self._owners[asterisk], command),
                self._config.relay.orphan_timeout,
                time.monotonic,
                self._set_draining,
                # It pings at the beats, of which there are so many in this time.
                max(SILENT_S, self._config.cluster.dead_after),
            )
        owner.on_message(stamp, line)

    def _obey(self, owner: Owner, command: Command) -> None:
        if fault := fault_of(command):
            if isinstance(command, ForkSpec):
                detail = f"it was ordered wrong: {fault}"
                owner.on_report(ForkEnded(command.fork_id, EndReason.FAULT, detail, ForkStats()))
            raise NoMessage(fault)
        if isinstance(command, ForkSpec) and not self._may_send_to(command.url):
            detail = f"[security] allow_urls of the relay host {self.name} does not name its server"
            log.error("fork %s is refused: %s", command.fork_id[:8], detail)
            owner.on_report(ForkEnded(command.fork_id, EndReason.SINK_REFUSED, detail, ForkStats()))
            return
        if isinstance(command, TakeStats):
            ticket = command.ticket
            self._stats.ask(lambda report: self._tell(owner, ticket, report))
            return
        if isinstance(command, ForkSpec):
            if command.fork_id in self._worker.sessions:
                owner.on_report(ForkEnded(command.fork_id, EndReason.FAULT, TWICE, ForkStats()))
                return
            self._fork_owners[command.fork_id] = owner
        elif isinstance(command, ExpectCheckLeg):
            self._check_legs[command.leg_uuid] = owner
            if len(self._check_legs) > MOST_CHECK_LEGS:
                del self._check_legs[next(iter(self._check_legs))]
        elif (
            not isinstance(command, TakeLevels)
            and self._fork_owners.get(command.fork_id) is not owner
        ):
            return  # it has ended, or it is of another Asterisk
        self._asking = owner
        give(command, self._worker.handle, self._on_report)
        self._asking = None

    def _may_send_to(self, url: str) -> bool:
        allowed = self._config.security.allow_urls
        return allowed == ANYWHERE or is_allowed(url, allowed)

    # --- From the worker ---

    def _on_report(self, report: Report) -> None:
        assert not isinstance(report, RelaysReport), "not of this host's making"
        if isinstance(report, StatsTaken):
            self._stats.on_taken(report)
        elif isinstance(report, StrangersRefused):
            for owner in self._owners.values():
                owner.tell(report)
        elif isinstance(report, LevelsTaken):
            if self._asking is not None:
                self._asking.tell(_of_owner(report, self._asking, self._fork_owners))
        elif isinstance(report, CheckLeg):
            if (asker := self._check_legs.get(report.leg_uuid)) is not None:
                asker.tell(report)
            if report.has_come:
                self._check_legs.pop(report.leg_uuid, None)
        else:
            self._on_fork_report(report)

    def _on_fork_report(self, report: ForkReport | HeardAudio) -> None:
        if isinstance(report, ForkEnded):
            self._stats.on_ended(report)
            if self._stop.is_set() and report.reason is EndReason.SHUTDOWN:
                # It goes on at another host, which is to know what was counted and lost here.
                report = replace(report, reason=EndReason.MOVED)
        owner = self._fork_owners.get(report.fork_id)
        if owner is None:
            return
        if isinstance(report, HeardAudio):
            owner.tell(report)
        else:
            owner.on_report(report)
        if report.fork_id not in self._worker.sessions:
            del self._fork_owners[report.fork_id]

    def _tell(self, owner: Owner, ticket: int, report: StatsTaken) -> None:
        """Tell an owner the statistics of its forks."""
        stats = {
            fork_id: owner.whole(fork_id, one)
            for fork_id, one in report.stats.items()
            if self._fork_owners.get(fork_id) is owner
        }
        owner.tell(replace(report, ticket=ticket, stats=stats))


def _of_owner(report: LevelsTaken, owner: Owner, owners: dict[str, Owner]) -> LevelsTaken:
    """Return the part of a report that is of the forks of one Asterisk."""
    levels = {key: one for key, one in report.levels.items() if owners.get(key) is owner}
    values = (int(value) for one in levels.values() for value in one)
    return LevelsTaken.of(levels, values)


def run(config: Config, reload: Callable[[], Config], make_door: MakeDoor | None = None) -> None:
    """Run a relay host until SIGTERM or Ctrl-C.

    Args:
        config: The configuration of this host.
        reload: Returns it anew.
        make_door: Makes the HTTP door; None: it has none.

    Raises:
        CannotListen: An address cannot be used.
        ConfigError: A file that the configuration names cannot be used.
    """
    lift_file_limit()
    spare_collections()
    uvloop.run(_run(config, reload, make_door))


async def _run(config: Config, reload: Callable[[], Config], make_door: MakeDoor | None) -> None:
    await RelayHost(config, reload, make_door).run()
