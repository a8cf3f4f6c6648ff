"""Places calls that speak numbered 20-ms blocks, forks them, and follows each block."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.ami import AmiClient, Headers
from testbed.blocks import Report, decode, find_blocks, make_blocks, report
from testbed.faulty_server import Logged
from testbed.measuring import Finding, Scene
from testbed.recorder import Recording
from testbed.sip import Call, SipUser

# A channel that reads what its party sends and says nothing: the cheapest there is.
LISTEN = """
[testbed]
exten => listen,1,Answer()
 same => n,Wait(3600)

"""
BLOCK_S = 0.020
BLOCKS = make_blocks(2500, seed=61)
HEARD = [decode(block) for block in BLOCKS]
# Spoken until the forks stream, and at the end to push the last blocks through.
WARM_UP = make_blocks(25, seed=62)
# One block may be lost before the daemon has it, and one of so many.
LOST_UPSTREAM = 5_000
LIVE_LAG_S = 0.1  # more than a busy machine delays one block after the other


# --- Calls and their forks ---

_numbers = itertools.count(1)


@dataclass
class Caller:
    """A call, and when it began to speak the blocks."""

    call: Call
    channel: str
    warm_up: asyncio.Future[int] | None = None
    spoke_at: float = 0.0  # time.monotonic()


@dataclass
class Fork:
    """One requested fork."""

    path: str
    action_id: str
    caller: Caller


class Crowd:
    """Calls that speak the same blocks at the same time, each with some forks.

    Attributes:
        callers: The calls.
        forks: The forks of all calls.
    """

    def __init__(self, scene: Scene) -> None:
        self._ami = scene.ami
        self._sip = scene.caller
        self.callers: list[Caller] = []
        self.forks: list[Fork] = []

    async def gather(
        self, calls: int, url: Callable[[str], str], options: str, each: int = 1
    ) -> None:
        """Place calls, fork each; return when all forks stream."""
        self._ami.events.clear()
        for _ in range(calls):
            self.callers.append(await place_call(self._ami, self._sip))
        for caller in self.callers:
            caller.warm_up = caller.call.play(WARM_UP, loop=True)
            for _ in range(each):
                self.forks.append(self._fork(caller, url, options))
        await self.events("AudioForkStarted", timeout_s=30)

    def _fork(self, caller: Caller, url: Callable[[str], str], options: str) -> Fork:
        path = f"/{next(_numbers)}"
        return Fork(path, start_fork(self._ami, caller.channel, url(path), options), caller)

    async def events(self, name: str, *, timeout_s: float = 40) -> dict[str, Headers]:
        """Wait until each fork has had an event; return the first of each, by path."""
        paths = {fork.action_id: fork.path for fork in self.forks}
        found: dict[str, Headers] = {}
        async with asyncio.timeout(timeout_s):
            while len(found) < len(paths):
                found = {}
                for _, headers in self._ami.events:
                    path = paths.get(headers.get("ActionID", ""))
                    if path is not None and headers.get("UserEvent") == name:
                        found.setdefault(path, headers)
                await asyncio.sleep(0.1)
        return found

    async def speak(self) -> None:
        """Begin to speak the numbered blocks, not all calls at the same moment."""
        for caller in self.callers:
            await asyncio.sleep(0.001)
            assert caller.warm_up is not None
            caller.warm_up.cancel()
            caller.spoke_at = time.monotonic()
            caller.call.play(BLOCKS)

    async def hang_up(self) -> dict[str, Headers]:
        """Speak on for half a second, then hang up; return the last event of each fork."""
        await asyncio.sleep(0.5)
        await asyncio.gather(*(caller.call.hangup(5) for caller in self.callers))
        return await self.events("AudioForkStopped")

    def spoken(self, fork: Fork, until: float) -> int:
        """Return how many blocks were certainly spoken by a moment."""
        return int((until - fork.caller.spoke_at) / BLOCK_S) - 10


async def place_call(ami: AmiClient, sip: SipUser) -> Caller:
    """Call, and find the channel that Asterisk made for it."""
    position = len(ami.events)
    call = await sip.call("listen", timeout_s=15)
    event = await ami.wait_event(
        lambda headers: (
            headers.get("Event") == "Newchannel" and "SIP/caller-" in headers["Channel"]
        ),
        after=position,
    )
    return Caller(call, event["Channel"])


def start_fork(ami: AmiClient, channel: str, url: str, options: str) -> str:
    """Request a fork; return the ActionID."""
    return ami.send(
        "UserEvent",
        action_id=f"fault-{next(_numbers)}",
        UserEvent="AudioFork",
        Command="StartAudioFork",
        Channel=channel,
        WsServer=url,
        Options=options,
    )


# --- What became of the blocks ---


@dataclass
class Became:
    """What a server received of one fork, over all its connections.

    Attributes:
        found: The blocks in the order of arrival; `times`: when each arrived.
        report: The comparison with what was spoken by a given moment.
    """

    connections: list[Logged]
    found: list[int]
    times: list[float]
    report: Report

    @property
    def messages(self) -> int:
        """The number of messages that were received."""
        return sum(len(one.messages) for one in self.connections)

    @property
    def gap(self) -> list[int]:
        """The blocks that are missing before the last one that came."""
        return sorted(set(range(max(self.found))) - set(self.found))

    @property
    def longest_gap(self) -> int:
        """The most blocks in a row that are missing."""
        runs = [after - before - 1 for before, after in itertools.pairwise(sorted(set(self.found)))]
        return max(runs, default=0)

    def live_at(self, since: float) -> float:
        """Return when the first block arrived, after a moment, that was no older than live audio.

        Asterisk has a delay of its own, which grows when the machine is busy: audio counts as live
        if it is not later than the last blocks.
        """
        late = [at - index * BLOCK_S for index, at in zip(self.found, self.times, strict=True)]
        limit = statistics.median(late[-25:]) + LIVE_LAG_S
        live = (
            at for at, lag in zip(self.times, late, strict=True) if at >= since and lag <= limit
        )
        return next(live, float("inf"))


def became(crowd: Crowd, connections: Sequence[Logged], until: float) -> dict[str, Became]:
    """Return the result for each fork; blocks spoken before a given time must have arrived."""
    mine: dict[str, list[Logged]] = {fork.path: [] for fork in crowd.forks}
    for one in connections:
        if one.path in mine:
            mine[one.path].append(one)
    result = {}
    for fork in crowd.forks:
        every = sorted(mine[fork.path], key=lambda one: one.opened)
        found, times = _found(every)
        spoken = crowd.spoken(fork, until)
        inside = [index for index in found if index < spoken]
        result[fork.path] = Became(every, found, times, report(inside, spoken))
    return result


def logged(one: Recording) -> Logged:
    """Return what a server in this process received, in the form that a server process uses."""
    messages = [message for message in one.messages if isinstance(message, bytes)]
    return Logged(one.path, one.opened, one.closed, one.close_code, one.times, messages)


_INDEX = {block: index for index, block in enumerate(HEARD)}


def _found(connections: Sequence[Logged]) -> tuple[list[int], list[float]]:
    """Find the blocks of all messages; most hold exactly one, and that is cheap to see."""
    found: list[int] = []
    times: list[float] = []
    for one in connections:
        for at, message in zip(one.times, one.messages, strict=True):
            index = _INDEX.get(message)
            if index is not None:
                found.append(index)
                times.append(at)
    if not found:  # the blocks do not lie at the edges of the messages
        found = find_blocks(b"".join(b"".join(one.messages) for one in connections), HEARD)
        times = [one.times[-1] for one in connections for _ in one.messages][: len(found)]
    return found, times


def whole(name: str, all_of_it: dict[str, Became], stopped: dict[str, Headers]) -> Finding:
    """Judge the blocks that came from Asterisk, and those that never came from it.

    Now and then the callers or Asterisk lose a block, as `control` shows, in which nothing is
    wrong. More than that counts as the daemon's: a leg that broke loses blocks uncounted.
    """
    reports = [one.report for one in all_of_it.values()]
    lost = sum(one.missing for one in reports)
    twice = sum(one.duplicated for one in reports)
    swapped = sum(one.out_of_order for one in reports)
    ours = sum(int(stopped[path]["FramesIn"]) - one.messages for path, one in all_of_it.items())
    spoken = sum(one.found + one.missing for one in reports)
    seen = (
        f"of {spoken} blocks {lost} lost, {twice} twice, {swapped} out of order; "
        f"{ours} of the frames that came from Asterisk are not at the server"
    )
    asked = "each block once and in order"
    upstream = lost <= max(1, spoken // LOST_UPSTREAM)
    return Finding(name, asked, seen, upstream and not (twice or swapped or ours))
