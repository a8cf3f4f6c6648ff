"""The relay of audiofork without Asterisk and without the control plane.

    python -m bench.relay_only --url URL --uuids FILE [--mix] [--ca FILE] [--workers N]

Runs the relay as `audiofork run` does: the same event loop, limits and log. Prints one line of
JSON, {"port": N, "idle_kib": N, "package": PATH}, when it listens and the UUIDs are issued: memory
is that before there was a fork.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

import audiofork
from audiofork import log
from audiofork.config import Address, AudioSocketConfig, Config, LogConfig, WebSocketConfig
from audiofork.model import Direction, EndFork, EndReason, ForkSpec, LegLost, Report
from audiofork.process import lift_file_limit
from audiofork.relay.worker import Worker
from bench.measure import memory_kib


class Relay:
    """What the control plane does for a worker, as far as a benchmark needs it."""

    def __init__(self, config: Config) -> None:
        self.worker = Worker(config, self._on_report)

    def _on_report(self, report: Report) -> None:
        if isinstance(report, LegLost):
            self.worker.handle(EndFork(report.fork_id, EndReason.HANGUP))


def config_of(arguments: argparse.Namespace) -> Config:
    """Return the configuration: what is not asked for is as it is by default."""
    if arguments.workers != 1:
        # The place for [relay] workers; the processes are children of this one, whose CPU time
        # and memory are counted in.
        sys.exit("this version of audiofork has one worker")
    return Config(
        audiosocket=AudioSocketConfig(listen=Address("127.0.0.1", 0)),
        websocket=WebSocketConfig(ca_list_file=arguments.ca),
    )


def spec_of(fork_id: str, arguments: argparse.Namespace) -> ForkSpec:
    """Return the command for one fork.

    Raises:
        SystemExit: This version cannot put several frames in a message.
    """
    more: dict[str, Any] = {}
    if arguments.frame_ms != 20:
        if "frame_ms" not in {field.name for field in dataclasses.fields(ForkSpec)}:
            sys.exit("this version of audiofork sends each frame in a message of its own")
        more["frame_ms"] = arguments.frame_ms
    direction = Direction.BOTH if arguments.mix else Direction.IN
    return ForkSpec(fork_id, "bench", f"{arguments.url}/{fork_id}", direction, **more)


async def run(arguments: argparse.Namespace) -> None:
    """Relay until killed."""
    lift_file_limit()
    relay = Relay(config_of(arguments))
    address = await relay.worker.start()
    idle_kib = memory_kib(os.getpid())
    for fork_id in arguments.uuids.read_text().split():
        relay.worker.handle(spec_of(fork_id, arguments))
    package = str(Path(audiofork.__file__).parent)
    print(json.dumps({"port": address.port, "idle_kib": idle_kib, "package": package}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument("--uuids", required=True, type=Path)
    parser.add_argument("--ca", default="")
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--frame-ms", type=int, default=20)
    arguments = parser.parse_args()
    log.set_up(LogConfig())
    uvloop.run(run(arguments))


if __name__ == "__main__":
    main()
