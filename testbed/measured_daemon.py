"""Runs the daemon with metrics: `python -m testbed.measured_daemon -c FILE`.

On SIGUSR2 it writes them to FILE.metrics, which appears complete or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import uvloop

from audiofork import config_file, log
from audiofork.daemon import Daemon


async def _write(daemon: Daemon, path: Path) -> None:
    assert daemon.metrics is not None, "asked for too early"
    part = path.with_suffix(".part")
    part.write_text(await daemon.metrics.render())  # noqa: ASYNC240 (of a test, and small)
    part.rename(path)  # noqa: ASYNC240


async def _run(path: Path) -> None:
    daemon = Daemon(path, config_file.load(path), with_metrics=True)
    running: set[asyncio.Task[None]] = set()
    metrics = path.with_name(path.name + ".metrics")

    def write() -> None:
        task = asyncio.create_task(_write(daemon, metrics))
        running.add(task)
        task.add_done_callback(running.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, write)
    await daemon.run()


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", dest="path", type=Path, required=True)
    arguments = parser.parse_args()
    log.set_up(config_file.load(arguments.path).log)
    uvloop.run(_run(arguments.path))


if __name__ == "__main__":
    main()
