"""A controller of a cluster: leads for its Asterisk, or stands by until it may."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path

from audiofork import __version__, config_file
from audiofork.asterisk import leadership
from audiofork.cluster.beats import CONTROL_BEAT_S, ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.lease import BUCKET, Holder, Lease
from audiofork.cluster.login import inbox_of_controller
from audiofork.cluster.roster import Host, Roster
from audiofork.config import Config
from audiofork.daemon import Daemon
from audiofork.doors.cluster_doors import ClusterDoors
from audiofork.errors import AmiError, BrokerUnavailable, ConfigError
from audiofork.forks.cluster_journal import ClusterJournal
from audiofork.forks.journal import Journal
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import SendReport
from audiofork.link.relay import Relay
from audiofork.system import feed_watchdog, notify

log = logging.getLogger(__name__)

RETRY_S = 1.0
# How often a controller that the broker cannot reach asks Asterisk whether another leads.
LOOK_INTERVAL_S = 0.1
AWAY = "the NATS servers of the cluster cannot be reached"


class Control:
    """Runs a daemon whenever this controller leads. Implements `daemon.Cluster`.

    Owned by the command `control`; `run` returns after a SIGTERM or SIGINT.

    Args:
        path: The configuration file.
        config: The configuration, with a cluster.

    Attributes:
        daemon: The daemon that leads; None: another controller does.
        doors: Open for as long as it runs.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._cluster = config.cluster
        cluster = config.cluster
        self._broker = Broker(
            cluster, f"audiofork control {cluster.own_name}", inbox_of_controller(cluster)
        )
        self._roster = Roster(self._broker, config.cluster.dead_after)
        self._stop = asyncio.Event()
        self._run_id = str(uuid.uuid4())
        self._since = time.monotonic()  # it leads or stands by
        self._lease: Lease | None = None
        self._relay: RelayHosts | None = None
        self._journal: ClusterJournal | None = None
        self._going_on: asyncio.Task[None] | None = None
        self.daemon: Daemon | None = None
        self.doors = ClusterDoors(
            *(config, self._broker, self._roster, lambda: self.leads, self._drain),
            run_id=self._run_id,
        )

    @property
    def leads(self) -> bool:
        """Whether nobody else can lead now."""
        return self._lease is not None and self._lease.is_held

    @property
    def names(self) -> tuple[str, str]:
        """Of this controller, and of its Asterisk."""
        return self._cluster.own_name, self._cluster.asterisk

    @property
    def epoch(self) -> int:
        """The number of our leadership."""
        return self._lease.epoch if self._lease is not None else 0

    @property
    def hosts(self) -> Sequence[Host]:
        """The relay hosts of the cluster."""
        return self._roster.hosts

    def parts(self, config: Config, report: SendReport) -> tuple[Relay, Journal]:
        """Return the relay and the journal of the cluster."""
        assert self._lease is not None, "a daemon is there only while we lead"
        self._relay = RelayHosts(config, self._broker, self._lease, self._roster, report)
        self._journal = ClusterJournal(self._broker, self._cluster.asterisk, lambda: self.leads)
        return self._relay, self._journal

    def _drain(self, name: str, is_on: bool) -> bool:  # noqa: FBT001 (of `ClusterDoors`)
        """Have a relay host drained, or not any more; return whether it is there."""
        return self._relay is not None and self._relay.drain(name, is_on=is_on)

    async def run(self) -> None:
        """Lead whenever no other controller does, until told to stop.

        Raises:
            CannotListen: An address cannot be used.
            ConfigError: A file that the configuration names cannot be used.
        """
        self._take_signals()
        await self.doors.open()
        notify("READY=1")
        feeding = asyncio.create_task(feed_watchdog())
        beating: asyncio.Task[None] | None = None
        try:
            await self._unless_stopped(self._join())
            beating = asyncio.create_task(self._beat())
            while not self._stop.is_set():
                await self._lead_once()
        finally:
            notify("STOPPING=1")
            feeding.cancel()
            await self.doors.close()
            if beating is not None:
                beating.cancel()
            if self._lease is not None:
                await self._lease.release()
            self._tell(is_last=True)
            await self._broker.close()

    async def _beat(self) -> None:
        """Tell the cluster how we are, again and again."""
        while True:
            self._tell()
            await asyncio.sleep(CONTROL_BEAT_S)

    def _tell(self, *, is_last: bool = False) -> None:
        beat = ControlBeat(
            name=self._cluster.own_name,
            asterisk=self._cluster.asterisk,
            run_id=self._run_id,
            leads=self.leads,
            since_s=round(time.monotonic() - self._since, 1),
            epoch=self.epoch if self.leads else 0,
            server=self._broker.server,
            version=__version__,
            is_last=is_last,
        )
        self._broker.publish(beat.subject, beat.encode())

    def _on_role(self) -> None:
        """Tell the cluster that we lead from now on, or stand by."""
        self._since = time.monotonic()
        self._tell()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)

    def _reload(self) -> None:
        """Read the tokens anew while we stand by; the rest of the file is read when we lead."""
        try:
            self.doors.reading(config_file.load(self._path).http)()
        except ConfigError as exc:
            text = config_file.with_place(str(exc), self._path)
            log.error("not reloaded, the old tokens stay: %s", text)
        else:
            log.info("reloaded the tokens; the rest of the file is read when this one leads")

    async def _unless_stopped(self, work: Coroutine[None, None, None]) -> None:
        """Do something until it is done, or we are told to stop.

        Raises: what it raises.
        """
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
        if not working.cancelled():
            working.result()

    async def _join(self) -> None:
        await self._broker.connect()
        while True:
            try:
                bucket = await self._broker.bucket(BUCKET)
                await self._roster.start()
                await self.doors.join()
                break
            except BrokerUnavailable as exc:
                log.error("the leases of the cluster cannot be used: %s; trying again", exc)
            await asyncio.sleep(RETRY_S)
        cluster = self._cluster
        holder = Holder(cluster.own_name, self._run_id)
        self._lease = Lease(bucket, cluster.asterisk, holder, cluster.dead_after)

    async def _lead_once(self) -> None:
        """Wait until we may lead; lead until told to stop, or another controller leads."""
        lease, name = self._lease, self._cluster.asterisk
        assert lease is not None
        log.info("%s: standing by", name)
        notify(f"STATUS=standing by for {name}")
        self._on_role()
        await self._unless_stopped(lease.take())
        if self._stop.is_set():
            return
        log.warning("%s: leading, epoch %d", name, lease.epoch)
        self._on_role()
        await self.doors.history.leave_to_daemon()
        self.daemon = daemon = Daemon(self._path, config_file.load(self._path), self)
        keeping = asyncio.create_task(self._keep(lease, daemon))
        stopping = asyncio.create_task(self._stop_with_us(daemon))
        try:
            await daemon.run()
        finally:
            is_lost = keeping.done()
            going_on = self._going_on or keeping
            for task in (keeping, stopping, going_on):
                task.cancel()
            await asyncio.gather(keeping, stopping, going_on, return_exceptions=True)
            self.daemon = self._going_on = None
            self.doors.history.take_back()
            self._take_signals()
        if not is_lost:
            self._stop.set()

    async def _stop_with_us(self, daemon: Daemon) -> None:
        """Stop the daemon on a signal that has come before it takes signals itself."""
        await self._stop.wait()
        daemon.stop()

    async def _keep(self, lease: Lease, daemon: Daemon) -> None:
        """Keep the lease; stop the daemon when another controller leads."""
        name = self._cluster.asterisk
        while True:
            await lease.keep()
            if not daemon.ready.is_set():  # it has not begun with anything
                daemon.stop()
                return
            self.suspend()
            if not await self._regain(lease, daemon):
                log.error("%s: another controller leads, or did", name)
                daemon.stop()
                return
            log.warning("%s: leading again, epoch %d", name, lease.epoch)
            self._going_on = asyncio.create_task(self._go_on(daemon))

    def suspend(self) -> None:
        """Have the daemon do nothing any more: another controller may lead."""
        if self._going_on is not None:
            self._going_on.cancel()
        if self.daemon is not None and not self.daemon.forks.is_suspended:
            name, wait_s = self._cluster.asterisk, self._cluster.start_wait
            log.error("%s: suspended: the broker is away, or another controller leads", name)
            self.daemon.forks.suspend(AWAY, wait_s)
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
            log.info("%s: forks may start again", self._cluster.asterisk)
