"""Shows doors how loud forks are, and lets them listen; costs nothing while nobody does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from audiofork.errors import RequestRefused
from audiofork.forks.events import DomainEvent, Ended
from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.link.messages import (
    EndReason,
    HeardAudio,
    LegAttached,
    Levels,
    LevelsTaken,
    Listen,
    Report,
    SendCommand,
    TakeLevels,
)
from audiofork.text import harmless

log = logging.getLogger(__name__)

TAKE_INTERVAL_S = 0.2
# From the first answer to a take until what has come is told: each relay process has its own.
GATHER_S = 0.02
# Most who listen at once, to all forks together: each may be as much audio as a fork.
MOST_LISTENERS = 20

LevelsCallback = Callable[[Mapping[str, Levels]], None]
AudioCallback = Callable[[HeardAudio], None]
Stop = Callable[[], None]
"""Ends a subscription; may be called twice."""


@dataclass(eq=False, slots=True)
class _Listener:
    """One who listens to a fork.

    Attributes:
        who: Who it is, for the log.
        on_audio: Called with each piece of the audio.
        on_end: Called once, when the fork has ended.
    """

    who: str
    on_audio: AudioCallback
    on_end: Callable[[EndReason], None]


@dataclass(slots=True)
class _Heard:
    """A fork that somebody listens to."""

    fork: Fork
    listeners: list[_Listener] = field(default_factory=list)


class Watching:
    """Takes levels from the relay while somebody looks, and has it report audio that is heard.

    Owned by the daemon, which passes on the relay's reports and the events of forks. Callbacks must
    not wait; an exception of one is logged and goes no further.

    Args:
        send: Sends a command to the relay.
        find: Returns the fork with an id; None: there is none.
    """

    def __init__(self, send: SendCommand, find: Callable[[str], Fork | None]) -> None:
        self._send = send
        self._find = find
        self._viewers: list[LevelsCallback] = []
        self._levels: dict[str, Levels] = {}  # that were taken and not told yet
        self._timer: asyncio.TimerHandle | None = None  # the next take
        self._gathering: asyncio.TimerHandle | None = None
        self._heard: dict[str, _Heard] = {}

    @property
    def viewers(self) -> int:
        """How many look at levels."""
        return len(self._viewers)

    @property
    def listeners(self) -> int:
        """How many listen, to all forks together."""
        return sum(len(heard.listeners) for heard in self._heard.values())

    # --- Levels ---

    def subscribe_levels(self, on_levels: LevelsCallback) -> Stop:
        """Call back five times a second with the levels of all forks, by id.

        Where a relay process is late, those of its forks come by themselves.
        """

        def tell(levels: Mapping[str, Levels]) -> None:  # an object of its own for each call
            on_levels(levels)

        self._viewers.append(tell)
        if self._timer is None:
            self._take()

        def stop() -> None:
            if tell in self._viewers:
                self._viewers.remove(tell)
            if not self._viewers:
                self._stop_taking()

        return stop

    def _take(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TAKE_INTERVAL_S, self._take)
        self._send(TakeLevels())

    def _stop_taking(self) -> None:
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        self._timer = self._gathering = None
        self._levels = {}

    def _on_taken(self, report: LevelsTaken) -> None:
        if not self._viewers:
            return  # the answer was on its way
        self._levels.update(report.levels)
        if self._gathering is None:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(GATHER_S, self._tell_levels)

    def _tell_levels(self) -> None:
        self._gathering = None
        levels, self._levels = self._levels, {}
        for tell in list(self._viewers):
            try:
                tell(levels)
            except Exception:
                log.exception("levels could not be told")

    # --- Audio ---

    def listen(
        self,
        fork_id: str,
        on_audio: AudioCallback,
        *,
        who: str,
        on_end: Callable[[EndReason], None] = lambda _: None,
    ) -> Stop:
        """Call back with what a fork's server gets, ten times a second while audio flows.

        Args:
            fork_id: The fork.
            on_audio: Called with each piece; its `number` shows a gap, and falls when another relay
                process has the fork.
            who: Who listens, for the log; any text.
            on_end: Called once, after the last piece, when the fork has ended.

        Raises:
            RequestRefused: There is no such fork, or it may still be refused, or too many listen.
        """
        fork = self._find(fork_id)
        if fork is None:
            raise RequestRefused("No such fork")
        if fork.state is ForkState.REQUESTED:
            raise RequestRefused("The fork has not begun yet")
        if self.listeners >= MOST_LISTENERS:
            raise RequestRefused(f"Too many listeners: {MOST_LISTENERS} listen already")
        listener = _Listener(harmless(who), on_audio, on_end)
        if fork_id not in self._heard:
            self._heard[fork_id] = _Heard(fork)
            self._send(Listen(fork_id, is_on=True))
        self._heard[fork_id].listeners.append(listener)
        fork.log.info("%s listens", listener.who)
        return lambda: self._stop_listening(fork_id, listener)

    def _stop_listening(self, fork_id: str, listener: _Listener) -> None:
        heard = self._heard.get(fork_id)
        if heard is None or listener not in heard.listeners:
            return
        heard.listeners.remove(listener)
        heard.fork.log.info("%s listens no more", listener.who)
        if not heard.listeners:
            del self._heard[fork_id]
            self._send(Listen(fork_id, is_on=False))

    def _on_audio(self, report: HeardAudio) -> None:
        heard = self._heard.get(report.fork_id)
        for listener in list(heard.listeners) if heard is not None else ():
            try:
                listener.on_audio(report)
            except Exception:
                log.exception("audio could not be told")

    def _end(self, fork_id: str, reason: EndReason) -> None:
        heard = self._heard.pop(fork_id, None)
        for listener in heard.listeners if heard is not None else ():
            try:
                listener.on_end(reason)
            except Exception:
                log.exception("the end could not be told")

    # --- From the daemon ---

    def on_report(self, report: Report) -> None:
        """Handle a report of the relay.

        A leg that connects may be the first in another relay process, which has to be told again
        that somebody listens; for one that knows it, that changes nothing.
        """
        if isinstance(report, LevelsTaken):
            self._on_taken(report)
        elif isinstance(report, HeardAudio):
            self._on_audio(report)
        elif isinstance(report, LegAttached) and report.fork_id in self._heard:
            self._send(Listen(report.fork_id, is_on=True))

    def on_event(self, event: DomainEvent) -> None:
        """Handle an event of the forks."""
        if isinstance(event, Ended):
            self._end(event.fork.id, event.reason)

    def close(self) -> None:
        """Take no levels any more, and tell all who listen that it is over."""
        self._viewers.clear()
        self._stop_taking()
        for fork_id in list(self._heard):
            self._end(fork_id, EndReason.SHUTDOWN)
