"""`make first-hour SUITE=trixie`: README's install and `audiofork setup` on a system made for it.

The system, a release of Debian, gets an Asterisk: Debian's own where that release has it, else the
build that AUDIOFORK_TESTBED_ASTERISK names, with Debian's configuration. It has a network for the
install alone; after that loopback is all there is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from testbed.asterisk import PREFIX_VARIABLE
from testbed.package.build import CHECKOUT, build, copy_checkout, run_in
from testbed.package.machine import Machine
from testbed.package.roots import NoRoot, layered, root_of

ROOT_VARIABLE = "AUDIOFORK_FIRST_HOUR"
SYSTEMD_VARIABLE = "AUDIOFORK_FIRST_HOUR_SYSTEMD"
TEST = "tests/system/test_first_hour.py"
SOURCE = "root/audiofork"
PREFIX = "opt/asterisk"
# Of a build that is copied: what it was linked with, and the prompts' absence does no harm.
_LIBRARIES = "libxml2 libxslt1.1 libsqlite3-0 libjansson4 libuuid1 libedit2 libssl3"

START_S = 20.0
# README's apt asks nobody; a mirror that is a copy of some day will do.
_APT = 'APT::Get::Assume-Yes "true";\nAcquire::Check-Valid-Until "false";\n'
_ASTERISK_CONF = """\
[directories]
astetcdir => /{prefix}/etc/asterisk
astmoddir => /{prefix}/lib/asterisk/modules
astvarlibdir => /{prefix}/var/lib/asterisk
astdbdir => /{prefix}/var/lib/asterisk
astkeydir => /{prefix}/var/lib/asterisk
astdatadir => /{prefix}/var/lib/asterisk
astspooldir => /{prefix}/var/spool/asterisk
astrundir => /{prefix}/var/run/asterisk
astlogdir => /{prefix}/var/log/asterisk
astsbindir => /{prefix}/sbin
"""
_PROGRAM = """\
#!/bin/sh
export LD_LIBRARY_PATH=/{prefix}/lib
exec /{prefix}/sbin/asterisk.program -C /{prefix}/etc/asterisk/asterisk.conf "$@"
"""
_UNIT = """\
[Unit]
Description=Asterisk PBX

[Service]
ExecStart=/{prefix}/sbin/asterisk -f

[Install]
WantedBy=multi-user.target
"""


def readme_commands() -> list[str]:
    """Return the code of README's section on one's own Asterisk, block by block."""
    text = (CHECKOUT / "README.md").read_text()
    section = text[text.index("\n## Put it beside your own Asterisk\n") :]
    section = section[: section.index("\n## ", 1)]
    blocks = re.findall(r"(?m)(?:^ {7}\S.*\n)+", section)
    return [re.sub(r"(?m)^ {7}", "", block) for block in blocks]


def prepare(root: Path, suite: str, package: Path | None = None) -> None:
    """Put an Asterisk and, as the README says, audiofork into a root file system.

    Args:
        root: The root file system.
        suite: The release of Debian that it has.
        package: The Debian package that is installed instead.
    """
    copy_checkout(root / SOURCE)
    if suite == "sid":
        _run(root, "apt-get update && apt-get install --no-install-recommends asterisk")
    else:
        _run(root, f"apt-get update && apt-get install --no-install-recommends {_LIBRARIES}")
        _copy_build(root, Path(os.environ[PREFIX_VARIABLE]))
    if package is None:
        _run(root, f"set -e; cd /{SOURCE}; {readme_commands()[0]}")
    else:
        shutil.copy(package, root / "root")
        _run(root, f"apt-get install /root/{package.name}")


@contextlib.contextmanager
def without_systemd(root: Path) -> Iterator[Machine]:
    """Run a system as a container does: nothing runs in it but what is asked for.

    Raises:
        TimeoutError: It has not started in time.
    """
    with layered(root) as folder:
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe"]
        command += [f"--directory={folder}", f"--machine=audiofork-{os.getpid()}", "--as-pid2"]
        process = subprocess.Popen(
            [*command, "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Machine(folder, _first_process(process.pid))
        finally:
            process.kill()  # what runs in it ends with it
            process.wait()


def _first_process(nspawn: int) -> int:
    """Return the id that the first process of a container has here."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            for inner in Path(f"/proc/{child}/task/{child}/children").read_text().split():
                if Path(f"/proc/{inner}/comm").read_text().strip() == "sleep":
                    return int(inner)
        time.sleep(0.1)
    raise TimeoutError("the container has not started in time")


def _copy_build(root: Path, build: Path) -> None:
    """Copy a build of Asterisk, which need not have that prefix, with Debian's configuration."""
    shutil.copytree(build, root / PREFIX, symlinks=True)
    program = root / PREFIX / "sbin/asterisk"
    program.rename(program.with_name("asterisk.program"))
    program.write_text(_PROGRAM.format(prefix=PREFIX))
    program.chmod(0o755)
    etc = root / PREFIX / "etc/asterisk"
    with layered(root_of("sid")) as sid:
        _run(sid, "apt-get update && cd /root && apt-get download asterisk-config")
        (package,) = (sid / "root").glob("asterisk-config_*.deb")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
            shutil.copytree(Path(folder, "etc/asterisk"), etc, dirs_exist_ok=True)
    (etc / "asterisk.conf").write_text(_ASTERISK_CONF.format(prefix=PREFIX))
    for name in ("run", "log", "spool"):
        (root / PREFIX / "var" / name / "asterisk").mkdir(parents=True, exist_ok=True)
    (root / "etc/systemd/system/asterisk.service").write_text(_UNIT.format(prefix=PREFIX))


def _run(root: Path, script: str) -> None:
    (root / "etc/apt/apt.conf.d/90first-hour").write_text(_APT)
    run_in(root, script, "--setenv=DEBIAN_FRONTEND=noninteractive")


def main() -> int:
    """Prepare a system, and run the test in it."""
    parser = argparse.ArgumentParser(prog="python -m testbed.package.first_hour")
    parser.add_argument("suite", help="a release of Debian")
    parser.add_argument("--deb", action="store_true", help="install the package, not the source")
    parser.add_argument("--no-systemd", action="store_true", help="run it as containers do")
    options = parser.parse_args()
    try:
        package = build(options.suite) if options.deb else None
        with layered(root_of(options.suite)) as root:
            prepare(root, options.suite, package)
            _test(root, has_systemd=not options.no_systemd)
    except (NoRoot, subprocess.CalledProcessError) as exc:
        print(f"first hour: {exc}", file=sys.stderr)
        return 1
    return 0


def _test(root: Path, *, has_systemd: bool) -> None:
    script = f"ip link set lo up && exec {sys.executable} -m pytest -q -s {TEST}"
    environment = {**os.environ, ROOT_VARIABLE: str(root)}
    environment[SYSTEMD_VARIABLE] = "yes" if has_systemd else "no"
    command = ["unshare", "--net", "--mount", "sh", "-c", script]
    subprocess.run(command, env=environment, cwd=CHECKOUT, check=True)


if __name__ == "__main__":
    sys.exit(main())
