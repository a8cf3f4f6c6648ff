"""Finds other versions of Python, to run the unit tests with: `make pythons`.

    python -m testbed.pythons 3.13 3.14     # prints the path of each that can be had

One in PATH is taken; else Debian's, which is fetched once out of its packages (see `debian.py`)
and kept in ~/.cache/audiofork. It runs with the C library of its own release.
"""

from __future__ import annotations

import functools
import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from testbed import debian
from testbed.asterisk import fetched

# The suites of Debian that have a version.
SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid"}
WHEELS = "usr/share/python-wheels"  # of pip, for `venv`


class PythonUnavailable(Exception):
    """A version is not available on this machine; the text says why."""


def find(version: str) -> Path:
    """Return the path of a Python: the one in PATH, else the one in the cache.

    Args:
        version: Like "3.13".

    Raises:
        PythonUnavailable: It is in neither, and Debian's cannot be fetched.
    """
    if (found := shutil.which(f"python{version}")) and runs(found, version):
        return Path(found)
    if version not in SUITES:
        raise PythonUnavailable(f"no python{version} in PATH, and no release of Debian has it")
    try:
        tree = fetched(f"python{version}", debians(version))
    except debian.FetchFailed as exc:
        raise PythonUnavailable(f"no python{version} in PATH, and Debian's {exc}") from exc
    program = tree / f"usr/bin/python{version}"
    if not runs(program, version):
        raise PythonUnavailable(f"{tree} is damaged: remove it, and it is fetched again")
    return program


def runs(program: str | Path, version: str) -> bool:
    """Return whether a program is a Python of this version that has `venv`."""
    code = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError:
        return False
    return done.stdout.strip() == version


def debians(version: str) -> debian.Wanted:
    """Return what to download from Debian for a version."""
    return debian.Wanted(
        f"Python {version} (about 20 MB)",
        SUITES[version],
        (f"python{version}-venv",),
        (f"usr/bin/python{version}", WHEELS),
        functools.partial(_make_runnable, version),
    )


def _make_runnable(version: str, tree: Path, target: Path) -> None:
    """Replace the Python by a script that runs it with its own loader and libraries.

    Python treats argv[0] as its own path, and passes it to its children, too: so that must be the
    script, or a link to it in a `venv`.
    """
    script = tree / f"usr/bin/python{version}"
    program = script.rename(script.with_name(f"{script.name}.elf"))
    loader = next(tree.glob("**/ld-linux*.so.*"))
    libraries = next(tree.glob("usr/lib/*/libc.so.6")).parent
    places = [str(target / path.relative_to(tree)) for path in (loader, libraries, program)]
    loaded, path, elf = map(shlex.quote, places)
    script.write_text(f'#!/bin/sh\nexec {loaded} --library-path {path} --argv0 "$0" {elf} "$@"\n')
    script.chmod(0o755)
    for settings in tree.glob(f"usr/lib/python{version}/_sysconfigdata*.py"):
        text = settings.read_text()
        settings.write_text(text.replace(f"'/{WHEELS}", f"'{target / WHEELS}"))


def main(versions: list[str]) -> int:
    """Print the path of each available version; return 1 if none is available, else 0."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = 0
    for version in versions:
        try:
            print(find(version))
            found += 1
        except PythonUnavailable as exc:
            print(exc, file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
