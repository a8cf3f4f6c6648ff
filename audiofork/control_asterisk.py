"""What a controller does for one Asterisk: leads, or stands by until it may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from audiofork import __version__, config_file
from audiofork.asterisk import leadership
from audiofork.cluster.beats import ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.lease import Holder, Lease
from audiofork.cluster.roster import Host, Roster
from audiofork.config import Config
from audiofork.daemon import Daemon
from audiofork.doors.cluster_doors import AsteriskDoors
from audiofork.errors import AmiError, ConfigError
from audiofork.forks.cluster_journal import ClusterJournal
from audiofork.forks.journal import Journal
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import SendReport
from audiofork.link.relay import Relay

log = logging.getLogger(__name__)

# How often a controller that the broker cannot reach asks Asterisk whether another leads.
LOOK_INTERVAL_S = 0.1
AWAY = "the NATS servers of the cluster cannot be reached"
NO_LEAD = "NATS does not confirm that this controller leads: JetStream is silent, or cannot write"


class AsteriskControl:
    """Runs the daemon of one Asterisk whenever it leads for that. Implements `daemon.Cluster`.

    Owned by the controller. `join` comes first, then `run`, which may be called again if it has
    raised, and at the end `leave`.

    Args:
        path: The configuration file.
        config: The configuration, as it is for this Asterisk alone.
        broker: The connection to the broker.
        roster: Who is in the cluster.
        run_id: Identifies this run of the controller.

    Attributes:
        name: What the cluster calls the Asterisk.
        doors: Where its daemon answers requests; to be set before `run`.
        on_role: Called when it leads from now on, or stands by.
        daemon: The daemon that leads; None: another controller does.
    """

    def __init__(
        self, path: Path, config: Config, broker: Broker, roster: Roster, run_id: str
    ) -> None:
        self.name = config.cluster.asterisk
        self._path = path
        self._cluster = config.cluster
        self._broker = broker
        self._roster = roster
        self._holder = Holder(config.cluster.own_name, run_id)
        self._since = time.monotonic()  # it leads or stands by
        self._lease: Lease | None = None
        self._relay: RelayHosts | None = None
        self._journal: ClusterJournal | None = None
        self._going_on: asyncio.Task[None] | None = None
        self.daemon: Daemon | None = None
        self.on_role: Callable[[], None] = lambda: None

    doors: AsteriskDoors

    @property
    def leads(self) -> bool:
        """Whether nobody else can lead now."""
        return self._lease is not None and self._lease.is_held

    @property
    def run_id(self) -> str:
        """Identifies this run of the controller."""
        return self._holder.run_id

    @property
    def is_silent(self) -> bool:
        """Whether NATS does not say any more who leads."""
        return self._lease is not None and self._lease.is_silent

    @property
    def names(self) -> tuple[str, str]:
        """Of this controller, and of its Asterisk."""
        return self._holder.name, self.name

    @property
    def epoch(self) -> int:
        """The number of our leadership."""
        return self._lease.epoch if self._lease is not None else 0

    @property
    def hosts(self) -> Sequence[Host]:
        """The relay hosts of the cluster."""
        return self._roster.hosts

    def load(self) -> Config:
        """Read the configuration, as it is for this Asterisk.

        Raises:
            ConfigError: It cannot be used, or has this Asterisk no more.
        """
        config = config_file.load(self._path)
        try:
            return config.of_asterisk(self.name)
        except KeyError:
            raise ConfigError(f"no section is of the Asterisk {self.name} any more") from None

    def parts(self, config: Config, report: SendReport) -> tuple[Relay, Journal]:
        """Return the relay and the journal of the cluster."""
        assert self._lease is not None, "a daemon is there only while we lead"
        self._relay = RelayHosts(config, self._broker, self._lease, self._roster, report)
        self._journal = ClusterJournal(self._broker, self.name, lambda: self.leads)
        return self._relay, self._journal

    def drain(self, name: str, is_on: bool) -> bool:  # noqa: FBT001 (of `SharedDoors`)
        """Have a relay host drained, or not any more; return whether it is there."""
        return self._relay is not None and self._relay.drain(name, is_on=is_on)

    def beat(self, *, is_last: bool = False) -> None:
        """Tell the cluster how we are."""
        beat = ControlBeat(
            name=self._holder.name,
            asterisk=self.name,
            run_id=self._holder.run_id,
            leads=self.leads,
            since_s=round(time.monotonic() - self._since, 1),
            epoch=self.epoch if self.leads else 0,
            server=self._broker.server,
            version=__version__,
            is_last=is_last,
        )
        self._broker.publish(beat.subject, beat.encode())

    def _take_role(self) -> None:
        """Tell the cluster that we lead from now on, or stand by."""
        self._since = time.monotonic()
        self.beat()
        self.on_role()

    def reload(self) -> None:
        """Have the daemon that leads read the configuration again; others do when they lead."""
        if self.daemon is not None and self.daemon.ready.is_set():
            self.daemon.reload()

    async def join(self) -> None:
        """Find the lease.

        Raises:
            BrokerUnavailable: The connection is lost, or the leases cannot be used.
        """
        dead_after_s = self._cluster.dead_after
        self._lease = await Lease.of(self._broker, self.name, self._holder, dead_after_s)

    async def leave(self) -> None:
        """Let another controller lead at once."""
        if self._lease is not None:
            await self._lease.release()

    async def run(self, stop: asyncio.Event) -> None:
        """Lead whenever no other controller does, until told to stop.

        Raises:
            CannotListen: An address cannot be used.
            ConfigError: The configuration, or a file that it names, cannot be used.
        """
        await self.doors.front.open()
        try:
            while not stop.is_set():
                await self._lead_once(stop)
        finally:
            await self.doors.front.close()

    async def _lead_once(self, stop: asyncio.Event) -> None:
        """Wait until we may lead; lead until told to stop, or another controller leads."""
        lease = self._lease
        assert lease is not None
        log.info("%s: standing by", self.name)
        self._take_role()
        await unless(stop, lease.take())
        if stop.is_set():
            return
        log.warning("%s: leading, epoch %d", self.name, lease.epoch)
        self._take_role()
        await self.doors.history.leave_to_daemon()
        try:
            await self._lead(stop, lease)
        finally:
            self.doors.history.take_back()

    async def _lead(self, stop: asyncio.Event, lease: Lease) -> None:
        """Lead until told to stop, or another controller leads."""
        self.daemon = daemon = Daemon(self._path, self.load(), self)
        running = asyncio.create_task(daemon.run())
        keeping = asyncio.create_task(self._keep(lease, daemon))
        stopping = asyncio.create_task(_stop_at(stop, daemon, running))
        try:
            await running
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            going_on = self._going_on or keeping
            for task in (keeping, stopping, going_on):
                task.cancel()
            await asyncio.gather(keeping, stopping, going_on, return_exceptions=True)
            self.daemon = self._going_on = None

    async def _keep(self, lease: Lease, daemon: Daemon) -> None:
        """Keep the lease; stop the daemon when another controller leads."""
        while True:
            await lease.keep()
            if not daemon.ready.is_set():  # it has not begun with anything
                daemon.stop()
                return
            self.suspend()
            if not await self._regain(lease, daemon):
                log.error("%s: another controller leads, or did", self.name)
                daemon.stop()
                return
            log.warning("%s: leading again, epoch %d", self.name, lease.epoch)
            self._going_on = asyncio.create_task(self._go_on(daemon))

    def suspend(self) -> None:
        """Have the daemon do nothing any more: another controller may lead."""
        if self._going_on is not None:
            self._going_on.cancel()
        if self.daemon is not None and not self.daemon.forks.is_suspended:
            log.error("%s: suspended: the broker is away, or another controller leads", self.name)
            reason = NO_LEAD if self._broker.is_up else AWAY
            self.daemon.forks.suspend(reason, self._cluster.start_wait)
            assert self._relay is not None
            self._relay.forget()

    async def _regain(self, lease: Lease, daemon: Daemon) -> bool:
        """Lead again as soon as the broker is there; return False if another does, or did."""
        regaining = asyncio.create_task(lease.regain())
        watching = asyncio.create_task(self._until_superseded(lease, daemon))
        try:
            await asyncio.wait({regaining, watching}, return_when=asyncio.FIRST_COMPLETED)
            return regaining.done() and regaining.result()
        finally:
            regaining.cancel()
            watching.cancel()
            await asyncio.gather(regaining, watching, return_exceptions=True)

    async def _until_superseded(self, lease: Lease, daemon: Daemon) -> None:
        """Return when Asterisk knows of a later leader: the broker may be away from us alone."""
        while True:
            with contextlib.suppress(AmiError):
                if await leadership.noted(daemon.ami) > lease.epoch:
                    return
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _go_on(self, daemon: Daemon) -> None:
        """Take the forks up again when the relay hosts are found."""
        assert self._relay is not None
        assert self._journal is not None
        await self._relay.find()
        await daemon.go_on(await self._journal.read())
        if not daemon.forks.is_suspended:
            log.info("%s: forks may start again", self.name)


async def _stop_at(stop: asyncio.Event, daemon: Daemon, running: asyncio.Task[None]) -> None:
    """Stop a daemon when we are told to stop; one that has not begun yet may wait for something."""
    await stop.wait()
    daemon.stop()
    if not daemon.ready.is_set():
        running.cancel()


async def unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do something until it is done, or we are told to stop.

    Raises: what it raises.
    """
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if not working.cancelled():
        working.result()
