"""A running Debian system with systemd as PID 1; changes in it are discarded with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.package.roots import layered

START_S = 60.0
COMMAND_S = 120.0
# In a process namespace of its own, because a system survives a systemd-nspawn that was killed.
_UNSHARE = "unshare --pid --fork --kill-child --mount-proc".split()
_NSPAWN = "systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe".split()
_ENVIRONMENT = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]


class Machine:
    """A system that has booted; it shares the network of this process.

    Made by `booted`.

    Attributes:
        root: Its file system, seen from here.
    """

    def __init__(self, root: Path, pid: int) -> None:
        self.root = root
        self._enter = ["nsenter", f"--target={pid}", "--all", *_ENVIRONMENT]

    def run(self, *command: str, check: bool = True, with_errors: bool = False) -> str:
        """Run a command as root; return what it printed, without the last line end.

        Args:
            command: The program and its arguments.
            check: Whether it must succeed.
            with_errors: Whether to return standard error, too.

        Raises:
            AssertionError: It failed; the text is its whole output.
        """
        done = subprocess.run(
            [*self._enter, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.PIPE,
            text=True,
            timeout=COMMAND_S,
        )
        said = done.stdout + (done.stderr or "")
        assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{said}"
        return done.stdout.rstrip("\n")

    def install(self, package: Path) -> str:
        """Install a package's file, or upgrade to it; return what apt said."""
        target = self.root / "var/tmp" / package.name
        target.write_bytes(package.read_bytes())
        environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
        command = ["apt-get", "install", "--yes", f"/var/tmp/{package.name}"]
        return self.run(*environment, *command, with_errors=True)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value")

    def journal(self, unit: str = "audiofork") -> str:
        """Return the lines of a unit in the journal."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def files(self) -> set[str]:
        """Return the paths of all files but those of running systems and of the packages' tools."""
        skipped = "proc sys dev run tmp var/tmp var/log var/lib/dpkg var/lib/apt var/cache".split()
        pruned = [word for name in skipped for word in ("-path", f"/{name}", "-o")][:-1]
        command = ["find", "/", "(", *pruned, ")", "-prune", "-o", "-print"]
        return set(self.run(*command, check=False).splitlines())


@contextlib.contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """Boot a system from a root file system, which stays unchanged; the system ends in any case.

    Raises:
        TimeoutError: It has not started in time.
    """
    with layered(root) as folder, tempfile.TemporaryFile("w+") as console:
        place = [f"--directory={folder}", f"--machine=audiofork-{os.getpid()}"]
        command = [*_UNSHARE, *_NSPAWN, *place]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        )
        try:
            machine = Machine(folder, _first_process(process))
            _wait_started(machine)
            yield machine
        except TimeoutError as exc:
            console.seek(0)
            raise TimeoutError(f"{exc}; it said:\n{console.read()}") from exc
        finally:
            process.kill()  # what runs in it ends with it
            process.wait()


def _first_process(unshare: subprocess.Popen[bytes]) -> int:
    """Return the id that the system's PID 1 has here."""
    for _ in _attempts("systemd-nspawn starts no system", unshare):
        for nspawn in _children(unshare.pid):
            for child in _children(nspawn):
                if _name(child) == "systemd":
                    return child
    raise AssertionError


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):  # ended meanwhile
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _wait_started(machine: Machine) -> None:
    for _ in _attempts("the system has not started in time"):
        state = machine.run("systemctl", "is-system-running", check=False)
        if state in ("running", "degraded"):
            return


def _attempts(what: str, process: subprocess.Popen[bytes] | None = None) -> Iterator[None]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            break
        yield
        time.sleep(0.1)
    raise TimeoutError(what)


def newer(package: Path, folder: Path, first: int = 9) -> Path:
    """Return the same package with a higher version, which begins with a number."""
    tree = folder / "tree"
    _dpkg_deb("--raw-extract", str(package), str(tree))
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", f"\nVersion: {first}."))
    target = folder / "newer.deb"
    _dpkg_deb("--root-owner-group", "-Znone", "--build", str(tree), str(target))
    return target


def _dpkg_deb(*arguments: str | os.PathLike[str]) -> None:
    command: Sequence[str | os.PathLike[str]] = ["dpkg-deb", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
