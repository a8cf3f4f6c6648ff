"""Runs the daemon and reports how many tasks it has: `python -m testbed.counted_daemon -c FILE`.

On SIGUSR2 it logs `tasks: N`. Leaks show in such counts, and nothing else can see them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from pathlib import Path

import uvloop

from audiofork import config_file, log
from audiofork.daemon import Daemon


def _count() -> None:
    gc.collect()
    print(f"tasks: {len(asyncio.all_tasks())}", file=sys.stderr, flush=True)


async def _run(path: Path) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _count)
    await Daemon(path, config_file.load(path)).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", dest="path", type=Path, required=True)
    arguments = parser.parse_args()
    log.set_up(config_file.load(arguments.path).log)
    uvloop.run(_run(arguments.path))
