"""Root file systems of Debian's releases, made once by debootstrap and kept in the cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testbed.asterisk import cache_folder
from testbed.debian import MIRROR_VARIABLE, origin_from_machine

# What a server has that is to run a daemon, and what building the package takes.
_PACKAGES = "systemd-sysv dbus ca-certificates procps python3 python3-venv"
_PACKAGES += " debhelper gcc libc6-dev python3-dev"


class NoRoot(Exception):
    """A root file system cannot be had; the text says why."""


def root_of(suite: str) -> Path:
    """Return the root file system of a release of Debian, bookworm say; make it if there is none.

    It is not to be written to: see `layered`. Remove it to have Debian's latest packages.

    Raises:
        NoRoot: This takes root, debootstrap and a mirror of Debian.
    """
    root = cache_folder() / "roots" / suite
    if root.is_dir():
        return root
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise NoRoot("root file systems are made by root: apt install debootstrap")
    with tempfile.TemporaryDirectory(prefix=".root-", dir=_folder()) as name:
        made = Path(name, suite)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES.split())}"]
        done = subprocess.run([*command, suite, str(made), _mirror()], stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            raise NoRoot(f"debootstrap made no {suite}; the reason stands above")
        made.rename(root)
    return root


@contextlib.contextmanager
def layered(root: Path) -> Iterator[Path]:
    """Yield a folder that begins as `root`, and takes what is written; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix=".layer-", dir=_folder()) as name:
        upper, work, merged = (Path(name, part) for part in ("upper", "work", "merged"))
        for folder in (upper, work, merged):
            folder.mkdir()
        layers = f"lowerdir={root},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, merged], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", "--lazy", merged], check=True)


def _folder() -> Path:
    folder = cache_folder() / "roots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _mirror() -> str:
    known = [os.environ.get(MIRROR_VARIABLE), *origin_from_machine().mirrors]
    return next(filter(None, known), "http://deb.debian.org/debian")
