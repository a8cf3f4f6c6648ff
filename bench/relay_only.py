"""Runs the relay of audiofork without Asterisk and without the control plane.

    python -m bench.relay_only --url URL --uuids FILE [--mix] [--join] [--ca FILE] [--workers N]
        [--apart] [--frame-ms MS] [--form NAME] [--voice] [--watched] [--door TOKENS]

Runs the relay as `audiofork run` does: the same event loop, limits and log; one worker in this
process, several in processes of their own. Prints one line of JSON when it listens and the UUIDs
are issued, {"ports": [N, ...], "idle_kib": N, "package": PATH}: the ports by the order of the
UUIDs, and the memory before there was a fork. With --door the HTTP interface shows the forks, by
the tokens of a file, and the line has its port, "door". SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import uvloop

import audiofork
from audiofork import log
from audiofork.config import (
    Address,
    AudioSocketConfig,
    Config,
    LogConfig,
    RelayConfig,
    WebSocketConfig,
)
from audiofork.forks.call_info import FIELDS
from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.statistics import Statistics
from audiofork.forks.watching import Watching
from audiofork.link.inline import InlineRelay
from audiofork.link.messages import (
    Codec,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkSpec,
    Format,
    LegLost,
    LegPart,
    Metadata,
    Report,
    ServerCommand,
    StatsTaken,
    TakeStats,
    Voice,
)
from audiofork.link.processes import RelayProcesses
from audiofork.link.relay import Relay
from audiofork.system import lift_file_limit, spare_collections
from bench.measure import memory_kib

if TYPE_CHECKING:
    from audiofork.doors.http.door import HttpDoor


def _told() -> Metadata:
    """Return what a server is told of a call, of the usual size; each fork has its own."""
    call = {name: f"{name} of a call" for name in FIELDS}
    return Metadata(call, {"ticket": "4711"})


# What a server can get, by name: what the command for a fork says of it.
FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "raw": dict,
    "M": lambda: {"metadata": _told()},
    "json": lambda: {"format": Format.JSON, "metadata": _told()},
    "ulaw": lambda: {"codec": Codec.ULAW},
    "twilio": lambda: {"format": Format.TWILIO, "metadata": _told()},
}


def second_leg(fork_id: str) -> str:
    """Return the UUID of the second leg of a fork: that of the first is its id, which is even."""
    return str(uuid.UUID(int=uuid.UUID(fork_id).int ^ 1))


class Control:
    """Does what the control plane does for a relay, as far as a benchmark needs it.

    Args:
        apart: A single worker gets a process of its own, too.
    """

    def __init__(self, config: Config, apart: bool) -> None:
        self.relay: Relay
        if config.relay.workers == 1 and not apart:
            self.relay = InlineRelay(config, self._on_report)
        else:
            self.relay = RelayProcesses(config, self._on_report, lambda _: None)
        self._issued = asyncio.Event()
        self.watching = Watching(self.relay.send, _fork_that_streams)
        self.statistics = Statistics(self.relay.send)

    async def begin(self, specs: list[ForkSpec]) -> None:
        """Order the forks; return when their legs may come."""
        for spec in specs:
            self.relay.send(spec)
            self.relay.send(ExpectLeg(spec.fork_id, spec.legs[0], spec.fork_id))
            for part in spec.legs[1:]:
                self.relay.send(ExpectLeg(spec.fork_id, part, second_leg(spec.fork_id)))
        # Each process answers this after what came before it.
        self.relay.send(TakeStats(0))
        await self._issued.wait()

    def watch(self) -> None:
        """Look at the levels of all forks, from now on."""
        self.watching.subscribe_levels(lambda _: None)

    def _on_report(self, report: Report) -> None:
        self.watching.on_report(report)
        if isinstance(report, LegLost):
            self.relay.send(EndFork(report.fork_id, EndReason.HANGUP))
        elif isinstance(report, StatsTaken):
            self._issued.set()
            self.statistics.on_taken(report)


def _fork_that_streams(_fork_id: str) -> Fork:
    """Return what `Watching` has to know of a fork that somebody listens to."""
    fork = SimpleNamespace(state=ForkState.STREAMING, log=logging.getLogger("bench"))
    return cast(Fork, fork)


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the configuration: what is not asked for is as it is by default."""
    return Config(
        audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)),
        relay=RelayConfig(workers=arguments.workers),
        websocket=WebSocketConfig(ca_list_file=arguments.ca),
    )


def spec_of(fork_id: str, arguments: argparse.Namespace) -> ForkSpec:
    """Return the command for one fork."""
    direction = Direction.BOTH if arguments.mix or arguments.join else Direction.IN
    url = f"{arguments.url}/{fork_id}"
    only = LegPart.PAIRS if arguments.mix else LegPart.IN
    legs = (LegPart.IN, LegPart.OUT) if arguments.join else (only,)
    voice: dict[str, Any] = {}
    if arguments.voice:
        voice = {"voice": Voice(legs, steady=True), "commands": (ServerCommand.AUDIO,)}
    more = {**FORMS[arguments.form](), **voice}
    return ForkSpec(fork_id, "bench", url, direction, legs, frame_ms=arguments.frame_ms, **more)


async def run(arguments: argparse.Namespace) -> None:
    """Relay until told to end."""
    lift_file_limit()
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    control = Control(config_of(arguments), arguments.apart)
    await control.relay.start()
    idle_kib = memory_kib(os.getpid())
    fork_ids = arguments.uuids.read_text().split()
    door = await open_door(control, fork_ids, arguments) if arguments.door else None
    spare_collections()
    await control.begin([spec_of(fork_id, arguments) for fork_id in fork_ids])
    if arguments.watched:
        control.watch()
    hello = {
        "ports": [control.relay.address_of(fork_id).port for fork_id in fork_ids],
        "idle_kib": idle_kib,
        "package": str(Path(audiofork.__file__).parent),
    }
    if door is not None and door.address is not None:
        hello["door"] = door.address.port
    print(json.dumps(hello), flush=True)
    await told_to_end.wait()
    if door is not None:
        await door.close()
    await control.relay.close()


async def open_door(
    control: Control, fork_ids: list[str], arguments: argparse.Namespace
) -> HttpDoor:
    """Open the HTTP interface before forks, as the daemon does."""
    from bench.door import door_of  # its imports take memory that a relay without it has not

    door = door_of(control.statistics, control.watching, fork_ids, arguments.door)
    await door.start()
    return door


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument("--uuids", required=True, type=Path)
    parser.add_argument("--ca", default="")
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--join", action="store_true", help="mix in and out, by a leg each")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="a process for a single worker, too")
    parser.add_argument("--frame-ms", type=int, default=20)
    parser.add_argument("--form", choices=FORMS, default="raw", help="what the server gets")
    parser.add_argument("--voice", action="store_true", help="play what the server sends")
    parser.add_argument("--watched", action="store_true", help="look at the levels of all forks")
    parser.add_argument("--door", default="", help="the file of tokens of an HTTP interface")
    arguments = parser.parse_args()
    log.set_up(LogConfig())
    uvloop.run(run(arguments))


if __name__ == "__main__":
    main()
