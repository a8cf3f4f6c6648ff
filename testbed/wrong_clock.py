"""Runs a module of Python whose wall clock is wrong: python -m testbed.wrong_clock SECONDS MODULE.

The rest of the command line is that of the module. Only what Python code reads by the module `time`
is wrong; the kernel's own times, such as those of files, are right.
"""

from __future__ import annotations

import runpy
import sys
import time


def set_wrong(seconds: float) -> None:
    """Set the wall clock of this process ahead; negative: behind."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)


if __name__ == "__main__":
    set_wrong(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
