"""What the command `check` finds out of the audio, by legs of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.taps.base import Tap
from audiofork.asterisk.taps.chanspy import spy_data
from audiofork.asterisk.taps.ways import NARROW_RATE, Connects, Site, Wish, best_way
from audiofork.asterisk.versions import Version
from audiofork.audiosocket import FRAME_BYTES
from audiofork.commands import remedies
from audiofork.commands.check_port import KnownDaemon, PortCheck
from audiofork.commands.findings import Finding, Findings, Mark
from audiofork.commands.probe import Events, LegFailed, Probe, ProbeLeg, ProbeLegs, snooping
from audiofork.config import Address, Config
from audiofork.errors import AmiActionFailed, AriError, AriRefused, LegError, NoSuchChannel
from audiofork.link.messages import Direction, LegPart
from audiofork.text import reason_of

if TYPE_CHECKING:
    from audiofork.asterisk.ari import Ari
    from audiofork.commands.check_cluster import HostsCheck

WIDE_RATE = 16000
FRAMES_WANTED = 50
AUDIO_TIMEOUT_S = 2.5  # ChanSpy begins after 0.1 s, and 50 frames take a second
NUDGES = 10
SLOWEST_FRAMES_PER_SECOND = 45.0

# The reason of a failed Originate, as measured; one that cannot connect has 8.
_NO_SUCH_CHANNEL_TYPE = "0"


class AudioCheck:
    """Has Asterisk bring a leg, and others that spy on it by each tap that the daemon would use.

    Args:
        config: What the daemon would run with.
        version: Asterisk's.
        findings: Gets what comes of it.
        events: What Asterisk tells.
        daemon: What is known of one that may have the AudioSocket address.
        can_ask: Whether requests come to who listens to Asterisk.
        can_snoop: Whether ARI has let us in so far.
        hosts: Checks the relay hosts of a cluster, which have the legs in our place; None: there
            is no cluster.

    Attributes:
        can_snoop: Whether legs by ARI come, too.
    """

    def __init__(
        self,
        config: Config,
        version: Version,
        findings: Findings,
        events: Events,
        *,
        daemon: KnownDaemon,
        can_ask: bool,
        can_snoop: bool,
        hosts: HostsCheck | None = None,
    ) -> None:
        self._config = config
        self._version = version
        self._findings = findings
        self._events = events
        self._daemon = daemon
        self._can_ask = can_ask
        self._hosts = hosts
        self.can_snoop = can_snoop

    async def run(self, ami: Ami) -> None:
        """Try it all; `ami` may originate."""
        probe = Probe()
        legs = ProbeLegs(ami, probe, self._events)
        try:
            if self._hosts is None:
                address = await self._listen(ami, probe, legs)
            else:
                await self._check_hosts(ami, legs, self._hosts)
                address = await self._listen_beside(probe)
            if address is not None:
                await self._check_audio(legs, address)
        finally:
            await probe.close()
        if legs.news_due:
            await self._check_hangups_come(legs)

    async def _listen(self, ami: Ami, probe: Probe, legs: ProbeLegs) -> Address | None:
        """Listen where the daemon would; if it does already, on a port beside it.

        Returns:
            The address that Asterisk shall dial, or None after a fault.
        """
        listen = self._config.audiosocket.listen
        advertise = self._config.audiosocket.advertise or listen
        try:
            chosen = await probe.start(listen)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                self._findings.fail(
                    f"AudioSocket: cannot listen on {listen}: {reason_of(exc)}", remedies.LISTEN
                )
                return None
            if not await self._check_port(ami, legs, advertise):
                return None
            return await self._listen_beside(probe)
        if self._daemon.runs and listen.port:
            text = f"AudioSocket: the daemon that runs does not listen on {listen}"
            self._findings.fail(text, remedies.RESTART)
        return self._config.audiosocket.advertise or chosen

    async def _check_hosts(self, ami: Ami, legs: ProbeLegs, hosts: HostsCheck) -> None:
        if self._can_ask:
            await hosts.run(ami, legs)
        else:
            self._findings.skip(
                "relay hosts: whether Asterisk reaches them cannot be asked while requests do not "
                "come"
            )

    async def _listen_beside(self, probe: Probe) -> Address | None:
        """Listen on any port; return what Asterisk shall dial, None if there is none."""
        audiosocket = self._config.audiosocket
        try:
            chosen = await probe.start(Address(audiosocket.listen.host, 0))
        except OSError as exc:
            self._findings.skip(
                f"audio: needs a port here, at [audiosocket] listen: {reason_of(exc)}"
            )
            return None
        return Address((audiosocket.advertise or audiosocket.listen).host, chosen.port)

    async def _check_port(self, ami: Ami, legs: ProbeLegs, advertise: Address) -> bool:
        """See whether it is the daemon that has the port, and whether Asterisk reaches it."""
        if not self._can_ask:
            self._findings.skip(
                f"AudioSocket: a program listens on {self._config.audiosocket.listen}; whether it "
                "is the daemon cannot be asked while requests do not come"
            )
            return True
        port = PortCheck(self._config, self._findings, self._events, self._daemon)
        try:
            return await port.run(ami, legs)
        except LegFailed as exc:
            self._leg_failed(exc, advertise)
            return False

    async def _check_audio(self, legs: ProbeLegs, address: Address) -> None:
        try:
            target = await legs.start(address, "Wait", "20")
        except LegFailed as exc:
            self._leg_failed(exc, address)
            return
        if not self._is_beside(address):
            self._findings.ok(f"AudioSocket: Asterisk reaches {address}")
        uniqueid = legs.uniqueids[-1]
        talk = asyncio.create_task(target.talk())
        try:
            await self._check_chanspy(legs, address, uniqueid)
            await self._check_snoop(legs, address, uniqueid)
            await self._check_keys_come(legs, uniqueid)
        finally:
            talk.cancel()
            target.hang_up()

    async def _check_chanspy(self, legs: ProbeLegs, address: Address, uniqueid: str) -> None:
        if self._config.asterisk.tap == "snoop":
            self._findings.skip("audio: ChanSpy is not used ([asterisk] tap = snoop)")
            return
        await self._spy(legs, address, uniqueid, LegPart.MIX)
        if self._config.asterisk.chanspy_pairs == "narrowband":
            await self._spy(legs, address, uniqueid, LegPart.PAIRS)

    async def _spy(self, legs: ProbeLegs, address: Address, uniqueid: str, part: LegPart) -> None:
        """Have ChanSpy bring what the target says, and judge it."""
        try:
            spy = await legs.start(address, "ChanSpy", spy_data(uniqueid, part))
        except LegFailed as exc:
            self._leg_failed(exc, address)
            return
        try:
            await spy.wait_frames(FRAMES_WANTED, AUDIO_TIMEOUT_S)
            await self._judge(spy, part)
        finally:
            spy.hang_up()

    def _is_beside(self, address: Address) -> bool:
        """Return whether this is not the configured port, since others have the legs there."""
        if self._hosts is not None:
            return True
        configured = self._config.audiosocket.advertise or self._config.audiosocket.listen
        return configured.port not in (0, address.port)

    def _leg_failed(self, failure: LegFailed, address: Address) -> None:
        if self._is_beside(address):
            whose = "of this host" if self._hosts is not None else "beside the daemon's"
            self._findings.skip(f"audio: needs a port {whose}, and {address}: {failure}")
        elif failure.reason == _NO_SUCH_CHANNEL_TYPE:
            self._findings.fail(
                "AudioSocket: Asterisk has no channel type AudioSocket",
                remedies.load(*remedies.AUDIOSOCKET_MODULES),
            )
        else:
            remedy = remedies.ADVERTISE if failure.reason else remedies.ADVERTISE + remedies.NO_NEWS
            self._findings.fail(f"AudioSocket: Asterisk and {address}: {failure}", remedy)

    async def _judge(self, spy: ProbeLeg, part: LegPart) -> None:
        in_pairs = part is LegPart.PAIRS
        if not spy.frames and spy.closed:
            self._findings.fail(
                "audio: ChanSpy does not run", remedies.load(remedies.CHANSPY_MODULE)
            )
        elif not spy.frames:
            await self._judge_silence(spy)
        elif in_pairs and any(len(frame) == FRAME_BYTES for _, frame in spy.frames):
            self._findings.fail(
                f"audio: the ChanSpy of Asterisk {self._version} has no option D",
                remedies.NO_OPTION_D,
            )
        elif pace := _too_slow(spy):
            self._findings.fail(
                f"audio: {pace}", remedies.load(remedies.TIMING_MODULES[0]) + remedies.BUSY
            )
        elif not (spy.has_tone_in_left_alone() if in_pairs else spy.is_tone(NARROW_RATE)):
            self._findings.fail(
                "audio: what comes is not what the target was sent", remedies.NOT_THE_TONE
            )
        else:
            pace = f"{spy.frames_per_second():.1f} frames a second"
            what = "in and out apart by ChanSpy's D" if in_pairs else "in and out mixed by ChanSpy"
            self._findings.ok(f"audio: {pace}, {what}")

    async def _judge_silence(self, spy: ProbeLeg) -> None:
        """Without a timing source ChanSpy sends a frame for each that it gets, and no other."""
        for _ in range(NUDGES):
            spy.send_tone()
            await spy.wait_frames(len(spy.frames) + 1, 0.05)
        if spy.frames:
            text = "audio: none comes of itself: Asterisk has no timing source"
        else:
            text = "audio: none comes"
        self._findings.fail(text, remedies.load(remedies.TIMING_MODULES[0]) + remedies.TIMING)

    async def _check_snoop(self, legs: ProbeLegs, address: Address, uniqueid: str) -> None:
        """Have the snoop tap bring what the target says, by each of its extensions."""
        if not self.can_snoop:
            return
        async with snooping(self._config.ari, address) as (ari, tap):
            if tap.missing:
                self._findings.fail(f"snoop: {tap.missing}", remedies.load(*remedies.ARI_MODULES))
                return
            await self._check_timing(ari)
            await self._check_dialplan_modules(ari)
            trials = [
                self._snooped(legs, tap, uniqueid, rate, connects_for(rate, self._version))
                for rate in (NARROW_RATE, WIDE_RATE)
            ]
            # What ARI says to both, we say once.
            for finding in dict.fromkeys(await asyncio.gather(*trials)):
                if finding.mark is Mark.OK:
                    self._findings.ok(finding.text)
                else:
                    self.can_snoop = False
                    self._findings.fail(finding.text, finding.remedy)

    async def _check_timing(self, ari: Ari) -> None:
        """Tell of a timing module that loses ticks; where ARI does not say which, tell nothing."""
        with contextlib.suppress(AriError):
            module = await ari.get(f"/asterisk/modules/{remedies.TIMERFD}")
            if module.get("status") == "Running":
                self._findings.skip(remedies.TICKS_ARE_LOST)

    async def _check_dialplan_modules(self, ari: Ari) -> None:
        """Name what the lines lack that fork from the dialplan: without app_exec they end calls.

        To a user of AMI who has `system` they have been named before.
        """
        missing = [name for name in remedies.DIALPLAN_MODULES if await _is_missing(ari, name)]
        if missing:
            text = f"modules: {', '.join(missing)} not loaded, which forks from the dialplan need"
            self._findings.fail(text, remedies.load(*missing))

    async def _snooped(
        self, legs: ProbeLegs, tap: Tap, uniqueid: str, sample_rate: int, connects: Connects
    ) -> Finding:
        """Have one leg, and judge what it brings."""
        what = f"snoop at {sample_rate} Hz"
        try:
            leg = await legs.snoop(tap, uniqueid, sample_rate, connects)
        except LegFailed as exc:
            remedy = (
                f"{remedies.load(remedies.LEG_MODULES[connects])}\n{remedies.INCLUDE_EXTENSIONS}"
            )
            return Finding(Mark.FAIL, f"{what}: {exc}", remedy)
        except (LegError, NoSuchChannel) as exc:
            remedy = (
                remedies.load(remedies.STASIS_MODULE, remedies.TIMING_MODULES[0]) + remedies.TIMING
            )
            return Finding(Mark.FAIL, f"snoop: {exc}", remedy)
        try:
            await leg.wait_frames(FRAMES_WANTED, AUDIO_TIMEOUT_S)
        finally:
            leg.hang_up()
        if pace := _too_slow(leg):
            remedy = remedies.load(remedies.TIMING_MODULES[0]) + remedies.BUSY
            return Finding(Mark.FAIL, f"{what}: {pace}", remedy)
        if not leg.is_tone(sample_rate):
            text = f"{what}: what comes is not what the target was sent"
            return Finding(Mark.FAIL, text, remedies.NOT_THE_TONE)
        return Finding(Mark.OK, f"{what}: {leg.frames_per_second():.1f} frames a second")

    async def _check_keys_come(self, legs: ProbeLegs, uniqueid: str) -> None:
        try:
            come = await legs.press_key(uniqueid)
        except AmiActionFailed as exc:
            self._findings.skip(f"keys (DTMF): whether Asterisk tells of them is not known: {exc}")
            return
        if come:
            self._findings.ok("keys (DTMF): Asterisk tells of them (read = dtmf)")
        else:
            user = self._config.asterisk.username
            self._findings.warn(
                "keys (DTMF): Asterisk does not tell of them, so no server is told: read = dtmf is "
                "missing, or an eventfilter holds them back",
                remedies.keys(user),
            )

    async def _check_hangups_come(self, legs: ProbeLegs) -> None:
        event = await self._events.first(legs.is_of_ours)
        if event is not None:
            self._findings.ok("hangups: Asterisk tells of them (read = call)")
        else:
            self._findings.fail(
                "hangups: Asterisk does not tell of them: read = call is missing, or an "
                "eventfilter holds them back",
                remedies.rights(self._config.asterisk.username),
            )


async def _is_missing(ari: Ari, module: str) -> bool:
    """Return whether ARI says that a module is not loaded; it may not tell of modules at all."""
    try:
        await ari.get(f"/asterisk/modules/{module}")
    except AriRefused as exc:
        return "could not be found in running modules" in exc.message
    except AriError:
        return False
    return False


def _too_slow(leg: ProbeLeg) -> str:
    """Return what is wrong with the pace of a leg's frames; empty: nothing."""
    if len(leg.frames) < FRAMES_WANTED:
        return f"{len(leg.frames)} frames within {AUDIO_TIMEOUT_S:g} s, not 50 a second"
    if leg.frames_per_second() < SLOWEST_FRAMES_PER_SECOND:
        return f"{leg.frames_per_second():.1f} frames a second, not 50"
    return ""


def connects_for(sample_rate: int, version: Version) -> Connects:
    """Return how the daemon would have a leg by ARI."""
    way = best_way(Wish(Direction.IN, sample_rate), Site(version))
    assert way is not None, "with ARI there is a way for every rate"
    return way.connects
