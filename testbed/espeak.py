"""Gets the speech synthesizer espeak-ng: the machine's own, or Debian's packages without root."""

from __future__ import annotations

import shutil
from pathlib import Path

from testbed import debian
from testbed.asterisk import DEBIANS as ASTERISK
from testbed.asterisk import fetched

PACKAGES = debian.Wanted(
    "espeak-ng (22 MB)",
    ASTERISK.suite,
    ("espeak-ng",),
    ("usr/bin/espeak-ng",),
    lambda tree, target: None,  # noqa: ARG005 (nothing is left to do)
)


class EspeakUnavailable(Exception):
    """There is no espeak-ng to be had on this machine; the text says why."""


def find_espeak() -> tuple[str, ...]:
    """Return the command that runs espeak-ng; the first time it may be fetched.

    Raises:
        EspeakUnavailable: It is not installed, and cannot be fetched.
    """
    if installed := shutil.which("espeak-ng"):
        return (installed,)
    try:
        tree = fetched("espeak-ng", PACKAGES)
    except debian.FetchFailed as exc:
        raise EspeakUnavailable(
            f"espeak-ng is not installed, and Debian's packages of it {exc}"
        ) from exc
    return _command(tree)


def _command(tree: Path) -> tuple[str, ...]:
    loader = next(tree.glob("**/ld-linux*.so.*"), None)
    data = next(tree.glob("usr/lib/*/espeak-ng-data"), None)
    if loader is None or data is None:
        raise EspeakUnavailable(f"{tree} is damaged: remove it, and it is fetched again")
    folders = (data.parent, data.parent / "pulseaudio", tree / "usr/lib", tree / "lib")
    libraries = ":".join(str(folder) for folder in folders)
    program = str(tree / "usr/bin/espeak-ng")
    return (str(loader), "--library-path", libraries, program, "--path", str(data.parent))
