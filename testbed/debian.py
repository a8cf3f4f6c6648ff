"""Gets programs out of Debian's packages without root.

apt resolves and downloads everything they need into a private folder, as if nothing
were installed, and dpkg-deb unpacks it; the machine's own packages are not touched.
apt checks Debian's signatures throughout.

Debian's address and keys come from the machine: from its apt sources on Debian,
from the packages `debootstrap` and `debian-archive-keyring` elsewhere.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.progress import Telling, megabytes

log = logging.getLogger(__name__)

MIRROR_VARIABLE = "AUDIOFORK_DEBIAN_MIRROR"
WORK_PREFIX = ".fetch-"

# The files to keep of all packages: the libraries of a closure, except those of its tools.
KEPT = ("lib", "lib64", "usr/lib", "usr/lib64")
DROPPED = ("usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/lib/*/gconv", "usr/lib/gnupg*")

KEYRING_NAMES = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")

# Suites of the main archive; its security, updates and backports suites have suffixes.
DEBIAN_SUITES = frozenset(
    "unstable testing stable oldstable oldoldstable "
    "sid duke forky trixie bookworm bullseye buster".split()
)

# Ten minutes: 110 MB at 200 kB/s.
APT_TIMEOUT_S = 600


class FetchFailed(Exception):
    """The packages cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Wanted:
    """Names the packages to fetch, and what is kept of them.

    Attributes:
        what: A name for people, to follow "downloading".
        suite: The suite of Debian.
        packages: Their names in it.
        kept: Files and folders to keep besides the libraries.
        finish: Called with the unpacked tree, and its final path.
    """

    what: str
    suite: str
    packages: tuple[str, ...]
    kept: tuple[str, ...]
    finish: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Source:
    """One address in apt's sources."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """The addresses of Debian's archive, and the keys that its signatures are checked with."""

    mirrors: tuple[str, ...]
    keyrings: tuple[Path, ...]


def fetch(wanted: Wanted, target: Path) -> None:
    """Download packages and all they need, and unpack them into `target`, which must not exist.

    `target` appears complete or not at all: the work is done in a folder beside it.
    The caller ensures that nobody else does the same at the same time.

    Raises:
        FetchFailed: No tools, no network, no mirror, or no valid signature.
    """
    _require_tools()
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(WORK_PREFIX + "*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a fetch that was killed
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=target.parent) as name:
        work = Path(name)
        packages = _download(wanted, work, os.environ.get(MIRROR_VARIABLE))
        log.info("unpacking %d packages", len(packages))
        with _telling(lambda: f"unpacked {megabytes(work / 'all')}"):
            tree = unpack(packages, work / "all")
        with _telling(lambda: f"leaving out what {wanted.what} does not need here"):
            _keep_needed(tree, work / "kept", wanted.kept)
            wanted.finish(work / "kept", target)
            (work / "kept").rename(target)
            shutil.rmtree(tree, ignore_errors=True)


def _telling(how_far: Callable[[], str]) -> Telling:
    return Telling(how_far, tell=log.info, at_once=True)


def _require_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise FetchFailed(f"{' and '.join(missing)} not found; this needs a Debian or an Ubuntu")


def _download(wanted: Wanted, work: Path, mirror: str | None) -> list[Path]:
    failures: list[str] = []
    for origin in _origins(work, mirror, failures):
        for address in origin.mirrors:
            try:
                return _download_from(wanted, work, address, origin.keyrings)
            except FetchFailed as exc:
                failures.append(str(exc))
    failures.append(f"{MIRROR_VARIABLE} can name a mirror of Debian")
    raise FetchFailed("\n".join(failures))


def _origins(work: Path, mirror: str | None, failures: list[str]) -> Iterator[Origin]:
    """Yield the places to try: those the machine knows, then those its packages know."""
    known = origin_from_machine()
    if mirror:
        known = Origin((mirror,), known.keyrings)
    if known.mirrors and known.keyrings:
        yield known
    try:
        packaged = origin_from_packages(work)
    except FetchFailed as exc:
        failures.append(str(exc))
        return
    # A machine's own mirror with newer keys, too: the installed keys may be too old for sid.
    mirrors = (mirror,) if mirror else tuple(dict.fromkeys(known.mirrors + packaged.mirrors))
    yield Origin(mirrors, packaged.keyrings)


