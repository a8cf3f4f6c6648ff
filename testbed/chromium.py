"""Gets the browser Chromium: the machine's own, or Debian's packages without root.

    python -m testbed.chromium get

Debian's is fetched once (see `debian.py`) and kept in ~/.cache/audiofork, with a font. It runs with
the C library of its own release, headless and without a sandbox of its own: it is for pages that
are served on this machine, and for nothing else.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import debian
from testbed.asterisk import DEBIANS as ASTERISK
from testbed.asterisk import fetched

PROGRAM = "usr/bin/chromium"
HOME = "usr/lib/chromium"  # where it looks for its files: beside what the kernel has started
FONTS = "usr/share/fonts"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Software for GPUs, which a machine of tests has not: more than half of the packages.
NOT_NEEDED = (
    "usr/lib/*/libLLVM*",
    "usr/lib/*/libgallium*",
    "usr/lib/*/dri",
    "usr/lib/*/libz3*",
    "usr/lib/llvm*",
    "usr/lib/*/systemd",
    "usr/lib/*/gtk-3.0",
    "usr/lib/systemd",
    "usr/lib/udev",
)
START_S = 60  # from a cold disk

FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
 <dir>{fonts}</dir>
 <cachedir>{cache}</cachedir>
 <match><test name="family"><string>monospace</string></test>
  <edit name="family" mode="assign" binding="strong"><string>DejaVu Sans Mono</string></edit>
 </match>
 <alias binding="weak"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
 <alias binding="weak"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
</fontconfig>
"""


class ChromiumUnavailable(Exception):
    """There is no Chromium to be had on this machine; the text says why."""


def find_chromium() -> Path:
    """Return the program; the first time it may be fetched.

    Raises:
        ChromiumUnavailable: It is not installed, and cannot be fetched.
    """
    if installed := next(filter(None, map(shutil.which, NAMES)), None):
        return Path(installed)
    try:
        tree = fetched("chromium", DEBIANS)
    except debian.FetchFailed as exc:
        raise ChromiumUnavailable(
            f"Chromium is not installed, and Debian's packages of it {exc}"
        ) from exc
    return tree / PROGRAM


def version(program: Path) -> str:
    """Return what it says of itself, as "Chromium 140.0.7339.80".

    Raises:
        ChromiumUnavailable: It does not run.
    """
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=START_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ChromiumUnavailable(f"{program} does not run: {exc}") from exc
    if done.returncode != 0:
        raise ChromiumUnavailable(f"{program} does not run: {done.stderr.strip()[-500:]}")
    return " ".join(done.stdout.split()[:2])


def _make_runnable(tree: Path, target: Path) -> None:
    """Write a script that runs it with its own loader, libraries and fonts, its children likewise.

    It knows itself by the path of what the kernel has started, which is the loader: so that must
    stand beside its files, and cannot be what it starts its children with.
    """
    for pattern in NOT_NEEDED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    loader = tree / HOME / "loader"
    shutil.copy(next(tree.glob("**/ld-linux*.so.*")), loader)
    libc = next(tree.glob("usr/lib/*/libc.so.6")).parent
    libraries = ":".join(
        str(target / folder.relative_to(tree)) for folder in (libc, libc / "pulseaudio")
    )
    conf = tree / "etc/fonts.conf"
    conf.parent.mkdir()
    conf.write_text(FONTS_CONF.format(fonts=target / FONTS, cache=target / "var/fontconfig"))
    places = (loader, tree / HOME / "chromium", conf, tree / PROGRAM)
    loaded, elf, fonts, itself = (
        shlex.quote(str(target / place.relative_to(tree))) for place in places
    )
    script = tree / PROGRAM
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        f"#!/bin/sh\nexport FONTCONFIG_FILE={fonts}\n"
        f"exec {loaded} --library-path {shlex.quote(libraries)} {elf} "
        f'--no-zygote --browser-subprocess-path={itself} "$@"\n'
    )
    script.chmod(0o755)


DEBIANS = debian.Wanted(
    "Chromium (about 150 MB)",
    ASTERISK.suite,
    ("chromium", "fonts-inter", "fonts-dejavu-core"),
    (FONTS,),
    _make_runnable,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch Chromium if need be, and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m testbed.chromium", description=__doc__)
    parser.add_argument("command", choices=["get"], help="fetch Chromium if need be")
    parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.monotonic()
    try:
        program = find_chromium()
        print(f"{version(program)} in {time.monotonic() - began:.1f} s\n{program}")
    except ChromiumUnavailable as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
