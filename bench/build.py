"""Prepares the benchmark: compiles the C programs, fetches the libraries of other relays.

All goes into the cache folder of the testbed (~/.cache/audiofork), once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.asterisk import cache_folder

HERE = Path(__file__).parent
SOURCES = HERE / "c"
PEERS = HERE / "peers"
PROGRAMS = ("generator", "sink", "floor")
_SHARED = ("common.c", "wire.c", "websocket.c")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
_FETCH_TIMEOUT_S = 120


class CannotBuild(Exception):
    """Something that the benchmark needs is missing; the text says what to install."""


@dataclass(frozen=True)
class Tools:
    """The compiled programs, and whether they know TLS."""

    generator: Path
    sink: Path
    floor: Path
    has_tls: bool


def tools() -> Tools:
    """Compile the C programs unless that is done.

    Raises:
        CannotBuild: There is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise CannotBuild("the benchmark needs a C compiler: apt install gcc libc6-dev")
    has_tls = _has_openssl(compiler)
    folder = cache_folder() / f"bench-{_digest(compiler, has_tls)}"
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            _compile_all(compiler, folder, has_tls)
    return Tools(folder / "generator", folder / "sink", folder / "floor", has_tls)


def compiled(folder: Path) -> Path:
    """Install this tree into a folder as its wheel does, with the hot path compiled; return it.

    Raises:
        CannotBuild: It cannot be compiled.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--target", str(folder), str(HERE.parent)]
    environment = os.environ | {"AUDIOFORK_PURE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotBuild(f"the hot path cannot be compiled:\n{done.stderr}")
    return folder


def _has_openssl(compiler: str) -> bool:
    """Return whether OpenSSL's headers and libraries are installed: links an empty program."""
    command = [compiler, "-include", "openssl/ssl.h", "-x", "c", "-", "-o", os.devnull]
    source = b"int main(void) { return SSL_CTX_new(TLS_client_method()) == NULL; }"
    done = subprocess.run([*command, "-lssl", "-lcrypto"], input=source, capture_output=True)
    return done.returncode == 0


def _digest(compiler: str, has_tls: bool) -> str:
    digest = hashlib.sha256(f"{compiler} {_FLAGS} {has_tls}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _compile_all(compiler: str, folder: Path, has_tls: bool) -> None:
    """Compile into a folder that has its name only when all is there."""
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for program in PROGRAMS:
        sources = [SOURCES / f"{program}.c", *(SOURCES / name for name in _SHARED)]
        tls = ("-DBENCH_TLS", "-lssl", "-lcrypto") if has_tls else ()
        command = [compiler, *_FLAGS, *sources, "-o", unfinished / program, *tls]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise CannotBuild(f"{program}.c does not compile:\n{done.stderr}")
    unfinished.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Peer:
    """How another relay is run."""

    command: tuple[str | Path, ...]
    environment: dict[str, str]


def node_peer() -> Peer:
    """Return the relay in Node.js, its package fetched.

    Raises:
        CannotBuild: Node.js or npm is missing, or the package cannot be had.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise CannotBuild("needs Node.js with npm: apt install nodejs npm")
    folder = cache_folder() / "bench-npm"
    with _locked(folder.with_suffix(".lock")):
        if not (folder / "node_modules/ws/package.json").exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(PEERS / "package.json", folder)
            _fetch([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder)])
    return Peer((node, PEERS / "relay.js"), {"NODE_PATH": str(folder / "node_modules")})


def websockets_peer() -> Peer:
    """Return the plain asyncio relay."""
    return Peer((sys.executable, PEERS / "websockets_relay.py"), {})


def picows_peer() -> Peer:
    """Return the relay with picows, the library fetched.

    Raises:
        CannotBuild: It cannot be had.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / f"bench-picows-{version}"
    with _locked(folder.with_suffix(f"{folder.suffix}.lock")):
        if not (folder / "picows").exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
            _fetch(
                [*pip, "--disable-pip-version-check", "--target", str(folder), "picows >= 2, < 3"]
            )
    return Peer((sys.executable, PEERS / "picows_relay.py"), {"PYTHONPATH": str(folder)})


def _fetch(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        raise CannotBuild(f"{Path(command[0]).name} took too long") from exc
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CannotBuild(f"cannot be fetched: {lines[-1]}")
