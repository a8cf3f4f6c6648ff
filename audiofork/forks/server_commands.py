"""Does what a server asks for and only Asterisk can do: hang up, play keys, transfer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.keypad import KEYS, Keypad
from audiofork.config import Place
from audiofork.config_values import place as parse_place
from audiofork.errors import AmiActionFailed, AmiError, RequestRefused
from audiofork.forks.ending import End
from audiofork.forks.events import CommandHandled, CommandOutcome, Emit
from audiofork.forks.fairness import Allowance
from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.requests import Origin
from audiofork.forks.tasks import Spawn
from audiofork.link.messages import CommandAsked, EndReason, ServerCommand
from audiofork.log import CounterLine
from audiofork.text import harmless

log = logging.getLogger(__name__)

MAX_COMMANDS = 5  # of one fork in a second
MAX_COMMANDS_OF_ALL = 200
MAX_KEYS = 32  # of one fork that wait to be played
PAUSE_S = 0.1  # between two keys, so that they are heard as two
NORMAL_CLEARING = "16"  # the cause of a hangup (Q.850)
NEXT = "AUDIOFORK_NEXT"  # where a connected call goes on
_DENIED = "Permission denied"


@dataclass(slots=True)
class _Waiting:
    """The keys of one fork that wait to be played; those of one command at a time."""

    count: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServerCommands:
    """Obeys the commands of servers that the relay lets pass; owned by the registry of forks.

    Each has an event and a log line with its outcome; one that is refused is counted.

    Args:
        ami: The connection to Asterisk.
        channels: Asks Asterisk about channels.
        emit: Called with each event.
        end: Ends a fork.
        spawn: Runs a coroutine in the background.
    """

    def __init__(self, ami: Ami, channels: Channels, emit: Emit, end: End, spawn: Spawn) -> None:
        self._ami = ami
        self._channels = channels
        self._emit = emit
        self._end = end
        self._spawn = spawn
        self._keypad = Keypad(ami.another)
        self._keys: dict[str, _Waiting] = {}  # by fork id
        self._allowance = Allowance(MAX_COMMANDS, MAX_COMMANDS_OF_ALL)
        self._beyond = CounterLine(log, "commands of servers refused, they come too fast")

    def on_asked(self, fork: Fork, report: CommandAsked) -> None:
        """Begin what the server of a fork asks for; never waits."""
        if fork.is_ending:
            return
        if not self._allowance.take(Origin("", fork.id)):
            fork.progress.commands_refused += 1
            self._beyond.count(f"{report.command} of fork {fork.id}")
            return
        self._spawn(self._do(fork, report))

    async def _do(self, fork: Fork, report: CommandAsked) -> None:
        outcome, reason = CommandOutcome.DONE, ""
        try:
            await self._work(fork, report)
        except RequestRefused as exc:
            fork.progress.commands_refused += 1
            outcome, reason = CommandOutcome.REFUSED, str(exc)
        except AmiError as exc:
            outcome, reason = CommandOutcome.FAILED, _with_remedy(exc)
        self._tell(fork, CommandHandled(fork.info, report.command, _shown(report), outcome, reason))

    def _work(self, fork: Fork, report: CommandAsked) -> Awaitable[None]:
        if report.command is ServerCommand.DTMF:
            return self._play(fork, report.value.strip().upper())
        if report.command is ServerCommand.TRANSFER:
            return self._transfer(fork, report.value)
        return self._hang_up(fork)

    def _tell(self, fork: Fork, event: CommandHandled) -> None:
        what = f"{event.command} {event.value}".strip()
        if event.outcome is CommandOutcome.DONE:
            fork.log.info("the server asked for %s: done", what)
        else:
            why = harmless(event.reason)
            fork.log.warning("the server asked for %s: %s: %s", what, event.outcome, why)
        self._emit(event)

    async def close(self) -> None:
        """Close the connection that keys are played by."""
        await self._keypad.close()

    # --- What there is to ask for ---

    async def _hang_up(self, fork: Fork) -> None:
        # By uniqueid, which no other call ever has.
        headers = [("Channel", fork.uniqueid), ("Cause", NORMAL_CLEARING)]
        await self._ami.action("Hangup", headers)

    async def _play(self, fork: Fork, keys: str) -> None:
        """Play keys to the party, after those that its server has asked for before."""
        if not KEYS.fullmatch(keys):
            raise RequestRefused("not keys: expected 0 to 9, A to D, * and #")
        waiting = self._keys.setdefault(fork.id, _Waiting())
        left = len(keys)
        if waiting.count + left > MAX_KEYS:
            raise RequestRefused(f"{waiting.count} keys wait, and {MAX_KEYS} may")
        waiting.count += left
        try:
            async with waiting.turn:
                for key in keys:
                    await self._play_one(fork, key)
                    waiting.count -= 1
                    left -= 1
        finally:
            waiting.count -= left
            if not waiting.count:
                self._keys.pop(fork.id, None)
            if not self._keys:
                await self._keypad.close()

    async def _play_one(self, fork: Fork, key: str) -> None:
        if fork.is_ending or fork.state is ForkState.ENDED:
            raise RequestRefused("the fork ends")
        await self._keypad.play(fork.uniqueid, key)
        await asyncio.sleep(PAUSE_S)

    async def _transfer(self, fork: Fork, value: str) -> None:
        """Send the channel to a place that the profile allows; the one that it talks with stays.

        The dialplan of a connected call is told of the place, and gets the call back.

        Raises:
            RequestRefused: The place is not allowed, or there is none in the dialplan.
            AmiError: Asterisk has refused.
        """
        place = _allowed_place(fork, value)
        if not await self._channels.has_place(fork.uniqueid, place):
            raise RequestRefused("there is no such place in the dialplan")
        if fork.connects:
            told = [("Channel", fork.uniqueid), ("Variable", NEXT), ("Value", str(place))]
            await self._ami.action("Setvar", told)
            self._end(fork, EndReason.STOPPED, f"the server sent the call to {place}")
            return
        names = ("Channel", "Context", "Exten", "Priority")
        values = (fork.uniqueid, place.context, place.exten, place.priority)
        await self._ami.action("Redirect", list(zip(names, values, strict=True)))


def _allowed_place(fork: Fork, value: str) -> Place:
    """Return the place of the dialplan that a server names, of those that it may."""
    try:
        wanted = parse_place(value.strip())
    except ValueError:
        wanted = None
    if wanted is None or wanted not in fork.grants.places:
        allowed = " ".join(map(str, fork.grants.places)) or "none"
        raise RequestRefused(f"not a place of the profile's transfer_to, which has {allowed}")
    return wanted


def _shown(report: CommandAsked) -> str:
    """Return the argument of a command as logs and events may show it: keys may be a secret."""
    if report.command is ServerCommand.DTMF:
        return f"of {len(report.value.strip())} keys"
    return harmless(report.value.strip())


def _with_remedy(exc: AmiError) -> str:
    is_denied = isinstance(exc, AmiActionFailed) and exc.message == _DENIED
    return f"{exc}; the AMI user needs write = call" if is_denied else str(exc)
