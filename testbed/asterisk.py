"""Runs a private Asterisk as any user, on free ports of 127.0.0.1, and leaves nothing behind.

    python -m testbed.asterisk get
    python -m testbed.asterisk run --dialplan FILE

An installed Asterisk is used if it has AudioSocket and a ChanSpy with option D; else
Asterisk is fetched once out of Debian's packages (see `debian.py`) and kept in
~/.cache/audiofork. AUDIOFORK_TESTBED_ASTERISK names the prefix of a build to be used
instead, of any version from 18.0 on, with chan_pjsip or chan_sip.
AUDIOFORK_TESTBED_CACHE names another cache folder, AUDIOFORK_DEBIAN_MIRROR another
mirror of Debian; with AUDIOFORK_TESTBED_KEEP=1 the folder of a stopped instance stays,
to be looked into.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import platform
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from audiofork.asterisk.versions import CHANSPY_PAIRS, Version
from testbed import debian
from testbed.progress import Telling

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("etc")
PREFIX_VARIABLE = "AUDIOFORK_TESTBED_ASTERISK"
CACHE_VARIABLE = "AUDIOFORK_TESTBED_CACHE"
KEEP_VARIABLE = "AUDIOFORK_TESTBED_KEEP"


def _link_sounds(tree: Path, _: Path) -> None:
    """Create the link that Debian's package script would create; that script is not run."""
    sounds = tree / "usr/share/asterisk/sounds"
    (sounds / "en").symlink_to(next(sounds.glob("en_*")).name)


# Stable releases carry no Asterisk with AudioSocket.
DEBIANS = debian.Wanted(
    "Asterisk (about 110 MB)",
    "sid",
    ("asterisk", "asterisk-core-sounds-en-wav"),
    ("usr/sbin/asterisk", "usr/share/asterisk"),
    _link_sounds,
)

OLDEST_BRANCH = 18
# The modules of SIP, best first, and what their channels' names begin with.
# Above those of Asterisk's RTP, below those that Linux gives to clients.
FREE_PORTS = (20_001, 32_000)
SIP_MODULES = {"chan_pjsip.so": "PJSIP", "chan_sip.so": "SIP"}

FOLDER_PREFIX = "audiofork-asterisk-"
SOCKET_PATH_MAX_BYTES = 107  # sun_path is 108 bytes, the last one zero

# Below the ports the kernel hands out (32768 on), so that no connection takes one.
# Each call leg takes two: 2000 ports carry 1000 legs.
RTP_LOWEST, RTP_HIGHEST, RTP_PORTS = 10000, 32768, 2000
OPEN_FILES = 65536

# Asterisk logs an error for each of these that does not exist; empty is as good.
EMPTY_FILES = (
    "acl.conf",
    "ccss.conf",
    "cel.conf",
    "chan_websocket.conf",
    "features.conf",
    "pjproject.conf",
    "udptl.conf",
    "websocket_client.conf",
)

START_S = 30  # a busy machine; a quarter of a second is usual
LOGIN_S = 1  # a stranger on the port may never answer
SHUTDOWN_S = 5  # one second is usual
START_TRIES = 3


class AsteriskUnavailable(Exception):
    """No Asterisk is available on this machine; the text says why."""


class AsteriskFailed(Exception):
    """Asterisk did not start; the text ends with its output."""


class PortTaken(AsteriskFailed):
    """Another process took a port between its choice and the start."""


@dataclass(frozen=True)
class Installation:
    """An Asterisk that can be run: `command` + ("-f", "-C", configuration file).

    Attributes:
        version: "22.10.1"; what it says of itself, where that has no number.
        modules: The folder of its modules.
        data: Its folder of data.
        prompts: The folder of English prompts, in `data` or not.
        technology: Of its SIP channels, PJSIP or SIP.
    """

    version: str
    command: tuple[str, ...]
    modules: Path
    data: Path
    prompts: Path
    technology: str = "PJSIP"

    @property
    def callee(self) -> str:
        """The name of the endpoint `callee` for Dial(); the dialplan has it in ${CALLEE}."""
        return f"{self.technology}/callee"


def find_installation() -> Installation:
    """Return the named build, else the installed Asterisk if it is fit, else the one in the cache.

    Fetches it into the cache if it is not there yet; two processes at once fetch it once.
    What is in the cache is not renewed: remove it to have Debian's latest.

    Raises:
        AsteriskUnavailable: The named one cannot be used, or neither other is to be had.
    """
    if named := os.environ.get(PREFIX_VARIABLE):
        return _built(Path(named).absolute())
    return _installed() or _cached()


