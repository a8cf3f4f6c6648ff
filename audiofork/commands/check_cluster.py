"""What the command `check` finds out of a cluster: who leads, which relay hosts are there.

It listens to what all tell some times a second, and sends nothing that any of them acts on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from nats.aio.msg import Msg
from nats.js.errors import KeyNotFoundError

import audiofork
from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import CheckRaised, Event
from audiofork.cluster.beats import (
    CONTROL_BEAT_S,
    CONTROL_SUBJECT,
    SUBJECT,
    Beat,
    ControlBeat,
    beat_of,
    control_beat_of,
)
from audiofork.cluster.broker import FAULTS
from audiofork.cluster.lease import BUCKET, Holder
from audiofork.cluster.login import inbox_of_controller
from audiofork.commands import remedies_cluster as remedies
from audiofork.commands.check_nats import Connection, NatsCheck
from audiofork.commands.check_port import Knocking, Reached
from audiofork.commands.check_rights import try_rights
from audiofork.commands.findings import Findings
from audiofork.commands.probe import Events, LegFailed, ProbeLegs
from audiofork.config import ClusterConfig
from audiofork.doors.check_answers import READY
from audiofork.text import printable, why

LISTEN_S = 1.5 * CONTROL_BEAT_S
# Of `dead_after`: within it each has told something several times.
_LISTENING_PART = 0.6
MAX_CLOCK_DIFFERENCE_S = 2.0
KNOCKS_AT_ONCE = 8  # the relay hosts expect twice as many legs


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """What was found.

    Attributes:
        hosts: The latest beat of each relay host.
        has_leader: Whether a controller leads for this Asterisk.
    """

    hosts: tuple[Beat, ...] = ()
    has_leader: bool = False


class _Held(NamedTuple):
    """Who has a lease, and the revision of its key."""

    holder: Holder | None
    revision: int


_NOBODY = _Held(None, 0)
_Beat = TypeVar("_Beat", Beat, ControlBeat)


class Heard(Generic[_Beat]):
    """The beats of one kind that came while we listened.

    Args:
        read: Returns the beat in a message, by its subject and payload; raises ValueError.
        clock: Seconds since 1970.

    Attributes:
        beats: The latest of each run of each host.
        faults: Of what was no beat.
    """

    def __init__(
        self, read: Callable[[str, bytes], _Beat], clock: Callable[[], float] = time.time
    ) -> None:
        self.beats: dict[tuple[str, str], _Beat] = {}
        self.faults: list[str] = []
        self._read: Callable[[str, bytes], _Beat] = read
        self._clock = clock
        self._ahead_s: dict[str, float] = {}

    async def hear(self, message: Msg) -> None:
        """Take a message of the subject of these beats."""
        try:
            beat = self._read(message.subject, message.data)
        except ValueError as exc:
            self.faults.append(f"{printable(message.subject, '?')}: {exc}")
            return
        if beat.is_last:
            self.beats.pop((beat.name, beat.run_id), None)
            return
        self.beats[beat.name, beat.run_id] = beat
        if isinstance(beat, Beat) and beat.clock:
            self._ahead_s[beat.name] = beat.clock - self._clock()

    def ahead_s(self, name: str) -> float:
        """Return how much the clock of a host is ahead of ours; 0 where it does not tell."""
        return self._ahead_s.get(name, 0.0)

    @property
    def hosts(self) -> list[_Beat]:
        """One beat of each host, by name."""
        latest = {beat.name: beat for beat in self.beats.values()}
        return [latest[name] for name in sorted(latest)]

    @property
    def doubles(self) -> list[str]:
        """The names that two hosts have."""
        counts = Counter(name for name, _ in self.beats)
        return sorted(name for name, count in counts.items() if count > 1)


def listening_s(config: ClusterConfig) -> float:
    """Return how long to listen, so that each has told something several times."""
    return max(LISTEN_S, _LISTENING_PART * config.dead_after)


class ClusterCheck:
    """Looks at the cluster as the controller of an Asterisk sees it.

    Args:
        config: The configuration.
        findings: Gets what comes of it.
        clock: Seconds since 1970.
    """

    def __init__(
        self, config: ClusterConfig, findings: Findings, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._findings = findings
        self._heard = Heard(beat_of, clock)
        self._controllers = Heard(control_beat_of)
        self._registered: set[str] | None = None

    async def run(self) -> KnownCluster:
        """Check NATS, what it keeps, who leads and who relays."""
        check = NatsCheck(self._config, self._findings, inbox_of_controller(self._config))
        one = await check.connect()
        if one is None:
            return KnownCluster()
        try:
            has_leases = await check.check_buckets(one)
            has_leader = await self._listen(one, has_leases=has_leases)
            if has_leases:
                self._registered = await check.read_registered(one)
        except FAULTS as exc:
            if one.refusals:
                self._findings.fail(f"NATS: {one.refusals[-1]}", remedies.RIGHTS)
            else:
                self._findings.fail(f"NATS: {why(exc)}", remedies.UNREACHABLE)
            return KnownCluster()
        finally:
            await one.close()
        self._judge_hosts()
        return KnownCluster(tuple(self._heard.hosts), has_leader)

    async def _listen(self, one: Connection, *, has_leases: bool) -> bool:
        """Listen for a while; return whether a controller leads."""
        for text in await try_rights(one, self._config):
            self._findings.fail(f"NATS: {text}", remedies.RIGHTS)
        asterisk = self._config.asterisk
        await one.client.subscribe(f"{SUBJECT}.*", cb=self._heard.hear)
        await one.client.subscribe(f"{CONTROL_SUBJECT}.{asterisk}.*", cb=self._controllers.hear)
        before = await self._lease(one) if has_leases else _NOBODY
        await asyncio.sleep(listening_s(self._config))
        after = await self._lease(one) if has_leases else _NOBODY
        if not has_leases:
            self._judge_without_leases()
            return False
        return self._judge_leader(before, after)

    async def _lease(self, one: Connection) -> _Held:
        with contextlib.suppress(KeyNotFoundError):
            bucket = await one.stream.key_value(BUCKET)
            entry = await bucket.get(self._config.asterisk)
            return _Held(Holder.of(entry.value), entry.revision or 0)
        return _NOBODY

    def _judge_without_leases(self) -> None:
        if names := " and ".join(beat.name for beat in self._controllers.hosts):
            text = f"controllers: none leads without the bucket {BUCKET}, though {names} is there"
            self._findings.fail(text, remedies.NO_LEASES)

    def _judge_leader(self, before: _Held, after: _Held) -> bool:
        asterisk = self._config.asterisk
        if after.holder is None:
            text = f"controllers: none leads for {asterisk}"
            if there := " and ".join(beat.name for beat in self._controllers.hosts):
                self._findings.fail(f"{text}, though {there} is there", remedies.NOT_RENEWED)
            else:
                self._findings.skip(text, remedies.START_CONTROLLER)
            return False
        if after.revision == before.revision:
            self._judge_silent(f"controllers: none leads for {asterisk}", after.holder.name)
            return False
        self._judge_standing_by(f"controllers: {after.holder.name} leads for {asterisk}", after)
        return True

    def _judge_silent(self, text: str, name: str) -> None:
        """Tell of a lease that its holder does not renew."""
        if name in (beat.name for beat in self._controllers.hosts):
            self._findings.fail(
                f"{text}: {name} did, runs, and does not renew its lease", remedies.NOT_RENEWED
            )
        else:
            self._findings.fail(f"{text}: {name} did, and is silent", remedies.START_CONTROLLER)

    def _judge_standing_by(self, text: str, held: _Held) -> None:
        leader = held.holder.name if held.holder is not None else ""
        others = [beat for beat in self._controllers.hosts if beat.name != leader]
        if not others:
            self._findings.warn(f"{text}, none stands by", remedies.STAND_BY)
        else:
            names = " and ".join(beat.name for beat in others)
            self._findings.ok(f"{text}, {names} stand{'s' if len(others) == 1 else ''} by")
        for name in self._controllers.doubles:
            self._findings.fail(f"controllers: two have the name {name}", remedies.SAME_NAME)
        for beat in self._controllers.hosts:
            if beat.version != audiofork.__version__:
                self._findings.warn(
                    f"controllers: {beat.name} has {_versions(beat)}", remedies.VERSION
                )

    # --- Relay hosts ---

    def _judge_hosts(self) -> None:
        hosts = self._heard.hosts
        for text in dict.fromkeys(self._heard.faults):
            self._findings.fail(f"relay hosts: a message of {text}", remedies.VERSION)
        for name in self._heard.doubles:
            self._findings.fail(f"relay host {name}: two have this name", remedies.SAME_NAME)
        self._find_same_addresses(hosts)
        if not hosts:
            self._findings.fail("relay hosts: none is there", remedies.START_RELAY)
            return
        for beat in hosts:
            self._judge_host(beat)
        self._judge_registrations({beat.name for beat in hosts})
        self._judge_room([beat for beat in hosts if not beat.is_draining])

    def _find_same_addresses(self, hosts: Sequence[Beat]) -> None:
        addresses: dict[str, list[str]] = {}
        for beat in hosts:
            addresses.setdefault(beat.listen, []).append(beat.name)
        for address, names in addresses.items():
            if len(names) > 1:
                self._findings.fail(
                    f"relay hosts: {' and '.join(names)} have the same address {address}",
                    remedies.SAME_ADDRESS,
                )

    def _judge_host(self, beat: Beat) -> None:
        name = f"relay host {beat.name}"
        text = f"{name}: at {beat.listen}, {beat.forks} of {beat.capacity} forks"
        if beat.zone:
            text += f", zone {beat.zone}"
        if beat.version != audiofork.__version__:
            self._findings.warn(f"{text}; {_versions(beat)}", remedies.VERSION)
        elif beat.is_draining:
            self._findings.skip(f"{text}; it is drained, and takes no more")
        else:
            self._findings.ok(f"{text}, version {beat.version}")
        ahead_s = self._heard.ahead_s(beat.name)
        if abs(ahead_s) > MAX_CLOCK_DIFFERENCE_S:
            which = "ahead of" if ahead_s > 0 else "behind"
            text = f"{name}: its clock is {abs(ahead_s):.0f} s {which} this host's"
            self._findings.warn(text, remedies.CLOCK)

    def _judge_registrations(self, heard: set[str]) -> None:
        if self._registered is None:
            return
        for name in sorted(heard - self._registered):
            text = f"relay host {name}: it is not registered"
            self._findings.warn(text, remedies.REGISTERING)
        for name in sorted(self._registered - heard):
            text = f"relay host {name}: it was there within the last minute, and is silent"
            self._findings.warn(text, remedies.SILENT)

    def _judge_room(self, hosts: Sequence[Beat]) -> None:
        """Tell how many forks there is room for, also when the fullest host has died."""
        room = sum(max(0, beat.capacity - beat.forks) for beat in hosts)
        text = f"relay hosts: room for {room} more forks"
        fullest = max(hosts, key=lambda beat: beat.forks, default=None)
        if fullest is None or not room:
            self._findings.warn(text, remedies.FULL)
            return
        spare = room - max(0, fullest.capacity - fullest.forks)
        if len(hosts) == 1:
            self._findings.warn(f"{text}; there is no other if it dies", remedies.NO_SPARE)
        elif spare < fullest.forks:
            text += f"; if {fullest.name} dies, for {spare} of its {fullest.forks}"
            self._findings.warn(text, remedies.NO_SPARE)
        else:
            self._findings.ok(text)


def _versions(beat: Beat | ControlBeat) -> str:
    version = printable(beat.version[:30], "?") or "unknown"
    return f"version {version}, not {audiofork.__version__} as here"


class HostsCheck:
    """Has Asterisk connect to each relay host, and the controller that leads say that it came.

    Args:
        cluster: What is known of the cluster.
        findings: Gets what comes of it.
        events: What Asterisk tells.
        run_id: The controller that leads, if it is the one of this host.
    """

    def __init__(
        self, cluster: KnownCluster, findings: Findings, events: Events, run_id: str
    ) -> None:
        self._cluster = cluster
        self._findings = findings
        self._events = events
        self._knocking = Knocking(events, run_id)
        self._few = asyncio.Semaphore(KNOCKS_AT_ONCE)

    async def run(self, ami: Ami, legs: ProbeLegs) -> None:
        """Try each relay host.

        Raises:
            AmiError: Asterisk cannot be asked.
        """
        if not self._cluster.has_leader:
            self._findings.skip(
                "relay hosts: whether Asterisk reaches them can be asked while a controller leads"
            )
            return
        hosts = self._cluster.hosts
        results = await asyncio.gather(*(self._knock(ami, legs, beat) for beat in hosts))
        if hosts and all(result is Reached.NOT_EXPECTED for result in results):
            text = "relay hosts: the controller that leads does not say that they expect a leg"
            self._findings.fail(text, remedies.NO_ANSWER)
        else:
            for beat, result in zip(hosts, results, strict=True):
                self._tell(beat, result)
        self._find_others()

    async def _knock(self, ami: Ami, legs: ProbeLegs, beat: Beat) -> Reached | LegFailed:
        async with self._few:
            try:
                return await self._knocking.knock(ami, legs, beat.address)
            except LegFailed as exc:
                return exc

    def _tell(self, beat: Beat, result: Reached | LegFailed) -> None:
        name = f"relay host {beat.name}"
        if isinstance(result, LegFailed):
            text = f"{name}: Asterisk and {beat.listen}: {result}"
            self._findings.fail(text, remedies.NOT_REACHED)
        elif result is Reached.NOT_EXPECTED:
            text = f"{name}: the controller that leads does not say that it expects a leg"
            self._findings.fail(text, remedies.NO_ANSWER)
        elif result is Reached.ELSEWHERE:
            text = f"{name}: what Asterisk reaches at {beat.listen} is not it, or refuses Asterisk"
            self._findings.fail(text, remedies.NOT_IT)
        else:  # that others answer, too, is told once
            self._findings.ok(f"{name}: Asterisk reaches it at {beat.listen}")

    def _find_others(self) -> None:
        """Tell if more than one daemon looks after this Asterisk."""
        runs = self._events.values(_run_of)
        if len(runs) > 1:
            self._findings.fail(
                f"controllers: {len(runs)} daemons look after this Asterisk", remedies.TWO_DAEMONS
            )


def _run_of(event: Event) -> str:
    """Return the run of the daemon that answers a check by an event; empty: none does."""
    return event.run if isinstance(event, CheckRaised) and event.answer == READY else ""
