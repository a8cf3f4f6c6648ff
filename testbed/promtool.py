"""Gets promtool, which checks Prometheus's files: the machine's own, or Debian's without root."""

from __future__ import annotations

import shutil
from pathlib import Path

from testbed import debian
from testbed.asterisk import DEBIANS as ASTERISK
from testbed.asterisk import fetched

PACKAGES = debian.Wanted(
    "promtool (43 MB)",
    ASTERISK.suite,
    ("prometheus",),
    ("usr/bin/promtool",),
    lambda _tree, _target: None,
)


class PromtoolUnavailable(Exception):
    """There is no promtool to be had on this machine; the text says why."""


def find_promtool() -> list[str]:
    """Return the command that runs promtool; the first time it may be fetched.

    Raises:
        PromtoolUnavailable: It is not installed, and cannot be fetched.
    """
    if installed := shutil.which("promtool"):
        return [installed]
    try:
        tree = fetched("promtool", PACKAGES)
    except debian.FetchFailed as exc:
        raise PromtoolUnavailable(f"no promtool in PATH, and Debian's {exc}") from exc
    return _command(tree)


def _command(tree: Path) -> list[str]:
    loader = next(tree.glob("**/ld-linux*.so.*"), None)
    library = next(tree.glob("usr/lib/*/libc.so.6"), None)
    program = tree / "usr/bin/promtool"
    if loader is None or library is None or not program.exists():
        raise PromtoolUnavailable(f"{tree} is damaged: remove it, and it is fetched again")
    return [str(loader), "--library-path", str(library.parent), str(program)]
