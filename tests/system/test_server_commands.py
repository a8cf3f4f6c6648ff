"""What Asterisk makes of what servers ask for: hangup, keys, transfers."""

from __future__ import annotations

import array
import asyncio
import audioop
import cmath
import itertools
from collections.abc import AsyncIterator

import pytest

from audiofork.asterisk.ami import Ami, connected
from audiofork.asterisk.channels import Channels, Target
from audiofork.config import AsteriskConfig, Place
from audiofork.forks.events import CommandHandled, CommandOutcome, DomainEvent
from audiofork.forks.fork import Fork, new_fork
from audiofork.forks.grants import Grants
from audiofork.forks.options import Options
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.requests import StartFork
from audiofork.forks.server_commands import ServerCommands
from audiofork.forks.tasks import Tasks
from audiofork.link.messages import CommandAsked, EndReason, ServerCommand
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.blocks import decode
from testbed.daemon import SECRET
from testbed.sip import Call, SipUser
from tests.system import conftest
from tests.system.conftest import no_channels, only_channels, place_call

pytestmark = pytest.mark.asterisk

HANGUP, DTMF, TRANSFER = ServerCommand.HANGUP, ServerCommand.DTMF, ServerCommand.TRANSFER


class Stage:
    """The part of the daemon that obeys servers, beside a real Asterisk."""

    def __init__(self, ami: Ami) -> None:
        self.events: asyncio.Queue[DomainEvent] = asyncio.Queue()
        self.tasks = Tasks()
        self._commands = ServerCommands(
            ami, Channels(ami), self.events.put_nowait, self._end, self.tasks.spawn
        )

    def _end(self, fork: Fork, reason: EndReason, detail: str = "") -> None:
        raise AssertionError("it is not connected")

    def fork(self, target: conftest.Target, *places: Place) -> Fork:
        request = StartFork(Target(target.channel, target.uniqueid), "ws://h/", Options())
        fork = new_fork(request, Commands({}))
        fork.grants = Grants(places=places)
        return fork

    async def ask(self, fork: Fork, command: ServerCommand, value: str = "") -> CommandHandled:
        """Return what came of a command."""
        self._commands.on_asked(fork, CommandAsked(fork.id, command, value))
        async with asyncio.timeout(20):
            event = await self.events.get()
        assert isinstance(event, CommandHandled)
        return event

    async def close(self) -> None:
        await self.tasks.finish()
        await self._commands.close()


@pytest.fixture
async def stage(asterisk: Asterisk, ami: AmiClient) -> AsyncIterator[Stage]:
    config = AsteriskConfig(port=asterisk.ami_port, secret=SECRET)
    async with connected(config, lambda _event: None) as link:
        stage = Stage(link)
        yield stage
        await stage.close()
    await no_channels(ami)


async def test_hangup_ends_the_call_of_the_fork_and_no_other(
    stage: Stage, ami: AmiClient, caller: SipUser
) -> None:
    target, other = [await place_call(ami, caller, "wait") for _ in range(2)]
    handled = await stage.ask(stage.fork(target), HANGUP)
    assert handled.outcome is CommandOutcome.DONE
    await target.call.wait_ended()
    await only_channels(ami, other.channel)
    handled = await stage.ask(stage.fork(target), HANGUP)
    assert (handled.outcome, handled.reason) == (CommandOutcome.FAILED, "Hangup: No such channel")
    await other.call.hangup()


async def test_keys_are_heard_by_the_party_in_their_order(
    asterisk: Asterisk, stage: Stage, ami: AmiClient
) -> None:
    async with SipUser("tones", ("127.0.0.1", asterisk.sip_port)) as phone:
        call = await phone.call("wait", record=True)
        event = await ami.wait_event(lambda h: "SIP/tones-" in h.get("Channel", ""))
        target = conftest.Target(call, event["Channel"], event["Uniqueid"])
        handled = await stage.ask(stage.fork(target), DTMF, "19a#")
        assert (handled.outcome, handled.value) == (CommandOutcome.DONE, "of 4 keys")
        async with asyncio.timeout(20):
            while keys_in(call) != "19A#":  # noqa: ASYNC110 (the last packet tells of nothing)
                await asyncio.sleep(0.02)
        await call.hangup()


LOW, HIGH, KEYPAD = (697, 770, 852, 941), (1209, 1336, 1477, 1633), "123A456B789C*0#D"


def keys_in(call: Call) -> str:
    """Return the keys that a phone has heard so far."""
    tones = (key_of(decode(payload)) for _, payload in call.received)
    return "".join(key for key, _ in itertools.groupby(tones) if key)


def key_of(slin: bytes) -> str:
    """Return the key whose tones 20 ms of audio hold; empty: none."""
    samples = array.array("h", slin)
    if audioop.rms(slin, 2) < 500:
        return ""
    row, column = (
        max(range(4), key=lambda n: abs(tone_in(samples, band[n])))  # noqa: B023
        for band in (LOW, HIGH)
    )
    return KEYPAD[4 * row + column]


def tone_in(samples: array.array[int], frequency: int) -> complex:
    turn = cmath.exp(-2j * cmath.pi * frequency / 8000)
    return sum(sample * turn**n for n, sample in enumerate(samples))


async def bridged(ami: AmiClient, count: int) -> None:
    """Wait until so many channels have entered a bridge, since the test began."""
    names: set[str] = set()

    def is_last(headers: Headers) -> bool:
        if headers.get("Event") == "BridgeEnter":
            names.add(headers["Channel"])
        return len(names) == count

    await ami.wait_event(is_last)


async def test_transfer_takes_the_channel_to_the_place_and_the_peer_is_hung_up(
    asterisk: Asterisk, stage: Stage, ami: AmiClient, caller: SipUser
) -> None:
    async with SipUser("callee", ("127.0.0.1", asterisk.sip_port), answer=True) as callee:
        await callee.register()
        target = await place_call(ami, caller, "callee")
        other = await callee.incoming()
        await bridged(ami, 2)
        fork = stage.fork(target, Place("testbed", "third", "2"), Place("testbed", "nowhere"))
        handled = await stage.ask(fork, TRANSFER, "testbed,nowhere")
        assert handled.reason == "there is no such place in the dialplan"
        handled = await stage.ask(fork, TRANSFER, "testbed,third,2")
        assert handled.outcome is CommandOutcome.DONE
        await other.wait_ended()
        await only_channels(ami, target.channel)
        assert await ami.variable(target.channel, "EXTEN") == "third"
        await target.call.hangup()


async def test_transfer_of_the_callee_lets_the_caller_go_on_where_dial_says_so(
    asterisk: Asterisk, stage: Stage, ami: AmiClient, caller: SipUser
) -> None:
    async with SipUser("callee", ("127.0.0.1", asterisk.sip_port), answer=True) as callee:
        await callee.register()
        target = await place_call(ami, caller, "callee-and-on")
        other = await callee.incoming()
        await bridged(ami, 2)
        peer = await ami.variable(target.channel, "BRIDGEPEER")
        uniqueid = await ami.variable(peer, "UNIQUEID")
        fork = stage.fork(conftest.Target(other, peer, uniqueid), Place("testbed", "third"))
        handled = await stage.ask(fork, TRANSFER, "testbed,third,1")
        assert handled.outcome is CommandOutcome.DONE
        await ami.wait_user_event("WentOn")
        await only_channels(ami, target.channel, peer)
        await target.call.hangup()
        await other.hangup()