def new_enough(version: str) -> bool:
    """Return whether ChanSpy of this version has option D."""
    parsed = Version.parse(version)
    return parsed.is_known and parsed.has(CHANSPY_PAIRS)


def _built(prefix: Path) -> Installation:
    """Return what `./configure --prefix=PREFIX` and `make install` made."""
    program = prefix / "sbin/asterisk"
    modules = _first(prefix, "lib*/asterisk/modules", having=".")
    if not program.is_file():
        raise _unfit(prefix, "there is no sbin/asterisk")
    if modules is None:
        raise _unfit(prefix, "there is no lib/asterisk/modules")
    if not (modules / "chan_audiosocket.so").exists():
        raise _unfit(prefix, f"chan_audiosocket.so is missing in {modules}")
    technology = next((SIP_MODULES[name] for name in SIP_MODULES if (modules / name).exists()), "")
    if not technology:
        raise _unfit(prefix, f"{' and '.join(SIP_MODULES)} are missing in {modules}")
    data = _first(prefix, "var/lib/asterisk", "share/asterisk", having=".")
    if data is None:
        raise _unfit(prefix, "there is no var/lib/asterisk")
    # The prefix may have been moved since it was built.
    command = ("env", f"LD_LIBRARY_PATH={modules.parents[1]}", str(program))
    version = _fit_version(prefix, command)
    return Installation(version, command, modules, data, _prompts(prefix, data), technology)


def _unfit(prefix: Path, why: str) -> AsteriskUnavailable:
    return AsteriskUnavailable(f"{PREFIX_VARIABLE} names {prefix}, and {why}")


def _fit_version(prefix: Path, command: tuple[str, ...]) -> str:
    version = _version(command)
    branch = Version.parse(version).branch
    if not version:
        raise _unfit(prefix, f"sbin/asterisk does not run: {_run_version(command).stderr.strip()}")
    if branch is not None and branch < OLDEST_BRANCH:
        raise _unfit(prefix, f"its Asterisk {version} is older than {OLDEST_BRANCH}.0")
    return version


def _prompts(prefix: Path, data: Path) -> Path:
    """Return the build's own prompts, else those of Debian: `make install` may leave them out."""
    if any(data.glob("sounds/en/hello-world.*")):
        return data / "sounds/en"
    try:
        return _cached().prompts
    except AsteriskUnavailable as exc:
        raise _unfit(
            prefix, f"it has no English prompts; nor are Debian's to be had:\n{exc}"
        ) from exc


def _installed(root: Path = Path("/")) -> Installation | None:
    # Few users but root have the sbin folders in their PATH.
    folders = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    program = shutil.which("asterisk", path=os.pathsep.join(folders))
    modules = _first(
        root,
        "usr/lib*/asterisk/modules",
        "usr/lib/*/asterisk/modules",
        "usr/local/lib*/asterisk/modules",
        having="chan_audiosocket.so",
    )
    data = _first(root, "usr/share/asterisk", "var/lib/asterisk", having="sounds/en")
    if not program or not modules or not data:
        return None
    version = _version((program,))
    if not new_enough(version):
        log.info("%s is Asterisk %s, too old for ChanSpy's option D", program, version)
        return None
    return Installation(version, (program,), modules, data, data / "sounds/en")


def _first(root: Path, *patterns: str, having: str) -> Path | None:
    found = (path for pattern in patterns for path in sorted(root.glob(pattern)))
    return next((path for path in found if (path / having).exists()), None)


def _version(command: Sequence[str]) -> str:
    said = _run_version(command).stdout
    # "Asterisk 22.10.1+dfsg+~cs6.17", "Asterisk certified/20.7-cert2", "Asterisk GIT-22-f0c1c1a"
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip().removeprefix("Asterisk ")


def _run_version(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "-V"], capture_output=True, text=True, timeout=START_S)


