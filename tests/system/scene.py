"""What tests of faults stage again and again: who calls, the forks, and what is told of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.blocks import make_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import Target, channels, place_call, start_fork

ServerT = TypeVar("ServerT", bound=Recorder)

# Spoken until a fork streams, and after what is counted, to push its last blocks through.
WARM_UP = make_blocks(25, seed=42)


@dataclass
class Fork:
    """A fork that was asked for by AMI, and the call that it is of."""

    ami: AmiClient
    target: Target
    action_id: str

    async def event(self, name: str, *, timeout_s: float = 30, **headers: Any) -> Headers:
        """Wait for an event of this fork; see `AmiClient.wait_user_event`."""
        return await self.ami.wait_user_event(
            name, timeout_s=timeout_s, ActionID=self.action_id, **headers
        )

    async def started(self, *, after: int = 0) -> Headers:
        return await self.event("AudioForkStarted", after=after)

    async def stopped(self, *, after: int = 0, timeout_s: float = 30) -> Headers:
        return await self.event("AudioForkStopped", after=after, timeout_s=timeout_s)

    async def hang_up(self) -> Headers:
        """Hang the call up; return the fork's last event, whose numbers have to add up."""
        await self.target.call.hangup()
        stopped = await self.stopped(timeout_s=40)
        frames = [int(stopped[f"Frames{what}"]) for what in ("In", "Sent", "Dropped")]
        assert frames[0] == frames[1] + frames[2]
        return stopped


@dataclass
class Scene(Generic[ServerT]):
    """An Asterisk, who calls it, who asks for forks, and the server that they go to.

    Attributes:
        settings: What a daemon beside it has in its configuration.
    """

    asterisk: Asterisk
    ami: AmiClient
    caller: SipUser
    server: ServerT
    settings: dict[str, str]

    def daemon(self, *command: str) -> Daemon:
        """Return a daemon that has yet to be started; see `Daemon` for the command."""
        if command:
            return Daemon(self.asterisk, self.settings, command)
        return Daemon(self.asterisk, self.settings)

    async def call(self, extension: str = "echo") -> Target:
        return await place_call(self.ami, self.caller, extension)

    def fork(
        self, target: Target, path: str = "/", options: str = "", url: str = "", **more: str
    ) -> Fork:
        """Ask for a fork of a call, to a path of the server or to another URL."""
        url = url or self.server.url(path)
        return Fork(self.ami, target, start_fork(self.ami, target.channel, url, options, **more))

    async def talking_fork(self, path: str = "/", options: str = "") -> Fork:
        """Place a call that talks, and fork it; return when the fork streams."""
        target = await self.call()
        target.call.talk()
        fork = self.fork(target, path, options)
        await fork.started()
        return fork

    async def legs(self, count: int) -> list[str]:
        """Return the legs once there are so many; closed ones take a moment to go."""
        found: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while True:
                    present = await channels(self.ami)
                    found = [name for name in present if name.startswith("AudioSocket/")]
                    if len(found) == count:
                        return found
                    await asyncio.sleep(0.05)
        raise AssertionError(f"expected {count} legs, there are {found}")


@contextlib.asynccontextmanager
async def staged(
    asterisk: Asterisk, server: ServerT, settings: dict[str, str]
) -> AsyncIterator[Scene[ServerT]]:
    """Stage a scene while its Asterisk lives: a test may restart it, and then stage another."""
    async with (
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
    ):
        yield Scene(asterisk, ami, caller, server, settings)
