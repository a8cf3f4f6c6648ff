"""The build backend: that of setuptools, and wheels whose hot path is compiled where it can be.

It takes CPython with its headers, a C compiler, and mypy, which is fetched only then. Elsewhere the
hot path stays Python, and one line says why (pip shows it with -v). AUDIOFORK_PURE=1 leaves it
Python, AUDIOFORK_PURE=0 fails where it cannot be compiled. An editable installation is never
compiled: what one edits would not be what runs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

PURE = "AUDIOFORK_PURE"
_CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

Settings = dict[str, str] | None


def _obstacle() -> str:
    """Return why the hot path cannot be compiled, or is not to be; empty: it can."""
    if os.environ.get(PURE) == "1":
        return f"{PURE} is 1"
    if sys.implementation.name != "cpython":
        return "this is no CPython"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler, {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python"
    return ""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what a wheel needs: mypy, in the version that checks the types, to compile with."""
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    if not _obstacle():
        needed += re.findall(r"^mypy==.*", _CONSTRAINTS.read_text(), re.MULTILINE)
    return needed


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel; return its name."""
    for left in Path("build").glob(
        "lib*"
    ):  # setuptools would pack what an earlier build has compiled
        shutil.rmtree(left)
    obstacle = _obstacle()
    if not obstacle:
        try:
            return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 (whatever it is, Python does as well)
            obstacle = f"{type(exc).__name__}: {exc}"
    if os.environ.get(PURE) == "0":
        raise SystemExit(f"audiofork: the hot path cannot be compiled: {obstacle}")
    print(f"audiofork: the hot path stays Python: {obstacle}", file=sys.stderr)
    os.environ[PURE] = "1"
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
