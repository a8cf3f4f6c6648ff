"""The command `check`: tries what the daemon will need, and says what to do about each fault.

It asks no right that the daemon does not need. What the manager interface does not tell a user
of few rights is found out by trying: Asterisk brings a leg to the AudioSocket address, and others
that spy on the first as a fork's legs do on a call, by each tap that the daemon would use. That
takes two seconds or three and disturbs no call. It leaves no call record, unless a leg by ARI does
not reach the dialplan. A daemon that runs keeps its Stasis application: the check has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import resource
import textwrap
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from audiofork.asterisk.ami import Ami, connected
from audiofork.asterisk.ami_protocol import CHECK_COMMAND, CheckRaised, Event
from audiofork.asterisk.taps.base import Tap
from audiofork.asterisk.taps.chanspy import OPTIONS as CHANSPY_OPTIONS
from audiofork.asterisk.taps.choice import SET_ARI, site_of
from audiofork.asterisk.taps.ways import (
    NARROW_RATE,
    Connects,
    Site,
    Wish,
    best_way,
    known_faults,
    ways_for,
)
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.audiosocket import FRAME_BYTES
from audiofork.commands.probe import LegFailed, Legs, Probe, ProbeLeg, snooping
from audiofork.config import Address, Config
from audiofork.doors.control_client import Client
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiLoginRefused,
    AriError,
    AriLoginRefused,
    AriRefused,
    AudioForkError,
    DaemonUnreachable,
    LegError,
    NoSuchChannel,
)
from audiofork.link.messages import Direction, LegPart
from audiofork.relay.worker import Worker
from audiofork.system import FILES_PER_FORK, FURTHER_FILES

WIDE_RATE = 16000
MAX_CLOCK_DIFFERENCE_S = 2.0
EVENT_TIMEOUT_S = 2.0
FRAMES_WANTED = 50
AUDIO_TIMEOUT_S = 2.5  # ChanSpy begins after 0.1 s, and 50 frames take a second
NUDGES = 10
SLOWEST_FRAMES_PER_SECOND = 45.0

_DENIED = "Permission denied"
# What each class is tried with: actions that lack what they need to do anything.
_WRITE_CLASSES: tuple[tuple[str, str, list[tuple[str, str]]], ...] = (
    ("originate", "Originate", []),
    ("call", "Setvar", []),
    ("user", "UserEvent", [("UserEvent", CHECK_COMMAND)]),
    ("reporting", "CoreSettings", []),
)
_AUDIOSOCKET_MODULES = ("chan_audiosocket.so", "res_audiosocket.so")
_CHANSPY_MODULE = "app_chanspy.so"
_ARI_MODULES = ("res_ari.so", "res_ari_channels.so", "res_ari_events.so", "res_ari_applications.so")
_STASIS_MODULE = "app_stasis.so"
# What runs where legs by ARI are sent to.
_LEG_MODULES = {Connects.APPLICATION: "app_audiosocket.so", Connects.DIAL: "app_dial.so"}
_TIMING_MODULES = tuple(f"res_timing_{name}.so" for name in ("timerfd", "pthread", "dahdi"))

# The reason of a failed Originate, as measured; one that cannot connect has 8.
_NO_SUCH_CHANNEL_TYPE = "0"
_READ_ONLY = "Write access denied"  # what ARI says to a user that has read_only


class Outcome(enum.IntEnum):
    """What a check comes to; the numbers are the command's exit codes."""

    FINE = 0
    FAULTS = 1
    UNREACHABLE = 4


class Mark(enum.StrEnum):
    OK = "ok"
    FAIL = "FAIL"
    SKIP = "skip"
    """Could not be looked into; not a fault in itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check, with what to do about it, if anything is.

    A remedy is one paragraph, or several lines; those that are indented stand in a file so.
    """

    mark: Mark
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.mark:<4}  {self.text}"
        remedy = [part for text in self.remedy.splitlines() for part in _wrapped(text)]
        return "\n".join([line, *(f"        {part}" for part in remedy)])


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, width=84, break_long_words=False, break_on_hyphens=False)