def cache_folder() -> Path:
    """Return the folder for downloads."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "audiofork")


def _cached() -> Installation:
    cache = cache_folder()
    tree = cache / f"asterisk-{DEBIANS.suite}-{platform.machine()}"
    try:
        if not tree.exists():
            with locked(cache):
                if not tree.exists():
                    debian.fetch(DEBIANS, tree)
        return _unpacked(tree)
    except (debian.FetchFailed, OSError) as exc:
        raise AsteriskUnavailable(
            "no Asterisk with AudioSocket is installed (22, or from 18.22, 20.7, 21.2 on), "
            f"and Debian's packages of it cannot be fetched into {cache}:\n{exc}"
        ) from exc


def fetched(name: str, wanted: debian.Wanted) -> Path:
    """Return the folder with some packages of Debian; the first time they are fetched into it.

    Args:
        name: What they are, in the name of that folder.
        wanted: The packages.

    Raises:
        debian.FetchFailed: They cannot be; the text says whereto.
    """
    cache = cache_folder()
    tree = cache / f"{name}-{wanted.suite}-{platform.machine()}"
    try:
        with locked(cache):
            if not tree.exists():
                debian.fetch(wanted, tree)
    except (debian.FetchFailed, OSError) as exc:
        raise debian.FetchFailed(f"cannot be fetched into {cache}:\n{exc}") from exc
    return tree


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which one process has at a time; make the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        with Telling(lambda: "another process is fetching Asterisk", tell=log.info):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpacked(tree: Path) -> Installation:
    loader = next(tree.glob("**/ld-linux*.so.*"), None)
    modules = next(tree.glob("usr/lib/*/asterisk/modules"), None)
    if loader is None or modules is None:
        raise AsteriskUnavailable(f"{tree} is damaged: remove it, and it is fetched again")
    # The machine's own libraries may be too old: its loader and libraries stay out of it.
    libraries = [modules.parents[1], *(tree / name for name in ("usr/lib", "lib"))]
    path = os.pathsep.join(str(folder) for folder in libraries)
    command = (str(loader), "--library-path", path, str(tree / "usr/sbin/asterisk"))
    version = _version(command)
    if not new_enough(version):
        raise AsteriskUnavailable(f"{tree} does not run here, or is too old: {version!r}")
    data = tree / "usr/share/asterisk"
    return Installation(version, command, modules, data, data / "sounds/en")


class Asterisk:
    """One private Asterisk; a context manager.

    SIP (UDP), AMI and HTTP with ARI listen on 127.0.0.1, on ports chosen at each `start`.
    The SIP endpoints `caller` and `callee` are known by the user in From, without a
    password; their calls enter the dialplan context `testbed`, and Dial(${CALLEE}) calls
    the latter. AMI and ARI share one user. All of it is set in the files of `testbed/etc`.

    The process ends with the process that started it, however that ends.

    Args:
        installation: What to run; `find_installation()` by default.
        dialplan: Text put at the end of extensions.conf.
        config: Text put at the end of further configuration files, by file name.
        keep: Leave the folder when stopped.
    """

    folder: Path
    ami_port: int
    sip_port: int
    http_port: int
    ami_username: str
    ami_secret: str
    pid: int

    def __init__(
        self,
        installation: Installation | None = None,
        *,
        dialplan: str = "",
        config: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.installation = installation or find_installation()
        self.ami_username = "testbed"
        self.ami_secret = secrets.token_hex(16)
        self.pid = 0
        self._log_start = 0
        self._additions = dict(config or {})
        self._additions["extensions.conf"] = (
            dialplan + "\n" + self._additions.get("extensions.conf", "")
        )
        self._keep = keep or os.environ.get(KEEP_VARIABLE) == "1"
        self._owner: IO[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start on free ports and return when Asterisk is fully booted.

        Raises:
            AsteriskFailed: It ended, or was not ready in time.
        """
        assert self._process is None, "already started"
        remove_stale_folders()
        self._make_folder()
        atexit.register(self.stop)
        try:
            self._start_on_free_ports()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill Asterisk and remove its folder; does nothing if it is not there."""
        atexit.unregister(self.stop)
        self._end_process()
        if self._owner is None:
            return
        if self._keep:
            (self.folder / "owner").unlink(missing_ok=True)  # the sweep spares it now
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._owner.close()
        self._owner = None

    def restart(self) -> None:
        """Shut Asterisk down, if it still runs, and start it with the same ports and folder.

        Raises:
            AsteriskFailed: As for `start`; `stop` is still to be called.
        """
        self._end_process(SHUTDOWN_S)
        self._launch()

    def kill(self) -> None:
        """End Asterisk without any warning; `restart` or `stop` may follow."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Return the exit status of Asterisk when it has ended."""
        assert self._process is not None
        return self._process.wait()

    def cli(self, command: str) -> str:
        """Return what a command of Asterisk's command line prints."""
        done = subprocess.run(
            [*self.installation.command, "-C", str(self._conf), "-rx", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=START_S,
        )
        return done.stdout

    def log(self) -> str:
        """Return the text of Asterisk's log since the first start."""
        return _text(self.folder / "log/full")

    async def says(self, *texts: str) -> None:
        """Wait until its log has these texts: it writes them a moment later.

        Raises:
            TimeoutError: It does not.
        """
        async with asyncio.timeout(10):
            while not all(text in self.log() for text in texts):  # noqa: ASYNC110 (it is a file)
                await asyncio.sleep(0.02)

    def cdr_rows(self) -> list[str]:
        """Return the call detail records written so far, as lines of CSV."""
        return _text(self.folder / "log/cdr-csv/Master.csv").splitlines()

    def __enter__(self) -> Asterisk:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _conf(self) -> Path:
        return self.folder / "etc/asterisk.conf"

    def _make_folder(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=_parent_folder()))
        # A lock, not a process number: a number may be in use again, or be one of another
        # container that shares /tmp. Renamed once locked, so that no sweep finds it free.
        self._owner = (self.folder / "owner.new").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        (self.folder / "owner.new").rename(self.folder / "owner")
        for name in ("etc", "lib/keys", "spool", "run", "log/cdr-csv", "cache"):
            (self.folder / name).mkdir(parents=True)
        self._data = self._folder_of_data()

    def _folder_of_data(self) -> Path:
        """Return the installation's data; a folder of links if its prompts are elsewhere."""
        data, prompts = self.installation.data, self.installation.prompts
        if prompts.is_relative_to(data):
            return data
        folder = self.folder / "data"
        (folder / "sounds").mkdir(parents=True)
        (folder / "sounds/en").symlink_to(prompts)
        for entry in data.iterdir():
            if entry.name != "sounds":
                (folder / entry.name).symlink_to(entry)
        return folder

    def _start_on_free_ports(self) -> None:
        for remaining in reversed(range(START_TRIES)):
            self._choose_ports()
            self._write_configuration()
            try:
                self._launch()
                return
            except PortTaken:
                self._end_process()
                if not remaining:
                    raise

    def _choose_ports(self) -> None:
        self.sip_port = free_port(socket.SOCK_DGRAM)
        self.ami_port = free_port(socket.SOCK_STREAM)
        self.http_port = free_port(socket.SOCK_STREAM)

    def _write_configuration(self) -> None:
        rtp_start = random.randrange(RTP_LOWEST, RTP_HIGHEST - RTP_PORTS, 2)
        values = {
            "folder": self.folder,
            "modules": self.installation.modules,
            "data": self._data,
            "callee": self.installation.callee,
            "maxfiles": min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
            "ami_port": self.ami_port,
            "ami_username": self.ami_username,
            "ami_secret": self.ami_secret,
            "http_port": self.http_port,
            "sip_port": self.sip_port,
            "rtp_start": rtp_start,
            "rtp_end": rtp_start + RTP_PORTS - 1,
        }
        texts = {
            file.name: _Template(file.read_text()).substitute(values)
            for file in TEMPLATES.glob("*.conf")
        }
        texts["modules.conf"] = _modules_to_load(texts["modules.conf"], self.installation)
        for name in {*EMPTY_FILES, *texts, *self._additions}:
            text = texts.get(name, "") + "\n" + self._additions.get(name, "")
            (self.folder / "etc" / name).write_text(text)

    def _launch(self) -> None:
        console = self.folder / "log/console"
        self._log_start = len(self.log())
        # The guard leads Asterisk's process group and kills it upon a line from us, or
        # upon the end of its input, which comes when we die. The kernel's parent-death
        # signal would not do: it is sent as soon as the thread that called us ends.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", "read -r _; kill -s KILL 0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        with console.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.installation.command, "-f", "-C", str(self._conf)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=self._guard.pid,
            )
        self.pid = self._process.pid
        self._wait_until_booted(time.monotonic() + START_S)

    def _wait_until_booted(self, deadline: float) -> None:
        while not self._fully_booted():
            self._check_progress(deadline)
            time.sleep(0.02)
        self._check_ports()

    def _check_progress(self, deadline: float) -> None:
        assert self._process is not None
        self._check_ports()
        status = self._process.poll()
        if status is not None:
            raise AsteriskFailed(self._last_words(f"Asterisk ended with status {status}"))
        if time.monotonic() > deadline:
            raise AsteriskFailed(self._last_words(f"Asterisk was not ready after {START_S} s"))

    def _check_ports(self) -> None:
        # Asterisk goes on without the port, be it AMI's, SIP's or HTTP's.
        if "Address already in use" in self.log()[self._log_start :]:
            raise PortTaken(self._last_words("a port chosen for Asterisk was taken"))

    def _fully_booted(self) -> bool:
        """Log in over AMI, as soon as it listens, and wait for the event that says so."""
        login = (
            f"Action: Login\r\nUsername: {self.ami_username}\r\n"
            f"Secret: {self.ami_secret}\r\nEvents: system\r\n\r\n"
        )
        address = ("127.0.0.1", self.ami_port)
        try:
            with socket.create_connection(address, LOGIN_S) as connection:
                connection.sendall(login.encode())
                received = b""
                while b"Event: FullyBooted" not in received:
                    chunk = connection.recv(4096)
                    if not chunk:
                        return False
                    received += chunk
        except OSError:
            return False
        return True

    def _end_process(self, patience_s: float = 0) -> None:
        if self._process is None or self._guard is None:
            return
        if patience_s:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        # A line, for the end of input may not come: a forked child may hold the pipe, too.
        self._guard.communicate(b"\n")
        self._process.wait()
        self._process = self._guard = None

    def _last_words(self, what: str) -> str:
        lines = (_text(self.folder / "log/console") + self.log()).splitlines()
        return "\n".join([f"{what}; it said last:", *lines[-30:]])


