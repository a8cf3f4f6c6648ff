"""Builds the parts of the daemon; starts and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from audiofork import config_file
from audiofork import log as logs
from audiofork.asterisk import leadership
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import CheckRaised, Event, RequestReceived
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.chanspy import ChanSpyTap
from audiofork.asterisk.taps.choice import Taps
from audiofork.asterisk.taps.connect import ConnectTap
from audiofork.asterisk.taps.ways import known_faults
from audiofork.config import Config, without_secrets
from audiofork.doors.ami_events import AmiEvents
from audiofork.doors.check_answers import CheckAnswers
from audiofork.doors.detail_answers import DetailAnswers
from audiofork.doors.opening import Doors, SharedDoors
from audiofork.doors.twilio_callback import TwilioCallback
from audiofork.doors.user_event import UserEvents
from audiofork.errors import AmiError, ConfigError
from audiofork.forks.attack_log import AttackLog
from audiofork.forks.counters import Counters
from audiofork.forks.events import Events
from audiofork.forks.history import History
from audiofork.forks.journal import Entry, FileJournal, Journal
from audiofork.forks.music import Music
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.profiles import Profiles
from audiofork.forks.registry import Forks
from audiofork.forks.series import Series
from audiofork.forks.timelines import Timelines
from audiofork.forks.urls import warn_of_hosts_at_will
from audiofork.forks.watching import Watching
from audiofork.link.inline import InlineRelay, check_files
from audiofork.link.messages import CheckLeg, Format, Report, SendReport, StatsTaken, WatchReport
from audiofork.link.processes import RelayProcesses
from audiofork.link.relay import Relay
from audiofork.link.relay_process import retire_unused
from audiofork.system import feed_watchdog, lift_file_limit, notify, spare_collections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from audiofork.asterisk.ari import Ari
    from audiofork.cluster.roster import Host
    from audiofork.doors.event_stream import EventStream
    from audiofork.doors.http.parts import Parts
    from audiofork.doors.metrics import Metrics

log = logging.getLogger(__name__)

# The sections that are only used at the start: a reload does not apply them.
_FIXED = ("asterisk", "ari", "audiosocket", "relay", "control", "front", "http")
SHUTDOWN_TIMEOUT_S = 2.5  # for the forks to end; a stop may take 3 s in all
# How long the doors of a cluster wait for the forks that it has; until then nobody could stop them.
RESUME_TIMEOUT_S = 1.0


class Cluster(Protocol):
    """What a daemon that leads in a cluster has from it.

    Attributes:
        names: Of the controller, and of its Asterisk.
        leads: Whether it does still; if not, it must leave all as it is.
        doors: Those that are open whether it leads or not.
        epoch: The number of its leadership.
        hosts: The relay hosts of the cluster.
    """

    @property
    def names(self) -> tuple[str, str]: ...
    @property
    def leads(self) -> bool: ...
    @property
    def doors(self) -> SharedDoors: ...
    @property
    def epoch(self) -> int: ...
    @property
    def hosts(self) -> Sequence[Host]: ...

    def load(self) -> Config:
        """Read the configuration of this daemon again.

        Raises:
            ConfigError: It cannot be used.
        """

    def suspend(self) -> None:
        """Suspend the daemon: it does not lead now."""

    def parts(self, config: Config, report: SendReport) -> tuple[Relay, Journal]:
        """Return the relay and the journal that it shares with other controllers."""


class Daemon:
    """Joins the control plane and the relay.

    Owned by the command `run`; `run()` returns after a SIGTERM or SIGINT. In a cluster its
    controller owns it, and takes the signals.

    Attributes:
        ready: Set when the AudioSocket server listens and the first connect to Asterisk has begun.
        metrics: What Prometheus reads; None: it is not asked for.
        forks: The registry.
        watching: Shows levels and lets listen.
        counters: Counts what happens to forks.
        relay: What relays the audio.
        timelines, series, history: What has happened to each fork, in each minute, to ended forks;
            set by `run`.
    """

    _ari: Ari | None = None

    def __init__(self, path: Path, config: Config, cluster: Cluster | None = None) -> None:
        self._path = path
        self._config = config
        self._stop = asyncio.Event()
        self._run_id = str(uuid.uuid4())
        self.counters = Counters()
        self._commands = Commands(config.post_process)
        self._profiles = Profiles(config.profile, Format(config.websocket.format))
        self.ready = asyncio.Event()
        parts_of = _parts_of if cluster is None else cluster.parts
        self.relay, self._journal = parts_of(config, self._on_report)
        self._cluster = cluster
        self._keep = self._is_kept(config)
        self._doors = Doors(path, config, self._run_id, cluster.doors if cluster else None)
        self.metrics: Metrics | None = None

    def _acts(self) -> bool:
        """Return whether it may act on what happens; if not, it is suspended.

        Asked before anything else is done: a process that was stopped for a while goes on with what
        has come meanwhile, while another controller leads.
        """
        if self._cluster is not None and not self._cluster.leads:
            self._cluster.suspend()
        return not self.forks.is_suspended

    async def _is_led_elsewhere(self) -> bool:
        return self._cluster is not None and await leadership.is_later(
            self.ami, self._cluster.epoch
        )

    def _on_report(self, report: Report) -> None:
        if isinstance(report, CheckLeg):
            self._check_answers.on_report(report)
            return
        self.watching.on_report(report)
        # Whoever asks for statistics gets them also from one that must not act on anything.
        if isinstance(report, StatsTaken) or (not isinstance(report, WatchReport) and self._acts()):
            self.forks.on_report(report)

    def _on_event(self, event: Event) -> None:
        acts = self._acts()
        if isinstance(event, RequestReceived):
            self._user_events.on_request(event)
        elif isinstance(event, CheckRaised):
            self._check_answers.on_raised(event)
        elif acts:
            self._music.on_asterisk(event)
            self.forks.on_event(event)

    def _count_workers(self) -> int:
        return sum(one.is_up for one in self.relay.workers)

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            CannotListen: An address cannot be used.
            ConfigError: A file that the configuration names cannot be used.
        """
        try:
            await self._start()
        except BaseException:
            if self._cluster is not None:  # else the process ends
                await self._give_up()
            raise
        spare_collections()
        try:
            await self._stop.wait()
        finally:
            await self._shut_down()

    def stop(self) -> None:
        """Stop, as after SIGTERM."""
        self._stop.set()

    async def go_on(self, entries: list[Entry]) -> None:
        """Take up the forks that were left when the registry was suspended, and act again.

        Args:
            entries: Those of the journal.
        """
        self.forks.resume_after_login(entries)
        self.forks.go_on()
        if self.ami.is_up:
            try:
                await self._up()
            except AmiError as exc:
                log.warning("the next login to Asterisk takes the forks up: %s", exc)

    def _is_kept(self, config: Config) -> bool:
        """Return whether running forks outlast a stop: in a cluster another controller has them."""
        return self._cluster is not None or config.daemon.on_stop == "keep"

    async def _start(self) -> None:
        lift_file_limit()
        if self._cluster is None:
            await retire_unused(self._config.relay)
        address = await self.relay.start()
        self.ami = Ami(self._config.asterisk, self._on_event, self._up)
        self._check_answers = CheckAnswers(
            self.ami.raise_event, self.relay.send, self._count_workers, self._run_id
        )
        self._taps = self._build_taps()
        self._build_forks()
        await self.history.open()
        self._resumed = asyncio.Event()
        await self._open_doors()
        self.forks.resume_after_login(await self._journal.open())
        if self._cluster is None:
            self._take_signals()
        # ARI first: after the login to AMI, forks of an earlier run are resumed, which may use it.
        links = [self._ari.run()] if self._ari is not None else []
        works = [*links, self.ami.run()]
        if self._cluster is None:  # a controller feeds it also while it stands by
            works.append(feed_watchdog())
        self._opening = asyncio.create_task(self._open_shared_doors())
        self._tasks = [asyncio.create_task(work) for work in works]
        log.info("listening for Asterisk's audio on %s", address)
        warn_of_hosts_at_will(self._config.security.allow_urls)
        notify("READY=1")
        self.ready.set()

    async def _give_up(self) -> None:
        """Close what a start has opened that has failed: another one may follow."""
        await self._doors.close()
        if self.metrics is not None:
            self.metrics.close()
        await self.relay.close()
        await self._journal.close()
        if hasattr(self, "history"):
            await self.history.close()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR1, self._keep_this_time)

    def _build_forks(self) -> None:
        """Build the registry, and the subscribers to the events of forks."""
        events = Events()
        ami_events = AmiEvents(self.ami, tells_keys=self._config.asterisk.dtmf_events)
        events.subscribe(ami_events.on_event)
        self._twilio_callback = TwilioCallback(self._config)
        events.subscribe(self._twilio_callback.on_event)
        events.subscribe(self.counters.on_event)
        self.timelines, self.series = Timelines(host_of=self.relay.host_of), Series()
        self.history = History(self._config.history, self.timelines)
        for subscriber in (self.timelines, self.series, self.history):
            events.subscribe(subscriber.on_event)
        events.subscribe(AttackLog().on_event)
        self._stream = self._stream_of(events)
        self._music = Music(self.ami, self.relay, self._profiles)
        events.subscribe(self._music.on_event)
        self.forks = Forks(
            self.ami,
            self._taps,
            self._config.security,
            self.relay.send,
            events.emit,
            self._journal,
            commands=self._commands,
            profiles=self._profiles,
            waits_for_hold=self._config.asterisk.on_hold == "wait",
            playout_buffer_s=self._config.websocket.playout_buffer,
            asks_callers=self.history.is_kept or self._config.http.is_open,
            held=lambda: self.relay.held,
            outlives_daemon=self.relay.outlives_daemon,
            until_expected=self.relay.until_expected,
            host_of=self.relay.host_of,
        )
        self.watching = Watching(self.relay.send, self.forks.find)
        events.subscribe(self.watching.on_event)
        self._user_events = UserEvents(self.forks.ask, ami_events, self._is_led_elsewhere)
        if self._config.http.is_open:
            self._build_metrics(events)

    def _build_metrics(self, events: Events) -> None:
        from audiofork.doors.metrics import Metrics

        metrics = Metrics(
            *(self.forks, self.counters, self.relay, self.ami, self._ari, self._cluster)
        )
        events.subscribe(metrics.on_event)
        metrics.start()
        self.metrics = metrics

    def _stream_of(self, events: Events) -> EventStream | None:
        """Return the events for the HTTP interface, if it is configured, and for a cluster."""
        if not self._config.http.is_open and self._cluster is None:
            return None
        from audiofork.doors.event_stream import EventStream

        stream = EventStream(self._run_id, tells_keys=self._config.asterisk.dtmf_events)
        events.subscribe(stream.on_event)
        return stream

    def _build_taps(self) -> Taps:
        """Build the taps, and the connection to ARI if it is configured."""
        config = self._config
        chanspy = ChanSpyTap(self.ami, self.relay)
        snoop = None
        if config.ari.url and config.asterisk.tap != "chanspy":
            from audiofork.asterisk.ari import Ari  # their imports take 10 MB of memory
            from audiofork.asterisk.taps.snoop import SnoopTap

            self._ari = Ari(config.ari)
            snoop = SnoopTap(self._ari, config.ari, self.relay)
        return Taps(
            self.ami,
            chanspy,
            snoop,
            ConnectTap(self.ami, self.relay),
            Channels(self.ami),
            config.asterisk,
            config.websocket.sample_rate,
        )

    async def _open_doors(self) -> None:
        """Start the configured doors, apart from user events over AMI."""
        await self._doors.open(self.forks, self.history)
        if self._stream is not None:
            self._doors.share(self._stream)
            if self._config.http.is_open:
                await self._doors.open_http(self._parts_of_http(self._stream))

    async def _open_shared_doors(self) -> None:
        """Answer requests of the whole cluster when its forks are known again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUME_TIMEOUT_S):
                await self._resumed.wait()
        details = DetailAnswers(self.timelines, self.series)
        await self._doors.open_shared(self.forks, self.history, details)

    def _parts_of_http(self, stream: EventStream) -> Parts:
        """Return what the HTTP interface asks; its modules are imported only here."""
        from audiofork.doors.http.parts import Parts
        from audiofork.doors.system_state import SystemState

        forks = self.forks
        state = SystemState(
            *(self.ami, self._ari, self.relay, self.counters, lambda: len(forks), self._run_id)
        )
        return Parts(
            ask=forks.ask,
            views=forks.views,
            follow=forks.follow,
            status=state.status,
            profiles=lambda: self._profiles.names,
            stream=stream,
            check=self._doors.check.run,
            legs_left=lambda: forks.legs_left,
            watching=self.watching,
            timelines=self.timelines,
            series=self.series,
            history=self.history if self._config.history.file else None,
            metrics=self.metrics,
        )

    async def _up(self) -> None:
        if self._cluster is None:  # else its controller tells of each Asterisk
            notify(f"STATUS={self.ami.status}")
        for fault in known_faults(self.ami.version):
            log.warning("Asterisk %s: %s", self.ami.version, fault)
        if not self._acts():
            return
        if self._cluster is not None:
            await leadership.note(self.ami, self._cluster.epoch)
        channels = await self.forks.on_login()
        self._resumed.set()
        await self._music.sweep(channels)

    async def _shut_down(self) -> None:
        """Close the doors, end or keep the forks, log off from AMI; then stop all other parts."""
        if self._cluster is None:  # else the service goes on, or its controller says so
            notify("STOPPING=1")
        log.info("stopping, %d forks to %s", len(self.forks), "keep" if self._keep else "end")
        if self._cluster is not None and not self._cluster.leads:
            self.forks.leave()
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        await self._doors.close()
        if self.metrics is not None:
            self.metrics.close()
        with contextlib.suppress(TimeoutError, AmiError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await self.forks.shut_down(keep=self._keep)
                await self._user_events.finish()
                await self._music.close()
                await self.ami.log_off()
                await self._twilio_callback.finish()
        self.watching.close()
        await self.relay.close()
        await self._user_events.close()
        await self.forks.close()
        await self._twilio_callback.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ari is not None:
            await self._ari.close()
        # Last: what the end of the forks has told is in their queues.
        await asyncio.gather(self._journal.close(), self.history.close())
        log.info("stopped")

    def _keep_this_time(self) -> None:
        """Keep the running forks at the next stop, for example while a package is upgraded."""
        self._keep = True
        log.info("SIGUSR1: forks that run at the next stop will be resumed by the next start")

    def reload(self) -> None:
        """Apply the configuration file to new forks; if it is invalid, keep the old settings."""
        try:
            new = config_file.load(self._path) if self._cluster is None else self._cluster.load()
            Profiles(new.profile)  # raises before anything is changed
            take_tokens = self._doors.reading(new)
            self.relay.configure(new)
        except ConfigError as exc:
            text = config_file.with_place(str(exc), self._path)
            log.error("not reloaded, the old configuration stays: %s", text)
            return
        take_tokens()
        self.forks.security = new.security
        self.forks.set_playout_buffer(new.websocket.playout_buffer)
        self._commands.configure(new.post_process)
        self._profiles.configure(new.profile)
        self._profiles.default_format = Format(new.websocket.format)
        self._keep = self._is_kept(new)
        self._twilio_callback.configure(new)
        self._taps.sample_rate = new.websocket.sample_rate
        self.history.configure(new.history)
        self.ami.take_secret(new.asterisk.secret)
        self.ami.retry_now()
        if self._ari is not None:
            self._ari.take_password(new.ari.password)
            self._ari.retry_now()
        logs.set_up(new.log)
        what = " and ".join(self._changed_for_the_next_start(new))
        log.info("reloaded%s", f"; changes to {what} take effect at the next start" if what else "")
        warn_of_hosts_at_will(new.security.allow_urls)

    def _changed_for_the_next_start(self, new: Config) -> list[str]:
        """Return the sections and options that have changed and need a restart."""
        old, new = without_secrets(self._config), without_secrets(new)
        changed = [f"[{name}]" for name in _FIXED if getattr(new, name) != getattr(old, name)]
        if new.daemon.journal != old.daemon.journal:
            changed.append("[daemon] journal")
        if new.history.file != old.history.file:
            changed.append("[history] file")
        return changed


def _parts_of(config: Config, report: SendReport) -> tuple[Relay, Journal]:
    """Return the relay and the journal that the configuration asks for.

    Raises:
        ConfigError: The relay cannot use a file that the configuration names.
    """
    file = Path(config.daemon.journal) if config.daemon.journal else None
    return _relay_of(config, report), FileJournal(file)


def _relay_of(config: Config, report: SendReport) -> Relay:
    """Return the relay that the configuration asks for.

    Raises:
        ConfigError: It cannot use a file that the configuration names.
    """
    if config.relay.workers == 1 and not config.relay.detached:
        return InlineRelay(config, report)
    return RelayProcesses(config, report, check_files)
