"""Runs proxies that others wrote, on 127.0.0.1: tinyproxy for HTTP, microsocks for SOCKS5.

One in PATH is taken; else Debian's, which is fetched once out of its packages (see `debian.py`)
and kept in ~/.cache/audiofork.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed import debian
from testbed.asterisk import fetched

PROGRAMS = {"http": "tinyproxy", "socks5": "microsocks"}
START_TIMEOUT_S = 30.0
DEBIANS = debian.Wanted(
    "proxies (about 5 MB)",
    "sid",
    tuple(PROGRAMS.values()),
    tuple(f"usr/bin/{name}" for name in PROGRAMS.values()),
    lambda _tree, _target: None,
)


class ProxyUnavailable(Exception):
    """A proxy cannot be had on this machine; the text says why."""


@contextmanager
def real_proxy(scheme: str, folder: Path, login: str) -> Iterator[str]:
    """Run a proxy that wants a login; yield its URL without it.

    Args:
        scheme: http or socks5.
        folder: Where its configuration is written.
        login: user:password.

    Raises:
        ProxyUnavailable: It is not to be had, or does not start.
    """
    port = _free_port()
    arguments = _tinyproxy if scheme == "http" else _microsocks
    command = [*find(PROGRAMS[scheme]), *arguments(port, folder, *login.split(":"))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_listening(process, port)
            yield f"{scheme}://127.0.0.1:{port}"
        finally:
            process.terminate()


def find(program: str) -> list[str]:
    """Return the command that runs a program.

    Raises:
        ProxyUnavailable: It is not installed, and Debian's cannot be fetched.
    """
    if found := shutil.which(program):
        return [found]
    try:
        tree = fetched("proxies", DEBIANS)
    except debian.FetchFailed as exc:
        raise ProxyUnavailable(f"no {program} in PATH, and Debian's {exc}") from exc
    loader = next(tree.glob("**/ld-linux*.so.*"), None)
    libraries = [str(path.parent) for path in tree.glob("usr/lib/*/libc.so.6")]
    if loader is None or not libraries:
        raise ProxyUnavailable(f"{tree} is damaged: remove it, and it is fetched again")
    path = os.pathsep.join(libraries)
    return [str(loader), "--library-path", path, str(tree / "usr/bin" / program)]


def _tinyproxy(port: int, folder: Path, user: str, password: str) -> list[str]:
    config = folder / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 100\nTimeout 600\n"
        f"LogLevel Critical\nBasicAuth {user} {password}\n"
    )
    return ["-d", "-c", str(config)]


def _microsocks(port: int, _folder: Path, user: str, password: str) -> list[str]:
    return ["-i", "127.0.0.1", "-p", str(port), "-q", "-u", user, "-P", password]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ProxyUnavailable(f"{process.args!r} does not start")