class _Template(string.Template):
    delimiter = "@"  # Asterisk's own files are full of dollars


def _modules_to_load(text: str, installation: Installation) -> str:
    """Leave out what this version does not have, Asterisk would complain, and the other SIP."""
    other = "chan_sip" if installation.technology == "PJSIP" else "pjsip"

    def is_wanted(line: str) -> bool:
        if not line.startswith("load"):
            return True
        return (installation.modules / line.split()[-1]).exists() and other not in line

    return "\n".join(filter(is_wanted, text.splitlines()))


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def free_port(kind: socket.SocketKind, count: int = 1) -> int:
    """Return a port of 127.0.0.1 that nobody uses at the moment: the first of so many in a row.

    None of those that the kernel gives to whoever asks for any: it could be gone in a moment.
    """
    while True:
        first = random.SystemRandom().randrange(*FREE_PORTS)
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probe = probes.enter_context(socket.socket(socket.AF_INET, kind))
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


def _parent_folder() -> str:
    """Return the folder for temporary folders, unless its name is too long for a socket."""
    longest = os.path.join(tempfile.gettempdir(), FOLDER_PREFIX + "12345678", "run/asterisk.ctl")
    return tempfile.gettempdir() if len(os.fsencode(longest)) <= SOCKET_PATH_MAX_BYTES else "/tmp"


