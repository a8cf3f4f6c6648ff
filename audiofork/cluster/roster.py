"""All relay hosts and controllers of a cluster, as they tell themselves, for those who look."""

from __future__ import annotations

import contextvars
import enum
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from audiofork.cluster.beats import (
    CONTROL_BEAT_S,
    CONTROL_SUBJECT,
    SUBJECT,
    Beat,
    ControlBeat,
    beat_of,
    control_beat_of,
)
from audiofork.cluster.buckets import HOSTS_TTL_S
from audiofork.errors import NoMessage

if TYPE_CHECKING:
    from audiofork.cluster.broker import Broker

log = logging.getLogger(__name__)

# Of a controller: three of its beats, and some more.
CONTROL_DEAD_S = 3.5 * CONTROL_BEAT_S
# How long one that was there is told as dead.
REMEMBERED_S = 600.0
MOST_KNOWN = 1000

_Beat = TypeVar("_Beat", Beat, ControlBeat)


class HostState(enum.StrEnum):
    """How a relay host is."""

    OPEN = "open"
    """It takes forks."""
    DRAINING = "draining"
    """It takes no more forks."""
    DEAD = "dead"
    """Nothing is heard of it."""


class ControlState(enum.StrEnum):
    """How a controller is."""

    LEADS = "leads"
    STANDS_BY = "stands by"
    DEAD = "dead"
    """Nothing is heard of it."""


