"""A relay host of the benchmark of a cluster, without audio.

    python -m bench.cluster_relay -c FILE

It is `audiofork relay` but for what begins at the codec: the sessions with controllers, what it
keeps for the next one, and the AudioSocket server are the real ones. A fork's server counts as
connected at once, and its audio flows as soon as its legs are connected.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

import uvloop

from audiofork import config_file
from audiofork import log as logs
from audiofork.config import Address, Config
from audiofork.link.messages import (
    Command,
    EndFork,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    LevelsTaken,
    SendReport,
    SinkOpened,
    StatsTaken,
    Streaming,
    TakeLevels,
    TakeStats,
)
from audiofork.relay.host import RelayHost
from audiofork.relay.listener import Listener
from audiofork.relay.pipeline import LegHandle
from audiofork.system import lift_file_limit, spare_collections


class SilentHost(RelayHost):
    """A relay host whose forks have no audio."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, lambda: config, make_worker=SilentWorker)


class SilentWorker:
    """Does what `Worker` does as `RelayHost` sees it; implements `HostedWorker`.

    Attributes:
        sessions: The forks, by id.
        address: Where it listens, once started.
    """

    def __init__(self, config: Config, report: SendReport) -> None:
        self.sessions: dict[str, _SilentFork] = {}
        self.address = config.audiosocket.listen
        self._report = report
        self._listener = Listener(report, config.audiosocket.allow)

    @property
    def addresses(self) -> list[Address]:
        """The address that legs connect to."""
        return [self.address]

    def configure(self, config: Config) -> None:
        """Nothing depends on it."""

    async def start(self) -> Address:
        """Listen for legs."""
        self.address = await self._listener.start(self.address)
        return self.address

    def handle(self, command: Command) -> None:
        """Carry out a command."""
        if isinstance(command, ForkSpec):
            self.sessions[command.fork_id] = _SilentFork(command, self._report)
            asyncio.get_running_loop().call_soon(self._report, SinkOpened(command.fork_id))
        elif isinstance(command, TakeStats):
            stats = dict.fromkeys(self.sessions, ForkStats())
            self._report(StatsTaken(command.ticket, stats))
        elif isinstance(command, TakeLevels):
            self._report(LevelsTaken.of((), ()))
        elif isinstance(command, ExpectLeg):
            if (fork := self.sessions.get(command.fork_id)) is not None:
                inlet = fork.inlets[command.part]
                inlet.drop()
                self._listener.issue(command.leg_uuid, inlet)
        elif isinstance(command, EndFork):
            self._end(command)

    def _end(self, command: EndFork) -> None:
        fork = self.sessions.pop(command.fork_id, None)
        if fork is not None:
            for inlet in fork.inlets.values():
                inlet.drop()
            self._report(ForkEnded(command.fork_id, command.reason, command.detail, ForkStats()))

    async def close(self) -> None:
        """Close all legs."""
        await self._listener.close()


class _SilentFork:
    """A fork, whose server is there and takes what comes.

    Attributes:
        spec: What was ordered.
        inlets: By part.
    """

    def __init__(self, spec: ForkSpec, report: SendReport) -> None:
        self.spec = spec
        self._fork_id = spec.fork_id
        self._report = report
        self._streams = False
        self.inlets = {part: _Inlet(self, part) for part in spec.legs}

    def on_leg(self, part: LegPart) -> None:
        self._report(LegAttached(self._fork_id, part))
        if not self._streams and all(inlet.leg for inlet in self.inlets.values()):
            self._streams = True
            self._report(Streaming(self._fork_id))

    def on_leg_closed(self, part: LegPart, *, contested: bool) -> None:
        self._report(LegLost(self._fork_id, part, 1, contested))


def _to_nobody(_frame: bytes) -> None:
    """Take a frame, of which there is none."""


class _Inlet:
    """The leg of one part. Implements `LegOwner`.

    Attributes:
        leg: It, while it is connected.
    """

    def __init__(self, fork: _SilentFork, part: LegPart) -> None:
        self._fork = fork
        self._part = part
        self.leg: LegHandle | None = None
        self.on_audio: Callable[[bytes], None] = _to_nobody

    def attach(self, leg: LegHandle) -> None:
        leg.on_usual = self.on_audio
        self.leg = leg
        self._fork.on_leg(self._part)

    def on_batch_read(self, is_late: bool) -> int:  # noqa: ARG002 (of LegOwner)
        return 0

    def on_leg_closed(self, *, contested: bool = False) -> None:
        self.leg = None
        self._fork.on_leg_closed(self._part, contested=contested)

    def drop(self) -> None:
        """Hang the leg up, if there is one."""
        leg, self.leg = self.leg, None
        if leg is not None:
            leg.hang_up()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-c", dest="path", type=Path, required=True)
    config = config_file.load(parser.parse_args().path)
    logs.set_up(config.log)
    lift_file_limit()
    spare_collections()
    uvloop.run(SilentHost(config).run())


if __name__ == "__main__":
    main()