def origin_from_machine(root: Path = Path("/")) -> Origin:
    """Return what apt's configuration below `root` says about Debian's archive."""
    sources: list[Source] = []
    folder = root / "etc/apt"
    for file in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]:
        if file.is_file():
            sources += parse_sources(file.name, file.read_text(errors="replace"))
    shared = [root / "usr/share/keyrings" / name for name in KEYRING_NAMES]
    trusted = sorted(folder.glob("trusted.gpg.d/debian-archive-*"))
    keyrings = [file for file in shared if file.is_file()][:1] or trusted
    return Origin(tuple(debian_mirrors(sources)), tuple(keyrings))


def origin_from_packages(work: Path) -> Origin:
    """Return what the distribution's own packages say about Debian's archive.

    They come through the machine's own apt sources, checked with the machine's keys.

    Raises:
        FetchFailed: The distribution does not carry them, or cannot be reached.
    """
    apt = PrivateApt(work / "own")
    apt.update(check=False)  # somebody else's repository may be out of order
    packages = apt.download("debootstrap", "debian-archive-keyring")
    tree = unpack(packages, work / "own-unpacked")
    keyrings = [tree / "usr/share/keyrings" / name for name in KEYRING_NAMES]
    return Origin(
        tuple(_debootstrap_mirrors(tree)), tuple(file for file in keyrings if file.is_file())[:1]
    )


def _debootstrap_mirrors(tree: Path) -> Iterator[str]:
    scripts = tree / "usr/share/debootstrap/scripts"
    for file in (scripts / "sid", scripts / "debian-common", tree / "usr/sbin/debootstrap"):
        if file.is_file() and (mirror := default_mirror(file.read_text())):
            yield mirror


def default_mirror(script: str) -> str | None:
    """Return the mirror that a debootstrap script names, if any."""
    found = re.search(r'^\s*(?:default_mirror\s+|DEF_MIRROR=)"?(\w+://[^\s"]+)', script, re.M)
    return found[1] if found else None


def parse_sources(name: str, text: str) -> Iterator[Source]:
    """Read one of apt's source files, in the format that its name implies."""
    if name.endswith(".sources"):
        return _parse_deb822(text)
    if name.endswith(".list"):
        return _parse_one_line(text)
    return iter(())  # apt does not read other files either


def _parse_one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1], (words[2],), tuple(words[3:]))


def _parse_deb822(text: str) -> Iterator[Source]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            key.lower(): value.split()
            for key, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
        }
        if "deb" not in fields.get("types", ()) or fields.get("enabled") == ["no"]:
            continue
        for uri in fields.get("uris", ()):
            yield Source(uri, tuple(fields.get("suites", ())), tuple(fields.get("components", ())))


def debian_mirrors(sources: Sequence[Source]) -> list[str]:
    """Return the addresses that may be Debian's main archive, the likeliest first.

    Other repositories use Debian's suite names, too. It does no harm to ask one of
    them in vain: a suite signed by Debian is found only in Debian's archive.
    """
    uris = [
        source.uri.rstrip("/")
        for source in sources
        if "main" in source.components and DEBIAN_SUITES.intersection(source.suites)
    ]
    return sorted(dict.fromkeys(uris), key=lambda uri: not uri.endswith("/debian"))


def _download_from(wanted: Wanted, work: Path, mirror: str, keyrings: Sequence[Path]) -> list[Path]:
    log.info("downloading %s from %s", wanted.what, mirror)
    keys = ",".join(str(file) for file in keyrings)
    # Without arch, a machine with foreign architectures would fetch their lists, too.
    arch = _command("dpkg", "--print-architecture").stdout.strip()
    options = f"arch={arch} signed-by={keys}"
    apt = PrivateApt(work / "debian", f"deb [{options}] {mirror} {wanted.suite} main\n")
    apt.update()
    return apt.download_closure(*wanted.packages)


