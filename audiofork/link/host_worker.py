"""One relay host, from the view of a controller, and the session with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

import audiofork
from audiofork.cluster.beats import Beat
from audiofork.link.fork_spec import LEG_FRAMES_A_SECOND
from audiofork.link.host_runs import Openings, Runs
from audiofork.link.messages import (
    Adopt,
    Command,
    EndFork,
    EndReason,
    ForkReport,
    ForkSpec,
    HeldFork,
)
from audiofork.link.pings import Pings
from audiofork.link.sessions import Down, Drain, Hello, Numbers, new_session, pack
from audiofork.link.stream import Ping
from audiofork.link.told import Told
from audiofork.link.workers import RelayWorker

log = logging.getLogger(__name__)

# So many beats of a host may come until its answer to an opening, or to a ping.
MAX_UNANSWERED = 5
_MUTE_OPENINGS = 3  # then something is wrong for good
LIES, SUPERSEDED = "lies", "superseded"
# Below that, chance and not the forks decides which of two hosts needs more of a core.
_BUSY_CPU = 0.5
# What a frame a second needs of a core; from so many on a host tells what its own do.
_USUAL_CPU = 0.00005
_TELLING_FRAMES = 1000


class HostWorker(RelayWorker):
    """A relay host, and the session with it.

    Args:
        beat: Its latest beat.
        publish: Sends a message to it.
        epoch: Returns the epoch of the lease.

    Attributes:
        beat: Its latest beat.
        heard_at: The loop time of that.
        given: The forks that it was given since, each by its frames a second.
        drained_at: The loop time at which its forks were asked to move last.
        told: What was reported of each fork.
        leftovers: Forks that another host has by now, and that are to end here.
        opened: Set while it has answered in a session.
        numbers: Those of the session.
        runs: Which of the runs of hosts with its name counts.
    """

    def __init__(
        self, beat: Beat, publish: Callable[[bytes], None], epoch: Callable[[], int]
    ) -> None:
        super().__init__(beat.address)
        self.beat = beat
        self.heard_at = asyncio.get_running_loop().time()
        self.given: list[int] = []
        self.drained_at = -1e9
        self.told: dict[str, Told] = {}
        self.leftovers: set[str] = set()
        self.opened = asyncio.Event()
        self.numbers = Numbers()
        self.runs = Runs(beat, self.heard_at)
        self._openings = Openings()
        self._complaints: set[str] = set()  # that the log has
        self._pings = Pings()
        self._publish = publish
        self._epoch = epoch

    @property
    def name(self) -> str:
        return self.beat.name

    @property
    def pid(self) -> int:
        """None on this host."""
        return 0

    def __str__(self) -> str:
        return f"relay host {self.beat.name} at {self.listen}"

    @property
    def is_open(self) -> bool:
        """Whether it has answered in this session."""
        return self.address is not None

    def open(self) -> None:
        """Begin a session; the answer is what it holds. After too many, a later beat does it."""
        self.end()
        now = asyncio.get_running_loop().time()
        if not self._openings.is_allowed(now):
            return
        self._openings.begin(now)
        if self._openings.in_vain == _MUTE_OPENINGS:
            log.error("%s is there and does not answer: may we order forks of it?", self)
        self.numbers.begin(new_session(self.beat.run_id))
        self._send(Hello(audiofork.__version__))

    def on_lost(self) -> None:
        """Open another session, as a message of this one is lost."""
        if self._openings.is_allowed(asyncio.get_running_loop().time()):
            log.warning("a message of %s is lost; asking it what it has", self)
        self.open()

    def end(self) -> None:
        """End the session; its forks go on."""
        self.address = None
        self.opened.clear()
        self.numbers.end()
        self._pings.end()

    def forget(self) -> None:
        """Forget its forks: another controller may have them."""
        self.forks.clear()
        self.held.clear()
        self.told.clear()
        self.leftovers.clear()

    def on_superseded(self) -> None:
        """Note that it obeys another controller, which it says at each opening."""
        if self._is_news(SUPERSEDED):
            log.error("%s obeys another controller by now", self)
        self.end()

    def on_opened(self) -> None:
        """Note that it has answered in this session."""
        self._complaints.discard(SUPERSEDED)
        self.address = self.beat.address
        self.opened.set()

    def refuse(self, fork_ids: Sequence[str]) -> None:
        """Have it end forks that it claims by turns that nobody has given."""
        for fork_id in fork_ids:
            self._send(EndFork(fork_id, EndReason.MOVED))
        if fork_ids and self._is_news(LIES):
            log.error(
                "%s claims %d forks by turns that no controller can have given: they are not "
                "taken for its own; who has its key?",
                *(self, len(fork_ids)),
            )

    def _is_news(self, complaint: str) -> bool:
        """Return whether the log has not told that yet."""
        is_news = complaint not in self._complaints
        self._complaints.add(complaint)
        return is_news

    async def is_reached(self) -> bool:
        """Return when it has all that was sent so far, or False when the session is over."""
        return self.is_open and await self.ping()

    def ping(self) -> asyncio.Future[bool]:
        """Ask for an answer in this session; the result is False when that is over before."""
        self._send(Ping())
        return self._pings.add()

    def on_pong(self) -> None:
        """Take the answer to the oldest ping."""
        self._pings.on_pong()

    def on_answer(self) -> None:
        """Note that it answers."""
        self._openings.on_answer()

    def send(self, command: Command) -> None:
        if isinstance(command, ForkSpec | Adopt):
            self.told[command.fork_id] = Told()
        else:
            self.note_order(command)
        if self.is_open:
            self._send(command)

    def tell(self, message: Drain) -> bool:
        """Send what is of no fork; return whether there is a way to it."""
        if self.is_open:
            self._send(message)
            self.beat = replace(self.beat, is_draining=message.is_on)  # as its next beat tells
        return self.is_open

    def _send(self, message: Down) -> None:
        self._publish(pack(self.numbers.stamp(self._epoch()), message))

    def _told_of(self, message: object) -> Told | None:
        return self.told.get(getattr(message, "fork_id", ""))

    def note_order(self, command: Command) -> None:
        """Note an order for a fork that it may come back with."""
        if (told := self._told_of(command)) is not None:
            told.note_order(command)

    def forget_told(self, but: Container[str]) -> None:
        """Forget what was told of forks, but of some."""
        self.told = {fork_id: told for fork_id, told in self.told.items() if fork_id in but}

    def has(self, fork_id: str) -> bool:
        """Return whether it has a fork, though it may be ending it."""
        return fork_id in self.forks or fork_id in self.leftovers

    def end_leftovers(self) -> None:
        """Have it end what it has gone on with while it was cut off, and is elsewhere by now."""
        for fork_id in self.leftovers:
            self._send(EndFork(fork_id, EndReason.MOVED))

    def is_news(self, report: ForkReport) -> bool:
        """Note a report; return whether it says something new."""
        told = self._told_of(report)
        return told is None or told.is_news(report)

    def resume(self, held: HeldFork) -> None:
        """Take a fork of ours up in a new session: have told what we may have missed, and tell."""
        commands: list[Command] = [Adopt(held.fork_id)]
        commands += self.told.setdefault(held.fork_id, Told()).orders_for(held)
        for command in commands:
            self._send(command)

    def on_beat(self, beat: Beat) -> None:
        """Take a beat; open a session if there is none that works, or ping now and then."""
        self.beat, self.listen, self.given = beat, beat.address, []
        self.heard_at = asyncio.get_running_loop().time()
        if self.is_open:
            self.address = beat.address
        if self._pings or not self.is_open:
            self._openings.unanswered += 1
        if not self.numbers.session or self._openings.unanswered > MAX_UNANSWERED:
            self.open()
        elif self.is_open and self._pings.is_due:
            self.ping()

    @property
    def is_able(self) -> bool:
        """Whether it could take another fork, though it may be drained."""
        return self.is_open and self.beat.forks + len(self.given) < self.beat.capacity

    @property
    def has_room(self) -> bool:
        """Whether it takes another fork."""
        return self.is_able and not self.beat.is_draining

    def on_given(self, spec: ForkSpec) -> None:
        """Reckon with a fork before a beat tells of it."""
        self.given.append(spec.frames_a_second)

    @property
    def load(self) -> float:
        """Which part of it is in use, by frames a second; or of its core, if that is busy and more.

        Its capacity is that of forks with one leg.
        """
        beat = self.beat
        # An earlier version does not tell its frames.
        before = beat.frames_a_second or beat.forks * LEG_FRAMES_A_SECOND
        given = sum(self.given)
        of_a_frame = beat.cpu / before if before >= _TELLING_FRAMES else _USUAL_CPU
        cpu = beat.cpu + given * of_a_frame
        by_frames = (before + given) / (beat.capacity * LEG_FRAMES_A_SECOND)
        return max(by_frames, cpu if cpu > _BUSY_CPU else 0.0)
