"""Compiles the hot path for a wheel; all else is in setup.cfg. See packaging/backend.py."""

from __future__ import annotations

import os
import sys

from setuptools import Extension, setup

# What a frame passes, and nothing else. Each class becomes a struct in C, so it may inherit only
# from classes of Python that have no attributes: asyncio.Protocol, but not asyncio.Transport. A
# test sees to that.
COMPILED = [
    "audiofork/audiosocket.py",
    "audiofork/relay/backlog.py",
    "audiofork/relay/leg.py",
    "audiofork/relay/leg_pipelines.py",
    "audiofork/relay/listener.py",
    "audiofork/relay/outlet.py",
    "audiofork/relay/pairing.py",
    "audiofork/relay/pipeline.py",
    "audiofork/relay/shape.py",
    "audiofork/relay/tcp.py",
    "audiofork/relay/tls.py",
    "audiofork/relay/unacked.py",
]
# Types are checked elsewhere, with the libraries that are not there while a wheel is built.
OPTIONS = ["--config-file=", f"--cache-dir={os.devnull}", "--ignore-missing-imports"]


def extensions() -> list[Extension]:
    """Return the C of the hot path; none unless a wheel is built of it."""
    if "bdist_wheel" not in sys.argv or os.environ.get("AUDIOFORK_PURE") == "1":
        return []
    from mypyc.build import mypycify  # there only if it is wanted

    return mypycify([*OPTIONS, *COMPILED], group_name="audiofork", debug_level="0")


setup(ext_modules=extensions())