class PrivateApt:
    """apt-get with folders of its own and nothing installed.

    Args:
        folder: Holds all of its state; emptied first.
        sources: Text of a sources.list; None uses the machine's own sources.
    """

    def __init__(self, folder: Path, sources: str | None = None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self._complaints: list[str] = []
        for name in ("state/lists/partial", "cache/archives/partial", "log", "none"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        self._conf = folder / "apt.conf"
        self._conf.write_text(self._settings(sources))

    def _settings(self, sources: str | None) -> str:
        # The machine's apt.conf stays in force, for its proxy; what would leave our
        # folders or weaken the check of signatures is set here.
        settings = {
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Cache::archives": self.folder / "cache/archives",
            "Dir::Log": self.folder / "log",
            # The user _apt cannot write here, and none but root can become _apt.
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        if sources is not None:
            (self.folder / "sources.list").write_text(sources)
            settings["Dir::Etc::SourceList"] = self.folder / "sources.list"
            settings["Dir::Etc::SourceParts"] = self.folder / "none"
            settings["Dir::Etc::Preferences"] = "/dev/null"
            settings["Dir::Etc::PreferencesParts"] = self.folder / "none"
        # Hooks of the machine would act on the machine's own package cache.
        cleared = "#clear APT::Update;\n#clear DPkg;\n"
        return cleared + "".join(f'{key} "{value}";\n' for key, value in settings.items())

    def update(self, *, check: bool = True) -> None:
        """Fetch the package lists; without `check`, make do with those that can be had."""
        with _telling(lambda: f"lists of packages: {megabytes(self.folder / 'state/lists')}"):
            self._run("update", "-o", "APT::Update::Error-Mode=any", check=check)

    def download(self, *packages: str) -> list[Path]:
        """Download the packages themselves."""
        self._run("download", *packages)
        return sorted(self.folder.glob("*.deb"))

    def download_closure(self, *packages: str) -> list[Path]:
        """Download the packages and everything they depend on."""
        with _telling(lambda: "looking up what it needs"):
            total = f"{self._size_of(packages) / 1e6:.0f} MB"
        archives = self.folder / "cache/archives"
        with _telling(lambda: f"downloaded {megabytes(archives)} of {total}"):
            self._run("install", "--yes", "--download-only", *packages)
        return sorted(self.folder.glob("cache/archives/*.deb"))

    def _size_of(self, packages: Sequence[str]) -> int:
        """Return how many bytes there are to download; apt prints 'URL' NAME SIZE SUM of each."""
        said = self._run("install", "--yes", "--print-uris", *packages)
        return sum(map(int, re.findall(r"^'\S+' \S+ (\d+) ", said, re.M)))

    def _run(self, *arguments: str, check: bool = True) -> str:
        done = _command("apt-get", "-q", "-c", str(self._conf), *arguments, cwd=self.folder)
        self._complaints += re.findall(r"^[EW]: .*", done.stdout, re.M)
        if check and done.returncode != 0:
            raise FetchFailed("\n".join(self._complaints) or done.stdout[-1000:])
        return done.stdout


def unpack(packages: Sequence[Path], folder: Path) -> Path:
    """Unpack packages over each other into a folder; run none of their scripts."""
    for package in packages:
        done = _command("dpkg-deb", "-x", str(package), str(folder))
        if done.returncode != 0:
            raise FetchFailed(f"{package.name} cannot be unpacked: {done.stdout.strip()}")
        package.unlink()
    return folder


def _keep_needed(tree: Path, kept: Path, more: Sequence[str]) -> None:
    for name in (*KEPT, *more):
        if (tree / name).exists():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).rename(kept / name)
    for pattern in DROPPED:
        for path in kept.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments,
            cwd=cwd,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as exc:
        raise FetchFailed(f"{arguments[0]} took more than {APT_TIMEOUT_S} s") from exc