@dataclass(frozen=True, slots=True)
class Host:
    """A relay host as it was last heard of."""

    beat: Beat
    state: HostState


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller as it was last heard of."""

    beat: ControlBeat
    state: ControlState


class _Latest(Generic[_Beat]):
    """The latest beat of each, and when it was heard, in the order of their first beats."""

    def __init__(self) -> None:
        self._heard: dict[tuple[str, ...], tuple[_Beat, float]] = {}

    def note(self, key: tuple[str, ...], beat: _Beat, at: float) -> bool:
        """Note a beat; return whether it is the first of a run."""
        if beat.is_last:
            self._heard.pop(key, None)
            return False
        before, _ = self._heard.get(key, (None, 0.0))
        if before is None and len(self._heard) >= MOST_KNOWN:
            raise NoMessage(f"there are {MOST_KNOWN} others already")
        self._heard[key] = beat, at
        return before is None or before.run_id != beat.run_id

    def keys_of(self, *beginning: str) -> list[tuple[str, ...]]:
        """Return the keys that begin so, by when they were heard first."""
        return [key for key in self._heard if key[: len(beginning)] == beginning]

    def note_known(self, key: tuple[str, ...], beat: _Beat, at: float) -> None:
        """Note one that somebody else has heard of, unless it was heard here."""
        if key not in self._heard and not beat.is_last:
            self.note(key, beat, at)

    def silent(self, now: float) -> Sequence[tuple[_Beat, float]]:
        """Return each with the seconds since, in the order of the keys; forget old ones."""
        self._heard = {
            key: (beat, at) for key, (beat, at) in self._heard.items() if now - at < REMEMBERED_S
        }
        return [(beat, now - at) for _, (beat, at) in sorted(self._heard.items())]

    def forget_times(self, now: float) -> None:
        self._heard = {key: (beat, now) for key, (beat, _) in self._heard.items()}


class Roster:
    """Hears all beats; `start` begins with that. Who says that he ends is forgotten.

    While the broker is away, all are as they were when it was lost: nothing is heard of anybody.

    Args:
        broker: The connection to the broker.
        dead_after_s: How long nothing may be heard of a relay host.
        clock: Returns the time in seconds.

    Attributes:
        on_new_controller: Called when a controller is heard for the first time: it does not know
            yet who is there.
        is_led_here: Called with the beat of a controller that says that it leads; returns False if
            it is our own, and we know better.
    """

    def __init__(
        self, broker: Broker, dead_after_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._dead_after_s = dead_after_s
        self._clock = clock
        self._hosts: _Latest[Beat] = _Latest()
        self._controllers: _Latest[ControlBeat] = _Latest()
        self._asterisks: dict[str, float] = {}  # when a controller of each was heard of last
        self._lost_at: float | None = None
        self._since = clock()  # nothing is missed
        self._listeners: list[Callable[[Beat], None]] = []
        self._twins: set[tuple[str, str]] = set()  # the Asterisk and the name that two have
        self.on_new_controller: Callable[[], None] = lambda: None
        self.is_led_here: Callable[[ControlBeat], bool] = lambda _: True

    async def start(self) -> None:
        """Begin to hear beats.

        Raises:
            BrokerUnavailable: The connection is lost.
        """
        self._since = self._clock()
        self._broker.on_change(self.on_broker)
        await self._broker.subscribe(f"{SUBJECT}.*", self.on_beat)
        await self._broker.subscribe(f"{CONTROL_SUBJECT}.*.*", self.on_control_beat)

    def on_beat(self, subject: str, payload: bytes) -> None:
        """Note the beat of a relay host.

        Raises:
            NoMessage: It is none, or there are too many others.
        """
        beat = beat_of(subject, payload)
        self._hosts.note((beat.name,), beat, self._clock())
        for listener in list(self._listeners):
            listener(beat)

    def listen(self, listener: Callable[[Beat], None]) -> Callable[[], None]:
        """Have a function called with each beat of a relay host; return what ends that.

        It is called in the context of who listens, so that its lines in the log name the Asterisk.
        """
        context = contextvars.copy_context()

        def in_context(beat: Beat) -> None:
            context.run(listener, beat)

        self._listeners.append(in_context)
        return lambda: self._listeners.remove(in_context)

    def on_registered(self, beat: Beat) -> None:
        """Note a relay host that is registered: from now on a beat of it is waited for.

        Raises:
            NoMessage: There are too many others.
        """
        self._hosts.note_known((beat.name,), beat, self._clock())

    @property
    def missing(self) -> set[str]:
        """The names of the relay hosts that are silent, and were there a moment ago."""
        return {
            beat.name
            for beat, silent_s in self._hosts.silent(self._now())
            if self._dead_after_s < silent_s <= HOSTS_TTL_S
        }

    @property
    def is_complete_in_s(self) -> float:
        """In how many seconds each relay host that is there has been heard of for sure."""
        return max(0.0, self._since + self._dead_after_s / 2 - self._clock())

    def on_control_beat(self, subject: str, payload: bytes) -> None:
        """Note the beat of a controller; raises as `on_beat`."""
        beat = control_beat_of(subject, payload)
        key = (beat.asterisk, beat.name, beat.run_id)
        is_new = self._controllers.note(key, beat, self._clock())
        if beat.asterisk in self._asterisks or len(self._asterisks) < MOST_KNOWN:
            self._asterisks[beat.asterisk] = self._clock()
        if is_new:
            self.on_new_controller()
        elif not beat.is_last and self._controllers.keys_of(*key[:2])[-1] != key:
            self._note_twins(beat)

    def _note_twins(self, beat: ControlBeat) -> None:
        """Note that a controller goes on although another one has begun under its name."""
        twins = beat.asterisk, beat.name
        if twins not in self._twins and len(self._twins) < MOST_KNOWN:
            self._twins.add(twins)
            log.error(
                "two controllers of %s have the name %s: give one another [cluster] name", *twins
            )

    def on_broker(self, is_up: bool) -> None:  # noqa: FBT001 (of `Broker.on_change`)
        """Note that the connection is lost, or stands again."""
        self._lost_at = None if is_up else self._clock()
        if is_up:  # nothing could be heard of them
            now = self._since = self._clock()
            self._hosts.forget_times(now)
            self._controllers.forget_times(now)

    def _now(self) -> float:
        return self._clock() if self._lost_at is None else self._lost_at

    @property
    def hosts(self) -> Sequence[Host]:
        """The relay hosts, by name; dead ones for a while."""
        return [
            Host(beat, self._state_of(beat, silent_s))
            for beat, silent_s in self._hosts.silent(self._now())
        ]

    def _state_of(self, beat: Beat, silent_s: float) -> HostState:
        if silent_s > self._dead_after_s:
            return HostState.DEAD
        return HostState.DRAINING if beat.is_draining else HostState.OPEN

    @property
    def controllers(self) -> Sequence[Controller]:
        """The controllers, by Asterisk and name; dead ones for a while.

        Of several runs with one name the latest is told, and those that live beside it.
        """
        found = [
            Controller(beat, self._state_of_controller(beat, silent_s))
            for beat, silent_s in self._controllers.silent(self._now())
        ]
        return [one for one in found if self._is_told(one)]

    def _is_told(self, one: Controller) -> bool:
        beat, twins = one.beat, (one.beat.asterisk, one.beat.name)
        is_latest = self._controllers.keys_of(*twins)[-1][-1] == beat.run_id
        return is_latest or (twins in self._twins and one.state is not ControlState.DEAD)

    def _state_of_controller(self, beat: ControlBeat, silent_s: float) -> ControlState:
        if silent_s > CONTROL_DEAD_S:
            return ControlState.DEAD
        leads = beat.leads and self.is_led_here(beat)
        return ControlState.LEADS if leads else ControlState.STANDS_BY

    @property
    def asterisks(self) -> Sequence[str]:
        """The names of each Asterisk that has a controller, or had one a while ago.

        It may have forks also when its last controller has said that it ends.
        """
        since = self._now() - REMEMBERED_S
        self._asterisks = {name: at for name, at in self._asterisks.items() if at > since}
        return sorted(self._asterisks)
