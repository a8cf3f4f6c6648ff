"""A controller of a cluster: leads for each of its Asterisks, or stands by until it may."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from audiofork import config_file
from audiofork import log as logs
from audiofork.cluster.beats import CONTROL_BEAT_S, ControlBeat
from audiofork.cluster.broker import Broker
from audiofork.cluster.login import inbox_of_controller
from audiofork.cluster.registration import Registered
from audiofork.cluster.roster import Roster
from audiofork.cluster.wandering import Wandering
from audiofork.config import Config
from audiofork.control_asterisk import AsteriskControl, unless
from audiofork.doors.cluster_doors import AsteriskDoors, ClusterDoors
from audiofork.errors import BrokerUnavailable, CannotListen, ConfigError
from audiofork.log import COMPLAINT_INTERVAL_S, Repeats
from audiofork.system import feed_watchdog, notify

log = logging.getLogger(__name__)

RETRY_S = 1.0
# How long an Asterisk is left to other controllers that cannot be served here; they need a second.
FAILED_S = 10.0
# How long one that has just come waits to hear of us: several that come together are told at once.
ANSWER_S = 0.05


class Control:
    """Serves the Asterisks of a configuration, each for itself.

    Owned by the command `control`; `run` returns after a SIGTERM or SIGINT.

    Args:
        path: The configuration file.
        config: The configuration, with a cluster.

    Attributes:
        asterisks: What it does for each Asterisk.
        doors: Open for as long as it runs.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        cluster = config.cluster
        own = [config.of_asterisk(name) for name in config.asterisk_names]
        # One connection has one inbox: that of the first Asterisk serves all of them.
        inbox = inbox_of_controller(own[0].cluster)
        self._broker = Broker(cluster, f"audiofork control {cluster.own_name}", inbox)
        self._roster = Roster(self._broker, cluster.dead_after)
        self._registered = Registered(self._broker, self._roster.on_registered)
        self._stop = asyncio.Event()
        self._is_asked = asyncio.Event()  # for a beat
        self._roster.on_new_controller = self._is_asked.set
        self._roster.is_led_here = self._is_led_here
        run_id = str(uuid.uuid4())
        self.doors = ClusterDoors(config, self._broker, self._roster, run_id)
        self.asterisks = [
            AsteriskControl(path, one, self._broker, self._roster, run_id) for one in own
        ]
        for one in self.asterisks:
            one.doors = self._doors_of(one)
            one.on_role = self._tell_systemd

    def _is_led_here(self, beat: ControlBeat) -> bool:
        """Return False for a beat of ours that is out of date, as all are while NATS is away."""
        own = (one for one in self.asterisks if one.name == beat.asterisk)
        return all(one.leads or one.run_id != beat.run_id for one in own)

    def _doors_of(self, one: AsteriskControl) -> AsteriskDoors:
        return self.doors.of(one.name, lambda: one.leads, one.drain)

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
            await unless(self._stop, self._join())
            beating = asyncio.create_task(self._beat())
            await asyncio.gather(*(self._serve(one) for one in self.asterisks))
        finally:
            notify("STOPPING=1")
            feeding.cancel()
            await self.doors.close()
            if beating is not None:
                beating.cancel()
            await asyncio.gather(*(one.leave() for one in self.asterisks))
            for one in self.asterisks:
                one.beat(is_last=True)
            await self._registered.close()
            await self._broker.close()

    async def _serve(self, one: AsteriskControl) -> None:
        """Serve an Asterisk until told to stop; a failure leaves the others alone.

        Raises: what `AsteriskControl.run` does, where there are no others.
        """
        with self._named(one):
            await self._serve_named(one)

    async def _serve_named(self, one: AsteriskControl) -> None:
        while not self._stop.is_set():
            try:
                await one.run(self._stop)
            except Exception as exc:
                if len(self.asterisks) == 1:
                    raise
                self._tell_failure(one, exc)
                await one.leave()
                await unless(self._stop, asyncio.sleep(FAILED_S))
        await one.leave()  # the daemon of another may take longer to stop

    @contextmanager
    def _named(self, one: AsteriskControl) -> Iterator[None]:
        """Let lines of the log name the Asterisk where there are several, also of later tasks."""
        token = logs.asterisk.set(one.name if len(self.asterisks) > 1 else "")
        try:
            yield
        finally:
            logs.asterisk.reset(token)

    def _tell_failure(self, one: AsteriskControl, exc: Exception) -> None:
        is_known = isinstance(exc, (CannotListen, ConfigError, BrokerUnavailable))
        text = config_file.with_place(str(exc), self._path) if is_known else "a bug"
        log.error(
            "%s: cannot be served here: %s; trying again in %g s",
            *(one.name, text, FAILED_S),
            exc_info=None if is_known else exc,
        )

    async def _beat(self) -> None:
        """Tell the cluster how we are, again and again, and soon whoever has just come."""
        wandering = Wandering(time.monotonic)
        while True:
            for one in self.asterisks:
                one.beat()
            if wandering.is_due(is_heard=not all(one.is_silent for one in self.asterisks)):
                await self._broker.move()
            with suppress(TimeoutError):
                async with asyncio.timeout(CONTROL_BEAT_S):
                    await self._is_asked.wait()
                    await asyncio.sleep(ANSWER_S)
            self._is_asked.clear()

    def _tell_systemd(self) -> None:
        states = {True: "leading", False: "standing by"}
        roles = (f"{states[one.leads]} for {one.name}" for one in self.asterisks)
        notify(f"STATUS={', '.join(roles)}")

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        # It asks to keep the forks at the next stop, which a controller always does.
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)

    def _reload(self) -> None:
        try:
            loaded = config_file.load(self._path, secrets_of=())
            take_tokens = self.doors.reading(loaded.http)
        except ConfigError as exc:
            text = config_file.with_place(str(exc), self._path)
            log.error("not reloaded, the old configuration stays: %s", text)
            return
        take_tokens()
        for one in self.asterisks:
            with self._named(one):
                one.reload()
        if changed := set(loaded.asterisk_names) ^ {one.name for one in self.asterisks}:
            named = ", ".join(sorted(changed))
            log.info(
                "changes to which Asterisks are served take effect at the next start: %s", named
            )

    async def _join(self) -> None:
        await self._broker.connect()
        complaints = Repeats(COMPLAINT_INTERVAL_S)
        while True:
            try:
                for one in self.asterisks:
                    await one.join()
                await self._roster.start()
                await self.doors.join()
                self._registered.start()
                return
            except BrokerUnavailable as exc:
                if complaints.are_due(str(exc)):
                    log.error("the leases of the cluster cannot be used: %s; trying again", exc)
            await asyncio.sleep(RETRY_S)