def remove_stale_folders() -> None:
    """Remove the folders of processes that were killed before they could do it."""
    for owner in Path(_parent_folder()).glob(FOLDER_PREFIX + "*/owner"):
        try:
            with owner.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
        except OSError:
            continue  # in use, another user's, or just removed


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch Asterisk, or run one until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m testbed.asterisk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("get", help="fetch Asterisk if need be, and say where it is")
    run = commands.add_parser("run", help="run Asterisk until Ctrl-C")
    run.add_argument("--dialplan", type=Path, help="file with the text of extensions.conf")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _get() if options.command == "get" else _run(options.dialplan)
    except (AsteriskUnavailable, AsteriskFailed) as exc:
        print(exc, file=sys.stderr)
        return 1


def _get() -> int:
    began = time.monotonic()
    found = find_installation()
    print(f"Asterisk {found.version} in {time.monotonic() - began:.1f} s")
    print(" ".join(found.command))
    return 0


def _run(dialplan: Path | None) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    with Asterisk(dialplan=dialplan.read_text() if dialplan else "") as asterisk:
        print(f"Asterisk {asterisk.installation.version}, process {asterisk.pid}")
        print(f"folder  {asterisk.folder}")
        print(f"SIP     127.0.0.1:{asterisk.sip_port} (UDP), users caller and callee")
        print(f"AMI     127.0.0.1:{asterisk.ami_port}")
        print(f"ARI     127.0.0.1:{asterisk.http_port}")
        print(f"user    {asterisk.ami_username}, secret {asterisk.ami_secret}", flush=True)
        try:
            status = asterisk.wait()
        except KeyboardInterrupt:
            return 0
    print(f"Asterisk ended with status {status}", file=sys.stderr)
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