class Check:
    """One check of a configuration and the Asterisk that it names.

    Args:
        config: What the daemon would run with.
        say: Gets each finding as soon as it is there.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The daemon could not be built with this configuration.
    """

    def __init__(
        self,
        config: Config,
        say: Callable[[Finding], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        Worker(config, lambda report: None)
        self._config = config
        self._say = say
        self._clock = clock
        self._outcome = Outcome.FINE
        self._daemon_pid = 0
        self._daemon_runs = False
        self._by_ari = bool(config.ari.url) and config.asterisk.tap != "chanspy"
        self._can_snoop = self._by_ari
        self._may: set[str] = set()
        self._version = UNKNOWN
        self._events: list[Event] = []
        self._news = asyncio.Event()

    async def run(self) -> Outcome:
        """Check everything; what depends on something that failed is left out."""
        await asyncio.to_thread(self._check_daemon)
        self._check_file_limit()
        await self._check_ari()
        await self._check_asterisk()
        return self._outcome

    def _ok(self, text: str) -> None:
        self._say(Finding(Mark.OK, text))

    def _skip(self, text: str, remedy: str = "") -> None:
        self._say(Finding(Mark.SKIP, text, remedy))

    def _fail(self, text: str, remedy: str, outcome: Outcome = Outcome.FAULTS) -> None:
        self._outcome = max(self._outcome, outcome)
        self._say(Finding(Mark.FAIL, text, remedy))

    # --- This machine ---

    def _check_daemon(self) -> None:
        path = self._config.control.socket
        if not path:
            self._skip("daemon: [control] socket is empty, so nobody can be asked")
            return
        try:
            with Client(Path(path)) as client:
                count = len(client.forks())
                self._daemon_pid = client.daemon_pid
        except AudioForkError as exc:
            self._daemon_runs = not isinstance(exc, DaemonUnreachable)
            self._skip(f"daemon: {exc}")
            return
        self._daemon_runs = True
        self._ok(f"daemon: runs, {count} forks")

    def _check_file_limit(self) -> None:
        needed = FILES_PER_FORK * self._config.security.max_forks + FURTHER_FILES
        whose, limit = "a process started here", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if self._daemon_pid:
            with contextlib.suppress(OSError):
                whose, limit = "the daemon", _limit_of(self._daemon_pid)
        text = f"open files: {whose} may have {'any number' if limit < 0 else limit}"
        if limit < 0 or limit >= needed:
            self._ok(f"{text}, {needed} are enough")
        else:
            self._fail(
                f"{text}, max_forks = {self._config.security.max_forks} takes {needed}",
                f"Set LimitNOFILE={needed} in the service (systemctl edit audiofork) or by "
                "ulimit -Hn, and restart the daemon; or lower [security] max_forks.",
            )

    # --- The REST interface ---

    async def _check_ari(self) -> None:
        """See whether ARI lets us in; that it can make legs, a trial will show."""
        config = self._config.ari
        if not self._by_ari:
            self._tell_that_ari_is_not_used()
            return
        if not config.password:
            self._no_ari("ARI: no password is configured", _NO_PASSWORD)
            return
        from audiofork.asterisk.ari import Ari  # what it imports takes 10 MB

        try:
            async with Ari(config) as ari:
                await ari.check_rights()
        except AriLoginRefused as exc:
            remedy = _read_only if _READ_ONLY in str(exc) else _ari_user
            self._no_ari(f"ARI: {str(exc).partition(';')[0]}", remedy(config.username))
        except AriRefused as exc:
            self._no_ari(f"ARI at {config.url}: {exc}", _NO_ARI)
        except AriError as exc:
            self._no_ari(f"ARI at {config.url}: {exc}", _http_conf(config.url))
        else:
            self._ok(f"ARI: {config.username} may write at {config.url}")

    def _no_ari(self, text: str, remedy: str) -> None:
        # A fault of the set-up: whether Asterisk can be reached at all, AMI tells.
        self._can_snoop = False
        self._fail(text, remedy)

    def _tell_that_ari_is_not_used(self) -> None:
        if self._config.asterisk.tap == "chanspy":
            why, how = "not used ([asterisk] tap = chanspy)", "Set [asterisk] tap = auto."
        else:
            why, how = "not configured ([ari] url)", ""  # what follows from it comes last
        rate = self._config.websocket.sample_rate
        if rate == NARROW_RATE:
            self._skip(f"ARI: {why}: legs come by ChanSpy, at 8000 Hz", how)
        else:
            text = f"ARI: {why}, but [websocket] sample_rate = {rate} needs it"
            self._fail(text, f"{how or _HAVE_ARI}\nOr set [websocket] sample_rate = 8000.")

    # --- The manager interface ---

    async def _check_asterisk(self) -> None:
        config = self._config.asterisk
        if not config.secret:
            self._fail("login: no secret is configured", _NO_SECRET)
            return
        try:
            async with connected(config, self._on_event) as ami:
                await self._check_rights(ami)
                await self._check_clock(ami)
                await self._check_requests_come(ami)
                await self._check_dialplan(ami)
                if await self._check_modules(ami):
                    await self._check_audiosocket(ami)
                self._tell_what_forks_get()
        except AmiLoginRefused as exc:
            self._fail(f"login: {str(exc).partition(';')[0]}", self._login_remedy())
        # ValueError: the configured host is no name, or the secret does not fit a line.
        except (OSError, TimeoutError, AmiError, ValueError) as exc:
            where = f"{config.host}:{config.port}"
            why = str(exc) or "no answer in time"
            self._fail(f"Asterisk at {where}: {why}", _UNREACHABLE, Outcome.UNREACHABLE)

    def _login_remedy(self) -> str:
        user = self._config.asterisk.username
        return (
            f"Compare [asterisk] username and secret with section [{user}] of manager.conf, whose "
            "deny and permit must let this machine in; then run "
            f'asterisk -rx "manager reload" and asterisk -rx "manager show user {user}".'
        )

    def _on_event(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    async def _heard(self, matches: Callable[[Event], bool], timeout_s: float) -> Event | None:
        """Return the first event that matches, which may have come already; None: none came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    for event in self._events:
                        if matches(event):
                            return event
                    self._news.clear()
                    await self._news.wait()
        return None

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
        self._ok(f"login: {user}, Asterisk {self._version}")
        for fault in known_faults(self._version):
            self._skip(f"Asterisk {self._version}: {fault}")
        missing = [right for right, *_ in _WRITE_CLASSES if right not in self._may]
        if missing:
            self._fail(f"rights: {user} lacks write = {','.join(missing)}", self._rights_remedy())
        else:
            self._ok("rights: write = originate,call,user,reporting")

    def _rights_remedy(self) -> str:
        return (
            f"In section [{self._config.asterisk.username}] of manager.conf: read = user,call and "
            "write = originate,call,user,reporting, with the eventfilter lines of the shipped "
            'manager_audiofork.conf or none; then run asterisk -rx "manager reload".'
        )

    async def _check_clock(self, ami: Ami) -> None:
        try:
            answer = await ami.action("Getvar", [("Variable", "EPOCH")])
            theirs = float(answer.get("value", ""))
        except (AmiActionFailed, ValueError):
            self._skip("clock: Asterisk does not tell its time to this user")
            return
        ahead_s = self._clock() - (theirs + 0.5)  # EPOCH is cut to whole seconds
        if abs(ahead_s) <= MAX_CLOCK_DIFFERENCE_S:
            self._ok("clock: the same as Asterisk's")
        else:
            which = "ahead of" if ahead_s > 0 else "behind"
            self._fail(f"clock: {abs(ahead_s):.0f} s {which} Asterisk's", _CLOCK)

    async def _check_requests_come(self, ami: Ami) -> None:
        if "user" not in self._may:
            self._skip("requests: to raise one needs write = user")
            return
        token = str(uuid.uuid4())
        ami.raise_event("AudioFork", [("Command", CHECK_COMMAND), ("AudioForkID", token)])
        event = await self._heard(
            lambda event: isinstance(event, CheckRaised) and event.token == token,
            EVENT_TIMEOUT_S,
        )
        if event is not None:
            self._ok("requests: UserEvent(AudioFork) comes back (read = user)")
        else:
            self._fail(
                "requests: UserEvent(AudioFork) does not come back: read = user is missing, or an "
                "eventfilter holds it back",
                self._rights_remedy(),
            )

    async def _check_dialplan(self, ami: Ami) -> None:
        """See whether there is what legs by ARI are sent to."""
        if not self._by_ari:
            return
        from audiofork.asterisk.taps.snoop import CONTEXT, EXTENSIONS

        try:
            lines = await ami.list("ShowDialPlan", [("Context", CONTEXT)])
        except AmiActionFailed as exc:
            if exc.message == _DENIED:
                self._skip("dialplan: to look into it needs write = reporting")
                return
            lines = []  # there is no such context
        present = {line.get("extension") for line in lines}
        missing = [name for name in EXTENSIONS.values() if name not in present]
        if not missing:
            self._ok(f"dialplan: the context {CONTEXT} has {' and '.join(EXTENSIONS.values())}")
            return
        what = f"has no extension {' and '.join(missing)}" if lines else "is missing"
        self._can_snoop = False
        self._fail(f"dialplan: the context {CONTEXT} {what}", _INCLUDE_EXTENSIONS)

    def _modules(self) -> list[str]:
        """Return the modules that legs need, by each tap that the daemon would use."""
        modules = list(_AUDIOSOCKET_MODULES)
        if self._config.asterisk.tap != "snoop":
            modules.append(_CHANSPY_MODULE)
        if self._by_ari:
            ways = dict.fromkeys(self._connects(rate) for rate in (NARROW_RATE, WIDE_RATE))
            modules += [*_ARI_MODULES, _STASIS_MODULE, *(_LEG_MODULES[one] for one in ways)]
        return modules

    async def _check_modules(self, ami: Ami) -> bool:
        """Name missing modules to a user who may ask; without, the legs will show it."""
        try:
            missing = [name for name in self._modules() if not await _is_loaded(ami, name)]
            if not any([await _is_loaded(ami, name) for name in _TIMING_MODULES]):
                missing.append(_TIMING_MODULES[0])
        except AmiActionFailed:
            return True
        if not missing:
            self._ok("modules: loaded")
            return True
        self._fail(f"modules: {', '.join(missing)} not loaded", _load(*missing))
        return False

    # --- The audio ---

    async def _check_audiosocket(self, ami: Ami) -> None:
        if "originate" not in self._may:
            self._skip("audio: to try it needs write = originate")
            return
        probe = Probe()
        legs = Legs(ami, probe, self._heard)
        try:
            address = await self._listen(probe, legs)
            if address is not None:
                await self._check_audio(legs, address)
        finally:
            await probe.close()
        if legs.news_due:
            await self._check_hangups_come(legs)

    async def _listen(self, probe: Probe, legs: Legs) -> Address | None:
        """Listen where the daemon would; if it does already, on a port beside it.

        Returns:
            The address that Asterisk shall dial, or None after a fault.
        """
        listen = self._config.audiosocket.listen
        advertise = self._config.audiosocket.advertise or listen
        try:
            chosen = await probe.start(listen)
            return self._config.audiosocket.advertise or chosen
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                self._fail(f"AudioSocket: cannot listen on {listen}: {exc.strerror}", _LISTEN)
                return None
        if not self._daemon_runs and self._config.control.socket:
            self._fail(f"AudioSocket: another program listens on {listen}", _TAKEN)
            return None
        if not await self._check_daemon_port(legs, advertise):
            return None
        chosen = await probe.start(Address(listen.host, 0))
        return Address(advertise.host, chosen.port)

    async def _check_daemon_port(self, legs: Legs, advertise: Address) -> bool:
        """See whether Asterisk reaches the daemon that runs; it will refuse the leg."""
        try:
            await legs.knock(advertise)
        except LegFailed as exc:
            self._leg_failed(exc, advertise)
            return False
        self._ok(f"AudioSocket: Asterisk reaches the daemon at {advertise}")
        return True

    async def _check_audio(self, legs: Legs, address: Address) -> None:
        try:
            target = await legs.start(address, "Wait", "20")
        except LegFailed as exc:
            self._leg_failed(exc, address)
            return
        if not self._is_beside(address):
            self._ok(f"AudioSocket: Asterisk reaches {address}")
        uniqueid = legs.uniqueids[-1]
        talk = asyncio.create_task(target.talk())
        try:
            await self._check_chanspy(legs, address, uniqueid)
            await self._check_snoop(legs, address, uniqueid)
        finally:
            talk.cancel()
            target.hang_up()

    async def _check_chanspy(self, legs: Legs, address: Address, uniqueid: str) -> None:
        if self._config.asterisk.tap == "snoop":
            self._skip("audio: ChanSpy is not used ([asterisk] tap = snoop)")
            return
        await self._spy(legs, address, uniqueid, LegPart.MIX)
        if self._config.asterisk.chanspy_pairs == "narrowband":
            await self._spy(legs, address, uniqueid, LegPart.PAIRS)

    async def _spy(self, legs: Legs, address: Address, uniqueid: str, part: LegPart) -> None:
        """Have ChanSpy bring what the target says, and judge it."""
        try:
            spy = await legs.start(address, "ChanSpy", f"{uniqueid},{CHANSPY_OPTIONS[part]}")
        except LegFailed as exc:
            self._leg_failed(exc, address)
            return
        try:
            await spy.wait_frames(FRAMES_WANTED, AUDIO_TIMEOUT_S)
            await self._judge(spy, part)
        finally:
            spy.hang_up()

    def _is_beside(self, address: Address) -> bool:
        """Tell whether this is not the configured port, since the daemon has that."""
        configured = self._config.audiosocket.advertise or self._config.audiosocket.listen
        return configured.port not in (0, address.port)

    def _leg_failed(self, failure: LegFailed, address: Address) -> None:
        if self._is_beside(address):
            self._skip(f"audio: needs a port beside the daemon's, and {address}: {failure}")
        elif failure.reason == _NO_SUCH_CHANNEL_TYPE:
            self._fail(
                "AudioSocket: Asterisk has no channel type AudioSocket",
                _load(*_AUDIOSOCKET_MODULES),
            )
        else:
            remedy = _ADVERTISE if failure.reason else _ADVERTISE + _NO_NEWS
            self._fail(f"AudioSocket: Asterisk and {address}: {failure}", remedy)

    async def _judge(self, spy: ProbeLeg, part: LegPart) -> None:
        in_pairs = part is LegPart.PAIRS
        if not spy.frames and spy.closed:
            self._fail("audio: ChanSpy does not run", _load(_CHANSPY_MODULE))
        elif not spy.frames:
            await self._judge_silence(spy)
        elif in_pairs and any(len(frame) == FRAME_BYTES for _, frame in spy.frames):
            self._fail(
                f"audio: the ChanSpy of Asterisk {self._version} has no option D", _NO_OPTION_D
            )
        elif pace := _too_slow(spy):
            self._fail(f"audio: {pace}", _load(_TIMING_MODULES[0]) + _BUSY)
        elif not (spy.has_tone_in_left_alone() if in_pairs else spy.is_tone(NARROW_RATE)):
            self._fail("audio: what comes is not what the target was sent", _NOT_THE_TONE)
        else:
            pace = f"{spy.frames_per_second():.1f} frames a second"
            what = "in and out apart by ChanSpy's D" if in_pairs else "in and out mixed by ChanSpy"
            self._ok(f"audio: {pace}, {what}")

    async def _judge_silence(self, spy: ProbeLeg) -> None:
        """Without a timing source ChanSpy sends a frame for each that it gets, and no other."""
        for _ in range(NUDGES):
            spy.send_tone()
            await spy.wait_frames(len(spy.frames) + 1, 0.05)
        if spy.frames:
            text = "audio: none comes of itself: Asterisk has no timing source"
        else:
            text = "audio: none comes"
        self._fail(text, _load(_TIMING_MODULES[0]) + _TIMING)

    async def _check_snoop(self, legs: Legs, address: Address, uniqueid: str) -> None:
        """Have the snoop tap bring what the target says, by each of its extensions."""
        if not self._can_snoop:
            return
        async with snooping(self._config.ari, address) as tap:
            if tap.missing:
                self._fail(f"snoop: {tap.missing}", _load(*_ARI_MODULES))
                return
            trials = [
                self._snooped(legs, tap, uniqueid, rate, self._connects(rate))
                for rate in (NARROW_RATE, WIDE_RATE)
            ]
            # What ARI says to both, we say once.
            for finding in dict.fromkeys(await asyncio.gather(*trials)):
                if finding.mark is Mark.OK:
                    self._ok(finding.text)
                else:
                    self._can_snoop = False
                    self._fail(finding.text, finding.remedy)

    def _connects(self, sample_rate: int) -> Connects:
        """Return how the daemon would have a leg by ARI."""
        way = best_way(Wish(Direction.IN, sample_rate), Site(self._version))
        assert way is not None, "with ARI there is a way for every rate"
        return way.connects

    async def _snooped(
        self, legs: Legs, tap: Tap, uniqueid: str, sample_rate: int, connects: Connects
    ) -> Finding:
        """Have one leg, and judge what it brings."""
        what = f"snoop at {sample_rate} Hz"
        try:
            leg = await legs.snoop(tap, uniqueid, sample_rate, connects)
        except LegFailed as exc:
            remedy = f"{_load(_LEG_MODULES[connects])}\n{_INCLUDE_EXTENSIONS}"
            return Finding(Mark.FAIL, f"{what}: {exc}", remedy)
        except (LegError, NoSuchChannel) as exc:
            remedy = _load(_STASIS_MODULE, _TIMING_MODULES[0]) + _TIMING
            return Finding(Mark.FAIL, f"snoop: {exc}", remedy)
        try:
            await leg.wait_frames(FRAMES_WANTED, AUDIO_TIMEOUT_S)
        finally:
            leg.hang_up()
        if pace := _too_slow(leg):
            remedy = _load(_TIMING_MODULES[0]) + _BUSY
            return Finding(Mark.FAIL, f"{what}: {pace}", remedy)
        if not leg.is_tone(sample_rate):
            text = f"{what}: what comes is not what the target was sent"
            return Finding(Mark.FAIL, text, _NOT_THE_TONE)
        return Finding(Mark.OK, f"{what}: {leg.frames_per_second():.1f} frames a second")

    def _tell_what_forks_get(self) -> None:
        """Say by which way each direction comes, and which of them is refused."""
        site = site_if_all_works(self._config, self._version)
        if not site.no_ari and not self._can_snoop:
            site = replace(site, no_ari="not as it is now, see above")
        ways = {one: best_way(Wish(one), site) for one in Direction}
        refused = [one for one, way in ways.items() if way is None]
        had = ", ".join(f"{one} by {way.tap}" for one, way in ways.items() if way is not None)
        if not refused:
            self._ok(f"forks: {had}")
            return
        not_had = f"{' and '.join(refused)} are refused, so is the mute of one side"
        text = f"forks: {'; '.join(filter(None, (had, not_had)))}"
        self._skip(text, "" if self._by_ari else _HAVE_ARI)

    async def _check_hangups_come(self, legs: Legs) -> None:
        event = await self._heard(legs.is_of_ours, EVENT_TIMEOUT_S)
        if event is not None:
            self._ok("hangups: Asterisk tells of them (read = call)")
        else:
            self._fail(
                "hangups: Asterisk does not tell of them: read = call is missing, or an "
                "eventfilter holds them back",
                self._rights_remedy(),
            )


def site_if_all_works(config: Config, version: Version) -> Site:
    """Return what a configuration gets legs by, if all that it names works."""
    return site_of(config.asterisk, version, "" if config.ari.url else SET_ARI)


async def taps_of(config: Config) -> list[str]:
    """Return lines that tell the order of preference, and what of it counts for this Asterisk.

    Raises:
        OSError, TimeoutError, ValueError, AmiError: Asterisk cannot be asked for its version.
    """
    async with connected(config.asterisk, lambda event: None) as ami:
        version = await ami.ask_version()
    return ways_for(site_if_all_works(config, version))


def _too_slow(leg: ProbeLeg) -> str:
    """Return what is wrong with the pace of a leg's frames; empty: nothing."""
    if len(leg.frames) < FRAMES_WANTED:
        return f"{len(leg.frames)} frames within {AUDIO_TIMEOUT_S:g} s, not 50 a second"
    if leg.frames_per_second() < SLOWEST_FRAMES_PER_SECOND:
        return f"{leg.frames_per_second():.1f} frames a second, not 50"
    return ""


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


def _limit_of(pid: int) -> int:
    """Return how many files a process may have open; -1: any number.

    Raises:
        OSError: It cannot be looked into.
    """
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return -1 if soft == "unlimited" else int(soft)
    return -1


# --- What to do about it -------------------------------------------------------------------------

_NO_SECRET = (
    "Set [asterisk] secret or secret_file to the secret of the user in manager.conf. Where systemd "
    "hands the secret to the service, give it to this command as well: "
    "AUDIOFORK_ASTERISK_SECRET_FILE=/etc/audiofork/ami-secret audiofork check"
)
_UNREACHABLE = (
    "Is Asterisk running? manager.conf: enabled = yes, and bindaddr and port as in [asterisk] host "
    'and port (asterisk -rx "manager show settings"). With [asterisk] tls = yes the port is that '
    "of tlsbindaddr, and ca_file names who signed its certificate."
)
_CLOCK = (
    "Times in logs and call records cannot be compared, and certificates may be taken for expired. "
    "Let both machines keep time by NTP: timedatectl set-ntp true."
)
_LISTEN = "[audiosocket] listen must be an address of this machine, such as 127.0.0.1:9093."
_TAKEN = (
    "Find it by ss -ltnp and stop it, or choose another port in [audiosocket] listen. If it is the "
    "daemon: it runs with another [control] socket, or you may not use that."
)
_ADVERTISE = (
    "[audiosocket] advertise (empty: listen) must be the address of this machine as Asterisk's "
    "machine sees it, on the port of listen, and no firewall may be between them. Beyond one "
    "machine listen cannot be 127.0.0.1."
)
_NO_NEWS = " Without read = call in manager.conf the reason does not come through."
_NO_OPTION_D = (
    "The directions out and stereo take Asterisk 18.22, 20.7, 21.2, 22 or later; in and both work "
    "with this one."
)
_BUSY = " If a timing module is loaded, the machine is too busy: look at its load."
_TIMING = ' What Asterisk has is told by asterisk -rx "timing test".'
_NOT_THE_TONE = (
    "Something on this Asterisk changes audio between two channels; please report it with the "
    'output of asterisk -rx "core show version" and "module show".'
)


def _load(*modules: str) -> str:
    commands = "".join(f'  asterisk -rx "module load {module}"\n' for module in modules)
    return (
        f"Run\n{commands}and see that modules.conf does not keep it out (noload, or autoload = no "
        "without a load line). Some distributions have it in a package of its own."
    )


_RELOAD_ARI = 'then run\n  asterisk -rx "module reload res_ari.so"'
_NO_PASSWORD = (
    "Set [ari] password or password_file to the password of the user in ari.conf. Where systemd "
    "hands it to the service, give it to this command as well: AUDIOFORK_ARI_PASSWORD_FILE=FILE "
    "audiofork check"
)
_HAVE_ARI = """\
By ARI forks have in and out apart in every call, lose no frame to jitter, and can have wideband. \
To use it, set in audiofork.ini
  [ari]
  url = http://127.0.0.1:8088/ari
  password = (one of your own)
and do what the heads of the shipped ari_audiofork.conf and extensions_audiofork.conf say; then \
check again, which names what is missing."""
_NO_ARI = f"""\
In ari.conf:
  [general]
  enabled = yes
{_RELOAD_ARI}
{_load(*_ARI_MODULES)}
[ari] url has to name what asterisk -rx "http show status" tells, and end with /ari."""
_INCLUDE_EXTENSIONS = """\
Copy the shipped extensions_audiofork.conf, in place of an older one, beside extensions.conf, and \
add to the end of that
  #include extensions_audiofork.conf
then run
  asterisk -rx "dialplan reload\""""


def _http_conf(url: str) -> str:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("localhost", None) else parts.hostname
    if parts.scheme == "https":
        options = f"tlsenable = yes\n  tlsbindaddr = {Address(host, parts.port or 443)}\n"
        options += "  tlscertfile = (its certificate and key, in PEM)"
    else:
        options = f"bindaddr = {host}\n  bindport = {parts.port or 80}"
    return f"""\
Is Asterisk running? In http.conf:
  [general]
  enabled = yes
  {options}
then run
  asterisk -rx "module reload http"
[ari] url has to name what asterisk -rx "http show status" tells; with https, ca_file names who \
signed its certificate."""


def _ari_user(username: str) -> str:
    return f"""\
Compare [ari] username and password with ari.conf, which needs, as in the shipped \
ari_audiofork.conf,
  [{username}]
  type = user
  read_only = no
  password = (that of [ari])
  password_format = plain
{_RELOAD_ARI}
If asterisk -rx "ari show users" does not list it, see whether ari.conf includes \
ari_audiofork.conf twice: Asterisk takes none of its users then."""


def _read_only(username: str) -> str:
    return f"""\
In ari.conf:
  [{username}]
  read_only = no
{_RELOAD_ARI}"""
