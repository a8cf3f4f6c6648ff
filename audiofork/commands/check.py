"""The command `check`: tries what the daemon will need, and says what to do about each fault.

It asks no right that the daemon does not need. What the manager interface does not tell a user
of few rights is found out by trying: Asterisk brings a leg to the AudioSocket address, and others
that spy on the first as a fork's legs do on a call, by each tap that the daemon would use. That
takes two seconds or three and disturbs no call. It leaves no call record, unless a leg by ARI does
not reach the dialplan. A daemon that runs keeps its Stasis application: the check has its own.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from audiofork import config_file
from audiofork.asterisk.ami import Ami, connected
from audiofork.asterisk.ami_protocol import CHECK_COMMAND, CheckRaised, Event
from audiofork.asterisk.taps.choice import SET_ARI, site_of
from audiofork.asterisk.taps.ways import NARROW_RATE, Site, Wish, best_way, known_faults, ways_for
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.commands import remedies, remedies_cluster
from audiofork.commands.check_audio import WIDE_RATE, AudioCheck, connects_for
from audiofork.commands.check_dialplan import DialplanCheck
from audiofork.commands.check_files import check_file_limit
from audiofork.commands.check_http import check_http
from audiofork.commands.check_port import KnownDaemon
from audiofork.commands.findings import Finding, Findings, Outcome
from audiofork.commands.probe import Events
from audiofork.commands.roles import NATS_MODULES
from audiofork.config import Config
from audiofork.config_asterisk import SECTIONS_OF_ASTERISK
from audiofork.config_file import SECTIONS_WITH_SECRETS
from audiofork.doors.control_client import Client
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiLoginRefused,
    AriError,
    AriLoginRefused,
    AriRefused,
    AudioForkError,
    ConfigError,
    DaemonUnreachable,
)
from audiofork.forks.profiles import Profiles
from audiofork.forks.urls import hosts_at_will
from audiofork.link.inline import check_files
from audiofork.link.messages import Direction
from audiofork.text import reason_of, why

if TYPE_CHECKING:
    from audiofork.commands.check_cluster import HostsCheck

MAX_CLOCK_DIFFERENCE_S = 2.0

_DENIED = "Permission denied"
# What each class is tried with: actions that lack what they need to do anything.
_WRITE_CLASSES: tuple[tuple[str, str, list[tuple[str, str]]], ...] = (
    ("originate", "Originate", []),
    ("call", "Setvar", []),
    ("user", "UserEvent", [("UserEvent", CHECK_COMMAND)]),
    ("reporting", "CoreSettings", []),
)
# To the eventfilter that holds back events with an empty line in a value.
_LIKE_AN_EMPTY_LINE = "a\t\t\t\tb"
_IN_USE = "Login Already In Use"  # what AMI says where a user may be logged in once
_READ_ONLY = "Write access denied"  # what ARI says to a user that has read_only


class Check:
    """One check of a configuration and the Asterisk that it names.

    Args:
        config: What the daemon would run with.
        say: Gets each finding as soon as it is there.
        clock: Seconds since 1970.
        unread: Why a secret could not be read, by its section: see `load`.
        asterisk: What a cluster calls the Asterisk, if its controller serves several.

    Raises:
        ConfigError: The daemon could not be built with this configuration.
    """

    def __init__(
        self,
        config: Config,
        say: Callable[[Finding], None],
        clock: Callable[[], float] = time.time,
        unread: Mapping[str, str] | None = None,
        asterisk: str = "",
    ) -> None:
        check_files(config)
        Profiles(config.profile)
        self._config = config
        self._asterisk = asterisk
        self._findings = Findings(say, asterisk)
        self._clock = clock
        self._unread = unread or {}
        self._daemon_pid = 0
        self._daemon = KnownDaemon()
        self._requests_come = False
        self._by_ari = bool(config.ari.url) and config.asterisk.tap != "chanspy"
        self._can_snoop = self._by_ari
        self._may: set[str] = set()
        self._version = UNKNOWN
        self._events = Events()
        self._hosts: HostsCheck | None = None

    async def run(self) -> Outcome:
        """Check everything; what depends on something that failed is left out."""
        await asyncio.to_thread(self._check_daemon)
        forks = self._config.security.max_forks
        if not self._config.cluster.servers:  # else relay hosts have the connections of forks
            option = "[security] max_forks"
            check_file_limit(self._findings, option, forks, "audiofork", self._daemon_pid)
        self._check_urls()
        self._check_profiles()
        await self._check_front()
        await check_http(self._config.http, self._findings, daemon_runs=self._daemon.runs)
        await self._check_cluster()
        await self._check_ari()
        await self._check_asterisk()
        return self._findings.outcome

    # --- This machine ---

    def _check_daemon(self) -> None:
        path = self._config.control.socket
        if not path:
            self._findings.skip("daemon: [control] socket is empty, so nobody can be asked")
            return
        try:
            with Client(Path(path), self._asterisk) as client:
                count, run_id = len(client.forks()), client.run_id()
                self._daemon_pid = client.daemon_pid
        except AudioForkError as exc:
            # Somebody has made a socket there that we may not use.
            is_closed_to_us = isinstance(exc.__cause__, PermissionError)
            runs = is_closed_to_us or not isinstance(exc, DaemonUnreachable)
            self._daemon = KnownDaemon(runs)
            self._findings.skip(f"daemon: {exc}")
            return
        self._daemon = KnownDaemon(True, run_id)
        self._findings.ok(f"daemon: runs, {count} forks")

    def _check_urls(self) -> None:
        allowed = self._config.security.allow_urls
        if hosts_at_will(allowed):
            self._findings.warn("URLs: audio may go to any host", remedies.NAME_HOSTS)
        else:
            nobody = "profiles alone" if self._config.profile else "nobody"
            self._findings.ok(f"URLs: audio may go to {' '.join(allowed) or nobody}")

    def _check_profiles(self) -> None:
        if "profile" in self._unread:
            self._findings.fail(f"profiles: {self._unread['profile']}", remedies.PROFILES)
        elif self._config.profile:
            self._findings.ok(f"profiles: {' '.join(sorted(self._config.profile))}")

    async def _check_front(self) -> None:
        """See whether the daemon could listen for AMI clients, unless it runs, or may."""
        listen = self._config.front.listen
        if listen is None or self._daemon.runs or not self._config.control.socket:
            return
        try:
            server = await asyncio.start_server(_hang_up, listen.host, listen.port)
        except OSError as exc:
            self._findings.fail(
                f"AMI front: cannot listen on {listen}: {reason_of(exc)}", remedies.FRONT
            )
        else:
            server.close()
            await server.wait_closed()
            self._findings.ok(f"AMI front: {listen} is free for it")

    # --- The cluster ---

    async def _check_cluster(self) -> None:
        if not self._config.cluster.servers:
            return
        if "cluster" in self._unread:
            self._findings.fail(f"NATS: {self._unread['cluster']}", remedies_cluster.FILES)
            return
        try:
            from audiofork.commands import check_cluster  # it needs the NATS client

            check = check_cluster.ClusterCheck(self._config.cluster, self._findings, self._clock)
            cluster = await check.run()
        except ModuleNotFoundError as exc:
            if exc.name not in NATS_MODULES:
                raise
            self._findings.fail(
                "cluster: the NATS client is not installed", remedies_cluster.CLIENT
            )
        else:
            self._hosts = check_cluster.HostsCheck(
                cluster, self._findings, self._events, self._daemon.run_id
            )

    # --- The REST interface ---

    async def _check_ari(self) -> None:
        """See whether ARI lets us in; that it can make legs, a trial will show."""
        config = self._config.ari
        if not self._by_ari:
            self._tell_that_ari_is_not_used()
            return
        if "ari" in self._unread or not config.password:
            unread = self._unread.get("ari", "no password is configured")
            self._no_ari(f"ARI: {unread}", remedies.NO_PASSWORD)
            return
        from audiofork.asterisk.ari import Ari  # what it imports takes 10 MB

        try:
            async with Ari(config) as ari:
                await ari.check_rights()
        except AriLoginRefused as exc:
            remedy = remedies.read_only if _READ_ONLY in str(exc) else remedies.ari_user
            self._no_ari(f"ARI: {str(exc).partition(';')[0]}", remedy(config.username))
        except AriRefused as exc:
            self._no_ari(f"ARI at {config.url}: {exc}", remedies.NO_ARI)
        except AriError as exc:
            self._no_ari(f"ARI at {config.url}: {exc}", remedies.http_conf(config.url))
        else:
            self._findings.ok(f"ARI: {config.username} may write at {config.url}")

    def _no_ari(self, text: str, remedy: str) -> None:
        # A fault of the set-up: whether Asterisk can be reached at all, AMI tells.
        self._can_snoop = False
        self._findings.fail(text, remedy)

    def _tell_that_ari_is_not_used(self) -> None:
        if self._config.asterisk.tap == "chanspy":
            why, how = "not used ([asterisk] tap = chanspy)", "Set [asterisk] tap = auto."
        else:
            why, how = "not configured ([ari] url)", ""  # what follows from it comes last
        rate = self._config.websocket.sample_rate
        if rate == NARROW_RATE:
            self._findings.skip(f"ARI: {why}: legs come by ChanSpy, at 8000 Hz", how)
        else:
            text = f"ARI: {why}, but [websocket] sample_rate = {rate} needs it"
            self._findings.fail(
                text, f"{how or remedies.HAVE_ARI}\nOr set [websocket] sample_rate = 8000."
            )

    # --- The manager interface ---

    async def _check_asterisk(self) -> None:
        config = self._config.asterisk
        if "asterisk" in self._unread or not config.secret:
            unread = self._unread.get("asterisk", "no secret is configured")
            self._findings.fail(f"login: {unread}", remedies.NO_SECRET)
            return
        try:
            async with connected(config, self._events.hear) as ami:
                await self._check_rights(ami)
                await self._check_clock(ami)
                await self._check_requests_come(ami)
                if not await DialplanCheck(self._findings).run(ami):
                    self._can_snoop = False
                if await self._check_modules(ami):
                    await self._check_audio(ami)
                self._tell_what_forks_get()
        except AmiLoginRefused as exc:
            text = str(exc).partition(";")[0]
            remedy = remedies.second_login if text.endswith(_IN_USE) else remedies.login
            self._findings.fail(f"login: {text}", remedy(config.username))
        # ValueError: the configured host is no name, or the secret does not fit a line.
        except (OSError, TimeoutError, AmiError, ValueError) as exc:
            where = f"{config.host}:{config.port}"
            text = why(exc, "[asterisk] ca_file")
            self._findings.fail(
                f"Asterisk at {where}: {text}", remedies.UNREACHABLE, Outcome.UNREACHABLE
            )

    async def _check_rights(self, ami: Ami) -> None:
        user = self._config.asterisk.username
        for right, action, headers in _WRITE_CLASSES:
            try:
                await ami.action(action, headers)
            except AmiActionFailed as exc:
                if exc.message == _DENIED:
                    continue
            self._may.add(right)
        self._version = await ami.ask_version()
        self._findings.ok(f"login: {user}, Asterisk {self._version}")
        for fault in known_faults(self._version):
            self._findings.skip(f"Asterisk {self._version}: {fault}")
        missing = [right for right, *_ in _WRITE_CLASSES if right not in self._may]
        if missing:
            self._findings.fail(
                f"rights: {user} lacks write = {','.join(missing)}", remedies.rights(user)
            )
        else:
            self._findings.ok("rights: write = originate,call,user,reporting")

    async def _check_clock(self, ami: Ami) -> None:
        try:
            answer = await ami.action("Getvar", [("Variable", "EPOCH")])
            theirs = float(answer.get("value", ""))
        except (AmiActionFailed, ValueError):
            self._findings.skip("clock: Asterisk does not tell its time to this user")
            return
        ahead_s = self._clock() - (theirs + 0.5)  # EPOCH is cut to whole seconds
        if abs(ahead_s) <= MAX_CLOCK_DIFFERENCE_S:
            self._findings.ok("clock: the same as Asterisk's")
        else:
            which = "ahead of" if ahead_s > 0 else "behind"
            self._findings.fail(f"clock: {abs(ahead_s):.0f} s {which} Asterisk's", remedies.CLOCK)

    async def _check_requests_come(self, ami: Ami) -> None:
        if "user" not in self._may:
            self._findings.skip("requests: to raise one needs write = user")
            return
        forged = self._raise_check(ami, ("Value", _LIKE_AN_EMPTY_LINE))
        if await self._events.first(self._raise_check(ami)) is not None:
            self._requests_come = True
            self._findings.ok("requests: UserEvent(AudioFork) comes back (read = user)")
            # What was raised first has come by now, if it comes at all.
            if await self._events.first(forged, timeout_s=0) is not None:
                self._findings.fail(
                    "requests: events with an empty line in a value are not held back",
                    remedies.empty_lines(self._config.asterisk.username),
                )
        else:
            self._findings.fail(
                "requests: UserEvent(AudioFork) does not come back: read = user is missing, or an "
                "eventfilter holds it back",
                remedies.rights(self._config.asterisk.username),
            )

    def _raise_check(self, ami: Ami, *more: tuple[str, str]) -> Callable[[Event], bool]:
        """Raise a request that does nothing; return what tells it when it comes back."""
        token = str(uuid.uuid4())
        ami.raise_event("AudioFork", [("Command", CHECK_COMMAND), ("AudioForkID", token), *more])
        return lambda event: isinstance(event, CheckRaised) and event.token == token

    def _modules(self) -> list[str]:
        """Return the modules that legs need, by each tap that the daemon would use."""
        modules = [*remedies.AUDIOSOCKET_MODULES, *remedies.DIALPLAN_MODULES]
        modules.append(remedies.GUARD_MODULE)
        if self._config.asterisk.tap != "snoop":
            modules.append(remedies.CHANSPY_MODULE)
        if self._by_ari:
            ways = dict.fromkeys(
                connects_for(rate, self._version) for rate in (NARROW_RATE, WIDE_RATE)
            )
            modules += [
                *remedies.ARI_MODULES,
                remedies.STASIS_MODULE,
                *(remedies.LEG_MODULES[one] for one in ways),
            ]
        return modules

    async def _check_modules(self, ami: Ami) -> bool:
        """Name missing modules to a user who may ask; without, the legs will show it."""
        try:
            missing = [name for name in self._modules() if not await _is_loaded(ami, name)]
            if not any([await _is_loaded(ami, name) for name in remedies.TIMING_MODULES]):
                missing.append(remedies.TIMING_MODULES[0])
        except AmiActionFailed:
            return True
        if not missing:
            self._findings.ok("modules: loaded")
            return True
        self._findings.fail(f"modules: {', '.join(missing)} not loaded", remedies.load(*missing))
        return False

    async def _check_audio(self, ami: Ami) -> None:
        if "originate" not in self._may:
            self._findings.skip("audio: to try it needs write = originate")
            return
        audio = AudioCheck(
            self._config,
            self._version,
            self._findings,
            self._events,
            daemon=self._daemon,
            can_ask=self._requests_come,
            can_snoop=self._can_snoop,
            hosts=self._hosts,
        )
        await audio.run(ami)
        self._can_snoop = audio.can_snoop

    def _tell_what_forks_get(self) -> None:
        """Say by which way each direction comes, and which of them is refused."""
        site = site_if_all_works(self._config, self._version)
        if not site.no_ari and not self._can_snoop:
            site = replace(site, no_ari="not as it is now, see above")
        ways = {one: best_way(Wish(one), site) for one in Direction}
        refused = [one for one, way in ways.items() if way is None]
        had = ", ".join(f"{one} by {way.tap}" for one, way in ways.items() if way is not None)
        if not refused:
            self._findings.ok(f"forks: {had}")
            return
        not_had = f"{' and '.join(refused)} are refused, so is the mute of one side"
        text = f"forks: {'; '.join(filter(None, (had, not_had)))}"
        self._findings.skip(text, "" if self._by_ari else remedies.HAVE_ARI)


def load(path: Path, asterisk: str = "") -> tuple[Config, dict[str, str]]:
    """Return a configuration, and why a secret of it cannot be read, by its section.

    Where systemd hands the secrets to the service, nobody else has them: the rest is to be checked
    all the same.

    Args:
        path: The file.
        asterisk: Of several Asterisks, the one that it is to be of; empty: the first.

    Raises:
        ConfigError: The file cannot be used.
    """
    whole, unread = config_file.load(path, secrets_of=()), {}
    name = asterisk or whole.asterisk_names[0]
    config = whole.of_asterisk(name)
    for section in SECTIONS_WITH_SECRETS:
        is_named = name in whole.asterisks and section in SECTIONS_OF_ASTERISK
        try:
            loaded = config_file.load(
                path, secrets_of=[f"{section} {name}" if is_named else section]
            )
        except ConfigError as exc:
            unread[section] = str(exc)
        else:
            config = replace(config, **{section: getattr(loaded.of_asterisk(name), section)})
    return config, unread


def load_each(path: Path, only: str = "") -> list[tuple[str, Config, dict[str, str]]]:
    """Return the same of each Asterisk, with its name; if the file has only one, without.

    Args:
        path: The file.
        only: The name of the only one that is wanted; empty: all.

    Raises:
        ConfigError: The file cannot be used, or does not have that one.
    """
    config = config_file.load(path, secrets_of=())
    names, several = names_of(config, only), len(config.asterisk_names) > 1
    return [(name, *load(path, name)) for name in (names if several else ("",))]


def names_of(config: Config, only: str) -> tuple[str, ...]:
    """Return the names of the Asterisks that are checked; see `load_each`."""
    names = config.asterisk_names
    if not only:
        return names
    if only not in names:
        has = f"; it has {', '.join(names)}" if any(names) else ""
        raise ConfigError(f"there is no Asterisk {only!r}{has}")
    return (only,)


def site_if_all_works(config: Config, version: Version) -> Site:
    """Return what a configuration gets legs by, if all that it names works."""
    return site_of(config.asterisk, version, "" if config.ari.url else SET_ARI)


async def taps_of(config: Config) -> list[str]:
    """Return lines that tell the order of preference, and what of it counts for this Asterisk.

    Raises:
        OSError, TimeoutError, ValueError, AmiError: Asterisk cannot be asked for its version.
    """
    async with connected(config.asterisk, lambda _: None) as ami:
        version = await ami.ask_version()
    return ways_for(site_if_all_works(config, version))


def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _is_loaded(ami: Ami, module: str) -> bool:
    """Ask whether a module is loaded.

    Raises:
        AmiActionFailed: The user may not ask that.
    """
    try:
        await ami.action("ModuleCheck", [("Module", module)])
    except AmiActionFailed as exc:
        if exc.message == _DENIED:
            raise
        return False
    return True
